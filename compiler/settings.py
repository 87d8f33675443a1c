"""What decides how a graph is compiled, checked once for all front-ends."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..passes import pipeline
from ..passes.base import Pass, PassContext
from ..passes.select_analog import LayerInfo
from ..runtime import targets
from ..runtime.errors import InputError
from ..runtime.noise import NoiseSource
from ..runtime.target import Target
from .copying import new_uid

Select = Callable[[LayerInfo], bool] | str | Iterable[str]
_SELECT = "select='head', select=['blocks.*'], or select=lambda info: info.op != 'conv2d'"


@dataclass(frozen=True, slots=True)
class Settings:
    """Arguments of ``compile`` that hold for every graph of a model; equal ones compile alike."""

    target: Target
    select: Callable[[LayerInfo], bool] | tuple[str, ...] | None
    passes: tuple[Pass, ...]
    seed: int | None = None
    check: bool = False
    strict: bool = False

    @classmethod
    def of(
        cls,
        target: str | Target = "generic-8bit",
        select: Select | None = None,
        passes: Sequence[Pass] | str | None = None,
        seed: int | None = None,
        check: bool = False,
        strict: bool = False,
    ) -> Settings:
        """Checked settings.

        Raises:
            InputError: one of them is wrong.
        """
        target = targets.get(target) if isinstance(target, str) else target
        if not isinstance(target, Target):
            raise InputError(
                f"target must be a name or a Target, got {type(target).__name__}",
                fix=f"one of {', '.join(targets.names())}, or analogc.Target(...)",
            )
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
            raise InputError(
                f"seed must be an int or None, got {seed!r}", fix="seed=0, or leave it out"
            )
        return cls(target, _choice(select), pipeline.resolve(passes), seed, check, strict)

    def context(
        self, root: nn.Module, lowerings: Mapping[Any, Callable[..., Any]] | None = None
    ) -> tuple[PassContext, Selection]:
        """What the passes share for a model whose tensors are in ``root``, and the selection.

        ``lowerings``: the user's own, of operators.
        """
        chosen = Selection(self.select)
        ctx = PassContext(
            target=self.target,
            root=root,
            select=None if self.select is None else chosen,
            noise=NoiseSource(self.seed),
            uid=new_uid(),
            lowerings={} if lowerings is None else lowerings,
            strict=self.strict,
        )
        return ctx, chosen


def _choice(select: Select | None) -> Callable[[LayerInfo], bool] | tuple[str, ...] | None:
    if select is None or callable(select):
        return select
    names = [select] if isinstance(select, str) else select
    if not isinstance(names, Iterable):
        raise InputError(f"select= takes a predicate or names, got {select!r}", fix=_SELECT)
    patterns = tuple(names)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InputError(f"select= takes a predicate or names, got {pattern!r}", fix=_SELECT)
    return patterns


class Selection:
    """A user's choice as a predicate that remembers which of its patterns ever matched."""

    def __init__(self, select: Callable[[LayerInfo], bool] | tuple[str, ...] | None) -> None:
        self.predicate = select if callable(select) else None
        self.patterns = select if isinstance(select, tuple) else ()
        self.unused = set(self.patterns)
        self.seen: list[str] = []

    def __call__(self, info: LayerInfo) -> bool:
        """Whether the layer goes to the tiles."""
        if self.predicate is not None:
            return bool(self.predicate(info))
        self.seen.append(info.name)
        keep_digital = False
        for pattern in self.patterns:
            bare = info.name.partition("@")[0]
            if any(fnmatch.fnmatchcase(name, pattern) for name in (info.name, bare, info.module)):
                self.unused.discard(pattern)
                keep_digital = True
        return not keep_digital

    def check(self) -> None:
        """Raise if a pattern never matched: it is likely misspelt."""
        if self.unused:
            raise InputError(
                f"select=: no layer matches {', '.join(sorted(self.unused))}",
                fix=f"layers: {', '.join(self.seen) or 'none'}",
            )
