"""What the demo measures: accuracy by target, tile size and programming noise."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram

from ...runtime import targets
from ...runtime.converters import Converter
from ...runtime.devices import GaussianDevice
from ...runtime.target import Target, TileSpec
from ..compile import compile
from ..model import CompiledModel
from .network import Digits, accuracy


@dataclass(frozen=True, slots=True)
class Score:
    """Test accuracy in percent over one or several programmings of the devices."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float:
        """Standard deviation over the programmings."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        """``98.36 ± 0.54``, or the mean alone if nothing is random."""
        return f"{self.mean:.2f}" + (f" ± {self.std:.2f}" if len(self.values) > 1 else "")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured."""

    epochs: int = 12
    tile_sizes: tuple[int, ...] = (512, 128, 32)
    seeds: int = 10
    """Programmings of a noisy target."""
    sigmas: tuple[float, ...] = (0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)
    """Programming noise, as a share of full scale."""

    @property
    def shown_size(self) -> int:
        """Tile size of the model that is printed and drawn."""
        return 128 if 128 in self.tile_sizes else self.tile_sizes[0]


FULL = Plan()
FAST = Plan(epochs=4, tile_sizes=(128, 32), seeds=2, sigmas=(0, 0.1, 0.2))


def study_targets() -> dict[str, Target]:
    """Targets of the accuracy table, by the name that it shows."""
    good = targets.generic_8bit()
    return {
        "ideal": targets.ideal(),
        "generic-8bit": good,
        "generic-8bit-noisy": targets.generic_8bit_noisy(),
        "generic-8bit, 4-bit ADC": good.replace(name="4-bit-adc", adc=Converter(4)),
        "generic-8bit, 3-bit ADC": good.replace(name="3-bit-adc", adc=Converter(3)),
    }


def sweep_targets() -> dict[str, Target]:
    """Targets of the chart, by the name of their line."""
    good = targets.generic_8bit()
    return {
        "8-bit ADC": good,
        "8-bit ADC, one scale per layer": good.replace(weight_scale="tensor"),
        "3-bit ADC": good.replace(adc=Converter(3)),
    }


def compile_for(
    model: nn.Module | ExportedProgram, digits: Digits, target: Target, seed: int
) -> CompiledModel:
    """Compile for any batch size, ranges calibrated on training images."""
    return compile(
        model,
        (digits.train[:2],),
        target=target,
        dynamic_shapes=None if isinstance(model, ExportedProgram) else "batch",
        calibration_data=digits.calibration,
        seed=seed,
    )


def export_once(model: nn.Module, digits: Digits) -> ExportedProgram:
    """``model`` captured for any batch size: compiling that many times saves half the time."""
    shapes = ({0: torch.export.Dim.AUTO},)
    return torch.export.export(model, (digits.train[:2],), dynamic_shapes=shapes)


def sized(target: Target, size: int) -> Target:
    """``target`` with square tiles of ``size``."""
    return target.replace(tile=TileSpec(size, size))


def score(compiled: CompiledModel, digits: Digits, seeds: Sequence[int]) -> Score:
    """Accuracy over programmings with ``seeds``; one is enough where nothing is random."""
    target = compiled.target
    if target.device.is_ideal and not target.output_noise:
        return Score((accuracy(compiled, digits),))
    values = []
    for seed in seeds:
        compiled.program(seed)
        values.append(accuracy(compiled, digits))
    return Score(tuple(values))


def by_target(
    model: ExportedProgram, digits: Digits, plan: Plan, seed: int
) -> Iterator[tuple[str, int, Score]]:
    """(target, tile size, score) for all targets and tile sizes."""
    seeds = range(seed, seed + plan.seeds)
    for name, target in study_targets().items():
        for size in plan.tile_sizes:
            compiled = compile_for(model, digits, sized(target, size), seed)
            yield name, size, score(compiled, digits, seeds)


def by_noise(
    model: ExportedProgram, digits: Digits, plan: Plan, seed: int
) -> Iterator[tuple[str, float, Score]]:
    """(line, sigma, score) for all lines of the chart, on tiles of the shown size."""
    seeds = range(seed, seed + plan.seeds)
    for name, target in sweep_targets().items():
        for sigma in plan.sigmas:
            noisy = sized(target, plan.shown_size).replace(device=GaussianDevice(sigma))
            compiled = compile_for(model, digits, noisy, seed)
            yield name, sigma, score(compiled, digits, seeds)
