"""Stored tensors that a graph copies along some dims, most often one for each sample of a batch.

``w.expand(batch, -1, -1)`` and ``w.repeat(batch, 1, 1)`` hold one matrix, however many samples
there are. With a dynamic batch they are not even stationary: their size depends on the input. A
product whose stored operand is such a copy needs the original only: its dim of 1 is broadcast.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .emit import Emitter
from .stationary import is_pure, written_nodes

aten = torch.ops.aten
Dims = frozenset[int]
_NONE: Dims = frozenset()
_EXPANDS = {aten.expand.default, aten.expand_as.default}
_VIEWS = {
    aten.view.default, aten.reshape.default, aten._unsafe_view.default,
    aten.flatten.using_ints, aten.unflatten.int,
}  # fmt: skip
_SAMES = {aten.clone.default, aten.contiguous.default, aten.detach.default, aten.dropout.default}
_PERMUTES = {aten.permute.default, aten.transpose.int, aten.t.default, aten.mT.default}
_WHOLE = [[], [None], [0], *([start, end] for start in (None, 0) for end in (None, sys.maxsize))]
"""Start and end of a slice that leaves nothing out."""
_SIZED = {*_EXPANDS, *_VIEWS, aten.repeat.default}


class Copies:
    """The nodes of a graph that are a stored tensor, copied along some of their dims.

    Args:
        graph: any graph.
        fixed: its stationary nodes; those that ``original`` makes are added.
    """

    def __init__(self, graph: fx.Graph, fixed: set[fx.Node]) -> None:
        self.fixed = fixed
        self.dims: dict[fx.Node, Dims] = {}
        self._originals: dict[fx.Node, fx.Node] = {}
        self._written = written = written_nodes(graph)
        for node in graph.nodes:
            if node.op != "call_function" or node in written or not is_pure(node):
                continue
            rule = _rule(node.target)
            if rule is not None and not node.kwargs and self._is_stored(node):
                dims = rule(node, self.dims)
                if dims:
                    self.dims[node] = dims

    def __contains__(self, node: object) -> bool:
        return node in self.dims

    def original(self, node: fx.Node, emit: Emitter) -> fx.Node:
        """What ``node`` is copied from: the same with size 1 in each of ``dims[node]``."""
        if node not in self.dims:
            return node
        if node not in self._originals:
            self._originals[node] = self._rebuilt(node, emit)
            self.fixed.add(self._originals[node])
        return self._originals[node]

    def period(self, node: fx.Node, emit: Emitter, dim: int = 0) -> fx.Node | None:
        """What ``node`` repeats as a whole along ``dim``, copy behind copy, if it does.

        ``w.repeat(batch, 1, 1)`` of [heads, ., .] gives ``w``; so does a copy for each sample whose
        dim has been merged with that of the heads.
        """
        if node.op != "call_function" or not is_pure(node) or node in self._written:
            return None
        target: Any = node.target
        source = node.all_input_nodes[0] if node.all_input_nodes else node
        if target is aten.repeat.default:
            counts: Any = node.args[1]
            alone = all(is_one(count) for i, count in enumerate(counts) if i != dim)
            stack = source in self.fixed and len(counts) == _rank(source) and alone
            return source if stack and not is_one(counts[dim]) else None
        if target in _VIEWS:
            sizes = _merged(node, dim) if self.dims.get(source, _NONE) == {dim} else None
            if sizes is None:
                return None
            return emit.call(aten.reshape.default, self.original(source, emit), sizes)
        place = dim
        if target in _PERMUTES:
            place = _order(node)[dim]
        elif target not in _SAMES:
            if torch.Tag.pointwise not in getattr(target, "tags", ()) or node.kwargs:
                return None
            wide = [o for o in node.all_input_nodes if not self._is_broadcast(o, node, dim)]
            if len(wide) != 1 or _rank(wide[0]) != _rank(node):
                return None
            source = wide[0]
        base = self.period(source, emit, place)
        if base is None:
            return None
        swap = {source: base}
        return emit.call(target, *fx.node.map_arg(node.args, lambda arg: swap.get(arg, arg)))

    def _is_broadcast(self, operand: fx.Node, node: fx.Node, dim: int) -> bool:
        """Whether a stored operand of a pointwise ``node`` is the same all along ``dim``."""
        if operand not in self.fixed or not isinstance(operand.meta.get("val"), torch.Tensor):
            return False
        place = dim - _rank(node) + _rank(operand)
        return place < 0 or is_one(_shape(operand)[place])

    def _is_stored(self, node: fx.Node) -> bool:
        given = node.all_input_nodes
        if node.target in _SIZED:
            given = given[:1]  # the rest says how large the result is
        return bool(given) and all(arg in self.fixed or arg in self.dims for arg in given)

    def _rebuilt(self, node: fx.Node, emit: Emitter) -> fx.Node:
        target: Any = node.target
        if target in _EXPANDS or target is aten.repeat.default:
            (source, *_) = node.args
            assert isinstance(source, fx.Node), "a copy of a tensor"
            original = self.original(source, emit)
            for _ in range(_rank(node) - _rank(original)):
                original = emit.call(aten.unsqueeze.default, original, 0)
            return original
        if target in _VIEWS:
            (source, *_) = node.args
            assert isinstance(source, fx.Node), "a view of a tensor"
            sizes = [1 if dim in self.dims[node] else size for dim, size in enumerate(_shape(node))]
            return emit.call(aten.reshape.default, self.original(source, emit), sizes)
        args = fx.node.map_arg(node.args, lambda arg: self.original(arg, emit))
        return emit.call(target, *args)


Rule = Callable[[fx.Node, dict[fx.Node, Dims]], Dims]


def _rule(target: Any) -> Rule | None:
    rule = _RULES.get(target)
    if rule is None and torch.Tag.pointwise in getattr(target, "tags", ()):
        return _pointwise
    return rule


def _shape(node: Any) -> list[Any]:
    return list(node.meta["val"].shape)


def _rank(node: Any) -> int:
    return len(_shape(node))


def is_one(size: Any) -> bool:
    """True for a size that is known to be 1."""
    return isinstance(size, int) and size == 1


def _expand(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    source = node.args[0]
    assert isinstance(source, fx.Node), "a copy of a tensor"
    before, after = _shape(source), _shape(node)
    lead = len(after) - len(before)
    grown = {
        dim
        for dim, size in enumerate(after)
        if not is_one(size) and (dim < lead or is_one(before[dim - lead]))
    }
    return frozenset(grown | {dim + lead for dim in known.get(source, _NONE)})


def _repeat(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    source, counts = node.args
    assert isinstance(source, fx.Node) and isinstance(counts, list | tuple), "a copy of a tensor"
    lead = len(counts) - _rank(source)
    kept = known.get(source, _NONE)
    for dim, size in enumerate(_shape(source)):
        single = is_one(size) or dim in kept
        if not single and not is_one(counts[dim + lead]):
            return _NONE  # the copies lie behind one another in one dim
    return _expand(node, known)


def _pointwise(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    """A dim is a copy if it is one, or is broadcast, in every operand."""
    if not isinstance(node.meta.get("val"), torch.Tensor):
        return _NONE
    rank, found = _rank(node), set[int]()
    operands = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
    for dim, size in enumerate(_shape(node)):
        if is_one(size):
            continue
        places = ((a, dim - rank + _rank(a)) for a in operands)
        if all(d < 0 or d in known.get(a, _NONE) or is_one(_shape(a)[d]) for a, d in places):
            found.add(dim)
    return frozenset(found)


def _same(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    return known.get(node.args[0], _NONE)  # type: ignore[arg-type]


def _linear(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    x, *others = node.all_input_nodes
    dims = known.get(x, _NONE)
    shared = x in others or any(other in known for other in others)
    return _NONE if shared or _rank(x) - 1 in dims else dims


def _layer_norm(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    x, *others = node.all_input_nodes
    shape = node.args[1]
    dims = known.get(x, _NONE)
    assert isinstance(shape, list | tuple), "a shape to normalise over"
    inside = any(dim >= _rank(x) - len(shape) for dim in dims)
    return _NONE if inside or any(other in known for other in others) else dims


def _unsqueeze(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    source, at = node.args
    place = int(str(at)) % _rank(node)
    return frozenset(dim + (dim >= place) for dim in known.get(source, _NONE))  # type: ignore[arg-type]


def _part(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    """``select`` and ``slice`` of a dim that is not copied, or a slice that takes all of it."""
    dims = known.get(node.args[0], _NONE)  # type: ignore[arg-type]
    at = int(str(node.args[1] if len(node.args) > 1 else 0)) % _rank(node.args[0])
    whole = node.target is aten.slice.Tensor and list(node.args[2:]) in _WHOLE
    if at in dims and not whole:
        return _NONE
    gone = node.target is aten.select.int
    return frozenset(dim - (gone and dim > at) for dim in dims)


def _permute(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    dims = known.get(node.args[0], _NONE)  # type: ignore[arg-type]
    return frozenset(new for new, old in enumerate(_order(node)) if old in dims)


def _order(node: fx.Node) -> list[int]:
    """Which dim of its operand each dim of a permutation is."""
    rank = _rank(node)
    order = list(range(rank))
    if node.target is aten.permute.default:
        order = [int(dim) % rank for dim in node.args[1]]  # type: ignore[union-attr,arg-type]
    elif node.target is aten.transpose.int:
        a, b = (int(str(dim)) % rank for dim in node.args[1:3])
        order[a], order[b] = order[b], order[a]
    else:
        order[-2:] = order[:-3:-1]
    return order


def _merged(node: fx.Node, dim: int) -> list[int] | None:
    """Shape of one copy, if a view merges the copied ``dim`` with what comes after it."""
    before, after = _shape(node.args[0]), _shape(node)
    lead, rest = after[:dim], after[dim + 1 :]
    if len(after) <= dim or len(before) <= dim:
        return None
    if not all(isinstance(size, int) for size in (*lead, *rest, *before[:dim], *before[dim + 1 :])):
        return None
    one, part = math.prod(before[dim + 1 :]), math.prod(rest)
    if lead != before[:dim] or not part or one % part or one == part:
        return None
    whole = statically_known_true(after[dim] == before[dim] * (one // part))
    return [*lead, one // part, *rest] if whole else None


def _view(node: fx.Node, known: dict[fx.Node, Dims]) -> Dims:
    """Copied dims stay what they are if they lead, and the view leaves the leading dims alone."""
    source = node.args[0]
    dims = known.get(source, _NONE)  # type: ignore[arg-type]
    if not dims:
        return _NONE
    lead = max(dims) + 1
    before, after = _shape(source), _shape(node)
    kept = len(after) >= lead and all(
        statically_known_true(a == b) for a, b in zip(before[:lead], after[:lead], strict=True)
    )
    return dims if kept and all(isinstance(size, int) for size in after[lead:]) else _NONE


_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_EXPANDS, _expand),
    aten.repeat.default: _repeat,
    **dict.fromkeys(_SAMES, _same),
    aten.linear.default: _linear,
    aten.layer_norm.default: _layer_norm,
    aten.unsqueeze.default: _unsqueeze,
    **dict.fromkeys((aten.select.int, aten.slice.Tensor), _part),
    **dict.fromkeys(_PERMUTES, _permute),
    **dict.fromkeys(_VIEWS, _view),
}
