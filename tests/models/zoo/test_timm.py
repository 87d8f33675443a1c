"""timm's model families, with random weights."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

from .checks import check_model, randomise, train_like_eager
from .families import TIMM, Family
from .shim import need

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    need("torchvision", "timm")


def build(family: Family) -> nn.Module:
    create = importlib.import_module("timm").create_model
    try:
        model: nn.Module = create(family.name, img_size=family.size)
    except TypeError:  # takes pictures of any size
        model = create(family.name)
    return randomise(model)


@pytest.mark.parametrize("family", TIMM, ids=str)
def test_eval(family: Family) -> None:
    check_model(build(family), (torch.randn(2, 3, family.size, family.size),), static=False)


TRAINED = ("test_efficientnet", "test_mambaout", "test_nfnet", "test_vit", "mobileone_s0")


@pytest.mark.parametrize("family", [f for f in TIMM if f.name in TRAINED], ids=str)
def test_train(family: Family) -> None:
    train_like_eager(build(family), (torch.randn(4, 3, family.size, family.size),))
