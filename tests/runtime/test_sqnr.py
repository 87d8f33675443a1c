from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Converter, ConverterRangeWarning, TileSpec, targets
from analogc.runtime.sqnr import (
    INPUT_PAPR_DB,
    RangeUse,
    expected_sigma,
    sqnr_db,
    warn_of_waste,
    weight_papr_db,
)


def ratio_db(signal: Tensor, noise: Tensor) -> float:
    return 10 * math.log10(float(signal.square().mean() / noise.square().mean()))


def papr_db(x: Tensor) -> float:
    """Of numbers whose full scale is 1."""
    return -10 * math.log10(float(x.square().mean()))


def sums(rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs clipped at four sigma, Gaussian weights scaled column by column, partial sums."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(300, rows, generator=generator, dtype=torch.float64).clamp(-4, 4) / 4
    weight = torch.randn(200, rows, generator=generator, dtype=torch.float64)
    weight = weight / weight.abs().amax(1, keepdim=True)
    return x, weight, x @ weight.mT


def measured(p: Tensor, bits: int, full: float) -> float:
    """SQNR of the ADC operator itself."""
    converted = torch.ops.analogc.adc(p, torch.tensor(full, dtype=p.dtype), bits)
    return ratio_db(p, converted - p)


POINTS = [(8, 16), (8, 64), (8, 256), (10, 16), (10, 64), (10, 512), (12, 256), (12, 1024)]


@pytest.mark.parametrize(("bits", "rows"), POINTS)
def test_full_range_formula_is_within_1_db_of_the_adc(bits: int, rows: int) -> None:
    x, weight, p = sums(rows)

    found = measured(p, bits, rows)

    assert found == pytest.approx(sqnr_db(bits, rows, papr_db(weight), papr_db(x)), abs=0.3)
    # From shapes alone: the assumed peak-to-average ratios in place of the measured ones.
    assert found == pytest.approx(sqnr_db(bits, rows), abs=1)


@pytest.mark.parametrize("crest", [5.0, 8.0, 20.0])
@pytest.mark.parametrize(("bits", "rows"), [(6, 64), (6, 512), (8, 64), (8, 512)])
def test_smaller_range_formula_is_within_1_db_of_the_adc(
    bits: int, rows: int, crest: float
) -> None:
    _, _, p = sums(rows)
    full = crest * expected_sigma(rows)

    assert measured(p, bits, full) == pytest.approx(sqnr_db(bits, rows, adc_range=full), abs=1)


@pytest.mark.parametrize(
    ("rows", "sqnr", "error"), [(512, 8, 0.40), (256, 11, 0.28), (64, 17, 0.14)]
)
def test_eight_bits_over_the_full_range_of_large_tiles_are_unusable(
    rows: int, sqnr: float, error: float
) -> None:
    # The point of the design's section 3: uniform inputs, Gaussian weights scaled as one tensor.
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, rows, generator=generator, dtype=torch.float64) * 2 - 1
    weight = torch.randn(512, rows, generator=generator, dtype=torch.float64)
    weight = weight / weight.abs().max()
    p = x @ weight.mT

    predicted = sqnr_db(8, rows, papr_db(weight), papr_db(x))

    assert predicted == pytest.approx(sqnr, abs=1)
    assert measured(p, 8, rows) == pytest.approx(predicted, abs=1)
    assert 10 ** (-predicted / 20) == pytest.approx(error, abs=0.04)


@pytest.mark.parametrize(
    ("bits", "rows", "weight", "inputs", "expected"),
    [
        (8, 512, 10.8, 7.05, 6.0206 * 8 + 4.7712 - 27.0927 - 10.8 - 7.05),
        (10, 100, 0.0, 0.0, 60.206 + 4.7712 - 20.0),
        (1, 1, 0.0, 0.0, 10.7918),
    ],
)
def test_formula_by_hand(
    bits: int, rows: int, weight: float, inputs: float, expected: float
) -> None:
    assert sqnr_db(bits, rows, weight, inputs) == pytest.approx(expected, abs=1e-3)


