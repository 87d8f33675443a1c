"""Layers on the native library: packed weights and the forward pass.

``kernels.forward`` defines what is computed; here it is one call into C++, on float32 CPU tensors.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..spec import LayerSpec
from .loader import Layer, Weight
from .tensors import loaded, new

Format = Literal["int16", "float32"]

MOST_INT16_ROWS = (2**31 - 1) // (127 * 8191)
"""Widest block for which int16 keeps at least 13 bits and a sign of a column's largest weight.

Sums of 127 * 8191 * rows must fit 32 bits.
"""
_MOST_CODE = 127 * 256 + 127


def weight_limit(rows: tuple[int, ...]) -> int:
    """Largest integer weight of a layer of these row block boundaries, as in ``pack.cpp``.

    Its two halves fit 8 bits each, so that integer tensor cores can take it, and sums fit 32.
    """
    widest = max(b - a for a, b in zip(rows, rows[1:], strict=False))
    return min(_MOST_CODE, (2**31 - 1) // (127 * widest))


class Packed:
    """Programmed weights in the form that the kernels read; the only copy of them.

    ``int16`` holds a weight as a 15-bit code times a step per column: for DACs of at most 8 bits,
    whose products with it add up exactly in 32 bits. ``float32`` holds it as it is.
    """

    def __init__(
        self,
        data: Tensor,
        step: Tensor,
        shape: tuple[int, int],
        rows: tuple[int, ...],
        taps: tuple[int, ...],
        groups: int,
    ) -> None:
        self.data = data
        self.step = step
        """``[N]``, weight of code 1; empty for float32."""
        self.shape = shape
        """``(N, K)``."""
        self.rows = rows
        """Row block boundaries over K."""
        self.taps = taps
        """Kernel size; empty for a linear layer."""
        self.groups = groups
        self._prepared: _Prepared | None = None
        self._weight: Weight | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Packed, (self.data, self.step, self.shape, self.rows, self.taps, self.groups)

    @staticmethod
    def pack(
        written: Tensor,
        rows: tuple[int, ...],
        taps: tuple[int, ...] = (),
        groups: int = 1,
        dac_bits: int | None = None,
        format: Format | None = None,
    ) -> Packed:
        """Pack an effective normalised weight.

        Args:
            written: ``[N, K]``, float32 on the CPU, all groups one after the other.
            rows: row block boundaries ``(0, ..., K)``.
            taps: kernel size; empty for a linear layer.
            groups: of a convolution.
            dac_bits: resolution of the DAC; None without one.
            format: None takes int16 where it is faithful: at most 8 DAC bits, at most
                2064 rows in a block, and finite weights.

        Raises:
            ValueError: arguments that do not fit, or int16 for a DAC that it cannot serve.
        """
        if written.dtype != torch.float32 or written.dim() != 2 or written.device.type != "cpu":
            raise ValueError(f"weight must be [N, K] float32 on the CPU, got {written.dtype}")
        written = written.detach().contiguous()
        exact = dac_bits is not None and dac_bits <= 8
        if format is None:
            widest = max(b - a for a, b in zip(rows, rows[1:], strict=False))
            if exact and widest <= MOST_INT16_ROWS:
                packed = Packed.pack(written, rows, taps, groups, dac_bits, "int16")
                # A column with a weight that is not finite has a step that is not.
                if bool(packed.step.isfinite().all()):
                    return packed
            format = "float32"
        elif format == "int16" and not exact:
            raise ValueError(f"int16 weights need a DAC of at most 8 bits, got {dac_bits}")
        dtype = torch.int16 if format == "int16" else torch.float32
        n, k = written.shape
        step = new(n if format == "int16" else 0)
        packed = Packed(torch.empty(0, dtype=dtype, device="cpu"), step, (n, k), rows, taps, groups)
        size = loaded().packed_size(packed.struct())
        if size < 0 or rows[-1] != k:
            raise ValueError(f"rows {rows}, taps {taps}, groups {groups} do not fit {n} x {k}")
        packed.data = torch.empty(size // dtype.itemsize, dtype=dtype, device="cpu")
        if status := loaded().pack(packed.struct(), written.data_ptr(), torch.get_num_threads()):
            raise ValueError(f"weight of {n} x {k} cannot be packed as {format} ({status})")
        return packed

    @property
    def format(self) -> Format:
        """How weights are held."""
        return "int16" if self.data.dtype == torch.int16 else "float32"

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.data.nbytes + self.step.nbytes

    def unpack(self) -> Tensor:
        """Effective normalised weight ``[N, K]``: packing it again gives these very bytes."""
        return self._unpack(None)

    def unpack_scaled(self, alpha: Tensor) -> Tensor:
        """Weight in its own units, ``alpha[n] * unpack()[n]``, in one pass."""
        return self._unpack(ready(alpha, self.shape[0]))

    def rows_scaled(self, alpha: Tensor, block: int, first: int, out: Tensor) -> Tensor:
        """``unpack_scaled(alpha)`` of rows of a linear layer's row block, transposed and faster.

        Args:
            alpha: ``[N]``.
            block: which row block.
            first: row of the block to begin with, even.
            out: memory for the result, contiguous float32 ``[rows, N]``.

        Returns:
            As much of ``out`` as the block has rows from ``first`` on.
        """
        assert not self.taps and out.is_contiguous() and out.dtype is torch.float32
        length = min(out.shape[0], self.rows[block + 1] - self.rows[block] - first)
        if out.shape[1] != self.shape[0]:
            raise ValueError(f"{list(out.shape)} cannot hold rows of {self.shape[0]}")
        alpha = ready(alpha, self.shape[0])
        status = loaded().unpack_rows(
            self.struct(), block, first, length, alpha.data_ptr(), out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        if status:
            raise ValueError(f"block {block} has no {length} rows from {first} on")
        return out[:length]

    def _unpack(self, alpha: Tensor | None) -> Tensor:
        written = new(*self.shape)
        pointer = None if alpha is None else alpha.data_ptr()
        status = loaded().unpack(
            self.struct(), pointer, written.data_ptr(), torch.get_num_threads()
        )
        assert status == 0, "what was packed can be unpacked"
        return written

    def struct(self) -> Weight:
        """The weight as the kernels take it; valid while this lives."""
        found = self._weight
        if found is None or found.data != self.data.data_ptr():
            found = self._weight = self._new_struct()
        return found

    def _new_struct(self) -> Weight:
        taps = math.prod(self.taps)
        rows = (ctypes.c_int64 * len(self.rows))(*self.rows)
        struct = Weight(
            columns=self.shape[0],
            channels=self.shape[1] // taps,
            taps=taps,
            tap_row=self.taps[-1] if self.taps else 1,
            groups=self.groups,
            blocks=len(self.rows) - 1,
            rows=ctypes.addressof(rows),
            format=int(self.data.dtype == torch.int16),
            data=self.data.data_ptr(),
            step=self.step.data_ptr(),
        )
        struct.keep = rows
        return struct


class _Prepared:
    """What stays the same from call to call: the filled struct and the shapes of results."""

    def __init__(
        self,
        packed: Packed,
        spec: LayerSpec,
        x: Tensor,
        last: bool,
        geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
        adc_per_column: bool,
    ) -> None:
        self.spec, self.shape, self.last = spec, x.shape, last
        self.geometry, self.data, self.adc_per_column = geometry, packed.data, adc_per_column
        struct = Layer()
        self.weight = struct.weight = packed.struct()
        n, dims = packed.shape[0], len(packed.taps)
        if dims:
            self.out = (x.shape[0], n, *self._convolve(struct, packed, x.shape, geometry))
        else:
            if x.shape[-1] != packed.shape[1]:
                raise ValueError(f"input {list(x.shape)} does not fit {packed.shape[1]} rows")
            struct.batch = x.shape[:-1].numel()
            struct.size[:] = struct.stride[:] = struct.dilation[:] = struct.kernel[:] = (1, 1, 1)
            struct.out[:] = (1, 1, 1)
            self.out = (*x.shape[:-1], n)
        struct.channels_last_in = struct.channels_last_out = int(last or not dims)
        struct.dac_levels = spec.dac.levels if spec.dac else 0
        struct.adc_levels = spec.adc.levels if spec.adc else 0
        struct.dynamic = spec.dynamic
        struct.adc_per_column = adc_per_column
        struct.output_noise = spec.output_noise
        self.struct = struct
        self.call = loaded().call
        self.adc_ranges = (n if adc_per_column else 1) * (len(packed.rows) - 1)

    @staticmethod
    def _convolve(
        struct: Layer,
        packed: Packed,
        shape: torch.Size,
        geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
    ) -> list[int]:
        dims = len(packed.taps)
        stride, padding, dilation = geometry
        ones, zeros = [1] * (3 - dims), [0] * (3 - dims)
        out = [
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                shape[2:], packed.taps, stride, padding, dilation, strict=True
            )
        ]
        if min(out) < 0 or shape[1] * math.prod(packed.taps) != packed.shape[1] * packed.groups:
            raise ValueError(f"input {list(shape)} does not fit a kernel of {packed.taps}")
        struct.batch = shape[0]
        struct.size[:] = [*ones, *shape[2:]]
        struct.stride[:] = [*ones, *stride]
        struct.padding[:] = [*zeros, *padding]
        struct.dilation[:] = [*ones, *dilation]
        struct.kernel[:] = [*ones, *packed.taps]
        struct.out[:] = [*ones, *out]
        return out

    def fits(
        self,
        packed: Packed,
        spec: LayerSpec,
        x: Tensor,
        last: bool,
        geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
        adc_per_column: bool,
    ) -> bool:
        return (
            self.spec is spec
            and self.shape == x.shape
            and self.data is packed.data
            and self.last == last
            and self.adc_per_column == adc_per_column
            and self.geometry == geometry
        )


def is_last(x: Tensor) -> bool:
    """Whether 2-d maps are dense in channels-last memory, and not in planes as well."""
    if x.dim() != 4 or x.is_contiguous():
        return False
    return x.is_contiguous(memory_format=torch.channels_last)


def sizes(
    packed: Packed,
    spec: LayerSpec,
    x: Tensor,
    last: bool,
    geometry: tuple[Sequence[int], Sequence[int], Sequence[int]],
) -> Layer:
    """Sizes, layouts and settings of a layer with the input ``x``, channels last if ``last``."""
    found = packed._prepared
    if found is None or not found.fits(packed, spec, x, last, geometry, found.adc_per_column):
        found = _Prepared(packed, spec, x, last, geometry, False)
    return found.struct


def ready(values: Tensor, count: int) -> Tensor:
    """``count`` numbers for a kernel: the tensor itself if contiguous float32, else a copy."""
    if values.numel() != count or not values.is_cpu:
        raise ValueError(
            f"{count} numbers on the CPU wanted, got {list(values.shape)} on {values.device}"
        )
    if values.dtype is torch.float32 and values.is_contiguous():
        return values
    return values.to(torch.float32).contiguous()


def forward(
    x: Tensor,
    packed: Packed,
    alpha: Tensor,
    bias: Tensor | None,
    input_range: Tensor | None,
    adc_range: Tensor | None,
    spec: LayerSpec,
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    dilation: Sequence[int] = (),
    groups: int = 1,
    key: int = 0,
    call: int = 0,
    want_mask: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Output of a layer, and where its ADCs did not clip if wanted.

    Args:
        x: ``[..., K]`` or ``[B, C, *size]``, float32 on the CPU.
        packed: the programmed weight.
        alpha: weight scale of each column, ``[N]``.
        bias: ``[N]`` or None.
        input_range: ``[R]``; None if dynamic or without a DAC.
        adc_range: ``[R]`` or ``[R, N]``; None without an ADC.
        spec: settings; the same object on every call is fastest.
        stride: and ``padding``, ``dilation``, ``groups``: of a convolution.
        key: 64-bit key of the output noise.
        call: number of the call, for noise that is new each time.
        want_mask: for the backward pass.

    Returns:
        ``y`` (channels last if ``x`` is) and the mask, bool ``[R, *y.shape]`` laid out as ``y`` for
        each block; None without an ADC.
    """
    assert groups == packed.groups, "groups of the packed weight"
    last = bool(packed.taps) and is_last(x)
    if not last:
        x = x.contiguous()
    geometry = (stride, padding, dilation)
    per_column = adc_range is not None and adc_range.dim() == 2
    prepared = packed._prepared
    if prepared is None or not prepared.fits(packed, spec, x, last, geometry, per_column):
        prepared = packed._prepared = _Prepared(packed, spec, x, last, geometry, per_column)
    if last:
        y = torch.empty(
            prepared.out, dtype=torch.float32, device="cpu", memory_format=torch.channels_last
        )
    else:
        y = x.new_empty(prepared.out)  # half a microsecond less, and x is float32 on the CPU
    columns, blocks = packed.shape[0], len(packed.rows) - 1
    mask = None
    if want_mask and spec.adc is not None:
        mask = _empty_mask(y, blocks, last)
    if alpha.dtype is not torch.float32 or alpha.numel() != columns:
        raise ValueError(f"{columns} float32 scales wanted, got {alpha.dtype} {list(alpha.shape)}")
    # The operands live until the call returns; another thread may be in this layer meanwhile.
    if bias is not None:
        bias = ready(bias, columns)
    if input_range is not None:
        input_range = ready(input_range, blocks)
    if adc_range is not None:
        adc_range = ready(adc_range, prepared.adc_ranges)
    status = prepared.call(
        prepared.struct, x.data_ptr(), y.data_ptr(), alpha.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if input_range is None else input_range.data_ptr(),
        None if adc_range is None else adc_range.data_ptr(),
        None if mask is None else mask.data_ptr(), key, call, torch.get_num_threads(),
    )  # fmt: skip
    if status == 1:
        raise MemoryError("native kernel: no memory for its scratch")
    if status:
        raise ValueError("native kernel: a converter has no range, or sizes do not fit")
    return y, mask


def _empty_mask(y: Tensor, blocks: int, last: bool) -> Tensor:
    if not last:
        return torch.empty((blocks, *y.shape), dtype=torch.bool, device="cpu")
    b, n, h, w = y.shape
    mask = torch.empty((blocks, b, h, w, n), dtype=torch.bool, device="cpu")
    return mask.permute(0, 1, 4, 2, 3)
