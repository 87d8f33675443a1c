"""What a module says of its arguments and places, and what cannot be emitted."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

pytest.importorskip("torch_mlir")

import analogc
from analogc.compiler.mlir.context import new_context
from analogc.compiler.mlir.dialect import ConvOp
from analogc.compiler.mlir.passes.base import operations
from analogc.errors import AccessError, InputError, UnsupportedError, VerifyError


class Net(nn.Module):
    """A folded batch norm, a tied weight, a buffer that no state dict has."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("shift", torch.randn(4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.second(self.first(y) + self.shift)  # type: ignore[no-any-return]


X = torch.randn(2, 1, 6, 6)


def net(**settings: Any) -> analogc.CompiledModel:
    return analogc.compile(Net().eval(), (X,), seed=0, **settings)


def test_arguments_say_what_they_are() -> None:
    compiled = net()
    mlir = compiled.to_mlir()

    found = {argument.name: argument for argument in mlir.arguments}

    kinds = {name: argument.kind for name, argument in found.items()}
    assert kinds == {
        "x": "input", "first.weight": "parameter", "first.bias": "parameter",
        "second.bias": "parameter", "shift": "buffer", "derived.conv_weight": "derived",
        "derived.conv_bias": "derived", "ranges.conv_input": "range", "ranges.conv_adc": "range",
        "ranges.first_input": "range", "ranges.first_adc": "range",
        "ranges.first_2_input": "range", "ranges.first_2_adc": "range",
    }  # fmt: skip
    assert found["derived.conv_weight"].sources == (
        "conv.weight", "norm.weight", "norm.running_var"
    )  # fmt: skip
    text = mlir.text(names=True)
    for argument in mlir.arguments:
        assert f'analog.kind = "{argument.kind}", analog.name = "{argument.name}"' in text
    assert "%first.weight: tensor<4x4xf32>" in text


def test_programmed_weights_come_with_their_scale() -> None:
    noisy = analogc.targets.generic_8bit().replace(device=analogc.GaussianDevice(sigma=0.05))
    compiled = net(target=noisy)

    values = {a.name: a for a in compiled.to_mlir("linalg").arguments}

    assert "first.weight" not in values
    assert "first.weight" in {a.name for a in compiled.to_mlir("analog").arguments}
    held = values["tiles.first"].value(compiled) * values["scale.first"].value(compiled)[:, None]
    torch.testing.assert_close(held, compiled.weights["first"].programmed(), rtol=1e-6, atol=0)


def test_inline_weights_are_resources_of_their_names() -> None:
    compiled = net()
    mlir = compiled.to_mlir("analog", weights="inline")

    assert [argument.kind for argument in mlir.arguments] == ["input"]
    resources = mlir.text().partition("{-#")[2]
    for name in ("first.weight", "first.bias", "derived.conv_weight", "shift"):
        assert f"dense_resource<{name}>" in str(mlir) and f"{name}: " in resources
    assert "0x" in resources and "0x" not in str(mlir).partition("{-#")[2]
    linalg = compiled.to_mlir("linalg", weights="inline")
    torch.testing.assert_close(linalg.compile()(X), compiled(X).detach(), rtol=0, atol=1e-6)


def test_external_weights_are_in_the_file(tmp_path: Path) -> None:
    compiled = net()
    mlir = compiled.to_mlir("linalg", weights=tmp_path / "net.safetensors")

    stored = safetensors.torch.load_file(tmp_path / "net.safetensors")

    assert 'analog.weights = "net.safetensors"' in mlir.text()
    assert set(stored) == {a.name for a in mlir.arguments if a.kind != "input"}
    for argument in mlir.arguments[1:]:
        assert torch.equal(stored[argument.name], argument.value(compiled))


@pytest.mark.parametrize("level", ["torch", "analog", "linalg"])
def test_places_are_the_users(level: Any) -> None:
    text = net().to_mlir(level).text(locations=True)
    line = sys._getframe().f_code.co_filename

    assert f'"{line}":' in text
    assert 'loc("conv"(' in text and '= loc("first"(' in text


def test_files(tmp_path: Path) -> None:
    from torch_mlir import ir

    mlir = net().to_mlir()
    mlir.save(tmp_path / "net.mlir")
    mlir.save(tmp_path / "net.mlirbc")
    with new_context():
        texts = [
            ir.Module.parse((tmp_path / name).read_bytes()).operation.get_asm(
                enable_debug_info=True
            )
            for name in ("net.mlir", "net.mlirbc")
        ]
    assert texts == [mlir.text(locations=True)] * 2
    with pytest.raises(InputError, match="suffix '.txt'"):
        mlir.save(tmp_path / "net.txt")


