"""Models that torch.export does not take: dynamo cuts them, one CompiledModel for the user."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import analogc
from analogc.errors import AccessError, FormatError, InputError, UnsupportedError

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.norm = nn.BatchNorm1d(16)
        self.up, self.down = nn.Linear(16, 4), nn.Linear(16, 4)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        y = self.norm(self.first(x)) * scale
        if y.sum() > 0:  # the branch
            return {"out": self.up(y), "hidden": y}
        return {"out": self.down(y), "hidden": y}


class Loop(nn.Module):
    """A break in a loop: dynamo leaves the whole frame to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.rnn = nn.GRU(8, 8, batch_first=True)
        self.bare = nn.Parameter(torch.randn(8, 8))
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(self.first(x)[:, None].expand(-1, 3, -1))[0][:, -1]
        for layer in self.layers:
            x = torch.tanh(layer(x))
            if float(x.detach().sum()) > 1e9:
                break
        return x @ self.bare  # in Python


def close(got: Tensor, want: Tensor, tolerance: float = 1e-6) -> None:
    assert (got - want).abs().max() <= tolerance * want.abs().max()


def inputs_of_both_branches(model: Branch) -> tuple[Tensor, Tensor]:
    """Inputs that take the first branch and the second."""
    with torch.no_grad():
        sums = [float(model(x)["hidden"].sum()) for x in (X, -X)]
    assert sums[0] * sums[1] < 0
    return (X, -X) if sums[0] > 0 else (-X, X)


@pytest.fixture
def model() -> Branch:
    found = Branch().eval()
    with torch.no_grad():
        found.first.bias.zero_()
    return found


@pytest.mark.parametrize("capture", ["auto", "dynamo"])
def test_called_like_the_model_on_either_branch(model: Branch, capture: Any) -> None:
    one, two = inputs_of_both_branches(model)
    compiled = analogc.compile(model, (one,), {"scale": 2.0}, target="ideal", capture=capture)
    assert isinstance(compiled, analogc.CompiledModel)
    assert [row.module for row in compiled.coverage.analog] == ["first", "up"]
    for x in (one, two):
        got, want = compiled(x, scale=2.0), model(x, scale=2.0)
        assert list(got) == ["out", "hidden"]
        close(got["out"], want["out"])
    assert [tile.array for tile in compiled.tiles] == ["first", "up", "down"]
    assert {row.module for row in compiled.coverage.analog} == {"first", "up", "down"}
    assert compiled.coverage.unsupported == ()
    assert set(compiled.weights) == {"first", "up", "down"}
    assert len(compiled.graphs) == 3
    for graph in compiled.graphs:
        assert isinstance(graph, torch.fx.GraphModule)
        assert str(graph) in str(compiled).replace("\n", "\n") or graph.graph
    assert "3 graphs" in str(compiled) and "graph" in compiled.ir()
    assert "def forward" in compiled.code
    assert compiled.history and compiled.backend.summary() == "3 on digital"
    assert sum(compiled.compile_seconds) > 0


