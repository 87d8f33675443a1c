"""The Python blocks of README and guide run, and print what the text block after them says.

With ``--update-docs`` the text blocks are written instead of compared.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```\n)?", re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/guide.md"])
def test_examples_run_and_print_what_the_page_says(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = ROOT / name
    text = path.read_text()
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "example"}
    parts: list[str] = []
    end = 0
    blocks = [block for block in BLOCK.finditer(text) if _can_run(block.group(1))]
    assert blocks, f"{name} has no example"
    for block in blocks:
        source, expected = block.groups()
        line = text.count("\n", 0, block.start()) + 2
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + source, name, "exec"), names)
        parts.append(text[end : block.start()] + f"```python\n{source}```\n")
        if expected is not None:
            parts.append(f"\n```text\n{printed.getvalue()}```\n")
            if not request.config.getoption("--update-docs"):
                assert printed.getvalue() == expected, f"{name}, line {line}"
        end = block.end()
    if request.config.getoption("--update-docs"):
        path.write_text("".join(parts) + text[end:])


def _can_run(source: str) -> bool:
    """False for an example of an optional package that is not here; no other one builds on it."""
    return "mlir" not in source or importlib.util.find_spec("torch_mlir") is not None


def test_readme_has_the_command_that_ci_runs() -> None:
    text = (ROOT / "README.md").read_text()
    found = re.search(r"<!-- test-command -->\n```\n(.*?)\n```\n<!-- end -->", text, re.DOTALL)
    assert found is not None
    assert "torch==2.13.0" in found.group(1) and "-m pytest" in found.group(1)
