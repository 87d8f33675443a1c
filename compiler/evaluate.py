"""Run a measurement on a compiled model for several draws of its noise and times after it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..runtime.converters import is_number
from ..runtime.errors import InputError
from ..runtime.progress import with_progress, without_bars
from .attach import Attached
from .evaluation import EvaluationResult, EvaluationRow, time_text
from .model import CompiledModel

T = TypeVar("T")
Metrics = Any
"""What a measurement returns: a number, or numbers by name."""


def evaluate(
    compiled: CompiledModel | Mapping[str, CompiledModel],
    fn: Callable[[CompiledModel], Metrics],
    times: Iterable[float] = (0.0,),
    seeds: int | Iterable[int] = 5,
    confidence: float = 0.95,
) -> EvaluationResult:
    """Measure ``fn(compiled)`` for each seed, and each time after programming.

    For each seed the tiles are programmed as ``compiled.program(seed)`` does, and brought to each
    time as ``drift_to(seconds)`` does. A cell of the table depends on seed and time alone, not on
    what else is asked for or in which order: read noise is drawn afresh for each time, and torch's
    random state is ``manual_seed(seed)`` each time ``fn`` is called. At time 0 the noise is that of
    a call right after ``program(seed)``. All variants meet the same seeds. At the end each model
    has the programmed tiles, time, noise and buffers that it had before, and torch its random
    state.

    Args:
        compiled: a compiled model, or several by name, to compare.
        fn: takes a compiled model, in the mode that it is in, and returns a number or a dict of
            numbers; runs without gradients. It must not change the weights.
        times: times since programming [s].
        seeds: number of seeds, counted from 0, or the seeds.
        confidence: of the intervals in the result's statistics.

    Returns:
        A table with a row for each variant, seed, time and metric.

    Raises:
        InputError: an argument is wrong; or ``fn`` returned no numbers, other metrics than before,
            or changed a weight: names seed and time. What ``fn`` raises has them in a note.
    """
    variants = _variants(compiled)
    instants, draws = _times(times), _seeds(seeds)
    if not callable(fn):
        raise InputError(f"evaluate() takes a function of a model, got {fn!r}")
    if not is_number(confidence) or not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, got {confidence!r}")
    cells = [(name, seed, time) for name in variants for seed in draws for time in instants]
    found: dict[str, tuple[str, ...]] = {}
    rows: list[EvaluationRow] = []
    devices = {b.device for m in variants.values() for b in m.parameters() if b.is_cuda}
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        for model in {id(model): model for model in variants.values()}.values():
            stack.enter_context(_kept(model))
        for name, seed, time in with_progress(cells, "evaluating"):
            where = _where(name, seed, time)
            try:
                if time == instants[0]:
                    _program(variants[name], seed)
                value = _measure(variants[name], fn, seed, time)
            except Exception as err:
                err.add_note(f"while evaluating {where}")
                raise
            metrics = _metrics(value, where)
            names = found.setdefault("all", tuple(metrics))
            if set(names) != set(metrics):
                raise InputError(
                    f"the measurement returned {', '.join(metrics)}; before: {', '.join(names)}",
                    where=where,
                    fix="return the same metrics each time; NaN for what is not known",
                )
            rows += [EvaluationRow(name, seed, time, metric, metrics[metric]) for metric in names]
    return EvaluationResult(tuple(rows), float(confidence))


def _measure(
    model: CompiledModel, fn: Callable[[CompiledModel], Metrics], seed: int, time: float
) -> Metrics:
    while True:
        known = set(model._ctx.arrays)
        for array in model._ctx.arrays.values():
            array.calls = _first_call(time)
        model.drift_to(time)
        torch.manual_seed(seed)
        with torch.no_grad(), without_bars(), _same_weights(model):
            value = fn(model)
        if known == set(model._ctx.arrays):
            return value
        # A branch was captured that no call took before: its tiles were fresh.
        _program(model, seed)


def _program(model: CompiledModel, seed: int) -> None:
    torch.manual_seed(seed)
    for array in model._ctx.arrays.values():
        array.chip = None
    model.program(seed)


def _first_call(time: float) -> int:
    """Number of the first read at ``time``: reads at other times get other noise."""
    if time == 0:
        return 0
    digest = hashlib.blake2b(float(time).hex().encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def _same_weights(model: CompiledModel) -> Iterator[None]:
    """Restore the buffers at the end, and raise if a weight on the tiles was changed meanwhile."""
    buffers = [(b, b.detach().clone()) for b in model._root.buffers() if not b.is_meta]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                if not bool(((buffer == value) | (buffer != buffer) & (value != value)).all()):
                    buffer.copy_(value)
    for mapping, array, weight in model._live_weights():
        if array.programmed is not None and not array.is_current(weight):
            raise InputError(
                "the measurement changed the weights; seeds and times would not be comparable",
                where=f"layer {mapping.layer}",
                fix="let it work on copy.deepcopy(compiled)",
            )


@contextlib.contextmanager
def _kept(model: CompiledModel) -> Iterator[None]:
    """Restore at the end what the tiles hold, their noise and their time."""
    ctx = model._ctx
    seed, current = ctx.noise.seed, _current(model)
    saved = {
        name: (array, {f.name: getattr(array, f.name) for f in dataclasses.fields(array)})
        for name, array in ctx.arrays.items()
    }
    try:
        yield
    finally:
        ctx.noise.seed = seed
        unchanged = current & _current(model)
        for name, array in ctx.arrays.items():
            before, fields = saved.get(name, (None, {}))
            if before is not array:
                # Of a graph that was captured meanwhile: as new.
                fields = {"programmed": None, "_stamp": None, "times_programmed": 0, "calls": 0}
            for field, value in fields.items():
                setattr(array, field, value)
        for _, array, weight in model._live_weights():
            if array.name in unchanged and array.programmed is not None:
                # What was noted of the weight when it was programmed may be out of date by now.
                array.adopt(weight, array.programmed)


def _current(model: CompiledModel) -> set[str]:
    """Arrays that hold what their weights are."""
    return {array.name for _, array, w in model._live_weights() if array.is_current(w)}


# -- arguments ------------------------------------------------------------------------------------


def _variants(compiled: object) -> dict[str, CompiledModel]:
    given = dict(compiled) if isinstance(compiled, Mapping) else {"": compiled}
    found: dict[str, CompiledModel] = {}
    for name, model in given.items():
        if not isinstance(name, str) or not isinstance(model, CompiledModel):
            raise InputError(
                f"evaluate() takes a compiled model, or several by name, got "
                f"{type(model).__name__}" + (f" for {name!r}" if name else ""),
                fix="evaluate(attached.graph_for(*inputs), measure), one graph at a time"
                if isinstance(model, Attached)
                else "evaluate({'8 bit': analogc.compile(...), '6 bit': ...}, measure)",
            )
        found[name] = model
    if not found:
        raise InputError("evaluate() got no model")
    return found


def _times(times: object) -> tuple[float, ...]:
    given = tuple(times) if isinstance(times, Iterable) else (times,)
    for time in given:
        if not is_number(time) or time < 0:
            raise InputError(f"times are numbers >= 0 [s], got {time!r}")
    return _distinct("times", tuple(map(float, given)))


def _seeds(seeds: object) -> tuple[int, ...]:
    given = tuple(seeds) if isinstance(seeds, Iterable) else (seeds,)
    for seed in given:
        if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**62:
            raise InputError(
                f"seeds are whole numbers from 0 to 2**62, got {seed!r}",
                fix="seeds=10, or seeds=(3, 4, 5)",
            )
    return _distinct("seeds", given if isinstance(seeds, Iterable) else tuple(range(given[0])))


def _distinct(what: str, values: tuple[T, ...]) -> tuple[T, ...]:
    if not values:
        raise InputError(f"there are no {what}")
    if len(set(values)) < len(values):
        raise InputError(f"{what} are given twice: {', '.join(map(str, values))}")
    return values


def _metrics(value: object, where: str) -> dict[str, float]:
    named = value if isinstance(value, Mapping) else {"value": value}
    found: dict[str, float] = {}
    for name, number in named.items():
        if isinstance(number, Tensor) and number.numel() == 1 and not number.is_complex():
            number = number.item()
        elif hasattr(number, "item") and not isinstance(number, Tensor):
            number = _item(number)  # of NumPy
        if not isinstance(name, str) or not isinstance(number, int | float):
            raise InputError(
                f"the measurement must return a number, or numbers by name, got {number!r}"
                + (f" for {name!r}" if name != "value" else ""),
                where=where,
            )
        found[name] = float(number)
    if not found:
        raise InputError("the measurement returned no number", where=where)
    return found


def _item(number: Any) -> Any:
    return number.item() if getattr(number, "size", 1) == 1 else number


def _where(name: str, seed: int, time: float) -> str:
    exact = "" if time_text(time) == f"{time:g} s" or math.isinf(time) else f" ({time:g} s)"
    return (f"{name!r}, " if name else "") + f"seed {seed}, {time_text(time)}{exact}"
