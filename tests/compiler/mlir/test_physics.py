"""Targets with physics: modules hold every setting; linalg computes it or refuses it by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_mlir")

import analogc
from analogc import Cell, Converter, Slicing, Target, Wires
from analogc.compiler.mlir.attributes import spec_of
from analogc.compiler.mlir.dialect import ConvOp, LinearOp
from analogc.compiler.mlir.passes.base import operations
from analogc.compiler.mlir.passes.split_to_tiles import split_to_tiles
from analogc.devices import GaussianDevice, PCMDevice
from analogc.errors import AccessError, UnsupportedError
from analogc.runtime.spec import parse

PRESETS = {name: analogc.targets.get(name) for name in analogc.targets.names()}
GENERIC = analogc.targets.generic_8bit().replace(tile=analogc.TileSpec(24, 12))
FAULTY = Cell(
    mode="pair", g_min=1.0, levels=16, stuck_on=0.02, stuck_off=0.02, dead_rows=0.02, dead_cols=0.02
)
CONTENT = {
    "cell": GENERIC.replace(cell=FAULTY),
    "reference": GENERIC.replace(cell=Cell(mode="offset", g_min=2.0, levels=8)),
    "wires": GENERIC.replace(cell=FAULTY, wires=Wires(5.0, 5.0)),
    "clip": GENERIC.replace(weight_clip=analogc.WeightClip("sigma", 2.0)),
    "drift": GENERIC.replace(device=GaussianDevice(0.03, drift_nu=0.06, drift_nu_sigma=0.02)),
    "pcm": GENERIC.replace(
        device=PCMDevice(read=0.0), cell=Cell(mode="pair"), compensation="column"
    ),
    "learned": GENERIC.replace(dac=Converter(8, learned=True)),
    "signs": GENERIC.replace(adc=Converter(8, codes="sign-magnitude")),
    "reram-wan2022": PRESETS["reram-wan2022"],
    "reram-milo": PRESETS["reram-milo"],
}
REFUSED = {
    "output_noise": GENERIC.replace(output_noise=0.02),
    "read noise of pcm": GENERIC.replace(device=PCMDevice(), cell=Cell(mode="pair")),
    "read noise of gaussian": GENERIC.replace(device=GaussianDevice(read_noise=0.01)),
    "slicing": GENERIC.replace(slicing=Slicing((2, 2, 3))),
    "slicing = .*per-pulse": GENERIC.replace(
        slicing=Slicing((2, 2, 3), input_bits=(4, 4), ranges="per-pulse"),
        adc=Converter(8, per_column=True),
    ),
    "periphery": GENERIC.replace(periphery=analogc.Periphery(nonlinearity=0.02)),
    "adc: codes = offset": GENERIC.replace(adc=Converter(8, codes="offset")),
    "dac: codes = offset": GENERIC.replace(dac=Converter(8, codes="offset")),
    "adc: rounding = stochastic": GENERIC.replace(adc=Converter(8, rounding="stochastic")),
    "dac: gain_error": GENERIC.replace(dac=Converter(8, gain_error=0.01)),
    "adc: kind = sar": GENERIC.replace(adc=Converter(8, kind="sar", mismatch=0.01)),
    "adc: bound_management": GENERIC.replace(adc=Converter(8, bound_management="iterative")),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.grouped = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, groups=3)
        self.linear, self.last = nn.Linear(24, 10), nn.Linear(10, 3, bias=False)

    def forward(self, x: Tensor) -> Any:
        y = torch.relu(self.grouped(torch.relu(self.conv(x))))
        return self.last(torch.relu(self.linear(y.flatten(1))))


def two_of(target: Target) -> tuple[Any, Any, Tensor]:
    """Two compiled models with the same draws, and an input."""
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(3, 2, 4, 4)
    a, b = (analogc.compile(model, (x,), target=target, seed=0) for _ in range(2))
    return a, b, x


@pytest.mark.parametrize("name", [*PRESETS, *CONTENT, *REFUSED])
def test_modules_hold_every_setting_and_calls_give_the_models_numbers(name: str) -> None:
    model, called, x = two_of({**PRESETS, **CONTENT, **REFUSED}[name])
    specs = [parse(str(node.args[-2])) for node, _ in model._analog_nodes()]
    analog = model.to_mlir("analog")  # operations do not keep their module alive
    layers = operations(analog.module, LinearOp, ConvOp)
    assert [spec_of(op) for op in layers] == specs
    torch_level = str(model.to_mlir("torch"))
    for spec in specs:
        assert spec.to_text() in torch_level.replace("\\22", '"')
    with torch.no_grad():
        assert torch.equal(called.run_mlir(x, engine="callbacks"), model(x))
        for each in (model, called):
            each.drift_to(86400.0)
        assert torch.equal(called.run_mlir(x, engine="callbacks"), model(x))


@pytest.mark.parametrize("name", CONTENT)
def test_linalg_computes_with_what_the_tiles_hold(name: str) -> None:
    model, _, x = two_of(CONTENT[name])
    executable = model.to_mlir("linalg").compile()
    before = []
    with torch.no_grad():
        for seconds in (None, 1000.0, 1e5):
            if seconds is not None:
                model.drift_to(seconds)
            want = model(x)
            torch.testing.assert_close(executable(x), want, rtol=0, atol=1e-6)
            torch.testing.assert_close(model.run_mlir(x), want, rtol=0, atol=1e-6)
            before.append(want)
        model.program(seed=5)
        torch.testing.assert_close(executable(x), model(x), rtol=0, atol=1e-6)
    assert torch.equal(before[0], before[2]) == (name not in ("drift", "pcm", "reram-wan2022"))


@pytest.mark.parametrize("name", ["wires", "pcm"])
def test_tiles_hold_it_too(name: str) -> None:
    model, _, x = two_of(CONTENT[name])
    mlir = model.to_mlir("analog", programmed=True)
    split_to_tiles(mlir.module)
    from analogc.compiler.mlir.lower import to_linalg

    to_linalg(mlir.module)
    mlir.level = "linalg"
    with torch.no_grad():
        torch.testing.assert_close(mlir.compile()(x), model(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_linalg_refuses_what_it_cannot_say(name: str) -> None:
    model, _, x = two_of(REFUSED[name])
    for programmed in (None, True):
        with pytest.raises(UnsupportedError, match=name) as caught:
            model.to_mlir("linalg", programmed=programmed)
        assert "layer conv" in str(caught.value)
    with pytest.raises(UnsupportedError, match="layer conv"):
        model.to_mlir("linalg", programmed=False)
    with pytest.raises(UnsupportedError, match=name):
        model.run_mlir(x)


@pytest.mark.parametrize("name", ["cell", "wires", "clip", "drift"])
def test_linalg_writes_no_weight_that_changes_on_the_way(name: str) -> None:
    model, _, _ = two_of(CONTENT[name])
    with pytest.raises(UnsupportedError, match=r"cell =|clip =|writing a weight"):
        model.to_mlir("linalg", programmed=False)


@pytest.mark.parametrize("name", ["read noise of pcm", "output_noise", "kind = sar"])
def test_tiles_refuse_it_too(name: str) -> None:
    from analogc.compiler.mlir.passes.expand_analog import expand_analog

    target = next(target for text, target in REFUSED.items() if name in text)
    mlir = two_of(target)[0].to_mlir("analog", programmed=True)
    split_to_tiles(mlir.module)
    with pytest.raises(UnsupportedError, match=name):
        expand_analog(mlir.module)


@pytest.mark.parametrize("name", ["slicing", "adc: bound_management"])
def test_what_is_no_single_conversion_has_no_tiles(name: str) -> None:
    mlir = two_of(REFUSED[name])[0].to_mlir("analog")
    text = mlir.text()
    with pytest.raises(UnsupportedError, match="has no form in tiles"):
        split_to_tiles(mlir.module)
    assert mlir.text() == text


@pytest.mark.parametrize("target", [REFUSED["read noise of gaussian"], PRESETS["pcm-like"]])
def test_branches_that_read_noisily_are_refused(target: Target) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.yes, self.no = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda t: self.yes(t), lambda t: self.no(t), (x,))

    x = torch.ones(2, 4)
    noisy = analogc.compile(Branches().eval(), (x,), target=target, seed=0)
    with pytest.raises(UnsupportedError, match="both branches"):
        noisy.run_mlir(x, engine="callbacks")


def test_sealed_tiles_compute_and_are_not_shown() -> None:
    torch.manual_seed(0)
    model, x = nn.Linear(8, 4).eval(), torch.randn(2, 8)
    sealed = analogc.compile(model, (x,), target=CONTENT["cell"], seed=0, weight_access="sealed")
    executable = sealed.to_mlir("linalg").compile()
    with torch.no_grad():
        torch.testing.assert_close(executable(x), sealed(x), rtol=0, atol=1e-6)
    for argument in executable.mlir.arguments:
        if argument.kind in ("tiles", "scale", "parameter"):
            with pytest.raises(AccessError, match="sealed"):
                argument.value(sealed)
