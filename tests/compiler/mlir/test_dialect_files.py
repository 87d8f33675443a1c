"""Files that are made of the definitions: IRDL for other tools, and the reference page.

With ``--update-docs`` they are written instead of compared.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("torch_mlir")

from analogc.compiler.mlir import dialect, document, opt
from analogc.runtime.converters import Converter
from analogc.runtime.spec import LayerSpec

from .modules import Layer

ROOT = Path(__file__).resolve().parents[3]
IRDL = ROOT / "compiler" / "mlir" / "analog.irdl.mlir"


@pytest.mark.parametrize(
    ("path", "made"),
    [(IRDL, dialect.irdl_text), (ROOT / "docs" / "dialect.md", document.page)],
    ids=["irdl", "page"],
)
def test_files_say_what_the_definitions_say(
    path: Path, made: Callable[[], str], request: pytest.FixtureRequest
) -> None:
    if request.config.getoption("--update-docs"):
        path.write_text(made())
    assert path.read_text() == made(), f"{path.name}: run pytest tests/compiler/mlir --update-docs"


def test_page_has_every_operation_pass_and_attribute() -> None:
    page = document.page()
    kinds = [kind.OPERATION_NAME for kind in dialect.Analog.operations]
    for name in [*kinds, *opt.PASSES, "analog.tile", "analog.mapping"]:
        assert name in page


def _mlir_opt(text: str, *flags: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("torch-mlir-opt")
    command = [str(tool), f"--irdl-file={IRDL}", *flags]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _layer() -> Layer:
    spec = LayerSpec((0, 18, 36), Converter(), Converter(per_column=True))
    return Layer(
        spec, torch.randn(1, 4, 6, 6), torch.randn(3, 4, 3, 3), (0, 2, 3), torch.randn(3),
        input_range=torch.ones(2), adc_range=torch.ones(2, 3),
        stride=(1, 1), padding=(0, 0), dilation=(1, 1),
    )  # fmt: skip


@pytest.mark.parametrize("passes", ["cse", "split-to-tiles"])
def test_torch_mlir_opt_takes_our_output_with_the_irdl_file(passes: str) -> None:
    module = _layer().module()
    opt.run(module, passes)

    done = _mlir_opt(str(module))

    assert done.returncode == 0, done.stderr
    assert str(opt.read(done.stdout.encode())) == str(module)


def test_torch_mlir_opt_checks_the_structure() -> None:
    text = str(_layer().module()).replace("converter<8 : i64", 'converter<"8"')

    done = _mlir_opt(text)

    assert done.returncode != 0
    assert "expected base attribute 'builtin.integer'" in done.stderr
