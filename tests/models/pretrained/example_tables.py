"""Tables of the examples, and what docs/models.md says of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from pretrained import MissingPackage, Study

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
Table = dict[str, dict[str, float]]


def measured(study: Callable[[Collection[str]], Study], *labels: str) -> Table:
    """What an example measures for the digital model and some targets; skips without packages."""
    try:
        rows = dict(row for row, _ in study(labels))
    except MissingPackage as err:
        pytest.skip(str(err))
    assert list(rows) == ["digital", *labels]
    return rows


def documented(title: str) -> Table:
    """The table of that title in docs/models.md."""
    _, found, rest = PAGE.read_text().partition(f"**{title}**")
    assert found, f"docs/models.md has no table {title!r}"
    lines = re.findall(r"^\| (.*) \|$", rest.split("\n**")[0], re.MULTILINE)
    header, _, *rows = [line.split(" | ") for line in lines]
    return {
        label: dict(zip(header[1:], map(float, values), strict=True)) for label, *values in rows
    }


def assert_documented(found: Table, title: str, within: float) -> None:
    """Every figure is that of docs/models.md, but for what processors differ in."""
    page = documented(title)
    for label, values in found.items():
        assert values == pytest.approx(page[label], abs=within), label
