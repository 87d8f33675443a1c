"""Prints what CrossSim 3.2.0 computes for the cases of ``test_physical_oracles``.

    python tests/runtime/crosssim_oracle.py      (with CrossSim from its public repository, numpy)

A model of a converter has to be chosen before its settings: choosing replaces the settings. The
on/off ratio is infinite, as otherwise the ADC sees sums that are smaller than ours by that ratio.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from simulator import AnalogCore, CrossSimParameters
from simulator.parameters.core_parameters import BitSlicedCoreStyle, CoreStyle
from simulator.parameters.xbar_parameters import ADCRangeLimits

INPUTS, OUTPUTS, VECTORS = 12, 4, 5


def outputs(
    weight_bits: int,
    slices: int,
    input_bits: int,
    per_pulse: bool,
    pulse_bits: int,
    adc_bits: int,
    adc_range: float,
) -> Any:
    """Output vectors ``[V, N]`` of balanced bit slices."""
    weight = np.sin(1.7 * np.arange(OUTPUTS * INPUTS).reshape(OUTPUTS, INPUTS) + 0.3)
    weight = weight / np.abs(weight).max()
    x = np.cos(0.9 * np.arange(VECTORS * INPUTS).reshape(VECTORS, INPUTS) + 0.1)
    p = CrossSimParameters()
    p.xbar.device.infinite_on_off_ratio = True
    p.core.rows_max, p.core.cols_max = INPUTS, OUTPUTS
    p.core.style = CoreStyle.BITSLICED
    p.core.weight_bits, p.core.bit_sliced.num_slices = weight_bits, slices
    p.core.bit_sliced.style = BitSlicedCoreStyle.BALANCED
    p.core.mapping.weights.min, p.core.mapping.weights.max = -1, 1
    p.core.mapping.inputs.mvm.min, p.core.mapping.inputs.mvm.max = -1, 1
    p.xbar.dac.mvm.model = "SignMagnitudeDAC"
    dac = p.xbar.dac.mvm
    dac.bits, dac.signed, dac.input_bitslicing, dac.slice_size = input_bits, True, True, pulse_bits
    if adc_bits:
        p.xbar.adc.mvm.model = "SignMagnitudeADC"
        adc = p.xbar.adc.mvm
        adc.bits, adc.signed, adc.adc_per_ibit = adc_bits, True, per_pulse
        adc.adc_range_option = ADCRangeLimits.CALIBRATED
        adc.calibrated_range = np.array([[-adc_range, adc_range]] * slices)
    core = AnalogCore(weight, params=p)
    return np.array([core.matvec(vector) for vector in x])


if __name__ == "__main__":
    np.set_printoptions(precision=10, suppress=True)
    for case in (
        (9, 4, 8, True, 1, 0, 0.0),
        (9, 4, 8, True, 1, 6, 3.7),
        (9, 4, 8, False, 1, 6, 3.7),
        (5, 2, 4, True, 3, 5, 2.9),
    ):
        print(case, repr(outputs(*case)))
