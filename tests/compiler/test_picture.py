"""Pictures: the layout's promises, well-formed SVG and HTML, everything escaped."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import analogc
from analogc.compiler.picture import Series, graph_svg, line_chart_svg
from analogc.compiler.picture.chart import ticks
from analogc.compiler.picture.graph import shade
from analogc.compiler.picture.layout import Layout, layered
from analogc.compiler.picture.text import clip, escape

Sizes = dict[str, tuple[float, float]]
Edges = list[tuple[str, str]]
SVG = "{http://www.w3.org/2000/svg}"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = x + self.conv(x)
        scores: Tensor = self.head(x.mean((2, 3)).unsqueeze(0).squeeze(0))
        return scores


@pytest.fixture(scope="module")
def compiled() -> analogc.CompiledModel:
    target = analogc.targets.generic_8bit().replace(tile=analogc.TileSpec(32, 8))
    model = Residual().eval()
    return analogc.compile(
        model, (torch.randn(2, 1, 6, 6),), target=target, dynamic_shapes="batch", seed=0
    )


# -- layout ---------------------------------------------------------------------------------------


def dag(nodes: int, edges: int, seed: int) -> tuple[Sizes, Edges]:
    rng = random.Random(seed)
    names = [f"n{i}" for i in range(nodes)]
    sizes = {name: (rng.uniform(40, 200), rng.choice([30.0, 44.0])) for name in names}
    pairs = {tuple(sorted(rng.sample(range(nodes), 2))) for _ in range(edges)}
    chain = list(pairwise(names))
    return sizes, sorted({*chain[::2], *((names[a], names[b]) for a, b in pairs)})


def check_layout(placed: Layout, edges: Edges) -> None:
    for box in placed.boxes.values():
        assert box.x - box.width / 2 >= -0.01 and box.x + box.width / 2 <= placed.width + 0.01
        assert box.y >= 0 and box.y + box.height <= placed.height + 0.01
    for a, b in combinations(placed.boxes.values(), 2):
        beside = abs(a.x - b.x) >= (a.width + b.width) / 2 - 0.01
        above = a.y + a.height <= b.y + 0.01 or b.y + b.height <= a.y + 0.01
        assert beside or above, "boxes overlap"
    assert set(placed.edges) == set(edges)
    for (u, v), path in placed.edges.items():
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path)]
        start, end = placed.boxes[u], placed.boxes[v]
        assert numbers[:2] == pytest.approx([start.x, start.y + start.height], abs=0.06)
        assert numbers[-2:] == pytest.approx([end.x, end.y], abs=0.06)


@pytest.mark.parametrize("seed", range(12))
def test_boxes_never_overlap_and_edges_meet_their_boxes(seed: int) -> None:
    sizes, edges = dag(nodes=3 + 9 * seed, edges=2 + 8 * seed, seed=seed)
    check_layout(layered(sizes, edges), edges)


def test_edges_run_downwards_within_a_column() -> None:
    sizes, edges = dag(nodes=12, edges=10, seed=1)
    placed = layered(sizes, edges)
    for u, v in edges:
        assert placed.boxes[u].y < placed.boxes[v].y


def test_a_long_chain_is_broken_into_columns() -> None:
    sizes = {f"n{i}": (150.0, 40.0) for i in range(300)}
    edges = list(pairwise(sizes))
    placed = layered(sizes, edges)
    check_layout(placed, edges)
    assert placed.height < 8 * placed.width
    assert len({round(box.x) for box in placed.boxes.values()}) > 3


def test_a_short_chain_stays_in_one_straight_column() -> None:
    sizes = {f"n{i}": (60.0 + 10 * i, 40.0) for i in range(12)}
    placed = layered(sizes, list(pairwise(sizes)))
    xs = [box.x for box in placed.boxes.values()]
    assert max(xs) - min(xs) < 0.1


def test_columns_are_cut_where_few_edges_cross() -> None:
    sizes: Sizes = {"in": (100.0, 40.0)}
    edges: Edges = []
    last = "in"
    for i in range(40):
        names = [f"{part}{i}" for part in ("a", "b", "join")]
        sizes.update((name, (100.0, 40.0)) for name in names)
        edges += [(last, names[0]), (names[0], names[1]), (names[1], names[2]), (last, names[2])]
        last = names[2]
    placed = layered(sizes, edges)
    check_layout(placed, edges)
    tops = [name for name, box in placed.boxes.items() if box.y < 40 and name != "in"]
    assert tops and all(name.startswith("a") for name in tops)


def test_a_layout_of_nothing_and_of_one_node() -> None:
    assert layered({}, []).boxes == {}
    placed = layered({"only": (50.0, 20.0)}, [])
    assert (placed.width, placed.height) == (50.0, 20.0)


def test_an_input_stands_above_its_first_use() -> None:
    sizes = {name: (50.0, 20.0) for name in ("x", "a", "b", "c", "mask", "d")}
    edges = [("x", "a"), ("a", "b"), ("b", "c"), ("c", "d"), ("mask", "d")]
    boxes = layered(sizes, edges).boxes
    assert boxes["mask"].y == boxes["c"].y


def test_a_layout_is_the_same_every_time() -> None:
    sizes, edges = dag(nodes=60, edges=70, seed=5)
    assert layered(sizes, edges) == layered(sizes, edges)


# -- graph ----------------------------------------------------------------------------------------


def texts(svg: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(svg).iter(f"{SVG}text")]


def test_the_graph_shows_layers_types_and_tiles(compiled: analogc.CompiledModel) -> None:
    shown = texts(graph_svg(compiled.graph))
    for wanted in ("stem", "conv", "head", "add", "input", "output"):
        assert wanted in shown
    assert "conv2d · 3×1 tiles · 75.0 % used" in shown
    assert "%x: f32[s0, 1, 6, 6]" in shown
    assert not any("derive" in text or "running_mean" in text for text in shown)


def test_every_activation_edge_is_drawn(compiled: analogc.CompiledModel) -> None:
    root = ET.fromstring(graph_svg(compiled.graph))
    arrows = [path for path in root.iter(f"{SVG}path") if path.get("marker-end")]
    # input-stem-relu-conv-add, relu-add, add-mean-views-head-output
    assert len(arrows) == 9


def test_views_in_a_row_share_a_box(compiled: analogc.CompiledModel) -> None:
    svg = graph_svg(compiled.graph)
    assert "unsqueeze → squeeze" in texts(svg)
    titles = [title.text or "" for title in ET.fromstring(svg).iter(f"{SVG}title")]
    assert any("%unsqueeze" in title and "%squeeze" in title for title in titles)


def test_analog_boxes_are_coloured_by_utilisation(compiled: analogc.CompiledModel) -> None:
    root = ET.fromstring(graph_svg(compiled.graph))
    groups = [g for g in root.iter(f"{SVG}g") if g.get("class") == "analog"]
    fills = [str(g.find(f"{SVG}rect").get("fill")) for g in groups]  # type: ignore[union-attr]
    assert fills == [shade(mapping.utilisation) for mapping in compiled.tiles]
    assert len(set(fills)) == 3


def test_tooltips_name_module_source_line_and_tiles(compiled: analogc.CompiledModel) -> None:
    root = ET.fromstring(graph_svg(compiled.graph))
    titles = [title.text or "" for title in root.iter(f"{SVG}title")]
    (conv,) = [title for title in titles if "module conv" in title]
    assert "test_picture.py:" in conv and "3×1 tiles of 32×8, 75.0 % used" in conv
    assert str(Path(__file__).parent) not in conv


def test_shade_is_darker_for_fuller_tiles() -> None:
    levels = [sum(int(shade(s / 10)[i : i + 2], 16) for i in (1, 3, 5)) for s in range(11)]
    assert levels == sorted(levels, reverse=True)
    assert shade(-1) == shade(0) and shade(2) == shade(1)


def test_a_digital_graph_and_one_with_several_outputs_can_be_drawn() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            a, b = x.split(2, 1)
            return a * y, b @ b.mT

    model = analogc.compile(Two(), (torch.randn(2, 4), torch.randn(2, 2)), target="ideal")
    shown = texts(graph_svg(model.graph))
    assert shown.count("input") == 2 and "matmul" in shown


def test_an_empty_graph_can_be_drawn() -> None:
    graph = fx.Graph()
    graph.output(())
    assert "output" in texts(graph_svg(graph))


# -- chart ----------------------------------------------------------------------------------------


def test_a_chart_has_a_line_a_label_and_error_bars_for_each_series() -> None:
    series = [
        Series("first", ((0, 99, 0), (10, 90, 2))),
        Series("second", ((0, 98, 0.5), (10, 80, 4))),
    ]
    svg = line_chart_svg(series, "noise", "accuracy", "%", level=("digital", 99.5), ceiling=100)
    root = ET.fromstring(svg)
    shown = [node.text for node in root.iter(f"{SVG}text")]
    for wanted in ("first", "second", "digital", "noise", "accuracy"):
        assert wanted in shown
    titles = [title.text for title in root.iter(f"{SVG}title")]
    assert "second, 10%: 80.0 ± 4.0%" in titles and len(titles) == 4
    assert sum("m-3 0h6" in str(path.get("d")) for path in root.iter(f"{SVG}path")) == 3


def test_a_chart_keeps_all_points_inside_its_frame() -> None:
    series = [Series("a", tuple((x / 10, 100 - x * x, x) for x in range(9)))]
    root = ET.fromstring(line_chart_svg(series, "x", "y", ceiling=100, size=(400, 300)))
    for dot in root.iter(f"{SVG}circle"):
        assert 0 <= float(str(dot.get("cx"))) <= 400 and 0 <= float(str(dot.get("cy"))) <= 300


def test_a_chart_of_one_point_and_of_equal_values() -> None:
    ET.fromstring(line_chart_svg([Series("a", ((5, 7, 0),))], "x", "y"))
    ET.fromstring(line_chart_svg([Series("a", ((0, 0, 0), (1, 0, 0)))], "x", "y"))


@pytest.mark.parametrize(
    "series",
    [
        [],
        [Series("a", ())],
        [Series("a", ((0, float("nan"), 0),))],
        [Series("a", ((0, 1, 0),))] * 7,
    ],
)
def test_a_chart_refuses_what_it_cannot_draw(series: list[Series]) -> None:
    with pytest.raises(analogc.errors.InputError):
        line_chart_svg(series, "x", "y")


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [
        (0, 20, 9, [0, 2.5, 5, 7.5, 10, 12.5, 15, 17.5, 20]),
        (83.1, 99.2, 5, [80, 85, 90, 95, 100]),
        (5, 5, 3, [2.5, 5, 7.5]),
    ],
)
def test_ticks_are_round(low: float, high: float, most: int, expected: list[float]) -> None:
    assert ticks(low, high, most) == expected


# -- pages ----------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks that tags are closed, and collects what a browser would load or run."""

    void = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [str(v) for k, v in attrs if k in ("src", "href", "xlink:href", "onload")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def check_page(html: str) -> Page:
    page = Page(html)
    assert not page.open and not page.loads
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.search(r"url\((?!#)", html) and "@import" not in html
    addresses = set(re.findall(r"https?://[^\"' <]*", html))
    assert addresses <= {"http://www.w3.org/2000/svg"}
    return page


def test_the_notebook_form_styles_only_itself(compiled: analogc.CompiledModel) -> None:
    html = compiled._repr_html_()
    check_page(html)
    assert "<html" not in html and "<body" not in html
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.S)
    rules = re.findall(r"([^{}]+)\{", style)
    assert all(part.strip().startswith(".analogc") for rule in rules for part in rule.split(","))