def test_text_is_the_same_in_every_process_and_time() -> None:
    torch.manual_seed(0)
    first = net().to_mlir("torch").text()
    torch.manual_seed(1)
    assert net().to_mlir("torch").text() == first


def test_wrong_module_is_told_apart() -> None:
    from torch_mlir import ir

    mlir = net().to_mlir()
    with mlir.module.context:
        (layer,) = operations(mlir.module, ConvOp)
        layer.operation.attributes["rows"] = ir.DenseI64ArrayAttr.get([0, 5])
    with pytest.raises(VerifyError, match="row blocks up to the weight's 9 rows"):
        mlir.verify()


# -- what cannot be -------------------------------------------------------------------------------


def test_training_graphs_are_refused() -> None:
    compiled = net().train()
    with pytest.raises(UnsupportedError, match="eval graphs only"):
        compiled.to_mlir()


def test_several_graphs_are_emitted_one_by_one() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            y = self.enter(x)
            return self.leave(y) if y.sum() > -1e9 else y

    compiled = analogc.compile(Branch().eval(), (torch.randn(2, 4),), capture="dynamo", seed=0)
    with pytest.raises(UnsupportedError, match="2 graphs with Python around") as caught:
        compiled.to_mlir()
    assert "compiled.graphs" in str(caught.value)
    with pytest.raises(UnsupportedError, match="2 graphs"):
        compiled.run_mlir(torch.randn(2, 4))
    graphs: Any = compiled.graphs
    modules = [graph.to_mlir() for graph in graphs]
    assert [module.text().count('"analog.linear"') for module in modules] == [1, 1]
    first = torch.randn(2, 4)
    (out,) = modules[1].compile()(first)[:1]
    with torch.no_grad():
        assert torch.equal(out, graphs[1](first)[0])


def test_sealed_weights_leave_as_arguments_only(tmp_path: Path) -> None:
    compiled = net(weight_access="sealed")
    assert compiled.to_mlir()
    for weights in ("inline", tmp_path / "w.safetensors"):
        with pytest.raises(AccessError, match="sealed"):
            compiled.to_mlir(weights=weights)
    assert not (tmp_path / "w.safetensors").exists()


def test_wrong_settings_are_refused() -> None:
    compiled = net()
    with pytest.raises(InputError, match="level must be one of torch, analog, linalg"):
        compiled.to_mlir("tosa")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="'args', 'inline' or the path"):
        compiled.to_mlir(weights="everything")
    with pytest.raises(InputError, match="take the weights as they are"):
        compiled.to_mlir("torch", programmed=True)


def test_output_noise_has_no_linalg_form() -> None:
    compiled = net(target="generic-8bit-noisy")
    with pytest.raises(UnsupportedError, match="output_noise") as caught:
        compiled.to_mlir("linalg")
    assert "layer conv" in str(caught.value)


def test_writes_into_buffers_are_refused() -> None:
    class Counts(nn.Module):
        count: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            y: Tensor = self.linear(x)
            return y * self.count

    compiled = analogc.compile(Counts().eval(), (torch.randn(2, 4),), seed=0)
    with pytest.raises(UnsupportedError, match="writes its buffer 'count'") as caught:
        compiled.to_mlir()
    assert "test_emit.py" in str(caught.value)


def test_operators_without_lowering_are_named() -> None:
    class Spectrum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            values: Tensor = torch.linalg.eigvalsh(y.view(-1, 2, 2))
            return values

    compiled = analogc.compile(Spectrum().eval(), (torch.randn(2, 4),), seed=0)
    with pytest.raises(UnsupportedError, match="eigh") as caught:
        compiled.to_mlir()
    assert "test_emit.py" in str(caught.value)


def test_weights_without_values_stay_arguments() -> None:
    with torch.device("meta"):
        model = nn.Linear(64, 64).eval()
    compiled = analogc.compile(model, (torch.empty(2, 64, device="meta"),))
    assert "tensor<64x64xf32>" in str(compiled.to_mlir("linalg", programmed=False))
    with pytest.raises(InputError, match="on the meta device"):
        compiled.to_mlir(weights="inline")


def test_precision_of_regions_is_in_the_module() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                y = self.up(x).relu()
            return self.down(y.float())  # type: ignore[no-any-return]

    x = torch.randn(3, 8)
    for target in ("ideal", "generic-8bit"):
        compiled = analogc.compile(Mixed().eval(), (x,), target=target, seed=0)
        mlir = compiled.to_mlir("analog")
        assert "bf16" in str(mlir) and str(mlir).count('"analog.linear"') == 2
        with torch.no_grad():
            want = compiled(x)
        step = 0.02 * float(want.abs().max())
        torch.testing.assert_close(mlir.compile()(x), want, rtol=0, atol=step)
        torch.testing.assert_close(compiled.run_mlir(x), want, rtol=0, atol=step)
