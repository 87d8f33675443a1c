"""Bring all weight-stationary work into one form: ``aten.linear`` and ``aten.conv{1,2,3}d``.

Products with a stationary operand on either side, bare parameters, transposed weights (GPT-2's
Conv1D), decomposed programs and string paddings all become ``linear(x, W[N, K], b)`` or
``convNd(x, W, b, stride, padding, dilation, groups)`` with integer padding. What the weight is
computed from does not matter here: any pure function of parameters is a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .emit import Emitter
from .stationary import live_nodes, stationary_nodes, without_transpose

aten = torch.ops.aten
LINEAR = aten.linear.default
CONVS = {aten.conv1d.default: 1, aten.conv2d.default: 2, aten.conv3d.default: 3}
CONV_OF_DIMS = {dims: op for op, dims in CONVS.items()}
_PADDED = {aten.conv1d.padding: 1, aten.conv2d.padding: 2, aten.conv3d.padding: 3}


@dataclass(frozen=True, slots=True)
class Canonicalize(Pass):
    """Rewrite every form of a weight-stationary product into ``linear`` or ``convNd``."""

    name: ClassVar[str] = "canonicalize"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        modified = False
        for node in list(module.graph.nodes):
            if node.op == "call_function" and node.target is aten.detach_.default:
                modified |= _functional_detach(node)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        for node in list(module.graph.nodes):
            if node.op != "call_function" or node not in live:
                continue
            handler = _HANDLERS.get(node.target)
            if handler is not None:
                modified |= handler(node, fixed)
        return finish(module, modified)


Handler = Callable[[fx.Node, set[fx.Node]], bool]


def _emitter(node: fx.Node) -> Emitter:
    return Emitter(node, Canonicalize.name)


def _functional_detach(node: fx.Node) -> bool:
    # Export lifts torch.tensor(...) constants as lift_fresh_copy + detach_.
    base = node.args[0]
    if not isinstance(base, fx.Node) or base.target is not aten.lift_fresh_copy.default:
        return False
    node.target = aten.detach.default
    return True


def _dims(node: fx.Node) -> int:
    return int(node.meta["val"].dim())


def stored_on_the_right(emit: Emitter, weight: fx.Node, fixed: set[fx.Node]) -> fx.Node:
    """``weight`` [K, N] as [N, K]."""
    base = without_transpose(weight)
    if base is None:
        base = emit.call(aten.t.default, weight)
    fixed.add(base)
    return base


def _linear(node: fx.Node, fixed: set[fx.Node]) -> bool:
    x, weight = node.args[:2]
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node), "linear has tensor operands"
    bias = node.args[2] if len(node.args) > 2 else None
    emit = _emitter(node)
    if weight in fixed and _dims(weight) == 1:
        row = emit.call(aten.unsqueeze.default, weight, 0)
        y = emit.call(aten.squeeze.dim, emit.call(LINEAR, x, row), -1)
    elif x in fixed and weight not in fixed and _dims(x) == _dims(weight) == 2:
        # The stored operand is the first: x W^T = (W x^T)^T.
        y = emit.call(aten.t.default, emit.call(LINEAR, weight, x))
    else:
        return False
    if bias is not None:
        y = emit.call(aten.add.Tensor, y, bias)
    emit.replace(y)
    return True


def _product(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """``mm``, ``mv``, ``dot``, ``matmul`` with one stationary operand of one or two dims."""
    left, right = node.args[:2]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node), "a product of tensors"
    emit = _emitter(node)
    if right in fixed and left not in fixed and _dims(right) in (1, 2):
        if _dims(right) == 2:
            y = emit.call(LINEAR, left, stored_on_the_right(emit, right, fixed))
        else:
            row = emit.call(aten.unsqueeze.default, right, 0)
            y = emit.call(aten.squeeze.dim, emit.call(LINEAR, left, row), -1)
    elif left in fixed and right not in fixed and _dims(left) in (1, 2):
        weight = left
        if _dims(left) == 1:
            weight = emit.call(aten.unsqueeze.default, left, 0)
        if _dims(right) == 1:
            y = emit.call(LINEAR, right, weight)
        else:
            turned = emit.call(aten.transpose.int, right, -1, -2)
            y = emit.call(aten.transpose.int, emit.call(LINEAR, turned, weight), -1, -2)
        if _dims(left) == 1:
            y = emit.call(aten.squeeze.dim, y, -1 if _dims(right) == 1 else -2)
    else:
        return False
    emit.replace(y)
    return True


def _addmm(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """``beta * bias + alpha * (x @ W)`` or ``(W @ x)``."""
    bias, left, right = node.args[:3]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node), "a product of tensors"
    if (left in fixed) == (right in fixed):
        return False
    beta, alpha = node.kwargs.get("beta", 1), node.kwargs.get("alpha", 1)
    emit = _emitter(node)
    plain = beta == 1 and alpha == 1 and isinstance(bias, fx.Node) and _dims(bias) == 1
    if right in fixed and plain:
        y = emit.call(LINEAR, left, stored_on_the_right(emit, right, fixed), bias)
    else:
        if right in fixed:
            y = emit.call(LINEAR, left, stored_on_the_right(emit, right, fixed))
        else:
            turned = emit.call(aten.t.default, right)
            y = emit.call(aten.t.default, emit.call(LINEAR, turned, left))
        if alpha != 1:
            y = emit.call(aten.mul.Scalar, y, alpha)
        if beta != 0:
            scaled = bias if beta == 1 else emit.call(aten.mul.Scalar, bias, beta)
            y = emit.call(aten.add.Tensor, y, scaled)
    emit.replace(y)
    return True


def as_list(value: Any, dims: int) -> list[int]:
    """``value`` as one number for each of ``dims`` dims."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    return values * dims if len(values) == 1 else values


