"""torchvision's model families, with random weights: classifiers, segmentation, video, flow."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from .checks import check_model, randomise, train_like_eager
from .families import TORCHVISION, Family
from .shim import need

pytestmark = [
    pytest.mark.zoo,
    # RAFT keeps its correlation pyramid as an attribute, which export says that it drops, and
    # starts from a flow of zero.
    pytest.mark.filterwarnings("ignore:The tensor attributes self.corr_block:UserWarning"),
    pytest.mark.filterwarnings("ignore:calibration data is zero .*convflow1:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    need("torchvision")


def build(family: Family) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    model: nn.Module = models.get_model(family.name, weights=None, **family.options)
    return randomise(model)


def inputs(family: Family, batch: int = 2) -> tuple[Tensor, ...]:
    frames = [family.frames] if family.frames else []
    shape = (batch, 3, *frames, family.size, family.size)
    return tuple(torch.randn(shape) for _ in range(family.images))


@pytest.mark.parametrize("family", TORCHVISION, ids=str)
def test_eval(family: Family) -> None:
    check_model(build(family), inputs(family))


def maxvit() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The presets are made for 224 pixels."""
    module = importlib.import_module("torchvision.models.maxvit")
    model = module.MaxVit((64, 64), 16, 2, [16, 32], [1, 2], 8, 0.0)
    return model, (torch.randn(2, 3, 64, 64),)


def mvit(version: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The presets are made for 16 frames of 224 pixels."""
    module = importlib.import_module("torchvision.models.video.mvit")
    wide = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3]}
    blocks = [
        module.MSBlockConfig(1, 16, 16, stride_q=[1, 1, 1], stride_kv=[1, 4, 4], **wide),
        module.MSBlockConfig(2, 16, 32, stride_q=[1, 2, 2], stride_kv=[1, 2, 2], **wide),
        module.MSBlockConfig(2, 32, 32, stride_q=[1, 1, 1], stride_kv=[1, 2, 2], **wide),
    ]
    if version == 1:
        blocks = [module.MSBlockConfig(1, 16, 32, [], [], [], []), *blocks[1:]]
        blocks[1].input_channels = 32
    second = version == 2
    model = module.MViT(
        (64, 64), 4, blocks,
        residual_pool=second, residual_with_cls_embed=not second,
        rel_pos_embed=second, proj_after_attn=second,
    )  # fmt: skip
    return model, (torch.randn(2, 3, 4, 64, 64),)


@pytest.mark.parametrize("make", [maxvit, lambda: mvit(1), lambda: mvit(2)], ids=str)
def test_made_small(make: Any) -> None:
    model, given = make()
    check_model(randomise(model), given)


TRAINED = ("resnet18", "mobilenet_v3_small", "densenet121", "vit_b_32", "swin_t", "r3d_18")


@pytest.mark.parametrize("family", [f for f in TORCHVISION if f.name in TRAINED], ids=str)
def test_train(family: Family) -> None:
    model = build(family)
    train_like_eager(model, inputs(family, batch=4))
