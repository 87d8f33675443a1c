"""Any order of writes, forwards, calibration, copies, files, moves and modes keeps tiles and
weights in step: the next forward is that of a model that was never anything else, and only what
changed is programmed.
"""

from __future__ import annotations

import copy
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn
from torch.utils.dlpack import from_dlpack

import analogc
from analogc import CompiledModel, GaussianDevice, TileSpec
from analogc.errors import SyncError
from analogc.runtime.standin import resolve

RANGES = "_analog.ranges"
PATHS = ["conv.weight", "norm.weight", "norm.bias", "body.weight", "body.bias", "head.weight"]


class Net(nn.Module):
    """A folded batch norm, a weight that is used twice, and one large enough to be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.body = nn.Linear(12, 192)
        self.twice = nn.Linear(192, 192)
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.body(torch.relu(self.norm(self.conv(x))).flatten(1)))
        out: Tensor = self.head(torch.tanh(self.twice(torch.tanh(self.twice(x)))))
        return out


X = torch.linspace(-1.0, 1.0, 4 * 2 * 4 * 4).sin().view(4, 2, 4, 4)
TARGET = analogc.targets.generic_8bit().replace(
    tile=TileSpec(64, 64), device=GaussianDevice(0, drift_nu=0.06)
)


def _numpy(p: Tensor) -> Any:
    return p.detach().numpy()


WRITES: dict[str, Callable[[nn.Parameter], Any]] = {
    "uniform_": lambda p: nn.init.uniform_(p, -0.3, 0.3),
    "mul_": lambda p: p.mul_(-0.9),
    "element": lambda p: p.view(-1)[0].fill_(0.2),
    "last": lambda p: p.data.view(-1)[-1:].neg_(),
    "row": lambda p: p[0].zero_(),
    "data": lambda p: p.data.mul_(0.9),
    "data assignment": lambda p: setattr(p, "data", p.data.flip(0).clone()),
    "numpy": lambda p: np.negative(_numpy(p), out=_numpy(p)),
    "numpy element": lambda p: _numpy(p).reshape(-1).__setitem__(-1, 0.125),
    "dlpack": lambda p: from_dlpack(p.detach()).clamp_(-0.2, 0.2),
    "storage": lambda p: p.untyped_storage().copy_(torch.rand_like(p).untyped_storage()),
    "same values": lambda p: p.copy_(p.clone()),
    "other memory": lambda p: setattr(p, "data", p.data.clone()),
    "swap": lambda p: torch.utils.swap_tensors(p, nn.Parameter(torch.rand_like(p) - 0.5)),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda ps: torch.optim.SGD(ps, lr=0.01),
    "SGD fused": lambda ps: torch.optim.SGD(ps, lr=0.01, fused=True),
    "AdamW foreach": lambda ps: torch.optim.AdamW(ps, lr=0.01, foreach=True),
    "AdamW fused": lambda ps: torch.optim.AdamW(ps, lr=0.01, fused=True),
}
seeds = st.integers(0, 2**16)


class Weights(RuleBasedStateMachine):
    """A compiled model, and another one that is told all: its tiles are written every time."""

    compiled: CompiledModel
    other: CompiledModel
    loaded = False
    """Out of a file, which holds the graphs of those modes only that were captured before."""

    @initialize(seed=seeds)
    def compile(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.modes = {False}
        self.compiled = analogc.compile(Net().eval(), (X,), target=TARGET, seed=0)
        self.other = copy.deepcopy(self.compiled).train().eval()
        self.held: dict[str, tuple[Tensor, int]] = {}
        self.remember()

    def remember(self) -> None:
        for mapping, array, weight in self.compiled._live_weights():
            self.held[mapping.array] = (resolve(weight).clone(), array.times_programmed)

    def replace(self, new: CompiledModel) -> None:
        self.compiled = new
        # A copy has the tiles of the graph that it was made in, no others.
        self.held = {}
        self.remember()

    # -- what may happen -------------------------------------------------------------------------

    @rule(path=st.sampled_from(PATHS), how=st.sampled_from(sorted(WRITES)), seed=seeds)
    def write(self, path: str, how: str, seed: int) -> None:
        torch.manual_seed(seed)
        with torch.no_grad():
            WRITES[how](self.compiled.get_parameter(path))

    @rule(how=st.sampled_from(sorted(WRITES)), seed=seeds)
    def write_the_watched_one(self, how: str, seed: int) -> None:
        self.write("twice.weight", how, seed)

    @rule(path=st.sampled_from(PATHS), seed=seeds)
    def put_another_parameter(self, path: str, seed: int) -> None:
        torch.manual_seed(seed)
        prefix, _, name = path.rpartition(".")
        old = self.compiled.get_parameter(path)
        setattr(self.compiled.get_submodule(prefix), name, nn.Parameter(torch.rand_like(old) - 0.5))

    @rule(how=st.sampled_from(sorted(OPTIMIZERS)), steps=st.integers(1, 2))
    def optimize(self, how: str, steps: int) -> None:
        optimizer = OPTIMIZERS[how](self.compiled.parameters())
        for _ in range(steps):
            optimizer.zero_grad()
            self.compiled(X.to(self.dtype)).square().mean().backward()
            # Steps but the last are followed by the forward of the next.
            self.remember()
            optimizer.step()
        optimizer.zero_grad()

    @rule(seed=seeds, assign=st.booleans())
    def load_state_dict(self, seed: int, assign: bool) -> None:
        torch.manual_seed(seed)
        state = self.compiled.state_dict().items()
        values = {n: torch.rand_like(v) if v.is_floating_point() else v.clone() for n, v in state}
        self.compiled.load_state_dict(values, assign=assign)

    @rule(name=st.sampled_from(["body", "twice", "head"]), seed=seeds)
    def set_weight(self, name: str, seed: int) -> None:
        torch.manual_seed(seed)
        weight = self.compiled.weights[name]
        weight.set(torch.rand_like(weight.get()) - 0.5)

    @rule(scale=st.floats(0.5, 2.0), method=st.sampled_from(["mse", "absmax"]))
    def calibrate(self, scale: float, method: str) -> None:
        assert self.compiled.calibrate([X.to(self.dtype) * scale], method) == 1

    @rule(seed=seeds)
    def program(self, seed: int) -> None:
        self.compiled.program(seed)
        self.remember()
        assert all(w.times_programmed == 1 for w in self.compiled.weights.values())

    @rule()
    def sync(self) -> None:
        assert self.compiled.sync() == []  # the check after every rule ran it already

    @rule()
    def forward_with_gradient(self) -> None:
        x = X.to(self.dtype).clone().requires_grad_()
        self.compiled(x).square().sum().backward()
        assert x.grad is not None
        self.compiled.zero_grad()

    @rule(how=st.sampled_from(["deepcopy", "pickle", "file"]))
    def make_another(self, how: str) -> None:
        if how == "deepcopy":
            return self.replace(copy.deepcopy(self.compiled))
        self.loaded = True
        if how == "pickle":
            return self.replace(pickle.loads(pickle.dumps(self.compiled)))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model"
            self.compiled.save(path)
            self.replace(analogc.load(path))

    @rule(dtype=st.sampled_from([torch.float32, torch.float64]))
    def move(self, dtype: torch.dtype) -> None:
        self.compiled.to(dtype)

    @precondition(lambda self: torch.cuda.is_available())
    @rule()
    def move_there_and_back(self) -> None:
        self.compiled.cuda()
        self.compiled(X.to("cuda", self.dtype))
        self.compiled.cpu()

    @rule(seconds=st.sampled_from([0.0, 60.0, 1e5]))
    def drift(self, seconds: float) -> None:
        self.compiled.drift_to(seconds)

    @rule(path=st.sampled_from(PATHS), how=st.sampled_from(sorted(WRITES)), seed=seeds)
    def write_while_auto_sync_is_off(self, path: str, how: str, seed: int) -> None:
        self.compiled.auto_sync = False
        self.write(path, how, seed)
        stale = any(not a.is_current(w) for _, a, w in self.compiled._live_weights())
        try:
            if stale:
                with pytest.raises(SyncError):
                    self.compiled(X.to(self.dtype))
        finally:
            self.compiled.auto_sync = True

    @rule()
    def shake(self) -> None:
        """There and back again: the same values in other memory."""
        dtype = self.dtype
        self.compiled.double()
        self.compiled.to(dtype)

    @precondition(lambda self: not self.loaded or len(self.modes) == 2)
    @rule(training=st.booleans())
    def switch(self, training: bool) -> None:
        self.modes.add(training)
        self.compiled.train(training)

    # -- what must hold --------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        return self.compiled.get_parameter("head.weight").dtype

    def like(self, new: CompiledModel) -> CompiledModel:
        """``new`` with the present weights, dtype, mode and ranges."""
        new.to(self.dtype).train(self.compiled.training)
        new.load_state_dict(self.compiled.state_dict())
        with torch.no_grad():
            theirs = dict(new.get_submodule(RANGES).named_buffers())
            for name, value in self.compiled.get_submodule(RANGES).named_buffers():
                theirs[name].copy_(value)
        new.program()
        ages = {}
        for mapping, array, _ in self.compiled._live_weights():
            assert array.programmed is not None, "a forward ran"
            ages[mapping.array] = array.programmed.seconds
        for mapping, array, weight in new._live_weights():
            array.drift_to(weight, ages[mapping.array])
        return new

    @invariant()
    def forward_is_that_of_a_model_with_these_weights(self) -> None:
        if not hasattr(self, "held"):
            return
        expected = {}
        for mapping, array, weight in self.compiled._live_weights():
            if mapping.array in self.held:
                old, times = self.held[mapping.array]
                weight = resolve(weight)
                same = old.dtype == weight.dtype and torch.equal(old, weight)
                expected[mapping.array] = times + (0 if same else 1)
            else:
                expected[mapping.array] = array.times_programmed  # of a new graph, just made
        with torch.no_grad():
            x = X.to(self.dtype)
            got = self.compiled(x)
            want = self.like(self.other)(x)
        assert torch.equal(got, want)
        found = {m.array: a.times_programmed for m, a, _ in self.compiled._live_weights()}
        assert found == expected
        self.remember()

    def teardown(self) -> None:
        if hasattr(self, "held"):
            fresh = analogc.compile(Net().eval(), (X,), target=TARGET, seed=0).train().eval()
            with torch.no_grad():
                want = self.like(fresh)(X.to(self.dtype))
                assert torch.equal(self.compiled(X.to(self.dtype)), want)


TestWeights = Weights.TestCase
TestWeights.settings = settings(
    max_examples=max(12, settings().max_examples // 5),
    stateful_step_count=12,
    suppress_health_check=[HealthCheck.too_slow],
)
