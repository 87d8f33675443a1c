from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.compiler.picture import explorer
from analogc.compiler.picture.histogram import BINS, histogram, ranges

from .drawn import NASTY, SMALL, Tied, data_of, lines_of, residual


@pytest.fixture(scope="module")
def compiled() -> analogc.CompiledModel:
    return residual()


@pytest.fixture(scope="module")
def page(compiled: analogc.CompiledModel) -> str:
    return compiled.to_html()


class Tags(HTMLParser):
    """Tags with their attributes; checks that all are closed."""

    void = {"meta", "input", "br"}

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


# -- one file -------------------------------------------------------------------------------------


def check_self_contained(html: str) -> None:
    tags = Tags(html).found
    assert [tag for tag, _ in tags].count("script") == 2
    assert not {"link", "img", "iframe", "object", "base"} & {tag for tag, _ in tags}
    for _, attributes in tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes)
        assert not [name for name in attributes if name.startswith("on")]
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert set(re.findall(r"https?://[^\"' <]*", html)) <= {"http://www.w3.org/2000/svg"}


def test_the_page_is_one_file(page: str) -> None:
    check_self_contained(page)


def test_only_the_script_of_the_page_may_run(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    script = re.search(r"<script>(.*?)</script>", page, re.S)
    assert policy is not None and script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy[1]
    assert f"script-src 'sha256-{digest}'" in policy[1]


def test_the_scripts_are_all_shipped_and_all_used() -> None:
    folder = Path(explorer.__file__).parent / "html"
    assert {path.name for path in folder.iterdir()} == {*explorer.SCRIPTS, "explorer.css"}


def test_the_same_model_gives_the_same_page(page: str, compiled: analogc.CompiledModel) -> None:
    assert compiled.to_html() == page
    assert residual().to_html() == page


def test_the_page_is_written_to_a_path_too(
    page: str, compiled: analogc.CompiledModel, tmp_path: Path
) -> None:
    assert compiled.to_html(tmp_path / "a.html") == page
    compiled.to_html(str(tmp_path / "b.html"))
    for name in ("a.html", "b.html"):
        assert (tmp_path / name).read_text(encoding="utf-8") == page


def test_names_of_the_user_end_no_element(tmp_path: Path) -> None:
    model = residual(target=SMALL.replace(name=NASTY))
    for node in model.graph.nodes:
        if "nn_module_stack" in node.meta:
            node.meta["nn_module_stack"] = {"a": (NASTY, NASTY)}
            node.meta["stack_trace"] = f'File "{NASTY}", line 1, in forward'
    html = model.to_html(tmp_path / "nasty.html")
    check_self_contained(html)
    assert "<script>alert" not in html
    line = lines_of(data_of(html))["conv2d"]
    assert line["module"] == NASTY


# -- graphs ---------------------------------------------------------------------------------------


def test_every_node_is_on_the_page_with_its_edges(
    page: str, compiled: analogc.CompiledModel
) -> None:
    lines = lines_of(data_of(page))
    for node in compiled.graph.nodes:
        if node.op != "get_attr":
            inputs = [n.name for n in node.all_input_nodes if n.op != "get_attr"]
            assert lines[node.name]["inputs"] == inputs
    assert len(lines) == sum(node.op != "get_attr" for node in compiled.graph.nodes)


def test_the_stages_are_those_of_the_history(page: str, compiled: analogc.CompiledModel) -> None:
    data = data_of(page)
    stages = data["graphs"][0]["stages"]
    assert [s["pass"] for s in stages] == ["captured", *(s.name for s in compiled.history)]
    for position, text in enumerate(
        [compiled.history[0].before, *(s.after for s in compiled.history)]
    ):
        lines = lines_of(data, position).values()
        printed = [line.partition(" = ")[2] or line for line in text.splitlines()]
        assert [line["text"] for line in lines] == printed


def test_a_changed_graph_is_a_stage_of_its_own() -> None:
    model = residual()
    (relu,) = (node for node in model.graph.nodes if node.name == "relu_1")
    relu.target = torch.ops.aten.tanh.default
    model.recompile()
    data = data_of(model.to_html())
    assert data["graphs"][0]["stages"][-1]["pass"] == "current graph"
    assert lines_of(data)["relu_1"]["op"] == "aten.tanh"
    assert lines_of(data, -2)["relu_1"]["op"] == "aten.relu"


def test_a_loaded_model_has_a_page_without_history(
    compiled: analogc.CompiledModel, tmp_path: Path
) -> None:
    compiled.save(tmp_path / "m.analogc")
    html = analogc.load(tmp_path / "m.analogc").to_html()
    data = data_of(html)
    assert [stage["pass"] for stage in data["graphs"][0]["stages"]] == ["current graph"]
    assert data["arrays"] == data_of(compiled.to_html())["arrays"]
    assert "No history" in html


def test_analog_nodes_name_their_array_layer_and_source(page: str) -> None:
    data = data_of(page)
    line = lines_of(data)["conv2d_1"]
    array = data["arrays"][line["array"]]
    assert (line["layer"], array["name"], array["op"]) == ("0.0.conv2", "0.0.conv2", "conv2d")
    assert array["row_bounds"] == [0, 27, 54, 72] or array["row_bounds"][-1] == 72
    assert line["macs"] > 0
    assert "drawn.py:" in lines_of(data)["add"]["source"]
    assert str(Path(__file__).parents[2]) not in page


def test_a_digital_layer_says_why() -> None:
    line = lines_of(data_of(residual(select=["3"]).to_html()))["linear"]
    assert line["rule"] == "choice" and "select=" in line["why"]


# -- tiles ----------------------------------------------------------------------------------------


def test_tile_ids_cover_all_tiles_once(page: str, compiled: analogc.CompiledModel) -> None:
    ids: list[int] = []
    for array in data_of(page)["arrays"]:
        rows, cols = len(array["row_bounds"]) - 1, len(array["col_bounds"]) - 1
        ids += range(array["first"], array["first"] + array["groups"] * rows * cols)
    assert sorted(ids) == list(range(compiled.tiles.total))


def test_a_shared_weight_has_one_array_with_both_uses() -> None:
    model = analogc.compile(Tied(), (torch.randn(2, 16),), target=SMALL)
    (array,) = data_of(model.to_html())["arrays"]
    assert array["uses"] == [[0, "linear"], [0, "linear_1"]]


# -- distributions --------------------------------------------------------------------------------


def test_weights_have_a_histogram(page: str, compiled: analogc.CompiledModel) -> None:
    for array in data_of(page)["arrays"]:
        weight = compiled.weights[array["name"]].get().detach()
        found = array["weights"]
        assert sum(found["counts"]) == found["values"] == weight.numel()
        assert found["min"] == pytest.approx(float(weight.min()), rel=1e-5)
        assert found["max"] == pytest.approx(float(weight.max()), rel=1e-5)
        assert found["std"] == pytest.approx(float(weight.std(correction=0)), rel=1e-4)


def test_ranges_of_each_layer_are_those_of_its_buffers(page: str) -> None:
    layers = data_of(page)["graphs"][0]["layers"]
    model = residual()
    nodes = {node.name: node for node in model.graph.nodes if node.name in layers}
    assert nodes
    for name, layer in layers.items():
        for key, at in (("dac", 3), ("adc", 4)):
            value = model._value(nodes[name].args[at])
            assert layer[key]["values"] == pytest.approx(value.reshape(-1).tolist(), rel=1e-5)
            assert layer[key]["bits"] == 8


def test_sealed_weights_are_not_shown() -> None:
    html = residual(weight_access="sealed").to_html()
    for array in data_of(html)["arrays"]:
        assert set(array["weights"]) == {"hidden"} and "sealed" in array["weights"]["hidden"]


def test_readonly_weights_are_shown(page: str) -> None:
    assert data_of(residual(weight_access="readonly").to_html()) == data_of(page)


def test_weights_on_meta_have_a_page_without_values() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
        example = torch.empty(1, 64)
    compiled = analogc.compile(model.eval(), (example,), target=SMALL)
    data = data_of(compiled.to_html())
    assert all("meta device" in array["weights"]["hidden"] for array in data["arrays"])
    layers = data["graphs"][0]["layers"].values()
    assert layers and all(layer["adc"]["uncalibrated"] for layer in layers)


@pytest.mark.parametrize(
    ("values", "counted", "odd"),
    [
        (torch.linspace(-1, 1, 1000), 1000, 0),
        (torch.zeros(7), 7, 0),
        (torch.tensor([1.0, float("nan"), 2.0, float("inf")]), 2, 2),
        (torch.empty(0), 0, 0),
        (torch.randn(3, 5, dtype=torch.bfloat16), 15, 0),
        (torch.full((2,), float("nan")), 0, 2),
    ],
)
def test_a_histogram_counts_what_is_finite(values: Tensor, counted: int, odd: int) -> None:
    found = histogram(values)
    assert len(found["counts"]) == BINS and sum(found["counts"]) == counted
    assert found["odd"] == odd and found["values"] == values.numel()


def test_a_histogram_of_many_values_samples_them_and_keeps_the_extremes() -> None:
    values = torch.randn(3_000_000, generator=torch.Generator().manual_seed(0))
    values[1234567] = 40.0
    found = histogram(values)
    assert found["sampled"] and found["max"] == 40.0
    assert 900_000 < sum(found["counts"]) <= 1 << 20


def test_many_ranges_are_a_histogram_and_few_a_list() -> None:
    converter = analogc.Converter(bits=6, per_column=True)
    few, many = ranges(converter, torch.ones(2, 8)), ranges(converter, torch.ones(2, 40))
    assert few["values"] == [1.0] * 16 and few["per_column"]
    assert many["histogram"]["values"] == 80


def test_an_ideal_and_a_dynamic_converter_have_no_ranges() -> None:
    target = SMALL.replace(dac=analogc.Converter(8, range="dynamic"), adc=None)
    model = analogc.compile(nn.Linear(8, 4), (torch.randn(1, 8),), target=target)
    (layer,) = data_of(model.to_html())["graphs"][0]["layers"].values()
    assert layer["dac"]["range"] == "dynamic" and "values" not in layer["dac"]
    assert "adc" not in layer


# -- models of another kind -----------------------------------------------------------------------


def test_a_model_without_weights_has_a_page() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x

    data = data_of(analogc.compile(Sum(), (torch.randn(2),)).to_html())
    assert data["arrays"] == [] and set(lines_of(data)) == {"x", "add", "output"}


class Cut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        torch._dynamo.graph_break()
        out: Tensor = self.second(x)
        return out


def test_a_model_of_several_graphs_shows_them_all() -> None:
    model: Any = analogc.compile(Cut(), (torch.randn(2, 8),), target=SMALL, capture="dynamo")
    data = data_of(model.to_html())
    assert len(data["graphs"]) == len(model.graphs) == 2
    names = [
        [use for array in data["arrays"] for use in array["uses"] if use[0] == i] for i in (0, 1)
    ]
    assert all(len(uses) == 1 for uses in names)
    check_self_contained(model.to_html())
    assert model._repr_html_().count("<svg") == 2
