"""torchvision's model families, with random weights."""

from __future__ import annotations

import importlib

import pytest
import torch

from .checks import check_model, randomise
from .shim import need

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    need("torchvision")


@pytest.mark.parametrize("name", ["resnet18"])
def test_classifiers(name: str) -> None:
    models = importlib.import_module("torchvision.models")
    model = randomise(models.get_model(name, weights=None))
    check_model(model, (torch.randn(2, 3, 64, 64),))
