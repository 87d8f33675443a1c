"""Inline the sub-graphs that capture makes of ``with`` blocks and of checkpointed calls.

The layers inside become visible to the other passes. What a no_grad block returns is detached, so
gradients stop where they did. Where that is not enough, and for autocast and checkpointed calls, a
pair of nodes (``runtime/regions.py``) marks where the region begins and ends, and every node inside
an autocast region carries its state, so that passes know what dtype a new node computes. Runs first.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..runtime.regions import (
    ENTERS,
    enter_autocast,
    enter_checkpoint,
    enter_grad_mode,
    leave,
)
from .base import AUTOCAST, CHECKPOINT, Pass, PassContext, PassResult, finish, inherit
from .emit import Emitter

_HIGHER = torch.ops.higher_order


@dataclass(frozen=True, slots=True)
class InlineRegions(Pass):
    """Inline grad-mode, autocast and checkpoint regions, nested ones too."""

    name: ClassVar[str] = "inline-regions"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        modified = False
        queue = [node for node in module.graph.nodes if node.target in _KINDS]
        while queue:
            queue += _inline(queue.pop(), ctx)
            modified = True
        modified |= _mark_checkpoints(module.graph)
        return finish(module, modified)


@dataclass(frozen=True, slots=True)
class _Region:
    """How a higher-order operator runs its sub-graph."""

    reference: Any
    inputs: tuple[Any, ...]
    enter: Callable[..., Any] | None = None
    """Function of ``runtime/regions.py`` that begins it; None: nothing does."""
    settings: tuple[Any, ...] = ()


def _autocast(node: fx.Node) -> _Region:
    device, dtype, enabled, cache, reference, *inputs = node.args
    settings = (device, dtype, enabled, cache)
    # Where there is no such device, torch.autocast does nothing but warn.
    usable = device != "cuda" or torch.cuda.is_available()
    return _Region(reference, tuple(inputs), enter_autocast if usable else None, settings)


def _grad_mode(node: fx.Node) -> _Region:
    enabled, reference, *inputs = node.args
    return _Region(reference, tuple(inputs), enter_grad_mode, (enabled,))


def _checkpoint(node: fx.Node) -> _Region:
    reference, *inputs = node.args
    return _Region(reference, tuple(inputs), enter_checkpoint)


def _hints(node: fx.Node) -> _Region:
    reference, inputs, *_ = node.args
    assert isinstance(inputs, list | tuple), "inputs come in one argument"
    return _Region(reference, tuple(inputs))


_KINDS: dict[Any, Callable[[fx.Node], _Region]] = {
    _HIGHER.wrap_with_autocast: _autocast,
    _HIGHER.wrap_with_set_grad_enabled: _grad_mode,
    _HIGHER.tag_activation_checkpoint: _checkpoint,
    _HIGHER.hints_wrapper: _hints,
}


def subgraph(node: Any, root: torch.nn.Module) -> fx.GraphModule | None:
    """The GraphModule that a get_attr node refers to, if it does."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    at: Any = root
    for part in str(node.target).split("."):
        at = getattr(at, part, None)
    return at if isinstance(at, fx.GraphModule) else None


def writes(node: fx.Node, root: torch.nn.Module) -> bool:
    """Whether ``node`` is a region that may write something in place."""
    if node.target not in _KINDS:
        return False
    module = subgraph(_KINDS[node.target](node).reference, root)
    return module is not None and _writes(module.graph)


def _inline(node: fx.Node, ctx: PassContext) -> list[fx.Node]:
    """Put the nodes of a region in the place of ``node``; returns the regions inside."""
    region = _KINDS[node.target](node)
    module = subgraph(region.reference, ctx.root)
    assert module is not None, "a region refers to its graph"
    detached = region.enter is enter_grad_mode and not _writes(module.graph)
    marked = region.enter is not None and not detached
    state = region.settings if marked and region.enter is enter_autocast else None
    emit = Emitter(node, InlineRegions.name)
    begin = _marker(node, region.enter, region.settings) if marked else None
    known: dict[fx.Node, Any] = {}
    given = iter(region.inputs)
    outputs: Any = ()
    inside: list[fx.Node] = []
    for inner in module.graph.nodes:
        if inner.op == "placeholder":
            known[inner] = next(given)
        elif inner.op == "output":
            outputs = fx.node.map_arg(inner.args[0], known.__getitem__)
        else:
            with node.graph.inserting_before(node):
                copied = node.graph.node_copy(inner, known.__getitem__)
            if inner.op == "get_attr":
                copied.target = f"{region.reference.target}.{inner.target}"
            inherit(copied, inner, InlineRegions.name)
            outer = node.meta.get(AUTOCAST) if state is None else state
            if outer is not None:
                copied.meta[AUTOCAST] = outer
            if CHECKPOINT in node.meta:
                copied.meta[CHECKPOINT] = node.meta[CHECKPOINT]
            if copied.target in _KINDS:
                inside.append(copied)
            known[inner] = copied
    if begin is not None:
        _marker(node, leave, (begin,))
    single = not isinstance(outputs, tuple | list)
    results = [outputs] if single else list(outputs)
    if detached and not region.settings[0]:
        results = [
            emit.call(torch.ops.aten.detach.default, value)
            if isinstance(value, fx.Node) and isinstance(value.meta["val"], torch.Tensor)
            else value
            for value in results
        ]
    if single:
        node.replace_all_uses_with(results[0])
    for user in list(node.users):
        assert user.target is operator.getitem, "a region returns a tuple"
        index = user.args[1]
        assert isinstance(index, int), "an index is a number"
        user.replace_all_uses_with(results[index])
        node.graph.erase_node(user)
    node.graph.erase_node(node)
    return inside


def _writes(graph: fx.Graph) -> bool:
    """Whether the results alone do not tell what has a gradient inside.

    A write in place may need its no_grad (power iterations); a region may have gradients again.
    """
    return any(
        isinstance(inner.target, torch._ops.HigherOrderOperator)
        or isinstance(inner.target, torch._ops.OpOverload)
        and inner.target._schema.is_mutable
        for inner in graph.nodes
    )


def _marker(before: fx.Node, function: Any, args: tuple[Any, ...]) -> fx.Node:
    with before.graph.inserting_before(before):
        node = before.graph.call_function(function, args)
    inherit(node, before, InlineRegions.name)
    return node


def _mark_checkpoints(graph: fx.Graph) -> bool:
    """Begin and end a region around the nodes of each checkpointed call."""
    modified = False
    for first, last in list(_checkpointed(list(graph.nodes))):
        begin = _marker(first, enter_checkpoint, ())
        _marker(last.next, leave, (begin,))
        modified = True
    return modified


def _checkpointed(nodes: list[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """First and last node of each run of nodes that one checkpointed call made."""
    place = {node: i for i, node in enumerate(nodes)}
    spans: dict[int, list[int]] = {}
    for i, node in enumerate(nodes):
        if CHECKPOINT in node.meta:
            span = spans.setdefault(node.meta[CHECKPOINT], [i, i])
            span[1] = i
    for start, stop in spans.values():
        # A mode that begins inside ends inside, and the other way round.
        for i in range(start, stop + 1):
            if nodes[i].target is leave:
                begin = nodes[i].args[0]
                assert isinstance(begin, fx.Node), "a region that ends was begun"
                start = min(start, place[begin])
        ends = [place[u] for i in range(start, stop + 1) if nodes[i].target in ENTERS
                for u in nodes[i].users]  # fmt: skip
        yield nodes[start], nodes[max([stop, *ends])]
