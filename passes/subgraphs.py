"""Sub-graphs of higher-order operators, and how their nodes get into the graph around them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx

from .base import CHECKPOINT, LOOP, inherit


def subgraph(node: Any, root: torch.nn.Module) -> fx.GraphModule | None:
    """The GraphModule that a get_attr node refers to, if it does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    at: Any = root
    for part in str(node.target).split("."):
        at = getattr(at, part, None)
    return at if isinstance(at, fx.GraphModule) else None


def copy_in(
    reference: Any,
    inputs: Iterable[Any],
    before: fx.Node,
    root: torch.nn.Module,
    by: str,
    on_copy: Callable[[fx.Node], None] = lambda node: None,
) -> tuple[list[Any], bool]:
    """Copy the nodes of a sub-graph in front of ``before``.

    Args:
        reference: the get_attr node of the sub-graph.
        inputs: what its placeholders stand for.
        before: the higher-order operator; copies are in the regions that it is in.
        root: what get_attr nodes refer to.
        by: name of the pass.
        on_copy: called with each copy.

    Returns:
        What the sub-graph returns, and whether that is one value rather than a tuple.
    """
    module = subgraph(reference, root)
    assert module is not None, "a higher-order operator refers to its graph"
    known: dict[fx.Node, Any] = {}
    given = iter(inputs)
    outputs: Any = ()
    for inner in module.graph.nodes:
        if inner.op == "placeholder":
            known[inner] = next(given)
            continue
        if inner.op == "output":
            outputs = fx.node.map_arg(inner.args[0], known.__getitem__)
            continue
        with before.graph.inserting_before(before):
            copied = before.graph.node_copy(inner, known.__getitem__)
        if inner.op == "get_attr":
            copied.target = f"{reference.target}.{inner.target}"
        inherit(copied, inner, by)
        for key in (CHECKPOINT, LOOP):
            if key in before.meta:
                copied.meta[key] = before.meta[key]
        on_copy(copied)
        known[inner] = copied
    single = not isinstance(outputs, tuple | list)
    return ([outputs] if single else list(outputs)), single


def marker(before: fx.Node, function: Any, args: tuple[Any, ...], by: str) -> fx.Node:
    """A node that begins or ends a region, in front of ``before``."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(function, args)
    inherit(node, before, by)
    return node
