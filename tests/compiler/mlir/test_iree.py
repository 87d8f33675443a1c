"""Level linalg by IREE, where it is installed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("torch_mlir")
pytest.importorskip("iree.compiler")
pytest.importorskip("iree.runtime")

from .test_run import MODELS, TARGETS, compiled_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("target", ["8bit", "devices"])
@pytest.mark.parametrize("model", MODELS)
def test_iree_gives_the_models_numbers(model: str, target: str) -> None:
    compiled, x = compiled_of(MODELS[model], target=TARGETS[target])
    with torch.no_grad():
        want = compiled(x)

    got = compiled.run_mlir(x, engine="iree")

    # Another order of sums may move a value by a step of an ADC.
    step = 0.02 * float(want.abs().max())
    torch.testing.assert_close(got, want, rtol=0, atol=step)
    assert float(((got - want).abs() > 1e-5).float().mean()) < 0.05


def test_weights_are_live_and_batches_vary() -> None:
    compiled, x = compiled_of(MODELS["mlp"], dynamic_shapes="batch")
    for rows in (2, 6):
        compiled.get_parameter("0.weight").data.mul_(0.9)
        given: Any = x[:rows]
        with torch.no_grad():
            want = compiled(given)
        got = compiled.run_mlir(given, engine="iree")
        torch.testing.assert_close(got, want, rtol=0, atol=0.02 * float(want.abs().max()))
