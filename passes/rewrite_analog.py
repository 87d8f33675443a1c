"""Replace every mapped layer by its analogc:: operator.

The operator carries its settings as text and the key of its tile array; converter ranges become
buffers beside the model. Runs after map-tiles and derive-weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from ..runtime.derived import DerivedWeight
from ..runtime.mapping import TileMapping
from ..runtime.names import free_name
from ..runtime.ops import NAMES
from ..runtime.ranges import RangeTable
from ..runtime.spec import LayerSpec
from ..runtime.tiles import TileArray
from .base import LOOP, META, Pass, PassContext, PassResult, finish, inherit
from .derive_weights import HOME
from .emit import fake_mode, take_place

WEIGHTS = {(getattr(torch.ops.analogc, name).default, 1) for name in NAMES}
"""Operators of layers, with the position of their weight."""


@dataclass(frozen=True, slots=True)
class RewriteAnalog(Pass):
    """Every ``aten`` layer with a TileMapping becomes the ``analogc`` operator of its name."""

    name: ClassVar[str] = "rewrite-analog"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place; makes tile arrays and range buffers."""
        modified = False
        uses: dict[str, int] = {}
        loops: dict[tuple[str, str], int] = {}
        for node in list(module.graph.nodes):
            mapping = node.meta.get(META)
            if isinstance(mapping, TileMapping):
                use = loops.get((mapping.array, node.meta.get(LOOP, "")))
                if use is None:
                    use = uses[mapping.array] = uses.get(mapping.array, 0) + 1
                if LOOP in node.meta:
                    loops[mapping.array, node.meta[LOOP]] = use
                _rewrite(node, mapping, use, ctx)
                modified = True
        for node in module.graph.find_nodes(op="call_module"):
            _free_memory(node, ctx)
        return finish(module, modified)


def _free_memory(node: fx.Node, ctx: PassContext) -> None:
    """Let computed weights take no memory of their own: only the tiles hold them."""
    derived = ctx.root.get_submodule(str(node.target))
    places = [(user.target, user.args.index(node)) for user in node.users]
    if isinstance(derived, DerivedWeight) and all(place in WEIGHTS for place in places):
        derived.keeps = "nothing" if ctx.target.is_ideal else "stand-in"


def _rewrite(node: fx.Node, mapping: TileMapping, use: int, ctx: PassContext) -> None:
    spec = LayerSpec.of(ctx.target, mapping.row_bounds, mapping.all_col_bounds)
    weight = node.args[1]
    assert isinstance(weight, fx.Node), "a layer has a tensor weight"
    array = ctx.arrays.get(mapping.array)
    if array is None:
        groups = 1 if mapping.op == "linear" else int(str(node.args[6]))
        key = f"{ctx.uid}/{mapping.array}"
        array = TileArray(mapping.array, key, spec, ctx.noise, ctx.auto_sync, groups)
        ctx.arrays[mapping.array] = array
    graph = node.graph
    mode = fake_mode(graph)
    table = ctx.root.get_submodule(f"{HOME}.ranges")
    assert isinstance(table, RangeTable), "the root holds a range table"
    label = mapping.array if use == 1 else f"{mapping.array}@{use}"
    place = f"{ctx.frame}:{label}" if ctx.frame else label
    if place not in ctx.range_names:
        # W~2 and W@2 are different things, and so may a.b and a_b be.
        ctx.range_names[place] = free_name(label, ctx.range_names.values())
    buffers = table.add(
        ctx.range_names[place], spec, mapping.weight_shape[0], weight.meta["val"].device
    )
    ranges: list[fx.Node | None] = []
    with graph.inserting_before(node):
        for buffer in buffers:
            ranges.append(None if buffer is None else graph.get_attr(f"{HOME}.ranges.{buffer}"))
            if ranges[-1] is not None:
                ranges[-1].meta["val"] = _beside(weight, table.get_buffer(str(buffer)), mode)
        args = list(node.args) + [None] * (3 - len(node.args))
        op = getattr(torch.ops.analogc, mapping.op).default
        new = graph.call_function(op, (*args[:3], *ranges, *args[3:], spec.to_text(), array.key))
    new.meta["val"] = node.meta["val"]
    new.meta[META] = mapping
    inherit(new, node, RewriteAnalog.name)
    take_place(new, node)


def _beside(weight: fx.Node, buffer: Tensor, mode: FakeTensorMode) -> Tensor:
    """Fake tensor of a range, on the device of its weight: ranges are never on the meta device."""
    device = weight.meta["val"].device
    if device.type != "meta":
        return mode.from_tensor(buffer)
    with mode:
        return torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
