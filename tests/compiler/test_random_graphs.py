"""Properties of compiled random graphs: chains, joins, branches, shared layers, odd sizes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import analogc
from analogc import Converter, Target, TileSpec
from analogc.passes.verify import OPS
from analogc.runtime import reference, tiles
from analogc.runtime.spec import parse

CHANNELS = (1, 2, 3, 4, 6)
WIDTHS = (1, 2, 3, 5, 8, 13)


@dataclass(frozen=True)
class Step:
    """One step of a network, as plain values that hypothesis can print and shrink."""

    kind: str
    size: int = 0
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    padding: int | str = 0
    mode: str = "zeros"
    bias: bool = True


@dataclass(frozen=True)
class Recipe:
    dims: int
    channels: int
    length: int
    convs: tuple[Step, ...]
    linears: tuple[Step, ...]
    seed: int


CONV_STEPS = st.builds(
    Step,
    kind=st.sampled_from(["conv", "conv", "residual", "depthwise", "again", "norm", "relu"]),
    size=st.sampled_from(CHANNELS),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from((1, 1, 2, 3)),
    padding=st.sampled_from((0, 1, "same")),
    mode=st.sampled_from(("zeros", "zeros", "circular", "replicate")),
    bias=st.booleans(),
)
LINEAR_STEPS = st.builds(
    Step,
    kind=st.sampled_from(["linear", "linear", "residual", "again", "branch", "bare", "tanh"]),
    size=st.sampled_from(WIDTHS),
    bias=st.booleans(),
)
RECIPES = st.builds(
    Recipe,
    dims=st.sampled_from((1, 2)),
    channels=st.sampled_from(CHANNELS),
    length=st.integers(9, 12),
    convs=st.lists(CONV_STEPS, max_size=4).map(tuple),
    linears=st.lists(LINEAR_STEPS, min_size=1, max_size=4).map(tuple),
    seed=st.integers(0, 2**31),
)
TILE = st.builds(TileSpec, rows=st.integers(2, 40), cols=st.integers(2, 40))


class Random(nn.Module):
    """The network of a recipe: convolutions on ``[B, C, *size]``, then linears on ``[B, T, K]``."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe
        self.layers = nn.ModuleList()
        self.plan: list[tuple[str, int]] = []
        channels, room = recipe.channels, recipe.length
        square = -1
        for step in recipe.convs:
            kind = step.kind
            if kind == "again":
                if square >= 0:
                    self.plan.append(("again", square))
                continue
            if kind in ("relu", "norm"):
                if kind == "norm":
                    self.layers.append(self._norm(channels))
                self.plan.append((kind, len(self.layers) - 1))
                continue
            size = channels if kind != "conv" else step.size
            groups = channels if kind == "depthwise" else step.groups
            groups = groups if channels % groups == 0 and size % groups == 0 else 1
            same = step.padding == "same" or kind != "conv"
            reach = step.dilation * (step.kernel - 1)
            if reach % 2 or (not same and room - reach < 4):
                continue
            stride = 1 if same or room < 8 else step.stride
            make: Any = (nn.Conv1d, nn.Conv2d)[recipe.dims - 1]
            padding = "same" if same else step.padding
            mode = step.mode if same or padding else "zeros"
            self.layers.append(
                make(channels, size, step.kernel, stride, padding, step.dilation, groups,
                     step.bias, mode)
            )  # fmt: skip
            if same and size == channels:
                square = len(self.layers) - 1
            else:
                square = -1
                assert not isinstance(padding, str) or same
            if not same:
                room = (room + 2 * int(padding) - reach - 1) // stride + 1
            channels = size
            self.plan.append(("residual" if kind == "residual" else "call", len(self.layers) - 1))
        width, square = channels, -1
        self.plan.append(("tokens", -1))
        for step in recipe.linears:
            if step.kind == "tanh":
                self.plan.append(("tanh", -1))
            elif step.kind == "again":
                if square >= 0:
                    self.plan.append(("again", square))
            elif step.kind == "branch":
                self.layers.append(nn.Linear(width, step.size, step.bias))
                self.layers.append(nn.Linear(width, 2, step.bias))
                self.plan.append(("branch", len(self.layers) - 2))
                width, square = step.size + 2, -1
            elif step.kind == "bare":
                self.layers.append(nn.Linear(step.size, width, bias=False))
                self.plan.append(("bare", len(self.layers) - 1))
                width, square = step.size, -1
            else:
                size = width if step.kind == "residual" else step.size
                self.layers.append(nn.Linear(width, size, step.bias))
                kind = "residual" if step.kind == "residual" else "call"
                self.plan.append((kind, len(self.layers) - 1))
                square = len(self.layers) - 1 if size == width else -1
                width = size
        self.layers.append(nn.Linear(width, 3))
        self.plan.append(("call", len(self.layers) - 1))

    def _norm(self, channels: int) -> nn.Module:
        norm: Any = (nn.BatchNorm1d, nn.BatchNorm2d)[self.recipe.dims - 1](channels)
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.3, 0.3)
        module: nn.Module = norm
        return module

    def forward(self, x: Tensor) -> Tensor:
        for what, index in self.plan:
            layer: Any = self.layers[index] if index >= 0 else None
            if what == "tokens":
                x = x.flatten(2).mT
            elif what == "relu":
                x = torch.relu(x)
            elif what == "tanh":
                x = torch.tanh(x)
            elif what == "residual":
                x = x + torch.tanh(layer(x))
            elif what == "again":
                x = layer(torch.tanh(x))
            elif what == "branch":
                x = torch.cat([torch.relu(layer(x)), self.layers[index + 1](x)], dim=-1)
            elif what == "bare":
                x = x @ layer.weight
            else:
                x = layer(x)
        return x


