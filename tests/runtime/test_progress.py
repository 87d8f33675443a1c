from __future__ import annotations

import sys
import warnings

import pytest

from analogc.runtime.progress import with_progress


def test_items_pass_silently_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(with_progress(iter(range(5)), "calibrating")) == list(range(5))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("sized", [True, False])
def test_items_pass_with_a_bar_on_a_terminal(
    sized: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("analogc.runtime.progress.MOMENT", -1.0)
    items = list(range(5))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(with_progress(items if sized else iter(items), "calibrating")) == items

    assert capsys.readouterr().out == ""


def test_work_inside_a_bar_shows_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr("analogc.runtime.progress.MOMENT", -1.0)

    # A second live bar would raise.
    found = [list(with_progress(range(n), "inner")) for n in with_progress(range(3), "outer")]

    assert found == [[], [0], [0, 1]]
