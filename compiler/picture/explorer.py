"""The interactive page about a compiled model: one file that loads nothing.

Its scripts and styles lie in ``html/`` and are written into the page, whose content policy lets
nothing else run or load. Data of the model is JSON that the scripts turn into text nodes, and
escaped HTML in the tables.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import Any

from ..build import Step
from ..inspected import Inspected
from ..target_text import target_text
from .dataflow import dataflow_html
from .explorer_data import model_data
from .page import coverage_html, step_html
from .text import escape

SCRIPTS = (
    "dom.js",
    "layout.js",
    "fold.js",
    "view.js",
    "minimap.js",
    "charts.js",
    "panel.js",
    "main.js",
)
"""In the order in which they are put together."""
_TABS = ("graph", "tiles", "layers", "coverage", "passes", "ir")
_TITLES = {"layers": "Distributions", "ir": "IR"}


def explorer(model: Inspected) -> str:
    """HTML text of the page; the same model gives the same text."""
    script = _script()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_sha256(script)}'"
    title = f"analogc: {model.target.name}"
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{_file('explorer.css')}</style>\n</head>\n<body>",
            *_header(model),
            _GRAPH,
            _TILES,
            *_panel("layers", '<div id="layer-charts"></div>'),
            *_panel(
                "coverage",
                f"{coverage_html(model.coverage)}<h2>Dataflow</h2>{dataflow_html(model.dataflow)}",
                "text",
            ),
            *_panel("passes", "\n".join(_passes(model)), "text"),
            *_panel("ir", f"<pre>{escape(model.ir())}</pre>", "text"),
            f'<script type="application/json" id="data">{as_json(model_data(model))}</script>',
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def as_json(data: Any) -> str:
    """JSON that is safe inside a ``script`` element: nothing in it can end one."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


@cache
def _file(name: str) -> str:
    return resources.files(__package__).joinpath("html", name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    body = "\n".join(map(_file, SCRIPTS))
    return f'\n"use strict";\n(() => {{\n{body}}})();\n'


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _header(model: Inspected) -> Iterator[str]:
    coverage, tiles = model.coverage, model.tiles
    mode = "training" if model.training else "eval"
    yield f"<header><h1>{escape(model.target.name)}</h1>"
    yield f'<span class="dim">{escape(target_text(model.target))}; {mode} mode</span>'
    figures = (coverage.summary(), tiles.summary())
    yield f'<ul class="figures">{"".join(f"<li>{escape(text)}</li>" for text in figures)}</ul>'
    yield "</header>"
    buttons = "".join(
        f'<button role="tab" type="button" id="for-{name}" data-tab="{name}" '
        f'aria-controls="tab-{name}" aria-selected="{"true" if name == "graph" else "false"}">'
        f"{_TITLES.get(name, name.capitalize())}</button>"
        for name in _TABS
    )
    yield f'<nav role="tablist" aria-label="views">{buttons}</nav>'


def _panel(name: str, body: str, style: str = "") -> Iterator[str]:
    yield f'<div role="tabpanel" id="tab-{name}" aria-labelledby="for-{name}" class="{style}"'
    yield " hidden>"
    yield body
    yield "</div>"


def _passes(model: Inspected) -> Iterator[str]:
    for position, module in enumerate(model.graphs):
        history: tuple[Step, ...] = getattr(module, "history", ())
        if len(model.graphs) > 1:
            yield f"<h2>graph {escape(getattr(module, 'label', position))}</h2>"
        if not history:
            yield "<p>No history: the model comes from a file.</p>"
        yield from map(step_html, history)


_GRAPH = """<div role="tabpanel" id="tab-graph" aria-labelledby="for-graph">
<div class="tools">
<div class="search"><input type="search" id="search" placeholder="Search nodes, layers ( / )"
 aria-label="search the graph" role="combobox" aria-expanded="false" aria-controls="found"
 aria-autocomplete="list" autocomplete="off" spellcheck="false">
<ul id="found" role="listbox" aria-label="found" hidden></ul></div>
<label id="graph-field" hidden>graph <select id="graph-choice"></select></label>
<button id="fold-all" type="button">Fold all</button>
<button id="unfold-all" type="button">Open all</button>
<button id="fit" type="button">Fit</button>
<label><input type="checkbox" id="plumbing"> sizes and computed weights</label>
<div class="passes"><label for="stage">passes</label>
<input type="range" id="stage" min="0" value="0" step="1">
<output id="stage-name" for="stage"></output>
<label><input type="checkbox" id="changes" checked> mark changes</label>
<span id="stage-count"></span></div>
</div>
<div class="work">
<div id="canvas" tabindex="0" role="application" aria-label="graph; arrow keys walk along it"
 aria-describedby="said">
<div id="status"></div><canvas id="minimap" aria-hidden="true"></canvas>
<div class="legend"><span>tiles 0 % <i class="ramp"></i> 100 % used</span>
<span><i class="swatch"></i> digital</span><span><i class="swatch moves"></i> moves data</span>
<span><i class="swatch choice"></i> digital by choice</span>
<span><i class="swatch unsupported"></i> unsupported</span>
<span id="marks"><i class="swatch added"></i> added <i class="swatch changed"></i> changed
<i class="swatch removed"></i> removed</span></div>
</div>
<aside id="panel" aria-label="details"></aside>
</div>
<div class="hidden-text" id="said" aria-live="polite"></div>
</div>"""
_TILES = """<div role="tabpanel" id="tab-tiles" aria-labelledby="for-tiles" hidden>
<div class="tools">
<label>order <select id="tile-order"><option value="first">as used</option>
<option value="used">least used first</option><option value="tiles">most tiles first</option>
</select></label>
<label>size <input type="range" id="tile-zoom" min="0.25" max="4" step="0.25" value="1"></label>
<span id="tile-said" class="dim" aria-live="polite"></span>
</div>
<div id="tile-map"></div>
</div>"""