def make(recipe: Recipe) -> tuple[Random, Tensor]:
    torch.manual_seed(recipe.seed)
    model = Random(recipe).double().eval()
    size = [recipe.length] * recipe.dims
    event(f"{len(model.layers)} layers")
    return model, torch.randn(2, recipe.channels, *size, dtype=torch.float64)


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    y = model(x)
    parameters = dict(model.named_parameters())
    found = torch.autograd.grad(
        y.square().sum(), list(parameters.values()), allow_unused=True, materialize_grads=True
    )
    return y.detach(), dict(zip(parameters, found, strict=True))


def off(got: Tensor, want: Tensor) -> float:
    """Largest error, relative to the largest value."""
    return float((got - want).detach().abs().max() / want.detach().abs().max().clamp_min(1e-30))


def assert_exact(compiled: nn.Module, twin: nn.Module, x: Tensor) -> None:
    got, grads = gradients(compiled, x)
    want, true_grads = gradients(twin, x)
    assert off(got, want) < 1e-12
    scale = max(float(g.abs().max()) for g in true_grads.values())
    for name, grad in true_grads.items():
        assert float((grads[name] - grad).abs().max()) <= 1e-12 * max(scale, 1e-3), name


@given(recipe=RECIPES, tile=TILE)
def test_ideal_tiles_are_exact_on_any_graph(recipe: Recipe, tile: TileSpec) -> None:
    model, x = make(recipe)
    twin = copy.deepcopy(model)
    target = analogc.targets.ideal().replace(tile=tile)
    compiled = analogc.compile(model, (x,), target=target, check=True)
    assert_exact(compiled, twin, x)


@given(recipe=RECIPES, tile=TILE)
def test_simulated_tiles_without_error_are_exact_on_any_graph(
    recipe: Recipe, tile: TileSpec
) -> None:
    model, x = make(recipe)
    twin = copy.deepcopy(model)
    target = Target("blockwise", tile, None, None, output_noise=1e-300)
    compiled = analogc.compile(model, (x,), target=target, check=True)
    assert_exact(compiled, twin, x)


