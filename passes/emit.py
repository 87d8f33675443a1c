"""Make graph nodes that carry their fake tensor from the start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .base import AUTOCAST, inherit


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the graph's fake tensors belong to."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode()


def forget_real_tensors(graph: fx.Graph) -> None:
    """Drop the mode's weak references to parameters: torch swaps no tensor that has any."""
    converter = fake_mode(graph).fake_tensor_converter.meta_converter
    converter.tensor_memo.clear()
    converter.describer.lookup_tensor.clear()


def value_of(arg: Any) -> Any:
    """Example value of an argument: a node's fake tensor, anything else as it is."""
    return arg.meta["val"] if isinstance(arg, fx.Node) else arg


def autocast_of(node: fx.Node) -> AbstractContextManager[Any]:
    """The autocast region that ``node`` is in, as a context."""
    state = node.meta.get(AUTOCAST)
    return nullcontext() if state is None else torch.autocast(*state)


class Emitter:
    """Inserts call_function nodes before an anchor, in the anchor's name."""

    def __init__(self, anchor: fx.Node, by: str) -> None:
        self.anchor = anchor
        self.by = by
        self.mode = fake_mode(anchor.graph)

    def call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        """New node ``target(*args)``."""
        graph = self.anchor.graph
        with graph.inserting_before(self.anchor):
            node = graph.call_function(target, args)
        with autocast_of(self.anchor):
            node.meta["val"] = evaluate(self.mode, target, args)
        return self.named(node)

    def named(self, node: fx.Node) -> fx.Node:
        """``node``, with where it came from."""
        inherit(node, self.anchor, self.by)
        return node

    def replace(self, new: fx.Node) -> None:
        """Let ``new`` take the anchor's place."""
        take_place(new, self.anchor)


def take_place(new: fx.Node, old: fx.Node) -> None:
    """Erase ``old`` and give ``new`` its users and its name."""
    graph, name = old.graph, old.name
    old.replace_all_uses_with(new)
    graph.erase_node(old)
    graph._graph_namespace._rename_object(new, name)
    new.name = name


def evaluate(mode: FakeTensorMode, target: Callable[..., Any], args: Any) -> Any:
    """Result of ``target`` on the fake values of ``args``."""
    # Some operators take sizes that are symbols by their Python implementation only.
    symbols = enable_python_dispatcher() if mode.shape_env is not None else nullcontext()
    with symbols, mode, torch.no_grad():
        return target(*fx.node.map_arg(args, value_of))
