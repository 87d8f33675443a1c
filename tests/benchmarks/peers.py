"""The same workloads on the other simulators that are installed.

Each has the settings nearest to generic-8bit-noisy that it knows: 8-bit converters, tiles of at
most 512 rows, noise as its defaults have it. They simulate different things: this compares cost,
not accuracy.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from forward import inference
from tables import Table
from timing import compare, once
from torch import Tensor, nn
from training import step
from workloads import CONV, ENCODER, LINEAR, MODELS, RESNET20, Workload

import analogc


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)


@dataclass(frozen=True)
class System:
    """A simulator with one of its settings."""

    name: str
    convert: Callable[[nn.Module, Tensor], nn.Module]
    """Analog twin of a model, which is in eval mode."""
    optimizer: Callable[[nn.Module], Any] = _sgd
    program: Callable[[nn.Module], object] = lambda model: None
    """Called after each step of the optimizer, where the tool does not follow by itself."""


def peers(budget: float) -> Iterator[Table]:
    """Forward and training step of each system over the digital ones, a table for each workload."""
    systems = [*_analogc(), *_aihwkit(), *_lightning(), *_crosssim()]
    for workload in (LINEAR, CONV, RESNET20, ENCODER, MODELS[-1]):
        head = ("", "make s", "digital ms", "forward ms", "forward ratio", "step ratio")
        table = Table(f"Peers: {workload.name}", head)
        for system in systems:
            try:
                table.add(system.name, *_measure(workload, system, budget))
            except Exception as err:  # that a tool cannot do a model is a result, too
                table.add(system.name, "fails", type(err).__name__)
        yield table


def _measure(workload: Workload, system: System, budget: float) -> tuple[str, ...]:
    model, x = workload.build()
    taken, twin = once(lambda: system.convert(copy.deepcopy(model), x))
    forward = compare(inference(model, x), inference(twin, x), budget)
    model.train()
    twin.train()
    optimizer = system.optimizer(twin)
    candidate = step(twin, x, optimizer, lambda: system.program(twin))
    trained = compare(step(model, x), candidate, budget)
    times = f"{1e3 * forward.reference:.3f}", f"{1e3 * forward.candidate:.3f}"
    return f"{taken:.2f}", *times, f"{forward.ratio:.2f}", f"{trained.ratio:.2f}"


def _analogc() -> Iterator[System]:
    workload = MODELS[-1]
    workload.compile(*workload.build())  # torch imports its compiler at the first one
    for name in analogc.targets.names():

        def convert(model: nn.Module, x: Tensor, target: str = name) -> nn.Module:
            return analogc.compile(model, (x,), target=target, seed=0)

        yield System(f"analogc {name}", convert)


def _aihwkit() -> Iterator[System]:
    if importlib.util.find_spec("aihwkit") is None:
        return
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.optim import AnalogSGD
    from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
    from aihwkit.simulator.presets import StandardHWATrainingPreset

    def optimizer(model: nn.Module) -> Any:
        found = AnalogSGD(model.parameters(), lr=1e-6)
        found.regroup_param_groups(model)
        return found

    for config in (TorchInferenceRPUConfig, InferenceRPUConfig, StandardHWATrainingPreset):

        def convert(model: nn.Module, x: Tensor, config: Any = config) -> nn.Module:
            return convert_to_analog(model, config()).eval()  # type: ignore[no-any-return]

        pcm = " (PCM)" if config is StandardHWATrainingPreset else ""
        yield System(f"aihwkit {config.__name__}{pcm}", convert, optimizer)


def _lightning() -> Iterator[System]:
    if importlib.util.find_spec("aihwkit_lightning") is None:
        return
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

    def convert(model: nn.Module, x: Tensor) -> nn.Module:
        config = TorchInferenceRPUConfig()
        config.mapping.max_input_size = 512
        config.pre_post.input_range.enable = True
        config.pre_post.input_range.init_value = 3.0
        config.pre_post.input_range.init_from_data = 0
        config.forward.inp_res = config.forward.out_res = 2**8 - 2
        config.forward.out_bound = 12.0
        return convert_to_analog(model, config).eval()  # type: ignore[no-any-return]

    yield System("aihwkit-lightning (no noise in eval)", convert)


def _crosssim() -> Iterator[System]:
    if importlib.util.find_spec("simulator") is None:
        return
    from simulator import CrossSimParameters
    from simulator.algorithms.dnn.torch.convert import from_torch, synchronize
    from simulator.parameters.xbar_parameters import ADCRangeLimits

    def convert(model: nn.Module, x: Tensor) -> nn.Module:
        config = CrossSimParameters()
        config.core.rows_max = config.core.cols_max = 512
        inputs = config.core.mapping.inputs.mvm
        inputs.min, inputs.max, inputs.percentile = None, None, 1.0
        dac, adc = config.xbar.dac.mvm, config.xbar.adc.mvm
        dac.model, dac.bits, dac.signed = "SignMagnitudeDAC", 8, True
        adc.model, adc.bits, adc.adc_range_option = "QuantizerADC", 8, ADCRangeLimits.MAX
        error = config.xbar.device.programming_error
        error.enable, error.model, error.magnitude = True, "NormalIndependentDevice", 0.02
        return from_torch(model, config, fuse_batchnorm=True).eval()  # type: ignore[no-any-return]

    yield System("CrossSim (no output noise)", convert, program=synchronize)
