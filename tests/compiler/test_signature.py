"""A call that does not fit is refused before it runs: the error names the input and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.errors import InputError

X = torch.linspace(-1.0, 1.0, 18).reshape(3, 6)


@dataclass
class Batch:
    x: Tensor
    mask: Tensor | None = None


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(
        self,
        x: Tensor,
        state: dict[str, Tensor] | None = None,
        *,
        steps: int = 1,
        mode: str = "sum",
        shift: Tensor | None = None,
    ) -> Tensor:
        out: Tensor = self.layer(x) * steps
        if state is not None:
            out = out + state["h"] - state["c"]
        if shift is not None:
            out = out + shift
        return out if mode == "sum" else -out


class OnTokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(9, 6), nn.Linear(6, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.layer(self.embed(tokens))
        return out


class OnBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, batch: Batch) -> Tensor:
        out: Tensor = self.layer(batch.x)
        return out if batch.mask is None else out * batch.mask


def plain(**options: Any) -> analogc.CompiledModel:
    return analogc.compile(Model(), (X,), **options)


def stateful() -> analogc.CompiledModel:
    return analogc.compile(Model(), (X, {"h": X, "c": X}))


@pytest.mark.parametrize(
    ("x", "message", "fix"),
    [
        (X[:, :5], r"'x' has shape \[3, 5\], but the graph was captured for \[3, 6\]", "shape"),
        (X[:2], r"'x' has shape \[2, 6\]", "dynamic_shapes='batch'"),
        (X[0], r"'x' has shape \[6\]", "shape"),
        (X[None], r"'x' has shape \[1, 3, 6\]", "shape"),
        (X.long(), r"'x' has dtype torch.int64", r".to(torch.float32)"),
        (X > 0, r"'x' has dtype torch.bool", r".to(torch.float32)"),
        (None, "'x' must be a tensor, got NoneType", None),
        (X.tolist(), "not structured as at compile time|'x' must be a tensor, got list", None),
        (X.numpy(), "'x' must be a tensor, got ndarray", None),
        (np.float32(3), "'x' must be a tensor, got float32", None),
    ],
)
@pytest.mark.parametrize("by_keyword", [False, True])
def test_input_that_does_not_fit_is_named_with_a_fix(
    x: Any, message: str, fix: str | None, by_keyword: bool
) -> None:
    compiled = plain()
    with pytest.raises(InputError, match=message) as info:
        compiled(x=x) if by_keyword else compiled(x)
    if fix is not None:
        assert info.value.fix is not None and fix in info.value.fix


def test_integer_inputs_must_stay_integer() -> None:
    compiled = analogc.compile(OnTokens(), (torch.tensor([[1, 2]]),))
    with pytest.raises(InputError, match="'tokens' has dtype torch.float32") as info:
        compiled(torch.tensor([[1.0, 2.0]]))
    assert "torch.int64" in str(info.value.fix)
    assert compiled(torch.tensor([[3, 4]], dtype=torch.int32)).shape == (1, 2, 2)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((X, None, X), {}),
        ((X, {"h": X, "c": X}), {}),
        ((X,), {"shift": X}),
        ((X,), {"nonsense": X}),
        ((X,), {"x": X}),
        ((), {"shift": X}),
    ],
    ids=["nothing", "too many", "more than compiled", "new keyword", "unknown", "twice", "missing"],
)
def test_wrong_set_of_arguments_is_an_input_error(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    with pytest.raises(InputError):
        plain()(*args, **kwargs)


def test_argument_that_was_not_given_at_compile_time_says_how_to_compile_with_it() -> None:
    with pytest.raises(InputError, match="'shift' was not given") as info:
        plain()(X, shift=X)
    assert "kwargs={'shift': ...}" in str(info.value.fix)


@pytest.mark.parametrize(("name", "value"), [("steps", 2), ("mode", "mean"), ("steps", True)])
def test_constants_other_than_the_captured_ones_are_refused(name: str, value: Any) -> None:
    given: Any = {"steps": 1, "mode": "sum"}
    compiled = analogc.compile(Model(), (X,), given)
    assert compiled(X, **given).shape == (3, 6)
    with pytest.raises(InputError, match=f"'{name}' is {value!r}") as info:
        compiled(X, **{**given, name: value})
    assert "compile once more" in str(info.value.fix)
    defaults = plain()
    with pytest.raises(InputError, match=f"'{name}'"):
        defaults(X, **{name: value})


@pytest.mark.parametrize(
    "state",
    [None, {}, {"h": X}, {"h": X, "c": X, "d": X}, {"h": X, "k": X}, [X, X], X],
    ids=["None", "empty", "key missing", "key too many", "other key", "list", "tensor"],
)
def test_structure_other_than_the_captured_one_is_refused(state: Any) -> None:
    with pytest.raises(InputError):
        stateful()(X, state)


def test_order_of_dict_keys_does_not_matter() -> None:
    compiled = stateful()
    h, c = X + 1, X * 2
    want = compiled(X, {"h": h, "c": c})
    assert torch.equal(compiled(X, {"c": c, "h": h}), want)


def test_nested_input_is_named_by_its_path() -> None:
    with pytest.raises(InputError, match=r"input '\w*state\w*c\w*' has shape \[3, 5\]"):
        stateful()(X, {"h": X, "c": X[:, :5]})


def test_single_tensor_in_a_container_is_not_taken_for_the_container() -> None:
    class OnDict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 6)

        def forward(self, inputs: dict[str, Tensor]) -> Tensor:
            out: Tensor = self.layer(inputs["x"])
            return out

    model = OnDict()
    compiled = analogc.compile(model, ({"x": X},), target="ideal")
    torch.testing.assert_close(compiled({"x": X}), model({"x": X}))
    with pytest.raises(InputError):
        compiled(X)


def test_dataclass_with_another_set_of_values_is_refused() -> None:
    compiled = analogc.compile(OnBatch(), (Batch(X),))
    assert compiled(Batch(X)).shape == (3, 6)
    with pytest.raises(InputError):
        compiled(Batch(X, X))
    with pytest.raises(InputError):
        compiled(X)


def test_dynamic_sizes_show_as_any_in_the_message() -> None:
    compiled = plain(dynamic_shapes="batch")
    assert compiled(X[:1]).shape == (1, 6)
    with pytest.raises(InputError, match=r"captured for \[any, 6\]"):
        compiled(X[:, :4])


def test_errors_are_value_errors_too() -> None:
    with pytest.raises(ValueError):
        plain()(X[:2])


def test_refused_call_leaves_the_model_usable() -> None:
    compiled = plain(seed=0)
    want = compiled(X)
    with pytest.raises(InputError):
        compiled(X[:, :5])
    assert torch.equal(compiled(X), want)
