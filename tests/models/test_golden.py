"""Golden outputs: four models whose IR, ranges and numbers are stored and must not drift.

Everything is in float64, so that no result depends on the order in which a machine's GEMM adds.
Weights and inputs come from numpy's RandomState, whose stream is frozen for good. Besides the
model's output, that of every analog layer is stored: one ADC step in any of them is a failure.

    pytest tests/models --regenerate-golden      writes the files anew; look at the diff
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, fx, nn

import analogc
from analogc import TileMapping, TileSpec
from analogc.compiler.diff import diff_tensors, diff_texts
from analogc.compiler.diff.lines import read
from analogc.passes.verify import OPS
from analogc.runtime.spec import parse

GOLDEN = Path(__file__).parent / "golden"
NOISE_SEED = 7
TOLERANCE = 1e-9
TARGETS = ("ideal", "generic-8bit", "generic-8bit-noisy")


class Residual(nn.Module):
    """Two conv-batchnorm-relu layers with a join, and a strided shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x)))))
        return torch.relu(y + self.shortcut(x))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(50, 40), nn.ReLU(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 10)
    )


def residual() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        Residual(8, 8, 1), Residual(8, 12, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(12, 10),
    )  # fmt: skip


def depthwise() -> nn.Module:
    def separable(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
            nn.BatchNorm2d(inputs), nn.ReLU6(),
            nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.Hardswish(),
        )  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(),
        separable(8, 12, 1), separable(12, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    )  # fmt: skip


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 40, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    weight_seed: int


CASES = {
    "mlp": Case(mlp, (6, 50), 11),
    "residual": Case(residual, (2, 3, 8, 8), 12),
    "depthwise": Case(depthwise, (2, 3, 10, 10), 13),
    "encoder": Case(encoder, (2, 5, 16), 14),
}


def fill(model: nn.Module, seed: int) -> None:
    """Parameters and statistics from a stream that depends on neither torch nor the machine."""
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if not value.is_floating_point():
                continue
            number = torch.from_numpy(draw.random_sample(tuple(value.shape)))
            if name.endswith("running_var") or (value.dim() == 1 and name.endswith("weight")):
                value.copy_(0.5 + number)
            else:
                fan_in = value[0].numel() if value.dim() > 1 else 25
                value.copy_((2 * number - 1) * (3 / fan_in) ** 0.5)


def make_model(name: str) -> nn.Module:
    model = CASES[name].make().double().eval()
    fill(model, CASES[name].weight_seed)
    return model


def make_input(name: str) -> Tensor:
    draw = np.random.RandomState(CASES[name].weight_seed + 100)
    return torch.from_numpy(2 * draw.random_sample(CASES[name].shape) - 1)


def compile_model(name: str, target: str, x: Tensor) -> analogc.CompiledModel:
    # Small tiles, so that every layer but the narrowest has several row blocks.
    hardware = analogc.targets.get(target).replace(tile=TileSpec(24, 20))
    return analogc.compile(make_model(name), (x,), target=hardware, seed=NOISE_SEED, check=True)


class Recorder(fx.Interpreter):
    """Runs a compiled graph, keeps what its analog layers give, and may disturb one of them."""

    def __init__(self, compiled: analogc.CompiledModel, drift: str | None = None) -> None:
        super().__init__(compiled._root, graph=compiled.graph)
        self.drift = drift
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        out = super().run_node(n)
        if n.op == "call_function" and n.target in OPS:
            args, _ = self.fetch_args_kwargs_from_env(n)
            if n.name == self.drift:
                out = one_step_off(out, args)
            self.found[f"layer.{n.name}"] = out
        return out


def one_step_off(y: Tensor, args: tuple[Any, ...]) -> Tensor:
    """``y`` if the ADC of the first row block gave a code one too high, at the finest column."""
    weight, input_range, adc_range, spec = args[1], args[3], args[4], parse(args[-2])
    assert spec.dac is not None and spec.adc is not None
    scale = weight.flatten(1).abs().amax(1)
    column = int(scale.argmin())
    step = float(input_range[0]) * float(scale[column]) * float(adc_range[0]) / spec.adc.levels
    place = [0] * y.dim()
    place[-1 if weight.dim() == 2 else 1] = column
    y = y.clone()
    y[tuple(place)] += step
    return y


def run(compiled: analogc.CompiledModel, x: Tensor, drift: str | None = None) -> dict[str, Tensor]:
    """Output of the model and of each of its analog layers, with the noise of a fresh start."""
    compiled.program(seed=NOISE_SEED)
    recorder = Recorder(compiled, drift)
    with torch.no_grad():
        (output,) = recorder.run(x, enable_io_processing=False)
    return {"output": output, **recorder.found}


