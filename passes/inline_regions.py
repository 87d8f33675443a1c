"""Inline the sub-graphs that torch.export makes of ``with torch.no_grad():`` blocks.

The layers inside become visible to the other passes. What a no_grad block returns is detached, so
gradients stop where they did. Runs first.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from .base import Pass, PassContext, PassResult, finish, inherit
from .emit import Emitter

GRAD_REGION = torch.ops.higher_order.wrap_with_set_grad_enabled


@dataclass(frozen=True, slots=True)
class InlineRegions(Pass):
    """Inline every ``wrap_with_set_grad_enabled`` region, nested ones too."""

    name: ClassVar[str] = "inline-regions"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        modified = False
        while regions := [n for n in module.graph.nodes if _can_be_inlined(n, ctx)]:
            for node in regions:
                _inline(node, ctx)
            modified = True
        return finish(module, modified)


def _can_be_inlined(node: fx.Node, ctx: PassContext) -> bool:
    if node.target is not GRAD_REGION:
        return False
    region = subgraph(node.args[1], ctx.root)
    assert region is not None, "a region refers to its graph"
    # What writes in place (the power iteration of spectral norm) may need its no_grad.
    return not any(
        isinstance(inner.target, torch._ops.OpOverload) and inner.target._schema.is_mutable
        for inner in region.graph.nodes
    )


def subgraph(node: Any, root: torch.nn.Module) -> fx.GraphModule | None:
    """The GraphModule that a get_attr node refers to, if it does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    at: Any = root
    for part in str(node.target).split("."):
        at = getattr(at, part, None)
    return at if isinstance(at, fx.GraphModule) else None


def _inline(node: fx.Node, ctx: PassContext) -> None:
    enabled, reference, *inputs = node.args
    region = subgraph(reference, ctx.root)
    assert region is not None, "a region refers to its graph"
    emit = Emitter(node, InlineRegions.name)
    known: dict[fx.Node, Any] = {}
    given = iter(inputs)
    outputs: Any = ()
    for inner in region.graph.nodes:
        if inner.op == "placeholder":
            known[inner] = next(given)
        elif inner.op == "output":
            outputs = fx.node.map_arg(inner.args[0], known.__getitem__)
        else:
            with node.graph.inserting_before(node):
                copied = node.graph.node_copy(inner, known.__getitem__)
            if inner.op == "get_attr":
                value = getattr(region, str(inner.target))
                assert isinstance(value, fx.GraphModule), "a nested region"
                copied.target = f"{_path(reference)}.{inner.target}"
            inherit(copied, inner, InlineRegions.name)
            known[inner] = copied
    results = list(outputs) if isinstance(outputs, tuple | list) else [outputs]
    if not enabled:
        results = [
            emit.call(torch.ops.aten.detach.default, value)
            if isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor)
            else value
            for value in results
        ]
    for user in list(node.users):
        assert user.target is operator.getitem, "a region returns a tuple"
        index = user.args[1]
        assert isinstance(index, int), "an index is a number"
        user.replace_all_uses_with(results[index])
        node.graph.erase_node(user)
    node.graph.erase_node(node)


def _path(reference: Any) -> str:
    return str(reference.target)
