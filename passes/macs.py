"""Multiply-accumulates of a node at the example shapes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from .canonicalize import CONVS, LINEAR
from .products import Product, is_grouped, read

aten = torch.ops.aten

RECURRENT = {
    aten.lstm.input: "lstm", aten.gru.input: "gru", aten.rnn_tanh.input: "tanh",
    aten.rnn_relu.input: "relu", aten.lstm_cell.default: "lstm", aten.gru_cell.default: "gru",
    aten.rnn_tanh_cell.default: "tanh", aten.rnn_relu_cell.default: "relu",
}  # fmt: skip
"""Recurrent layers and cells, with the kind of their steps."""

_MATRIX_LAST = {
    aten.cdist.default, aten._cdist_forward.default, aten._int_mm.default, aten._sparse_mm.default,
    aten.pairwise_distance.default, aten.cosine_similarity.default,
}  # fmt: skip
"""Operators whose every result is a sum over the last dim of their first operand."""

MACS = "analogc_macs"
"""Key of a node whose size depends on values, with its share of the work of what it came from."""


def _hint(size: Any) -> int:
    """``size`` at the example shape; 1 if only the values tell it."""
    if not isinstance(size, torch.SymInt):
        return int(size)
    hint = size.node.hint
    return 1 if hint is None else int(hint)


def _shape(node: Any) -> list[int]:
    return [_hint(size) for size in node.meta["val"].shape]


def count_macs(node: fx.Node) -> int:
    """Multiply-accumulates of a node at the example shape; 0 if it is no product."""
    if MACS in node.meta:
        return int(node.meta[MACS])
    out = node.meta.get("val")
    operands: list[fx.Node] = []  # one that is given twice counts twice
    fx.node.map_arg(node.args, operands.append)
    shapes = [_shape(o) for o in operands if isinstance(o.meta.get("val"), torch.Tensor)]
    if node.target in RECURRENT:
        return _recurrent(node, shapes[0])
    if not isinstance(out, torch.Tensor) or len(shapes) < 2:
        return 0
    results = math.prod(_shape(node))
    if node.target is LINEAR:
        return results * shapes[0][-1]
    if node.target in CONVS or "conv" in str(node.target):
        vectors = math.prod(shapes[0]) if "transpose" in str(node.target) else results
        return vectors * math.prod(_shape(node.args[1])[1:])
    if node.target is aten.scaled_dot_product_attention.default:
        return results * shapes[1][-2] * 2
    if node.target is aten.addmm.default:
        return results * shapes[-2][-1]
    if node.target is aten.bilinear.default:
        return results * shapes[2][1] * shapes[2][2]
    product = read(node)
    if product is not None:
        return _labelled(product)
    if node.target in _MATRIX_LAST or is_grouped(node):
        return results * shapes[0][-1]
    if node.target in (aten.mm.default, aten.mv.default, aten.dot.default):
        return results * shapes[0][-1]
    return 0


def _labelled(product: Product) -> int:
    """Work of multiplying the operands one after the other, from the first on."""
    sizes: dict[int, int] = {}
    for operand in product.operands:
        for label, size in zip(operand.labels, _shape(operand.node), strict=True):
            sizes[label] = max(size, sizes.get(label, 0))  # a dim of 1 is broadcast
    total, (first, *others) = 0, product.operands
    labels = set(first.labels)
    for i, operand in enumerate(others, start=1):
        labels |= set(operand.labels)
        total += math.prod(sizes[label] for label in labels)
        later = {label for o in others[i:] for label in o.labels}
        labels &= later | set(product.result)
    return total


def _recurrent(node: fx.Node, x: list[int]) -> int:
    """Every matrix of the layer meets every vector of the input once."""
    weights: list[fx.Node] = []
    fx.node.map_arg(node.args[2:], weights.append)
    matrices = [weight.meta["val"].shape for weight in weights]
    vectors = math.prod(x[:-1])
    return vectors * sum(int(shape.numel()) for shape in matrices if len(shape) == 2)