def ranges(compiled: analogc.CompiledModel) -> dict[str, Tensor]:
    return {
        name.rpartition(".")[2]: value
        for name, value in compiled.named_buffers()
        if ".ranges." in name
    }


def compare(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    """Raise AssertionError if any tensor is further off than ``tolerance`` of its largest value."""
    found = diff_tensors(want, got, rtol=tolerance)
    if found:
        first, rows = found[0], [f"  {diff.name}  {diff}" for diff in found]
        off = "is missing or new" if first.max_abs is None else f"is off by {first.max_abs:.3g}"
        raise AssertionError("\n".join([f"{first.name} {off}; stored → found:", *rows]))


def compare_ir(got: str, want: str) -> None:
    """Raise AssertionError if the printed graph is another one, with what differs node by node."""
    found = diff_texts(want, got)
    if not found.equal:
        raise AssertionError(f"the graph is not the stored one: {found}")
    assert got == want


class Stored:
    """The files of one model."""

    def __init__(self, name: str) -> None:
        self.tensors_path = GOLDEN / f"{name}.safetensors"
        self.name = name

    def read(self) -> dict[str, Tensor]:
        assert self.tensors_path.is_file(), "run pytest tests/models --regenerate-golden once"
        return dict(safetensors.torch.load_file(self.tensors_path))

    def part(self, prefix: str) -> dict[str, Tensor]:
        return {
            name.removeprefix(prefix): value
            for name, value in self.read().items()
            if name.startswith(prefix)
        }

    def text_path(self, target: str) -> Path:
        """Printed IR: batch norms are folded on all targets but the ideal one."""
        return GOLDEN / (f"{self.name}.ideal.ir" if target == "ideal" else f"{self.name}.ir")

    def write(
        self, texts: dict[str, str], tensors: dict[str, Tensor], facts: dict[str, str]
    ) -> None:
        GOLDEN.mkdir(exist_ok=True)
        for target, text in texts.items():
            self.text_path(target).write_text(text)
        whole = {name: value.contiguous().clone() for name, value in tensors.items()}
        safetensors.torch.save_file(whole, self.tensors_path, facts)


@pytest.fixture(params=CASES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stored(name: str, request: pytest.FixtureRequest) -> Stored:
    """Files of the model; with --regenerate-golden they are written first."""
    files = Stored(name)
    done: set[str] = request.config.stash.setdefault(REGENERATED, set())
    if request.config.getoption("--regenerate-golden") and name not in done:
        regenerate(name, files)
        done.add(name)
    return files


REGENERATED = pytest.StashKey[set[str]]()


def regenerate(name: str, files: Stored) -> None:
    x = make_input(name)
    tensors = {"input": x}
    texts = {}
    for target in TARGETS:
        compiled = compile_model(name, target, x)
        texts[target] = compiled.ir() + "\n"
        tensors |= {f"{target}.range.{key}": value for key, value in ranges(compiled).items()}
        tensors |= {f"{target}.{key}": value for key, value in run(compiled, x).items()}
    facts = {"weight_seed": str(CASES[name].weight_seed), "noise_seed": str(NOISE_SEED)}
    files.write(texts, tensors, facts)


@pytest.mark.parametrize("target", TARGETS)
def test_ir_is_the_stored_one(name: str, target: str, stored: Stored) -> None:
    compiled = compile_model(name, target, stored.read()["input"])
    compare_ir(compiled.ir() + "\n", stored.text_path(target).read_text())


def test_inputs_and_seeds_are_the_stored_ones(name: str, stored: Stored) -> None:
    assert torch.equal(make_input(name), stored.read()["input"])
    with safetensors.safe_open(stored.tensors_path, "pt") as file:
        facts = file.metadata()
    assert facts == {
        "weight_seed": str(CASES[name].weight_seed), "noise_seed": str(NOISE_SEED),
    }  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_calibrated_ranges_are_the_stored_ones(name: str, target: str, stored: Stored) -> None:
    compiled = compile_model(name, target, stored.read()["input"])
    compare(ranges(compiled), stored.part(f"{target}.range."), 1e-6)


def with_stored_ranges(name: str, target: str, stored: Stored) -> analogc.CompiledModel:
    compiled = compile_model(name, target, stored.read()["input"])
    for key, value in stored.part(f"{target}.range.").items():
        ranges(compiled)[key].copy_(value)
    return compiled


def outputs_of(target: str, stored: Stored) -> dict[str, Tensor]:
    found = stored.part(f"{target}.")
    return {key: value for key, value in found.items() if not key.startswith("range.")}


@pytest.mark.parametrize("target", TARGETS)
def test_outputs_of_the_model_and_of_every_layer_are_the_stored_ones(
    name: str, target: str, stored: Stored
) -> None:
    compiled = with_stored_ranges(name, target, stored)
    x = stored.read()["input"]
    found = run(compiled, x)
    compare(found, outputs_of(target, stored))
    compiled.program(seed=NOISE_SEED)
    with torch.no_grad():
        assert torch.equal(compiled(x), found["output"])


def test_ideal_outputs_are_those_of_the_digital_model(name: str, stored: Stored) -> None:
    want = make_model(name)(stored.read()["input"]).detach()
    compare({"output": outputs_of("ideal", stored)["output"]}, {"output": want}, 1e-12)


@pytest.mark.parametrize("target", TARGETS[1:])
def test_one_adc_step_anywhere_is_noticed(name: str, target: str, stored: Stored) -> None:
    compiled = with_stored_ranges(name, target, stored)
    x, want = stored.read()["input"], outputs_of(target, stored)
    layers = [key.removeprefix("layer.") for key in want if key.startswith("layer.")]
    assert len(layers) == len(compiled.coverage.analog)
    for layer in layers:
        with pytest.raises(AssertionError, match="is off by"):
            compare(run(compiled, x, drift=layer), want)
    compare(run(compiled, x), want)


def test_one_adc_step_in_the_last_layer_shows_in_the_output(name: str, stored: Stored) -> None:
    compiled = with_stored_ranges(name, "generic-8bit", stored)
    last = [n.name for n in compiled.graph.nodes if n.target in OPS][-1]
    found = run(compiled, stored.read()["input"], drift=last)
    want = outputs_of("generic-8bit", stored)
    with pytest.raises(AssertionError, match="output is off by"):
        compare({"output": found["output"]}, {"output": want["output"]})


def test_a_changed_graph_is_told_node_by_node() -> None:
    want = Stored("residual").text_path("generic-8bit").read_text()
    rows = want.splitlines()
    (place,) = (i for i, row in enumerate(rows) if row.startswith("%relu_1:"))
    rows[place] = rows[place].replace("aten.relu", "aten.gelu")
    rows[0] = rows[0].replace("[2, 3, 8, 8]", "[4, 3, 8, 8]")
    with pytest.raises(AssertionError) as failure:
        compare_ir("\n".join(rows) + "\n", want)
    lines = str(failure.value).splitlines()
    total = len(read(want))
    assert lines[0].endswith(f"0 added, 0 removed, 2 changed, {total - 2} equal")
    assert "      type: f64[2, 3, 8, 8] → f64[4, 3, 8, 8]" in lines
    (told,) = (i for i, line in enumerate(lines) if line.startswith("  ~ %relu_1:"))
    assert lines[told + 1].strip() == "op: aten.relu → aten.gelu"
    assert len(lines) < 12  # the changed nodes with their neighbours, not the whole graph


def test_wrong_numbers_are_told_the_worst_first() -> None:
    want = outputs_of("generic-8bit", Stored("mlp"))
    got = {name: value.clone() for name, value in want.items()}
    got["layer.linear"][2, 3] += 1e-3
    got["output"][0] += 1
    got["new"] = torch.ones(2)
    del got["layer.linear_2"]
    with pytest.raises(AssertionError) as failure:
        compare(got, want)
    lines = str(failure.value).splitlines()
    assert lines[0] == "layer.linear_2 is missing or new; stored → found:"
    assert [line.split()[0] for line in lines[1:]] == [
        "layer.linear_2", "new", "output", "layer.linear",
    ]  # fmt: skip
    assert "10 of 60 values, by at most 1 " in lines[3]
    assert "1 of 240 values, by at most 0.001 " in lines[4] and lines[4].endswith("at [2, 3]")


def test_8_bit_outputs_are_near_the_ideal_ones_and_noise_adds_to_the_error(
    name: str, stored: Stored
) -> None:
    ideal = outputs_of("ideal", stored)["output"]
    quantised, noisy = (
        float((outputs_of(target, stored)["output"] - ideal).norm() / ideal.norm())
        for target in TARGETS[1:]
    )
    assert 0 < quantised < 0.1
    assert quantised < noisy < 1


def test_models_use_several_tiles_and_every_kind_of_layer() -> None:
    seen: list[TileMapping] = []
    for name in CASES:
        seen += compile_model(name, "ideal", make_input(name)).tiles
    assert {m.op for m in seen} == {"linear", "conv2d"}
    assert any(m.groups > 1 for m in seen)
    assert any(m.grid[0] > 1 for m in seen) and any(m.grid[1] > 1 for m in seen)


def test_golden_folder_holds_these_models_and_nothing_else() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {
        f"{name}.{kind}" for name in CASES for kind in ("ir", "ideal.ir", "safetensors")
    }
    assert sum(path.stat().st_size for path in GOLDEN.iterdir()) < 2_000_000
