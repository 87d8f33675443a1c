"""What a layer must give, in float64 NumPy on im2col patches: shares no code with the kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from analogc import Converter
from analogc.runtime import philox
from analogc.runtime.native.layer import Format, Packed, forward
from analogc.runtime.spec import LayerSpec

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """One layer and its operands' sizes."""

    out: int = 16
    """Outputs of a group."""
    channels: int = 8
    """Inputs of a group."""
    kernel: tuple[int, ...] = ()
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    batch: int = 3
    rows: tuple[int, ...] = ()
    """Inner row block boundaries."""
    dac: Converter | None = Converter(8)
    adc: Converter | None = Converter(8)
    noise: float = 0.0
    format: Format | None = None
    last: bool = False
    bias: bool = True
    seed: int = 0

    @property
    def inputs(self) -> int:
        return self.channels * math.prod(self.kernel)

    @property
    def columns(self) -> int:
        return self.out * self.groups

    @property
    def spec(self) -> LayerSpec:
        inner = sorted({row for row in self.rows if 0 < row < self.inputs})
        return LayerSpec((0, *inner, self.inputs), self.dac, self.adc, output_noise=self.noise)


class Layer:
    """Operands of a case, and its result by the kernels and by the oracle."""

    def __init__(self, case: Case) -> None:
        self.case, self.spec = case, case.spec
        generator = torch.Generator().manual_seed(case.seed)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def rand(*shape: int) -> Tensor:
            return torch.rand(shape, generator=generator)

        n, blocks = case.columns, len(self.spec.blocks)
        self.x = randn(case.batch, case.channels * case.groups, *case.size)
        if case.last:
            self.x = self.x.to(memory_format=torch.channels_last)
        bits = case.dac.bits if case.dac else None
        self.packed = Packed.pack(
            randn(n, case.inputs), self.spec.rows, case.kernel, case.groups, bits, case.format
        )
        self.alpha = rand(n) + 0.5
        self.bias = randn(n) if case.bias else None
        self.input_range = None
        if case.dac is not None and not self.spec.dynamic:
            self.input_range = rand(blocks) + 1.2
        self.adc_range = None
        if case.adc is not None:
            wide = (n,) if case.adc.per_column else ()
            # About a sigma of the sums, so that some of them clip.
            self.adc_range = (rand(blocks, *wide) + 0.5) * math.sqrt(case.inputs / blocks)

    def run(
        self, x: Tensor | None = None, key: int = 7, call: int = 3, want_mask: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        case = self.case
        return forward(
            self.x if x is None else x, self.packed, self.alpha, self.bias, self.input_range,
            self.adc_range, self.spec, case.stride, case.padding, case.dilation, case.groups, key,
            call, want_mask,
        )  # fmt: skip

    def patches(self) -> Array:
        """``[vectors, groups, K]``."""
        case = self.case
        x = self.x.contiguous().double().numpy()
        if not case.kernel:
            return x.reshape(case.batch, 1, -1)
        x = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in case.padding)])
        reach = [d * (k - 1) + 1 for d, k in zip(case.dilation, case.kernel, strict=True)]
        dims = tuple(range(2, 2 + len(reach)))
        view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=dims)
        steps = tuple(slice(None, None, s) for s in case.stride)
        taps = tuple(slice(None, None, d) for d in case.dilation)
        view = view[(slice(None), slice(None), *steps, *taps)]
        self.out_size = view.shape[2 : 2 + len(reach)]
        view = np.moveaxis(view, 1, 1 + len(reach))  # [B, *out, C, *kernel]
        found: Array = view.reshape(-1, case.groups, case.inputs)
        return found

    def expected(self, key: int = 7, call: int = 3) -> tuple[Array, NDArray[np.bool_], Array]:
        """Outputs ``[vectors, N]``, where a rounding might fall either way, and the ADC inputs.

        The ADC inputs are ``[R, vectors, N]``, in its steps.
        """
        case, spec = self.case, self.spec
        patches = self.patches()
        weight = self.packed.unpack().double().numpy().reshape(case.groups, case.out, -1)
        m, n = patches.shape[0], case.columns
        dac = np.float32(spec.dac.levels if spec.dac else 1)
        adc = spec.adc.levels if spec.adc else 0
        y, loose = np.zeros((m, n)), np.zeros((m, n), bool)
        inputs = []
        for r, (start, stop) in enumerate(spec.blocks):
            part = patches[..., start:stop]
            unit = np.ones((m, case.groups, 1))
            codes = part
            if spec.dac is not None:
                if self.input_range is not None:
                    unit *= float(self.input_range[r])
                else:
                    unit = np.abs(part).max(-1, keepdims=True)
                    unit[unit == 0] = 1
                steps = (dac / unit.astype(np.float32)).astype(np.float32)
                codes = np.clip(np.rint(part.astype(np.float32) * steps), -dac, dac)
                codes = codes.astype(np.float64)
            p = np.einsum("mgk,gnk->mgn", codes, weight[..., start:stop]).reshape(m, n)
            size = np.einsum("mgk,gnk->mgn", np.abs(codes), np.abs(weight[..., start:stop]))
            z = np.zeros((m, n))
            if case.noise:
                z = philox.normals(key, r, call, m, n).astype(np.float64)
            units = np.repeat(unit[..., 0], case.out, axis=1)
            if adc:
                assert self.adc_range is not None
                full = self.adc_range[r].double().numpy()
                t = p * (adc / (full * float(dac))) + z * (case.noise * adc / full)
                error = 1e-4 + 2e-6 * size.reshape(m, n) * (adc / (full * float(dac)))
                # Near the middle between two codes, unless far beyond the last.
                middle = np.abs(np.abs(t - np.floor(t)) - 0.5) < error
                loose |= middle & (np.abs(t) < adc + 1)
                inputs.append(t)
                y += np.clip(np.rint(t), -adc, adc) * units * full / adc * self.alpha.numpy()
            else:
                t = p + z * case.noise * float(dac)
                y += t * units / float(dac) * self.alpha.numpy()
        if self.bias is not None:
            y += self.bias.double().numpy()
        return y, loose, np.stack(inputs) if inputs else np.empty((0, m, n))

    def as_vectors(self, y: Tensor) -> Array:
        """An output ``[B, N, *out]`` as ``[vectors, N]``."""
        found: Array = y.movedim(1, -1).reshape(-1, self.case.columns).double().numpy()
        return found


