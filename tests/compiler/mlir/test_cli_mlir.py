"""``analogc inspect --mlir`` and ``analogc run --engine``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("torch_mlir")

import analogc
from analogc.compiler.cli import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(3, 8)
    analogc.compile(model, (x,), seed=0).save(tmp_path / "net.analogc")
    np.save(tmp_path / "x.npy", x.numpy())
    return tmp_path / "net.analogc"


def test_inspect_prints_a_module(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file), "--mlir", "analog"]) == 0
    assert capsys.readouterr().out == analogc.load(file).to_mlir("analog").text()


def test_inspect_writes_a_module_that_opt_takes(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, tensors = file.with_suffix(".mlirbc"), file.with_suffix(".safetensors")
    asked = ["inspect", str(file), "--mlir", "analog", "-o", str(out)]
    assert main([*asked, "--mlir-weights", str(tensors)]) == 0
    assert tensors.is_file()
    capsys.readouterr()
    assert main(["opt", "--passes", "expand-analog", str(out)]) == 0
    text = capsys.readouterr().out
    assert "linalg.generic" in text and '"analog.linear"' not in text


@pytest.mark.parametrize("engine", ["native", "callbacks"])
def test_run_by_an_engine_gives_the_models_output(file: Path, engine: str) -> None:
    asked = ["run", str(file), "--data", str(file.with_name("x.npy")), "--output"]
    assert main([*asked, str(file.with_name("a.npy"))]) == 0
    assert main([*asked, str(file.with_name("b.npy")), "--engine", engine]) == 0
    a, b = (np.load(file.with_name(name)) for name in ("a.npy", "b.npy"))
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_output_needs_mlir(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(file), "-o", "x.mlir"]) == 1
    assert "add --mlir analog" in capsys.readouterr().err
