"""Modules run: the numbers of the compiled model, from its live weights, in its structure."""

from __future__ import annotations

import copy
import gc
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("torch_mlir")

import analogc
from analogc.errors import InputError, SyncError, UnsupportedError
from analogc.runtime.converters import Converter

GENERIC = analogc.targets.generic_8bit()
TILE = analogc.TileSpec(rows=32, cols=32)
TARGETS = {
    "ideal": analogc.targets.get("ideal"),
    "8bit": GENERIC,
    "blocks": GENERIC.replace(tile=TILE),
    "tensor": GENERIC.replace(weight_scale="tensor"),
    "columns": GENERIC.replace(adc=Converter(8, per_column=True), tile=TILE),
    "dynamic": GENERIC.replace(dac=Converter(6, range="dynamic")),
    "fixed": GENERIC.replace(dac=Converter(7, range=3.0), adc=None),
    "dac-free": GENERIC.replace(dac=None),
    "devices": GENERIC.replace(device=analogc.GaussianDevice(sigma=0.03)),
}


def mlp() -> tuple[nn.Module, Tensor]:
    layers = nn.Sequential(nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 10))
    return layers, torch.randn(6, 48)


def cnn() -> tuple[nn.Module, Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, stride=2, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    return model, torch.randn(3, 3, 10, 10)


def encoder() -> tuple[nn.Module, Tensor]:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), torch.randn(2, 5, 16)


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": mlp, "cnn": cnn, "encoder": encoder
}  # fmt: skip


def compiled_of(make: Callable[[], tuple[nn.Module, Tensor]], **how: Any) -> Any:
    torch.manual_seed(0)
    model, x = make()
    return analogc.compile(model.eval(), (x,), seed=0, **how), x


CASES = [
    *(("cnn", target) for target in TARGETS),
    *(("mlp", target) for target in ("8bit", "columns")),
    *(("encoder", target) for target in ("ideal", "blocks", "dynamic", "devices")),
]


@pytest.mark.parametrize(("model", "target"), CASES)
def test_native_code_gives_the_models_numbers(model: str, target: str) -> None:
    compiled, x = compiled_of(MODELS[model], target=TARGETS[target])
    with torch.no_grad():
        want = compiled(x)

    got = compiled.run_mlir(x)

    torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert got.dtype is want.dtype and not got.requires_grad


@pytest.mark.parametrize("make", [mlp, cnn])
def test_weights_that_the_module_programs_are_a_step_off_at_most(make: Any) -> None:
    torch.manual_seed(0)
    model, x = make()
    layer = nn.Sequential(model[0])
    compiled = analogc.compile(layer.eval(), (x,), seed=0)
    with torch.no_grad():
        want = compiled(x)
    mlir = compiled.to_mlir("linalg", programmed=False)
    values = {a.name: a.value(compiled) for a in mlir.arguments if a.kind != "input"}
    limit, full = values["ranges.0_adc"], values["ranges.0_input"]
    step = float(limit * full / 127 * values["0.weight"].abs().max())

    got = mlir.compile()(x)

    error = (got - want).abs()
    assert float(error.max()) <= 1.01 * step
    assert float((error > 1e-3 * step).float().mean()) < 0.05


@pytest.mark.parametrize("target", ["ideal", "generic-8bit", "generic-8bit-noisy"])
@pytest.mark.parametrize("make", [mlp, cnn])
def test_callbacks_are_the_model_bit_for_bit_noise_included(make: Any, target: str) -> None:
    compiled, x = compiled_of(make, target=target)
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        for _ in range(3):
            assert torch.equal(twin.run_mlir(x, engine="callbacks"), compiled(x))


def test_noise_moves_on_with_either_way_of_running() -> None:
    compiled, x = compiled_of(mlp, target="generic-8bit-noisy")
    twin = copy.deepcopy(compiled)
    with torch.no_grad():
        want = [compiled(x) for _ in range(4)]
        got = [twin.run_mlir(x, engine="callbacks") if i % 2 else twin(x) for i in range(4)]
    assert all(map(torch.equal, got, want))
    assert not torch.equal(want[0], want[1])


