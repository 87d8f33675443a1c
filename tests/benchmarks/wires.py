"""IR drop: what a tile costs when it is programmed, and a forward afterwards."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from forward import inference
from tables import Table
from timing import compare, once, seconds
from torch import Tensor, nn

import analogc
from analogc import Cell, Wires
from analogc.runtime.nodal import exact, first_order
from analogc.runtime.wires import first_order_error

SEGMENT, G_MIN, G_MAX = 0.5, 0.25, 25.0
"""Ohm a cell, uS: CrossSim's resistances of 40 kohm and 4 Mohm."""


def wires(budget: float) -> Iterator[Table]:
    """Time to solve a tile by its size, with the error of the first-order form; forwards."""
    yield _solving()
    yield _forwards(budget)


def _solving() -> Table:
    table = Table(
        "IR drop: one crossbar",
        ("cells", "exact ms", "first order ms", "first-order error", "IR drop", "badcrossbar ms"),
        f"{SEGMENT} ohm a cell, conductances uniform up to {G_MAX:g} uS. Error and drop are "
        "relative to the column currents. A pair of devices takes two crossbars.",
    )
    lines = Wires(SEGMENT, SEGMENT)
    for size in (32, 64, 128, 256, 512):
        g = G_MAX * torch.rand(1, 1, size, size, dtype=torch.float64)
        network = g * 1e-6
        exact(network[..., :32, :32], lines.row, lines.col)  # the first one is slow
        taken, solved = once(partial(exact, network, lines.row, lines.col))
        quick = seconds(partial(first_order, network, lines.row, lines.col), 0.1)
        inputs = torch.rand(16, size, dtype=torch.float64)
        ideal, right = inputs @ network[0, 0], inputs @ solved[0, 0]
        drop = float((ideal - right).norm() / right.norm())
        error = first_order_error(g[0, 0], lines)
        peer = _badcrossbar(network[0, 0], size)
        table.add(
            f"{size} x {size}", f"{1e3 * taken:.1f}", f"{1e3 * quick:.2f}", f"{error:.1e}",
            f"{100 * drop:.1f} %", peer,
        )  # fmt: skip
    return table


def _badcrossbar(network: Tensor, size: int) -> str:
    if size > 128 or importlib.util.find_spec("badcrossbar") is None:
        return ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import badcrossbar
    logging.disable(logging.CRITICAL)
    drive = torch.eye(size, dtype=torch.float64).numpy()
    options = {"r_i": SEGMENT, "node_voltages": False, "all_currents": False}
    taken, _ = once(lambda: badcrossbar.compute(drive, (1 / network).numpy(), **options))
    return f"{1e3 * taken:.0f}"


def _forwards(budget: float) -> Table:
    table = Table(
        "IR drop: Linear 512x512",
        ("", "batch", "make s", "digital ms", "forward ms", "ratio"),
        f"{SEGMENT} ohm a cell, conductances of {G_MIN:g} to {G_MAX:g} uS, one tile of 512 rows.",
    )
    systems: dict[str, Callable[[nn.Module, Tensor], Any]] = {
        "analogc, no wires": lambda model, x: _compiled(model, x, None),
        "analogc, first order": lambda model, x: _compiled(model, x, "first-order"),
        "analogc, exact": lambda model, x: _compiled(model, x, "exact"),
    }
    if importlib.util.find_spec("simulator") is not None:
        systems["CrossSim"] = _crosssim
    for name, make in systems.items():
        for batch in (1, 16, 256) if name != "CrossSim" else (1, 16):
            model, x = nn.Linear(512, 512).eval(), torch.randn(batch, 512)
            taken, twin = once(partial(make, model, x))
            found = compare(inference(model, x), inference(twin, x), budget)
            times = f"{1e3 * found.reference:.3f}", f"{1e3 * found.candidate:.3f}"
            table.add(name, str(batch), f"{taken:.2f}", *times, f"{found.ratio:.2f}")
    return table


def _compiled(model: nn.Module, x: Tensor, method: Any) -> nn.Module:
    target = analogc.targets.generic_8bit().replace(
        cell=Cell(mode="pair", g_min=G_MIN, g_max=G_MAX),
        wires=None if method is None else Wires(SEGMENT, SEGMENT, method=method),
    )
    compiled = analogc.compile(model, (x,), target=target, seed=0)
    compiled(x)
    return compiled


def _crosssim(model: nn.Module, x: Tensor) -> nn.Module:
    from simulator import CrossSimParameters
    from simulator.algorithms.dnn.torch.convert import from_torch
    from simulator.parameters.xbar_parameters import ADCRangeLimits

    config = CrossSimParameters()
    config.core.rows_max = config.core.cols_max = 512
    inputs = config.core.mapping.inputs.mvm
    inputs.min, inputs.max, inputs.percentile = None, None, 1.0
    dac, adc = config.xbar.dac.mvm, config.xbar.adc.mvm
    dac.model, dac.bits, dac.signed = "SignMagnitudeDAC", 8, True
    adc.model, adc.bits, adc.adc_range_option = "QuantizerADC", 8, ADCRangeLimits.MAX
    config.xbar.device.Rmin, config.xbar.device.Rmax = 1e6 / G_MAX, 1e6 / G_MIN
    parasitics = config.xbar.array.parasitics
    parasitics.enable, parasitics.Rp_row, parasitics.Rp_col = True, SEGMENT, SEGMENT
    return from_torch(model, config).eval()  # type: ignore[no-any-return]
