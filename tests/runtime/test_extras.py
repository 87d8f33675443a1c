import math

import pytest

from analogc.errors import InputError
from analogc.runtime.extras import require


def test_an_installed_module_is_returned() -> None:
    assert require("math", "demo") is math


def test_a_missing_one_names_the_extra() -> None:
    with pytest.raises(InputError, match="needs no_such_package") as caught:
        require("no_such_package.part", "demo")
    assert "pip install 'analogc[demo]'" in str(caught.value)
