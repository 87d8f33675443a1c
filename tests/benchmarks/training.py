"""Training against the digital model: the backward pass alone, and whole steps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from tables import RATIOS, Table, ratio_cells
from timing import Call, compare
from torch import Tensor, nn
from workloads import CONV, ENCODER, LARGE, LINEAR, RESNET20

BACKWARD_LIMIT = 1.15


def backward(model: nn.Module, x: Tensor) -> Call:
    """Gradients of the inputs and all parameters, of a forward that was run before."""
    x = x.clone().requires_grad_()
    y = model(x)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    gradient = torch.randn_like(y)
    return lambda: torch.autograd.grad(y, wanted, gradient, retain_graph=True)


def step(model: nn.Module, x: Tensor, optimizer: Any = None, program: Call = lambda: None) -> Call:
    """Forward, backward and an update, of SGD by default; ``program`` is called after it."""
    update = optimizer or torch.optim.SGD(model.parameters(), lr=1e-6)

    def call() -> None:
        update.zero_grad()
        model(x).square().mean().backward()
        update.step()
        program()

    return call


def training(budget: float) -> Iterator[Table]:
    """Both, in train mode."""
    note = "A step programs all tiles again, with fresh noise: one pass over the weights."
    table = Table("Training", ("train mode", *RATIOS), note)
    for workload in (LINEAR, LARGE, CONV, RESNET20, ENCODER):
        model, x = workload.build()
        compiled = workload.compile(copy.deepcopy(model).train(), x)
        model.train()
        found = compare(backward(model, x), backward(compiled, x), budget)
        table.add(f"{workload.name}: backward", *ratio_cells(found, BACKWARD_LIMIT))
        found = compare(step(model, x), step(compiled, x), budget)
        table.add(f"{workload.name}: step", *ratio_cells(found))
    yield table
