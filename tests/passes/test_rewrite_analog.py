from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from analogc import Converter, GaussianDevice, Target, TileMapping, TileSpec, targets
from analogc.passes.base import FROM, META, module_path, source_name
from analogc.runtime.mapping import Digital
from analogc.runtime.spec import LayerSpec, parse

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make

BEFORE = "inline-regions,canonicalize,fold-batch-norm,select-analog,derive-weights,map-tiles"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding="same", groups=2)
        self.bn = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn(self.conv(x))) + x.mean(1, keepdim=True)
        z: Tensor = self.head(y.mean((2, 3)))
        return z


X = torch.randn(2, 4, 7, 6, dtype=torch.float64)
SMALL = TileSpec(7, 4)


def test_printed_form(lower: Lower) -> None:
    model = nn.Sequential(nn.Conv1d(4, 6, 3, 2, 1, 2, 2), nn.Flatten(), nn.Linear(24, 5))
    lowered = lower(model, torch.randn(2, 4, 9))
    lowered.run(BEFORE)

    assert lowered.run("rewrite-analog") is True

    assert lowered.ir.splitlines() == [
        "%input_1: f32[2, 4, 9] = input",
        "%conv1d: f32[2, 6, 4] = analogc.conv1d(%input_1, @0.weight, @0.bias, stride=[2], "
        "padding=[1], dilation=[2], groups=2) "
        "{2x1x1 of 512x512, rows 6, cols 3, t0..t1, 0.0 % used}",
        "%flatten: f32[2, 24] = aten.flatten.using_ints(%conv1d, 1)",
        "%linear: f32[2, 5] = analogc.linear(%flatten, @2.weight, @2.bias) "
        "{1x1 of 512x512, rows 24, cols 5, t2, 0.0 % used}",
        "output = (%linear)",
    ]


@pytest.mark.parametrize("tile", [TileSpec(512, 512), SMALL, TileSpec(1, 1), TileSpec(9, 6)])
def test_ideal_tiles_compute_the_model_and_its_gradients(tile: TileSpec, lower: Lower) -> None:
    model = Net().double().eval()
    lowered = lower(model, X, target=targets.ideal().replace(tile=tile))
    lowered.run(BEFORE, "rewrite-analog")

    found, expected = lowered(X), model(X)

    assert {"analogc.conv2d", "analogc.linear"} <= set(lowered.ops)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters, grad = list(model.parameters()), torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, parameters, grad),
        torch.autograd.grad(expected, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dac", [None, Converter(12), Converter(12, "dynamic")])
@pytest.mark.parametrize("adc", [None, Converter(12), Converter(12, per_column=True)])
@pytest.mark.parametrize("tile", [TileSpec(512, 512), SMALL])
def test_many_bits_come_near_the_model(
    tile: TileSpec, adc: Converter | None, dac: Converter | None, lower: Lower
) -> None:
    model = Net().double().eval()
    lowered = lower(model, X, target=Target(tile=tile, dac=dac, adc=adc))
    lowered.run(BEFORE, "rewrite-analog")
    lowered.calibrate(X)

    with torch.no_grad():
        found, expected = lowered(X), model(X)

    assert float((found - expected).norm() / expected.norm()) < 0.01


def test_nothing_mapped_is_nothing_rewritten(lower: Lower) -> None:
    lowered = lower(Net().eval(), X.float())
    lowered.ctx.select = lambda info: False
    lowered.run(BEFORE)
    before = lowered.ir

    assert lowered.run("rewrite-analog") is False
    assert lowered.ir == before
    assert lowered.ctx.arrays == {}
    assert isinstance(lowered.record("aten.linear"), Digital)


def test_settings_and_ranges_are_operands(lower: Lower) -> None:
    target = Target(
        tile=TileSpec(4, 8), dac=Converter(6), adc=Converter(7, per_column=True),
        weight_scale="tensor", device=GaussianDevice(0.1), output_noise=0.2,
    )  # fmt: skip
    lowered = lower(nn.Linear(10, 5), torch.randn(3, 10), target=target)
    lowered.run(BEFORE, "rewrite-analog")

    (node,) = lowered.nodes("analogc.linear")
    _, weight, bias, input_range, adc_range, spec, key = node.args
    assert [str(n.target) for n in (weight, bias, input_range, adc_range)] == [
        "weight", "bias", "_analog.ranges.weight_input", "_analog.ranges.weight_adc",
    ]  # fmt: skip
    assert parse(str(spec)) == LayerSpec.of(target, (0, 3, 6, 10))
    table = lowered.ctx.root.get_submodule("_analog.ranges")
    assert table.get_buffer("weight_input").shape == (3,)
    assert table.get_buffer("weight_adc").shape == (3, 5)
    assert tuple(adc_range.meta["val"].shape) == (3, 5)
    array = lowered.ctx.arrays["weight"]
    assert (array.key, array.spec) == (key, parse(str(spec)))


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"dac": None, "adc": None}, (True, True)),
        ({"dac": Converter(8, "dynamic"), "adc": None}, (True, True)),
        ({"dac": Converter(8, 1.0), "adc": None}, (False, True)),
        ({"dac": None, "adc": Converter(8, "full")}, (True, False)),
    ],
)
def test_ranges_are_there_only_where_there_is_one(
    changes: dict[str, Any], missing: tuple[bool, bool], lower: Lower
) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4), target=Target(**changes))
    lowered.run(BEFORE, "rewrite-analog")

    (node,) = lowered.nodes("analogc.linear")
    assert tuple(value is None for value in node.args[3:5]) == missing