# -- live weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["native", "callbacks"])
@pytest.mark.parametrize("name", ["ideal", "8bit", "devices"])
def test_weights_are_those_of_the_call(engine: Any, name: str) -> None:
    compiled, x = compiled_of(cnn, target=TARGETS[name])
    executable = compiled.to_mlir("analog" if engine == "callbacks" else "linalg").compile()

    def check() -> None:
        with torch.no_grad():
            want = compiled(x)
        limit = 0.02 * float(want.abs().max())
        torch.testing.assert_close(executable(x), want, rtol=0, atol=limit)
        close = compiled.run_mlir(x, engine=engine)
        torch.testing.assert_close(close, want, rtol=0, atol=2e-6 * float(want.abs().max()))

    check()
    before = compiled.run_mlir(x, engine=engine)
    compiled.get_parameter("7.weight").data.mul_(-1.5)
    check()
    assert not torch.equal(compiled.run_mlir(x, engine=engine), before)
    compiled.get_buffer("1.running_mean").add_(0.3)
    check()
    compiled.load_state_dict({k: v.clone() * 0.5 for k, v in compiled.state_dict().items()})
    check()


def test_ranges_and_tiles_are_those_of_the_call() -> None:
    compiled, x = compiled_of(mlp, target=TARGETS["devices"])
    first = compiled.run_mlir(x)
    compiled.calibrate([10 * x])
    compiled.program(seed=5)
    with torch.no_grad():
        want = compiled(x)
    got = compiled.run_mlir(x)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))
    assert (got - first).abs().max() > 0.01


def test_a_new_graph_is_compiled_anew() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head: nn.Module = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)  # type: ignore[no-any-return]

    model, x = Net().eval(), torch.randn(2, 8)
    compiled = analogc.compile(model, (x,), seed=0)
    executable = compiled.to_mlir("linalg").compile()
    executable(x)
    compiled.run_mlir(x)
    model.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        want = compiled(x)
    torch.testing.assert_close(compiled.run_mlir(x), want, rtol=0, atol=1e-6)
    assert not executable.is_current
    with pytest.raises(SyncError, match="another graph"):
        executable(x)


def test_loaded_model_runs(tmp_path: Path) -> None:
    compiled, x = compiled_of(cnn, dynamic_shapes="batch")
    compiled.save(tmp_path / "model.analogc")
    loaded = analogc.load(tmp_path / "model.analogc")
    with torch.no_grad():
        want = compiled(x[:2])
    got = loaded.run_mlir(x[:2])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6 * float(want.abs().max()))


# -- inputs and outputs ---------------------------------------------------------------------------


class Forms(nn.Module):
    """Outputs of many kinds: nested, an input itself, whole numbers, truth, constants, twice."""

    ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)
        self.register_buffer("ids", torch.arange(5), persistent=False)

    def forward(self, x: Tensor, *, scale: Tensor, index: Tensor) -> dict[str, Any]:
        y = self.linear(x) * scale
        positive = y > 0
        return {
            "y": y, "again": y, "input": x, "ids": self.ids, "positive": positive,
            "picked": (y[:, index], [positive.sum()]), "none": None, "size": x.shape[0], "two": 2,
        }  # fmt: skip


@pytest.mark.parametrize("engine", ["native", "callbacks"])
def test_outputs_keep_their_structure(engine: Any) -> None:
    model = Forms().eval()
    given = {"scale": torch.tensor(2.0), "index": torch.tensor([2, 0])}
    shapes = {"x": {0: torch.export.Dim.AUTO}, "scale": None, "index": None}
    compiled = analogc.compile(
        model, (torch.randn(3, 8),), kwargs=given, dynamic_shapes=shapes, seed=0
    )
    for rows in (3, 5):
        x = torch.randn(rows, 8)
        with torch.no_grad():
            want = compiled(x, **given)
        got = compiled.run_mlir(x, engine=engine, **given)
        assert list(got) == list(want)
        assert got["none"] is None and got["size"] == rows and got["two"] == 2
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
        assert got["positive"].dtype is torch.bool and got["ids"].dtype is torch.int64
        # New memory, each of its own.
        got["again"].zero_(), got["input"].zero_(), got["ids"].zero_()
        assert got["y"].any() and x.any() and model.ids.any()


def test_inputs_are_not_written() -> None:
    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.linear(x)
            return y + x.mul(2).relu_()

    x = torch.randn(3, 4)
    compiled = analogc.compile(Chain().eval(), (x,), seed=0)
    before = x.clone(), compiled.get_parameter("linear.weight").clone()
    compiled.run_mlir(x), compiled.run_mlir(x.T.contiguous().T[:3])
    assert torch.equal(x, before[0])
    assert torch.equal(compiled.get_parameter("linear.weight"), before[1])


