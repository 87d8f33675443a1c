from __future__ import annotations

import copy
import dataclasses
import enum
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Cell, Converter, IdealDevice, Target
from analogc.compiler.interop.settings import Settings, plain, word
from analogc.errors import InputError, UnsupportedError
from analogc.interop.aihwkit import InteropWarning, Note, target_from, to_dict
from analogc.runtime.clip import WeightClip
from analogc.runtime.devices import GaussianDevice
from analogc.runtime.devices.pcm import PCMDevice
from analogc.runtime.devices.reram import ReRAMCMODevice, ReRAMWanDevice
from analogc.runtime.devices.table import TableDevice
from analogc.runtime.periphery import Periphery

STORED = json.loads((Path(__file__).parent / "oracle" / "aihwkit.json").read_text())
CONFIGURATIONS: dict[str, dict[str, Any]] = STORED["configurations"]


def read(config: object, **options: Any) -> tuple[Target, list[Note]]:
    notes: list[Note] = []
    return target_from(config, report=notes, **options), notes


def lost(notes: list[Note]) -> dict[str, str]:
    return {note.setting: note.how for note in notes}


def changed(name: str = "inference", **changes: Any) -> dict[str, Any]:
    """A stored configuration with some settings of its parts changed: part__setting=value."""
    config = copy.deepcopy(CONFIGURATIONS[name])
    for path, value in changes.items():
        *parts, last = path.split("__")
        at = config
        for part in parts:
            at = at[part]
        at[last] = value
    return config


