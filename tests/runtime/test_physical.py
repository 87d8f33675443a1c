"""The vectorised simulation of slices and pulses against loops, exactness, and its gradient."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from analogc import Converter
from analogc.runtime import kernels, physical, reference, reference_physical, tiles
from analogc.runtime.kernels import Ranges
from analogc.runtime.mvm import Geometry, geometry
from analogc.runtime.periphery import Periphery
from analogc.runtime.slicing import Slicing, pulses_of
from analogc.runtime.spec import LayerSpec
from analogc.runtime.stage import Stage, stage_of
from analogc.runtime.tiles import Programmed

CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Case:
    """A layer with its operands, in float64."""

    out: int
    channels: int
    kernel: tuple[int, ...]
    geometry: tuple[Any, ...]
    """Stride, padding, dilation, groups."""
    size: tuple[int, ...]
    batch: tuple[int, ...]
    cuts: tuple[float, ...]
    dac: Converter | None
    adc: Converter | None
    slicing: Slicing | None
    periphery: Periphery | None = None
    seed: int = 0
    crest: float = 1.5

    @property
    def groups(self) -> int:
        return int(self.geometry[3])

    @property
    def spec(self) -> LayerSpec:
        rows = self.channels * math.prod(self.kernel)
        inner = {round(cut * rows) for cut in self.cuts} - {0, rows}
        return LayerSpec(
            (0, *sorted(inner), rows), self.dac, self.adc, slicing=self.slicing,
            periphery=self.periphery,
        )  # fmt: skip

    @property
    def mvm(self) -> Geometry:
        return geometry(self.spec, self.weight.shape, *self.geometry)

    def _randn(self, purpose: int, *shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(10 * self.seed + purpose)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    @property
    def x(self) -> Tensor:
        return self._randn(0, *self.batch, self.channels * self.groups, *self.size)

    @property
    def weight(self) -> Tensor:
        return self._randn(1, self.out * self.groups, self.channels, *self.kernel)

    @property
    def bias(self) -> Tensor:
        return self._randn(2, self.out * self.groups)

    @property
    def ranges(self) -> Ranges:
        spec = self.spec
        dac, adc = spec.dac, spec.adc
        own = None
        if dac is not None and not spec.dynamic:
            own = self._randn(3, len(spec.blocks)).abs() / 2 + 1.2
        of_adc = None
        if adc is not None:
            shape = spec.adc_shape(self.out * self.groups)
            typical = self.crest * math.sqrt(spec.rows[1]) / 3
            of_adc = (self._randn(4, *shape).abs() / 4 + 0.5) * typical
        return Ranges(own, of_adc)

    def program(self) -> Programmed:
        return tiles.program(self.weight, self.spec, tiles.FIXED, self.groups)

    def fast(self, held: Programmed, want_mask: bool = False) -> tuple[Tensor, Tensor | None]:
        return physical.forward(
            self.mvm, self.x, held, self.bias, self.ranges, self.spec, None, want_mask
        )

    def vectors(self, group: int) -> Tensor:
        """Patches ``[B, K, *out]`` of a group: a convolution with one-hot kernels."""
        taps = self.channels * math.prod(self.kernel)
        eye = torch.eye(taps, dtype=torch.float64).view(taps, self.channels, *self.kernel)
        part = self.x.chunk(self.groups, dim=1)[group]
        return CONVS[len(self.kernel)](part, eye, None, *self.geometry[:3])

    def slow(self, held: Programmed, *how: Callable[[int], reference_physical.Convert]) -> Tensor:
        """The reference on patches, group by group; ``how`` makes its converters for a group."""
        spec, ranges = self.spec, self.ranges
        slices = held.slices or (held.blocks,)
        outputs = []
        for g in range(self.groups):
            columns = slice(g * self.out, (g + 1) * self.out)
            of_adc = ranges.adc
            if of_adc is not None and spec.adc is not None and spec.adc.per_column:
                of_adc = of_adc[..., columns]
            flat = [
                tuple(rows_of(block, spec, r)[columns] for r, block in enumerate(blocks))
                for blocks in slices
            ]
            x = self.vectors(g) if self.kernel else self.x
            rows = x.movedim(1, -1) if self.kernel else x
            y = reference_physical.linear(
                rows.reshape(-1, rows.shape[-1]), flat, held.scale[columns], self.bias[columns],
                ranges.input, of_adc, spec, *[make(g) for make in how],
            )  # fmt: skip
            y = y.view(*rows.shape[:-1], -1)
            outputs.append(y.movedim(-1, 1) if self.kernel else y)
        return torch.cat(outputs, dim=1) if self.kernel else outputs[0]


def rows_of(block: Tensor, spec: LayerSpec, r: int) -> Tensor:
    """``[N, K_r]`` of a block as it is held."""
    if block.dim() == 2:
        return block
    start, stop = spec.blocks[r]
    skip = start // block.shape[2:].numel() * block.shape[2:].numel()
    return block.flatten(1)[:, start - skip : stop - skip]


def linear(**changes: Any) -> Case:
    """A linear layer on two row blocks."""
    fields: dict[str, Any] = {
        "out": 7, "channels": 20, "kernel": (), "geometry": ((), (), (), 1), "size": (),
        "batch": (4,), "cuts": (0.4,), "dac": Converter(6), "adc": Converter(5), "slicing": None,
    }  # fmt: skip
    return Case(**{**fields, **changes})


def conv(**changes: Any) -> Case:
    """A grouped, dilated, strided convolution whose row blocks end inside channels."""
    fields: dict[str, Any] = {
        "out": 3, "channels": 4, "kernel": (3, 2),
        "geometry": ((2, 1), (1, 2), (1, 2), 2), "size": (7, 6), "batch": (2,),
        "cuts": (0.3, 0.6), "dac": Converter(6), "adc": Converter(5), "slicing": None,
    }  # fmt: skip
    return Case(**{**fields, **changes})


MAKERS = pytest.mark.parametrize("make", [linear, conv], ids=["linear", "conv"])


def close(found: Tensor, expected: Tensor, share: float = 1e-9) -> None:
    peak = float(expected.abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=share * peak)


def parts_of(total: int, draw: st.DrawFn) -> tuple[int, ...]:
    found: list[int] = []
    while sum(found) < total:
        found.append(draw(st.integers(1, total - sum(found))))
    return tuple(found)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    dims = draw(st.integers(0, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, padding, dilation = each(1, 3), each(1, 3), each(0, 2), each(1, 2)
    size = tuple(
        max(draw(st.integers(1, 5)), d * (k - 1) + 1 - 2 * p)
        for k, p, d in zip(kernel, padding, dilation, strict=True)
    )
    codes: Any = draw(st.sampled_from(["symmetric", "sign-magnitude", "offset", "unsigned"]))
    bits = draw(st.integers(2, 8))
    dac = Converter(bits, draw(st.sampled_from(["calibrated", "dynamic"])), codes=codes)
    adc = draw(
        st.none()
        | st.builds(
            Converter,
            st.integers(2, 8),
            per_column=st.booleans(),
            codes=st.sampled_from(["symmetric", "offset", "unsigned"]),
        )
    )
    coding: Any = draw(st.sampled_from(["balanced", "offset"]))
    weight_bits = draw(st.none() | st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    input_bits = None
    if draw(st.booleans()):
        input_bits = parts_of(bits - (codes == "sign-magnitude"), draw)
    slicing = Slicing(
        weight_bits, coding, input_bits, draw(st.sampled_from(["digital", "analog"])),
        draw(st.sampled_from(["shared", "per-slice", "per-pulse"])),
        coding == "offset" and draw(st.booleans()),
    )  # fmt: skip
    batch = (
        (draw(st.integers(1, 3)),) if dims else tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    )
    return Case(
        draw(st.integers(1, 4)), draw(st.integers(1, 5)), kernel,
        (stride, padding, dilation, draw(st.integers(1, 3)) if dims else 1), size, batch,
        tuple(draw(st.lists(st.floats(0, 1), max_size=3))), dac, adc, slicing,
        seed=draw(st.integers(0, 100)),
    )  # fmt: skip


@given(cases())
@settings(max_examples=200)
def test_any_layer_equals_the_loops_over_slices_and_pulses(case: Case) -> None:
    held = case.program()

    found, _ = case.fast(held)

    close(found, case.slow(held))


EXACT = [
    Slicing((1, 2, 3, 2), "balanced", (1, 1, 1, 1, 1)),
    Slicing((4, 4), "offset", (5,)),
    Slicing((8,), "balanced"),
    Slicing((2, 2, 2, 2), "offset", (2, 2, 1), flip=True),
    Slicing((8,), "offset", (3, 2), "analog"),
]


@pytest.mark.parametrize("slicing", EXACT, ids=str)
@MAKERS
def test_ideal_converters_give_the_unsliced_layer(
    make: Callable[..., Case], slicing: Slicing
) -> None:
    case = make(adc=None, dac=Converter(6, codes="sign-magnitude"), slicing=slicing)
    held = case.program()
    plain = make(adc=None, dac=Converter(6))
    # The weights that eight bits can hold, in one slice.
    whole = Programmed(held.blocks, held.scale)

    found, _ = case.fast(held)
    expected, _ = kernels.forward(
        plain.mvm, plain.x, whole, plain.bias, plain.ranges, plain.spec, None
    )

    close(found, expected, 1e-12)
    magnitude = 8 + (slicing.coding == "balanced")
    exact, _ = kernels.forward(
        plain.mvm, plain.x, plain.program(), plain.bias, plain.ranges, plain.spec, None
    )
    error = float((found - exact).abs().max() / exact.abs().max())
    assert 0 < error < 4 * 2.0**-magnitude


@pytest.mark.parametrize("coding", ["balanced", "offset"])
@given(bits=st.lists(st.integers(1, 5), min_size=1, max_size=5), seed=st.integers(0, 100))
def test_slices_add_up_to_the_rounded_weight(coding: Any, bits: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.rand(50, generator=generator, dtype=torch.float64) * 2 - 1
    weight[:2] = torch.tensor([-1.0, 1.0])
    slicing = Slicing(tuple(bits), coding)
    steps = 2 ** sum(bits) - 1

    parts = slicing.split(weight)
    total = sum(c * part for c, part in zip(slicing.significances, parts, strict=True))

    assert isinstance(total, Tensor)
    assert sum(slicing.significances) == pytest.approx(1)
    half = 0.5 / steps if coding == "balanced" else 1 / steps
    assert float((total - weight).abs().max()) <= half + 1e-12
    close(total[:2], weight[:2], 1e-12)
    for width, part in zip(bits, parts, strict=True):
        level = part.abs() if coding == "balanced" else (part + 1) / 2
        level = level * (2**width - 1)
        close(level, level.round(), 1e-9)


def test_the_codes_of_an_input_are_the_sum_of_its_pulses() -> None:
    kinds = ("symmetric", 6), ("sign-magnitude", 7), ("offset", 6), ("unsigned", 6)
    for (codes, bits), cut in itertools.product(kinds, ((1, 3, 2), (2, 3, 1))):
        dac = Converter(bits, codes=codes)  # type: ignore[arg-type]
        values = torch.arange(dac.lowest, dac.full_code + 1, dtype=torch.float64)
        slicing = Slicing(input_bits=cut)
        slicing.check(dac)
        digits = slicing.digits(dac)

        pulses = pulses_of(values, digits, dac)

        total = sum(p / d.full * d.significance for p, d in zip(pulses, digits, strict=True))
        close(torch.as_tensor(total) * dac.full_code, values, 1e-12)
        for pulse, digit in zip(pulses, digits, strict=True):
            assert float(pulse.abs().max()) <= digit.full


@MAKERS
def test_chunks_do_not_matter(make: Callable[..., Case], monkeypatch: pytest.MonkeyPatch) -> None:
    case = make(slicing=Slicing((2, 2), "offset", (3, 3)), batch=(9,))
    held = case.program()
    whole, mask = case.fast(held, want_mask=True)
    monkeypatch.setattr(physical, "_CHUNK", 1)

    found, pieces = case.fast(held, want_mask=True)

    close(found, whole, 1e-12)
    assert mask is not None and pieces is not None and torch.equal(mask, pieces)


def stage(case: Case, held: Programmed) -> Stage:
    return stage_of(held, case.spec, case.groups)


def unstacked(values: Tensor, case: Case, group: int, s: int) -> Tensor:
    """``[N / groups, ...]`` of one group and slice."""
    count = 1 if case.slicing is None else case.slicing.slices
    found: Tensor = values.unflatten(0, (case.groups, count, case.out))[group, s]
    return found


def converter_of(case: Case, held: Programmed) -> Callable[[int], reference_physical.Convert]:
    """Codes by counting thresholds, one column at a time."""
    adc = case.adc
    assert adc is not None

    def make(group: int) -> reference_physical.Convert:
        def convert(v: Tensor, r: int, s: int) -> Tensor:
            made = stage(case, held)
            if made.gain is not None:
                v = v * unstacked(made.gain[r], case, group, s)
            if made.offset is not None:
                v = v + unstacked(made.offset[r], case, group, s) * adc.full_code
            if made.thresholds is None:
                return reference_physical.codes_of(v, adc)
            table = made.thresholds[r]
            own = table[None] if table.dim() == 1 else unstacked(table, case, group, s)
            return (v[..., None] - adc.lowest > own).sum(-1).to(v.dtype) + adc.lowest

        return convert

    return make


def read_out_of(case: Case, held: Programmed) -> Callable[[int], reference_physical.Convert]:
    periphery = case.periphery
    assert periphery is not None

    def make(group: int) -> reference_physical.Convert:
        def read_out(v: Tensor, r: int, s: int) -> Tensor:
            made = stage(case, held)
            if made.droop is not None:
                v = v * unstacked(made.droop[r], case, group, s)
            if made.bend is not None:
                slope = (1 + periphery.nonlinearity * periphery.calibrated_at) ** 2
                v = v * slope / (1 + unstacked(made.bend[r], case, group, s) * v.abs())
            return v

        return read_out

    return make


PERIPHERY = Periphery(0.1, 0.3, 0.2, 0.5)
ADCS = [
    Converter(5, gain_error=0.05, offset_error=0.02),
    Converter(5, kind="sar", mismatch=0.2),
    Converter(5, kind="sar", mismatch=0.1, shared_by=3, gain_error=0.03, codes="offset"),
    Converter(5, kind="ramp", mismatch=0.2, offset_error=0.05),
    Converter(5, kind="ramp", mismatch=0.1, codes="unsigned"),
]


@pytest.mark.parametrize("adc", ADCS, ids=lambda a: f"{a.kind}-{a.codes}")
@pytest.mark.parametrize(
    "slicing", [None, Slicing((2, 3), "balanced", (3, 3)), Slicing((2, 2), "offset")], ids=str
)
@pytest.mark.parametrize("dynamic", [False, True])
@MAKERS
def test_errors_of_converters_and_periphery_equal_the_loops(
    make: Callable[..., Case], dynamic: bool, slicing: Slicing | None, adc: Converter
) -> None:
    dac = Converter(6, "dynamic") if dynamic else Converter(6)
    case = make(dac=dac, adc=adc, slicing=slicing, periphery=PERIPHERY)
    held = case.program()

    found, _ = case.fast(held)

    close(found, case.slow(held, converter_of(case, held), read_out_of(case, held)))


@MAKERS
def test_errors_of_input_lines_are_those_of_the_weights_rows(make: Callable[..., Case]) -> None:
    slicing = Slicing((2, 3), "balanced", (3, 3))
    case = make(dac=Converter(6, gain_error=0.1), adc=None, slicing=slicing)
    exact = make(dac=Converter(6), adc=None, slicing=slicing)
    held, plain = case.program(), exact.program()

    found, _ = case.fast(held)
    expected, _ = exact.fast(plain)

    assert 0.02 < float((found - expected).norm() / expected.norm()) < 0.3
    offset = make(dac=Converter(6, offset_error=0.1), adc=None, slicing=slicing)
    shifted, _ = offset.fast(offset.program())
    # The same for each input vector: whatever is driven, an offset adds the same.
    moved = shifted - expected
    close(moved, moved[:1].expand_as(moved).contiguous(), 1e-9)


def surrogate(case: Case, held: Programmed, mask: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """A plain layer with the effective weight, its input clipped, its outputs masked."""
    normal = weight.flatten(1) / held.scale[:, None]
    y: Tensor | float = 0.0
    for r, (start, stop) in enumerate(case.spec.blocks):
        rows = torch.cat(
            [rows_of(block, case.spec, i) for i, block in enumerate(held.blocks)], dim=1
        )
        matrix = rows + (normal - normal.detach())
        keep = torch.zeros(matrix.shape[1], dtype=torch.float64)
        keep[start:stop] = 1
        block = (matrix * keep).view(weight.shape)
        full = None if case.ranges.input is None else case.ranges.input[r]
        if full is None:
            clipped = x
        else:
            codes = torch.clamp(torch.round(x / full * 31), -31, 31) * full / 31
            clipped = x.clamp(-full, full)
            clipped = clipped + (codes - clipped).detach()
        if case.kernel:
            out = CONVS[len(case.kernel)](clipped, block, None, *case.geometry)
            out = out * held.scale.view(-1, *[1] * len(case.kernel))
        else:
            out = F.linear(clipped, block) * held.scale
        y = y + out * mask[r]
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize(
    "slicing", [Slicing((2, 3), "balanced", (3, 3)), Slicing((3, 2), "offset", (1,) * 6)], ids=str
)
@MAKERS
def test_gradient_is_straight_through_the_effective_weight(
    make: Callable[..., Case], slicing: Slicing
) -> None:
    case = make(slicing=slicing, crest=1.5 if slicing.coding == "balanced" else 6.0)
    held = case.program()
    x, weight, bias = (t.requires_grad_() for t in (case.x, case.weight, case.bias))
    name = f"conv{len(case.kernel)}d" if case.kernel else "linear"
    geo = case.geometry if case.kernel else ()
    _, mask = case.fast(held, want_mask=True)
    assert mask is not None and 0.1 < float(mask.double().mean()) < 0.98

    y = getattr(torch.ops.analogc, name)(
        x, weight, bias, case.ranges.input, case.ranges.adc, *geo, case.spec.to_text(), ""
    )
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, [x, weight], grad)
    expected = torch.autograd.grad(surrogate(case, held, mask, x, weight), [x, weight], grad)

    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs)


def test_mask_tells_where_no_conversion_clips() -> None:
    case = linear(slicing=Slicing((2, 3), "balanced", (3, 3)), cuts=(), crest=1.0)
    held = case.program()
    span = case.ranges.adc
    assert span is not None and held.slices is not None and case.ranges.input is not None
    codes = torch.clamp(torch.round(case.x / case.ranges.input * 31), -31, 31)
    pulses = reference_physical.digits_of(codes, (3, 3), "symmetric")
    inside = torch.ones(4, 7, dtype=torch.bool)
    for (weight,) in held.slices:
        for digit, full, _ in pulses:
            inside &= ((digit / full) @ weight.mT).abs() <= span

    _, mask = case.fast(held, want_mask=True)

    assert mask is not None and torch.equal(mask[0], inside)
    assert 0.1 < float(inside.double().mean()) < 0.9


@pytest.mark.parametrize("name", ["linear", "conv2d"])
@pytest.mark.parametrize("slicing", [None, Slicing((2, 2), "balanced", (1,) * 5)])
def test_a_capped_range_is_the_abs_max_up_to_the_cap(name: str, slicing: Slicing | None) -> None:
    dac = Converter(6, "dynamic", codes="sign-magnitude", cap=1.2)
    size = (9, 20) if name == "linear" else (3, 4, 6, 6)
    x = torch.randn(size) * torch.logspace(-1, 1, size[0]).view(-1, *[1] * (len(size) - 1))
    weight = torch.randn(7, 20) if name == "linear" else torch.randn(6, 4, 3, 3)
    rows = weight[0].numel()
    rest = () if name == "linear" else ([1, 1], [1, 1], [1, 1], 1)
    spec = LayerSpec((0, 8, rows), dac, slicing=slicing)

    def run(x: Tensor, spec: LayerSpec) -> Tensor:
        out: Tensor = getattr(torch.ops.analogc, name)(
            x, weight, None, None, None, *rest, spec.to_text(), ""
        )
        return out

    found = run(x, spec)

    held = tiles.stateless(weight, spec)
    plain = dataclasses.replace(spec, dac=dataclasses.replace(dac, cap=None))
    assert not torch.equal(found, run(x, plain))
    if name == "linear" and slicing is None:
        right = reference.linear(x, held.blocks, held.scale, None, None, None, spec)
        torch.testing.assert_close(found, right)
    inside = x.abs().amax(tuple(range(1, x.dim()))) <= 1.2
    assert bool(inside.any())
    torch.testing.assert_close(found[inside], run(x[inside], plain))
    # One loud vector: full scale is the cap, and what is above it clips.
    torch.testing.assert_close(found, run(x.clamp(-1.2, 1.2), plain))
