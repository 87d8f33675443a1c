"""Models on drifting memory: what compensation, scales and ranges do, fresh and a year later."""

from __future__ import annotations

import re

import over_time
import pytest
from example_tables import PAGE
from pretrained import MissingPackage

from analogc import EvaluationResult

pytestmark = pytest.mark.slow
YEAR = over_time.TIMES["1 y"]


def assert_documented(found: EvaluationResult, title: str, metric: str, within: float) -> None:
    """Means are those of docs/models.md, which are of more seeds."""
    page = PAGE.read_text().partition(f"**{title}**")[2].split("\n**")[0].split("\n## ")[0]
    lines = re.findall(rf"^\| (.*) \| {re.escape(metric)} \| (.*) \|$", page, re.MULTILINE)
    known = {
        label: [float(cell.split()[0]) for cell in cells.split(" | ")] for label, cells in lines
    }
    for label in found.variants:
        for seconds, value in zip(over_time.TIMES.values(), known[label], strict=True):
            if seconds in found.times:
                assert found.at(seconds, metric, label).mean == pytest.approx(value, abs=within)


def test_minilm_needs_a_scale_per_column_and_a_range_per_token() -> None:
    labels = ["pcm-like", "DAC range per vector", "same, no compensation", "same, one weight scale"]
    labels += ["same, DAC range per vector"]
    try:
        found, digital = over_time.sentences(2, labels, ("20 s", "1 y"))
    except MissingPackage as err:
        pytest.skip(str(err))
    assert digital["R@1"] == 1
    fixed, token, drifted, tensor, hermes = (
        [found.at(time, "cosine", label).mean for time in (0.0, YEAR)] for label in labels
    )
    assert token[0] > 0.85 and found.at(0.0, "R@1", labels[1]).mean > 0.9
    assert tensor[0] < 0.3 < fixed[0] < 0.6
    assert token[0] > token[1] > drifted[1] + 0.1
    assert hermes[0] > 0.92 and found.at(YEAR, "R@1", labels[4]).mean > 0.85
    assert_documented(found, "all-MiniLM-L6-v2 over time, 24 pairs of sentences", "cosine", 0.05)


def test_digits_over_a_year() -> None:
    labels = ["DAC range per vector, no output noise", "same, no compensation, no output noise"]
    found, digital = over_time.digits(3, labels, ("20 s", "30 d", "1 y"))
    assert digital["accuracy"] > 98
    kept, drifted = ([found.at(t, variant=label).mean for t in found.times] for label in labels)
    assert kept[0] == drifted[0] > 95
    assert kept[-1] > 90
    assert_documented(found, "Digits network over time, test accuracy in percent", "accuracy", 4.0)
