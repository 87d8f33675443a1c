"""The analogc:: operators that the compiler puts into graphs.

    linear(input, weight, bias?, input_range?, adc_range?, spec, key)
    conv1d | conv2d | conv3d(..., stride, padding, dilation, groups, spec, key)

``weight`` is the live parameter (or an expression of parameters); ``spec`` the text of a LayerSpec;
``key`` names the tile array that the weight is programmed into. The array is looked at on every
call and programmed again if the weight changed, so an operator is a function of its operands, also
under torch.compile, and whichever way the weight was written. With a key of no live array (a graph
of another process) the weight is programmed on the spot.

The result has the input's dtype; the simulation runs in at least float32.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import gpu, kernels, physical, tiles
from .kernels import Ranges
from .layout import format_of
from .mvm import geometry
from .native import backward
from .native import layer as native
from .noise import NoiseSource
from .spec import LayerSpec, parse
from .standin import resolve

NAMES = ("linear", "conv1d", "conv2d", "conv3d")
_HEAD = "Tensor input, Tensor weight, Tensor? bias, Tensor? input_range, Tensor? adc_range"
_GEOMETRY = "int[] stride, SymInt[] padding, int[] dilation, int groups"
_TAIL = "str spec, str key"
# Noise: equal calls are not equal results.
_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.pt2_compliant_tag)

torch.library.define("analogc::linear", f"({_HEAD}, {_TAIL}) -> Tensor", tags=_TAGS)
for _dims in (1, 2, 3):
    torch.library.define(
        f"analogc::conv{_dims}d", f"({_HEAD}, {_GEOMETRY}, {_TAIL}) -> Tensor", tags=_TAGS
    )
torch.library.define(
    "analogc::saving_forward", f"({_HEAD}, {_GEOMETRY}, {_TAIL}) -> (Tensor, Tensor)", tags=_TAGS
)
torch.library.define(
    "analogc::saving_backward",
    f"(Tensor grad, Tensor input, Tensor weight, Tensor mask, Tensor? input_range, {_GEOMETRY}, "
    f"{_TAIL}, bool need_input, bool need_weight) -> (Tensor, Tensor)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

Sizes = Sequence[int]


def _digital(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
) -> Tensor:
    """The digital operator that a layer stands for."""
    if weight.dim() == 2:
        return torch.nn.functional.linear(x, weight, bias)
    conv = (torch.conv1d, torch.conv2d, torch.conv3d)[weight.dim() - 3]
    return conv(x, weight, bias, stride, padding, dilation, groups)


def digital(name: str, args: Sequence[Any]) -> Tensor:
    """Digital result of operator ``name`` ("linear", "conv2d", ...) at its own arguments."""
    x, weight, bias = args[0], resolve(args[1]), args[2]
    if name == "linear":
        return _digital(x, weight, bias, (), (), (), 1)
    return _digital(x, weight, bias, *args[5:9])


def _check_operands(x: Tensor, weight: Tensor, groups: int, spec: LayerSpec) -> None:
    # Row blocks slice their operands, and a slice fits whatever the size.
    shape = weight.shape
    dims = len(shape)
    channel = -1 if dims == 2 else 1 - dims
    rows = shape[1] if dims == 2 else shape[1:].numel()
    fits = (
        x.dim() >= -channel
        and x.shape[channel] == shape[1] * groups
        and spec.rows[-1] == rows
        and (x.dtype is torch.float32 or x.is_floating_point())
    )
    if not fits:
        raise RuntimeError(
            f"analog layer: {x.dtype} input {list(x.shape)}, weight {list(shape)}, "
            f"{groups} group(s) and {spec.rows[-1]} rows do not fit"
        )


def _capped(x: Tensor, spec: LayerSpec) -> Tensor:
    """Inputs as a DAC with a limit to its dynamic range clips them: their abs-max is that range."""
    return x if spec.cap is None else x.clamp(-spec.cap, spec.cap)


def _simulate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    spec: LayerSpec,
    key: str,
    want_mask: bool,
) -> tuple[Tensor, Tensor | None]:
    _check_operands(x, weight, groups, spec)
    if spec.cap is not None:
        x = _capped(x, spec)
    array = tiles.find(key)
    held = tiles.stateless(weight, spec, groups) if array is None else array.current(weight)
    noise = None
    if spec.draws:
        noise = NoiseSource().key("stateless", 0) if array is None else array.next_call()
    single = weight.dim() > 2 and x.dim() == weight.dim() - 1
    batched = x.unsqueeze(0) if single else x
    layout = format_of(batched, weight) if weight.dim() > 3 else torch.contiguous_format
    packed = held.packed
    if packed is not None and x.is_cpu and (packed.groups, packed.rows) == (groups, spec.rows):
        # A bias of any other shape is broadcast, and so are its sums with the output.
        after = None if bias is None or bias.shape == weight.shape[:1] else bias
        wide = batched if batched.dtype is torch.float32 else batched.float()
        if layout is torch.channels_last:
            wide = wide.contiguous(memory_format=layout)
        y, mask = native.forward(
            wide, packed, held.scale, bias if after is None else None, input_range, adc_range, spec,
            stride, padding, dilation, groups,
            noise.bits if noise else 0, noise.counter if noise else 0, want_mask,
        )  # fmt: skip
        if after is not None:
            y = y + after
        if y.dtype is not x.dtype:
            y = y.to(x.dtype)
        if layout is not torch.contiguous_format:
            y = y.contiguous(memory_format=layout)
    else:
        mvm = geometry(spec, weight.shape, stride, padding, dilation, groups)
        forward = gpu.forward if x.is_cuda else kernels.forward
        exact: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if spec.physical:
            forward = physical.forward
            exact = gpu.precision("ieee") if x.is_cuda else exact
        ranges = Ranges(input_range, adc_range)
        with exact:
            y, mask = forward(mvm, batched, held, bias, ranges, spec, noise, want_mask)
        y = y.contiguous(memory_format=layout)
    return (y.squeeze(0) if single else y), mask


def linear_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    spec: str,
    key: str,
) -> Tensor:
    """``analogc::linear`` on tensors with memory, below autograd."""
    settings = parse(spec)
    if settings.is_ideal:
        return _digital(x, weight, bias, (), (), (), 1)
    none: tuple[int, ...] = ()
    return _simulate(
        x, weight, bias, input_range, adc_range, none, none, none, 1, settings, key, False
    )[0]


def conv_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    spec: str,
    key: str,
) -> Tensor:
    """``analogc::conv{1,2,3}d`` on tensors with memory, below autograd."""
    settings = parse(spec)
    if settings.is_ideal:
        return _digital(x, weight, bias, stride, padding, dilation, groups)
    return _simulate(
        x, weight, bias, input_range, adc_range, stride, padding, dilation, groups, settings, key,
        False,
    )[0]  # fmt: skip


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    if parse(rest[-2]).is_ideal:
        return _digital(x, weight, bias, (), (), (), 1)
    torch._check(x.shape[-1] == weight.shape[1], lambda: "linear: input and weight do not fit")
    return x.new_empty([*x.shape[:-1], weight.shape[0]])


def _fake_conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    stride, padding, dilation, groups, spec = rest[2:7]
    if parse(spec).is_ideal:
        return _digital(x, weight, bias, stride, padding, dilation, groups)
    shape = _digital(x, weight.to(x.dtype), None, stride, padding, dilation, groups).shape
    if x.dim() == weight.dim() - 1:
        return x.new_empty(shape)
    layout = format_of(x, weight) if x.dim() > 3 else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


@torch.no_grad()
def saving_forward_kernel(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    spec: str,
    key: str,
) -> tuple[Tensor, Tensor]:
    """``analogc::saving_forward`` on tensors with memory: output, and where ADCs did not clip."""
    settings = parse(spec)
    y, mask = _simulate(
        x, weight, bias, input_range, adc_range, stride, padding, dilation, groups, settings, key,
        settings.adc is not None,
    )  # fmt: skip
    return y, x.new_empty(0, dtype=torch.bool) if mask is None else mask.contiguous()


def _fake_saving_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    settings = parse(rest[-2])
    if weight.dim() == 2:
        y = _fake_linear(x, weight, bias, *rest)
    else:
        y = _fake_conv(x, weight, bias, *rest)
    if settings.adc is None:
        return y, x.new_empty(0, dtype=torch.bool)
    shape = list(y.shape)
    if weight.dim() > 2 and x.dim() == weight.dim() - 1:
        shape = [1, *shape]
    return y, x.new_empty([len(settings.blocks), *shape], dtype=torch.bool)


def _without_autocast(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel`` in its own precision, wherever a backward pass runs."""

    @functools.wraps(kernel)
    def run(*args: Any) -> Any:
        if not torch._C._is_any_autocast_enabled():
            return kernel(*args)
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return kernel(*args)

    return run


