from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]
from torch import Tensor

from analogc import GaussianDevice, IdealDevice
from analogc.errors import InputError
from analogc.runtime.devices import KINDS, Device
from analogc.runtime.noise import NoiseKey

KEY = NoiseKey(0, "program/fc", 0)


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_is_a_device_that_leaves_its_input_alone(kind: type[Device]) -> None:
    device = kind()
    weight = torch.randn(4, 5)
    before = weight.clone()

    written = device.state(weight, 0.0, KEY)

    assert isinstance(device, Device)
    assert KINDS[device.kind] is kind
    assert torch.equal(weight, before)
    assert (written.shape, written.dtype) == (weight.shape, weight.dtype)


@pytest.mark.parametrize("device", [IdealDevice(), GaussianDevice(0), GaussianDevice(0.0)])
def test_exact_devices_change_nothing(device: Device) -> None:
    weight = torch.randn(4, 5)

    assert device.is_ideal
    assert torch.equal(device.state(weight, 0.0, KEY), weight)


def test_gaussian_error_has_the_stated_spread_and_no_bias() -> None:
    weight = torch.rand(400, 500, dtype=torch.float64) * 2 - 1

    error = (GaussianDevice(0.05).program(weight, KEY) - weight).flatten().numpy()

    n = len(error)
    assert abs(error.mean()) < 5 * 0.05 / np.sqrt(n)
    assert abs(error.std() / 0.05 - 1) < 5 / np.sqrt(2 * n)
    assert stats.kstest(error / 0.05, "norm").pvalue > 1e-3
    # Independent of the weight itself.
    assert abs(np.corrcoef(error, weight.flatten().numpy())[0, 1]) < 5 / np.sqrt(n)


def test_programming_is_a_function_of_the_key() -> None:
    device, weight = GaussianDevice(0.1), torch.randn(3, 3)
    other = NoiseKey(0, "program/fc", 1)

    assert torch.equal(device.program(weight, KEY), device.program(weight, KEY))
    assert not torch.equal(device.program(weight, KEY), device.program(weight, other))


# -- drift ----------------------------------------------------------------------------------------

HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0


@pytest.mark.parametrize(
    ("seconds", "share"), [(HOUR, 0.732), (DAY, 0.605), (30 * DAY, 0.494), (YEAR, 0.425)]
)
def test_drift_has_the_published_points(seconds: float, share: float) -> None:
    # Joshi et al. 2020, nu = 0.06, t0 = 20 s.
    weight = torch.randn(4, 5, dtype=torch.float64)
    drifted = GaussianDevice(0, drift_nu=0.06).drift(weight, seconds, KEY)
    torch.testing.assert_close(drifted / weight, torch.full_like(weight, share), rtol=0, atol=6e-4)


def test_nothing_drifts_at_time_zero_or_without_an_exponent() -> None:
    weight = torch.randn(4, 5)
    assert torch.equal(GaussianDevice(0, drift_nu=0.06).drift(weight, 0.0, KEY), weight)
    assert torch.equal(GaussianDevice(0.1).drift(weight, YEAR, KEY), weight)
    assert torch.equal(IdealDevice().state(weight, YEAR, KEY), weight)
    assert not GaussianDevice(0.1).drifts and GaussianDevice(0, drift_nu_sigma=0.1).drifts


def test_exponents_have_the_stated_spread_and_stay_with_their_weights() -> None:
    device = GaussianDevice(0, drift_nu=0.5, drift_nu_sigma=0.05)
    weight = torch.rand(300, 400, dtype=torch.float64) + 0.5

    def nu(seconds: float) -> Tensor:
        share: Tensor = device.drift(weight, seconds, KEY) / weight
        return share.log() / -math.log((seconds + 20) / 20)

    found = nu(DAY).flatten().numpy()
    n = len(found)
    assert abs(found.mean() - 0.5) < 5 * 0.05 / np.sqrt(n)
    assert abs(found.std() / 0.05 - 1) < 5 / np.sqrt(2 * n)
    torch.testing.assert_close(nu(HOUR), nu(YEAR))


def test_no_weight_grows() -> None:
    device = GaussianDevice(0, drift_nu=0.01, drift_nu_sigma=0.1)
    weight = torch.rand(50, 60) + 0.5
    assert (device.drift(weight, YEAR, KEY) <= weight).all()


@pytest.mark.parametrize("name", ["drift_nu", "drift_nu_sigma", "t0"])
@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "x", None, True])
def test_drift_settings_that_make_no_sense_are_refused(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        GaussianDevice(**{name: value})  # type: ignore[arg-type]
