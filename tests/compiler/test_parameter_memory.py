"""By reference and in place: no second copy of a weight, no remembered device or dtype."""

from __future__ import annotations

import ast
import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.utils import parametrizations
from torch.utils.dlpack import from_dlpack

import analogc
from analogc import CompiledModel, TileSpec
from analogc.errors import InputError, UnsupportedError
from analogc.runtime.guard import Guard

TARGETS = ["ideal", "generic-8bit"]


def small(target: str = "generic-8bit") -> tuple[CompiledModel, nn.Sequential, Tensor]:
    model, x = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 10)), torch.randn(6, 12)
    preset = analogc.targets.get(target).replace(tile=TileSpec(8, 8))
    return analogc.compile(model, (x,), target=preset, seed=0), model, x


def written(compiled: CompiledModel) -> dict[str, int]:
    return {name: weight.times_programmed for name, weight in compiled.weights.items()}


def assert_synced(compiled: CompiledModel, model: nn.Module, x: Tensor) -> None:
    """The next forward is that of a fresh compile with the same ranges."""
    fresh = analogc.compile(copy.deepcopy(model), (x,), target=compiled.target, seed=0)
    with torch.no_grad():
        for name, value in fresh.get_submodule("_analog.ranges").named_buffers():
            value.copy_(compiled.get_buffer(f"_analog.ranges.{name}"))
        assert torch.equal(compiled(x), fresh(x))


# -- get and set ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_get_is_the_parameter_itself(target: str) -> None:
    compiled, model, _ = small(target)
    for name, weight in compiled.weights.items():
        live = weight.get()
        assert live is weight.get() is weight.parameter is model.get_parameter(f"{name}.weight")
        assert live.requires_grad and live.is_leaf
        with torch.no_grad():
            weight.get()[0, 0] = 7.0
        assert model.get_parameter(f"{name}.weight")[0, 0].item() == 7.0


def test_get_of_a_computed_weight_is_its_live_value() -> None:
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    compiled = analogc.compile(model, (torch.randn(2, 2, 6, 6),), seed=0)
    weight = compiled.weights["0"]
    before = weight.get().detach().clone()
    with torch.no_grad():
        model.get_parameter("1.weight").mul_(2)
    torch.testing.assert_close(weight.get().detach(), before * 2)
    for access in (lambda: weight.parameter, lambda: weight.set(before)):
        with pytest.raises(UnsupportedError, match="computed from parameters"):
            access()


@pytest.mark.parametrize("target", TARGETS)
def test_set_keeps_memory_aliases_and_optimizer(target: str) -> None:
    compiled, model, x = small(target)
    weight = compiled.weights["0"]
    parameter, address = weight.parameter, weight.parameter.data_ptr()
    array, view, flat = (
        parameter.detach().numpy(), parameter.detach()[1], parameter.data.view(-1)
    )  # fmt: skip
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1, momentum=0.9)
    compiled(x).square().sum().backward()
    optimizer.step()
    value = torch.randn(10, 12)
    weight.set(value)
    assert weight.parameter is parameter and parameter.data_ptr() == address
    assert parameter.is_leaf and parameter.requires_grad
    assert np.array_equal(array, value.numpy())
    assert torch.equal(view, value[1]) and torch.equal(flat, value.view(-1))
    assert "momentum_buffer" in optimizer.state[parameter]
    assert_synced(compiled, model, x)
    optimizer.step()
    assert not torch.equal(parameter, value)
    array[:] = 0.5  # the old alias still writes the weight
    assert bool((parameter == 0.5).all())
    assert_synced(compiled, model, x)


def test_set_copies_its_value_and_no_graph() -> None:
    compiled, _, _ = small()
    value = torch.randn(10, 12, requires_grad=True)
    compiled.weights["0"].set(value * 2)
    assert compiled.weights["0"].parameter.grad_fn is None
    kept = compiled.weights["0"].get().detach().clone()
    with torch.no_grad():
        value.zero_()
    assert torch.equal(compiled.weights["0"].get(), kept)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (torch.zeros(12, 10), "shape"),
        (torch.zeros(1, 12), "shape"),
        (torch.zeros(()), "shape"),
        (torch.zeros(10, 12, dtype=torch.float64), "dtype"),
        (torch.zeros(10, 12, dtype=torch.bfloat16), "dtype"),
        (torch.zeros(10, 12, device="meta"), "device"),
    ],
)
def test_set_refuses_what_does_not_fit(value: Tensor, what: str) -> None:
    compiled, _, x = small()
    with torch.no_grad():
        before = compiled(x)
    with pytest.raises(InputError, match=f"'0': {what} is"):
        compiled.weights["0"].set(value)
    with torch.no_grad():
        assert torch.equal(compiled(x), before)
    assert written(compiled) == {"0": 1, "2": 1}


