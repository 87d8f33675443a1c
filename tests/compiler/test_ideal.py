"""Ideal tiles are exact: outputs and gradients are the digital model's, for every operator.

``ideal`` hands each layer to torch's own operator. ``blockwise`` is a target as free of error that
does not: it runs every tile, row block by row block, and proves the mapping.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.parametrizations as parametrizations
from torch import Tensor, nn

import analogc
from analogc import Target, TileSpec

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")

TILES = [(4, 4), (7, 5), (64, 64), (512, 512)]
EXACT = {torch.float32: 1e-5, torch.float64: 1e-12}


class Bare(nn.Module):
    """A product of a bare parameter and the input."""

    def __init__(self, product: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(*shape) / 3)
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight)


class Addmm(nn.Module):
    def __init__(self, beta: float, alpha: float, left: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 11) if left else torch.randn(11, 5))
        self.bias = nn.Parameter(torch.randn(7) if left else torch.randn(5))
        self.beta, self.alpha, self.left = beta, alpha, left

    def forward(self, x: Tensor) -> Tensor:
        a, b = (self.weight, x.mT) if self.left else (x, self.weight)
        return torch.addmm(self.bias, a, b, beta=self.beta, alpha=self.alpha)


class Attention(nn.Module):
    def __init__(self, weights: bool, **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.weights = weights
        self.wide = "kdim" in options

    def forward(self, x: Tensor) -> Any:
        key = torch.cat([x, x[..., :2]], -1) if self.wide else x
        return self.attention(x, key, key, need_weights=self.weights)


class Flat(nn.Linear):
    """A subclass whose weight is an expression."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 2 - self.weight.mean(), self.bias)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(11, 11)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(torch.tanh(self.layer(x))) + x
        return out


def norm(layer: nn.Module, kind: type[nn.Module], size: int, **options: Any) -> nn.Module:
    """Layer and batch norm with statistics that are not those of a fresh one."""
    after: Any = kind(size, **options)
    after.running_mean.copy_(torch.linspace(-1, 1, size))
    after.running_var.copy_(torch.linspace(0.3, 2, size))
    if after.affine:
        with torch.no_grad():
            after.weight.copy_(torch.linspace(-0.5, 1.5, size))
            after.bias.copy_(torch.linspace(1, -1, size))
    return nn.Sequential(layer, after)


