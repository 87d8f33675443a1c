from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import fx, nn

from analogc import Target, TileSpec
from analogc.errors import VerifyError
from analogc.passes.base import META, PassContext
from analogc.passes.verify import verify
from analogc.runtime.spec import LayerSpec
from analogc.runtime.tiles import TileArray

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Lowered

ALL = (
    "inline-regions,canonicalize,fold-batch-norm,select-analog,derive-weights,map-tiles,"
    "rewrite-analog"
)


@pytest.fixture
def legal(lower: Lower) -> Lowered:
    """Two analog layers, a derived weight and a digital node."""
    model = nn.Sequential(nn.Linear(10, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5)).eval()
    lowered = lower(model, torch.randn(3, 10), target=Target(tile=TileSpec(4, 4)))
    lowered.run(ALL)
    return lowered


def node(lowered: Lowered, name: str) -> fx.Node:
    found: list[fx.Node] = [n for n in lowered.module.graph.nodes if n.name == name]
    assert len(found) == 1
    return found[0]


def remap(**changes: Any) -> Callable[[Lowered], None]:
    """Change the mapping of the first layer."""

    def change(lowered: Lowered) -> None:
        at = node(lowered, "linear")
        at.meta[META] = dataclasses.replace(at.meta[META], **changes)

    return change


def respec(rows: tuple[int, ...]) -> Callable[[Lowered], None]:
    def change(lowered: Lowered) -> None:
        at = node(lowered, "linear")
        at.args = (*at.args[:-2], LayerSpec.of(Target(), rows).to_text(), at.args[-1])

    return change


def drop_value(lowered: Lowered) -> None:
    del node(lowered, "relu").meta["val"]


def drop_mapping(lowered: Lowered) -> None:
    del node(lowered, "linear").meta[META]


def wrong_mapping_type(lowered: Lowered) -> None:
    node(lowered, "linear").meta[META] = {"rows": 10}


def wrong_shape(lowered: Lowered) -> None:
    at = node(lowered, "linear")
    at.meta["val"] = at.meta["val"][:, :2]


def wrong_dtype(lowered: Lowered) -> None:
    at = node(lowered, "linear")
    at.meta["val"] = at.meta["val"].double()


def missing_parameter(lowered: Lowered) -> None:
    for each in lowered.module.graph.nodes:
        if each.op == "get_attr" and each.target == "3.weight":
            each.target = "3.wait"


def missing_module(lowered: Lowered) -> None:
    node(lowered, "derived_0_weight").target = "_analog.derived.nowhere"


def foreign_array(lowered: Lowered) -> None:
    at = node(lowered, "linear")
    at.args = (*at.args[:-1], node(lowered, "linear_1").args[-1])


def lost_array(lowered: Lowered) -> None:
    del lowered.ctx.arrays["0"]


def other_array_object(lowered: Lowered) -> None:
    old = lowered.ctx.arrays["0"]
    lowered.ctx.arrays["0"] = TileArray("0", "elsewhere/0", old.spec, old.noise)


def use_before_definition(lowered: Lowered) -> None:
    relu, linear = node(lowered, "relu"), node(lowered, "linear")
    linear.append(linear.next)
    relu.append(linear)


def no_operator(lowered: Lowered) -> None:
    node(lowered, "relu").target = "relu"


def swap_weight(lowered: Lowered) -> None:
    node(lowered, "linear").update_arg(1, node(lowered, "linear_1").args[1])


def no_weight(lowered: Lowered) -> None:
    node(lowered, "linear").update_arg(1, None)


def shared_tile(lowered: Lowered) -> None:
    at = node(lowered, "linear_1")
    at.meta[META] = dataclasses.replace(at.meta[META], first_tile=5)


