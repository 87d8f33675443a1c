"""Progress bars: on a terminal, for work that takes longer than a moment."""

from __future__ import annotations

import contextlib
import math
import operator
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

MOMENT = 1.0
"""Seconds after which a progress bar is worth showing."""
_BARS: ContextVar[bool] = ContextVar("analogc_bars", default=True)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """For a caller that shows progress of its own: a terminal has room for one bar."""
    token = _BARS.set(False)
    try:
        yield
    finally:
        _BARS.reset(token)


def with_progress(items: Iterable[T], what: str) -> Iterator[T]:
    """Pass ``items`` on, with a progress bar on a terminal if it takes longer than a moment.

    While it shows one, work inside shows none.
    """
    total = operator.length_hint(items) or None
    rest, done = iter(items), 0
    patience = MOMENT if _BARS.get() and sys.stderr.isatty() else math.inf
    start = perf_counter()
    for item in rest:
        yield item
        done += 1
        if perf_counter() - start > patience:
            break
    else:
        return
    from rich.console import Console
    from rich.progress import Progress

    with without_bars(), Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, completed=done)
        for item in rest:
            yield item
            bar.advance(task)
