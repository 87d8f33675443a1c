"""The native library, with every instruction set that this machine has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from analogc.runtime.native import loader


@pytest.fixture
def native() -> Iterator[loader.Library]:
    lib = loader.library()
    if lib is None:
        pytest.skip("the native library was not built")
    before = lib.isa
    yield lib
    lib.isa = before
