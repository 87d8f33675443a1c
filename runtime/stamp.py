"""Has this tensor changed? What a tile array and a derived weight remember of their sources.

Three questions, the cheap ones first: are address, version counter, dtype, device and form the
same; were its pages written since (the kernel knows, see ``watch``); is its content the same (a
fingerprint). The version counter alone misses writes through ``.data``, NumPy and DLPack aliases,
shared memory and fused optimizers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from .fingerprint import fingerprint
from .native.loader import library
from .standin import find, resolve
from .watch import Look, can_be_watched, page_watch

UNWATCHED = 1 << 17
"""Bytes up to which looking at the content costs less than asking the kernel about it."""

Content = int | None


class Stamp:
    """State of a tensor at one moment: its memory, its version, its form, its content.

    Holds an alias of the memory, so that an address cannot be given to another tensor meanwhile.

    Args:
        tensor: what to remember.
        value: its numbers, if it is a stand-in and they are at hand.
    """

    __slots__ = (
        "anchor", "content", "device", "dtype", "look", "ptr", "read", "shape", "stride", "version",
    )  # fmt: skip

    def __init__(self, tensor: Tensor, value: Tensor | None = None) -> None:
        self.anchor = tensor.detach()
        self.ptr = tensor.data_ptr()
        self.version = version_of(tensor)
        self.dtype = tensor.dtype
        self.device = tensor.device
        self.shape = tensor.shape
        self.stride = tensor.stride()
        self.content = content_of(resolve(tensor) if value is None else value)
        self.look: Look | None = None
        """Tells of writes to the memory since the content was looked at."""
        self.read = self._reader(tensor)

    def _reader(self, tensor: Tensor) -> Callable[[], int] | None:
        """What reads the content of a short dense weight, which the anchor keeps where it is."""
        native = library()
        short = tensor.is_cpu and tensor.nbytes <= UNWATCHED and tensor.is_contiguous()
        if native is None or not short or find(tensor) is not None:
            return None
        return functools.partial(native.hash, self.ptr, tensor.nbytes)

    def matches(self, tensor: Tensor) -> bool:
        """True if ``tensor`` is where and what it was when stamped, whichever way it is written."""
        return self.is_of(tensor) and self._is_unwritten(tensor)

    def is_of(self, tensor: Tensor) -> bool:
        """True if ``tensor`` is where it was when stamped and no torch operation wrote it since."""
        return (
            self.ptr == tensor.data_ptr()
            and self.version == version_of(tensor)
            and self.same_form(tensor)
            and self.stride == tensor.stride()
        )

    def same_form(self, tensor: Tensor) -> bool:
        """True if ``tensor`` has the shape, dtype and device of the one that was stamped."""
        return (
            self.shape == tensor.shape
            and self.dtype == tensor.dtype
            and self.device == tensor.device
        )

    def _is_unwritten(self, tensor: Tensor) -> bool:
        if self.read is not None:
            return self.read() == self.content
        if find(tensor) is not None:  # stands for one state; another state has another stand-in
            return True
        if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
            return True  # a graph that is being captured cannot wait for an answer
        if tensor.nbytes <= UNWATCHED:
            return content_of(tensor) == self.content
        if self.look is not None and self.look.sees_no_write():
            return True
        # Watched from before the look at the content, so that no write falls in between. Pages are
        # protected only once a weight stood still: in training it changes with every step.
        watch = page_watch()
        look = None
        if watch is not None and can_be_watched(tensor) and watch.protect(tensor):
            look = watch.look_at(tensor)
        same = content_of(tensor) == self.content
        self.look = look if same else None
        return same

    def same_content(self, other: Stamp) -> bool:
        """True if both stood for the same values in the same form, wherever they lie."""
        return (
            self.content is not None
            and self.content == other.content
            and (self.dtype, self.device, self.shape) == (other.dtype, other.device, other.shape)
        )

    def difference(self, tensor: Tensor) -> str:
        """What changed, in words."""
        for name in ("device", "dtype", "shape"):
            old, new = getattr(self, name), getattr(tensor, name)
            if old != new:
                return f"{name} changed from {old} to {new}"
        if self.stride != tensor.stride():
            return f"strides changed from {self.stride} to {tensor.stride()}"
        if self.ptr != tensor.data_ptr():
            return "the parameter's memory was replaced"
        if self.version != version_of(tensor):
            return "the parameter was written in place"
        return "the parameter's memory was written without its version counter (.data, NumPy, ...)"


def content_of(tensor: Tensor) -> Content:
    """What a tensor's values are known by: a fingerprint; None for memory that is not there."""
    return None if tensor.is_meta else fingerprint(tensor)


def version_of(tensor: Tensor) -> int:
    """Version counter, or -1 for inference tensors, which have none."""
    return -1 if tensor.is_inference() else tensor._version


def _count_optimizer_steps(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # Fused optimizers write parameters without touching their version counter (torch 2.11 to 2.13).
    for group in optimizer.param_groups:
        written = [p for p in group["params"] if p.grad is not None and not p.is_inference()]
        if written:
            torch.autograd.graph.increment_version(written)


register_optimizer_step_post_hook(_count_optimizer_steps)
