"""Golden tests: each file says what to run and what the result has to look like."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("torch_mlir")

from filecheck.matcher import Matcher
from filecheck.options import Options

from analogc.compiler.cli import main

FILES = sorted(Path(__file__).with_name("filecheck").glob("*.mlir"))
RUN = re.compile(r"// RUN: analogc opt --passes '([^']*)' %s \| filecheck %s\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.stem))
def test_output_is_what_the_file_says(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = RUN.match(path.read_text())
    assert found is not None, f"{path.name} does not begin with a RUN line"
    out = tmp_path / path.name
    assert main(["opt", "--passes", found.group(1), str(path), "-o", str(out)]) == 0

    status = Matcher.from_opts(Options(str(path), str(out))).run()

    assert status == 0, f"{capsys.readouterr().err}\n{out.read_text()}"


def test_there_are_goldens_of_every_pass() -> None:
    runs = " ".join(path.read_text().split("\n", 1)[0] for path in FILES)
    for name in ("split-to-tiles", "expand-analog", "outline-analog-to-calls"):
        assert name in runs
