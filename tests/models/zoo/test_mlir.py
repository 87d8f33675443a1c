"""Originals of other libraries reach level linalg, and run there as on the tiles."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import analogc

from . import test_timm, test_torchvision, test_transformers
from .families import TIMM, TORCHVISION, Family
from .shim import need

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(importlib.util.find_spec("torch_mlir") is None, reason="no torch_mlir"),
]  # fmt: skip

TEXT = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification",
        "T5ForConditionalGeneration", "MambaForCausalLM")  # fmt: skip
VISION = ("resnet18", "mobilenet_v3_small", "vit_b_32", "shufflenet_v2_x0_5")
TIMM_NAMES = ("test_convnext", "test_efficientnet", "mixer_s32_224")


def check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    ideal = analogc.compile(model, args, kwargs=kwargs, target="ideal")
    # Compiling makes the caches among its outputs known to pytree.
    with torch.no_grad():
        digital = tensors(model(*args, **kwargs))
    for got, want in zip(tensors(ideal.run_mlir(*args, **kwargs)), digital, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-4 * float(want.abs().max()))

    compiled = analogc.compile(model, args, kwargs=kwargs, seed=0)
    text = str(compiled.to_mlir("analog"))
    assert not any(line.strip().partition("= ")[2].startswith("torch") for line in text.split("\n"))
    layers = text.count('= "analog.linear"') + text.count('= "analog.conv"')
    assert layers == len(list(compiled._analog_nodes()))
    with torch.no_grad():
        expected = tensors(compiled(*args, **kwargs))
    found = tensors(compiled.run_mlir(*args, **kwargs))
    for got, want, plain in zip(found, expected, digital, strict=True):
        # A code that another order of sums moves by one changes all that follows, as every
        # rounding of the model does.
        limit = 3 * float((want - plain).abs().max()) + 1e-4 * float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=0, atol=limit)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", TEXT)
def test_transformers_originals(name: str) -> None:
    need("transformers")
    config, model, options, inputs = next(f for f in test_transformers.FAMILIES if f[1] == name)
    check(test_transformers.build(config, model, options), (), inputs())


def _of(families: tuple[Family, ...], names: tuple[str, ...]) -> list[Family]:
    return [family for family in families if family.name in names]


@pytest.mark.parametrize("family", _of(TORCHVISION, VISION), ids=str)
def test_torchvision_originals(family: Family) -> None:
    need("torchvision")
    check(test_torchvision.build(family).eval(), test_torchvision.inputs(family), {})


@pytest.mark.parametrize("family", _of(TIMM, TIMM_NAMES), ids=str)
def test_timm_originals(family: Family) -> None:
    need("torchvision", "timm")
    inputs = (torch.randn(2, 3, family.size, family.size),)
    build: Callable[[Family], nn.Module] = test_timm.build
    check(build(family).eval(), inputs, {})
