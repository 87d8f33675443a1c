from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from analogc import targets
from analogc.passes.base import FROM, module_path

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make

CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INPUTS = {0: (5, 4), 1: (3, 4, 9), 2: (3, 4, 7, 6), 3: (2, 4, 4, 5, 6)}
BEFORE = "inline-regions,canonicalize"


@pytest.fixture
def lower(lower: Lower) -> Lower:
    """For a target that folds: an ideal one keeps its batch norms."""
    return partial(lower, target=targets.generic_8bit())


def trained(norm: Any) -> Any:
    """With statistics and a scale as after training."""
    with torch.no_grad():
        if norm.running_mean is not None:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
        if norm.weight is not None:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm


def layer(dims: int, bias: bool = True, **options: Any) -> nn.Module:
    if dims == 0:
        return nn.Linear(4, 6, bias=bias)
    conv: nn.Module = CONVS[dims](4, 6, 3, bias=bias, **options)
    return conv


def pair(dims: int, bias: bool = True, affine: bool = True, **options: Any) -> nn.Sequential:
    norm = trained(NORMS[dims](6, affine=affine))
    return nn.Sequential(layer(dims, bias, **options), norm).double().eval()


def assert_same(found: Tensor, expected: Tensor, model: nn.Module) -> None:
    """Equal outputs, and equal gradients of all parameters, to float64 rounding."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    parameters, grad = list(model.parameters()), torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(found, parameters, grad),
        torch.autograd.grad(expected, parameters, grad),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_folding_keeps_outputs_and_gradients(
    dims: int, bias: bool, affine: bool, lower: Lower
) -> None:
    model, x = pair(dims, bias, affine), torch.randn(INPUTS[dims]).double()
    lowered = lower(model, x)
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is True

    assert lowered.counts["aten.batch_norm"] == 0
    assert lowered.counts["aten.linear" if dims == 0 else f"aten.conv{dims}d"] == 1
    assert_same(lowered(x), model(x), model)


def test_printed_form(lower: Lower) -> None:
    lowered = lower(pair(0, bias=False, affine=False).float(), torch.randn(5, 4))
    lowered.run(BEFORE, "fold-batch-norm")

    assert lowered.ir.splitlines() == [
        "%input_1: f32[5, 4] = input",
        "%to_dtype: f64[6] = aten.to.dtype(@1.running_var, float64)",
        "%add_scalar: f64[6] = aten.add.Scalar(%to_dtype, 1e-05)",
        "%rsqrt_default: f64[6] = aten.rsqrt(%add_scalar)",
        "%view_default: f64[6, 1] = aten.view(%rsqrt_default, [-1, 1])",
        "%to_dtype_1: f64[6, 4] = aten.to.dtype(@0.weight, float64)",
        "%mul_tensor: f64[6, 4] = aten.mul.Tensor(%to_dtype_1, %view_default)",
        "%to_dtype_2: f64[6] = aten.to.dtype(@1.running_mean, float64)",
        "%neg_default: f64[6] = aten.neg(%to_dtype_2)",
        "%mul_tensor_1: f64[6] = aten.mul.Tensor(%neg_default, %rsqrt_default)",
        "%type_as_default: f32[6, 4] = aten.type_as(%mul_tensor, @0.weight)",
        "%type_as_default_1: f32[6] = aten.type_as(%mul_tensor_1, @0.weight)",
        "%linear: f32[5, 6] = aten.linear(%input_1, %type_as_default, %type_as_default_1)",
        "output = (%linear)",
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_folded_weights_have_the_dtype_of_the_weight(dtype: torch.dtype, lower: Lower) -> None:
    model, x = pair(2).to(dtype), torch.randn(INPUTS[2]).to(dtype)
    lowered = lower(model, x)
    lowered.run(BEFORE, "fold-batch-norm")

    (conv,) = lowered.nodes("aten.conv2d")
    assert [arg.meta["val"].dtype for arg in conv.args[1:3]] == [dtype] * 2
    rtol = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 0.1}[dtype]
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), model(x), rtol=rtol, atol=rtol)


def test_folding_costs_one_rounding_of_the_weight(lower: Lower) -> None:
    model, x = pair(0).float(), torch.randn(INPUTS[0])
    lowered = lower(model, x)
    lowered.run("inline-regions,canonicalize,fold-batch-norm,select-analog,derive-weights")

    (linear,) = lowered.nodes("aten.linear")
    derived = lowered.ctx.root.get_submodule(linear.args[1].target)
    held = model.state_dict(keep_vars=True)
    sources = [held[n.target] for n in linear.args[1].args]
    deviation = (held["1.running_var"].double() + 1e-5).sqrt()
    exact = held["0.weight"].double() * (held["1.weight"].double() / deviation)[:, None]
    assert torch.equal(derived(*sources), exact.float())


def test_folded_weight_follows_statistics_and_parameters(lower: Lower) -> None:
    model, x = pair(2), torch.randn(INPUTS[2]).double()
    lowered = lower(model, x)
    lowered.run(BEFORE, "fold-batch-norm,select-analog,derive-weights")
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)

    model.train()
    model(3 * x + 1)  # moves the running statistics
    model.eval()
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)


def test_grouped_and_text_padded_convolutions_fold(lower: Lower) -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding="same", groups=2), trained(nn.BatchNorm2d(6)))
    model, x = model.double().eval(), torch.randn(INPUTS[2]).double()
    lowered = lower(model, x)

    lowered.run(BEFORE)
    assert lowered.run("fold-batch-norm") is True
    assert_same(lowered(x), model(x), model)


def test_a_shared_layer_folds_once_for_each_norm(lower: Lower) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.one, self.two = trained(nn.BatchNorm2d(4)), trained(nn.BatchNorm2d(4))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.two(self.conv(self.one(self.conv(x))))
            return y

    model, x = Shared().double().eval(), torch.randn(INPUTS[2]).double()
    lowered = lower(model, x)
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is True
    assert lowered.counts["aten.conv2d"] == 2
    assert_same(lowered(x), model(x), model)


def test_folded_layer_keeps_name_place_and_provenance(lower: Lower) -> None:
    lowered = lower(pair(2), torch.randn(INPUTS[2]).double())
    lowered.run(BEFORE, "fold-batch-norm")

    (conv,) = lowered.nodes("aten.conv2d")
    assert conv.name == "conv2d"
    assert module_path(conv) == "0"
    assert conv.meta[FROM][-1][0] == "fold-batch-norm"


class Between(nn.Module):
    """A layer and a batch norm with something between them."""

    def __init__(self, dims: int, function: Callable[[Any, Tensor], Any], **options: Any) -> None:
        super().__init__()
        self.layer = layer(dims)
        self.bn = trained(NORMS[dims](6, **options))
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def two_users(m: Any, x: Tensor) -> Any:
    y = m.layer(x)
    return m.bn(y) + y


def also_output(m: Any, x: Tensor) -> Any:
    y = m.layer(x)
    return m.bn(y), y


NOT_FOLDED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "two users": (Between(2, two_users), INPUTS[2]),
    "also an output": (Between(2, also_output), INPUTS[2]),
    "something between": (Between(2, lambda m, x: m.bn(m.layer(x).relu())), INPUTS[2]),
    "norm first": (Between(2, lambda m, x: m.layer(m.bn(x)[:, :4])), (3, 6, 7, 6)),
    "no statistics": (
        Between(2, lambda m, x: m.bn(m.layer(x)), track_running_stats=False),
        INPUTS[2],
    ),
    "linear over a sequence": (
        # The norm's channels are the sequence, not the columns.
        nn.Sequential(nn.Linear(4, 6), trained(nn.BatchNorm1d(5))),
        (3, 5, 4),
    ),
    "instance norm": (nn.Sequential(nn.Conv2d(4, 6, 3), nn.InstanceNorm2d(6)), INPUTS[2]),
    "no layer": (trained(nn.BatchNorm2d(4)), INPUTS[2]),
}


@pytest.mark.parametrize("name", NOT_FOLDED)
def test_other_places_are_left_alone(name: str, lower: Lower) -> None:
    model, shape = NOT_FOLDED[name]
    model, x = model.double().eval(), torch.randn(shape).double()
    lowered = lower(model, x)
    lowered.run(BEFORE)
    before = lowered.ir

    assert lowered.run("fold-batch-norm") is False
    assert lowered.ir == before
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_norm_in_training_mode_is_left_alone(lower: Lower) -> None:
    model, x = pair(2).train(), torch.randn(INPUTS[2]).double()
    lowered = lower(model, x)
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is False
    assert lowered.counts["aten.batch_norm"] == 1


def test_a_frozen_norm_of_a_training_model_folds(lower: Lower) -> None:
    model, x = pair(2).train(), torch.randn(INPUTS[2]).double()
    model[1].eval()
    lowered = lower(model, x)
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is True
    assert_same(lowered(x), model(x), model)


def test_a_weight_that_comes_in_as_an_input_is_left_alone(lower: Lower, make: Make) -> None:
    norm = trained(nn.BatchNorm2d(6))
    model = make(lambda m, x, w: m.norm(torch.conv2d(x, w)), norm=norm)
    lowered = lower(model, torch.randn(2, 4, 5, 5), torch.randn(6, 4, 3, 3))
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is False


def test_a_second_run_changes_nothing(lower: Lower) -> None:
    lowered = lower(pair(2), torch.randn(INPUTS[2]).double())
    lowered.run(BEFORE, "fold-batch-norm")

    assert lowered.run("fold-batch-norm") is False


def test_an_ideal_target_keeps_its_batch_norms(lower: Lower) -> None:
    # A folded weight would be a second copy of a weight that the digital layer reads in place.
    lowered = lower(pair(2), torch.randn(INPUTS[2]).double(), target=targets.ideal())
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is False
    assert lowered.counts["aten.batch_norm"] == 1


def test_a_layer_does_not_move_past_a_write_of_its_input(lower: Lower) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = pair(2).children()

        def forward(self, x: Tensor) -> Any:
            x = torch.relu(x)
            y = self.conv(x)
            x.mul_(2)
            return self.norm(y), x

    lowered = lower(Model().eval(), torch.randn(INPUTS[2], dtype=torch.float64))
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is False


def test_a_norm_before_an_inplace_activation_is_folded(lower: Lower) -> None:
    model = nn.Sequential(*pair(2), nn.ReLU(inplace=True))
    x = torch.randn(INPUTS[2], dtype=torch.float64)
    lowered = lower(model.eval(), x)
    lowered.run(BEFORE)

    assert lowered.run("fold-batch-norm") is True
    assert not lowered.nodes("aten.batch_norm")
