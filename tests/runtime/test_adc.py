"""Converters against closed forms: signal to noise, thresholds, rounding, read noise."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analogc import Converter, GaussianDevice, Target
from analogc.errors import InputError
from analogc.runtime import physical, tiles
from analogc.runtime.adc import code_count, find_codes, ramp_thresholds, sar_thresholds
from analogc.runtime.converters import quantise
from analogc.runtime.kernels import Ranges
from analogc.runtime.mvm import geometry
from analogc.runtime.noise import NoiseKey
from analogc.runtime.slicing import Slicing, pulses_of
from analogc.runtime.spec import LayerSpec
from analogc.runtime.stage import stage_of
from analogc.runtime.tiles import Programmed

ALL_CODES = ("symmetric", "sign-magnitude", "offset", "unsigned")


def sqnr_db(bits: int, k: float) -> float:
    """Of a Gaussian on ``2^bits`` levels from -k to k sigma, in closed form."""
    normal = NormalDist()
    step, tail = 2 * k / (2**bits - 1), 1 - normal.cdf(k)
    noise = step**2 / 12 * (1 - 2 * tail) + 2 * ((1 + k * k) * tail - k * normal.pdf(k))
    return -10 * math.log10(noise)


@pytest.mark.parametrize(("bits", "k", "known"), [(4, 2.5, 19.38), (6, 4, 28.70), (8, 4, 40.55)])
def test_offset_codes_have_the_sqnr_of_the_closed_form(bits: int, k: float, known: float) -> None:
    # The known values are also what CrossSim 3.2.0's QuantizerADC measures.
    assert sqnr_db(bits, k) == pytest.approx(known, abs=0.005)
    # Midpoints of equal shares of the distribution: a Gaussian without sampling error.
    share = (torch.arange(2_000_000, dtype=torch.float64) + 0.5) / 2_000_000
    x = torch.special.ndtri(share)
    converter = Converter(bits, codes="offset")

    y = quantise(x, torch.tensor(k), converter) * (k / converter.full_code)

    found = 10 * math.log10(float(x.square().mean() / (x - y).square().mean()))
    assert found == pytest.approx(known, abs=0.05)


@pytest.mark.parametrize("codes", ALL_CODES)
@given(bits=st.integers(2, 10))
def test_codes_are_as_many_as_bits_hold_and_reach_the_range(codes: Any, bits: int) -> None:
    converter = Converter(bits, codes=codes)
    x = torch.linspace(-1.5, 1.5, 20_001, dtype=torch.float64)

    found = quantise(x, torch.tensor(1.0), converter)

    values = found.unique()
    assert len(values) == code_count(converter)
    assert len(values) == 2**bits - (codes in ("symmetric", "sign-magnitude"))
    assert float(values.max()) == converter.full_code
    assert float(values.min()) == converter.lowest
    assert bool((found.diff() >= 0).all())
    inside = x.abs() <= 1 if codes != "unsigned" else (x >= 0) & (x <= 1)
    error = found / converter.full_code - x
    assert float(error[inside].abs().max()) <= 0.5 / converter.full_code + 1e-12
    assert (0.0 in values) == (codes != "offset")


@pytest.mark.parametrize("codes", ALL_CODES)
@pytest.mark.parametrize("kind", ["sar", "ramp"])
@given(bits=st.integers(2, 8), seed=st.integers(0, 100))
def test_without_mismatch_a_table_is_the_ideal_converter(
    kind: Any, codes: Any, bits: int, seed: int
) -> None:
    converter = Converter(bits, codes=codes, kind=kind)
    table = thresholds(converter, torch.randn(5, 1 << bits, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    v = torch.rand(5, 40, generator=generator, dtype=torch.float64) * 3 - 1.5
    ideal = quantise(v, torch.tensor(1.0), converter)

    steps = v * converter.full_code - converter.lowest
    find_codes(steps, table)

    assert torch.equal(steps + converter.lowest, ideal)


def thresholds(converter: Converter, noise: Tensor) -> Tensor:
    if converter.kind == "sar":
        return sar_thresholds(converter, noise[:, : converter.bits])
    return ramp_thresholds(converter, noise[0, : code_count(converter) - 1])


def searched(converter: Converter, noise: Tensor, v: Tensor) -> Tensor:
    """Codes by the comparisons that the circuit makes, one bit after the other."""
    bits = converter.bits
    units = [
        2.0**i * (1 + converter.mismatch * 2 ** (-i / 2) * float(noise[i])) for i in range(bits)
    ]
    total = sum(units)
    found = []
    skipped = 2**bits - code_count(converter)
    for value in v.tolist():
        code = 0
        for bit in reversed(range(bits)):
            tried = code | 1 << bit
            level = sum(units[i] for i in range(bits) if tried >> i & 1) / total * (2**bits - 1)
            if value + skipped > level - 0.5:
                code = tried
        found.append(max(code, skipped) - skipped)
    return torch.tensor(found, dtype=v.dtype)


@pytest.mark.parametrize("codes", ALL_CODES)
@given(bits=st.integers(2, 6), mismatch=st.sampled_from([0.05, 0.5]), seed=st.integers(0, 1000))
def test_sar_table_is_the_binary_search(codes: Any, bits: int, mismatch: float, seed: int) -> None:
    converter = Converter(bits, codes=codes, kind="sar", mismatch=mismatch)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(1, bits, generator=generator, dtype=torch.float64)
    v = torch.rand(1, 100, generator=generator, dtype=torch.float64) * (2**bits + 1) - 1
    table = sar_thresholds(converter, noise)

    found = v.clone()
    find_codes(found, table)

    assert bool((table.diff() >= 0).all())
    assert torch.equal(found, searched(converter, noise[0], v[0])[None])


def test_sar_with_much_mismatch_misses_codes_and_a_ramp_never_does() -> None:
    noise = torch.randn(
        200, 1 << 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    v = torch.linspace(-30, 300, 100_000, dtype=torch.float64)

    def seen(converter: Converter, row: int) -> int:
        table = thresholds(converter, noise[row : row + 1])
        return len(torch.bucketize(v, table.view(-1)).unique())

    sar = [seen(Converter(8, codes="offset", kind="sar", mismatch=0.15), i) for i in range(50)]
    ramp = [seen(Converter(8, codes="offset", kind="ramp", mismatch=0.15), i) for i in range(50)]

    assert min(sar) < 250
    assert ramp == [256] * 50


def test_sar_mismatch_shows_at_mid_scale_with_the_variance_of_all_its_capacitors() -> None:
    # The step from 01...1 to 10...0 swaps all units: variance (2^b - 1) mismatch^2, in steps^2.
    bits, mismatch, count = 8, 0.01, 20_000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, bits, generator=generator, dtype=torch.float64)
    converter = Converter(bits, codes="offset", kind="sar", mismatch=mismatch)

    table = sar_thresholds(converter, noise)

    middle = table[:, 127] - table[:, 126] - 1
    # The sample variance of 20,000 numbers is within 4 % of the true one at four sigma.
    assert float(middle.var()) == pytest.approx(255 * mismatch**2, rel=0.04)


def test_errors_of_a_ramp_add_up_along_it() -> None:
    converter = Converter(8, kind="ramp", mismatch=0.05)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(10_000, 254, generator=generator, dtype=torch.float64)

    table = torch.stack([ramp_thresholds(converter, one) for one in noise])
    error = table - torch.arange(254) - 0.5

    for place in (0, 63, 253):
        expected = (place + 1) * 0.05**2
        assert float(error[:, place].var()) == pytest.approx(expected, rel=0.06)


def layer(
    weight: Tensor, held: Programmed | None = None, **settings: Any
) -> tuple[LayerSpec, Programmed]:
    spec = LayerSpec((0, weight.shape[1]), **settings)
    return spec, held or tiles.program(weight, spec, NoiseKey(1, "program/a", 0))


def run(
    x: Tensor,
    spec: LayerSpec,
    held: Programmed,
    call: int = 0,
    adc_range: float | Tensor = 1.0,
    name: str = "read/a",
) -> Tensor:
    mvm = geometry(spec, torch.Size([len(held.scale), x.shape[1]]), (), (), (), 1)
    shape = () if spec.adc is None else spec.adc_shape(len(held.scale))
    full = torch.as_tensor(adc_range).expand(shape) if shape else None
    key = NoiseKey(1, name, call) if spec.draws else None
    y, _ = physical.forward(mvm, x, held, None, Ranges(torch.ones(1), full), spec, key)
    return y


def test_stochastic_rounding_is_unbiased_and_fresh() -> None:
    weight = torch.eye(4)
    for name in ("dac", "adc"):
        settings: dict[str, Any] = {name: Converter(4, rounding="stochastic")}
        spec, held = layer(weight, **settings)
        x = torch.tensor([[0.31, -0.77, 0.05, 1.0]]).expand(40_000, 4).contiguous()

        y = run(x, spec, held)

        steps = y * 7
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
        # Standard error at most 0.5 / 7 / sqrt(40,000) = 0.00036: four of them.
        torch.testing.assert_close(y.mean(0), x[0], atol=0.0015, rtol=0)
        again = run(x, spec, held, call=1)
        assert 0.2 < float((again != y).float().mean()) < 0.9
        assert torch.equal(y, run(x, spec, held))


@pytest.mark.parametrize("scaling", ["independent", "proportional"])
@pytest.mark.parametrize("dac", [None, Converter(8), Converter(8, "dynamic")], ids=str)
def test_read_noise_has_the_variance_of_one_noisy_array_for_each_vector(
    scaling: Any, dac: Converter | None
) -> None:
    device = GaussianDevice(0.0, scaling=scaling, read_noise=0.05)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 30, generator=generator)
    x = (torch.rand(1, 30, generator=generator) * 2 - 1).expand(40_000, 30).contiguous()
    spec, held = layer(weight, dac=dac, device=device)

    y = run(x, spec, held)

    # Brute force: a fresh copy of the array, w + sigma N(0, 1), for each of 40,000 products.
    normal = weight / held.scale[:, None]
    sigma = 0.05 * (normal.abs() if scaling == "proportional" else torch.ones_like(normal))
    draws = []
    for _ in range(40):
        noisy = normal + sigma * torch.randn(1000, 6, 30, generator=generator)
        draws.append(torch.einsum("vnk,k->vn", noisy, x[0]))
    brute = torch.cat(draws) * held.scale
    # Two sample variances of 40,000 each, pooled over 6 columns: 0.4 % standard error.
    ratio = (y.var(0) / brute.var(0)).mean()
    assert float(ratio) == pytest.approx(1, abs=0.02)
    standard = (y - y.mean(0)) / y.std(0)
    assert float(standard.pow(4).mean()) == pytest.approx(3, abs=0.1)
    correlation = torch.corrcoef(standard.T) - torch.eye(6)
    assert float(correlation.abs().max()) < 0.02


def test_read_noise_of_slices_and_pulses_adds_up() -> None:
    device = GaussianDevice(0.0, read_noise=0.03)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 20, generator=generator)
    x = (torch.rand(1, 20, generator=generator) * 2 - 1).expand(30_000, 20).contiguous()
    for accumulation in ("digital", "analog"):
        slicing = Slicing((3, 3), "balanced", (2, 2, 3), accumulation)
        dac = Converter(8, codes="sign-magnitude")
        spec, held = layer(weight, dac=dac, device=device, slicing=slicing)

        y = run(x, spec, held)

        codes = quantise(x[:1], torch.tensor(1.0), dac)
        digits = slicing.digits(dac)
        pulses = pulses_of(codes, digits, dac)
        variance = 0.0
        for c in slicing.significances:
            for pulse, digit in zip(pulses, digits, strict=True):
                drive = pulse / digit.full
                variance += float((c * digit.significance * 0.03) ** 2 * drive.square().sum())
        ratio = (y.var(0) / (variance * held.scale**2)).mean()
        assert float(ratio) == pytest.approx(1, abs=0.02), accumulation


def test_noise_is_independent_of_other_layers_blocks_and_calls() -> None:
    device = GaussianDevice(0.0, read_noise=0.05)
    weight = torch.randn(6, 16)
    x = torch.ones(4000, 16)
    spec, held = layer(weight, device=device)
    base = run(x, spec, held)

    for other in (run(x, spec, held, call=1), run(x, spec, held, name="read/b")):
        both = torch.stack([base.flatten(), other.flatten()])
        both = both - torch.stack([base, other]).mean(1, keepdim=True).expand(2, 4000, 6).flatten(1)
        assert abs(float(torch.corrcoef(both)[0, 1])) < 0.03


def test_errors_of_a_chip_stay_when_it_is_written_again_and_differ_between_columns() -> None:
    adc = Converter(8, gain_error=0.05, offset_error=0.02)
    weight = torch.randn(400, 8)
    x = torch.rand(50, 8)
    spec = LayerSpec((0, 8), None, adc)
    assert spec.differs_by_chip
    chips = [NoiseKey(1, "chip/a", 0), NoiseKey(1, "chip/b", 0)]
    first, again, other = (
        tiles.program(weight, spec, NoiseKey(1, "program/a", i), 1, 0.0, chip)
        for i, chip in enumerate((chips[0], chips[0], chips[1]))
    )

    y = run(x, spec, first, adc_range=8.0)

    assert torch.equal(y, run(x, spec, again, adc_range=8.0))
    assert not torch.equal(y, run(x, spec, other, adc_range=8.0))
    made = stage_of(first, spec, 1)
    assert made.gain is not None and made.offset is not None
    assert float(made.gain[0].std()) == pytest.approx(0.05, rel=0.15)
    assert float(made.offset[0].std()) == pytest.approx(0.02, rel=0.15)
    both = torch.stack([made.gain[0], made.offset[0]])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.2


def test_columns_that_share_a_converter_share_its_errors() -> None:
    adc = Converter(8, gain_error=0.05, shared_by=4, kind="sar", mismatch=0.02)
    spec, held = layer(torch.randn(6, 8), adc=adc, slicing=Slicing((2, 2)))

    made = stage_of(held, spec, 1)

    assert made.gain is not None and made.thresholds is not None
    # Two slices of a weight are adjacent: outputs 0 and 1 are on one converter.
    gain = made.gain[0].view(2, 6).T.flatten()
    assert gain.unique().numel() == 3
    assert torch.equal(gain.view(3, 4), gain.view(3, 4)[:, :1].expand(3, 4))
    table = made.thresholds[0].view(2, 6, -1)
    assert torch.equal(table[0, 0], table[1, 1]) and not torch.equal(table[0, 0], table[0, 2])


BAD: list[tuple[dict[str, Any], str]] = [
    ({"codes": "gray"}, "Converter.codes must be one of symmetric"),
    ({"rounding": "up"}, "Converter.rounding"),
    ({"kind": "flash"}, "Converter.kind"),
    ({"mismatch": -1.0, "kind": "sar"}, "Converter.mismatch must be a finite number >= 0"),
    ({"mismatch": 0.1}, "Converter.mismatch needs kind"),
    ({"gain_error": math.nan}, "Converter.gain_error"),
    ({"shared_by": 0}, "Converter.shared_by"),
    ({"kind": "sar", "bits": 14}, "at most 12 bits"),
    ({"kind": "ramp", "rounding": "stochastic"}, "needs kind='ideal'"),
    ({"learned": 1}, "Converter.learned must be a bool"),
    ({"learned": True, "range": "dynamic"}, "range='dynamic' has none"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_bad_settings_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Converter(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dac": Converter(8, kind="sar")}, "are for an ADC"),
        ({"adc": Converter(8, learned=True)}, "learned is for a DAC"),
        ({"slicing": Slicing(input_bits=(1,) * 7)}, "7 bits in all, a 8-bit DAC"),
        ({"slicing": Slicing(input_bits=(1,)), "dac": None}, "Target.dac is None"),
        (
            {"slicing": Slicing((1,) * 20, "offset"), "tile": {"cols": 16}},
            "cannot hold a weight of",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    from analogc import TileSpec

    if "tile" in fields:
        fields = {**fields, "tile": TileSpec(**fields["tile"])}
    with pytest.raises(InputError, match=message):
        Target(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weight_bits": ()}, "Slicing.weight_bits"),
        ({"weight_bits": (8, 8, 9)}, "24 in"),
        ({"weight_bits": (0, 2)}, "Slicing.weight_bits"),
        ({"input_bits": 4}, "Slicing.input_bits"),
        ({"coding": "unary"}, "Slicing.coding"),
        ({"ranges": "own"}, "Slicing.ranges"),
        ({"flip": True}, "flip is for coding='offset'"),
    ],
)
def test_bad_slicing_is_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Slicing(**fields)


def test_a_target_with_everything_survives_json() -> None:
    from analogc.runtime.periphery import Periphery

    target = Target(
        dac=Converter(8, codes="sign-magnitude", gain_error=0.1),
        adc=Converter(6, kind="sar", mismatch=0.1, shared_by=4, bound_management="iterative"),
        slicing=Slicing((2, 2, 3), "offset", (1,) * 7, "analog", "per-slice", True),
        periphery=Periphery(0.1, 0.2, 0.3, 0.4),
    )

    assert Target.from_json(target.to_json()) == target
    from analogc.runtime.spec import parse

    spec = LayerSpec.of(target, (0, 4))
    assert parse(spec.to_text()) == spec and parse(spec.to_text()).physical
