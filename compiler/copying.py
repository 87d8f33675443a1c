"""Deep copies: a copied model has tensors, tile arrays and keys of its own."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping
from typing import Any

from torch import fx

from ..passes.base import META, PassContext
from ..passes.verify import OPS
from ..runtime.tiles import TileArray
from .build import Program
from .holder import Holder


def new_uid() -> str:
    """Prefix for tile array keys that no other model has, in any process."""
    return secrets.token_hex(6)


def copy_context(ctx: PassContext, root: Holder) -> PassContext:
    """Context of a copy whose tensors are in ``root``; its tile arrays hold nothing yet."""
    new = copy.copy(ctx)
    new.root, new.uid = root, new_uid()
    new.noise = copy.copy(ctx.noise)
    for name in ("array_names", "derived", "range_names", "first_tile"):
        setattr(new, name, dict(getattr(ctx, name)))
    new.arrays = {
        name: TileArray(
            name, f"{new.uid}/{name}", array.spec, new.noise, array.auto_sync, array.groups,
            chip=array.chip, times_programmed=array.times_programmed, calls=array.calls,
        )
        for name, array in ctx.arrays.items()
    }  # fmt: skip
    return new


def copy_programs(programs: Mapping[Any, Program], ctx: PassContext) -> dict[Any, Program]:
    """The same graphs on the tile arrays of ``ctx``."""
    return {
        mode: Program(
            _with_keys(program.graph, ctx.arrays), program.signature, program.history,
            program.capture_seconds, program.passes_seconds,
        )
        for mode, program in programs.items()
    }  # fmt: skip


def _with_keys(graph: fx.Graph, arrays: dict[str, TileArray]) -> fx.Graph:
    new = copy.deepcopy(graph)
    for node in new.nodes:
        if node.op == "call_function" and node.target in OPS:
            node.args = (*node.args[:-1], arrays[node.meta[META].array].key)
    return new
