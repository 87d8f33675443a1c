"""Convolutions as linalg: a feature map, with or without groups, and the patches of it.

A feature map is ``[B, C, *size]``, or ``[B, G, C, *size]`` with G groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch_mlir.dialects import arith

from . import build, verify
from .attributes import to_json
from .build import Size, Value


@dataclass(frozen=True, slots=True)
class Window:
    """How a kernel moves over a feature map; one number for each dim of the kernel."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @classmethod
    def of(cls, op: Any, kernel: list[int]) -> Window:
        """Window of an operation with the attributes of ``analog.conv``."""
        lists = (to_json(getattr(op, name)) for name in ("stride", "padding", "dilation"))
        return cls(tuple(kernel), *map(tuple, lists))

    @property
    def dims(self) -> int:
        """Number of spatial dims."""
        return len(self.kernel)

    def outputs(self, x: Value) -> list[Size]:
        """Spatial sizes of the result for the feature map ``x`` without padding."""
        found = build.sizes(x)[-self.dims :]
        each = zip(found, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [_output(*one) for one in each]

    def padded(self, x: Value) -> Value:
        """Feature map with its zeros around."""
        sides = [0] * (build.rank(x) - self.dims) + list(self.padding)
        return build.padded(x, sides, sides)

    def _positions(self, out: int, tap: int) -> list[Any]:
        """Index map of the spatial dims, from the loops over outputs and over taps."""
        return [
            build.loop(out + d) * self.stride[d] + build.loop(tap + d) * self.dilation[d]
            for d in range(self.dims)
        ]

    def convolve(self, x: Value, weight: Value) -> Value:
        """``weight [N, C, *kernel]`` over ``x``: ``[B, N, *out]``.

        With groups: ``[G, N, C, *kernel]`` over ``[B, G, C, *size]`` gives ``[B, G, N, *out]``.
        """
        outputs = self.outputs(x)
        group = [1] if build.rank(weight) == self.dims + 3 else []
        columns = 1 + len(group)
        out = columns + 1
        channel = out + self.dims
        tap = channel + 1
        taps = list(range(tap, tap + self.dims))
        batch = build.dim(x, 0)
        lead = [build.dim(weight, d) for d in range(columns)]
        return build.contract(
            self.padded(x), [0, *group, channel, *self._positions(out, tap)],
            weight, [*group, columns, channel, *taps],
            [batch, *lead, *outputs], list(range(channel)),
            tap + self.dims,
        )  # fmt: skip

    def patches(self, x: Value) -> Value:
        """im2col: ``[B, *out, C · taps]``, or ``[B, G, *out, C · taps]``."""
        outputs = self.outputs(x)
        lead = build.rank(x) - self.dims - 1
        channel = lead + self.dims
        extents = [
            *[build.dim(x, d) for d in range(lead)],
            *outputs,
            build.dim(x, lead),
            *self.kernel,
        ]
        reads = [*range(lead), channel, *self._positions(lead, channel + 1)]
        found = build.pointwise(
            [self.padded(x)], [reads], extents, build.element(x), lambda value: value
        )
        return build.flattened(found, channel, 1 + self.dims)


def _output(size: Size, taps: int, stride: int, padding: int, dilation: int) -> Size:
    if isinstance(size, int):
        return verify.window(size, taps, stride, padding, dilation)
    # At least the kernel's size, as in every convolution, so nothing here is negative.
    room = arith.AddIOp(size, build.index(2 * padding)).result
    steps = arith.SubIOp(room, build.index(dilation * (taps - 1) + 1)).result
    whole = arith.DivUIOp(steps, build.index(stride)).result
    return arith.AddIOp(whole, build.index(1)).result
