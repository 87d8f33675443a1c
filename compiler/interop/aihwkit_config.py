"""Inference settings of the IBM Analog Hardware Acceleration Kit as a target.

Read against aihwkit 1.2.0, without importing it. With w the weights of a tile and omega its
``weight_scaling_omega``, aihwkit's tile holds ``omega w / max|w|``, and bounds and noises are in
those units. Here they are in units of the largest weight, so they are divided by omega.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal

from ...runtime.clip import WeightClip
from ...runtime.converters import Converter
from ...runtime.devices import Device, GaussianDevice
from ...runtime.devices.cell import Cell
from ...runtime.devices.table import TableDevice
from ...runtime.errors import InputError, UnsupportedError
from ...runtime.periphery import Periphery
from ...runtime.target import Compensation, Target, TileSpec
from ...runtime.wires import Wires
from .aihwkit_devices import device_and_cell
from .aihwkit_names import (
    BOUNDS,
    CLIPS,
    IO,
    MANAGEMENT,
    PASSES,
    RANGES,
    READS,
    TRAINING,
)
from .notes import How, InteropWarning, Note
from .settings import CLASS, Settings, plain

_COMPENSATIONS: dict[str, Compensation] = {
    "GlobalDriftCompensationWithExactReference": "exact",
    "GlobalDriftCompensation": "global",
    "PerColumnDriftCompensation": "column",
}
_DEFAULT = {
    "noise_model": "PCMLikeNoiseModel",
    "drift_compensation": "GlobalDriftCompensation",
}
_FINEST = 16
"""Bits of a converter that stands for one without a resolution."""
_CLIPPED = "weights are clipped when they are written, not after each step of training"
_UNLIMITED = 1 << 20
"""Lines of a tile for a size of 0, which is none."""


def to_dict(rpu_config: object) -> dict[str, Any]:
    """Settings of aihwkit as plain values for JSON, to be read elsewhere by ``target_from``.

    Args:
        rpu_config: an ``InferenceRPUConfig``, ``TorchInferenceRPUConfig`` or preset.
    """
    found = plain(rpu_config)
    if not isinstance(found, dict):
        raise InputError(f"an aihwkit configuration is an object or a dict, got {rpu_config!r}")
    return found


def target_from(
    rpu_config: object,
    *,
    name: str = "aihwkit",
    strict: bool = False,
    report: list[Note] | None = None,
) -> Target:
    """Target for an inference configuration of aihwkit.

    Tiles, forward pass, noise model, conductance converter and drift compensation are carried over
    as far as there is a counterpart. The target stands for a model after
    ``program_analog_weights``, which is when aihwkit applies its noise model. What only matters
    while training (modifier, remap, backward, update) is not part of a target.

    Args:
        rpu_config: the configuration as an object, as the dict of ``to_dict`` or of
            ``dataclasses.asdict``, or as such a dict read from JSON. Enumerations may be given by
            member or value, noise models by their class's name or a dict with it under
            ``"class"``. What is left out has aihwkit's default.
        name: of the target.
        strict: refuse what would be dropped or approximated.
        report: gets a Note for each setting that is not carried over as it was. Without it they are
            warned of.

    Raises:
        InputError: a value out of its domain, or no configuration at all.
        UnsupportedError: with ``strict``, for settings that are dropped or approximated.

    Warns:
        InteropWarning: lists the notes, if ``report`` is None and there are any.
    """
    notes: list[Note] = []
    config = Settings(to_dict(rpu_config))
    target = _Translation(config, notes).target(name)
    notes.extend(
        Note(path, "dropped", "a setting that aihwkit 1.2.0 does not have")
        for path in config.unread()
    )
    lost = [note for note in notes if note.how != "differs"]
    if strict and lost:
        raise UnsupportedError(
            "a target cannot have all of these settings:\n"
            + "\n".join(f"  {note}" for note in lost),
            fix="change them, or translate without strict=True",
        )
    if report is not None:
        report.extend(notes)
    elif notes:
        lines = "\n".join(f"  {note}" for note in notes)
        warnings.warn(f"not carried over as it was:\n{lines}", InteropWarning, stacklevel=2)
    return target


class _Translation:
    """One translation; ``say`` collects what is lost on the way."""

    def __init__(self, config: Settings, notes: list[Note]) -> None:
        self.config, self.notes = config, notes
        self.forward = config.part("forward")
        self.mapping = config.part("mapping")

    def say(self, setting: str, how: How, reason: str) -> None:
        self.notes.append(Note(setting, how, reason))

    def target(self, name: str) -> Target:
        """All of it."""
        if not any(self.config.has(part) for part in ("forward", "mapping", "noise_model")):
            raise InputError(
                "no aihwkit configuration: neither forward nor mapping nor noise_model is given",
                fix="pass an InferenceRPUConfig, or to_dict() of one",
            )
        self._training()
        tile = self._tile()
        if "FloatingPointRPUConfig" in self.config.kinds:
            self.config.ignore("pre_post", "forward")
            self.mapping.ignore("weight_scaling_omega", "weight_scaling_columnwise")
            return Target(name=name, tile=tile, dac=None, adc=None)
        omega = self._omega()
        device, cell = device_and_cell(self._of_inference("noise_model"), self.say)
        compensation = self._compensation()
        clip = self._clip(omega)
        columnwise = self.mapping.flag("weight_scaling_columnwise", False)
        given: dict[str, Any] = {
            "name": name,
            "tile": tile,
            "weight_scale": "column" if columnwise else "tensor",
            "weight_clip": clip,
            "compensation": compensation,
            "dac": None,
            "adc": None,
        }
        mode = self.forward.word("mv_type", "ONE_PASS", PASSES)
        processing = self.config.part("pre_post")
        digits = processing.part("periph_quant")
        if digits.number("n_bits", 0) > 0:
            self.say(digits.path, "dropped", "digital scales and biases are not quantised")
        digits.ignore("symmetric", "learn_quant_params", "init_learning_after")
        learned = processing.part("input_range")
        learned.ignore(*RANGES)
        enabled = learned.flag("enable", False)
        if self.forward.flag("is_perfect", False) or mode == "ideal":
            self.forward.ignore(*IO)
            if enabled:
                self.say(learned.path, "dropped", "an ideal forward pass clips no inputs")
            learned.ignore("init_value", "init_from_data", "learn_input_range")
            return Target(**given, device=device, cell=cell)
        if mode != "onepass":
            self.say("forward.mv_type", "approximated", "one pass with signed inputs")
        device, cell = self._read_noise(device, cell, omega)
        wires, cell = self._wires(cell)
        dac, unit = self._dac(learned, enabled)
        adc = self._adc(omega * unit)
        noise = self.forward.number("out_noise", 0.06) / (omega * unit)
        if dac is not None and dac.bits == _FINEST and adc is None and noise == 0:
            dac = None
        self._lost()
        given |= {"dac": dac, "adc": adc, "output_noise": noise, "wires": wires}
        return Target(**given, device=device, cell=cell, periphery=self._periphery())

    def _of_inference(self, name: str) -> Settings:
        """A part that only inference configurations have, which is not None by default."""
        kinds = self.config.kinds
        left_out = not self.config.mentions(name)
        if left_out and (kinds == ("",) or "InferenceRPUConfig" in kinds):
            return Settings(_DEFAULT[name], name)
        return self.config.part(name)

    def _tile(self) -> TileSpec:
        rows = self.mapping.count("max_input_size", 512) or _UNLIMITED
        cols = self.mapping.count("max_output_size", 512) or _UNLIMITED
        return TileSpec(rows, cols)

    def _omega(self) -> float:
        omega = self.mapping.number("weight_scaling_omega", 0.0)
        if omega <= 0:
            self.say(
                "mapping.weight_scaling_omega",
                "approximated",
                "without scaling, bounds and noises are in the weights' own units; here the "
                "largest weight counts as 1, so they are right for a layer where it is 1",
            )
            return 1.0
        self.say(
            "mapping.weight_scaling_omega",
            "differs",
            "a layer of several tiles has one scale for the layer or column, not one for each tile",
        )
        return omega

    def _training(self) -> None:
        self.config.ignore("tile_class", "tile_array_class", "simulator_tile_class", "runtime")
        for part, default in (("modifier", "none"), ("remap", "none")):
            given = self.config.part(part)
            kind = given.raw("type", default)
            if str(kind).rpartition(".")[2].lower() != default:
                self.say(f"{part}.type", "dropped", f"{kind}: it changes weights while training")
            given.ignore(*TRAINING)
        for part in ("backward", "update"):
            given = self.config.raw(part)
            if part == "backward" and isinstance(given, dict) and not given.get("is_perfect", True):
                self.say(part, "dropped", "the gradient is straight through")
        device = self.config.raw("device")
        kind = device.get(CLASS) if isinstance(device, dict) else device
        if kind not in (None, "IdealDevice", "FloatingPointDevice"):
            self.say("device", "dropped", f"{kind}: training on the chip is not simulated")
        if self.config.raw("act_quant_config") is not None:
            self.say("act_quant_config", "dropped", "digital operators are not quantised")
        mapping = self.mapping
        if not mapping.flag("digital_bias", True):
            self.say("mapping.digital_bias", "dropped", "the bias is digital")
        for name in ("learn_out_scaling", "out_scaling_columnwise"):
            if mapping.flag(name, False):
                self.say(
                    f"mapping.{name}", "dropped", "learned scales are in the checkpoint, no target"
                )
        if mapping.flag("weight_scaling_lr_compensation", False):
            self.say("mapping.weight_scaling_lr_compensation", "dropped", "it is about training")

    def _compensation(self) -> Compensation:
        given = self._of_inference("drift_compensation")
        for kind in given.kinds:
            if kind in _COMPENSATIONS:
                found = _COMPENSATIONS[kind]
                if found == "exact":
                    self.say(given.path, "approximated", "a gain for each column, not for the tile")
                return found
        if given.kind:
            self.say(given.path, "dropped", f"{given.kind} is not known")
        return "none"

    def _clip(self, omega: float) -> WeightClip | None:
        given = self.config.part("clip")
        kind = given.word("type", "NONE", CLIPS)
        fixed, sigma = given.number("fixed_value", -1.0), given.number("sigma", 2.5)
        if kind == "none":
            return None
        if kind == "layergaussian":
            self.say("clip.type", "approximated", _CLIPPED)
            return WeightClip("sigma", sigma)
        if kind == "fixedvalue" and fixed > 0:
            if self.mapping.number("weight_scaling_omega", 0.0) <= 0:
                self.say("clip.type", "approximated", _CLIPPED)
                return WeightClip("fixed", fixed)
            if fixed >= omega:
                return None
        self.say("clip.type", "dropped", "no counterpart: aihwkit clips the tile's own units")
        return None

    def _dac(self, learned: Settings, enabled: bool) -> tuple[Converter | None, float]:
        """The DAC, and the tile input in aihwkit's units that its full scale stands for."""
        forward = self.forward
        managed = forward.word("noise_management", "ABS_MAX", MANAGEMENT)
        bound, most = forward.number("inp_bound", 1.0), forward.number("nm_thres", 0.0)
        rounding = _rounding(forward.flag("inp_sto_round", False))
        bits = self._bits("inp_res", 1 / (2**7 - 2))
        range_: Any
        cap: float | None = None
        unit = 1.0
        start, batches = learned.number("init_value", 3.0), learned.count("init_from_data", 100)
        train = learned.flag("learn_input_range", True) and enabled
        if enabled:
            if managed != "none":
                self.say("forward.noise_management", "dropped", "the input range replaces it")
            range_ = "calibrated" if batches else start
            if batches:
                self.say(
                    "pre_post.input_range",
                    "approximated",
                    "the trained range is in the checkpoint; it is calibrated from data here",
                )
        elif managed in ("none", "constant"):
            if bound <= 0 or not math.isfinite(bound):
                if bits is not None:
                    self.say("forward.inp_res", "dropped", "an input without bound has no steps")
                return None, 1.0
            unit = bound
            range_ = bound * (most if managed == "constant" and most > 0 else 1.0)
        else:
            range_ = "average" if managed == "averageabsmax" else "dynamic"
            if range_ == "average":
                self.say(
                    "forward.noise_management",
                    "approximated",
                    "the mean abs-max of calibration data, which a running mean comes to",
                )
            elif managed != "absmax":
                self.say(
                    "forward.noise_management",
                    "approximated",
                    "each input's abs-max instead of another measure",
                )
            if most > 0 and managed == "absmax":
                cap = most
            elif most > 0:
                self.say("forward.nm_thres", "dropped", "only an abs-max is limited")
        if unit == 1.0 and bound != 1.0 and not isinstance(range_, float):
            self.say("forward.inp_bound", "dropped", "the DAC's bound is the input's range")
        if bits is None:
            self.say("forward.inp_res", "approximated", f"no resolution: {_FINEST} bits instead")
        return Converter(bits or _FINEST, range_, rounding=rounding, learned=train, cap=cap), unit

    def _adc(self, unit: float) -> Converter | None:
        forward = self.forward
        bound = forward.number("out_bound", 12.0)
        bits = self._bits("out_res", 1 / (2**9 - 2))
        rounding = _rounding(forward.flag("out_sto_round", False))
        managed = forward.word("bound_management", "ITERATIVE", BOUNDS)
        factor, finest = forward.number("max_bm_factor", 1000), forward.number("max_bm_res", 0.25)
        forward.ignore("bm_test_negative_bound")
        if bound <= 0 or not math.isfinite(bound):
            if bits is not None:
                self.say("forward.out_res", "dropped", "an output without bound has no steps")
            return None
        if bits is None:
            self.say("forward.out_res", "approximated", f"no resolution: {_FINEST} bits instead")
        kind: Any = {"iterative": "iterative", "iterativeworstcase": "worst-case"}.get(
            managed, "none"
        )
        if managed == "shift":
            self.say("forward.bound_management", "dropped", "outputs are not shifted")
        if kind == "iterative":
            self.say(
                "forward.bound_management",
                "approximated",
                "each vector is halved at most four times, whatever max_bm_factor="
                f"{factor:g} and max_bm_res={finest:g} allow",
            )
        return Converter(bits or _FINEST, bound / unit, rounding=rounding, bound_management=kind)

    def _bits(self, name: str, default: float) -> int | None:
        res = self.forward.number(name, default)
        if res <= 0:
            return None
        steps = res if res > 1 else 1 / res
        exact = math.log2(steps / 2 + 1) + 1
        bits = min(max(round(exact), 2), _FINEST)
        if abs(exact - bits) > 1e-6:
            have = 2**bits - 2
            self.say(
                f"forward.{name}", "approximated", f"{bits} bits, {have} steps instead of {steps:g}"
            )
        return bits

    def _read_noise(self, device: Device, cell: Cell, omega: float) -> tuple[Device, Cell]:
        kind = self.forward.word("w_noise_type", "NONE", READS)
        sigma = self.forward.number("w_noise", 0.0) / omega
        if sigma <= 0 or kind == "none":
            return device, cell
        if not device.is_ideal:
            self.say(
                "forward.w_noise",
                "dropped",
                "the noise model's devices have the read noise that was characterised with them",
            )
            return device, cell
        if kind == "additiveconstant":
            # Noise of the weight, not of two devices.
            return GaussianDevice(sigma=0.0, read_noise=sigma), Cell()
        places = [cell.g_min + cell.span * (i / 64) ** 2 for i in range(65)]
        # A weight w in units of full scale has the variance sigma^2 |w| omega.
        spread = [sigma * math.sqrt(omega) * cell.span * (i / 64) for i in range(65)]
        return TableDevice(conductances=tuple(places), read_noise=tuple(spread)), cell

    def _wires(self, cell: Cell) -> tuple[Wires | None, Cell]:
        forward = self.forward
        timed = forward.has("ir_drop_rs")
        scale = forward.number("ir_drop", 1.0 if timed else 0.0)
        ratio = forward.number("ir_drop_g_ratio", 1 / 0.35 / 5e-6)
        segment = forward.number("ir_drop_rs", 0.15)
        if timed:
            self._time_slices()
        if scale <= 0:
            return None, cell
        if not cell.has_conductances:
            cell = Cell(mode="pair")
        if timed:
            resistance = scale * segment
            what = "segments of a column at time slices"
        else:
            if ratio <= 0:
                raise InputError(f"forward.ir_drop_g_ratio must be > 0, got {ratio:g}")
            resistance = scale / (ratio * cell.g_max * 1e-6)
            what = "a polynomial of a column's mean current"
        self.say(
            "forward.ir_drop",
            "approximated",
            f"the network of the columns, {resistance:.3g} ohm a cell, instead of {what}",
        )
        return Wires(row_resistance=0.0, col_resistance=resistance), cell

    def _time_slices(self) -> None:
        self.forward.ignore(
            "ir_drop_segments", "ir_drop_time_step_resolution_scale", "ir_drop_v_read",
            "ir_drop_integration_sum", "split_mode_bit_shift", "adc_frequency",
            "xdep_pcm_read_noise_scale",
        )  # fmt: skip
        if self.forward.flag("apply_xdep_pcm_read_noise", False):
            self.say("forward.apply_xdep_pcm_read_noise", "dropped", "no counterpart")
        if self.forward.flag("adc_quantization", True):
            self.say("forward.adc_quantization", "approximated", "the ADC rounds to the nearest")

    def _periphery(self) -> Periphery | None:
        forward = self.forward
        found = Periphery(
            voltage_offset=forward.number("v_offset_std", 0.0),
            nonlinearity=forward.number("out_nonlinearity", 0.0),
            nonlinearity_spread=forward.number("out_nonlinearity_std", 0.0),
            calibrated_at=forward.number("slope_calibration", 0.0),
        )
        if found.voltage_offset == found.nonlinearity == 0:
            return None
        return found

    def _lost(self) -> None:
        """Settings of the forward pass that have no counterpart, if they are in use."""
        for name, off, reason in (
            ("inp_noise", 0.0, "inputs are not noisy"),
            ("inp_asymmetry", 0.0, "inputs are applied in one pass"),
            ("out_asymmetry", 0.0, "inputs are applied in one pass"),
            ("out_noise_std", 0.0, "output noise is the same for all columns"),
            ("out_scale", 1.0, "no factor on the output"),
            ("v_offset_w_min", -1.0, "no reference unit with an offset of its own"),
            ("r_series", 0.0, "no series resistance at the output"),
            ("w_read_asymmetry_dtod", 0.0, "devices read the same in both polarities"),
        ):
            if self.forward.number(name, off) != off:
                self.say(f"forward.{name}", "dropped", reason)


def _rounding(random: bool) -> Literal["nearest", "stochastic"]:
    return "stochastic" if random else "nearest"
