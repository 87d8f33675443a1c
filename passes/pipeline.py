"""The order of the passes, its text form, and the loop that runs them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import fx

from ..runtime.errors import InputError
from .apply_lowerings import ApplyLowerings
from .base import Pass, PassContext
from .canonicalize import Canonicalize
from .derive_weights import DeriveWeights
from .fold_batch_norm import FoldBatchNorm
from .inline_regions import InlineRegions
from .lower_attention import LowerAttention
from .lower_bilinear import LowerBilinear
from .lower_complex import LowerComplex
from .lower_grouped_products import LowerGroupedProducts
from .lower_indexed_products import LowerIndexedProducts
from .lower_products import LowerProducts
from .lower_recurrent import LowerRecurrent
from .lower_transposed_conv import LowerTransposedConv
from .map_tiles import MapTiles
from .rewrite_analog import RewriteAnalog
from .select_analog import SelectAnalog
from .verify import Verify, verify

DEFAULT_PASSES: tuple[Pass, ...] = (
    InlineRegions(),
    ApplyLowerings(),
    LowerAttention(),
    LowerGroupedProducts(),
    LowerIndexedProducts(),
    LowerProducts(),
    LowerBilinear(),
    LowerRecurrent(),
    Canonicalize(),
    LowerComplex(),
    FoldBatchNorm(),
    LowerTransposedConv(),
    SelectAnalog(),
    DeriveWeights(),
    MapTiles(),
    RewriteAnalog(),
    Verify(),
)

PASSES: dict[str, type[Pass]] = {type(p).name: type(p) for p in DEFAULT_PASSES}

Callback = Callable[[Pass, fx.GraphModule, bool], None]


def run(
    passes: Sequence[Pass],
    module: fx.GraphModule,
    ctx: PassContext,
    after: Callback | None = None,
    check: bool = False,
) -> fx.GraphModule:
    """Run ``passes`` in order.

    Args:
        passes: the pipeline.
        module: graph to transform, in place.
        ctx: shared state.
        after: called with the pass, the graph and whether it changed, after each pass.
        check: verify the graph after each pass.
    """
    for step in passes:
        step.requires(module)
        result = step(module, ctx)
        step.ensures(result.module)
        if check:
            verify(result.module.graph, ctx)
        if after is not None:
            after(step, result.module, result.modified)
        module = result.module
    return module


def to_text(passes: Sequence[Pass]) -> str:
    """Text form, for example ``canonicalize,map-tiles{split=full},verify``."""
    return ",".join(map(str, passes))


def parse(text: str) -> tuple[Pass, ...]:
    """Pipeline of a text form; InputError names what is wrong with it."""
    passes: list[Pass] = []
    for part in (piece.strip() for piece in text.split(",")):
        match = re.fullmatch(r"([\w-]+)(?:\{([^{}]*)\})?", part)
        if match is None:
            raise InputError(f"not a pass: {part!r}", fix="name or name{option=value ...}")
        name, options = match.groups()
        if name not in PASSES:
            raise InputError(f"no pass named {name!r}", fix=f"one of {', '.join(PASSES)}")
        passes.append(build(PASSES[name], options or ""))
    return tuple(passes)


def resolve(passes: Sequence[Pass] | str | None) -> tuple[Pass, ...]:
    """Pipeline given as passes, as text, or as None for the default one."""
    if passes is None:
        return DEFAULT_PASSES
    if isinstance(passes, str):
        return parse(passes)
    for step in passes:
        if not isinstance(step, Pass):
            raise InputError(
                f"passes= must hold Pass objects or be a text, got {step!r}",
                fix="see analogc.DEFAULT_PASSES, and str() of each",
            )
    return tuple(passes)


def build(kind: type[Any], options: str) -> Any:
    """Pass of this class with options ``name=value ...``; InputError for a wrong one."""
    hints = get_type_hints(kind)
    names = [f.name for f in dataclasses.fields(kind)]
    values: dict[str, Any] = {}
    for option in options.split():
        key, equals, value = option.partition("=")
        if not equals or key not in names:
            known = ", ".join(names) or "it has none"
            raise InputError(f"pass {kind.name} has no option {option!r}", fix=f"options: {known}")
        values[key] = _value(kind, key, hints[key], value)
    return kind(**values)


def _value(kind: type[Any], key: str, hint: Any, text: str) -> Any:
    if get_origin(hint) is Literal:
        if text in get_args(hint):
            return text
        raise InputError(
            f"pass {kind.name}: {key} must be one of {', '.join(get_args(hint))}, got {text!r}"
        )
    if hint is bool and text in ("true", "false"):
        return text == "true"
    if hint in (int, float, str):
        try:
            return hint(text)
        except ValueError:
            pass
    raise InputError(f"pass {kind.name}: {key} cannot be {text!r}")