_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)


def saving_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    input_range: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    spec: str,
    key: str,
    need_input: bool,
    need_weight: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients of input and weight, of tensors with memory, without autocast or gradients."""
    settings = parse(spec)
    single = weight.dim() > 2 and x.dim() == weight.dim() - 1
    given, x = x, x if settings.cap is None else _capped(x, settings)
    batched, batched_grad = (x.unsqueeze(0), grad.unsqueeze(0)) if single else (x, grad)
    array = tiles.find(key)
    held = tiles.stateless(weight, settings, groups) if array is None else array.as_used(weight)
    masks = mask if mask.numel() else None
    packed = held.packed
    if (
        packed is not None
        and x.is_cpu
        and grad.is_cpu
        and (packed.groups, packed.rows) == (groups, settings.rows)
        and backward.serves(packed, settings)
    ):
        grad_x, grad_w = backward.backward(
            _as(batched_grad, torch.float32), _as(batched, torch.float32), packed, held.scale,
            masks, input_range, settings, (stride, padding, dilation), need_input, need_weight,
        )  # fmt: skip
        grad_x = None if grad_x is None else _as(grad_x, x.dtype)
        grad_w = None if grad_w is None else _as(grad_w, weight.dtype)
    else:
        mvm = geometry(settings, weight.shape, stride, padding, dilation, groups)
        grad_x, grad_w = kernels.backward(
            mvm, batched_grad, batched, weight, held, masks, Ranges(input_range, None), settings,
            need_input, need_weight,
        )  # fmt: skip
    if grad_x is None:
        grad_x = x.new_empty(0)
    else:
        grad_x = grad_x.squeeze(0) if single else grad_x
        grad_x = grad_x.contiguous(memory_format=_layout(given))
        if settings.cap is not None:
            grad_x = grad_x * (given.abs() <= settings.cap)
    return grad_x, x.new_empty(0) if grad_w is None else grad_w.contiguous()


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if native.is_last(x) else torch.contiguous_format


def _as(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype is dtype else x.to(dtype)


saving_backward_kernel = _without_autocast(torch.no_grad()(saving_gradients))
"""``analogc::saving_backward`` on tensors with memory."""


@_without_autocast
@torch.no_grad()
def range_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    input_range: Tensor,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    groups: int,
    spec: str,
    key: str,
) -> Tensor:
    """Gradient of learned input ranges, ``[R]``; operands as those of ``saving_backward``."""
    settings = parse(spec)
    single = weight.dim() > 2 and x.dim() == weight.dim() - 1
    batched, batched_grad = (x.unsqueeze(0), grad.unsqueeze(0)) if single else (x, grad)
    array = tiles.find(key)
    held = tiles.stateless(weight, settings, groups) if array is None else array.as_used(weight)
    mvm = geometry(settings, weight.shape, stride, padding, dilation, groups)
    masks = mask if mask.numel() else None
    return kernels.range_gradient(mvm, batched_grad, batched, held, masks, input_range, settings)


def _fake_saving_backward(
    grad: Tensor, x: Tensor, weight: Tensor, *rest: Any
) -> tuple[Tensor, Tensor]:
    need_input, need_weight = rest[-2:]
    grad_x = x.new_empty(x.shape if need_input else 0)
    return (
        grad_x.contiguous(memory_format=_layout(x)) if need_input else grad_x,
        weight.new_empty(weight.shape) if need_weight else x.new_empty(0),
    )


_below = "CompositeExplicitAutograd"
torch.library.impl("analogc::linear", _below, torch.no_grad()(linear_kernel))
torch.library.register_fake("analogc::linear", _fake_linear)
for _dims in (1, 2, 3):
    torch.library.impl(
        f"analogc::conv{_dims}d", "CompositeExplicitAutograd", torch.no_grad()(conv_kernel)
    )
    torch.library.register_fake(f"analogc::conv{_dims}d", _fake_conv)
torch.library.impl("analogc::saving_forward", _below, saving_forward_kernel)
torch.library.register_fake("analogc::saving_forward", _fake_saving_forward)
torch.library.impl("analogc::saving_backward", _below, saving_backward_kernel)
torch.library.register_fake("analogc::saving_backward", _fake_saving_backward)
