from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

import analogc.runtime
from analogc.runtime import cuda_kernels

from .gpu_cases import HostKernels

ROOT = Path(analogc.runtime.__path__[0]) / "native"
HOST = Path(__file__).parent / "native"
FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared", "-ffp-contract=off", "-fopenmp-simd", "-Wall")

Build = Callable[..., ctypes.CDLL]


@pytest.fixture(scope="session")
def build_host(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Compiles a source of ``tests/runtime/native`` into a loaded library; skips without g++."""
    compiler = shutil.which("g++")
    folder = tmp_path_factory.mktemp("host")
    built: dict[tuple[str, ...], ctypes.CDLL] = {}

    def build(source: str, *flags: str) -> ctypes.CDLL:
        if compiler is None:
            pytest.skip("needs g++")
        key = (source, *flags)
        if key not in built:
            target = folder / f"lib{len(built)}.so"
            command = [compiler, *FLAGS, *flags, f"-I{ROOT}", str(HOST / source), "-o", str(target)]
            subprocess.run(command, check=True)
            built[key] = ctypes.CDLL(str(target))
        return built[key]

    return build


@pytest.fixture
def host(build_host: Build, monkeypatch: pytest.MonkeyPatch) -> HostKernels:
    """``gpu.forward`` runs on the CPU from here on."""
    found = HostKernels(build_host("cuda_host.cpp", "-Wno-unknown-pragmas"))
    monkeypatch.setattr(cuda_kernels, "kernels_for", lambda device: found)
    return found


def cpu_runs(architecture: str) -> bool:
    """Whether this machine runs code for an x86-64 level."""
    if platform.machine() != "x86_64":
        return False
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    needed = {"x86-64": [], "x86-64-v3": ["avx2", "fma"], "x86-64-v4": ["avx512dq", "avx512vl"]}
    return all(flag in text for flag in needed[architecture])


@pytest.fixture(params=["x86-64", "x86-64-v3", "x86-64-v4"])
def scalar_library(request: pytest.FixtureRequest, build_host: Build) -> ctypes.CDLL:
    """``scalar_host.cpp`` for one instruction set after the other."""
    if not cpu_runs(request.param):
        pytest.skip(f"needs a CPU of {request.param}")
    return build_host("scalar_host.cpp", f"-march={request.param}", "-O3")
