"""The native sources under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import analogc.runtime.native

SOURCES = Path(analogc.runtime.native.__path__[0]).resolve()
FLAGS = [
    "-std=c++17", "-O1", "-g", "-fopenmp", "-ffp-contract=off", "-fno-math-errno",
    "-fno-trapping-math", "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
    f"-I{SOURCES}",
]  # fmt: skip


@pytest.mark.slow
def test_random_layers_under_sanitizers(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    files = [*sorted(SOURCES.glob("*.cpp")), Path(__file__).with_name("fuzz.cpp")]

    def compile(file: Path) -> str:
        target = str(tmp_path / f"{file.stem}.o")
        subprocess.run([compiler, *FLAGS, "-c", str(file), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile, files))
    program = str(tmp_path / "fuzz")
    linked = subprocess.run(
        [compiler, *FLAGS, *objects, "-o", program], capture_output=True, text=True
    )
    if linked.returncode:
        pytest.skip(f"{compiler} has no sanitizer runtime: {linked.stderr[-200:]}")
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "ASAN_OPTIONS": "detect_leaks=0"}
    for seed in ("1", "2"):
        run = subprocess.run(
            [program, seed, "150"], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr[-3000:]
