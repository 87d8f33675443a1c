from __future__ import annotations

import pickle

import pytest

from analogc import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_an_analogc_error(name: str) -> None:
    assert issubclass(getattr(errors, name), errors.AnalogcError)


def test_message_place_and_fix_are_lines_of_the_text() -> None:
    error = errors.UnsupportedError("no such thing", where="net.py:3", fix="do another")

    assert str(error) == "no such thing\n  at:  net.py:3\n  fix: do another"
    assert (error.message, error.where, error.fix) == ("no such thing", "net.py:3", "do another")


def test_place_and_fix_are_optional() -> None:
    assert str(errors.SyncError("stale")) == "stale"


def test_input_error_is_a_value_error() -> None:
    with pytest.raises(ValueError):
        raise errors.InputError("wrong")


def test_errors_survive_pickling() -> None:
    error = pickle.loads(pickle.dumps(errors.FormatError("bad file", fix="get it again")))

    assert str(error) == "bad file\n  fix: get it again"
