"""``capture=SymbolicTrace(...)``: torch.fx first, with leaves that it does not look into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.errors import InputError, UnsupportedError

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))


def pad_to_even(x: Tensor) -> Tensor:
    """Python control flow on a size, as in timm's padding: fx cannot trace it."""
    if x.shape[-1] % 2:
        return nn.functional.pad(x, (0, 1))
    return x


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2:
            raise ValueError("two dims, please")
        out: Tensor = self.inner(x)
        return out


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(Odd(), nn.ReLU(inplace=True))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(pad_to_even(self.body(x)))
        return out


@pytest.mark.parametrize("leaf", [Odd, "body.0", "*.0"])
def test_leaves_make_a_model_traceable_and_still_go_analog(leaf: Any) -> None:
    model = Net().eval()
    how = analogc.SymbolicTrace(leaf_modules=[leaf], autowrap_functions=[pad_to_even])
    compiled = analogc.compile(model, (X,), target="ideal", capture=how, dynamic_shapes="batch")
    assert [row.reason for row in compiled.coverage.analog] == ["body.0.inner", "head"]
    for x in (X, torch.randn(5, 8)):
        torch.testing.assert_close(compiled(x), model(x))
    assert list(compiled.state_dict()) == list(model.state_dict())
    with torch.no_grad():
        model.head.weight.mul_(2)
    torch.testing.assert_close(compiled(X), model(X))


@pytest.mark.parametrize(
    "how",
    [
        "symbolic_trace",
        analogc.SymbolicTrace(leaf_modules=[Odd]),
        analogc.SymbolicTrace(autowrap_functions=[pad_to_even]),
    ],
)
def test_what_fx_cannot_trace_says_how(how: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.fx could not trace Net") as info:
        analogc.compile(Net(), (X,), capture=how)
    assert "test_symbolic_trace.py" in str(info.value.where)
    assert "leaf_modules" in str(info.value.fix)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"leaf_modules": "body"}, "must be a sequence"),
        ({"leaf_modules": [3]}, "subclass of nn.Module or a path"),
        ({"leaf_modules": [nn.ReLU()]}, "subclass of nn.Module or a path"),
        ({"autowrap_functions": pad_to_even}, "must be a sequence"),
        ({"autowrap_functions": ["f"]}, "no function"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        analogc.SymbolicTrace(**options)
