"""Cut every selected weight into tiles and give the tiles their numbers.

K (inputs) is cut into row blocks of at most ``tile.rows``, N (outputs) into column blocks of at
most the columns of a tile over those of a weight, whose bit slices are side by side. Each group of
a conv is an array of its own. One weight that is used at several places has one array, and one set
of tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import fx

from ..runtime.mapping import TileMapping
from .base import META, Pass, PassContext, PassResult, source_name
from .select_analog import Analog


@dataclass(frozen=True, slots=True)
class MapTiles(Pass):
    """Replace every Analog record by a TileMapping."""

    split: Literal["balanced", "full"] = "balanced"
    """``balanced``: blocks of equal size. ``full``: full tiles first, the rest in the last."""
    name: ClassVar[str] = "map-tiles"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Annotate ``module``; the graph itself is left as it is."""
        for node in module.graph.nodes:
            record = node.meta.get(META)
            if isinstance(record, Analog):
                node.meta[META] = self._map(node, record, ctx)
        return PassResult(module, False)

    def _map(self, node: fx.Node, record: Analog, ctx: PassContext) -> TileMapping:
        tile, info = ctx.target.tile, record.info
        shape = torch.Size(info.weight_shape)
        inputs, taps = shape[1:].numel(), shape[2:].numel()
        outputs = shape[0] // info.groups
        full = self.split == "full"
        rows = row_bounds(inputs, taps, tile.rows, full)
        columns_per_weight = ctx.target.columns_per_weight
        cols = bounds(outputs, tile.cols // columns_per_weight, full)
        if record.array not in ctx.first_tile:
            ctx.first_tile[record.array] = ctx.tiles
            ctx.tiles += info.groups * (len(rows) - 1) * (len(cols) - 1)
        return TileMapping(
            layer=info.name,
            array=record.array,
            op=info.op,
            out_features=outputs,
            in_features=inputs,
            groups=info.groups,
            row_bounds=rows,
            col_bounds=cols,
            first_tile=ctx.first_tile[record.array],
            tile_rows=tile.rows,
            tile_cols=tile.cols,
            columns_per_weight=columns_per_weight,
            weight_shape=info.weight_shape,
            macs=info.macs,
            module=info.module,
            source=source_name(node),
        )


def bounds(size: int, most: int, full: bool = False) -> tuple[int, ...]:
    """Boundaries of the fewest blocks of at most ``most`` that cover ``size``.

    Balanced blocks differ by at most one; with ``full`` all but the last hold ``most``.
    """
    size = max(size, 1)
    count = -(-size // most)
    if full:
        return (*range(0, size, most), size)
    return tuple(size * i // count for i in range(count + 1))


def row_bounds(inputs: int, taps: int, most: int, full: bool = False) -> tuple[int, ...]:
    """Row blocks of a kernel of ``taps`` taps a channel.

    Boundaries lie between channels where that takes no more blocks: such a block is a plain
    convolution over its channels.
    """
    flat = bounds(inputs, most, full)
    if taps == 1 or taps > most:
        return flat
    channels = bounds(inputs // taps, most // taps, full)
    return tuple(taps * c for c in channels) if len(channels) == len(flat) else flat
