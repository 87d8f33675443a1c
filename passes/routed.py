"""Rows that values send to one matrix or another of a stored stack: a linear for each matrix.

Each matrix is an array of its own. How many rows go to each depends on values, so the rows are cut
by ``tensor_split`` and their number is a symbol. Every row is multiplied once.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from .canonicalize import LINEAR, stored_on_the_right
from .emit import Emitter
from .macs import MACS, count_macs

aten = torch.ops.aten


def routed(
    emit: Emitter, x: fx.Node, stack: fx.Node, ends: fx.Node, fixed: set[fx.Node]
) -> fx.Node:
    """Rows ``ends[e-1]:ends[e]`` of ``x`` [M, ..., K] times ``stack[e]`` [K, N], as [M, ..., N].

    ``ends`` [E] ascends. Rows after the last end give zeros. In coverage each linear has
    an equal share of the anchor's work.
    """
    count = int(stack.meta["val"].shape[0])
    where = emit.call(aten.to.device, ends, torch.device("cpu"), torch.int64)
    parts = _split(emit, x, where, count + 1)
    macs = count_macs(emit.anchor) // count
    results = []
    for e in range(count):
        matrix = emit.call(aten.select.int, stack, 0, e)
        fixed.add(matrix)
        weight = stored_on_the_right(emit, matrix, fixed)
        y = emit.call(LINEAR, emit.call(operator.getitem, parts, e), weight)
        y.meta[MACS] = macs
        results.append(y)
    unused = emit.call(operator.getitem, parts, count)
    result = results[0].meta["val"]
    column = emit.call(aten.zeros_like.default, emit.call(aten.select.int, unused, -1, 0))
    width = int(stack.meta["val"].shape[2])
    sizes = [*[-1] * column.meta["val"].dim(), width]
    if column.meta["val"].dtype != result.dtype:  # under autocast
        column = emit.call(aten.to.dtype, column, result.dtype)
    zeros = emit.call(aten.expand.default, emit.call(aten.unsqueeze.default, column, -1), sizes)
    whole = emit.call(aten.cat.default, [*results, zeros])
    with emit.mode:  # the groups together are all rows
        whole.meta["val"] = result.new_empty([*x.meta["val"].shape[:-1], width])
    return whole


def _split(emit: Emitter, x: fx.Node, where: fx.Node, count: int) -> fx.Node:
    value, env = x.meta["val"], emit.mode.shape_env
    assert env is not None, "torch.export has symbols"
    with emit.mode:
        parts: list[Any] = [
            value.new_empty([env.create_unbacked_symint(), *value.shape[1:]]) for _ in range(count)
        ]
    graph = emit.anchor.graph
    with graph.inserting_before(emit.anchor):
        split = aten.tensor_split.tensor_indices_or_sections
        node = graph.call_function(split, (x, where, 0))
    node.meta["val"] = parts
    return emit.named(node)
