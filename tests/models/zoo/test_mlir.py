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
from .families import Family
from .shim import need

pytestmark = [
    pytest.mark.zoo,
    pytest.mark.skipif(importlib.util.find_spec("torch_mlir") is None, reason="needs the extra mlir"),
]  # fmt: skip

TEXT = ("BertForMaskedLM", "GPT2LMHeadModel", "LlamaForCausalLM", "ViTForImageClassification",
        "T5ForConditionalGeneration", "MambaForCausalLM")  # fmt: skip
VISION = ("resnet18", "mobilenet_v3_small", "vit_b_32", "efficientnet_b0", "convnext_tiny")
TIMM = ("test_vit", "test_efficientnet", "mixer_s32_224")


def check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    compiled = analogc.compile(model, args, kwargs=kwargs, seed=0)
    with torch.no_grad():
        want = tensors(compiled(*args, **kwargs))
    analog = compiled.to_mlir("analog")
    text = str(analog)
    assert not any(line.strip().partition("= ")[2].startswith("torch") for line in text.split("\n"))
    layers = text.count('= "analog.linear"') + text.count('= "analog.conv"')
    assert layers == len(list(compiled._analog_nodes()))
    linalg = compiled.to_mlir("linalg", programmed=True)
    got = tensors(linalg.compile()(*args, **kwargs))
    for a, b in zip(got, want, strict=True):
        limit = 1e-5 * float(b.abs().max()) if b.is_floating_point() else 0
        torch.testing.assert_close(a, b, rtol=0, atol=limit)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", TEXT)
def test_transformers_originals(name: str) -> None:
    need("transformers")
    config, model, options, inputs = next(f for f in test_transformers.FAMILIES if f[1] == name)
    check(test_transformers.build(config, model, options), (), inputs())


def _of(families: tuple[Family, ...], names: tuple[str, ...]) -> list[Family]:
    return [family for family in families if family.name in names]


@pytest.mark.parametrize("family", _of(test_torchvision.TORCHVISION, VISION), ids=str)
def test_torchvision_originals(family: Family) -> None:
    need("torchvision")
    check(test_torchvision.build(family).eval(), test_torchvision.inputs(family), {})


@pytest.mark.parametrize("family", _of(test_timm.TIMM, TIMM), ids=str)
def test_timm_originals(family: Family) -> None:
    need("torchvision", "timm")
    inputs = (torch.randn(2, 3, family.size, family.size),)
    build: Callable[[Family], nn.Module] = test_timm.build
    check(build(family).eval(), inputs, {})
