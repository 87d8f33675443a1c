"""Converter ranges from data: one pass over it, digital, with a histogram at every converter."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from . import tiles
from .converters import FROM_DATA, Converter
from .devices import IdealDevice
from .errors import InputError
from .histogram import Histogram
from .mapping import TileMapping
from .mvm import Geometry, geometry
from .noise import NoiseKey
from .ops import NAMES, digital
from .peaks import MeanPeaks
from .progress import with_progress
from .regions import kept_modes, plain_precision
from .sampled import SampledSums
from .spec import LayerSpec, parse
from .standin import resolve
from .target import Calibration

_OPS = {getattr(torch.ops.analogc, name).default: name for name in NAMES}


class _Observer:
    """Magnitudes at the converters of one layer, in units of the layer's input."""

    def __init__(self, spec: LayerSpec, args: Sequence[Any]) -> None:
        weight = args[1]
        self.spec = spec
        between = ((), (), (), 1) if weight.dim() == 2 else args[5:9]
        self.mvm: Geometry = geometry(spec, weight.shape, *between)
        # Ranges allow for IR drop; its first-order form takes no time.
        wires = spec.wires and dataclasses.replace(spec.wires, method="first-order")
        exact = dataclasses.replace(spec, device=IdealDevice(), wires=wires)
        self.tiles = tiles.program(resolve(weight), exact, NoiseKey(0, "", 0))
        blocks, device = len(spec.blocks), weight.device
        self.inputs = Histogram(blocks, device)
        self.means = None
        if spec.dac is not None and spec.dac.range == "average":
            vectors = dataclasses.replace(spec, dac=Converter(range="dynamic"))
            self.means = MeanPeaks(geometry(vectors, weight.shape, *between), blocks, device)
        self.sampled = None
        if spec.physical and spec.adc is not None and spec.adc.range == "calibrated":
            self.sampled = SampledSums(exact, self.mvm, self.tiles)
        per_column = spec.adc is not None and spec.adc.per_column
        self.series = weight.shape[0] if per_column else 1
        self.sums = Histogram(blocks * self.series, device, 256 if per_column else 2048)

    def add(self, x: Tensor, dims: int) -> None:
        """Count one batch of inputs of a layer whose weight has ``dims`` dims."""
        x = x.to(self.tiles.scale.dtype)
        if self.spec.cap is not None:
            x = x.clamp(-self.spec.cap, self.spec.cap)
        if dims > 2 and x.dim() == dims - 1:
            x = x.unsqueeze(0)
        if self.sampled is not None:
            self.sampled.add(x)
        inputs, sums = [], []
        for r, weight in enumerate(self.tiles.blocks):
            part = self.mvm.take(x, r)
            inputs.append(part)
            if self.spec.physical or self.spec.adc is None or self.spec.adc.range != "calibrated":
                continue
            if self.spec.dynamic:
                part = part / self.mvm.peak(part)
            p = self.mvm.finish(self.mvm.multiply(part, weight, r))
            column = p.dim() - 1 if dims == 2 else 1
            sums.append(p.movedim(column, 0).reshape(self.series, -1))
        if self.means is not None:
            self.means.add(x)
        if self.spec.dac is not None and self.spec.dac.range == "calibrated":
            for r, part in enumerate(inputs):
                if self.spec.dac.codes == "unsigned":
                    part = part.clamp(min=0)
                _add_one(self.inputs, r, part.reshape(1, -1))
        if sums:
            self.sums.add(torch.cat(sums))

    @property
    def finite(self) -> bool:
        """Whether all values were."""
        sampled = self.sampled is None or self.sampled.finite
        means = self.means is None or self.means.finite
        return self.inputs.finite and self.sums.finite and sampled and means

    def choose(
        self, how: Calibration, input_range: Tensor | None, adc_range: Tensor | None
    ) -> bool:
        """Fill in the calibrated ranges; False if the data was all zero somewhere."""
        alive = True
        dac, adc = self.spec.dac, self.spec.adc
        if dac is not None and dac.range in FROM_DATA:
            assert input_range is not None, "a calibrated DAC has a range buffer"
            if self.means is not None:
                found = self.means.mean().to(input_range.dtype)
            else:
                found = self.inputs.choose(how, dac.full_code)
            alive &= bool((found > 0).all())
            input_range.copy_(torch.where(found > 0, found, torch.ones_like(found)))
        if adc is not None and adc.range == "calibrated":
            assert adc_range is not None, "a calibrated ADC has a range buffer"
            if self.sampled is not None:
                found = self.sampled.choose(how, input_range, adc_range.shape)
            else:
                found = self.sums.choose(how, adc.levels, self.series)
            found = found.view(adc_range.shape).to(adc_range.dtype)
            if input_range is not None and self.sampled is None:
                found = found / (input_range[:, None] if found.dim() == 2 else input_range)
            # A column that never saw a signal converts zero, whatever its range.
            adc_range.copy_(torch.where(found > 0, found, torch.ones_like(found)))
        return alive


def _add_one(histogram: Histogram, series: int, values: Tensor) -> None:
    # Row blocks may have different numbers of inputs, so each is counted on its own.
    one = Histogram(1, values.device, histogram.bins)
    for name in ("counts", "limit", "peak"):
        setattr(one, name, getattr(histogram, name)[series : series + 1])
    one.add(values)
    histogram.finite &= one.finite
    for name in ("counts", "limit", "peak"):
        getattr(histogram, name)[series] = getattr(one, name)[0]


