"""``analogc demo``: train on real digits, compile, measure, and write a report.

Prints as it goes; everything that it prints about a model is what the public API gives.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import Progress, track
from rich.table import Table
from torch.export import ExportedProgram

from ...runtime.progress import without_bars
from ..model import CompiledModel
from ..target_text import target_text
from .network import DigitNetwork, Digits, accuracy, load_digits, train
from .report import report_html
from .study import (
    FAST,
    FULL,
    Plan,
    Score,
    by_noise,
    by_target,
    compile_for,
    export_once,
    sized,
    study_targets,
    sweep_targets,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Results:
    """What the demo found."""

    digital: float
    """Test accuracy of the digital model, in percent."""
    scores: dict[str, dict[int, Score]]
    """By target and tile size."""
    sweep: dict[str, dict[float, Score]]
    """By line of the chart and programming noise."""
    compiled: CompiledModel
    """The model that is shown."""
    report: Path


def run(
    out: str | Path = "analogc-demo",
    fast: bool = False,
    seed: int = 0,
    console: Console | None = None,
) -> Results:
    """Run the demo.

    Args:
        out: folder for the report; made if it is not there.
        fast: a smoke test of a few seconds: less training, fewer measurements.
        seed: of training and of all noise; same seed, same numbers.
        console: where to print.

    Raises:
        AnalogcError: scikit-learn is not installed.
    """
    console = console or Console()
    plan = FAST if fast else FULL
    with _one_thread(), without_bars(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _Demo(plan, seed, Path(out), console).run()


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    # Layers of this size are slower on two threads than on one, by far if the machine is busy.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Demo:
    """The steps, in order."""

    def __init__(self, plan: Plan, seed: int, out: Path, console: Console) -> None:
        self.plan, self.seed, self.out, self.console = plan, seed, out, console
        self.steps = 0

    def run(self) -> Results:
        """All steps."""
        digits = load_digits()
        self.out.mkdir(parents=True, exist_ok=True)
        model, digital = self._train(digits)
        compiled = self._compile(model, digits)
        exported = export_once(model, digits)
        tiles = self._tiles(exported, digits)
        scores = self._scores(exported, digits, digital)
        sweep = self._sweep(exported, digits)
        path = self.out / "report.html"
        html = report_html(compiled, digital, scores, tiles, sweep, self.plan)
        path.write_text(html, encoding="utf-8")
        self._head("Report")
        self._say(f"Graph, chart and tables in one page: {path}")
        return Results(digital, scores, sweep, compiled, path)

    def _head(self, title: str) -> None:
        self.steps += 1
        self.console.print(f"\n[bold]{self.steps}. {title}[/bold]", highlight=False)

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def _track(self, items: Iterable[T], what: str, total: int) -> Iterable[T]:
        if not self.console.is_terminal:
            return items
        return track(items, what, total, console=self.console, transient=True)

    def _train(self, digits: Digits) -> tuple[DigitNetwork, float]:
        self._head("Train the digital model")
        images = len(digits.train) + len(digits.test)
        self._say(
            f"{images} handwritten digits of 8x8 pixels (scikit-learn): {len(digits.train)} to "
            f"train on, {len(digits.test)} to test."
        )
        epochs, start = self.plan.epochs, time.perf_counter()
        with Progress(console=self.console, transient=True, disable=not self.console.is_terminal) \
                as bar:  # fmt: skip
            task = bar.add_task("training", total=epochs)

            def after_epoch(done: int, loss: float) -> None:
                bar.update(task, completed=done)
                if not self.console.is_terminal and done % 4 == 0:
                    self._say(f"  epoch {done:>2} of {epochs}: loss {loss:.3f}")

            model = train(digits, epochs, after_epoch)
        seconds = time.perf_counter() - start
        digital = accuracy(model, digits)
        size = sum(p.numel() for p in model.parameters())
        self._say(
            f"{size:,} parameters, {epochs} epochs in {seconds:.1f} s. Test accuracy: "
            f"{digital:.2f} %."
        )
        return model, digital

    def _compile(self, model: DigitNetwork, digits: Digits) -> CompiledModel:
        target = sized(study_targets()["generic-8bit"], self.plan.shown_size)
        self._head(f"Compile to {target.name}")
        start = time.perf_counter()
        compiled = compile_for(model, digits, target, self.seed)
        seconds = time.perf_counter() - start
        self._say(
            f"{target_text(compiled.target)}; converter ranges calibrated on training images; "
            f"{seconds:.1f} s.\nBatch norm is folded into the weights. One line a node, with its "
            "shape and its tiles:\n"
        )
        self._say(str(compiled))
        self._head("Coverage: what runs on tiles")
        self.console.print(compiled.coverage)
        self._head("Tiles: where the weights lie")
        self._say("Grid: row blocks (inputs) x column blocks (outputs) of one group.")
        self.console.print(compiled.tiles)
        self.console.print()
        return compiled

    def _tiles(self, model: ExportedProgram, digits: Digits) -> dict[int, tuple[int, float]]:
        found = {}
        table = Table("tile", title="The same weights on other tiles", title_justify="left")
        for name in ("tiles", "cells used"):
            table.add_column(name, justify="right")
        for size in self.plan.tile_sizes:
            tiles = compile_for(
                model, digits, sized(study_targets()["ideal"], size), self.seed
            ).tiles
            found[size] = (tiles.total, tiles.utilisation)
            table.add_row(f"{size}x{size}", str(tiles.total), f"{100 * tiles.utilisation:.1f} %")
        self.console.print(table)
        return found

    def _scores(
        self, model: ExportedProgram, digits: Digits, digital: float
    ) -> dict[str, dict[int, Score]]:
        self._head("Test accuracy by target and tile size")
        sizes = self.plan.tile_sizes
        self._say(
            f"Percent of {len(digits.test)} images; where noise is drawn, mean ± standard "
            f"deviation over {self.plan.seeds} programmings."
        )
        scores: dict[str, dict[int, Score]] = {name: {} for name in study_targets()}
        cells = by_target(model, digits, self.plan, self.seed)
        for name, size, value in self._track(cells, "measuring", len(scores) * len(sizes)):
            scores[name][size] = value
        table = Table("target")
        for size in sizes:
            table.add_column(f"{size}x{size} tiles", justify="right")
        table.add_row("digital", *[f"{digital:.2f}"] * len(sizes), end_section=True)
        for name, row in scores.items():
            table.add_row(name, *(str(row[size]) for size in sizes))
        self.console.print(table)
        return scores

    def _sweep(self, model: ExportedProgram, digits: Digits) -> dict[str, dict[float, Score]]:
        self._head("Test accuracy against programming noise")
        self._say(
            f"Every weight is written with Gaussian noise, in percent of full scale; tiles of "
            f"{self.plan.shown_size}x{self.plan.shown_size},\n{self.plan.seeds} programmings each. "
            "Weights have a scale for each column unless said."
        )
        sweep: dict[str, dict[float, Score]] = {name: {} for name in sweep_targets()}
        points = by_noise(model, digits, self.plan, self.seed)
        total = len(sweep) * len(self.plan.sigmas)
        for name, sigma, value in self._track(points, "measuring", total):
            sweep[name][sigma] = value
        table = Table("noise")
        for name in sweep:
            table.add_column(name, justify="right")
        for sigma in self.plan.sigmas:
            table.add_row(f"{100 * sigma:g} %", *(str(row[sigma]) for row in sweep.values()))
        self.console.print(table)
        return sweep