BROKEN: dict[str, tuple[Callable[[Lowered], None], str]] = {
    "no value": (drop_value, "%relu .* has no fake tensor"),
    "no mapping": (drop_mapping, "%linear .* is analog but has no TileMapping"),
    "mapping of another type": (wrong_mapping_type, "%linear .* has no TileMapping"),
    "shape": (wrong_shape, r"%linear .* computes torch.float32 \(3, 6\) but its meta says"),
    "dtype": (wrong_dtype, "%linear .* but its meta says torch.float64"),
    "missing parameter": (missing_parameter, "'3.wait', which the model does not have"),
    "missing module": (missing_module, "%derived_0_weight .* which the model does not have"),
    "array of another layer": (foreign_array, "%linear .* tile array that is not that of '0'"),
    "no array": (lost_array, "%linear .* tile array that is not that of '0'"),
    "array with another key": (other_array_object, "%linear .* tile array that is not that"),
    "order": (use_before_definition, "not well formed"),
    "no operator": (no_operator, "%relu .* does not call an operator"),
    "weight shape": (swap_weight, r"%linear .* maps a weight of \(6, 10\) but has one of \(5, 6\)"),
    "no weight": (no_weight, "%linear .* has no weight operand"),
    "mapped weight shape": (remap(weight_shape=(10, 6)), r"%linear .* maps a weight of \(10, 6\)"),
    "spec and mapping": (respec((0, 5, 10)), r"%linear .* runs row blocks \(0, 5, 10\) but maps"),
    "columns not covered": (remap(col_bounds=(0, 3, 5)), "%linear .* column blocks .* not cover 6"),
    "columns do not start": (remap(col_bounds=(1, 3, 6)), "%linear .* column blocks .* not cover"),
    "columns too wide": (remap(col_bounds=(0, 6)), "%linear .* column block of more than 4"),
    "columns fall": (remap(col_bounds=(0, 4, 3, 6)), "%linear .* column block of more than 4"),
    "rows too long": (remap(tile_rows=3), "%linear .* row block of more than 3"),
    "columns per weight": (remap(columns_per_weight=2), "%linear .* column block of more than 2"),
    "rows not covered": (remap(in_features=11), "%linear .* row blocks .* do not cover 11"),
    "tiles of two arrays": (shared_tile, "tile arrays '0' and '3' share tile 5"),
}


def test_a_legal_graph_passes_and_is_left_alone(legal: Lowered) -> None:
    before, code = legal.ir, legal.module.code

    assert legal.run("verify") is False
    assert (legal.ir, legal.module.code) == (before, code)


@pytest.mark.parametrize("rule", BROKEN)
def test_every_broken_rule_is_found_and_names_the_node(rule: str, legal: Lowered) -> None:
    change, message = BROKEN[rule]
    change(legal)

    with pytest.raises(VerifyError, match=message):
        verify(legal.module.graph, legal.ctx)


def test_two_uses_of_an_array_must_agree_on_its_tiles(lower: Lower) -> None:
    fc = nn.Linear(4, 4)
    lowered = lower(nn.Sequential(fc, fc), torch.randn(3, 4))
    lowered.run(ALL)
    second = node(lowered, "linear_1")
    second.meta[META] = dataclasses.replace(second.meta[META], first_tile=9)

    with pytest.raises(VerifyError, match="%linear_1 .* uses other tiles than array '0' has"):
        verify(lowered.module.graph, lowered.ctx)


def test_the_error_points_at_the_users_line(legal: Lowered) -> None:
    at = node(legal, "linear")
    at.meta["stack_trace"] = '  File "/home/me/net.py", line 7, in forward\n    y = self.fc(x)\n'
    drop_mapping(legal)

    with pytest.raises(VerifyError) as caught:
        verify(legal.module.graph, legal.ctx)

    assert caught.value.where == "/home/me/net.py:7"


def test_a_symbolic_batch_is_verified_too(lower: Lower) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    lowered = lower(model, torch.randn(2, 2, 5, 5), dynamic_shapes="batch")

    lowered.run(ALL, "verify")

    wrong = node(lowered, "linear")
    wrong.meta["val"] = wrong.meta["val"][1:]
    with pytest.raises(VerifyError, match="%linear"):
        verify(lowered.module.graph, lowered.ctx)


def test_unknown_attributes_of_the_root_are_found_without_running(legal: Lowered) -> None:
    context = PassContext(target=legal.ctx.target, root=nn.Module(), arrays=legal.ctx.arrays)

    with pytest.raises(VerifyError, match="which the model does not have"):
        verify(legal.module.graph, context)