class Observation(fx.Interpreter):
    """Runs a graph digitally and shows every analog layer's input to its observer.

    Args:
        graph: rewritten graph.
        root: what its ``get_attr`` nodes refer to.
        only_missing: leave ranges alone that were calibrated before.
    """

    def __init__(self, graph: fx.Graph, root: torch.nn.Module, only_missing: bool = False) -> None:
        super().__init__(root, graph=graph)
        self.root = root
        self.watched = {
            node
            for node in graph.nodes
            if node.op == "call_function" and node.target in _OPS
            and _needs_data(parse(node.args[-2])) and not (only_missing and _is_set(root, node))
        }  # fmt: skip
        self.observers: dict[fx.Node, _Observer] = {}
        self.owners: dict[tuple[Any, ...], fx.Node] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Value of ``n``, of an analog layer the digital one."""
        if n.op != "call_function" or n.target not in _OPS:
            return super().run_node(n)
        args, _ = self.fetch_args_kwargs_from_env(n)
        if n in self.watched:
            # The steps of a loop have one set of ranges, chosen from what all of them see.
            ranges = tuple(arg.target if isinstance(arg, fx.Node) else None for arg in n.args[3:5])
            owner = self.owners.setdefault(ranges, n)
            with plain_precision(), torch.no_grad():
                if owner not in self.observers:
                    self.observers[owner] = _Observer(parse(args[-2]), args)
                self.observers[owner].add(args[0], args[1].dim())
        return digital(_OPS[n.target], args)

    def __call__(self, *inputs: Any) -> Any:
        """Flat outputs of the graph."""
        return self.run(*inputs, enable_io_processing=False)


def calibrate(
    graph: fx.Graph,
    root: torch.nn.Module,
    batches: Iterable[Sequence[Any]],
    how: Calibration,
    only_missing: bool = False,
) -> int:
    """Set the calibrated converter ranges of ``graph`` from data; returns the number of batches.

    The model runs digitally. Its buffers and torch's random state are left as they were.

    Args:
        graph: rewritten graph.
        root: what its ``get_attr`` nodes refer to.
        batches: flat inputs of the graph, one sequence for each batch.
        how: rule that chooses a range.
        only_missing: leave ranges alone that were calibrated before.

    Raises:
        InputError: there is no batch.
    """
    observation = Observation(graph, root, only_missing)
    if not observation.watched:
        return 0
    with torch.no_grad(), unchanged(root):
        count = feed(batches, observation)
    choose_ranges([observation], how)
    return count


def feed(batches: Iterable[Any], model: Callable[..., Any]) -> int:
    """Call ``model`` with each of ``batches``; returns their number.

    Raises:
        InputError: there is none.
    """
    count = 0
    for batch in with_progress(batches, "calibrating"):
        model(*batch)
        count += 1
    if count == 0:
        raise InputError(
            "calibration data is empty", fix="pass at least one batch, or none to use the examples"
        )
    return count


@contextlib.contextmanager
def unchanged(root: torch.nn.Module) -> Iterator[None]:
    """Restore the buffers of ``root`` and torch's random state at the end."""
    saved = [(b, b.detach().clone()) for b in root.buffers() if not b.is_meta]
    devices = {b.device for b in root.parameters() if b.device.type == "cuda"}
    try:
        with kept_modes(), plain_precision(), torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


def choose_ranges(observations: Iterable[Observation], how: Calibration) -> None:
    """Set the ranges of all layers that ``observations`` saw."""
    silent, broken = [], []
    with torch.no_grad():
        for seen in observations:
            for node, observer in seen.observers.items():
                mapping: TileMapping = node.meta["analogc"]
                ranges = [_buffer(seen.root, node.args[i]) for i in (3, 4)]
                if not observer.choose(how, ranges[0], ranges[1]):
                    silent.append(mapping.layer)
                if not observer.finite:
                    broken.append(mapping.layer)
    if broken:
        warnings.warn(
            f"calibration data is NaN or infinite at {', '.join(broken)}: those values are left "
            "out of the ranges",
            stacklevel=3,
        )
    if silent:
        warnings.warn(
            f"calibration data is zero at the input of {', '.join(silent)}: range 1 is used there",
            stacklevel=3,
        )


def _needs_data(spec: LayerSpec) -> bool:
    return any(c is not None and c.range in FROM_DATA for c in (spec.dac, spec.adc))


def _is_set(root: torch.nn.Module, node: fx.Node) -> bool:
    ranges = [_buffer(root, node.args[i]) for i in (3, 4)]
    return not any(value is not None and bool(value.isnan().any()) for value in ranges)


def is_uncalibrated(graph: fx.Graph, root: torch.nn.Module) -> bool:
    """Whether a layer of ``graph`` has ranges that were never chosen."""
    layers = [node for node in graph.nodes if node.op == "call_function" and node.target in _OPS]
    return not all(_is_set(root, node) for node in layers)


def _buffer(root: torch.nn.Module, node: Any) -> Tensor | None:
    if node is None:
        return None
    value: Tensor = root.get_buffer(node.target)
    return value