# -- zero copies ----------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
def test_views_of_weights_share_memory(target: str) -> None:
    compiled, _, x = small(target)
    parameter = compiled.weights["0"].parameter
    views: list[Any] = [
        parameter.detach().numpy(), np.asarray(parameter.detach()),
        np.from_dlpack(parameter.detach()), from_dlpack(parameter.detach()).numpy(),
        torch.from_numpy(parameter.detach().numpy()).numpy(),
    ]  # fmt: skip
    assert {v.__array_interface__["data"][0] for v in views} == {parameter.data_ptr()}
    with torch.no_grad():
        compiled(x)
        parameter.fill_(2.5)
        compiled(x)
    assert all((v == 2.5).all() for v in views)


def test_views_of_tile_buffers_share_memory() -> None:
    compiled, _, _ = small()
    for _, array in compiled._arrays():
        held = array.programmed
        assert held is not None and len(held.blocks) == 2
        for buffer in held.buffers:
            assert buffer.is_contiguous()
            for view in (buffer.numpy(), np.asarray(buffer), np.from_dlpack(buffer)):
                assert view.__array_interface__["data"][0] == buffer.data_ptr()
            assert from_dlpack(buffer).data_ptr() == buffer.data_ptr()


def test_ideal_tiles_are_the_parameter_s_memory() -> None:
    compiled, model, _ = small("ideal")
    for name in ("0", "2"):
        parameter = model.get_parameter(f"{name}.weight")
        assert compiled.weights[name].get().data_ptr() == parameter.data_ptr()
    assert all(array.programmed is None for _, array in compiled._arrays())


# -- how much memory ------------------------------------------------------------------------------


def storages() -> dict[int, int]:
    """Bytes of every storage that a live tensor has, by its address."""
    gc.collect()
    found = {}
    for item in gc.get_objects():
        kind = type(item)  # isinstance would ask objects for their __class__
        if not issubclass(kind, Tensor) or kind in (FakeTensor, Guard):
            continue
        if not item.is_meta:
            memory = item.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
    return found


def measured(make: Callable[[], tuple[nn.Module, Tensor]], target: str) -> float:
    """Bytes of the compiled model over those of the model, after forwards in eval mode."""
    before = storages()
    model, x = make()
    model.eval()
    own = {**storages()}
    size = sum(n for at, n in own.items() if at not in before and at != x.data_ptr())
    compiled = analogc.compile(model, (x,), target=target, seed=0)
    with torch.no_grad():
        for _ in range(3):
            compiled(x)
    del model
    after = storages()
    total = sum(n for at, n in after.items() if at not in before and at != x.data_ptr())
    return total / size


def mlp() -> tuple[nn.Module, Tensor]:
    layers = [nn.Linear(400, 600), nn.ReLU(), nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 200)]
    return nn.Sequential(*layers), torch.randn(4, 400)


def transformer() -> tuple[nn.Module, Tensor]:
    layers = [nn.TransformerEncoderLayer(192, 4, 768, batch_first=True) for _ in range(2)]
    return nn.Sequential(*layers), torch.randn(2, 8, 192)


def convs() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(16, 128, 3), nn.ReLU(), nn.Conv2d(128, 128, 3), nn.ReLU(), nn.Conv2d(128, 64, 3)
    ), torch.randn(1, 16, 10, 10)


def convs_and_norms() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(16, 128, 3), nn.BatchNorm2d(128), nn.ReLU(),
        nn.Conv2d(128, 128, 3), nn.BatchNorm2d(128), nn.ReLU(), nn.Conv2d(128, 64, 3),
    ), torch.randn(1, 16, 10, 10)  # fmt: skip