@given(recipe=RECIPES, tile=TILE)
def test_every_weight_is_mapped_once_and_every_layer_is_analog(
    recipe: Recipe, tile: TileSpec
) -> None:
    model, x = make(recipe)
    target = analogc.targets.ideal().replace(tile=tile)
    compiled = analogc.compile(model, (x,), target=target, check=True)
    used = {index for what, index in model.plan if index >= 0 and what not in ("relu", "norm")}
    used |= {index + 1 for what, index in model.plan if what == "branch"}
    weights = sum(model.layers[i].get_parameter("weight").numel() for i in used)
    mapped = sum(m.groups * m.out_features * m.in_features for m in compiled.tiles)
    # Batch norm after one use of a shared layer, but not after the other, makes two weights of it.
    folded = {"norm", "again"} <= {what for what, _ in model.plan}
    assert mapped == weights or (folded and mapped > weights)
    assert compiled.coverage.analog_share == 1.0
    ids = [i for mapping in compiled.tiles for i in mapping.tile_ids]
    assert sorted(ids) == list(range(sum(m.tiles for m in compiled.tiles)))
    for mapping in compiled.tiles:
        bounds: Sequence[int] = mapping.row_bounds
        assert all(0 < b - a <= tile.rows for a, b in zip(bounds, bounds[1:], strict=False))
        bounds = mapping.col_bounds
        assert all(0 < b - a <= tile.cols for a, b in zip(bounds, bounds[1:], strict=False))


class Decomposed(fx.Interpreter):
    """Runs a compiled graph with the decomposition dac -> mvm -> adc -> accumulate."""

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or n.target not in OPS:
            return super().run_node(n)
        (x, weight, bias, input_range, adc_range, *between, text, key), _ = (
            self.fetch_args_kwargs_from_env(n)
        )
        spec, array = parse(text), tiles.find(key)
        assert array is not None
        held = array.current(weight)
        if weight.dim() == 2:
            blocks = held.blocks
            return reference.linear(x, blocks, held.scale, bias, input_range, adc_range, spec)
        if weight.dim() == 4:
            return reference.conv(x, held, bias, input_range, adc_range, spec, weight.shape,
                                  *between)  # fmt: skip
        stride, padding, dilation, groups = between
        y = reference.conv(
            x[:, :, None], held, bias, input_range, adc_range, spec, weight[:, :, None].shape,
            (1, *stride), (0, *padding), (1, *dilation), groups,
        )  # fmt: skip
        return y[:, :, 0]


CONVERTERS = st.sampled_from(
    [
        (Converter(8), Converter(8)),
        (Converter(6), Converter(7, per_column=True)),
        (Converter(8, "dynamic"), Converter(9)),
        (None, Converter(8)),
        (Converter(8), None),
        (Converter(5, 3.0), Converter(8, "full")),
    ]
)


@pytest.mark.filterwarnings("ignore::analogc.ConverterRangeWarning")
@given(recipe=RECIPES, tile=TILE, converters=CONVERTERS)
def test_fast_path_equals_the_decomposition_on_any_graph(
    recipe: Recipe, tile: TileSpec, converters: tuple[Converter | None, Converter | None]
) -> None:
    model, x = make(recipe)
    target = Target("t", tile, *converters)
    compiled = analogc.compile(model, (x,), target=target, check=True, seed=0)
    with torch.no_grad():
        got = compiled(x)
        interpreter = Decomposed(compiled._root, graph=compiled.graph)
        (want,) = interpreter.run(x, enable_io_processing=False)
    # Sums in another order may round to another code, once in a great while; not in doubles.
    assert off(got, want) < 1e-9


@given(recipe=RECIPES, tile=TILE)
def test_path_with_gradients_equals_the_path_without(recipe: Recipe, tile: TileSpec) -> None:
    model, x = make(recipe)
    target = analogc.targets.generic_8bit_noisy().replace(tile=tile)
    compiled = analogc.compile(model, (x,), target=target, seed=3)
    with_gradients, grads = gradients(compiled, x)
    compiled.program(seed=3)
    with torch.no_grad():
        assert off(compiled(x), with_gradients) < 1e-9
    assert all(torch.isfinite(grad).all() for grad in grads.values())


@given(recipe=RECIPES, tile=TILE)
def test_8_bit_tiles_stay_close_to_the_digital_model(recipe: Recipe, tile: TileSpec) -> None:
    model, x = make(recipe)
    want = model(x).detach()
    target = analogc.targets.generic_8bit().replace(tile=tile)
    compiled = analogc.compile(model, (x,), target=target, seed=0)
    got = compiled(x).detach()
    assert torch.isfinite(got).all()
    assert float((got - want).norm() / want.norm().clamp_min(1e-6)) < 0.15
