"""Writes aihwkit.json: configurations of aihwkit as dicts, and outputs of a layer with them.

    PYTHONPATH=<checkout> python make_aihwkit.py      with aihwkit 1.2.0 installed

Weights and inputs are by numpy; outputs are those of one AnalogLinear without noise.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analogc.interop.aihwkit import to_dict

HERE = Path(__file__).parent
DETERMINISTIC: dict[str, dict[str, Any]] = {
    "8-bit": {},
    "columnwise": {"mapping": {"weight_scaling_columnwise": True}},
    "half scale": {"mapping": {"weight_scaling_omega": 0.5}},
    "fixed input bound": {
        "forward": {"noise_management": "NONE", "inp_bound": 2.5, "out_bound": 30.0}
    },
    "constant input scale": {"forward": {"noise_management": "CONSTANT", "nm_thres": 2.0}},
    "clipping": {"forward": {"out_bound": 2.0}},
    "learned input range": {
        "forward": {"noise_management": "NONE"},
        "pre_post": {"input_range": {"enable": True, "init_from_data": 0, "init_value": 2.0}},
    },
    "7-bit DAC": {"forward": {"inp_res": 1 / (2**7 - 2)}},
    "perfect": {"forward": {"is_perfect": True}},
}
"""Changes to the settings of ``base`` below."""


def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weight, bias and inputs."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((20, 48)), rng.standard_normal(20), rng.standard_normal((6, 48))
    weight, bias, x = (torch.from_numpy(v).float() for v in values)
    return weight, bias, x


def base() -> Any:
    from aihwkit.simulator.configs import TorchInferenceRPUConfig
    from aihwkit.simulator.parameters.enums import BoundManagementType

    config = TorchInferenceRPUConfig()
    config.mapping.weight_scaling_omega = 1.0
    forward = config.forward
    forward.inp_res = forward.out_res = 1 / (2**8 - 2)
    forward.out_bound, forward.out_noise = 20.0, 0.0
    forward.bound_management = BoundManagementType.NONE
    config.drift_compensation = None
    return config


def change(config: Any, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if isinstance(value, dict):
            change(getattr(config, name), value)
            continue
        if isinstance(value, str):
            value = type(getattr(config, name))[value]
        setattr(config, name, value)


def outputs(config: Any) -> torch.Tensor:
    from aihwkit.nn import AnalogLinear

    weight, bias, x = layer()
    analog = AnalogLinear(48, 20, bias=True, rpu_config=config)
    analog.set_weights(weight, bias)
    analog.eval()
    with torch.no_grad():
        found: torch.Tensor = analog(x)
    return found


def configurations() -> dict[str, Any]:
    """Of many kinds, to be translated."""
    from aihwkit.inference import compensation, converter
    from aihwkit.inference import noise as models
    from aihwkit.simulator import configs, presets
    from aihwkit.simulator.parameters import enums

    found: dict[str, Any] = {
        "inference": configs.InferenceRPUConfig(),
        "torch": configs.TorchInferenceRPUConfig(),
        "standard hardware-aware": presets.StandardHWATrainingPreset(),
        "single device": configs.SingleRPUConfig(),
        "floating point": configs.FloatingPointRPUConfig(),
        "time-sliced IR drop": configs.TorchInferenceRPUConfigIRDropT(),
        "quantised": configs.QuantizedTorchInferenceRPUConfig(),
    }
    single = converter.conductance.SinglePairConductanceConverter
    pairs = converter.conductance.NPairConductanceConverter
    tables = {
        "g_lst": [0.0, 10.0, 25.0],
        "nu_mean_lst": [0.1, 0.06, 0.05],
        "nu_std_lst": [0.02] * 3,
    }
    for name, model in {
        "pcm": models.pcm.PCMLikeNoiseModel(
            g_converter=single(g_max=20.0, g_min=0.5), prog_noise_scale=0.5, t_0=30.0
        ),
        "pcm own polynomial": models.pcm.PCMLikeNoiseModel(prog_coeff=[0.3, 1.0]),
        "pcm two pairs": models.pcm.PCMLikeNoiseModel(g_converter=pairs([1.0, 3.0])),
        "hermes one": models.hermes.HermesNoiseModel(num_devices=1),
        "hermes two": models.hermes.HermesNoiseModel(num_devices=2, read_noise_scale=0.0),
        "wan": models.reram.ReRamWan2022NoiseModel(),
        "wan at 40 uS": models.reram.ReRamWan2022NoiseModel(g_max=40.0, noise_scale=2.0),
        "cmo": models.reram.ReRamCMONoiseModel(acceptance_range=2),
        "cmo default": models.reram.ReRamCMONoiseModel(),
        "state independent": models.custom.StateIndependentNoiseModel(g_max=30.0),
        "custom drift": models.pcm.CustomDriftPCMLikeNoiseModel(tables),
    }.items():
        found[name] = configs.InferenceRPUConfig(noise_model=model)
    io = configs.InferenceRPUConfig(
        drift_compensation=compensation.drift.PerColumnDriftCompensation()
    )
    io.forward.inp_sto_round = io.forward.out_sto_round = True
    io.forward.v_offset_std, io.forward.out_nonlinearity = 0.01, 0.1
    io.forward.out_nonlinearity_std, io.forward.slope_calibration = 0.2, 0.5
    io.forward.ir_drop, io.forward.w_noise = 1.0, 0.01
    io.forward.w_noise_type = enums.WeightNoiseType.ADDITIVE_CONSTANT
    io.forward.bound_management = enums.BoundManagementType.ITERATIVE_WORST_CASE
    io.forward.inp_noise, io.forward.out_noise_std, io.forward.r_series = 0.02, 0.1, 0.01
    io.clip.type = enums.WeightClipType.LAYER_GAUSSIAN
    io.modifier.type = enums.WeightModifierType.ADD_NORMAL
    io.mapping.max_input_size, io.mapping.max_output_size = 256, 128
    found["many effects"] = io
    return found


def main() -> None:
    layers = {}
    for name, changes in DETERMINISTIC.items():
        config = base()
        change(config, changes)
        layers[name] = {"config": to_dict(config), "outputs": outputs(config).tolist()}
    found = {
        "version": importlib.metadata.version("aihwkit"),
        "layers": layers,
        "configurations": {name: to_dict(c) for name, c in configurations().items()},
    }
    (HERE / "aihwkit.json").write_text(json.dumps(found, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