def test_the_notebook_form_has_figures_coverage_and_the_graph(
    compiled: analogc.CompiledModel,
) -> None:
    html = compiled._repr_html_()
    page = check_page(html)
    for wanted in ("generic-8bit", "Coverage", "stem", "conv2d"):
        assert wanted in page.text
    assert page.tags.count("svg") == 1
    assert len(html) < 40_000


def test_the_notebook_form_of_a_large_model_leaves_the_graph_out() -> None:
    layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(80)]
    model = analogc.compile(nn.Sequential(*layers).eval(), (torch.randn(1, 4),), target="ideal")
    html = model._repr_html_()
    assert "<svg" not in html and "to_html" in html
    assert len(html) < 120_000


def test_a_digital_layer_has_its_reason_in_the_notebook() -> None:
    model = analogc.compile(Residual().eval(), (torch.randn(2, 1, 6, 6),), select=["head"])
    assert "kept digital by select=" in check_page(model._repr_html_()).text


NASTY = "<script>alert('x')</script>&\""


def nasty_graph(graph: fx.Graph) -> Iterator[fx.Node]:
    for node in graph.nodes:
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = {"a": (NASTY, NASTY)}
            yield node


def test_names_from_the_model_are_escaped() -> None:
    target = analogc.targets.generic_8bit().replace(name=NASTY)
    model = analogc.compile(Residual().eval(), (torch.randn(2, 1, 6, 6),), target=target)
    assert list(nasty_graph(model.graph))
    page = check_page(model._repr_html_())
    assert NASTY in page.text
    ET.fromstring(graph_svg(model.graph))


def test_escape_and_clip() -> None:
    assert escape("<a & 'b'>") == "&lt;a &amp; &#x27;b&#x27;&gt;"
    assert escape("a\x00b\ud800") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert clip("abcdef", 4) == "abc…" and clip("abcdef", 4, tail=True) == "…def"
    assert clip("abcd", 4) == "abcd"
