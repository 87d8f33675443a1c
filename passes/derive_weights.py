"""Collapse what a weight or bias is computed from into one node that remembers its value.

After select-analog, the weight of an analog layer may still be a subgraph of stationary nodes
(folded batch norm, weight norm, a slice of a packed projection). Each such subgraph becomes a
``call_module`` of a DerivedWeight, which evaluates it only when one of its sources changed. Equal
expressions share one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from ..runtime.derived import DerivedWeight
from ..runtime.names import free_name
from .base import META, STORED, Pass, PassContext, PassResult, finish, inherit
from .select_analog import Analog
from .stationary import expression_key, leaves, stationary_nodes

HOME = "_analog"
"""Where the compiler keeps its own modules in the model's tree."""


def add_constant(root: torch.nn.Module, name: str, value: torch.Tensor | torch.nn.Module) -> str:
    """Keep a constant that is in none of the model's tables; returns its path."""
    home = root.get_submodule(f"{HOME}.constants")
    free = free_name(name, {**home._buffers, **home._modules})
    if isinstance(value, torch.nn.Module):
        home.add_module(free, value)
    else:
        home.register_buffer(free, value, persistent=False)
    return f"{HOME}.constants.{free}"


@dataclass(frozen=True, slots=True)
class DeriveWeights(Pass):
    """Turn stationary expressions under layers into DerivedWeight modules."""

    name: ClassVar[str] = "derive-weights"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place and add modules under ``ctx.root``."""
        fixed = stationary_nodes(module.graph)
        known: dict[fx.Node, str] = {}
        made: dict[str, fx.Node] = {}
        modified = False
        for node in list(module.graph.nodes):
            record = node.meta.get(META)
            if isinstance(record, Analog):
                name, places = record.array, {1: "weight", 2: "bias"}
            elif STORED in node.meta:
                name, places = node.name, {node.meta[STORED]: "operand"}
            else:
                continue
            for position, what in places.items():
                operand = node.args[position] if len(node.args) > position else None
                if not isinstance(operand, fx.Node) or operand not in fixed:
                    continue
                if operand.op == "get_attr":
                    continue
                key = expression_key(operand, known)
                if key not in made:
                    made[key] = _collapse(operand, node, f"{name}.{what}", key, ctx)
                node.update_arg(position, made[key])
                modified = True
        return finish(module, modified)


def _collapse(result: fx.Node, user: fx.Node, name: str, key: str, ctx: PassContext) -> fx.Node:
    sources = sorted(leaves(result))
    target = _module_for(result, sources, name, key, ctx)
    graph = user.graph
    with graph.inserting_before(user):
        name = "derived_" + target.rpartition(".")[2]
        node = graph.create_node("call_module", target, tuple(sources), {}, name)
    node.meta["val"] = result.meta["val"]
    inherit(node, result, DeriveWeights.name)
    return node


def _module_for(
    result: fx.Node, sources: list[fx.Node], name: str, key: str, ctx: PassContext
) -> str:
    """Path of the module of this expression; made at its first use in any graph of the model."""
    if key in ctx.derived:
        return ctx.derived[key]
    home = ctx.root.get_submodule(f"{HOME}.derived")
    free = free_name(name, home._modules)
    home.add_module(free, DerivedWeight(_expression(result, sources)))
    ctx.derived[key] = f"{HOME}.derived.{free}"
    return ctx.derived[key]


def _expression(result: fx.Node, sources: list[fx.Node]) -> fx.GraphModule:
    """The subgraph below ``result`` as a function of ``sources``."""
    needed, stack = {result}, [result]
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg not in needed:
                needed.add(arg)
                stack.append(arg)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for source in sources:
        copies[source] = graph.placeholder(source.name)
        copies[source].meta["val"] = source.meta["val"]
    for node in result.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return fx.GraphModule(torch.nn.Module(), graph, "WeightExpression")
