"""Noise models and conductance converters of the IBM Analog Hardware Acceleration Kit 1.2.0.

Defaults are those of its classes, so that a dict need not have all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ...runtime.devices import Device, IdealDevice
from ...runtime.devices.cell import Cell
from ...runtime.devices.pcm import FITS, FitName, PCMDevice
from ...runtime.devices.reram import Acceptance, ReRAMCMODevice, ReRAMWanDevice
from ...runtime.devices.table import TableDevice
from ...runtime.errors import InputError
from .notes import How
from .settings import Settings

Say = Callable[[str, How, str], None]
"""Adds a note: setting, how, reason."""
Made = tuple[Device, Cell]

_GRID = 24
"""Steps of a table that stands for a formula."""
_FRESH_READS = (
    "its read noise is drawn once for each time of inference; here every MVM draws it anew"
)
_WAN = {
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    86400.0: (0.701, 22.086, -50.773, 47.095, -16.458),
    172800.0: (0.782, 20.274, -43.507, 37.062, -11.934),
}


def device_and_cell(model: Settings, say: Say) -> Made:
    """Device model and cells of the setting ``noise_model``."""
    for kind in model.kinds:
        if kind in _MODELS:
            if kind != model.kind:
                say(
                    model.path,
                    "approximated",
                    f"{model.kind} is taken as the {kind} it derives from",
                )
            return _MODELS[kind](model, say)
    if model.kind or model.has_any:
        what = model.kind or "a model whose class is not given"
        say(model.path, "dropped", f"{what} is not known: devices hold exactly what is written")
    return IdealDevice(), cell_of(model, say, 25.0)


def cell_of(model: Settings, say: Say, g_max: float, g_min: float = 0.0, one: bool = False) -> Cell:
    """Cells of the setting ``g_converter`` of a noise model."""
    given = model.part("g_converter")
    given.ignore("scale_ratio")
    g_max, g_min = given.number("g_max", g_max), given.number("g_min", g_min)
    kinds = given.kinds
    if "SingleDeviceConductanceConverter" in kinds or (one and not given.kind):
        say(
            given.path,
            "approximated",
            "weights between the smallest and the largest one fill the range of its one device; "
            "here those between minus and plus the largest magnitude do, beside a reference column",
        )
        return Cell(g_min=g_min, g_max=g_max, mode="offset")
    if "NPairConductanceConverter" in kinds or given.has("f_lst") and not given.has("g_lst"):
        factors = given.numbers("f_lst", (1.0,))
        return Cell(
            g_min=g_min, g_max=g_max, mode="pair", devices=len(factors), significances=factors,
            fill="sequential",
        )  # fmt: skip
    if given.kind and "SinglePairConductanceConverter" not in kinds:
        for name in ("f_lst", "g_lst"):
            given.raw(name)
        say(given.path, "approximated", f"{given.kind} is taken as one pair from g_min to g_max")
    return Cell(g_min=g_min, g_max=g_max, mode="pair")


def _fitted(model: Settings, say: Say, fit: FitName) -> Made:
    known = FITS[fit]
    cell = cell_of(model, say, known.g_max)
    model.raw("g_max")
    g_max = cell.g_max
    sigma = model.numbers("prog_coeff", known.sigma)
    fitted = cell.g_max if model.has("prog_coeff") else known.g_max
    reference = model.number("prog_coeff_g_max_reference", fitted)
    # Ours are in uS of the characterised device, whatever the size of this one.
    own = tuple(c * known.g_max / reference for c in sigma)
    t0, t_read = model.number("t_0", known.t0), model.number("t_read", known.t_read)
    if fit.startswith("hermes") and g_max > known.g_max:
        raise InputError(f"{model.path}: g_max {g_max} is beyond {known.g_max} uS")
    device = PCMDevice(
        fit=fit,
        programming=model.number("prog_noise_scale", 1.0),
        drift=model.number("drift_scale", 1.0),
        read=model.number("read_noise_scale", 1.0),
        g_max=None if g_max == known.g_max else g_max,
        sigma=None if own == known.sigma else own,
        t0=None if t0 == known.t0 else t0,
        t_read=None if t_read == known.t_read else t_read,
    )
    if device.reads_noisily:
        say(model.path, "differs", _FRESH_READS)
    return device, cell


def _pcm(model: Settings, say: Say) -> Made:
    return _fitted(model, say, "nandakumar-2019")


def _hermes(model: Settings, say: Say) -> Made:
    devices = model.count("num_devices", 2)
    if devices not in (1, 2):
        raise InputError(f"{model.at('num_devices')} must be 1 or 2, got {devices}")
    return _fitted(model, say, "hermes-one-device" if devices == 1 else "hermes-two-device")


def _custom_drift(model: Settings, say: Say) -> Made:
    known = FITS["nandakumar-2019"]
    cell = cell_of(model, say, known.g_max)
    model.raw("g_max")
    tables = model.part("custom_drift_model")
    at = tables.numbers("g_lst", (0.0, cell.g_max))
    mean, spread = (
        tables.numbers("nu_mean_lst", (0.0, 0.0)),
        tables.numbers("nu_std_lst", (0.0, 0.0)),
    )
    if not len(at) == len(mean) == len(spread) >= 2 or list(at) != sorted(set(at)):
        raise InputError(f"{tables.path}: three lists of one length, g_lst rising")
    if at[0] > cell.g_min or at[-1] < cell.g_max:
        raise InputError(f"{tables.path}: g_lst must cover {cell.g_min} to {cell.g_max} uS")
    grid = _grid(at[0], at[-1], at)
    scale = model.number("drift_scale", 1.0)
    sigma = _programming(model, grid, cell.g_max, known.sigma, known.g_max)
    t0, t_read = model.number("t_0", known.t0), model.number("t_read", known.t_read)
    width = model.number("read_noise_scale", 1.0) * _width(t0, t_read)
    relative = [g / cell.g_max for g in grid]
    quality = [min(0.0088 / max(r**0.65, 1e-3), 0.2) for r in relative]
    device = TableDevice(
        conductances=grid,
        sigma=sigma,
        nu=_short(scale * _between(g, at, mean) for g in grid),
        nu_sigma=_short(scale * _between(g, at, spread) for g in grid),
        read_noise=_short(width * q * g for q, g in zip(quality, grid, strict=True)),
        t0=t0,
    )
    _say_table(model, say)
    return device, cell


def _state_independent(model: Settings, say: Say) -> Made:
    cell = cell_of(model, say, 25.0)
    model.raw("g_max")
    grid = _grid(0.0, cell.g_max, ())
    scale = model.number("drift_scale", 1.0)
    t0, t_read = model.number("t_0", 20.0), model.number("t_read", 250e-9)
    width = model.number("read_noise_scale", 1.0) * _width(t0, t_read)
    device = TableDevice(
        conductances=grid,
        sigma=_programming(model, grid, cell.g_max, (0.2, 0.0, 0.0), cell.g_max),
        nu=(scale * model.number("drift_nu_mean", 0.1),) * len(grid),
        nu_sigma=(scale * model.number("drift_nu_std", 0.05),) * len(grid),
        read_noise=_short(width * g / cell.g_max for g in grid),
        t0=t0,
    )
    _say_table(model, say)
    return device, cell


def _say_table(model: Settings, say: Say) -> None:
    say(
        model.path,
        "approximated",
        "taken as tables: an exponent below 0 is 0 instead of its magnitude, and read noise is "
        "that of the first read, fresh for every MVM, in proportion to what drift leaves",
    )


def _wan(model: Settings, say: Say) -> Made:
    cell = cell_of(model, say, 25.0)
    model.ignore("prog_coeff_g_max_reference", "g_max")
    reference = model.number("coeff_g_max_reference", 40.0)
    scale = model.number("noise_scale", 1.0)
    given = model.raw("coeff_dic")
    if given is not None:
        try:
            given = {float(t): tuple(float(c) for c in row) for t, row in given.items()}
        except (AttributeError, TypeError, ValueError):
            raise InputError(f"{model.at('coeff_dic')} must map times to lists") from None
    if given is None or given == _WAN:
        if reference != 40.0:
            say(
                model.at("coeff_g_max_reference"),
                "differs",
                "the fit is of devices of 40 uS; aihwkit 1.2.0 leaves that reference unused, so "
                f"its noise is {40 / reference:.2f} times as large",
            )
        say(model.path, "differs", "times between those of the fit have a spread here")
        g_max = None if cell.g_max == 40.0 else cell.g_max
        return ReRAMWanDevice(scale=scale, g_max=g_max), cell
    first = given[min(given)]
    grid = _grid(0.0, cell.g_max, ())
    factor = scale * cell.g_max / reference
    sigma = _short(factor * _polynomial(first, g / cell.g_max) for g in grid)
    if len(given) > 1:
        say(model.at("coeff_dic"), "approximated", "the spread of the first time, at any time")
    return TableDevice(conductances=grid, sigma=sigma), cell


def _cmo(model: Settings, say: Say) -> Made:
    cell = cell_of(model, say, 88.199997, 9.0, one=True)
    model.ignore("g_max", "g_min", "coeff_g_max_reference")
    wanted = model.number("acceptance_range", 0.2)
    acceptance: Acceptance = "2%" if wanted == 2 else "0.2%"
    if wanted not in (0.2, 2):
        say(
            model.at("acceptance_range"),
            "approximated",
            f"{wanted:g} has no coefficients; those of 0.2 % are used, as aihwkit does",
        )
    for name in ("coeff_dict", "decay_dict", "read_dict"):
        value = model.raw(name)
        if value is not None and not _equal(value, _CMO[name]):
            say(model.at(name), "dropped", "the published coefficients are used")
    device = ReRAMCMODevice(
        acceptance=acceptance,
        programming=model.number("prog_noise_scale", 1.0),
        drift=model.number("drift_scale", 1.0),
        read=model.number("read_noise_scale", 1.0),
    )
    if device.reads_noisily:
        say(model.path, "differs", _FRESH_READS)
    return device, cell


_CMO: dict[str, dict[str, object]] = {
    "coeff_dict": {"0.2": [0.00081107, 0.00106879], "2": [0.0112185391, 0.01129027418]},
    "decay_dict": {"mean": [-0.08900206], "std": [0.04201137, 0.41183342]},
    "read_dict": {"K": 0.0277316483, "t_read": 1e-6},
}

_MODELS: dict[str, Callable[[Settings, Say], Made]] = {
    "CustomDriftPCMLikeNoiseModel": _custom_drift,
    "HermesNoiseModel": _hermes,
    "PCMLikeNoiseModel": _pcm,
    "ReRamCMONoiseModel": _cmo,
    "ReRamWan2022NoiseModel": _wan,
    "StateIndependentNoiseModel": _state_independent,
}


def _equal(value: object, known: dict[str, object]) -> bool:
    return isinstance(value, dict) and {str(k): v for k, v in value.items()} == known


def _programming(
    model: Settings, grid: tuple[float, ...], g_max: float, default: tuple[float, ...], own: float
) -> tuple[float, ...]:
    coefficients = model.numbers("prog_coeff", default)
    fitted = g_max if model.has("prog_coeff") else own
    reference = model.number("prog_coeff_g_max_reference", fitted)
    scale = model.number("prog_noise_scale", 1.0) * g_max / reference
    return _short(scale * _polynomial(coefficients, g / g_max) for g in grid)


def _short(values: Iterable[float]) -> tuple[float, ...]:
    """Not below 0, seven digits: tables travel as text."""
    return tuple(float(f"{max(value, 0.0):.7g}") for value in values)


def _polynomial(coefficients: tuple[float, ...], x: float) -> float:
    return sum(c * x**i for i, c in enumerate(coefficients))


def _width(t: float, t_read: float) -> float:
    return math.sqrt(math.log((t + t_read) / (2 * t_read)))


def _grid(low: float, high: float, more: tuple[float, ...]) -> tuple[float, ...]:
    """Places from ``low`` to ``high``, denser near 0."""
    even = (round(low + (high - low) * (i / _GRID) ** 2, 6) for i in range(_GRID))
    return tuple(sorted({*even, high, *more}))


def _between(x: float, at: tuple[float, ...], values: tuple[float, ...]) -> float:
    for i in range(len(at) - 1):
        if x <= at[i + 1]:
            share = (x - at[i]) / (at[i + 1] - at[i])
            return values[i] + share * (values[i + 1] - values[i])
    return values[-1]
