"""Read products of tensors as sums over labelled dims: ``bik,bkj->bij``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten
Labels = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operand:
    """A node and the label of each of its dims."""

    node: fx.Node
    labels: Labels


@dataclass(frozen=True, slots=True)
class Product:
    """A sum of products over labelled dims, then ``beta * bias + alpha * sum``."""

    operands: tuple[Operand, ...]
    result: Labels
    bias: fx.Node | None = None
    alpha: Any = 1
    beta: Any = 1


def _dims(node: Any) -> int:
    assert isinstance(node, fx.Node), "a product of tensors"
    return int(node.meta["val"].dim())


def _einsum(node: fx.Node) -> Product:
    equation, given = node.args[0], node.args[1]
    assert isinstance(given, list | tuple), "einsum takes a list of tensors"
    nodes = [o for o in given if isinstance(o, fx.Node)]
    terms, arrow, result = str(equation).replace(" ", "").partition("->")
    inputs = terms.split(",")
    rest = max(_dims(o) - len(t.replace("...", "")) for o, t in zip(nodes, inputs, strict=True))
    if not arrow:
        letters = sorted(set(terms) - set(".,"))
        result = "..." * ("..." in terms) + "".join(n for n in letters if terms.count(n) == 1)
    operands = [Operand(o, _labels(t, _dims(o))) for o, t in zip(nodes, inputs, strict=True)]
    shown = len(result.replace("...", "")) + rest * ("..." in result)
    return Product(tuple(operands), _labels(result, shown))


def _labels(term: str, dims: int) -> Labels:
    """Labels of an einsum term; the dims of an ellipsis are ...,-2,-1, aligned at the right."""
    head, dots, tail = term.partition("...")
    count = dims - len(head) - len(tail) if dots else 0
    return (*map(ord, head), *range(-count, 0), *map(ord, tail))


def _matmul(node: fx.Node) -> Product:
    """Also ``bmm``."""
    left, right = _pair(node.args)
    a, b = _dims(left), _dims(right)
    first = Operand(left, (*range(2 - a, 0), *(1, 2)[-a:]))
    second = Operand(right, (*range(2 - b, 0), *(2, 3)[:b]))
    batch = range(2 - max(a, b), 0)
    return Product((first, second), (*batch, *((1,) if a > 1 else ()), *((3,) if b > 1 else ())))


def _baddbmm(node: fx.Node) -> Product:
    bias = node.args[0]
    assert isinstance(bias, fx.Node), "a sum with a tensor"
    left, right = _pair(node.args[1:])
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    result = (1, 3) if node.target is aten.addbmm.default else (0, 1, 3)
    operands = (Operand(left, (0, 1, 2)), Operand(right, (0, 2, 3)))
    return Product(operands, result, bias, alpha, beta)


def _tensordot(node: fx.Node) -> Product:
    left, right = _pair(node.args)
    a = list(range(_dims(left)))
    b = list(range(_dims(left), _dims(left) + _dims(right)))
    sums = [list(dims) if isinstance(dims, list | tuple) else [] for dims in node.args[2:4]]
    for i, j in zip(*sums, strict=True):
        b[int(str(j))] = a[int(str(i))]
    result = (*(label for label in a if label not in b), *(label for label in b if label not in a))
    return Product((Operand(left, tuple(a)), Operand(right, tuple(b))), result)


def _inner(node: fx.Node) -> Product:
    left, right = _pair(node.args)
    a, b = _dims(left), _dims(right)
    rows, columns = tuple(range(1, a)), tuple(range(a, a + b - 1))
    first, second = Operand(left, (*rows, 0)[:a]), Operand(right, (*columns, 0)[:b])
    return Product((first, second), (*rows, *columns))


def _pair(args: Sequence[Any]) -> tuple[fx.Node, fx.Node]:
    left, right = args[:2]
    assert isinstance(left, fx.Node) and isinstance(right, fx.Node), "a product of tensors"
    return left, right


READERS: dict[Any, Callable[[fx.Node], Product]] = {
    aten.einsum.default: _einsum,
    aten.bmm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.baddbmm.default: _baddbmm,
    aten.addbmm.default: _baddbmm,
    aten.tensordot.default: _tensordot,
    aten.inner.default: _inner,
}

GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
"""Names of the grouped product: rows in groups, and a matrix for each group. The second one is what
transformers registers for where torch has no kernel."""


def is_grouped(node: fx.Node) -> bool:
    """True for a grouped product."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name in GROUPED