def encoder(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 13, dropout=0.0, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


VECTORS, SEQUENCE, VECTOR = (7, 11), (2, 5, 11), (11,)
C1, C2, C3 = (2, 6, 13), (2, 6, 9, 8), (2, 4, 6, 5, 7)
Variant = tuple[Callable[[], nn.Module], tuple[int, ...]]

LINEAR: dict[str, Variant] = {
    "2-D": (lambda: nn.Linear(11, 5), VECTORS),
    "3-D": (lambda: nn.Linear(11, 5), SEQUENCE),
    "4-D": (lambda: nn.Linear(11, 5), (2, 3, 2, 11)),
    "1-D": (lambda: nn.Linear(11, 5), VECTOR),
    "no bias": (lambda: nn.Linear(11, 5, bias=False), VECTORS),
    "wide": (lambda: nn.Linear(11, 130), VECTORS),
    "deep": (lambda: nn.Linear(130, 3), (4, 130)),
    "one output": (lambda: nn.Linear(11, 1), VECTORS),
    "one input": (lambda: nn.Linear(1, 9), (7, 1)),
    "subclass": (lambda: Flat(11, 5), VECTORS),
    "shared": (Shared, VECTORS),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(11, 5)), VECTORS),
    "bilinear use": (lambda: Bare(lambda x, w: x @ (w @ w.mT), 11, 11), VECTORS),
}
BARE: dict[str, Variant] = {
    "F.linear": (lambda: Bare(F.linear, 5, 11), VECTORS),
    "x @ W": (lambda: Bare(lambda x, w: x @ w, 11, 5), VECTORS),
    "x @ W.mT": (lambda: Bare(lambda x, w: x @ w.mT, 5, 11), VECTORS),
    "batched x @ W": (lambda: Bare(lambda x, w: x @ w, 11, 5), SEQUENCE),
    "vector @ W": (lambda: Bare(lambda x, w: x @ w, 11, 5), VECTOR),
    "W @ x": (lambda: Bare(lambda x, w: w @ x, 5, 7), VECTORS),
    "W.mT @ x": (lambda: Bare(lambda x, w: w.mT @ x, 7, 5), VECTORS),
    "W @ batched x": (lambda: Bare(lambda x, w: w @ x, 3, 5), SEQUENCE),
    "W @ vector": (lambda: Bare(lambda x, w: w @ x, 5, 11), VECTOR),
    "mm": (lambda: Bare(torch.mm, 11, 5), VECTORS),
    "mv": (lambda: Bare(torch.mv, 11), VECTORS),
    "dot": (lambda: Bare(torch.dot, 11), VECTOR),
    "x @ vector": (lambda: Bare(lambda x, w: x @ w, 11), SEQUENCE),
    "vector @ x": (lambda: Bare(lambda x, w: w @ x, 5), SEQUENCE),
    "addmm": (lambda: Addmm(1, 1, False), VECTORS),
    "scaled addmm": (lambda: Addmm(0.5, 2.0, False), VECTORS),
    "addmm without its bias": (lambda: Addmm(0, 3, False), VECTORS),
    "addmm from the left": (lambda: Addmm(0.5, 2.0, True), VECTORS),
    "slice of a parameter": (lambda: Bare(lambda x, w: x @ w[:, 2:6], 11, 9), VECTORS),
    "scaled parameter": (lambda: Bare(lambda x, w: x @ (w * 0.3).tanh(), 11, 5), VECTORS),
}
CONV: dict[str, Variant] = {
    "1d": (lambda: nn.Conv1d(6, 5, 3), C1),
    "1d strided": (lambda: nn.Conv1d(6, 5, 4, stride=3, padding=2), C1),
    "1d dilated": (lambda: nn.Conv1d(6, 5, 3, dilation=2, padding=1), C1),
    "1d grouped": (lambda: nn.Conv1d(6, 9, 3, groups=3), C1),
    "1d depthwise": (lambda: nn.Conv1d(6, 6, 3, groups=6, padding="same"), C1),
    "1d same, even kernel": (lambda: nn.Conv1d(6, 5, 4, padding="same"), C1),
    "1d circular": (lambda: nn.Conv1d(6, 5, 3, padding=2, padding_mode="circular"), C1),
    "1d unbatched": (lambda: nn.Conv1d(6, 5, 3, padding=1), C1[1:]),
    "2d": (lambda: nn.Conv2d(6, 5, 3), C2),
    "2d no bias": (lambda: nn.Conv2d(6, 5, 3, bias=False), C2),
    "2d 1x1": (lambda: nn.Conv2d(6, 5, 1), C2),
    "2d uneven": (
        lambda: nn.Conv2d(6, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 3)),
        C2,
    ),
    "2d grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), C2),
    "2d depthwise": (lambda: nn.Conv2d(6, 12, 3, groups=6, padding=1), C2),
    "2d same": (lambda: nn.Conv2d(6, 5, 3, padding="same"), C2),
    "2d same, even kernel": (lambda: nn.Conv2d(6, 5, (4, 2), padding="same", dilation=(1, 3)), C2),
    "2d valid": (lambda: nn.Conv2d(6, 5, 3, padding="valid", stride=2), C2),
    "2d reflect": (lambda: nn.Conv2d(6, 5, 3, padding=(2, 1), padding_mode="reflect"), C2),
    "2d replicate": (lambda: nn.Conv2d(6, 5, 3, padding=1, padding_mode="replicate"), C2),
    "2d circular": (lambda: nn.Conv2d(6, 5, 3, padding="same", padding_mode="circular"), C2),
    "2d unbatched": (lambda: nn.Conv2d(6, 5, 3, stride=2), C2[1:]),
    "2d grouped unbatched": (lambda: nn.Conv2d(6, 4, 3, groups=2), C2[1:]),
    "3d": (lambda: nn.Conv3d(4, 3, 3, padding=1), C3),
    "3d strided, dilated": (lambda: nn.Conv3d(4, 3, (1, 2, 3), stride=2, dilation=(2, 1, 2)), C3),
    "3d grouped": (lambda: nn.Conv3d(4, 6, 2, groups=2), C3),
    "3d same, even kernel": (lambda: nn.Conv3d(4, 3, 2, padding="same"), C3),
    "3d replicate": (lambda: nn.Conv3d(4, 3, 3, padding=1, padding_mode="replicate"), C3),
    "3d unbatched": (lambda: nn.Conv3d(4, 3, 2), C3[1:]),
}
NORM: dict[str, Variant] = {
    "conv1d": (lambda: norm(nn.Conv1d(6, 5, 3), nn.BatchNorm1d, 5), C1),
    "conv2d": (lambda: norm(nn.Conv2d(6, 5, 3), nn.BatchNorm2d, 5), C2),
    "conv2d no bias": (lambda: norm(nn.Conv2d(6, 5, 3, bias=False), nn.BatchNorm2d, 5), C2),
    "depthwise": (lambda: norm(nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d, 6), C2),
    "conv3d": (lambda: norm(nn.Conv3d(4, 3, 2), nn.BatchNorm3d, 3), C3),
    "not affine": (lambda: norm(nn.Conv2d(6, 5, 3), nn.BatchNorm2d, 5, affine=False), C2),
    "linear": (lambda: norm(nn.Linear(11, 5), nn.BatchNorm1d, 5), VECTORS),
    "linear no bias": (lambda: norm(nn.Linear(11, 5, bias=False), nn.BatchNorm1d, 5), VECTORS),
    "linear on sequences": (lambda: norm(nn.Linear(11, 9), nn.BatchNorm1d, 5), SEQUENCE),
}
ATTENTION: dict[str, Variant] = {
    "packed": (lambda: Attention(False), (2, 5, 8)),
    "with weights": (lambda: Attention(True), (2, 5, 8)),
    "no bias": (lambda: Attention(False, bias=False), (2, 5, 8)),
    "other key size": (lambda: Attention(False, kdim=10, vdim=10), (2, 5, 8)),
    "extra key and value": (lambda: Attention(False, add_bias_kv=True), (2, 5, 8)),
    "encoder": (encoder, (2, 5, 8)),
    "encoder norm first, gelu": (lambda: encoder(norm_first=True, activation="gelu"), (2, 5, 8)),
}
VARIANTS = {
    f"{family}: {name}": variant
    for family, variants in (
        ("linear", LINEAR), ("bare", BARE), ("conv", CONV), ("norm", NORM), ("attn", ATTENTION),
    )
    for name, variant in variants.items()
}  # fmt: skip


