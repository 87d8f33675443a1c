"""What device physics costs: bit slices, read noise and more, against digital and CrossSim.

The goal for bit slices is 1.3 times slices times pulses; an effect that is off costs nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from forward import inference
from tables import Table
from timing import compare, once, seconds
from torch import nn
from workloads import ENCODER, LINEAR, RESNET20, Workload, linear

import analogc
from analogc import Converter, GaussianDevice, Target, TileSpec
from analogc.runtime.slicing import Slicing

SLICES, PULSES = 4, 7
SLICED = Slicing((2,) * SLICES, "balanced", (1,) * PULSES)
"""CrossSim's case of reference: 8-bit weights and inputs with their signs, an ADC on each sum."""
CASES = (
    LINEAR,
    Workload("Linear 512×512, b16", linear(512, 512, 16)),
    Workload("Linear 512×512, b1", linear(512, 512, 1)),
    RESNET20,
    ENCODER,
)


def physics(budget: float) -> Iterator[Table]:
    """Bit slices, then effects one by one."""
    yield _sliced(budget)
    yield _effects(budget)


def target(**changes: Any) -> Target:
    """512 x 512 tiles with 8-bit converters; sign and magnitude, which the slices are cut from."""
    dac = Converter(8, codes="sign-magnitude")
    return Target(tile=TileSpec(512, 512), dac=dac, adc=Converter(8)).replace(**changes)


def _sliced(budget: float) -> Table:
    head = ("forward", "digital ms", "analog ms", "ratio", "over slices x pulses", "CrossSim ratio")
    table = Table(f"{SLICES} weight slices, {PULSES} input pulses, ADC on each", head)
    wide = TileSpec(512, 512 * SLICES)
    for workload in CASES:
        model, x = workload.build()
        compiled = analogc.compile(model, (x,), target=target(slicing=SLICED, tile=wide), seed=0)
        found = compare(inference(model, x), inference(compiled, x), budget)
        table.add(
            workload.name, f"{1e3 * found.reference:.3f}", f"{1e3 * found.candidate:.2f}",
            f"{found.ratio:.1f}", f"{found.ratio / SLICES / PULSES:.2f}",
            _crosssim(model, x, budget, "slices"),
        )  # fmt: skip
    return table


def _effects(budget: float) -> Table:
    head = ("Linear 512", "batch", "digital ms", "analog ms", "ratio", "CrossSim ratio")
    table = Table("Effects one by one", head)
    read = GaussianDevice(0.0, scaling="proportional", read_noise=0.02)
    cases: tuple[tuple[str, Target, str], ...] = (
        ("none", target(), "none"),
        ("read noise 2 %", target(device=read), "read noise"),
        ("SAR ADC with mismatch", target(adc=Converter(8, kind="sar", mismatch=0.02)), ""),
        ("ramp ADC with mismatch", target(adc=Converter(8, kind="ramp", mismatch=0.02)), ""),
        (
            "gain and offset errors",
            target(adc=Converter(8, gain_error=0.02, offset_error=0.01)),
            "",
        ),
    )
    for batch in (1, 16, 256):
        model, x = Workload("", linear(512, 512, batch)).build()
        for name, wanted, peer in cases:
            compiled = analogc.compile(model, (x,), target=wanted, seed=0)
            found = compare(inference(model, x), inference(compiled, x), budget)
            other = _crosssim(model, x, budget, peer) if peer and batch <= 16 else ""
            table.add(
                name, str(batch), f"{1e3 * found.reference:.3f}", f"{1e3 * found.candidate:.3f}",
                f"{found.ratio:.2f}", other,
            )  # fmt: skip
    return table


def _crosssim(model: nn.Module, x: torch.Tensor, budget: float, what: str) -> str:
    """CrossSim's ratio to digital for the same effect."""
    if importlib.util.find_spec("simulator") is None:
        return ""
    from simulator import CrossSimParameters
    from simulator.algorithms.dnn.torch.convert import from_torch
    from simulator.parameters.core_parameters import BitSlicedCoreStyle, CoreStyle
    from simulator.parameters.xbar_parameters import ADCRangeLimits

    config = CrossSimParameters()
    config.core.rows_max = config.core.cols_max = 512
    inputs = config.core.mapping.inputs.mvm
    inputs.min, inputs.max, inputs.percentile = None, None, 1.0
    config.xbar.dac.mvm.model = "SignMagnitudeDAC"
    config.xbar.adc.mvm.model = "QuantizerADC"
    dac, adc = config.xbar.dac.mvm, config.xbar.adc.mvm
    dac.bits, dac.signed = 8, True
    adc.bits, adc.adc_range_option = 8, ADCRangeLimits.MAX
    if what == "slices":
        config.core.style, config.core.weight_bits = CoreStyle.BITSLICED, 9
        config.core.bit_sliced.num_slices = SLICES
        config.core.bit_sliced.style = BitSlicedCoreStyle.BALANCED
        dac.input_bitslicing, dac.slice_size, adc.adc_per_ibit = True, 1, True
    if what == "read noise":
        noise = config.xbar.device.read_noise
        noise.enable, noise.model, noise.magnitude = True, "NormalProportionalDevice", 0.02
    twin = from_torch(model, config, fuse_batchnorm=True).eval()
    # Seconds to minutes a call: one is enough.
    taken = once(inference(twin, x))[0]
    return f"{taken / seconds(inference(model, x), min(budget, 0.5)):.0f}"
