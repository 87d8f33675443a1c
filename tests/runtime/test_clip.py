from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from analogc import Target, WeightClip
from analogc.errors import InputError
from analogc.runtime import tiles
from analogc.runtime.noise import NoiseKey
from analogc.runtime.spec import LayerSpec

KEY = NoiseKey(0, "program/fc", 0)


@pytest.mark.parametrize("per_column", [True, False])
@pytest.mark.parametrize(
    ("kind", "value"), [("fixed", 0.7), ("sigma", 1.5), ("percentile", 93.0), ("percentile", 100)]
)
def test_clipping_equals_numpy(kind: Any, value: float, per_column: bool) -> None:
    weight = torch.randn(5, 41, dtype=torch.float64)

    found = WeightClip(kind, value).apply(weight, per_column)

    groups = weight.numpy() if per_column else weight.numpy().reshape(1, -1)
    bound: Any = value
    if kind == "sigma":
        bound = value * groups.std(axis=1, keepdims=True)
    if kind == "percentile":
        bound = np.percentile(np.abs(groups), value, axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), np.clip(weight.numpy(), -bound, bound), rtol=1e-12)


def test_what_is_clipped_is_full_scale() -> None:
    weight = torch.randn(6, 200)
    weight[2] = 0
    weight[3] = 0.5
    spec = LayerSpec((0, 200), weight_clip=WeightClip("sigma", 2.0))

    held = tiles.program(weight, spec, KEY)

    assert held.scale.tolist()[2:4] == [1.0, 0.5]  # no spread: nothing to clip
    busy = [0, 1, 4, 5]
    torch.testing.assert_close(held.scale[busy], 2 * weight[busy].std(1, correction=0))
    full = (held.blocks[0].abs() == 1).sum(1)
    assert (full[busy] > 1).all()


def test_an_empty_weight_is_left_alone() -> None:
    for kind in ("fixed", "sigma", "percentile"):
        assert WeightClip(kind, 1.0).apply(torch.empty(0, 3), True).shape == (0, 3)


@pytest.mark.parametrize(
    "fields", [("most", 1.0), ("sigma", 0.0), ("sigma", None), ("percentile", 101)]
)
def test_settings_that_make_no_sense_are_refused(fields: Any) -> None:
    with pytest.raises(InputError, match="WeightClip"):
        WeightClip(*fields)
    target = Target(weight_clip=WeightClip("percentile", 99.5))
    assert Target.from_json(target.to_json()) == target
