"""Inline the sub-graphs that capture makes of ``with`` blocks, checkpoints and control flow.

The layers inside become visible to the other passes. What a no_grad block returns is detached, so
gradients stop where they did. Where that is not enough, and for autocast and checkpointed calls, a
pair of nodes (``runtime/regions.py``) marks where the region begins and ends, and every node inside
an autocast region carries its state, so that passes know the dtype of a new node. Runs first.
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
from .base import AUTOCAST, CHECKPOINT, Pass, PassContext, PassResult, finish
from .control_flow import KINDS, flatten
from .emit import Emitter
from .subgraphs import copy_in, marker, subgraph

_HIGHER = torch.ops.higher_order
_BY = "inline-regions"


@dataclass(frozen=True, slots=True)
class InlineRegions(Pass):
    """Inline grad-mode, autocast and checkpoint regions and control flow, nested ones too."""

    name: ClassVar[str] = _BY

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        modified = False
        queue = list(module.graph.nodes)
        while queue:
            node = queue.pop()
            if node.target in _KINDS:
                queue += _inline(node, ctx)
            elif node.target in KINDS:
                found = flatten(node, ctx, _BY)
                if found is None:
                    continue
                queue += found
            else:
                continue
            modified = True
        modified |= _name_markers(module.graph)
        _tag_autocast(module.graph)
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
    emit = Emitter(node, _BY)
    begin = marker(node, region.enter, region.settings, _BY) if marked else None
    inside: list[fx.Node] = []
    results, single = copy_in(region.reference, region.inputs, node, ctx.root, _BY, inside.append)
    if begin is not None:
        marker(node, leave, (begin,), _BY)
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


def _name_markers(graph: fx.Graph) -> bool:
    """Take over the marks of regions that capture leaves flat, as it does around control flow."""
    modified = False
    begins: dict[fx.Node, fx.Node] = {}
    grads: list[tuple[bool, fx.Node | None]] = [(True, None)]
    for node in list(graph.nodes):
        made: fx.Node | None = None
        if node.target is torch.amp.autocast_mode._enter_autocast:
            made = begins[node] = marker(node, enter_autocast, node.args, _BY)
        elif node.target is torch.amp.autocast_mode._exit_autocast:
            (begin,) = node.all_input_nodes
            made = marker(node, leave, (begins[begin],), _BY)
        elif node.target is torch._C._set_grad_enabled:
            enabled = bool(node.args[0])
            if len(grads) > 1 and grads[-2][0] == enabled:
                made = marker(node, leave, (grads.pop()[1],), _BY)
            else:
                made = marker(node, enter_grad_mode, (enabled,), _BY)
                grads.append((enabled, made))
        elif node.op == "output":
            while len(grads) > 1:
                marker(node, leave, (grads.pop()[1],), _BY)
        modified |= made is not None
    raw = (
        torch.amp.autocast_mode._exit_autocast,
        torch.amp.autocast_mode._enter_autocast,
        torch._C._set_grad_enabled,
    )
    for node in reversed(list(graph.nodes)):
        if node.target in raw:
            graph.erase_node(node)
    return modified


def _tag_autocast(graph: fx.Graph) -> None:
    states: list[tuple[fx.Node, tuple[Any, ...]]] = []
    for node in graph.nodes:
        if node.target is enter_autocast:
            states.append((node, node.args))
        elif states and node.target is leave and node.args[0] is states[-1][0]:
            states.pop()
        elif states:
            node.meta[AUTOCAST] = states[-1][1]


def _mark_checkpoints(graph: fx.Graph) -> bool:
    """Begin and end a region around the nodes of each checkpointed call."""
    modified = False
    for first, last in list(_checkpointed(list(graph.nodes))):
        begin = marker(first, enter_checkpoint, (), _BY)
        marker(last.next, leave, (begin,), _BY)
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
