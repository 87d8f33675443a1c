"""Torch's default dtype and device, which a user may have set, change nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

import analogc


def net() -> nn.Module:
    layers = [nn.Conv2d(2, 4, 3, dtype=torch.float32, device="cpu"), nn.ReLU(), nn.Flatten()]
    head = nn.Linear(4 * 36, 5, dtype=torch.float32, device="cpu")
    return nn.Sequential(*layers, head)


def results(target: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    torch.manual_seed(0)
    model = net()
    x = torch.randn(3, 2, 8, 8, dtype=torch.float32, device="cpu", requires_grad=True)
    with defaults(dtype, device):
        compiled = analogc.compile(model, (x,), target=target, seed=0)
        y = compiled(x)
        y.sum().backward()
        with torch.no_grad():
            z = compiled(x.to(memory_format=torch.channels_last))
    assert x.grad is not None
    return [y.detach(), z, x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@contextmanager
def defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("target", ["generic-8bit", "generic-8bit-noisy"])
@pytest.mark.parametrize(("dtype", "device"), [(torch.float64, "cpu"), (torch.float32, "meta")])
def test_defaults_change_nothing(target: str, dtype: torch.dtype, device: str) -> None:
    plain = results(target, torch.float32, "cpu")
    other = results(target, dtype, device)
    assert all(map(torch.equal, plain, other))
