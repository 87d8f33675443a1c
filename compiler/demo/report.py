"""The demo's page: accuracies, their chart, and all about one of the compiled models."""

from __future__ import annotations

from ..model import CompiledModel
from ..picture.chart import Series, line_chart_svg
from ..picture.page import facts, figure, model_sections, page, section, table, wrap
from ..picture.text import escape
from ..target_text import target_text
from .study import Plan, Score


def noise_chart(sweep: dict[str, dict[float, Score]], digital: float) -> str:
    """SVG chart of accuracy against programming noise."""
    series = [
        Series(name, tuple((100 * sigma, s.mean, s.std) for sigma, s in scores.items()))
        for name, scores in sweep.items()
    ]
    return line_chart_svg(
        series,
        "programming noise, standard deviation in % of full scale",
        "test accuracy (%)",
        unit=" %",
        level=(f"digital model, {digital:.2f} %", digital),
        ceiling=100.0,
    )


def report_html(
    compiled: CompiledModel,
    digital: float,
    scores: dict[str, dict[int, Score]],
    tiles: dict[int, tuple[int, float]],
    sweep: dict[str, dict[float, Score]],
    plan: Plan,
) -> str:
    """The page.

    Args:
        compiled: the model that is shown.
        digital: accuracy of the digital model, in percent.
        scores: by target and tile size.
        tiles: number of tiles and their utilisation, by tile size.
        sweep: by line of the chart and noise.
        plan: how much was measured.
    """
    size = plan.shown_size
    sizes = [f"{n}×{n} tiles" for n in plan.tile_sizes]
    runs = f"mean ± standard deviation over {plan.seeds} programmings"
    body = [
        "<h1>analogc demo: handwritten digits on analog tiles</h1>",
        "<p>A small residual network, trained on scikit-learn's digits and compiled to simulated "
        "in-memory-computing tiles.</p>",
        facts(
            [
                (f"{digital:.2f} %", "digital model"),
                (f"{scores['generic-8bit'][size].mean:.2f} %", "on 8-bit tiles"),
                (f"{scores['generic-8bit-noisy'][size]} %", "on noisy 8-bit tiles"),
                (f"{len(compiled.tiles)}", "layers on tiles"),
                (f"{compiled.tiles.total}", f"tiles of {size}×{size}"),
            ]
        ),
        *section(
            "Accuracy against programming noise",
            f"Every weight is written with Gaussian noise, a new draw for each programming; tiles "
            f"of {size}×{size}, {runs}. Each column of a tile has its own weight scale, except on "
            "the line where a layer has a single one, which leaves most weights small against the "
            "noise.",
        ),
        figure(noise_chart(sweep, digital)),
        *section(
            "Accuracy by target and tile size",
            f"Percent of the 450 test images; {runs} where something is random.",
        ),
        table(
            ("target", *sizes),
            [
                ("digital", *[f"{digital:.2f}"] * len(sizes)),
                *(
                    (escape(name), *(str(row[n]) for n in plan.tile_sizes))
                    for name, row in scores.items()
                ),
            ],
        ),
        *section("Tiles by tile size", "Larger tiles are fewer, and emptier."),
        table(
            ("tile", "tiles", "cells used"),
            [(f"{n}×{n}", str(count), f"{100 * used:.1f} %") for n, (count, used) in tiles.items()],
        ),
        *section("The compiled model", f"{compiled.target.name}: {target_text(compiled.target)}."),
        *model_sections(compiled),
    ]
    return page("analogc demo", wrap(body))
