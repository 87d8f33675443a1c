"""The rules of a legal graph, as code. Runs after every pass in tests and with ``check=True``."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from ..runtime.errors import VerifyError
from ..runtime.mapping import TileMapping
from ..runtime.ops import NAMES
from ..runtime.regions import ENTERS, kept_modes, leave
from ..runtime.spec import parse
from .base import META, Pass, PassContext, PassResult, source_line
from .emit import evaluate, fake_mode

OPS = {getattr(torch.ops.analogc, name).default: name for name in NAMES}


@dataclass(frozen=True, slots=True)
class Verify(Pass):
    """Raise VerifyError, naming the node, if the graph breaks a rule."""

    name: ClassVar[str] = "verify"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Check ``module``; never changes it."""
        verify(module.graph, ctx)
        return PassResult(module, False)


def verify(graph: fx.Graph, ctx: PassContext) -> None:
    """Check every rule on every node."""
    for node in graph.nodes:
        _check_target(node, ctx)
    try:
        graph.lint()
    except (RuntimeError, ValueError) as err:
        raise VerifyError(f"the graph is not well formed: {err}") from None
    mode = fake_mode(graph)
    ids: dict[str, range] = {}
    opened: list[tuple[fx.Node, Any]] = []
    with kept_modes():
        for node in graph.nodes:
            _check_node(node, ctx, mode, ids)
            _follow_regions(node, opened)
    if opened:
        raise _broken(opened[-1][0], "begins a region that does not end")
    _check_tiles_apart(ids)


def _check_node(node: fx.Node, ctx: PassContext, mode: Any, ids: dict[str, range]) -> None:
    begins = node.target in ENTERS
    if node.op != "output" and node.users and "val" not in node.meta and not begins:
        raise _broken(node, "has no fake tensor in meta['val']")
    mapping = node.meta.get(META)
    if node.op == "call_function" and node.target in OPS:
        if not isinstance(mapping, TileMapping):
            raise _broken(node, "is analog but has no TileMapping")
        _check_mapping(node, mapping, ctx)
        _check_shape(node, mode)
        if ids.setdefault(mapping.array, mapping.tile_ids) != mapping.tile_ids:
            raise _broken(node, f"uses other tiles than array {mapping.array!r} has")


def _follow_regions(node: fx.Node, opened: list[tuple[fx.Node, Any]]) -> None:
    """Enter or leave the mode that a region's node begins or ends; they nest."""
    if node.target in ENTERS:
        opened.append((node, node.target(*node.args)))
    elif node.target is leave:
        if not opened or node.args != (opened[-1][0],):
            raise _broken(node, "does not end the innermost region")
        leave(opened.pop()[1])


def _broken(node: fx.Node, what: str) -> VerifyError:
    return VerifyError(
        f"node %{node.name} ({node.target}) {what}",
        where=source_line(node),
        fix="a pass left the graph so: compile(..., check=True) tells which, unless it did already",
    )


def _check_target(node: fx.Node, ctx: PassContext) -> None:
    if node.op in ("get_attr", "call_module"):
        at: Any = ctx.root
        for part in str(node.target).split("."):
            if not hasattr(at, part):
                raise _broken(node, f"refers to {node.target!r}, which the model does not have")
            at = getattr(at, part)
    elif node.op == "call_function":
        known = isinstance(node.target, torch._ops.OpOverload | torch._ops.HigherOrderOperator)
        if not known and node.target is not operator.getitem and not callable(node.target):
            raise _broken(node, "does not call an operator")


def _check_mapping(node: fx.Node, mapping: TileMapping, ctx: PassContext) -> None:
    weight = node.args[1]
    if not isinstance(weight, fx.Node):
        raise _broken(node, "has no weight operand")
    shape = tuple(int(size) for size in weight.meta["val"].shape)
    if shape != mapping.weight_shape:
        raise _broken(node, f"maps a weight of {mapping.weight_shape} but has one of {shape}")
    spec = parse(str(node.args[-2]))
    if spec.rows != mapping.row_bounds:
        raise _broken(node, f"runs row blocks {spec.rows} but maps {mapping.row_bounds}")
    logical = mapping.tile_cols // mapping.columns_per_weight
    for what, bounds, size, most in (
        ("row", mapping.row_bounds, mapping.in_features, mapping.tile_rows),
        ("column", mapping.col_bounds, mapping.out_features, logical),
    ):
        if bounds[0] != 0 or bounds[-1] != max(size, 1):
            raise _broken(node, f"has {what} blocks {bounds} that do not cover {size}")
        if any(not 0 < b - a <= most for a, b in zip(bounds, bounds[1:], strict=False)):
            raise _broken(node, f"has a {what} block of more than {most}: {bounds}")
    array = ctx.arrays.get(mapping.array)
    if array is None or array.key != node.args[-1]:
        raise _broken(node, f"names a tile array that is not that of {mapping.array!r}")


def _check_shape(node: fx.Node, mode: Any) -> None:
    expected = evaluate(mode, node.target, node.args)  # type: ignore[arg-type]
    actual = node.meta["val"]
    if tuple(expected.shape) != tuple(actual.shape) or expected.dtype != actual.dtype:
        raise _broken(
            node,
            f"computes {expected.dtype} {tuple(expected.shape)} but its meta says "
            f"{actual.dtype} {tuple(actual.shape)}",
        )


def _check_tiles_apart(ids: dict[str, range]) -> None:
    ordered = sorted(ids.items(), key=lambda item: item[1].start)
    for (a, first), (b, second) in zip(ordered, ordered[1:], strict=False):
        if first.stop > second.start:
            raise VerifyError(f"tile arrays {a!r} and {b!r} share tile {second.start}")
