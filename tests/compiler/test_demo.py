"""The demo, fast: its numbers, its text, its page."""

from __future__ import annotations

import io
import re
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from rich.console import Console

import analogc
from analogc.compiler.demo import Results, run
from analogc.compiler.demo.network import accuracy, load_digits
from analogc.compiler.demo.study import FAST, FULL, Plan, Score, study_targets


@dataclass(frozen=True)
class Run:
    results: Results
    text: str
    html: str
    out: Path


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("demo") / "report"
    text = io.StringIO()
    results = run(out, fast=True, seed=0, console=Console(file=text, width=120))
    html = (out / "report.html").read_text(encoding="utf-8")
    return Run(results, text.getvalue(), html, out)


def test_the_digital_model_is_good(demo: Run) -> None:
    assert demo.results.digital >= 97


def test_ideal_tiles_lose_nothing(demo: Run) -> None:
    for score in demo.results.scores["ideal"].values():
        assert score.values == (demo.results.digital,)


def test_8_bit_tiles_lose_little(demo: Run) -> None:
    for name in ("generic-8bit", "generic-8bit-noisy"):
        for score in demo.results.scores[name].values():
            assert score.mean >= demo.results.digital - 1.5


def test_accuracy_falls_with_noise(demo: Run) -> None:
    for scores in demo.results.sweep.values():
        assert scores[0.2].mean < scores[0].mean - 1


def test_every_cell_is_measured(demo: Run) -> None:
    results = demo.results
    assert list(results.scores) == list(study_targets())
    assert all(tuple(row) == FAST.tile_sizes for row in results.scores.values())
    assert all(tuple(row) == FAST.sigmas for row in results.sweep.values())
    noisy = [*results.scores["generic-8bit-noisy"].values()]
    assert all(len(score.values) == FAST.seeds for score in noisy)


def test_the_compiled_model_takes_any_batch(demo: Run) -> None:
    digits = load_digits()
    assert demo.results.compiled(digits.test[:3]).shape == (3, 10)
    score = demo.results.scores["generic-8bit"][FAST.shown_size]
    assert accuracy(demo.results.compiled, digits) == score.mean


def test_the_text_says_what_it_shows(demo: Run) -> None:
    for heading in (
        "1. Train the digital model",
        "2. Compile to generic-8bit",
        "3. Coverage",
        "4. Tiles",
        "5. Test accuracy by target",
        "6. Test accuracy against programming noise",
        "7. Report",
    ):
        assert heading in demo.text
    for line in str(demo.results.compiled).splitlines():
        assert line.rstrip() in demo.text
    assert f"{demo.results.digital:.2f} %" in demo.text
    assert str(demo.results.scores["generic-8bit-noisy"][32]) in demo.text
    assert "\x1b" not in demo.text, "plain text where there is no terminal"
    # Besides the folder that was asked for, no path of this machine.
    assert not re.findall(r"(?<!\S)/\w+/", demo.text.replace(str(demo.out), "OUT"))


def test_the_page_has_both_pictures_and_loads_nothing(demo: Run) -> None:
    pictures = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", demo.html, re.DOTALL)]
    assert [picture.get("aria-label") for picture in pictures] == [
        "test accuracy (%) against programming noise, standard deviation in % of full scale",
        "graph",
    ]
    assert set(re.findall(r"https?://[^\"' <]*", demo.html)) == {"http://www.w3.org/2000/svg"}
    for forbidden in ("<script", "<link", "<img", " src=", "@import", str(Path.cwd())):
        assert forbidden not in demo.html
    assert "residual.conv2" in demo.html and "programming noise" in demo.html


def test_a_terminal_gets_one_progress_bar_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    tiny = Plan(epochs=1, tile_sizes=(32,), seeds=2, sigmas=(0, 0.2))
    monkeypatch.setattr("analogc.compiler.demo.FAST", tiny)
    monkeypatch.setattr("analogc.runtime.progress.MOMENT", -1.0)
    text = io.StringIO()
    run(tmp_path, fast=True, console=Console(file=text, width=120, force_terminal=True))
    assert "training" in text.getvalue() and "measuring" in text.getvalue()
    assert "epoch  1 of" not in text.getvalue()
    assert capsys.readouterr().err == "", "calibrating has no bar beside the demo's"


def test_threads_and_random_state_are_left_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def stop(_: object) -> None:
        seen.append(torch.get_num_threads())
        raise KeyboardInterrupt

    monkeypatch.setattr("analogc.compiler.demo._Demo.run", stop)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
        assert seen == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.get_rng_state(), state)


def test_without_scikit_learn_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(analogc.errors.AnalogcError, match="scikit-learn") as caught:
        run(tmp_path / "out", fast=True, console=Console(file=io.StringIO()))
    assert caught.value.fix == 'pip install "analogc[demo]"'
    assert not (tmp_path / "out").exists()


def test_digits_are_split_without_overlap() -> None:
    digits = load_digits()
    assert digits.train.shape == (1347, 1, 8, 8) and digits.test.shape == (450, 1, 8, 8)
    assert digits.train.min() == -1 and digits.train.max() == 1
    assert torch.bincount(digits.test_labels).min() >= 43
    assert sum(map(len, digits.calibration)) == 256


def test_score_text() -> None:
    assert str(Score((99.111,))) == "99.11"
    assert str(Score((98.0, 99.0))) == "98.50 ± 0.71"


def test_the_full_plan_covers_noise_up_to_20_percent() -> None:
    assert FULL.sigmas[0] == 0 and FULL.sigmas[-1] == 0.2
    assert FULL.tile_sizes == (512, 128, 32)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_numbers(demo: Run, tmp_path: Path) -> None:
    again = run(tmp_path, fast=True, seed=0, console=Console(file=io.StringIO()))
    assert again.digital == demo.results.digital
    assert again.scores == demo.results.scores and again.sweep == demo.results.sweep
