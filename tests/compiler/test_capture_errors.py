"""What cannot be compiled: a real example each, with the place and the way out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import analogc
from analogc.errors import InputError, UnsupportedError

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.two(torch.tanh(self.one(x)))
        return out


def test_a_model_that_torch_compiled_is_taken_as_it_was() -> None:
    model = Net().eval()
    wrapped: Any = torch.compile(model, backend="eager")
    compiled = analogc.compile(wrapped, (X,), target="ideal")
    assert list(compiled.state_dict()) == list(model.state_dict())
    torch.testing.assert_close(compiled(X), model(X))
    assert len(compiled.coverage.analog) == 2


def test_parts_that_torch_compiled_are_seen_through() -> None:
    model = Net().eval()
    model.one.compile(backend="eager")
    compiled = analogc.compile(model, (X,), target="ideal")
    assert len(compiled.coverage.analog) == 2
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize("what", [lambda x: x, nn.functional.linear, Net])
def test_functions_and_classes_get_the_way_out(what: Any) -> None:
    with pytest.raises(InputError, match="model must be an nn.Module") as info:
        analogc.compile(what, (X,))
    assert "forward of an nn.Module" in str(info.value.fix)
    assert "backend='analogc'" in str(info.value.fix)


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    store = torch._C._distributed_c10d.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("inside", [False, True])
def test_distributed_wrappers_are_refused(inside: bool, process_group: None) -> None:
    wrapped: nn.Module = nn.parallel.DistributedDataParallel(Net())
    model = nn.Sequential(wrapped) if inside else wrapped
    with pytest.raises(UnsupportedError, match="wrapped by DistributedDataParallel") as info:
        analogc.compile(model, (X,))
    assert ("submodule '0'" in str(info.value)) is inside
    assert "model.module" in str(info.value.fix)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_data_parallel_and_fsdp_are_refused(process_group: None) -> None:
    with pytest.raises(UnsupportedError, match="wrapped by DataParallel"):
        analogc.compile(nn.DataParallel(Net()), (X,))
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    sharded: Any = fully_shard(Net(), mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(UnsupportedError, match="wrapped by FSDPNet"):
        analogc.compile(sharded, (X,))


def test_half_a_model_on_meta_is_refused() -> None:
    model = Net()
    model.two.to("meta")
    with pytest.raises(UnsupportedError, match="'two.weight' is on the meta device") as info:
        analogc.compile(model, (X,))
    assert "to('meta')" in str(info.value.fix)


@pytest.mark.parametrize("capture", ["export", "dynamo"])
def test_forward_hooks_are_part_of_the_graph(capture: Any) -> None:
    torch._dynamo.reset()
    model = Net().eval()
    model.one.register_forward_hook(lambda m, args, out: out * 2)
    model.two.register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    compiled = analogc.compile(model, (X,), target="ideal", capture=capture)
    torch.testing.assert_close(compiled(X), model(X))


def test_backward_hooks_are_warned_of_and_hooks_of_tensors_run() -> None:
    model = Net()
    twin = copy.deepcopy(model)
    for each in (model, twin):
        each.one.weight.register_hook(lambda grad: 3 * grad)
    compiled = analogc.compile(model, (X,), target="ideal")
    compiled(X).sum().backward()
    twin(X).sum().backward()
    assert model.one.weight.grad is not None and twin.one.weight.grad is not None
    torch.testing.assert_close(model.one.weight.grad, twin.one.weight.grad)
    model.one.register_full_backward_hook(lambda m, gi, go: None)
    with pytest.warns(UserWarning, match="backward hooks of modules are not called.*: one"):
        analogc.compile(model, (X,), target="ideal")


@pytest.mark.parametrize("bad", [{1, 2}, object(), lambda: None])
def test_inputs_that_no_graph_can_hold_are_explained(bad: Any) -> None:
    class Takes(Net):
        def forward(self, x: Tensor, what: Any = None) -> Tensor:
            return super().forward(x)

    with pytest.raises((InputError, UnsupportedError)) as info:
        analogc.compile(Takes(), (X, bad), capture="export")
    assert info.value.fix