def converters(dynamic: bool) -> st.SearchStrategy[Converter | None]:
    kind = st.sampled_from(["calibrated", "dynamic"]) if dynamic else st.just("calibrated")
    bits = st.sampled_from([2, 4, 8, 8, 8, 10])
    columns = st.just(False) if dynamic else st.booleans()
    return st.none() | st.builds(Converter, bits, kind, columns)


@st.composite
def cases(draw: st.DrawFn, dims: st.SearchStrategy[int]) -> Case:
    """Layers of any geometry; row blocks begin and end anywhere."""
    d = draw(dims)

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(d))

    groups = draw(st.sampled_from([1, 1, 2, 3, 8])) if d else 1
    channels = draw(st.sampled_from([1, 2, 3, 5, 8, 17, 33] if d else [1, 2, 7, 64, 100, 301]))
    kernel, stride, padding = each(1, 3), each(1, 3), each(0, 2)
    dilation = each(1, 2)
    reach = [a * (k - 1) + 1 for a, k in zip(dilation, kernel, strict=True)]
    size = tuple(
        draw(st.integers(max(1, r - 2 * p), 9)) for r, p in zip(reach, padding, strict=True)
    )
    inputs = channels * math.prod(kernel)
    dac = draw(converters(dynamic=True))
    exact = dac is not None and dac.bits <= 8
    return Case(
        out=draw(st.sampled_from([1, 2, 3, 5, 16, 17, 31, 32, 40, 64, 70, 130, 257])),
        channels=channels, kernel=kernel, size=size, stride=stride, padding=padding,
        dilation=dilation, groups=groups, batch=draw(st.sampled_from([1, 2, 3, 7, 13])),
        rows=tuple(draw(st.lists(st.integers(1, inputs), max_size=3))), dac=dac,
        adc=draw(converters(dynamic=False)), noise=draw(st.sampled_from([0.0, 0.3])),
        format=draw(st.sampled_from([None, "int16", "float32"] if exact else [None])),
        last=d == 2 and draw(st.booleans()), bias=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
    )  # fmt: skip