def test_layers_of_any_operand_run() -> None:
    class Odd(nn.Module):
        """An image without a batch, a bias that is broadcast, one weight in two layers."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 3)
            self.linear = nn.Linear(4, 4)
            self.bias = nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).flatten(1)
            y = torch.nn.functional.linear(y, self.linear.weight, self.bias)
            return self.linear(y)  # type: ignore[no-any-return]

    x = torch.randn(2, 4, 4)
    for target in ("ideal", "generic-8bit"):
        compiled = analogc.compile(Odd().eval(), (x,), target=target, seed=0)
        with torch.no_grad():
            want = compiled(x)
        for engine in ("native", "callbacks"):
            got = compiled.run_mlir(x, engine=engine)
            torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_run(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = mlp()
    model, x = model.to(dtype), x.to(dtype)
    for target in ("ideal", "generic-8bit"):
        compiled = analogc.compile(model.eval(), (x,), target=target, seed=0)
        with torch.no_grad():
            want = compiled(x)
        for engine in ("native", "callbacks"):
            got = compiled.run_mlir(x, engine=engine)
            assert got.dtype is dtype
            limit = (1e-6 if dtype is torch.float64 else 2e-2) * float(want.abs().max())
            torch.testing.assert_close(got, want, rtol=0, atol=limit)


def test_both_branches_of_a_condition() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.yes, self.no = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Any:
            return torch.cond(x.sum() > 0, lambda t: self.yes(t), lambda t: self.no(t), (x,))

    x = torch.ones(2, 4)
    compiled = analogc.compile(Branches().eval(), (x,), seed=0)
    with torch.no_grad():
        for given in (x, -x):
            want = compiled(given)
            torch.testing.assert_close(compiled.run_mlir(given), want, rtol=0, atol=1e-6)
            torch.testing.assert_close(
                compiled.run_mlir(given, engine="callbacks"), want, rtol=0, atol=1e-6
            )
    noisy = analogc.compile(Branches().eval(), (x,), target="generic-8bit-noisy", seed=0)
    with pytest.raises(UnsupportedError, match="both branches"):
        noisy.run_mlir(x, engine="callbacks")


# -- faults ---------------------------------------------------------------------------------------


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding(10, 4), nn.Linear(4, 4)

    def forward(self, ids: Tensor, x: Tensor) -> Tensor:
        return self.linear(self.words(ids)) + x  # type: ignore[no-any-return]


@pytest.mark.parametrize("engine", ["native", "callbacks"])
def test_faults_of_inputs_are_errors(engine: Any) -> None:
    ids, x = torch.randint(10, (3,)), torch.randn(3, 4)
    compiled = analogc.compile(Pair().eval(), (ids, x), dynamic_shapes="batch", seed=0)
    want = compiled.run_mlir(ids, x, engine=engine)
    for wrong in (torch.tensor([0, 10**9, 1]), torch.tensor([0, 1, 10])):
        with pytest.raises(InputError, match="index must be smaller than dim size"):
            compiled.run_mlir(wrong, x, engine=engine)
    with pytest.raises(InputError, match="'x' has a size 4 where 3 goes"):
        compiled.run_mlir(ids, torch.randn(4, 4), engine=engine)
    with pytest.raises(InputError, match="has shape"):
        compiled.run_mlir(ids, torch.randn(3, 5), engine=engine)
    with pytest.raises(InputError, match="has dtype torch.float64"):
        compiled.run_mlir(ids, x.double(), engine=engine)
    assert torch.equal(compiled.run_mlir(ids, x, engine=engine), want)


def test_faults_of_layers_come_back_from_callbacks() -> None:
    compiled, x = compiled_of(mlp)
    compiled.run_mlir(x, engine="callbacks")
    compiled.auto_sync = False
    compiled.get_parameter("0.weight").data.add_(1)
    with pytest.raises(SyncError, match="tiles of layer '0' are stale"):
        compiled.run_mlir(x, engine="callbacks")
    compiled.sync()
    with torch.no_grad():
        assert torch.equal(compiled.run_mlir(x, engine="callbacks"), compiled(x))


def test_engines_run_the_level_that_they_are_for() -> None:
    compiled, x = compiled_of(mlp)
    with pytest.raises(InputError, match="engine 'native' runs the level 'linalg'"):
        compiled.to_mlir("analog").compile("native")
    with pytest.raises(InputError, match="runs the level"):
        compiled.to_mlir("torch").compile()
    with pytest.raises(InputError, match="engine must be one of native, callbacks, iree"):
        compiled.run_mlir(x, engine="tpu")


@pytest.mark.parametrize("engine", ["native", "callbacks"])
def test_calls_keep_no_memory(engine: Any) -> None:
    compiled, x = compiled_of(mlp)
    x = torch.randn(6, 48)
    big = x.expand(6, 48)

    def rss() -> int:
        gc.collect()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    for _ in range(50):
        compiled.run_mlir(big, engine=engine)
    before = rss()
    for _ in range(600):
        compiled.run_mlir(big, engine=engine)
    assert rss() - before < 2000  # kB; a lost buffer of each call would be 600 kB a piece
