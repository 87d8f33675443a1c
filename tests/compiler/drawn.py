"""Models for the tests of pictures, and a page's data read back from its text."""

from __future__ import annotations

import json
import re
from typing import Any

import torch
from torch import Tensor, nn

import analogc

SMALL = analogc.targets.generic_8bit().replace(tile=analogc.TileSpec(32, 8))
NASTY = "</script><script>alert('x')</script><!--&\"\\\u2028\ud800"


class Block(nn.Module):
    """A residual block whose activation is one module, called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.conv2(self.relu(self.norm(self.conv1(x)))) + x)
        return out


def residual(**options: Any) -> analogc.CompiledModel:
    """Two blocks and a classifier, on tiles of 32 rows and 8 columns."""
    torch.manual_seed(0)
    body = nn.Sequential(Block(8), Block(8))
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    options = {"target": SMALL, "seed": 0, **options}
    return analogc.compile(model.eval(), (torch.randn(2, 8, 6, 6),), **options)


class Tied(nn.Module):
    """Two uses of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


def data_of(html: str) -> dict[str, Any]:
    """The JSON in a page."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)
    assert found is not None, "the page has data"
    data: dict[str, Any] = json.loads(found[1])
    return data


def lines_of(data: dict[str, Any], stage: int = -1, graph: int = 0) -> dict[str, dict[str, Any]]:
    """Nodes of one stage, by name."""
    stages = data["graphs"][graph]["stages"]
    stage = stage % len(stages)
    while stages[stage].get("same"):
        stage -= 1
    rows = (data["lines"][row] for row in stages[stage]["lines"])
    return {row[0]: dict(zip(data["fields"], row, strict=False)) for row in rows}
