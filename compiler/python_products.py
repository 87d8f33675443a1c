"""What a model computes with its weights outside the graphs that dynamo made of it: in Python."""

from __future__ import annotations

import traceback
import weakref
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .capture import is_user_file
from .coverage import CoverageRow

_PRODUCTS = {
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::addbmm", "aten::mv",
    "aten::addmv", "aten::dot", "aten::linear", "aten::convolution", "aten::mkldnn_rnn_layer",
}  # fmt: skip
"""Products as they arrive below autograd, where composite operators are taken apart."""
_LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.MultiheadAttention,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.modules.conv._ConvNd,
)
_FIX = "torch.compiler.disable, a break or an operator that dynamo does not take"


class _Watch(TorchDispatchMode):
    """Notes each product with a parameter, or with what is computed from parameters alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owners = {
            _memory(value): name for name, value in model.named_parameters() if value.dim() > 0
        }
        self.kept: list[Tensor] = []
        self.found: dict[tuple[str, str, str | None], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        operands = [v for v in pytree.tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        stored = [self.owners.get(_memory(value)) for value in operands]
        results = [v for v in pytree.tree_leaves(out) if isinstance(v, Tensor)]
        if operands and all(stored):
            for value in results:
                if _memory(value) not in self.owners:
                    self.owners[_memory(value)] = str(stored[0])
                    self.kept.append(value)  # so that its memory is not another tensor's
        elif func._schema.name in _PRODUCTS and any(stored):
            self._note(func, operands, stored, results[0])
        return out

    def _note(self, func: Any, operands: list[Tensor], stored: list[Any], result: Tensor) -> None:
        weight, name = max(
            ((v, n) for v, n in zip(operands, stored, strict=True) if n is not None),
            key=lambda pair: pair[0].numel(),
        )
        if func._schema.name == "aten::convolution":
            macs = result.numel() * weight[0].numel()
        elif weight.dim() == 2 and any(size in weight.shape for size in result.shape[-1:]):
            macs = weight.numel() * (result.numel() // result.shape[-1])
        else:
            macs = result.numel() * weight.shape[-1]
        key = (name, func._schema.name.replace("::", "."), _user_line())
        self.found[key] = self.found.get(key, 0) + macs


def _memory(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()


def _user_line() -> str | None:
    users = [f for f in traceback.extract_stack() if is_user_file(f.filename)]
    return f"{users[-1].filename}:{users[-1].lineno}" if users else None


def products_outside(model: nn.Module, call: Callable[[], Any]) -> tuple[CoverageRow, ...]:
    """A row for each product of ``call`` with a weight, in the name of its parameter.

    Args:
        model: whose weights they are.
        call: runs the model as it is.
    """
    fastpath = torch.backends.mha.get_fastpath_enabled()
    # The fused encoder layer hides its products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), _Watch(model) as watch:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)
    return tuple(
        _row(name, op, f"runs in Python, between dynamo's graphs ({_FIX})", macs, line)
        for (name, op, line), macs in watch.found.items()
    )


@dataclass(slots=True)
class Layer:
    """One of torch's own layers in a model."""

    module: weakref.ref[nn.Module]
    names: tuple[str, ...]
    """Of its weights, in the model."""
    call: Callable[..., Any] | None = None
    """It as a graph of its own, once it was needed."""


def layers(model: nn.Module) -> list[Layer]:
    """The layers of ``model`` that have weights."""
    names = {id(value): name for name, value in model.named_parameters()}
    found = []
    for module in model.modules():
        own = [names[id(p)] for p in module.parameters(recurse=False) if p.dim() > 1]
        if own and isinstance(module, _LAYERS):
            found.append(Layer(weakref.ref(module), tuple(own)))
    return found


def modules_outside(model: nn.Module, seen: Collection[str]) -> tuple[CoverageRow, ...]:
    """A row for each layer of ``model`` whose weights are in no graph so far."""
    reason = (
        f"in no graph of dynamo's: not called, or called in Python ({_FIX}); "
        "analogc.compile(model, inputs, capture='dynamo') makes a graph of a layer in Python"
    )
    return tuple(
        _row(layer.names[0], type(layer.module()).__name__, reason, 0, None)
        for layer in layers(model)
        if not any(name in seen for name in layer.names)
    )


def _row(name: str, op: str, reason: str, macs: int, line: str | None) -> CoverageRow:
    module = name.rpartition(".")[0]
    return CoverageRow(name, op, module, "unsupported", reason, macs, line)
