"""The benchmark command works; what it measures is nobody's business here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from timing import compare

COMMAND = Path(__file__).parent / "benchmarks" / "run.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(COMMAND), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_section_is_printed_and_written_as_markdown(tmp_path: Path) -> None:
    out = tmp_path / "report.md"

    done = run("--only", "overhead", "--budget", "0.01", "--out", str(out))

    assert done.returncode == 0, done.stderr
    assert "Dispatch overhead" in done.stdout
    report = out.read_text()
    assert report.startswith("- date: ")
    assert f"- torch: {torch.__version__}" in report
    assert "## Dispatch overhead" in report
    assert "| a chain of 32 |" in report


def test_unknown_section_is_refused_with_the_list() -> None:
    done = run("--only", "speed")

    assert done.returncode == 2
    assert "no section speed; there are layers, models" in done.stderr


def test_ratio_is_that_of_the_work_done() -> None:
    x = torch.randn(64, 64)

    def once() -> None:
        x @ x

    def four_times() -> None:
        for _ in range(4):
            x @ x

    assert 2 < compare(once, four_times, 0.2).ratio < 8
