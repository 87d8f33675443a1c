from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats  # type: ignore[import-untyped]

from analogc import GaussianDevice, IdealDevice
from analogc.runtime.devices import KINDS, Device
from analogc.runtime.noise import NoiseKey

KEY = NoiseKey(0, "program/fc", 0)


@pytest.mark.parametrize("kind", KINDS.values())
def test_every_kind_is_a_device_that_leaves_its_input_alone(kind: type[Device]) -> None:
    device = kind()
    weight = torch.randn(4, 5)
    before = weight.clone()

    written = device.program(weight, KEY)

    assert isinstance(device, Device)
    assert KINDS[device.kind] is kind
    assert torch.equal(weight, before)
    assert (written.shape, written.dtype) == (weight.shape, weight.dtype)


@pytest.mark.parametrize("device", [IdealDevice(), GaussianDevice(0), GaussianDevice(0.0)])
def test_exact_devices_change_nothing(device: Device) -> None:
    weight = torch.randn(4, 5)

    assert device.is_ideal
    assert torch.equal(device.program(weight, KEY), weight)


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