def test_a_log_line_says_why(model: Branch, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        analogc.compile(model, (X,), target="ideal")
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "torch.export did not take Branch" in messages[0] and "2 graphs" in messages[0]


def test_export_alone_says_where_and_how(model: Branch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnsupportedError, match="branch depends on tensor values") as info:
        analogc.compile(model, (X,), capture="export")
    assert "# the branch" in str(info.value.where)
    assert "capture='dynamo'" in str(info.value.fix)
    assert "def forward" not in capfd.readouterr().err


def test_quantised_results_noise_and_seeds(model: Branch) -> None:
    one, two = inputs_of_both_branches(model)
    target = analogc.targets.generic_8bit_noisy()
    outs = []
    for _ in range(2):
        compiled = analogc.compile(model, (one,), target=target, seed=3)
        with torch.no_grad():
            outs.append([compiled(x)["out"] for x in (one, two, one)])
    for a, b in zip(*outs, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(outs[0][0], outs[0][2])
    close(outs[0][0], model(one)["out"], 0.2)


def test_tiles_follow_writes_and_methods_reach_all_graphs(model: Branch) -> None:
    one, two = inputs_of_both_branches(model)
    drifting = analogc.targets.generic_8bit().replace(
        device=analogc.GaussianDevice(0.0, drift_nu=0.06)
    )
    compiled = analogc.compile(model, (one,), target=drifting, seed=0, calibration_data=[one, two])
    assert set(compiled.weights) == {"first", "up", "down"}
    assert all(weight.times_programmed == 1 for weight in compiled.weights.values())
    fresh = {name: weight.programmed().norm() for name, weight in compiled.weights.items()}
    compiled.drift_to(1e6)
    assert all(w.programmed().norm() < 0.8 * fresh[n] for n, w in compiled.weights.items())
    compiled.program()
    with torch.no_grad():
        compiled.weights["down"].set(0.5 * model.down.weight)
    assert compiled.sync() == ["down"]
    with torch.no_grad():
        close(compiled(two)["out"], model(two)["out"], 0.1)
        before = compiled.coverage.summary()
        compiled.calibrate([10 * one, 10 * two], method="absmax")
        close(compiled(10 * one)["out"], model(10 * one)["out"], 0.1)
    assert compiled.coverage.summary() == before
    compiled.auto_sync = False
    with torch.no_grad():
        model.up.weight.mul_(2)
        with pytest.raises(analogc.errors.SyncError, match="up"):
            compiled(one)


def test_training_equals_eager(model: Branch) -> None:
    twin = copy.deepcopy(model)
    compiled = analogc.compile(model, (X,), target="ideal")
    assert not compiled.training
    compiled.train()
    twin.train()
    assert not model.training
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (compiled, twin)]
    for _ in range(2):
        for each, optimizer in zip((compiled, twin), optimizers, strict=True):
            optimizer.zero_grad()
            each(X)["out"].square().mean().backward()
            optimizer.step()
    assert not model.training
    for (name, p), q in zip(model.state_dict().items(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    assert list(compiled.state_dict()) == list(twin.state_dict())
    twin.eval()
    close(compiled.eval()(X)["out"], twin(X)["out"], 1e-4)


def test_layers_that_python_calls_are_graphs_of_their_own() -> None:
    model = Loop().eval()
    compiled = analogc.compile(model, (X,), target="ideal")
    with torch.no_grad():
        close(compiled(X), model(X))
    assert {row.module for row in compiled.coverage.analog} == {
        "first", "rnn", "layers.0", "layers.1",
    }  # fmt: skip
    (row,) = compiled.coverage.unsupported
    assert (row.node, row.macs) == ("bare", 6 * 8 * 8)
    assert row.line is not None and Path(__file__).name in row.line
    assert "runs in Python" in row.reason
    assert 0 < compiled.coverage.analog_share < 1
    assert all(part._compiled_call_impl is None for part in model.modules())
    with pytest.raises(UnsupportedError, match="stored weights would stay digital") as info:
        analogc.compile(model, (X,), target="ideal", strict=True)
    assert "bare" in str(info.value)


def test_dynamic_batch_is_captured_once(model: Branch) -> None:
    one, _ = inputs_of_both_branches(model)
    for shapes in ("batch", {"x": {0: torch.export.Dim.AUTO}}, ({0: torch.export.Dim.AUTO},)):
        compiled = analogc.compile(model, (one,), target="ideal", dynamic_shapes=shapes)
        labels = [getattr(graph, "label", "") for graph in compiled.graphs]
        close(compiled(one[:4])["out"], model(one[:4])["out"])
        assert [getattr(graph, "label", "") for graph in compiled.graphs][: len(labels)] == labels


def test_access_is_guarded(model: Branch) -> None:
    compiled = analogc.compile(model, (X,), target="ideal", weight_access="sealed")
    with pytest.raises(AccessError):
        compiled.get_parameter("first.weight").norm()
    close(compiled.weights["first"].read(), model.first.weight.detach())
    close(compiled(X)["out"], model(X)["out"])


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def test_what_cannot_be_says_so(model: Branch, tmp_path: Path) -> None:
    compiled = analogc.compile(model, (X,), target="ideal")
    with pytest.raises(FormatError, match="Python code") as info:
        compiled.save(tmp_path / "model.analogc")
    assert "branch depends on tensor values" in str(info.value.fix)
    assert not list(tmp_path.iterdir())
    with pytest.raises(FormatError):
        pickle.dumps(compiled)
    with pytest.raises(UnsupportedError, match="copied"):
        copy.deepcopy(compiled)
    with pytest.raises(UnsupportedError, match="captured again"):
        torch.export.export(compiled, (X,), strict=False)
    with pytest.raises(UnsupportedError, match="several graphs"):
        _ = compiled.signature
    with Watching(), pytest.raises(UnsupportedError, match="as a whole"):  # type: ignore[no-untyped-call]
        compiled(X)
    with pytest.raises(UnsupportedError, match="is compiled"):
        analogc.compile(compiled, (X,))


def test_select_is_checked_over_all_graphs(model: Branch) -> None:
    one, _ = inputs_of_both_branches(model)
    compiled = analogc.compile(model, (one,), target="ideal", select="up")
    assert [row.module for row in compiled.coverage.analog] == ["first"]
    with pytest.raises(InputError, match="no layer matches nothing"):
        analogc.compile(model, (one,), select=["up", "nothing"])


class AllInPython(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 8))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x @ self.w
        return out * float(out.sum())  # the reason


class Broken(Branch):
    def forward(self, x: Tensor, *, scale: float = 1.0) -> dict[str, Tensor]:
        return {"out": self.first(x) @ torch.zeros(3, 3)}  # the mistake


@pytest.mark.parametrize(
    ("make", "what", "line"),
    [
        (AllInPython, "all of them run in Python", "# the reason"),
        (Broken, "reduction dim", "# the mistake"),
    ],
)
def test_when_neither_can_both_are_quoted(make: type[nn.Module], what: str, line: str) -> None:
    with pytest.raises(UnsupportedError) as info:
        analogc.compile(make().eval(), (X,))
    text = str(info.value)
    assert "dynamo:" in text and what in text
    assert line in str(info.value.where)
    assert info.value.fix
    with pytest.raises(UnsupportedError, match="cannot be captured. dynamo:"):
        analogc.compile(make().eval(), (X,), capture="dynamo")


def test_examples_and_statistics_are_left_as_they_were(model: Branch) -> None:
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = X.clone()
    torch.manual_seed(5)
    want = torch.rand(3)
    torch.manual_seed(5)
    compiled = analogc.compile(model, (x,), target="ideal")
    assert torch.equal(torch.rand(3), want)
    assert torch.equal(x, X)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert compiled.training
