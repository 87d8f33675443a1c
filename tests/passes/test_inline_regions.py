from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_over

from analogc import targets
from analogc.passes.base import FROM, module_path

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make

REGION = "wrap_with_set_grad_enabled"


def frozen_then_trained(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        features = m.first(x).relu()
    y: Tensor = m.second(features)
    return y


def two_results(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        a, b = m.first(x), x * 2
    y: Tensor = m.second(a) + b.sum()
    return y


def nested(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        a = m.first(x)
        with torch.enable_grad():
            b = m.second(a)
        c = b + 1
    y: Tensor = c + m.second(x)
    return y


def after_each_other(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        a = m.first(x)
    b = m.second(a)
    with torch.no_grad():
        c = m.first(b)
    y: Tensor = m.second(c)
    return y


MODELS = [frozen_then_trained, two_results, nested, after_each_other]


@pytest.mark.parametrize("function", MODELS)
def test_regions_are_inlined_with_the_same_numbers_and_gradients(
    function: Any, lower: Lower, make: Make
) -> None:
    model = make(function, first=nn.Linear(4, 4), second=nn.Linear(4, 4)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    lowered = lower(model, x)
    assert any(REGION in op for op in lowered.ops)

    assert lowered.run("inline-regions") is True

    assert not any(REGION in op for op in lowered.ops)
    found, expected = lowered(x), model(x)
    assert torch.equal(found, expected)
    parameters, grad = list(model.parameters()), torch.randn_like(expected)
    ours, theirs = (
        torch.autograd.grad(y, parameters, grad, allow_unused=True) for y in (found, expected)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b)


def test_what_a_region_with_gradients_returns_is_not_detached(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y: Tensor = m.fc(x)
        return y * 2

    model, x = make(run, fc=nn.Linear(4, 5)), torch.randn(3, 4)
    with torch.no_grad():
        lowered = lower(model, x)
    assert any(REGION in op for op in lowered.ops)

    lowered.run("inline-regions")

    assert lowered.counts["aten.detach"] == 0
    assert lowered(x).requires_grad


def test_printed_form(lower: Lower, make: Make) -> None:
    model = make(frozen_then_trained, first=nn.Linear(4, 4), second=nn.Linear(4, 5))
    lowered = lower(model, torch.randn(3, 4))

    lowered.run("inline-regions")

    assert lowered.ops == ["aten.linear", "aten.relu", "aten.detach", "aten.linear"]
    first, _ = lowered.nodes("aten.linear")
    assert module_path(first) == "first"
    assert first.meta[FROM][0][0] == "inline-regions"


def test_layers_inside_go_to_the_tiles(lower: Lower, make: Make) -> None:
    model = make(frozen_then_trained, first=nn.Linear(4, 4), second=nn.Linear(4, 5))
    lowered = lower(model, torch.randn(3, 4))

    lowered.run(
        "inline-regions,canonicalize,select-analog,derive-weights,map-tiles,rewrite-analog,verify"
    )

    assert lowered.counts["analogc.linear"] == 2


def test_a_graph_without_regions_is_left_alone(lower: Lower) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4))
    before = lowered.ir

    assert lowered.run("inline-regions") is False
    assert lowered.ir == before


def test_an_autocast_region_is_marked_and_keeps_its_dtypes(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = m.fc(x)
            with torch.autocast("cpu", enabled=False):
                y = m.fc(y.float())
        out: Tensor = m.fc(y)
        return out

    model, x = make(run, fc=nn.Linear(4, 4)), torch.randn(3, 4)
    lowered = lower(model, x)

    assert lowered.run("inline-regions") is True

    assert "wrap_with_autocast" not in lowered.counts
    dtypes = [node.meta["val"].dtype for node in lowered.nodes("aten.linear")]
    assert dtypes == [torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(lowered(x), model(x))


def test_a_block_that_only_writes_is_kept(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            m.seen.add_(1)
        y: Tensor = x @ m.w
        return y

    model = make(run, w=torch.randn(4, 4), seen=torch.zeros((), dtype=torch.long))
    lowered = lower(model, torch.randn(3, 4))
    lowered.run("inline-regions")
    lowered(torch.randn(3, 4))
    assert int(model.seen) == 1  # type: ignore[arg-type]


def test_steps_of_a_loop_share_an_array_and_its_ranges(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y: Tensor = map_over(lambda row: m.fc(row) + m.fc(row.sin()), x)  # type: ignore[arg-type, misc]
        return y

    model, x = make(run, fc=nn.Linear(4, 4)), torch.randn(3, 4)
    lowered = lower(model, x, target=targets.generic_8bit())
    lowered.run(
        "inline-regions,canonicalize,select-analog,derive-weights,map-tiles,rewrite-analog,verify"
    )
    layers = lowered.nodes("analogc.linear")
    assert len(layers) == 6
    assert len({node.args[-1] for node in layers}) == 1
    # Two places in the body, whatever the number of steps.
    assert len({str(node.args[3].target) for node in layers}) == 2