def test_uses_of_one_weight_share_an_array_but_not_their_ranges(lower: Lower) -> None:
    fc = nn.Linear(4, 4)
    lowered = lower(nn.Sequential(fc, nn.Tanh(), fc), torch.randn(3, 4), target=Target())
    lowered.run(BEFORE, "rewrite-analog")

    first, second = lowered.nodes("analogc.linear")
    assert first.args[-1] == second.args[-1]
    assert list(lowered.ctx.arrays) == ["0"]
    names = [str(n.args[3].target) for n in (first, second)]
    assert names == ["_analog.ranges.0_input", "_analog.ranges.0_2_input"]

    lowered.calibrate(torch.randn(3, 4))
    lowered(torch.randn(3, 4))
    assert lowered.ctx.arrays["0"].times_programmed == 1


def test_the_other_graph_of_a_model_uses_the_same_arrays_and_ranges(lower: Lower) -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)), torch.randn(3, 4)
    first = lower(model.eval(), x, target=Target())
    first.run(BEFORE, "rewrite-analog")
    first.calibrate(x)
    array = first.ctx.arrays["0"]
    first.ctx.root.train()
    second = lower(model, x, like=first)
    second.run(BEFORE, "rewrite-analog")

    assert first.ctx.arrays == {"0": array}
    (a,), (b,) = first.nodes("analogc.linear"), second.nodes("analogc.linear")
    assert a.args[-1] == b.args[-1]
    assert [str(n.target) for n in a.args[3:5]] == [str(n.target) for n in b.args[3:5]]
    assert not bool(first.ctx.root.get_buffer("_analog.ranges.0_input").isnan().any())


def test_rewritten_nodes_keep_name_place_mapping_and_provenance(lower: Lower, make: Make) -> None:
    lowered = lower(Net().eval(), X.float(), target=targets.generic_8bit())
    lowered.run(BEFORE, "rewrite-analog")

    (conv,), (linear,) = lowered.nodes("analogc.conv2d"), lowered.nodes("analogc.linear")
    assert (conv.name, linear.name) == ("conv2d", "linear")
    assert (module_path(conv), module_path(linear)) == ("conv", "head")
    assert isinstance(conv.meta[META], TileMapping)
    assert [step for step, _ in conv.meta[FROM]] == [
        "canonicalize", "fold-batch-norm", "rewrite-analog",
    ]  # fmt: skip
    assert source_name(conv) == conv.meta[META].source == "conv2d"


def test_symbolic_batches_stay_symbolic(lower: Lower) -> None:
    lowered = lower(nn.Linear(4, 5), torch.randn(3, 4), dynamic_shapes="batch")
    lowered.run(BEFORE, "rewrite-analog")

    (node,) = lowered.nodes("analogc.linear")
    assert isinstance(node.meta["val"].shape[0], torch.SymInt)
    assert lowered(torch.randn(9, 4)).shape == (9, 5)


def test_parameters_are_the_models_own(lower: Lower) -> None:
    model = Net().eval()
    lowered = lower(model, X.float())
    lowered.run(BEFORE, "rewrite-analog")

    found = dict(lowered.ctx.root.named_parameters())
    assert all(found[name] is value for name, value in model.named_parameters())
    assert lowered.ctx.root.state_dict().keys() == model.state_dict().keys()


def test_ranges_of_different_layers_have_different_names(lower: Lower, make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, m.W)
        z: Tensor = torch.nn.functional.linear(y, m.W.t()) + m.a(x) + m.a_b(x)
        return torch.nn.functional.linear(z, m.W)

    # As names of buffers, W~2 and W@2 are the same, and a.b and a_b.
    inner = nn.Sequential()
    inner.b = nn.Linear(4, 4)
    inner.forward = inner.b.forward  # type: ignore[method-assign]
    model = make(run, W=torch.randn(5, 4), a=inner, a_b=nn.Linear(4, 4))
    lowered = lower(model, torch.randn(3, 4), target=targets.generic_8bit())
    lowered.run(BEFORE, "rewrite-analog")

    arrays = {(n.meta[META].layer): n.args[3].target for n in lowered.nodes("analogc.linear")}
    assert set(arrays) == {"W", "W~2", "a.b", "a_b", "W@2"}
    assert len(set(arrays.values())) == 5
