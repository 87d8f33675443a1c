"""Control flow as a flat graph: both branches of a ``cond``, every step of a ``scan`` or ``map``.

The layers inside become visible to the other passes. A branch is a region that runs only where it
is taken (``runtime/regions.py``). A loop is unrolled; its steps share tiles and converter ranges.
A loop whose number of steps is open, and ``while_loop``, have no flat form and stay as they are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from ..runtime.regions import enter_branch, join, leave
from .base import LOOP, PassContext
from .emit import Emitter
from .subgraphs import copy_in, marker

aten = torch.ops.aten
_HIGHER = torch.ops.higher_order


def flatten(node: fx.Node, ctx: PassContext, by: str) -> list[fx.Node] | None:
    """Put the nodes of the sub-graphs of ``node`` in its place.

    Returns:
        The new nodes; None if there is no flat form.
    """
    return _FLAT[node.target](node, ctx, by)


def _cond(node: fx.Node, ctx: PassContext, by: str) -> list[fx.Node]:
    condition, *branches, operands = node.args
    assert isinstance(operands, list | tuple), "operands come in one argument"
    made: list[fx.Node] = []
    results: list[tuple[Any, ...]] = []
    begins: list[fx.Node] = []
    for taken, reference in zip((True, False), branches, strict=True):
        begin = marker(node, enter_branch, (condition, taken), by)
        found, _ = copy_in(reference, operands, node, ctx.root, by, made.append)
        marker(node, leave, (begin,), by)
        results.append(tuple(found))
        begins.append(begin)
    merged = marker(node, join, (condition, *results, *begins), by)
    merged.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(merged)
    node.graph.erase_node(node)
    return made


def _scan(node: fx.Node, ctx: PassContext, by: str) -> list[fx.Node] | None:
    reference, carry, series, more = node.args
    return _unroll(node, reference, list(_items(carry)), _items(series), _items(more), ctx, by)


def _map(node: fx.Node, ctx: PassContext, by: str) -> list[fx.Node] | None:
    reference, series, more = node.args
    return _unroll(node, reference, [], _items(series), _items(more), ctx, by)


def _items(value: Any) -> list[Any]:
    assert isinstance(value, list | tuple), "a list of operands"
    return list(value)


def _unroll(
    node: fx.Node,
    reference: Any,
    carry: list[Any],
    series: list[Any],
    more: list[Any],
    ctx: PassContext,
    by: str,
) -> list[fx.Node] | None:
    """``carry, y = f(*carry, *x[i], *more)`` for each i; the ys are stacked."""
    steps = series[0].meta["val"].shape[0]
    if not isinstance(steps, int):
        return None
    emit = Emitter(node, by)
    made: list[fx.Node] = []
    stacks: list[list[Any]] = []
    for i in range(steps):
        place = 0

        def tag(copied: fx.Node) -> None:
            nonlocal place
            # The same place in the body, whatever the step.
            copied.meta[LOOP] = f"{node.meta.get(LOOP, '')}/{node.name}/{place}"
            place += 1
            made.append(copied)

        xs = [emit.call(aten.select.int, x, 0, i) for x in series]
        found, _ = copy_in(reference, [*carry, *xs, *more], node, ctx.root, by, tag)
        carry, ys = found[: len(carry)], found[len(carry) :]
        stacks.append(ys)
    columns = zip(*stacks, strict=True)
    results = [*carry, *(emit.call(aten.stack.default, list(column)) for column in columns)]
    for user in list(node.users):
        assert user.target is operator.getitem, "a loop returns a tuple"
        index = user.args[1]
        assert isinstance(index, int), "an index is a number"
        user.replace_all_uses_with(results[index])
        node.graph.erase_node(user)
    node.graph.erase_node(node)
    return made


_FLAT: dict[Any, Callable[[fx.Node, PassContext, str], list[fx.Node] | None]] = {
    _HIGHER.cond: _cond,
    _HIGHER.scan: _scan,
    _HIGHER.map_impl: _map,
}
KINDS = frozenset(_FLAT)
"""Operators of control flow that may have a flat form."""