def outputs(value: Any) -> list[Tensor]:
    items = value if isinstance(value, tuple) else (value,)
    return [item for item in items if item is not None]


def run(model: nn.Module, x: Tensor) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Outputs, and gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    found = outputs(model(x))
    parameters = dict(model.named_parameters())
    loss = sum((y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).view(y.shape)).sum()
               for y in found)  # fmt: skip
    assert isinstance(loss, Tensor)
    grads = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
    names = ["input", *parameters]
    return found, {n: g for n, g in zip(names, grads, strict=True) if g is not None}


def assert_equal(got: Tensor, want: Tensor, tolerance: float, what: str) -> None:
    assert got.shape == want.shape and got.dtype == want.dtype, what
    got, want = got.detach(), want.detach()
    scale = float(want.abs().max()) if want.numel() else 0.0
    error = float((got - want).abs().max()) if want.numel() else 0.0
    assert error <= tolerance * scale, f"{what}: off by {error:.3g} at a scale of {scale:.3g}"


def assert_exact(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    target: Target,
    dtype: torch.dtype,
    training: bool = False,
) -> analogc.CompiledModel:
    """Compile a model for ``target`` and compare outputs and gradients with its digital twin."""
    torch.manual_seed(0)
    model = make().to(dtype).train(training)
    twin = copy.deepcopy(model)
    x = torch.randn(shape, dtype=dtype)
    compiled = analogc.compile(model, (x,), target=target, check=True)
    assert compiled.coverage.analog
    got, grads = run(compiled, x)
    want, true_grads = run(twin, x)
    tolerance = EXACT[dtype]
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_equal(a, b, tolerance, f"output {i}")
    assert grads.keys() <= true_grads.keys()
    # Some gradients are zero but for rounding (the bias of a key); so the largest one counts too.
    scale = max(float(g.abs().max()) for g in true_grads.values())
    for name, grad in true_grads.items():
        # No gradient is as good as one of zeros (addmm with beta=0 does not use its bias).
        error = float((grads.get(name, torch.zeros_like(grad)) - grad).abs().max())
        limit = tolerance * max(float(grad.abs().max()), 1e-3 * scale)
        assert error <= limit, f"gradient of {name}: off by {error:.3g}"
    return compiled


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_ideal_tiles_equal_the_digital_model(
    variant: str, dtype: torch.dtype, tile: tuple[int, int]
) -> None:
    make, shape = VARIANTS[variant]
    target = analogc.targets.ideal().replace(tile=TileSpec(*tile))
    compiled = assert_exact(make, shape, target, dtype)
    for mapping in compiled.tiles:
        assert (mapping.tile_rows, mapping.tile_cols) == tile
        blocks = [b - a for a, b in zip(mapping.row_bounds, mapping.row_bounds[1:], strict=False)]
        assert max(blocks) <= tile[0]
        assert sum(blocks) == mapping.in_features


