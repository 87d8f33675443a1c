from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import analogc

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("name", ["compiler", "passes", "runtime"])
def test_package_path_is_the_root_folder_of_its_name(name: str) -> None:
    package = importlib.import_module(f"analogc.{name}")

    assert [Path(path).resolve() for path in package.__path__] == [ROOT / name]


@pytest.mark.parametrize("name", ["compiler", "passes", "runtime"])
def test_facade_holds_a_relative_link_to_the_folder(name: str) -> None:
    link = ROOT / "analogc" / name

    assert link.is_symlink()
    assert link.readlink() == Path("..", name)


@pytest.mark.parametrize("folder", ["compiler", "passes", "runtime"])
def test_every_folder_with_modules_is_a_package(folder: str) -> None:
    homes = {path.parent for path in (ROOT / folder).rglob("*.py")}

    assert [home for home in homes if not (home / "__init__.py").is_file()] == []


def test_package_is_marked_as_typed() -> None:
    assert (Path(analogc.__file__).parent / "py.typed").is_file()


def test_public_names_exist_once() -> None:
    missing = [name for name in analogc.__all__ if not hasattr(analogc, name)]

    assert missing == []
    assert len(set(analogc.__all__)) == len(analogc.__all__)


def test_import_is_lean_and_silent() -> None:
    heavy = [
        "cupy", "matplotlib", "networkx", "numba", "pandas", "rich", "scipy", "sklearn",
        "torch._dynamo", "torch._inductor", "torch_mlir", "torchvision", "transformers",
    ]  # fmt: skip
    code = (
        "import sys, torch\n"
        "before = set(sys.modules)\n"
        "import analogc\n"
        f"print([name for name in {heavy!r} if name in set(sys.modules) - before])\n"
        "print(torch.cuda.is_initialized())\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["[]", "False"]
    assert done.stderr == ""


def test_runtime_imports_nothing_of_passes_or_compiler() -> None:
    code = (
        "import importlib.util, sys\n"
        "import torch\n"
        "import types\n"
        "facade = types.ModuleType('analogc')\n"
        f"facade.__path__ = [{str(ROOT / 'analogc')!r}]\n"
        "sys.modules['analogc'] = facade\n"
        "import analogc.runtime.calibrate, analogc.runtime.derived, analogc.runtime.ranges\n"
        "import analogc.runtime.sqnr, analogc.runtime.targets\n"
        "print(sorted({m.split('.')[1] for m in sys.modules if m.startswith('analogc.')}))\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.stdout.strip() == "['runtime']", done.stderr


def test_room_names_do_not_leak_to_the_top_level(tmp_path: Path) -> None:
    code = (
        "import importlib.util, analogc\n"
        "names = ['compiler', 'passes', 'runtime']\n"
        "print([name for name in names if importlib.util.find_spec(name)])\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )

    assert done.stdout.strip() == "[]", done.stderr