def test_halving_the_range_gains_six_db_and_so_does_a_bit() -> None:
    base = sqnr_db(8, 512, adc_range=100.0)

    assert sqnr_db(8, 512, adc_range=50.0) - base == pytest.approx(6.02, abs=0.01)
    assert sqnr_db(9, 512, adc_range=100.0) - base == pytest.approx(6.02, abs=0.01)
    assert sqnr_db(8, 512) == pytest.approx(sqnr_db(8, 512, adc_range=512.0))


@pytest.mark.parametrize("rows", [1, 8, 16, 64, 512, 4096])
def test_assumed_weight_papr_is_that_of_gaussian_weights(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2000, rows, generator=generator, dtype=torch.float64)
    weight = weight / weight.abs().amax(1, keepdim=True)

    assert weight_papr_db(rows) == pytest.approx(papr_db(weight), abs=0.4)


@pytest.mark.parametrize("rows", [16, 64, 512])
def test_expected_sigma_is_that_of_the_sums(rows: int) -> None:
    assert expected_sigma(rows) == pytest.approx(float(sums(rows)[2].std()), rel=0.1)


def test_assumed_input_papr_is_a_gaussian_clipped_at_four_sigma() -> None:
    assert papr_db(sums(64)[0]) == pytest.approx(INPUT_PAPR_DB, abs=0.1)


# -- warnings -------------------------------------------------------------------------------------


def test_loss_is_zero_at_a_good_range_and_negative_below() -> None:
    good = 4 * expected_sigma(512)

    assert RangeUse("fc", 8, 512, good).loss_db == pytest.approx(0)
    assert RangeUse("fc", 8, 512, 2 * good).loss_db == pytest.approx(6.02, abs=0.01)
    assert RangeUse("fc", 8, 512, good / 2).loss_db == pytest.approx(-6.02, abs=0.01)


def test_waste_is_warned_of_once_with_the_worst_layers_first() -> None:
    uses = [RangeUse(f"layer{rows}", 8, rows, float(rows)) for rows in (64, 512, 128, 256, 1024)]

    with pytest.warns(ConverterRangeWarning) as caught:
        warn_of_waste(uses)

    assert len(caught) == 1
    text = str(caught[0].message)
    assert text.startswith("ADC ranges waste in 5 layer(s): layer1024 (range 1024 on 1024 rows")
    assert "layer512" in text and "layer256" in text and "layer128" not in text
    assert "and 2 more" in text
    assert "Use Converter(range='calibrated')" in text
    assert f"SQNR about {sqnr_db(8, 1024):.0f} dB" in text


def test_clipping_is_warned_of() -> None:
    with pytest.warns(ConverterRangeWarning, match="clip in 1 layer.*fc .*too small a range"):
        warn_of_waste([RangeUse("fc", 8, 512, 0.1)])


@pytest.mark.parametrize("crest", [1.5, 4.0, 7.9])
def test_reasonable_ranges_are_not_warned_of(crest: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_waste([RangeUse("fc", 8, 512, crest * expected_sigma(512))])
        warn_of_waste([])


@pytest.mark.parametrize(
    ("adc", "word"),
    [
        (Converter(8, "full"), "waste"),
        (Converter(8, 500.0), "waste"),
        (Converter(8, 1e-3), "clip"),
        (Converter(8), None),
        (Converter(8, per_column=True), None),
        (None, None),
        (Converter(8, 4 * expected_sigma(200)), None),
    ],
)
def test_compile_warns_of_fixed_ranges_from_shapes_alone(adc: Any, word: str | None) -> None:
    model, x = nn.Linear(400, 8), torch.randn(4, 400)
    target = targets.generic_8bit().replace(tile=TileSpec(200, 64), adc=adc)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConverterRangeWarning)
        analogc.compile(model, (x,), target=target)

    found = [str(w.message) for w in caught if w.category is ConverterRangeWarning]
    assert len(found) == (word is not None)
    assert all(str(word) in text and "200 rows" in text for text in found)
