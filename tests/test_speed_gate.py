"""Speed does not fall far behind: ratios of thread CPU time to digital torch, with wide margins.

The limits are about twice what is measured (docs/benchmarks.md), so that a slow kernel is caught
and a busy machine is not. Never wall time.
"""

from __future__ import annotations

import pytest
from forward import measure_named
from timing import elsewhere
from workloads import CONV, LINEAR, RESNET20

from analogc.runtime.native.loader import library

LIMITS = {LINEAR.name: 1.3, CONV.name: 2.0, RESNET20.name: 2.0}
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def too_slow(names: list[str]) -> dict[str, float]:
    found = elsewhere(measure_named, names, 0.4, 8, env=ONE_THREAD)
    ratios = {name: row["ratio"] for name, (row, _) in zip(names, found, strict=True)}
    return {name: ratio for name, ratio in ratios.items() if ratio > LIMITS[name]}


def test_native_forward_is_near_its_measured_speed() -> None:
    native = library()
    if native is None:
        pytest.skip("the native library is not there: the torch path is several times slower")
    if native.isa == "baseline":
        pytest.skip("neither AVX2 nor AVX-512 here: the baseline kernels have no speed to keep")
    first = too_slow(list(LIMITS))
    again = too_slow(list(first)) if first else {}
    assert again == {}, f"ratio to digital torch above {LIMITS} twice, at first {first}"