def layer() -> tuple[nn.Linear, Tensor]:
    """The layer and inputs of ``oracle/make_aihwkit.py``."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 48)), rng.standard_normal(20), rng.standard_normal((6, 48))
    weight, bias, x = (torch.from_numpy(value).float() for value in values)
    model = nn.Linear(48, 20).requires_grad_(False).eval()
    model.weight.copy_(weight)
    model.bias.copy_(bias)
    return model, x


@pytest.mark.filterwarnings("ignore::analogc.ConverterRangeWarning")
@pytest.mark.parametrize("name", STORED["layers"])
def test_a_layer_computes_what_aihwkit_computes(name: str) -> None:
    stored = STORED["layers"][name]
    target, _ = read(stored["config"])
    # aihwkit applies its noise model when programming is asked for, which was not.
    target = target.replace(device=IdealDevice(), cell=Cell())
    model, x = layer()

    found = analogc.compile(model, (x,), target=target)(x)

    right = torch.tensor(stored["outputs"])
    off = (found - right).abs()
    if target.adc is None:
        assert float(off.max()) < 1e-4
        return
    assert isinstance(target.adc.range, float)
    step = target.adc.range / target.adc.levels * model.weight.abs().max()
    step = step * (x.abs().amax(1, keepdim=True) if target.dac == Converter(8, "dynamic") else 2.5)
    assert bool((off <= 1.001 * step).all())
    # A rounding of a tie may differ, no more.
    assert float((off > 1e-4).float().mean()) < 0.02


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_becomes_a_target_that_text_keeps(name: str) -> None:
    target, notes = read(CONFIGURATIONS[name])

    assert Target.from_json(target.to_json()) == target
    assert not [note for note in notes if "does not have" in note.reason]
    assert all(note.reason and note.setting for note in notes)


def test_defaults() -> None:
    target, notes = read(CONFIGURATIONS["inference"], name="ours")

    assert target == Target(
        name="ours",
        dac=Converter(7, "dynamic"),
        adc=Converter(9, 12.0, bound_management="iterative"),
        weight_scale="tensor",
        device=PCMDevice(),
        cell=Cell(mode="pair", g_max=25.0),
        output_noise=0.06,
        compensation="global",
    )
    assert lost(notes) == {
        "mapping.weight_scaling_omega": "approximated",
        "noise_model": "differs",
        "forward.bound_management": "approximated",
    }


def test_what_is_left_out_has_the_default() -> None:
    assert read({"forward": {}})[0] == read(CONFIGURATIONS["inference"])[0]


@pytest.mark.parametrize(
    ("name", "device"),
    [
        ("pcm", PCMDevice(programming=0.5, g_max=20.0, t0=30.0)),
        ("pcm own polynomial", PCMDevice(sigma=(0.3, 1.0))),
        ("hermes one", PCMDevice("hermes-one-device")),
        ("hermes two", PCMDevice("hermes-two-device", read=0.0)),
        ("wan", ReRAMWanDevice(g_max=25.0)),
        ("wan at 40 uS", ReRAMWanDevice(scale=2.0)),
        ("cmo", ReRAMCMODevice("2%")),
        ("cmo default", ReRAMCMODevice("0.2%")),
        ("single device", IdealDevice()),
        ("floating point", IdealDevice()),
    ],
)
def test_devices(name: str, device: Any) -> None:
    assert read(CONFIGURATIONS[name])[0].device == device


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("pcm", Cell(mode="pair", g_min=0.5, g_max=20.0)),
        (
            "pcm two pairs",
            Cell(mode="pair", devices=2, significances=(1.0, 3.0), fill="sequential"),
        ),
        ("hermes one", Cell(mode="pair", g_max=10.35)),
        ("cmo", Cell(mode="offset", g_min=9.0, g_max=88.199997)),
    ],
)
def test_cells(name: str, cell: Cell) -> None:
    assert read(CONFIGURATIONS[name])[0].cell == cell


def test_tables_follow_the_formulas_that_they_stand_for() -> None:
    device = read(CONFIGURATIONS["custom drift"])[0].device
    assert isinstance(device, TableDevice)
    g = torch.linspace(0.0, 25.0, 200)

    spread = torch.tensor(np.interp(g, device.conductances, device.sigma))
    torch.testing.assert_close(
        spread, (0.26348 + 1.9650 * g / 25 - 1.1731 * (g / 25) ** 2).double(), rtol=5e-3, atol=0
    )
    nu = np.interp([0.0, 5.0, 10.0, 25.0], device.conductances, device.nu)
    assert nu == pytest.approx([0.1, 0.08, 0.06, 0.05], rel=1e-5)

    plain_one = read(CONFIGURATIONS["state independent"])[0].device
    assert isinstance(plain_one, TableDevice)
    assert set(plain_one.sigma) == {0.2} and set(plain_one.nu) == {0.1}
    assert plain_one.conductances[-1] == 30.0


def test_effects_of_the_forward_pass() -> None:
    target, notes = read(CONFIGURATIONS["many effects"])

    assert target.dac == Converter(7, "dynamic", rounding="stochastic")
    assert target.adc == Converter(9, 12.0, rounding="stochastic", bound_management="worst-case")
    assert target.periphery == Periphery(0.01, 0.1, 0.2, 0.5)
    assert target.wires is not None and target.wires.row_resistance == 0
    # The same drop as with 0.35 ohm and 5 uS: what counts is their product.
    assert target.wires.col_resistance * 25.0 == pytest.approx(0.35 * 5.0)
    assert target.weight_clip == WeightClip("sigma", 2.5)
    assert target.compensation == "column"
    assert (target.tile.rows, target.tile.cols) == (256, 128)
    dropped = {name for name, how in lost(notes).items() if how == "dropped"}
    assert dropped == {
        "forward.inp_noise", "forward.out_noise_std", "forward.r_series", "forward.w_noise",
        "modifier.type",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["ADDITIVE_CONSTANT", "PCM_READ"])
def test_read_noise_of_the_forward_pass(kind: str) -> None:
    config = changed(
        noise_model=None, forward__w_noise=0.02, forward__w_noise_type=kind,
        mapping__weight_scaling_omega=0.5,
    )  # fmt: skip
    target, notes = read(config)

    assert "forward.w_noise" not in lost(notes)
    if kind == "ADDITIVE_CONSTANT":
        assert target.device == GaussianDevice(sigma=0.0, read_noise=0.04)
        assert target.cell == Cell()
        return
    # In aihwkit's units a weight w has the standard deviation 0.02 sqrt(w); full scale is w = 0.5.
    device = target.device
    assert isinstance(device, TableDevice)
    found = np.interp([6.25, 25.0], device.conductances, device.read_noise)
    wanted = [0.02 * (0.5 * share) ** 0.5 / 0.5 * 25.0 for share in (0.25, 1.0)]
    assert found == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "bits", "note"),
    [(254, 8, False), (1 / 510, 9, False), (256, 8, True), (0.5, 2, False)],
)
def test_resolutions(steps: float, bits: int, note: bool) -> None:
    target, notes = read(changed(forward__inp_res=steps))

    assert target.dac is not None and target.dac.bits == bits
    assert ("forward.inp_res" in lost(notes)) == note


def test_no_resolution_and_no_bound() -> None:
    target, notes = read(
        changed(forward__inp_res=-1, forward__out_bound=0.0, forward__out_noise=0.0)
    )
    assert target.adc is None and target.dac is None
    assert lost(notes)["forward.out_res"] == "dropped"

    target, notes = read(changed(forward__inp_res=-1, forward__out_res=-1))
    assert target.dac == Converter(16, "dynamic")
    assert target.adc is not None and target.adc.bits == 16
    assert {"forward.inp_res", "forward.out_res"} <= set(lost(notes))


def test_sizes_of_0_are_no_limit() -> None:
    tile = read(changed(mapping__max_input_size=0, mapping__max_output_size=0))[0].tile

    assert min(tile.rows, tile.cols) > 100_000


@pytest.mark.parametrize(
    ("compensation", "found"),
    [
        (None, "none"),
        ("GlobalDriftCompensation", "global"),
        ("PerColumnDriftCompensation", "column"),
        ({"class": "GlobalDriftCompensationWithExactReference"}, "exact"),
    ],
)
def test_drift_compensation(compensation: object, found: str) -> None:
    assert read(changed(drift_compensation=compensation))[0].compensation == found


def test_a_class_derived_from_a_known_one_is_taken_as_that() -> None:
    model = {"class": "Mine", "bases": ["PCMLikeNoiseModel", "BaseNoiseModel"]}
    target, notes = read(changed(noise_model=model))

    assert target.device == PCMDevice()
    assert ("noise_model", "approximated") in [(note.setting, note.how) for note in notes]


@pytest.mark.parametrize("model", ["NewNoiseModel", {"class": "NewNoiseModel", "a": 1}, {"a": 1}])
def test_an_unknown_noise_model_is_said_to_be_dropped(model: object) -> None:
    target, notes = read(changed(noise_model=model))

    assert target.device == IdealDevice()
    assert lost(notes)["noise_model"] == "dropped"


def test_an_unknown_setting_is_said_to_be_dropped() -> None:
    _, notes = read(changed(forward__cosmic_rays=0.1, weather="fine"))

    assert lost(notes)["forward.cosmic_rays"] == lost(notes)["weather"] == "dropped"


def test_without_a_report_it_warns() -> None:
    with pytest.warns(InteropWarning, match=r"bound_management approximated: .* halved"):
        target_from(CONFIGURATIONS["inference"])


def test_strict_refuses_what_would_be_lost() -> None:
    with pytest.raises(UnsupportedError, match=r"forward\.inp_noise dropped"):
        read(CONFIGURATIONS["many effects"], strict=True)

    config = changed(mapping__weight_scaling_omega=1.0, forward__bound_management="NONE")
    assert all(note.how == "differs" for note in read(config, strict=True)[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward__inp_res": "fine"}, r"forward\.inp_res must be a finite number"),
        ({"forward__noise_management": "LOUD"}, r"forward\.noise_management must be one of"),
        ({"forward__inp_sto_round": 1}, r"forward\.inp_sto_round must be true or false"),
        ({"mapping__max_input_size": 1.5}, r"mapping\.max_input_size must be a whole number"),
        ({"mapping": 3}, r"mapping must be a dict"),
        ({"noise_model__prog_coeff": "big"}, r"noise_model\.prog_coeff must be a list"),
    ],
)
def test_bad_values_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(changed(**changes))


@pytest.mark.parametrize("config", [{}, {"bias": True}, object(), 3, None, []])
def test_what_is_no_configuration_is_refused(config: object) -> None:
    with pytest.raises(InputError, match="configuration"):
        read(config)


class Mode(enum.Enum):
    ABS_MAX = "AbsMax"


@dataclasses.dataclass
class Forward:
    out_bound: float = 7.0
    noise_management: Mode = Mode.ABS_MAX


class PCMLikeNoiseModel:
    def __init__(self) -> None:
        self.drift_scale = 0.5


@dataclasses.dataclass
class Config:
    tile_class: type = Forward
    forward: Forward = dataclasses.field(default_factory=Forward)
    noise_model: PCMLikeNoiseModel = dataclasses.field(default_factory=PCMLikeNoiseModel)


@pytest.mark.parametrize("form", [lambda c: c, dataclasses.asdict, to_dict])
def test_objects_and_both_kinds_of_dicts_are_read(form: Any) -> None:
    target, _ = read(form(Config()))

    assert target.adc is not None and target.adc.range == 7.0
    assert target.device == PCMDevice(drift=0.5)


def test_plain_values() -> None:
    value = {1.0: (Mode.ABS_MAX, Forward, torch.ones(2), np.zeros(1)), "x": Forward()}

    found = json.loads(json.dumps(plain(value)))

    assert found["1.0"] == ["ABS_MAX", "Forward", [1.0, 1.0], [0.0]]
    assert found["x"] == {"class": "Forward", "out_bound": 7.0, "noise_management": "ABS_MAX"}
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(InputError, match="contain themselves"):
        plain(loop)


@pytest.mark.parametrize("given", ["ABS_MAX", "AbsMax", "NoiseManagementType.ABS_MAX", "absmax"])
def test_members_of_enumerations_in_any_form(given: str) -> None:
    assert word(given) == "absmax"


def test_settings_know_what_was_not_read() -> None:
    settings = Settings({"a": 1, "b": {"c": 2, "d": 3}, "class": "X"}, "top")
    assert settings.part("b").number("c", 0.0) == 2.0

    assert list(settings.unread()) == ["top.a", "top.b.d"]


def test_nothing_of_aihwkit_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aihwkit", None)  # an import of it would fail

    assert read(CONFIGURATIONS["inference"])[0].device == PCMDevice()


def test_the_library_s_own_objects() -> None:
    configs = pytest.importorskip("aihwkit.simulator.configs")

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target, notes = read(configs.InferenceRPUConfig())

    assert target == read(CONFIGURATIONS["inference"])[0]
    assert re.match(r"mapping", notes[0].setting)


def test_input_scales_with_a_limit_and_running_ones() -> None:
    limited, notes = read(changed(forward__noise_management="ABS_MAX", forward__nm_thres=1.5))
    assert limited.dac is not None and (limited.dac.range, limited.dac.cap) == ("dynamic", 1.5)
    assert "forward.nm_thres" not in lost(notes)

    running, notes = read(changed(forward__noise_management="AVERAGE_ABS_MAX"))
    assert running.dac is not None and running.dac.range == "average"
    assert lost(notes)["forward.noise_management"] == "approximated"

    other, notes = read(changed(forward__noise_management="MAX", forward__nm_thres=1.5))
    assert other.dac is not None and (other.dac.range, other.dac.cap) == ("dynamic", None)
    assert lost(notes)["forward.nm_thres"] == "dropped"
