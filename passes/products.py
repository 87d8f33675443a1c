"""Read products of tensors as sums over labelled dims: ``bik,bkj->bij``."""

from __future__ import annotations

import math
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
    keep: tuple[int, ...] = ()
    """Dims of size 1 that the result has besides, in ascending order."""


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


def _addmv(node: fx.Node) -> Product:
    bias = node.args[0]
    assert isinstance(bias, fx.Node), "a sum with a tensor"
    left, right = _pair(node.args[1:])
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    return Product((Operand(left, (0, 1)), Operand(right, (1,))), (0,), bias, alpha, beta)


def _chain(node: fx.Node) -> Product:
    """``chain_matmul`` and ``multi_dot``: the first and the last may be vectors."""
    given = node.args[0]
    assert isinstance(given, list | tuple), "a list of tensors"
    nodes = [o for o in given if isinstance(o, fx.Node)]
    operands, last = [], len(nodes) - 1
    for i, o in enumerate(nodes):
        labels = (i, i + 1)
        if _dims(o) == 1:
            labels = (i + 1,) if i == 0 else (i,)  # type: ignore[assignment]
        operands.append(Operand(o, labels))
    ends = ((0,) if _dims(nodes[0]) == 2 else ()), ((last + 1,) if _dims(nodes[-1]) == 2 else ())
    return Product(tuple(operands), (*ends[0], *ends[1]))


def _vecdot(node: fx.Node) -> Product:
    left, right = _pair(node.args)
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", -1)
    assert isinstance(dim, int), "a dim is a number"
    dims = max(_dims(left), _dims(right))
    summed = dim if dim < 0 else dim - dims
    return Product(_aligned(left, right), tuple(i for i in range(-dims, 0) if i != summed))


def _aligned(*nodes: fx.Node) -> tuple[Operand, ...]:
    """Operands that broadcast against each other; labels are -1, -2, ... from the right."""
    return tuple(Operand(o, tuple(range(-_dims(o), 0))) for o in nodes)


def read_sum(node: fx.Node) -> Product | None:
    """``sum`` or ``mean`` over dims of an elementwise product, which is a product in disguise.

    None unless there is a dim that is summed and that both operands have.
    """
    if node.target not in _SUMS or node.kwargs.get("dtype") is not None:
        return None
    inner = node.args[0]
    if not isinstance(inner, fx.Node) or inner.target is not aten.mul.Tensor:
        return None
    left, right = inner.args[:2]
    if len(inner.users) > 1 or not (isinstance(left, fx.Node) and isinstance(right, fx.Node)):
        return None
    a, b = left.meta["val"], right.meta["val"]
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor) or a.dtype != b.dtype:
        return None
    dims = _dims(inner)
    given = node.args[1] if len(node.args) > 1 else None
    listed = given if isinstance(given, list | tuple) else [given]
    sums = {int(str(d)) % -dims or -dims for d in listed if d is not None} or set(range(-dims, 0))
    sizes = [inner.meta["val"].shape[d] for d in sums]
    both = (d for d in sums if a.dim() >= -d and b.dim() >= -d)
    if not any(_is_wide(a.shape[d]) and _is_wide(b.shape[d]) for d in both):
        return None
    alpha: Any = 1
    if node.target is aten.mean.dim:
        if not all(isinstance(size, int) and size for size in sizes):
            return None
        alpha = 1 / math.prod(sizes)
    keep = tuple(sorted(d + dims for d in sums)) if len(node.args) > 2 and node.args[2] else ()
    result = tuple(d for d in range(-dims, 0) if d not in sums)
    return Product(_aligned(left, right), result, None, alpha, keep=keep)


_SUMS = (aten.sum.dim_IntList, aten.mean.dim)


def _is_wide(size: Any) -> bool:
    return not (isinstance(size, int) and size == 1)


def read(node: fx.Node) -> Product | None:
    """The product that a node computes, if it is one of labelled dims."""
    reader = READERS.get(node.target)
    return reader(node) if reader is not None else read_sum(node)


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
    aten.addmv.default: _addmv,
    aten.chain_matmul.default: _chain,
    aten.linalg_multi_dot.default: _chain,
    aten.linalg_vecdot.default: _vecdot,
    aten.vdot.default: _inner,
}

GROUPED = ("aten::_grouped_mm", "transformers::grouped_mm_fallback")
"""Names of the grouped product: rows in groups, and a matrix for each group. The second one is what
transformers registers for where torch has no kernel."""


def is_grouped(node: fx.Node) -> bool:
    """True for a grouped product."""
    target = node.target
    return isinstance(target, torch._ops.OpOverload) and target._schema.name in GROUPED
