"""Statistics of the device models of aihwkit 1.2.0 and CrossSim 3.2, stored in ``devices.json``.

Neither is on PyPI in a form that a test could install. Run it again where both are:

    python tests/runtime/oracle/make_devices.py > tests/runtime/oracle/devices.json
"""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

import numpy as np
import torch

COUNT = 400_000
HOUR, DAY = 3600.0, 86400.0


def row(peer: str, model: str, target: float, seconds: float, values: Any, what: str) -> Any:
    """Mean and standard deviation of many devices that were programmed to ``target`` [uS]."""
    found = np.asarray(values, dtype=np.float64)
    return {
        "peer": peer, "model": model, "target": target, "seconds": seconds, "what": what,
        "mean": float(f"{found.mean():.7g}"), "std": float(f"{found.std():.7g}"),
        "count": found.size,
    }  # fmt: skip


def aihwkit_rows() -> list[Any]:
    """PCM, HERMES, Wan and CMO: programmed, drifted, and drifted plus one read's noise."""
    pcm = import_module("aihwkit.inference.noise.pcm")
    hermes = import_module("aihwkit.inference.noise.hermes")
    reram = import_module("aihwkit.inference.noise.reram")
    converter = import_module("aihwkit.inference.converter.conductance")
    wan = reram.ReRamWan2022NoiseModel(
        g_converter=converter.SinglePairConductanceConverter(g_max=40.0)
    )
    wan.coeff_g_max_reference = 40.0  # which the constructor stores under another name
    makers: dict[str, Any] = {
        "pcm/nandakumar-2019": (lambda **k: pcm.PCMLikeNoiseModel(**k), (3.0, 8.0, 15.0, 25.0)),
        "pcm/hermes-one-device": (
            lambda **k: hermes.HermesNoiseModel(num_devices=1, **k), (0.9, 2.0, 5.0, 10.35),
        ),
        "pcm/hermes-two-device": (
            lambda **k: hermes.HermesNoiseModel(num_devices=2, **k), (1.8, 5.0, 12.0, 20.7),
        ),
        "reram-cmo": (
            lambda **k: reram.ReRamCMONoiseModel(acceptance_range=2, g_max=88.2, g_min=9.0, **k),
            (20.0, 40.0, 70.0),
        ),
        "reram-wan-2022": (lambda **k: wan, (0.0, 8.0, 20.0, 40.0)),
    }  # fmt: skip
    rows = []
    for model, (make, targets) in makers.items():
        quiet = make(read_noise_scale=0.0)
        loud = make(prog_noise_scale=0.0, drift_scale=0.0)
        for target in targets:
            wanted = torch.full((COUNT,), target)
            fresh = quiet.apply_programming_noise_to_conductance(wanted)
            rows.append(row("aihwkit", model, target, 0.0, fresh, "state"))
            nu = quiet.generate_drift_coefficients(wanted)
            for seconds in (DAY, 2 * DAY) if model == "reram-wan-2022" else (HOUR, DAY):
                drifted = quiet.apply_drift_noise_to_conductance(fresh, nu, seconds)
                rows.append(row("aihwkit", model, target, seconds, drifted, "state"))
                if model == "reram-wan-2022":
                    continue
                still = loud.generate_drift_coefficients(wanted)
                read = loud.apply_drift_noise_to_conductance(wanted, still, seconds)
                rows.append(row("aihwkit", model, target, seconds, read, "read"))
    return rows


def crosssim_rows() -> list[Any]:
    """PCM (Joshi), Milo and SONOS."""
    simulator = import_module("simulator")
    import_module("simulator.backend").ComputeBackend(use_gpu=False)
    custom = "simulator.devices.custom"
    cases: dict[str, Any] = {
        "pcm/joshi-2020": ("PCM_Joshi", "PCMJoshi", 1e-6 * 25.0, 0.25, (3.0, 8.0, 15.0, 25.0)),
        "reram-milo-2021": ("RRAM_Milo", "RRAMMilo", 225e-6, 50.0, (50.0, 120.0, 225.0)),
        "sonos": ("SONOS", "SONOS", 16e-6, 1.6e-6, (0.5, 2.0, 8.0, 16.0)),
    }
    rows = []
    for model, (file, kind, g_max, g_min, targets) in cases.items():
        params = simulator.CrossSimParameters()
        device = params.xbar.device
        device.Rmin, device.Rmax, device.Vread = 1 / g_max, 1 / (g_min * 1e-6), 0.1
        device.infinite_on_off_ratio = False
        # CrossSim's own unit is the largest conductance.
        unit = g_max * 1e6
        made = getattr(import_module(f"{custom}.{file}"), kind)(device, device.programming_error)
        for target in targets:
            wanted = np.full(COUNT, target / unit)
            fresh = made.programming_error(wanted.copy()) * unit
            rows.append(row("CrossSim", model, target, 0.0, fresh, "state"))
            if model == "sonos":
                for days in (1.0, 2.5, 5.0):
                    aged = made.drift_error(wanted.copy(), days) * unit
                    rows.append(row("CrossSim", model, target, days * DAY, aged, "state"))
                read = made.read_noise(wanted.copy()) * unit
                rows.append(row("CrossSim", model, target, 0.0, read, "read"))
    return rows


if __name__ == "__main__":
    torch.manual_seed(1)
    np.random.seed(1)
    lines = [" " + json.dumps(found) for found in (*aihwkit_rows(), *crosssim_rows())]
    print("[", ",\n".join(lines), "]", sep="\n")
