"""Autocast, grad-mode and checkpoint regions and control flow inside a model's forward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint

import analogc
from analogc.errors import UnsupportedError

X = torch.linspace(-1.0, 1.5, 6 * 4).reshape(6, 4)
INPUTS = (X, -X.abs(), X.abs())
pytestmark = [
    pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning"),
    # What torch's own control flow does on its first use.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


class Net(nn.Module):
    """Two linears, a batch norm and a dropout, put together by ``function``."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def block(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.drop(m.norm(m.first(x)).relu())
    return y


def low(**options: Any) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, **options)


def casts(m: Any, x: Tensor) -> Any:
    with low():
        y = m.first(x).relu()
        with low(enabled=False):
            y = m.second(y.float())
        z = m.first(y) + y
    return z, y


def casts_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad(), low():
        y = m.norm(m.first(x))
    out: Tensor = m.second(y.float())
    return out


def writes_without_gradients(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.norm(m.first(x))
        with torch.enable_grad():
            z = m.second(y)
    out: Tensor = m.second(z)
    return out


def checkpointed(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.second(checkpoint(lambda t: block(m, t), x, use_reentrant=False))
    return y


def reentrant(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.second(checkpoint(lambda t: block(m, t), x, use_reentrant=True))
    return y


def nested_checkpoints(m: Any, x: Tensor) -> Tensor:
    def inner(t: Tensor) -> Tensor:
        y: Tensor = checkpoint(lambda u: m.first(u).relu(), t, use_reentrant=False)
        return y

    y: Tensor = checkpoint(lambda t: m.second(inner(t)), x, use_reentrant=False)
    return y


def casts_in_a_checkpoint(m: Any, x: Tensor) -> Tensor:
    def run(t: Tensor) -> Tensor:
        with low():
            t = m.drop(m.first(t))
        y: Tensor = m.second(t.float())
        return y

    y: Tensor = checkpoint(run, x, use_reentrant=False) + checkpoint(run, x, use_reentrant=False)
    return y


def checkpoint_in_casts(m: Any, x: Tensor) -> Tensor:
    with low():
        y = checkpoint(lambda t: m.drop(m.first(t)), x, use_reentrant=False)
        z: Tensor = m.second(y).float()
    return z


def in_sequence(m: Any, x: Tensor) -> Tensor:
    parts = [m.first, nn.ReLU(), m.second, m.drop]
    y: Tensor = checkpointing.checkpoint_sequential(parts, 2, x, use_reentrant=False)
    return y


def branches(m: Any, x: Tensor) -> Tensor:
    y = x * 2
    chosen: Tensor = torch.cond(x.sum() > 0, m.first, lambda t: m.second(m.first(t)).sin(), (y,))
    return chosen + y


def nested_branches(m: Any, x: Tensor) -> Tensor:
    def yes(t: Tensor) -> Tensor:
        y: Tensor = torch.cond(t.max() > 2, lambda u: m.second(u), lambda u: u * 3, (t,))
        return y

    y: Tensor = m.first(torch.cond(x.sum() > 0, yes, lambda t: t.relu(), (x,)))
    return y


def branches_in_casts(m: Any, x: Tensor) -> Tensor:
    with low():
        y: Tensor = torch.cond(x.sum() > 0, lambda t: m.first(t), lambda t: m.second(t), (x,))
        return y.float()


def mapped(m: Any, x: Tensor) -> Tensor:
    y: Tensor = map_over(lambda row: m.first(row).relu(), x)  # type: ignore[arg-type, misc]
    return y


def scanned(m: Any, x: Tensor) -> Tensor:
    last, each = scan(lambda c, t: (torch.tanh(m.first(c) + t), m.second(c)), torch.zeros(4), x)
    y: Tensor = last + each
    return y


REGIONS = [
    casts, casts_without_gradients, writes_without_gradients, checkpointed, reentrant,
    nested_checkpoints, casts_in_a_checkpoint, checkpoint_in_casts, in_sequence,
]  # fmt: skip
CONTROL = [branches, nested_branches, branches_in_casts, mapped, scanned]


def names(functions: list[Any]) -> list[Any]:
    return [pytest.param(function, id=function.__name__) for function in functions]


def tensors(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("function", names(REGIONS + CONTROL))
def test_ideal_tiles_give_results_gradients_and_statistics_of_eager(
    function: Any, training: bool
) -> None:
    model = Net(function).train(training)
    twin = copy.deepcopy(model)
    rough = function in (casts, casts_in_a_checkpoint)  # bfloat16
    compiled = analogc.compile(model, (X,), target="ideal", check=True, strict=True)
    for x in INPUTS if function in CONTROL else INPUTS[:1]:
        found: list[Any] = []
        wanted: list[Any] = []
        for net, out in ((compiled, found), (twin, wanted)):
            given = x.clone().requires_grad_()
            torch.manual_seed(3)
            results = tensors(net(given))
            net.zero_grad()
            results[0].float().square().sum().backward()
            out += [*results, given.grad, *(p.grad for p in net.parameters())]
            out += net.buffers() if net is twin else model.buffers()
        for a, b in zip(found, wanted, strict=True):
            # A branch that is not taken has no gradient, or one of zeros.
            a = torch.zeros_like(b) if a is None and b is not None else a
            b = torch.zeros_like(a) if b is None and a is not None else b
            torch.testing.assert_close(a, b, rtol=2e-2 if rough else 1e-5, atol=1e-5)
    assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("function", names(REGIONS + CONTROL))
def test_every_layer_in_a_region_is_analog(function: Any) -> None:
    compiled = analogc.compile(Net(function).eval(), (X,), calibration_data=INPUTS, seed=0)
    # The first step of a scan multiplies zeros, which is a constant.
    live = [r for r in compiled.coverage.rows if r.macs and "parameters alone" not in r.reason]
    assert {row.kind for row in live} == {"analog"}
    exact = tensors(Net(function).eval()(X))
    for a, b in zip(tensors(compiled(X)), exact, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)


@pytest.mark.parametrize("function", names([casts, casts_in_a_checkpoint, branches, scanned]))
def test_regions_survive_files_copies_and_other_ways_to_run(function: Any, tmp_path: Path) -> None:
    compiled = analogc.compile(Net(function).eval(), (X,), calibration_data=INPUTS, seed=0)
    compiled.save(tmp_path / "net.analogc")
    others: list[Any] = [
        analogc.load(tmp_path / "net.analogc"),
        copy.deepcopy(compiled),
        torch.fx.Interpreter(compiled).run,
        torch.compile(compiled, backend="aot_eager", fullgraph=True),
    ]
    if function is not branches:
        others.append(torch.export.export(compiled, (X,)).module())
    with torch.no_grad():
        for x in INPUTS if function is branches else INPUTS[:1]:
            wanted = tensors(compiled(x))
            for other in others:
                for a, b in zip(tensors(other(x)), wanted, strict=True):
                    assert torch.equal(a, b)


def test_export_of_a_compiled_condition_is_refused_with_a_way_out() -> None:
    compiled = analogc.compile(Net(branches).eval(), (X,))
    with pytest.raises(UnsupportedError, match="torch.cond"):
        torch.export.export(compiled, (X,))


def test_only_the_branch_that_is_taken_runs() -> None:
    noisy = analogc.compile(Net(branches).eval(), (X,), target="generic-8bit-noisy", seed=0)
    arrays = {name: array for name, array in noisy._ctx.arrays.items()}
    before = arrays["second"].calls
    noisy(X.abs())
    assert arrays["second"].calls == before
    noisy(-X.abs())
    assert arrays["second"].calls == before + 1


def loops(m: Any, x: Tensor) -> Any:
    return while_loop(lambda i, t: i < 3, lambda i, t: (i + 1, m.first(t)), (torch.tensor(0), x))


@pytest.mark.parametrize(
    ("function", "shapes"), [(loops, None), (mapped, "batch")], ids=["while", "open"]
)
def test_loops_of_open_length_are_reported_and_refused_by_strict(
    function: Any, shapes: Any
) -> None:
    model = Net(function).eval()
    compiled = analogc.compile(model, (X,), dynamic_shapes=shapes)
    assert len(compiled.coverage.unsupported) == 1
    with pytest.raises(UnsupportedError, match="1 products inside a"):
        analogc.compile(model, (X,), dynamic_shapes=shapes, strict=True)


def test_an_error_inside_a_region_leaves_no_mode_behind() -> None:
    compiled = analogc.compile(Net(casts).eval(), (X,))
    compiled.auto_sync = False
    compiled.get_parameter("second.weight").data.add_(1)
    with pytest.raises(analogc.errors.SyncError):
        compiled(X)
    assert not torch.is_autocast_enabled("cpu")


class Deep(nn.Module):
    """Blocks with wide activations, checkpointed as transformers does it."""

    def __init__(self, saves: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 256), nn.GELU(), nn.Linear(256, 16)) for _ in range(4)
        )
        self.saves = saves

    def forward(self, x: Tensor) -> Tensor:
        for part in self.blocks:
            x = checkpoint(part, x, use_reentrant=False) if self.saves else part(x)
        return x


@pytest.mark.parametrize("target", ["ideal", "generic-8bit", "generic-8bit-noisy"])
@pytest.mark.parametrize("seed", [None, 0])
def test_a_checkpoint_saves_memory_and_changes_no_number(target: str, seed: int | None) -> None:
    x = torch.randn(64, 16)
    kept, results = [], []
    for saves in (False, True):
        torch.manual_seed(0)
        compiled = analogc.compile(Deep(saves).train(), (x,), target=target, seed=seed)
        bytes_kept = 0

        def pack(value: Tensor) -> Tensor:
            nonlocal bytes_kept
            bytes_kept += value.nbytes
            return value

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            y = compiled(x)
        kept.append(bytes_kept)
        y.square().sum().backward()
        results.append([y.detach(), *(p.grad for p in compiled.parameters())])
    assert kept[1] < kept[0] / 5
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_around_a_compiled_call() -> None:
    x = torch.randn(8, 16)
    compiled = analogc.compile(Deep(False), (x,), target="generic-8bit-noisy")
    grads = []
    for saves in (False, True):
        compiled.zero_grad()
        torch.manual_seed(0)
        y = checkpoint(compiled, x, use_reentrant=False) if saves else compiled(x)
        y.square().sum().backward()
        grads.append([p.grad for p in compiled.parameters()])
    for a, b in zip(*grads, strict=True):
        assert a is not None and b is not None
        torch.testing.assert_close(a, b)
