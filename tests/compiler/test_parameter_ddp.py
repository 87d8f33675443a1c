"""DistributedDataParallel on a compiled model, two processes over gloo, nothing prepared for it.

The file is its own worker: ``python test_parameter_ddp.py FOLDER RANK``. All scenarios run in one
pair of processes, which leave what they got in FOLDER.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import analogc
from analogc import TileSpec

WORLD = 2
STEPS = 3
pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch without gloo")


class Net(nn.Module):
    """A convolution, a batch norm, a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.left, self.right = nn.Linear(16, 16), nn.Linear(16, 16)
        self.right.weight = self.left.weight
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x))).flatten(1)
        out: Tensor = self.head(torch.tanh(self.right(torch.tanh(self.left(x)))))
        return out


# Target (None: the digital model), how it is wrapped, what is frozen.
SCENARIOS: dict[str, tuple[str | None, dict[str, Any], tuple[str, ...]]] = {
    "digital": (None, {}, ()),
    "ideal": ("ideal", {}, ()),
    "digital frozen": (None, {}, ("left.weight",)),
    "ideal frozen": ("ideal", {}, ("left.weight",)),
    "ideal bucket view": ("ideal", {"gradient_as_bucket_view": True}, ()),
    "ideal static graph": ("ideal", {"static_graph": True}, ()),
    "8 bit": ("generic-8bit", {}, ()),
    "noisy": ("generic-8bit-noisy", {}, ()),
}


def scenario(rank: int, name: str) -> dict[str, Any]:
    target, options, frozen = SCENARIOS[name]
    torch.manual_seed(rank)  # DDP gives every process the weights of the first
    model: nn.Module = Net()
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(5))
    if target is not None:
        preset = analogc.targets.get(target).replace(tile=TileSpec(8, 8))
        model = analogc.compile(model, (x,), target=preset, seed=0)
    for path in frozen:
        model.get_parameter(path).requires_grad_(False)
    wrapped = DDP(model, **options)
    start = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.05, momentum=0.9)
    data = torch.Generator().manual_seed(100 + rank)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = (wrapped(torch.randn(x.shape, generator=data)) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    result: dict[str, Any] = {
        "start": start,
        "state": copy.deepcopy(model.state_dict()),
        "grads": {n: p.grad is not None for n, p in model.named_parameters()},
        "keys": list(wrapped.state_dict()),
        "losses": losses,
    }
    if isinstance(model, analogc.CompiledModel):
        with torch.no_grad():
            model(x)
        result["times"] = {n: w.times_programmed for n, w in model.weights.items()}
        result["held"] = {n: w.programmed() for n, w in model.weights.items()}
        result["live"] = {n: w.get().detach().clone() for n, w in model.weights.items()}
    return result


def main(folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD
    )
    torch.save({name: scenario(rank, name) for name in SCENARIOS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    root = str(Path(analogc.__file__).parent.parent)
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), str(rank)],
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(WORLD)
    ]  # fmt: skip
    try:
        output = [worker.communicate(timeout=120)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * WORLD, "\n".join(output)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def same_state(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def parameters(result: dict[str, Any]) -> dict[str, Tensor]:
    """Its state without the statistics of batch norm, which each process has of its own."""
    return {n: v for n, v in result["state"].items() if "norm.running" not in n}


@pytest.mark.parametrize("name", SCENARIOS)
def test_processes_start_and_stay_equal(name: str, results: list[dict[str, Any]]) -> None:
    first, second = (each[name] for each in results)
    assert same_state(first["start"], second["start"])
    assert same_state(parameters(first), parameters(second))
    assert not torch.equal(first["start"]["conv.weight"], first["state"]["conv.weight"])
    assert first["losses"] != second["losses"]  # each saw data of its own
    assert torch.equal(first["state"]["left.weight"], first["state"]["right.weight"])


@pytest.mark.parametrize("name", [n for n in SCENARIOS if n.startswith("ideal")])
def test_ideal_tiles_train_as_the_digital_model_does(
    name: str, results: list[dict[str, Any]]
) -> None:
    want = "digital frozen" if name == "ideal frozen" else "digital"
    for each in results:
        assert each[name]["losses"] == each[want]["losses"]
        assert same_state(each[name]["state"], each[want]["state"])
        assert each[name]["keys"] == each[want]["keys"]


def test_frozen_weight_stays(results: list[dict[str, Any]]) -> None:
    for each in results:
        result = each["ideal frozen"]
        assert torch.equal(result["state"]["left.weight"], result["start"]["left.weight"])
        assert not result["grads"]["left.weight"] and result["grads"]["left.bias"]


@pytest.mark.parametrize("name", ["8 bit", "noisy"])
def test_tiles_follow_every_step(name: str, results: list[dict[str, Any]]) -> None:
    for each in results:
        result = each[name]
        # Once at compile, once after each step, and where DDP brought other weights.
        expected = STEPS + (2 if each is results[1] else 1)
        assert set(result["times"].values()) == {expected}
        for layer, held in result["held"].items():
            live = result["live"][layer]
            if name == "8 bit":
                torch.testing.assert_close(held, live, rtol=0, atol=float(live.abs().max()) / 32767)
            else:
                assert 0 < (held - live).norm() < 0.1 * live.norm()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
