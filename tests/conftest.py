"""What every test starts from: one thread, seed 0, reproducible property tests."""

from __future__ import annotations

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# The same examples in every run; explore with --hypothesis-profile=explore.
settings.register_profile("analogc", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("explore", deadline=None, max_examples=500, print_blob=True)
settings.load_profile("analogc")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-docs", action="store_true", help="write what the examples of the docs print"
    )
    parser.addoption(
        "--regenerate-golden",
        action="store_true",
        help="write tests/models/golden anew from what the models give now",
    )


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def entry_points(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let torch find the backend also where this checkout is not what is installed."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    groups = project["entry-points"]
    (group,) = groups
    if any(e.name == "analogc" for e in importlib.metadata.entry_points(group=group)):
        yield
        return
    home = tmp_path_factory.mktemp("metadata")
    folder = home / "analogc_checkout-0.dist-info"
    folder.mkdir()
    lines = [f"{name} = {value}" for name, value in groups[group].items()]
    (folder / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
    sys.path.append(str(home))
    yield
    sys.path.remove(str(home))