def small_blocks() -> tuple[nn.Module, Tensor]:
    """Many small layers, as in networks for small devices; all weights computed."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1)]
    for _ in range(6):
        layers += [nn.Conv2d(16, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        layers += [parametrizations.weight_norm(nn.Conv2d(16, 16, 3, 1, 1)), nn.ReLU()]
    return nn.Sequential(*layers), torch.randn(1, 3, 8, 8)


MODELS = [mlp, transformer, convs, convs_and_norms, small_blocks]


@pytest.mark.parametrize("make", MODELS)
def test_an_ideal_compiled_model_takes_no_more_memory_than_the_model(
    make: Callable[[], tuple[nn.Module, Tensor]],
) -> None:
    assert 1.0 <= measured(make, "ideal") < 1.05


@pytest.mark.parametrize("target", ["generic-8bit", "generic-8bit-noisy"])
@pytest.mark.parametrize("make", MODELS)
def test_a_programmed_model_takes_at_most_twice_the_model(
    make: Callable[[], tuple[nn.Module, Tensor]], target: str
) -> None:
    assert 1.0 < measured(make, target) < 2.1


def test_training_steps_do_not_pile_up_memory() -> None:
    model, x = mlp()
    compiled = analogc.compile(model, (x,), seed=0)
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.01)
    sizes = []
    for _ in range(4):
        compiled(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        sizes.append(sum(storages().values()))
    assert sizes[1] == sizes[2] == sizes[3]


def test_a_freed_model_frees_its_tiles() -> None:
    from analogc.runtime import tiles

    before = storages()
    compiled, model, x = small()
    keys = [array.key for _, array in compiled._arrays()]
    assert all(tiles.find(key) is not None for key in keys)
    own = {p.untyped_storage().data_ptr() for p in (*model.parameters(), x)}
    del compiled
    gc.collect()
    assert all(tiles.find(key) is None for key in keys)
    assert {at for at in storages() if at not in before} <= own


# -- device and dtype -----------------------------------------------------------------------------


def _follow(kind: str) -> Callable[[nn.Module], Any]:
    return {
        "double": lambda m: m.double(),
        "to": lambda m: m.to(torch.float64),
        "to device and dtype": lambda m: m.to("cpu", torch.float64),
        "type": lambda m: m.type(torch.float64),
    }[kind]


@pytest.mark.parametrize("where", ["model", "compiled"])
@pytest.mark.parametrize("kind", ["double", "to", "to device and dtype", "type"])
@pytest.mark.parametrize("target", TARGETS)
def test_moves_keep_parameters_and_optimizers(target: str, kind: str, where: str) -> None:
    compiled, model, x = small(target)
    before = list(compiled.parameters())
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    _follow(kind)(model if where == "model" else compiled)
    assert all(map(lambda a, b: a is b, before, compiled.parameters()))
    assert all(map(lambda a, b: a is b, before, model.parameters()))
    x = x.double()
    for name, weight in compiled.weights.items():
        assert weight.get() is model.get_parameter(f"{name}.weight")
        assert weight.get().dtype == weight.programmed().dtype == torch.float64
        alias = weight.get().detach().numpy()
        assert alias.__array_interface__["data"][0] == weight.get().data_ptr()
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = (compiled(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert_synced(compiled, model, x)
    weight = compiled.weights["0"]
    weight.set(torch.randn(10, 12, dtype=torch.float64))
    with pytest.raises(InputError, match="dtype is torch.float64"):
        weight.set(torch.zeros(10, 12))
    compiled.float()
    assert weight.get().dtype == torch.float32 and weight.parameter is before[0]
    assert_synced(compiled, model, x.float())


@pytest.mark.parametrize("how", ["overwrite", "swap"])
def test_moves_that_replace_parameters_are_followed(how: str) -> None:
    name = f"set_{'overwrite' if how == 'overwrite' else 'swap'}_module_params_on_conversion"
    switch = getattr(torch.__future__, name)
    compiled, model, x = small()
    switch(True)
    try:
        compiled.double()
    finally:
        switch(False)
    assert all(map(lambda a, b: a is b, model.parameters(), compiled.parameters()))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert_synced(compiled, model, x.double())


def _devices() -> list[Any]:
    return [pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", _devices())
@pytest.mark.parametrize("target", TARGETS)
def test_moves_between_devices(target: str, device: str) -> None:
    compiled, model, x = small(target)
    with torch.no_grad():
        want = compiled(x)
    before = list(compiled.parameters())
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    compiled.to(device)
    assert all(map(lambda a, b: a is b, before, compiled.parameters()))
    weight = compiled.weights["0"]
    assert weight.get().is_cuda and weight.programmed().is_cuda
    assert weight.get().device.type == device
    with pytest.raises(InputError, match="device is cuda"):
        weight.set(torch.zeros(10, 12))
    torch.testing.assert_close(compiled(x.to(device)).cpu().detach(), want, rtol=1e-4, atol=1e-4)
    compiled(x.to(device)).square().mean().backward()
    optimizer.step()
    compiled.cpu()
    assert not weight.get().is_cuda and not weight.programmed().is_cuda
    assert_synced(compiled, model, x)


# Everything that stores a device or dtype, and why it is not a cached one of a weight.
ALLOWED = {
    "runtime/stamp.py:Stamp.device": "what it was when stamped, to be compared with the live one",
    "runtime/stamp.py:Stamp.dtype": "as device",
    "runtime/target.py:Target.device": "the device model of a target, no torch.device",
    "runtime/spec.py:LayerSpec.device": "the device model of a layer, no torch.device",
    "runtime/devices/cell.py:Cell.devices": "how many a weight has",
    "compiler/mlir/arguments.py:Argument.dtype": "of a module, as it was when made",
    "compiler/mlir/native.py:NativeCode._dtypes": "of the results of machine code",
    "compiler/mlir/iree.py:IreeCode._dtypes": "of the results of machine code",
    "compiler/mlir/dialect.py:LinearOp.device": "an attribute of MLIR",
    "compiler/mlir/dialect.py:ConvOp.device": "an attribute of MLIR",
    "compiler/mlir/dialect.py:ProgramOp.device": "an attribute of MLIR",
    "compiler/home.py:Home.device": "what it was when captured, to be compared with the live one",
    "compiler/home.py:Home.dtype": "as device",
    "compiler/graph_json.py:GraphReader.device": "where to load a file to; gone when it is read",
    "compiler/signature.py:TensorLeaf.dtype": "of an input, to check calls against",
    "compiler/cli_inputs.py:InputSpec.dtype": "of an input that the command line makes",
}
WORDS = ("device", "dtype", "is_cuda")


def _stored(tree: ast.Module) -> Iterator[str]:
    """``Class.attribute`` of everything that objects of the file's classes are given to keep."""
    for outer in ast.walk(tree):
        if not isinstance(outer, ast.ClassDef):
            continue
        for node in ast.walk(outer):
            names: list[str] = []
            if isinstance(node, ast.AnnAssign | ast.Assign):
                targets = [node.target] if isinstance(node, ast.AnnAssign) else node.targets
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                            names.append(part.attr)
                        elif isinstance(part, ast.Name) and node in outer.body:
                            names.append(part.id)
                if "__slots__" in names and node.value is not None:
                    names += [str(word) for word in ast.literal_eval(node.value)]
                kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
                if kind in ("torch.device", "torch.dtype"):
                    yield from (f"{outer.name}.{name}" for name in names)
            for name in names:
                if any(word in name.lower() for word in WORDS):
                    yield f"{outer.name}.{name}"


def test_no_class_stores_the_device_or_dtype_of_a_weight() -> None:
    found = set()
    for room in ("runtime", "compiler", "passes"):
        package = Path(analogc.__file__).parent / room
        for path in sorted(package.resolve().rglob("*.py")):
            where = path.relative_to(package.resolve()).as_posix()
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {f"{room}/{where}:{name}" for name in _stored(tree)}
    assert found == set(ALLOWED)


def test_no_object_of_a_compiled_model_keeps_an_old_dtype() -> None:
    compiled, _, x = small()
    compiled.double()
    with torch.no_grad():
        compiled(x.double())
    for _, array in compiled._arrays():
        assert array.programmed is not None and array._stamp is not None
        kept = [array._stamp.anchor, array.programmed.scale, *array.programmed.blocks]
        assert {t.dtype for t in kept} == {array._stamp.dtype} == {torch.float64}
        plain = {k: v for k, v in vars(array).items() if not k.startswith("_")}
        assert not [k for k, v in plain.items() if isinstance(v, torch.dtype | torch.device)]
    assert not [k for k, v in vars(compiled).items() if isinstance(v, torch.dtype | torch.device)]
