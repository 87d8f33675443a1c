"""What every model of the zoo must do."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import analogc

TOLERANCE = 1e-6
"""Of an ideal model's outputs, relative to the largest magnitude of each."""

NO_STORED_WEIGHT = (
    "of parameters alone", "activation x activation", "computes a weight, no activation",
    "no sum over a dim", "zeros that the graph makes",
)  # fmt: skip
"""Reasons why a product is rightly digital."""

_STATISTICS = {"running_mean": (-0.2, 0.2), "running_var": (0.5, 1.5)}


def randomise(model: nn.Module) -> nn.Module:
    """Give constant parameters and batch norm's statistics values that show in the output.

    A layer scale of 1e-6, a zero-initialised last norm or a running variance of 1 would hide
    a branch or a fold that is wrong.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            values = parameter.flatten()
            if parameter.is_floating_point() and (values == values[:1]).all():
                low, high = (-0.1, 0.1) if not values[:1].any() else (0.5, 1.5)
                parameter.uniform_(low, high)
        for name, buffer in model.named_buffers():
            bounds = _STATISTICS.get(name.rpartition(".")[2])
            if bounds is not None:
                buffer.uniform_(*bounds)
    return model


def check_model(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    static: bool = True,
    dynamic: bool = True,
    tolerance: float = TOLERANCE,
    unsupported: tuple[str, ...] = (),
    run: Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], Any] | None = None,
) -> None:
    """Check ``model`` in eval mode: ideal equals eager, and generic-8bit runs.

    Args:
        model: any model, in any mode; it is put in eval mode and left on its own parameters.
        args: positional inputs; the first dim of every tensor is the batch.
        kwargs: keyword inputs.
        static: check the ideal target with fixed shapes; without it, generic-8bit has them.
        dynamic: check ``dynamic_shapes="batch"`` too, at the batch of ``args`` and at one more.
        tolerance: see TOLERANCE.
        unsupported: a part of the reason of each operator with stored weights that is known to
            stay digital; any other is a failure.
        run: how to call a model with inputs; plainly by default.
    """
    named = dict(kwargs or {})
    call = run or _call
    model.eval()
    with torch.no_grad():
        want = call(model, args, named)
        if static:
            ideal = analogc.compile(model, args, named, target="ideal")
            assert_equal(call(ideal, args, named), want, tolerance)
        if dynamic:
            ideal = analogc.compile(model, args, named, target="ideal", dynamic_shapes="batch")
            assert_covered(ideal, unsupported)
            assert_equal(call(ideal, args, named), want, tolerance)
            more = pytree.tree_map(_one_more, (args, named))
            assert_equal(call(ideal, *more), call(model, *more), tolerance)
        shapes = "batch" if dynamic and static else None
        tiles = analogc.compile(model, args, named, target="generic-8bit", dynamic_shapes=shapes)
        assert_runs(call(tiles, args, named), want)
        assert_covered(tiles, unsupported)


def assert_equal(got: Any, want: Any, tolerance: float = TOLERANCE) -> None:
    """Same structure, and each tensor within ``tolerance`` of its largest magnitude."""
    pairs = _pairs(got, want)
    for place, a, b in pairs:
        assert a.shape == b.shape and a.dtype == b.dtype, f"output {place}: {a.shape} {b.shape}"
        if not b.is_floating_point():
            assert torch.equal(a, b), f"output {place} differs"
            continue
        finite = b.isfinite()
        assert torch.equal(a[~finite].nan_to_num(), b[~finite].nan_to_num()), f"output {place}"
        assert torch.equal(finite, a.isfinite()), f"output {place}: infinite in other places"
        if not finite.any():
            continue
        error = float((a - b)[finite].abs().max())
        peak = float(b[finite].abs().max())
        assert error <= tolerance * peak, f"output {place}: off by {error / peak:.2g} of its peak"


def assert_runs(got: Any, want: Any) -> None:
    """Same structure, and finite wherever the digital model's output is."""
    for place, a, b in _pairs(got, want):
        assert a.shape == b.shape and a.dtype == b.dtype, f"output {place}: {a.shape} {b.shape}"
        if b.is_floating_point():
            assert bool(a[b.isfinite()].isfinite().all()), f"output {place} is not finite"


def assert_covered(compiled: analogc.CompiledModel, unsupported: tuple[str, ...] = ()) -> None:
    """Every product with a stored weight is analog, but for an expected reason.

    By rule only what multiplies no stored weight by an activation may be digital.
    """
    coverage = compiled.coverage
    assert coverage.analog, "no layer is analog"
    for row in coverage.digital:
        known = any(reason in row.reason for reason in (*unsupported, *NO_STORED_WEIGHT))
        what = f"{row.node} ({row.op}) in {row.module}, {row.line}: {row.reason}"
        assert known or (row.kind == "rule" and not row.macs), what


def train_like_eager(
    model: nn.Module, args: tuple[Any, ...], *, tolerance: float = 1e-5, seed: int = 7
) -> None:
    """Check a step of training: ideal gives eager's loss, gradients and statistics.

    Args:
        model: any model; it is put in train mode.
        args: positional inputs.
        tolerance: of each tensor, relative to its largest magnitude, or to a thousandth of the
            largest of all where that is more.
        seed: of both runs, so that the same elements drop out.
    """
    twin = copy.deepcopy(model).train()
    compiled = analogc.compile(model.train(), args, target="ideal")
    assert_covered(compiled)
    losses = []
    for module in (compiled, twin):
        torch.manual_seed(seed)
        outputs = pytree.tree_leaves(module(*args))
        real = [y for y in outputs if isinstance(y, Tensor) and y.is_floating_point()]
        loss = torch.stack([(y * torch.linspace(-1, 1, y.shape[-1])).sum() for y in real]).sum()
        loss.backward()
        losses.append(loss.detach())
    _assert_near({"loss": losses[0]}, {"loss": losses[1]}, tolerance)
    _assert_near(_gradients(model), _gradients(twin), tolerance)
    _assert_near(dict(model.named_buffers()), dict(twin.named_buffers()), tolerance)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _assert_near(got: dict[str, Tensor], want: dict[str, Tensor], tolerance: float) -> None:
    assert got.keys() == want.keys()
    want = {name: value.double() for name, value in want.items() if value.numel()}
    peaks = {name: float(value.abs().max()) for name, value in want.items()}
    floor = 1e-3 * max(peaks.values(), default=0.0)
    for name, value in want.items():
        error, peak = float((got[name] - value).abs().max()), max(peaks[name], floor)
        assert error <= tolerance * peak, f"{name}: off by {error / peak:.2g} of its peak"


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return model(*args, **kwargs)


def _one_more(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim():
        return torch.cat([value, value[:1]])
    return value


def _pairs(got: Any, want: Any) -> list[tuple[str, Tensor, Tensor]]:
    assert type(got) is type(want), f"{type(got).__name__} in place of {type(want).__name__}"
    a, left = pytree.tree_flatten_with_path(got)
    b, right = pytree.tree_flatten_with_path(want)
    assert left == right, f"{left} in place of {right}"
    for (_, x), (_, y) in zip(a, b, strict=True):
        assert isinstance(x, Tensor) == isinstance(y, Tensor)
    return [
        (pytree.keystr(path) or "0", x, y)
        for (path, x), (_, y) in zip(a, b, strict=True)
        if isinstance(x, Tensor)
    ]
