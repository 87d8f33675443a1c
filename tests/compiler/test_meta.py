"""Models on the meta device: everything but numbers, until weights are loaded."""

from __future__ import annotations

import re
import resource
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import targets
from analogc.errors import InputError, UnsupportedError

X = torch.linspace(-1.0, 1.0, 4 * 3 * 6 * 6).reshape(4, 3, 6, 6)


class Net(nn.Module):
    """Factories on the input's device and a buffer, besides the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x)).relu().flatten(1)
        out: Tensor = self.head(y + torch.arange(64, device=x.device))
        return out


def on_meta(examples: str = "meta", target: str = "generic-8bit") -> analogc.CompiledModel:
    with torch.device("meta"):
        model = Net().eval()
    return analogc.compile(model, (X.to(examples),), target=target, check=True, seed=0)


def loaded() -> tuple[Net, analogc.CompiledModel]:
    model = Net().eval()
    return model, analogc.compile(model, (X,), seed=0)


@pytest.mark.parametrize("examples", ["meta", "cpu"])
@pytest.mark.parametrize("target", ["ideal", "generic-8bit"])
def test_reports_are_those_of_the_real_model(examples: str, target: str) -> None:
    compiled = on_meta(examples, target)
    real = analogc.compile(Net().eval(), (X,), target=target)
    for report in ("tiles", "coverage"):
        assert str(getattr(compiled, report)) == str(getattr(real, report))
    assert str(compiled).replace("meta", "cpu") == str(real)
    assert compiled.to_dot() == real.to_dot()
    assert len(compiled.backend) == 2 and list(compiled.weights) == ["conv", "head"]
    compiled.train()
    assert str(compiled).replace("meta", "cpu") == str(real.train())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("target", targets.names())
def test_a_meta_input_gives_a_meta_output(training: bool, target: str) -> None:
    y = on_meta(target=target).train(training)(X.to("meta"))
    assert y.is_meta and y.shape == (4, 5)


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c(X), lambda c: c.calibrate([X]), lambda c: c.sync(), lambda c: c.program(),
        lambda c: c.drift_to(1.0), lambda c: c.weights["head"].read(),
        lambda c: c.weights["head"].programmed(),
    ],
)  # fmt: skip
def test_what_needs_weights_says_which_are_missing(use: object) -> None:
    compiled = on_meta()
    state = Net().state_dict()
    del state["head.weight"]
    for missing in ("conv.weight, conv.bias, norm.weight, norm.bias and 5 more", "head.weight$"):
        with pytest.raises(InputError) as info:
            use(compiled)  # type: ignore[operator]
        first, fix = str(info.value).splitlines()
        assert re.search(f"on the meta device: {missing}", first)
        assert "load_state_dict(state, assign=True)" in fix
        compiled.load_state_dict(state, assign=True, strict=False)


def test_a_meta_model_has_no_file(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no weights to save"):
        on_meta().save(tmp_path / "net.analogc")


@pytest.mark.parametrize("examples", ["meta", "cpu"])
@pytest.mark.parametrize("how", ["assign", "empty", "replace", "own"])
def test_loaded_weights_are_calibrated_and_programmed_at_first_use(how: str, examples: str) -> None:
    real, wanted = loaded()
    with torch.device("meta"):
        model = Net().eval()
    data = [X] if examples == "meta" else None
    example = X.to(examples)
    compiled = analogc.compile(model, (example,), seed=0, calibration_data=data)
    state = {name: value.clone() for name, value in real.state_dict().items()}
    if how == "assign":
        compiled.load_state_dict(state, assign=True)
    elif how == "own":
        model.load_state_dict(state, assign=True)
    elif how == "empty":
        compiled.to_empty(device="cpu").load_state_dict(state)
    else:
        for name, value in state.items():
            home, _, last = name.rpartition(".")
            part = model.get_submodule(home)
            is_parameter = last in part._parameters
            setattr(part, last, nn.Parameter(value) if is_parameter else value)
    assert torch.equal(compiled(X), wanted(X))
    assert compiled.weights["head"].times_programmed == 1


def test_without_data_calibration_is_asked_for() -> None:
    real, wanted = loaded()
    compiled = on_meta()
    compiled.load_state_dict(real.state_dict(), assign=True)
    with pytest.raises(InputError, match="not calibrated") as info:
        compiled(X)
    assert "compiled.calibrate(data)" in str(info.value)
    with pytest.raises(InputError, match="needs data"):
        compiled.calibrate()
    compiled.calibrate([X])
    assert torch.equal(compiled(X), wanted(X))
    assert compiled.train()(X).isfinite().all()  # the other graph takes the same data


def test_a_model_of_7_billion_parameters_takes_no_memory_for_weights() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.device("meta"):
        blocks = [nn.Sequential(nn.Linear(4096, 28672), nn.Linear(28672, 4096)) for _ in range(30)]
        model, x = nn.Sequential(*blocks).eval(), torch.empty(8, 4096)
    compiled = analogc.compile(model, (x,))
    assert sum(p.numel() for p in compiled.parameters()) > 7e9
    assert compiled.tiles.total == 30 * 2 * 8 * 56
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300e3  # KiB