def blockwise(tile: tuple[int, int], **options: Any) -> Target:
    # An output noise too small to change any double: the layer is not "ideal", so it is simulated.
    return Target("blockwise", TileSpec(*tile), None, None, output_noise=1e-300, **options)


@pytest.mark.parametrize("tile", TILES[:3], ids=str)
@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles_without_error_equal_the_digital_model_block_by_block(
    variant: str, tile: tuple[int, int]
) -> None:
    make, shape = VARIANTS[variant]
    compiled = assert_exact(make, shape, blockwise(tile), torch.float64)
    for mapping in compiled.tiles:
        assert (mapping.grid[0] > 1) == (mapping.in_features > tile[0])


@pytest.mark.parametrize("split", ["balanced", "full"])
@pytest.mark.parametrize("scale", ["column", "tensor"])
@pytest.mark.parametrize("variant", ["linear: deep", "conv: 2d grouped", "conv: 3d"])
def test_every_way_to_cut_and_to_scale_a_weight_is_exact(
    variant: str, scale: Any, split: str
) -> None:
    make, shape = VARIANTS[variant]
    torch.manual_seed(0)
    model, x = make().double(), torch.randn(shape, dtype=torch.float64)
    passes = ",".join(map(str, analogc.DEFAULT_PASSES)).replace(
        "map-tiles", f"map-tiles{{split={split}}}"
    )
    target = blockwise((7, 5), weight_scale=scale)
    compiled = analogc.compile(model, (x,), target=target, passes=passes, check=True)
    assert_equal(compiled(x), model(x), 1e-12, "output")


@pytest.mark.parametrize("columns", [1, 2])
def test_paired_columns_halve_a_tile_and_change_no_number(columns: int) -> None:
    target = blockwise((8, 8)).replace(tile=TileSpec(8, 8, columns_per_weight=columns))
    compiled = assert_exact(lambda: nn.Linear(11, 12), (3, 11), target, torch.float64)
    assert compiled.tiles[0].grid == (2, 2 if columns == 1 else 3)


TRAINED = ["attn: encoder", "attn: encoder norm first, gelu", "conv: 2d depthwise", "norm: conv2d"]


@pytest.mark.parametrize("tile", [(7, 5), (512, 512)], ids=str)
@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("variant", TRAINED)
def test_training_mode_is_exact_too(
    variant: str, dtype: torch.dtype, tile: tuple[int, int]
) -> None:
    make, shape = VARIANTS[variant]
    target = analogc.targets.ideal().replace(tile=TileSpec(*tile))
    assert_exact(make, shape, target, dtype, training=True)


def test_step_of_training_on_ideal_tiles_is_the_digital_one() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                          nn.Linear(64, 3)).double()  # fmt: skip
    twin = copy.deepcopy(model)
    x = torch.randn(5, 2, 6, 6, dtype=torch.float64)
    compiled = analogc.compile(model, (x,), target="ideal")
    for each in (compiled, twin):
        optimizer = torch.optim.AdamW(each.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            each(x).square().mean().backward()
            optimizer.step()
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-9, atol=1e-12)


def test_second_derivatives_of_ideal_tiles_are_the_digital_ones() -> None:
    torch.manual_seed(0)
    model = norm(nn.Linear(11, 5), nn.BatchNorm1d, 5).double().eval()
    twin = copy.deepcopy(model)
    x = torch.randn(3, 11, dtype=torch.float64)
    compiled = analogc.compile(model, (x,), target="ideal")
    found = []
    for each in (compiled, twin):
        parameters = list(each.parameters())
        first = torch.autograd.grad(each(x).tanh().sum(), parameters, create_graph=True)
        norms = torch.stack([g.square().sum() for g in first]).sum()
        found.append(torch.autograd.grad(norms, parameters))
    for a, b in zip(*found, strict=True):
        assert_equal(a, b, 1e-12, "second derivative")


def test_empty_batch_gives_an_empty_result() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
    for target in ("ideal", "generic-8bit"):
        compiled = analogc.compile(
            model, (torch.randn(3, 6),), target=target, dynamic_shapes="batch"
        )
        assert compiled(torch.empty(0, 6)).shape == (0, 2)
