"""Self-contained HTML: the parts that pages about a compiled model are made of.

No scripts, nothing loaded from anywhere; everything that comes from the model is escaped.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ..coverage import KINDS, CoverageReport, CoverageRow, count_text, steps_as_one
from ..target_text import target_text
from ..tile_table import TileTable
from .dataflow import dataflow_html
from .graph import graph_svg
from .text import MONO, SANS, escape

if TYPE_CHECKING:
    from ..build import Step
    from ..inspected import Inspected

_STYLE = f"""
.analogc {{ font: 15px/1.5 {SANS}; color: #1c2733; background: #fff; text-align: left; }}
.analogc h1 {{ font-size: 25px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; }}
.analogc h2 {{ font-size: 17px; margin: 36px 0 4px; }}
.analogc p {{ margin: 4px 0 12px; color: #4a5764; max-width: 92ch; }}
.analogc .facts {{ display: flex; flex-wrap: wrap; gap: 10px; margin: 18px 0 4px; }}
.analogc .facts div {{ border: 1px solid #dde2e7; border-radius: 8px; padding: 8px 16px 9px; }}
.analogc .facts b {{ display: block; font-size: 19px; font-weight: 600; }}
.analogc .facts span {{ color: #66727f; font-size: 12.5px; }}
.analogc .figure {{ overflow-x: auto; border: 1px solid #dde2e7; border-radius: 8px;
  padding: 10px; margin: 10px 0; }}
.analogc .figure svg {{ display: block; margin: 0 auto; }}
.analogc .wide {{ overflow: auto; max-height: 640px; }}
.analogc table {{ border-collapse: collapse; font-size: 13.5px; margin: 10px 0; }}
.analogc th {{ text-align: left; font-weight: 600; color: #66727f; font-size: 12.5px;
  box-shadow: inset 0 -1px #c3cad2; padding: 5px 22px 5px 0; white-space: nowrap;
  position: sticky; top: 0; background: #fff; }}
.analogc td {{ text-align: left; border-bottom: 1px solid #eaedf0; padding: 5px 22px 5px 0;
  vertical-align: top; }}
.analogc tbody tr, .analogc tbody tr:nth-child(even) {{ background: none; }}
.analogc .num {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }}
.analogc code, .analogc pre {{ font-family: {MONO}; font-size: 12px; background: none; }}
.analogc pre {{ background: #f6f7f9; border-radius: 8px; padding: 12px 14px; margin: 8px 0;
  overflow-x: auto; line-height: 1.55; color: #1c2733; }}
.analogc .bar {{ display: inline-block; width: 90px; height: 8px; border-radius: 4px;
  background: #e8ecef; margin-left: 8px; }}
.analogc .bar i {{ display: block; height: 8px; border-radius: 4px; background: #0b665e; }}
.analogc .on {{ color: #0b665e; font-weight: 600; }}
.analogc .off {{ color: #9a5b13; font-weight: 600; }}
.analogc .bad {{ color: #a3241b; font-weight: 600; }}
.analogc details {{ border-bottom: 1px solid #eaedf0; padding: 7px 0; }}
.analogc summary {{ cursor: pointer; }}
.analogc summary em {{ font-style: normal; color: #66727f; margin-left: 8px; font-size: 13px; }}
.analogc .plus {{ background: #e2f1ee; display: block; }}
.analogc .minus {{ background: #fbeae3; display: block; }}
.analogc .skip {{ color: #66727f; display: block; }}
"""
_DRAWN = 120
"""Operations that a picture in a notebook may have."""
_PAGE_STYLE = """
body { margin: 0; background: #fff; }
.analogc { max-width: 1380px; margin: 0 auto; padding: 34px 28px 60px; box-sizing: border-box; }
"""


def fragment(model: Inspected) -> str:
    """Compact form for a notebook: figures, coverage, and the graph if it is not too large.

    No ``<html>``, styles that reach nothing outside.
    """
    mode = "training" if model.training else "eval"
    body = [
        f"<h1>Compiled for {escape(model.target.name)}</h1>",
        f"<p>{escape(target_text(model.target))}; graph of {mode} mode.</p>",
        model_facts(model),
        f"<details><summary>Coverage: {escape(model.coverage.summary())}</summary>"
        f"{coverage_html(model.coverage)}</details>",
        f"<details><summary>Dataflow</summary>{dataflow_html(model.dataflow)}</details>",
    ]
    graphs = [module.graph for module in model.graphs]
    if sum(node.op == "call_function" for graph in graphs for node in graph.nodes) <= _DRAWN:
        body += [
            f'<details open><summary>Graph</summary><div class="figure wide">{graph_svg(graph)}'
            "</div></details>"
            for graph in graphs
        ]
    body.append("<p><code>compiled.to_html(path)</code> writes the interactive page.</p>")
    return wrap(body)


def page(title: str, body: str) -> str:
    """HTML document around ``body``, which is trusted; ``title`` is not."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_PAGE_STYLE}</style>\n</head>\n<body>\n"
        f"{body}\n</body>\n</html>\n"
    )


def wrap(parts: Iterable[str]) -> str:
    """``parts`` with the styles that they need."""
    return f'<div class="analogc">\n<style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</div>"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Row of figures, each with what it is."""
    cells = (
        f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in pairs
    )
    return f'<div class="facts">{"".join(cells)}</div>'


def model_facts(model: Inspected) -> str:
    """The figures that sum a model up."""
    coverage, tiles = model.coverage, model.tiles
    return facts(
        [
            (f"{len(coverage.analog)}", "layers on tiles"),
            (f"{100 * coverage.analog_share:.1f} %", f"of {count_text(coverage.macs)} MACs analog"),
            (f"{tiles.total}", "tiles"),
            (f"{100 * tiles.utilisation:.1f} %", "of their cells used"),
            (f"{sum(p.numel() for p in model.parameters()):,}", "parameters"),
        ]
    )


def model_sections(model: Inspected) -> list[str]:
    """Graph, coverage, tiles, IR and passes, each with a heading."""
    parts = [
        *section(
            "Graph",
            "What is computed, in order. Hover over a node for its module, its "
            "source line and its tiles.",
        ),  # fmt: skip
        figure(graph_svg(model.graph)),
        *section("Coverage", "What runs on tiles, and why the rest stays digital."),
        coverage_html(model.coverage),
        *section(
            "Tiles",
            "Where each weight lies. A weight is cut into row blocks (inputs) and "
            "column blocks (outputs); groups × rows × columns are its tiles.",
        ),  # fmt: skip
        tiles_html(model.tiles),
        *section(
            "Dataflow",
            "Layers that wait for each other, and layers on tiles of their own that can work at "
            "the same time. One MVM is one input vector through the tiles of a layer.",
        ),  # fmt: skip
        dataflow_html(model.dataflow),
        *section("Compiled graph", "One line a node, with its shape and its tiles."),
        f"<details><summary>Show the IR</summary><pre>{escape(model.ir())}</pre></details>",
    ]
    if model.history:
        parts += section("Passes", "What each pass changed in the graph.")
        parts += [step_html(step) for step in model.history]
    return parts


def section(title: str, text: str = "") -> list[str]:
    """Heading, and a sentence about what follows."""
    return [f"<h2>{escape(title)}</h2>", f"<p>{escape(text)}</p>" if text else ""]


def figure(svg: str) -> str:
    """Frame around a picture; scrolls sideways if it is too wide."""
    return f'<div class="figure">{svg}</div>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Table of trusted cells; the first ``text_columns`` are text, the others numbers."""

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}>{cell}</{tag}>" if i < text_columns else f'<{tag} class="num">{cell}</{tag}>'
            for i, cell in enumerate(row)
        )

    body = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', [escape(cell) for cell in header])}</tr></thead>"
    return f'<div class="wide"><table>{head}<tbody>\n{body}\n</tbody></table></div>'


def coverage_html(coverage: CoverageReport) -> str:
    """Table of the layers and products, and behind it one of the other digital nodes."""
    listed = steps_as_one(row for row in coverage.rows if row.kind != "rule" or row.macs)
    others = [row for row in coverage.rows if row.kind == "rule" and not row.macs]
    parts = [_coverage_table(coverage, listed)]
    if others:
        counts = Counter(row.op for row in others)
        counted = ", ".join(f"{count} {escape(op)}" for op, count in sorted(counts.items()))
        parts.append(
            f"<details><summary>Digital, with no weight to multiply by: {counted}</summary>"
            f"{_coverage_table(coverage, others)}</details>"
        )
    return "\n".join(parts)


def _coverage_table(coverage: CoverageReport, listed: Sequence[CoverageRow]) -> str:
    marks = {"analog": ("on", "analog"), "unsupported": ("bad", "unsupported")}
    rows: list[list[str]] = []
    for row in listed:
        style, where = marks.get(row.kind, ("off", "digital"))
        share = 100 * coverage.share(row)
        names = (escape(row.module or row.reason), f"<code>%{escape(row.node)}</code>",
                 escape(row.op), f'<span class="{style}">{where}</span>',
                 "" if row.kind == "analog" else escape(row.reason),
                 f"<code>{escape(row.source)}</code>")  # fmt: skip
        bar = f'<span class="bar"><i style="width:{share:.0f}%"></i></span>'
        rows.append([*names, count_text(row.macs), f"{share:.1f} %{bar}"])
    header = ["module", "node", "operation", "where", "why", "source line", "MACs", "share"]
    if all(row[4] == "" for row in rows):
        header, rows = _drop(header, 4), [_drop(row, 4) for row in rows]
    return table(header, rows, len(header) - 2)


def coverage_page(coverage: CoverageReport) -> str:
    """A report by itself: figures of each kind, what is unsupported, then every node."""
    figures = [(f"{100 * coverage.analog_share:.1f} %",
                f"of {count_text(coverage.macs)} MACs analog")]  # fmt: skip
    for kind, (nodes, macs) in coverage.kinds.items():
        if nodes:
            figures.append((f"{nodes}", f"{KINDS[kind]}, {count_text(macs)} MACs"))
    body = ["<h1>Coverage</h1>", f"<p>{escape(coverage.summary())}</p>", facts(figures)]
    if coverage.unsupported:
        body += section("Unsupported", "Operators with stored weights that have no analog form.")
        body.append(_coverage_table(coverage, coverage.unsupported))
    body += section("All nodes", "In the order in which they run.")
    return wrap([*body, coverage_html(coverage)])


def tiles_html(tiles: TileTable) -> str:
    """Table of the tile arrays with bars of utilisation."""
    rows = []
    for m in tiles:
        ids = m.tile_ids
        span = f"{ids.start}" if len(ids) == 1 else f"{ids.start}…{ids.stop - 1}"
        grid = f"{m.groups} × " if m.groups > 1 else ""
        rows.append(
            (
                escape(m.array),
                escape(m.op),
                "×".join(map(str, m.weight_shape)),
                f"{grid}{m.grid[0]} × {m.grid[1]}",
                f"{m.tile_rows}×{m.tile_cols}",
                span,
                f'{100 * m.utilisation:.1f} %<span class="bar"><i style="width:'
                f'{100 * m.utilisation:.0f}%"></i></span>',
            )
        )
    header = ("array", "operation", "weight", "grid", "tile", "tile ids", "used")
    return f"<p>{escape(tiles.summary())}</p>" + table(header, rows, 2)


def step_html(step: Step) -> str:
    """What a pass changed in the printed form, folded."""
    name = f"<code>{escape(step.name)}</code>"
    if step.before == step.after:
        return f"<details><summary>{name}<em>no change</em></summary></details>"
    # The printed form pads names to one width, which a single new name may change for all lines.
    before, after = (
        re.sub(r" += ", " = ", text).splitlines() for text in (step.before, step.after)
    )
    lines = list(difflib.unified_diff(before, after, n=1, lineterm=""))
    body, added, removed = [], 0, 0
    for line in lines[2:]:
        kind = {"+": "plus", "-": "minus", "@": "skip"}.get(line[:1], "")
        added, removed = added + (kind == "plus"), removed + (kind == "minus")
        text = "⋯" if kind == "skip" else line
        body.append(f'<span class="{kind}">{escape(text)}</span>' if kind else escape(text) + "\n")
    count = f"<em>{added} lines in, {removed} out</em>"
    return f"<details><summary>{name}{count}</summary><pre>{''.join(body)}</pre></details>"


def _drop(row: Sequence[str], position: int) -> list[str]:
    """``row`` without one cell."""
    return [*row[:position], *row[position + 1 :]]