def _conv(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """Fill in default arguments, so that every conv has the same seven."""
    assert not isinstance(node.target, str)
    dims = CONVS[node.target]  # type: ignore[index]
    args = [*node.args, *[None, 1, 0, 1, 1][len(node.args) - 2 :]]
    full = (*args[:3], *(as_list(value, dims) for value in args[3:6]), args[6])
    if full == node.args:
        return False
    node.args = full
    return True


def _conv_with_text_padding(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """``padding="same"`` or ``"valid"`` as integers; an odd total is padded by an op of its own."""
    dims = _PADDED[node.target]  # type: ignore[index]
    args = [*node.args, *[None, 1, "valid", 1, 1][len(node.args) - 2 :]]
    x, weight, bias, stride, padding, dilation, groups = args
    dilation = as_list(dilation, dims)
    emit = _emitter(node)
    sides = [0] * dims
    if padding == "same":
        assert isinstance(weight, fx.Node), "a convolution has a tensor weight"
        kernel = weight.meta["val"].shape[2:]
        totals = [d * (int(k) - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            extra = [amount for total in reversed(totals) for amount in (0, total % 2)]
            x = emit.call(aten.constant_pad_nd.default, x, extra)
    conv = CONV_OF_DIMS[dims]
    emit.replace(emit.call(conv, x, weight, bias, as_list(stride, dims), sides, dilation, groups))
    return True


def _convolution(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """``aten.convolution`` of decomposed programs."""
    x, weight, bias, stride, padding, dilation, transposed, _, groups = node.args
    assert isinstance(weight, fx.Node), "a convolution has a tensor weight"
    if transposed or weight not in fixed:
        return False
    dims = _dims(weight) - 2
    emit = _emitter(node)
    rest = (as_list(value, dims) for value in (stride, padding, dilation))
    emit.replace(emit.call(CONV_OF_DIMS[dims], x, weight, bias, *rest, groups))
    return True


def _conv_tbc(node: fx.Node, fixed: set[fx.Node]) -> bool:
    """A convolution of [T, B, C] with [k, C, N] as one of [B, C, T] with [N, C, k]."""
    x, weight, bias, *rest = node.args
    if weight not in fixed:
        return False
    emit = _emitter(node)
    x = emit.call(aten.permute.default, x, [1, 2, 0])
    weight = emit.call(aten.permute.default, weight, [2, 1, 0])
    y = emit.call(CONV_OF_DIMS[1], x, weight, bias, [1], [*rest, 0][:1], [1], 1)
    emit.replace(emit.call(aten.permute.default, y, [2, 0, 1]))
    return True


_HANDLERS: dict[Any, Handler] = {
    LINEAR: _linear,
    aten.mm.default: _product,
    aten.mv.default: _product,
    aten.dot.default: _product,
    aten.matmul.default: _product,
    aten.addmm.default: _addmm,
    aten.convolution.default: _convolution,
    aten.conv_tbc.default: _conv_tbc,
    **dict.fromkeys(CONVS, _conv),
    **dict.fromkeys(_PADDED, _conv_with_text_padding),
}
