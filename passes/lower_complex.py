"""Turn linears and convolutions of complex numbers into real ones of twice the width.

    [re y]   [re W  -im W] [re x]
    [im y] = [im W   re W] [im x]

Rows and columns of the two parts are interleaved, as complex numbers are in memory, so that input
and output are views, and groups of channels stay together. Each part of the weight is stored
twice, which is what a crossbar takes for it. Runs after canonicalize.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .canonicalize import CONVS, LINEAR
from .emit import Emitter
from .stationary import live_nodes, stationary_nodes

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class LowerComplex(Pass):
    """Rewrite complex ``linear`` and ``convNd`` with a stored weight into real ones."""

    name: ClassVar[str] = "lower-complex"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        nodes = [n for n in module.graph.nodes if n.target is LINEAR or n.target in CONVS]
        nodes = [n for n in nodes if _is_complex(n.args[1])]
        if not nodes:
            return PassResult(module, False)
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        nodes = [n for n in nodes if n in live and n.args[1] in fixed and _is_complex(n.args[0])]
        for node in nodes:
            _lower(node)
        return finish(module, bool(nodes))


def _is_complex(node: object) -> bool:
    return isinstance(node, fx.Node) and bool(node.meta["val"].is_complex())


def _lower(node: fx.Node) -> None:
    emit = Emitter(node, LowerComplex.name)
    x, weight, *rest = node.args
    bias = rest[0] if rest else None
    is_linear = node.target is LINEAR
    assert isinstance(x, fx.Node) and isinstance(weight, fx.Node), "a layer of tensors"
    dims = 0 if is_linear else CONVS[node.target]  # type: ignore[index]
    channels = x.meta["val"].dim() - 1 - dims
    pairs = emit.call(aten.view_as_real.default, emit.call(aten.resolve_conj.default, x))
    if dims:
        pairs = emit.call(aten.movedim.int, pairs, -1, channels + 1)
    wide = emit.call(aten.flatten.using_ints, pairs, channels, channels + 1)
    real = [None, *rest[1:]] if dims else []
    y = emit.call(node.target, wide, _matrix(emit, weight), *real)  # type: ignore[arg-type]
    outputs = int(weight.meta["val"].shape[0])
    y = emit.call(aten.unflatten.int, y, channels, [outputs, 2])
    if dims:
        y = emit.call(aten.movedim.int, y, channels + 1, -1)
    y = emit.call(aten.view_as_complex.default, emit.call(aten.contiguous.default, y))
    if bias is not None:
        for _ in range(dims):
            bias = emit.call(aten.unsqueeze.default, bias, -1)
        y = emit.call(aten.add.Tensor, y, bias)
    emit.replace(y)


def _matrix(emit: Emitter, weight: fx.Node) -> fx.Node:
    """[N, K, ...] of complex numbers as [2 N, 2 K, ...]."""
    pairs = emit.call(aten.view_as_real.default, emit.call(aten.resolve_conj.default, weight))
    re, im = (emit.call(aten.select.int, pairs, -1, i) for i in (0, 1))
    upper = emit.call(aten.stack.default, [re, emit.call(aten.neg.default, im)], 2)
    lower = emit.call(aten.stack.default, [im, re], 2)
    blocks = emit.call(aten.stack.default, [upper, lower], 1)
    blocks = emit.call(aten.flatten.using_ints, blocks, 2, 3)
    return emit.call(aten.flatten.using_ints, blocks, 0, 1)
