"""The arguments of ``compile``: each is checked, each does what it says."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc import Calibration, Converter, ConverterRangeWarning, Target, TileSpec
from analogc.errors import AnalogcError, InputError, UnsupportedError, VerifyError

X = torch.linspace(-1.0, 1.0, 4 * 12).reshape(4, 12)


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 5)).eval()


def ranges(compiled: analogc.CompiledModel) -> dict[str, Tensor]:
    return {n.rpartition(".ranges.")[2]: b for n, b in compiled.named_buffers() if ".ranges." in n}


# -- target ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", analogc.targets.names())
def test_target_by_name_is_the_preset(name: str) -> None:
    compiled = analogc.compile(mlp(), (X,), target=name)
    assert compiled.target == analogc.targets.get(name)
    assert compiled(X).shape == (4, 5)


def test_default_target_is_generic_8bit() -> None:
    assert analogc.compile(mlp(), (X,)).target.name == "generic-8bit"


def test_target_of_ones_own_is_used() -> None:
    target = Target("mine", TileSpec(4, 3), None, Converter(6))
    compiled = analogc.compile(mlp(), (X,), target=target)
    assert compiled.target is target
    assert [t.grid for t in compiled.tiles] == [(3, 3), (3, 2)]
    assert set(ranges(compiled)) == {"0_adc", "2_adc"}


def test_unknown_target_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="no target named 'generic'") as info:
        analogc.compile(mlp(), (X,), target="generic")
    assert "generic-8bit-noisy" in str(info.value.fix)


@pytest.mark.parametrize("target", [None, 8, TileSpec(), {"name": "x"}, Target])
def test_what_is_no_target_is_refused(target: Any) -> None:
    with pytest.raises(InputError, match="target must be"):
        analogc.compile(mlp(), (X,), target=target)


def test_8_bits_are_better_than_4_and_12_better_than_8() -> None:
    model = mlp()
    want = model(X).detach()
    errors = []
    for bits in (4, 8, 12):
        target = Target("t", TileSpec(), Converter(bits), Converter(bits))
        got = analogc.compile(model, (X,), target=target)(X).detach()
        errors.append(float((got - want).norm() / want.norm()))
    assert errors[0] > 4 * errors[1] > 16 * errors[2]


# -- seed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", ["0", 1.0, True, torch.tensor(3)])
def test_seed_must_be_an_int(seed: Any) -> None:
    with pytest.raises(InputError, match="seed must be an int"):
        analogc.compile(mlp(), (X,), seed=seed)


@pytest.mark.parametrize("seed", [0, -1, 2**63, 2**100])
def test_any_int_is_a_seed(seed: int) -> None:
    model = mlp()
    first, second = (
        analogc.compile(model, (X,), target="generic-8bit-noisy", seed=seed) for _ in range(2)
    )
    assert first.seed == seed
    assert torch.equal(first(X), second(X))


# -- passes and check -----------------------------------------------------------------------------


def test_pipeline_in_text_form_is_used() -> None:
    text = "canonicalize,select-analog,derive-weights,map-tiles{split=full},rewrite-analog,verify"
    target = analogc.targets.ideal().replace(tile=TileSpec(5, 5))
    compiled = analogc.compile(mlp(), (X,), target=target, passes=text, check=True)
    assert [step.name for step in compiled.history] == [
        part.partition("{")[0] for part in text.split(",")
    ]
    assert compiled.tiles[0].row_bounds == (0, 5, 10, 12)


def test_pipeline_without_rewriting_leaves_the_model_digital() -> None:
    model = mlp()
    compiled = analogc.compile(model, (X,), passes="canonicalize,select-analog")
    assert torch.equal(compiled(X), model(X))
    assert len(compiled.tiles) == 0
    assert "aten.linear" in compiled.ir()


def test_passes_as_objects_are_used() -> None:
    compiled = analogc.compile(mlp(), (X,), passes=analogc.DEFAULT_PASSES[:1])
    assert len(compiled.history) == 1


@pytest.mark.parametrize("passes", ["canonicalise", "map-tiles{split=odd}", "", [1], "a{b", "{}"])
def test_wrong_pipeline_is_an_input_error(passes: Any) -> None:
    with pytest.raises(InputError):
        analogc.compile(mlp(), (X,), passes=passes)


def test_check_finds_what_a_pass_breaks_and_names_it() -> None:
    from dataclasses import dataclass
    from typing import ClassVar

    from analogc.passes.base import Pass, PassContext, PassResult

    @dataclass(frozen=True, slots=True)
    class Vandal(Pass):
        name: ClassVar[str] = "vandal"

        def __call__(self, module: torch.fx.GraphModule, ctx: PassContext) -> PassResult:
            for node in module.graph.nodes:
                if "relu" in node.name:
                    del node.meta["val"]
            return PassResult(module, True)

    with pytest.raises(VerifyError, match="relu"):
        analogc.compile(mlp(), (X,), passes=(*analogc.DEFAULT_PASSES[:1], Vandal()), check=True)


# -- calibration ----------------------------------------------------------------------------------


def absmax() -> Target:
    return analogc.targets.generic_8bit().replace(calibration=Calibration("absmax"))


def test_ranges_come_from_the_example_inputs_by_default() -> None:
    compiled = analogc.compile(mlp(), (X,), target=absmax())
    assert float(ranges(compiled)["0_input"]) == 1.0
    again = analogc.compile(mlp(), (X * 3,), target=absmax())
    assert float(ranges(again)["0_input"]) == 3.0


def batches() -> Iterator[Tensor]:
    yield X * 2
    yield X * 5


@pytest.mark.parametrize(
    "data",
    [
        [X * 5],
        [X * 2, X * 5],
        ((X * 2,), (X * 5,)),
        [[X * 5]],
        [{"input": X * 5}],
        batches(),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X * 5), batch_size=4),
        (X * factor for factor in (5, 1)),
    ],
    ids=["tensor", "tensors", "tuples", "list", "dict", "generator", "loader", "expression"],
)
def test_ranges_come_from_calibration_data(data: Any) -> None:
    compiled = analogc.compile(mlp(), (X,), target=absmax(), calibration_data=data)
    assert float(ranges(compiled)["0_input"]) == 5.0
    compiled.train()
    compiled.calibrate()
    assert float(ranges(compiled)["0_input"]) == 5.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "empty"),
        (iter([]), "empty"),
        ([X[:, :5]], "shape"),
        ([X, None], "tensor"),
        ([(X, X)], "argument"),
        ([{"x": X}], "argument"),
        (5, "calibration_data"),
        ([torch.ones(4, 12, dtype=torch.int64)], "dtype"),
    ],
)
def test_wrong_calibration_data_is_an_input_error(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        analogc.compile(mlp(), (X,), calibration_data=data)


def test_silent_data_warns_and_names_the_layer() -> None:
    with pytest.warns(UserWarning, match="zero at the input of 0"):
        compiled = analogc.compile(mlp(), (torch.zeros(4, 12),))
    assert torch.isfinite(compiled(X)).all()


def test_calibrate_again_changes_the_ranges_and_says_how_many_batches() -> None:
    compiled = analogc.compile(mlp(), (X,), target=absmax())
    assert compiled.calibrate([X * 4, X]) == 2
    assert float(ranges(compiled)["0_input"]) == 4.0
    assert compiled.calibrate([X * 4], method="percentile", percentile=50.0) == 1
    assert float(ranges(compiled)["0_input"]) < 3.0
    assert compiled.calibrate() == 1
    assert float(ranges(compiled)["0_input"]) == 1.0


@pytest.mark.parametrize("options", [{"method": "max"}, {"percentile": 0.0}, {"percentile": 101}])
def test_wrong_calibration_method_is_an_input_error(options: dict[str, Any]) -> None:
    compiled = analogc.compile(mlp(), (X,))
    with pytest.raises(InputError, match="Calibration"):
        compiled.calibrate([X], **options)


def test_calibration_leaves_random_state_and_weights_alone() -> None:
    model = nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.5), nn.Linear(9, 5)).train()
    compiled = analogc.compile(model, (X,), seed=0)
    state = torch.get_rng_state()
    before = {n: p.clone() for n, p in model.named_parameters()}
    compiled.calibrate([X, X * 2])
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_compile_with_a_seed_leaves_the_random_state_alone() -> None:
    model = nn.Sequential(nn.Linear(12, 9), nn.Dropout(0.5)).train()
    state = torch.get_rng_state()
    analogc.compile(model, (X,), target="generic-8bit-noisy", seed=0).eval()
    assert torch.equal(torch.get_rng_state(), state)


def test_fixed_range_that_wastes_the_converter_is_warned_about_by_layer() -> None:
    target = analogc.targets.generic_8bit().replace(adc=Converter(8, "full"))
    model = nn.Sequential(nn.Linear(512, 4), nn.Linear(4, 2))
    with pytest.warns(ConverterRangeWarning, match=r"0 \(range 512 on 512 rows") as caught:
        analogc.compile(model, (torch.randn(3, 512),), target=target)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with pytest.warns(ConverterRangeWarning, match="clip"):
        narrow = target.replace(adc=Converter(8, 0.01))
        analogc.compile(model, (torch.randn(3, 512),), target=narrow)


# -- the public face ------------------------------------------------------------------------------


def test_every_argument_is_documented() -> None:
    text = inspect.getdoc(analogc.compile) or ""
    for name in inspect.signature(analogc.compile).parameters:
        if name != "example_inputs":
            assert f"{name}:" in text, name


def test_options_are_keywords_only() -> None:
    with pytest.raises(TypeError):
        analogc.compile(mlp(), (X,), None, "ideal")  # type: ignore[call-arg]


def test_everything_in_all_is_there() -> None:
    for name in analogc.__all__:
        assert getattr(analogc, name) is not None


def test_errors_form_one_family() -> None:
    for name in ("FormatError", "InputError", "SyncError", "UnsupportedError", "VerifyError"):
        assert issubclass(getattr(analogc.errors, name), AnalogcError)


def test_compiling_twice_shares_parameters_but_not_tiles() -> None:
    model = mlp()
    first = analogc.compile(model, (X,), seed=0)
    second = analogc.compile(model, (X,), target="ideal")
    assert first.get_parameter("0.weight") is second.get_parameter("0.weight")
    with torch.no_grad():
        model.get_parameter("0.weight").mul_(2)
    first(X), second(X)
    assert first.weights["0"].times_programmed == 2
    assert second.weights["0"].times_programmed <= 1
    torch.testing.assert_close(second(X), model(X), rtol=1e-5, atol=1e-6)


def test_model_on_the_meta_device_compiles_and_maps_without_numbers() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4096, 16384), nn.GELU(), nn.Linear(16384, 4096))
        x = torch.empty(8, 4096)
    compiled = analogc.compile(model, (x,))
    assert compiled.coverage.macs == 2 * 8 * 4096 * 16384
    assert compiled.tiles[0].grid == (8, 32)
    with pytest.raises(UnsupportedError, match="meta"):
        compiled.save("/nowhere")


def test_compile_times_are_told() -> None:
    export, passes = analogc.compile(mlp(), (X,)).compile_seconds
    assert export > 0 and passes > 0
