"""The operators under autograd, torch.func, autocast and torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from analogc import Converter
from analogc.errors import UnsupportedError
from analogc.runtime import ops
from analogc.runtime.noise import NoiseSource
from analogc.runtime.spec import LayerSpec
from analogc.runtime.tiles import TileArray

KINDS: dict[str, dict[str, Any]] = {
    "ideal": {},
    "8bit": {"dac": Converter(8), "adc": Converter(8)},
    "dynamic": {"dac": Converter(8, "dynamic"), "adc": Converter(8)},
}
SHAPES: dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[Any, ...]]] = {
    "linear": ((3, 6), (4, 6), ()),
    "conv1d": ((3, 4, 9), (6, 2, 3), ([2], [1], [1], 2)),
    "conv2d": ((3, 4, 6, 5), (6, 2, 3, 2), ([1, 2], [1, 0], [2, 1], 2)),
    "conv3d": ((3, 2, 4, 3, 5), (4, 2, 2, 1, 3), ([1, 1, 2], [0, 1, 1], [1, 1, 1], 1)),
}

Layer = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def layer(name: str, kind: str, **more: Any) -> Layer:
    """The operator as a function of input, weight and bias; two row blocks."""
    op = getattr(torch.ops.analogc, name)
    rows = torch.Size(SHAPES[name][1][1:]).numel()
    spec = LayerSpec((0, rows // 2, rows), **KINDS[kind], **more)
    input_range = None if spec.dac is None or spec.dynamic else torch.tensor([1.5, 2.0])
    adc_range = None if spec.adc is None else torch.tensor([2.3, 2.9])
    rest = (*SHAPES[name][2], spec.to_text(), "")

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = op(x, weight, bias, input_range, adc_range, *rest)
        return y

    return run


def operands(name: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    in_shape, weight_shape, _ = SHAPES[name]
    return (
        torch.randn(in_shape, dtype=dtype),
        torch.randn(weight_shape, dtype=dtype),
        torch.randn(weight_shape[0], dtype=dtype),
    )


def each(run: Layer, tensors: Sequence[Tensor], dims: Sequence[int | None]) -> Tensor:
    """What vmap stands for: a loop."""
    found = []
    for i in range(3):
        picked = [t if d is None else t.select(d, i) for t, d in zip(tensors, dims, strict=True)]
        found.append(run(*picked))
    return torch.stack(found)


# -- vmap -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("single", [False, True], ids=["batched", "single"])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_vmap_over_inputs_is_a_loop(name: str, kind: str, dim: int, single: bool) -> None:
    run = layer(name, kind)
    x, weight, bias = operands(name)
    many = torch.stack([x, x + 1, 2 * x], dim=0)
    if single:
        many = many[:, 0]
    many = many.movedim(0, dim)

    found = torch.vmap(run, in_dims=(dim, None, None), randomness="different")(many, weight, bias)

    torch.testing.assert_close(found, each(run, (many, weight, bias), (dim, None, None)))


@pytest.mark.parametrize("dims", [(None, 0, None), (0, 1, None), (None, None, 0), (0, 0, 0)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_vmap_over_weights_and_biases_is_a_loop(
    name: str, kind: str, dims: tuple[int | None, ...]
) -> None:
    run = layer(name, kind)
    tensors = [
        t if d is None else torch.stack([t, t + 1, 2 * t], dim=d)
        for t, d in zip(operands(name), dims, strict=True)
    ]

    found = torch.vmap(run, in_dims=dims, randomness="different")(*tensors)

    torch.testing.assert_close(found, each(run, tensors, dims))


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_nests(kind: str) -> None:
    run = layer("linear", kind)
    x, weight, bias = operands("linear")
    inputs, weights = torch.stack([x, -x]), torch.stack([weight, 2 * weight, weight + 1])

    inner = torch.vmap(run, in_dims=(None, 0, None), randomness="different")
    found = torch.vmap(inner, in_dims=(0, None, None), randomness="different")(
        inputs, weights, bias
    )

    expected = torch.stack([torch.stack([run(i, w, bias) for w in weights]) for i in inputs])
    torch.testing.assert_close(found, expected)


# -- torch.func.grad ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_func_grad_is_autograd(name: str, kind: str) -> None:
    run = layer(name, kind)
    tensors = operands(name)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return run(x, weight, bias).square().sum()

    found = torch.func.grad(loss, argnums=(0, 1, 2))(*tensors)

    leaves = [t.clone().requires_grad_() for t in tensors]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_per_sample_gradients_are_a_loop_of_gradients(name: str, kind: str) -> None:
    run = layer(name, kind)
    x, weight, bias = operands(name)

    def loss(weight: Tensor, bias: Tensor, one: Tensor) -> Tensor:
        return run(one, weight, bias).square().sum()

    gradient = torch.func.grad(loss, argnums=(0, 1))
    found = torch.vmap(gradient, in_dims=(None, None, 0), randomness="different")(weight, bias, x)

    expected = [gradient(weight, bias, one) for one in x]
    for i, part in enumerate(found):
        torch.testing.assert_close(part, torch.stack([e[i] for e in expected]))


@pytest.mark.parametrize("kind", ["8bit", "dynamic"])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_vjp_and_jacrev_agree_with_autograd(name: str, kind: str) -> None:
    run = layer(name, kind)
    x, weight, bias = operands(name)

    jacobian = torch.func.jacrev(lambda w: run(x, w, bias).flatten()[:5])(weight)

    leaf = weight.clone().requires_grad_()
    y = run(x, leaf, bias).flatten()
    for i in range(5):
        (row,) = torch.autograd.grad(y[i], leaf, retain_graph=True)
        torch.testing.assert_close(jacobian[i], row)


@pytest.mark.parametrize("name", ops.NAMES)
def test_gradients_of_ideal_layers_are_those_of_finite_differences(name: str) -> None:
    leaves = [t.requires_grad_() for t in operands(name)]

    assert torch.autograd.gradcheck(layer(name, "ideal"), leaves, fast_mode=True)


# -- second derivatives ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ops.NAMES)
def test_double_backward_of_ideal_layers(name: str) -> None:
    leaves = [t.requires_grad_() for t in operands(name)]

    assert torch.autograd.gradgradcheck(layer(name, "ideal"), leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["8bit", "dynamic"])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_double_backward_of_a_converter_says_that_there_is_none(name: str, kind: str) -> None:
    run = layer(name, kind)
    leaves = [t.requires_grad_() for t in operands(name)]

    (grad,) = torch.autograd.grad(
        run(leaves[0], leaves[1], leaves[2]).square().sum(), leaves[1], create_graph=True
    )

    assert grad.requires_grad
    with pytest.raises(UnsupportedError, match="second derivatives"):
        grad.sum().backward()


def test_create_graph_gives_the_same_first_derivative() -> None:
    run = layer("conv2d", "8bit")
    leaves = [t.requires_grad_() for t in operands("conv2d")]
    y = run(leaves[0], leaves[1], leaves[2]).square().sum()

    plain = torch.autograd.grad(y, leaves, retain_graph=True)
    kept = torch.autograd.grad(y, leaves, create_graph=True)

    assert all(map(torch.equal, plain, (k.detach() for k in kept)))


def test_hessian_through_a_converter_says_that_there_is_none() -> None:
    run = layer("linear", "8bit")
    x, weight, bias = operands("linear")

    def loss(w: Tensor) -> Tensor:
        return run(x, w, bias).square().sum()

    with pytest.raises(UnsupportedError, match="second derivatives"):
        torch.func.jacrev(torch.func.grad(loss))(weight)


# -- autocast -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ops.NAMES)
def test_autocast_gives_low_precision_as_the_digital_operator_does(name: str, kind: str) -> None:
    run = layer(name, kind)
    x, weight, bias = operands(name, torch.float32)
    geometry = SHAPES[name][2]

    with torch.autocast("cpu", torch.bfloat16):
        found = run(x, weight, bias)
        digital = getattr(F, name)(x, weight, bias, *geometry)

    assert found.dtype == digital.dtype == torch.bfloat16
    if kind == "ideal":
        assert torch.equal(found, digital)
    else:
        exact = run(x.bfloat16(), weight, bias)
        assert torch.equal(found, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_under_autocast_have_the_dtype_of_their_leaves(kind: str) -> None:
    run = layer("conv2d", kind)
    leaves = [t.requires_grad_() for t in operands("conv2d", torch.float32)]

    with torch.autocast("cpu", torch.bfloat16):
        loss = run(leaves[0], leaves[1], leaves[2]).float().sum()
    loss.backward()

    assert [t.grad is not None and t.grad.dtype for t in leaves] == [torch.float32] * 3


def test_autocast_leaves_float64_alone() -> None:
    run = layer("linear", "8bit")

    with torch.autocast("cpu", torch.bfloat16):
        assert run(*operands("linear")).dtype == torch.float64


def test_autocast_does_not_program_again() -> None:
    spec = LayerSpec((0, 6), Converter(8))
    fc = TileArray("fc", "transforms/autocast", spec, NoiseSource(0))
    x, weight, bias = operands("linear", torch.float32)

    for _ in range(2):
        for enabled in (True, False):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                torch.ops.analogc.linear(
                    x, weight, bias, torch.tensor([1.0]), None, spec.to_text(), fc.key
                )

    assert fc.times_programmed == 1


# -- torch.compile and export ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_torch_compile_keeps_values_gradients_and_later_writes(name: str, kind: str) -> None:
    torch._dynamo.reset()
    run = layer(name, kind)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    leaves = [t.requires_grad_() for t in operands(name)]

    for _ in range(2):
        expected, found = run(*leaves), compiled(*leaves)
        grad = torch.randn_like(expected)
        torch.testing.assert_close(found, expected)
        ours, theirs = (torch.autograd.grad(y, leaves, grad) for y in (found, expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            leaves[1].mul_(-0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_export_keeps_the_operator(kind: str) -> None:
    run = layer("conv2d", kind)

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(operands("conv2d")[1])

        def forward(self, x: Tensor) -> Tensor:
            return run(x, self.weight, None)

    model, x = Model(), operands("conv2d")[0]
    exported = torch.export.export(model, (x,))

    called = [n.target for n in exported.graph.nodes if n.op == "call_function"]
    if kind != "ideal":
        assert torch.ops.analogc.conv2d.default in called
    torch.testing.assert_close(exported.module()(x), model(x))


# -- forward mode ---------------------------------------------------------------------------------


# The first dual level makes torch compile decompositions by its own deprecated torch.jit.script.
of_torch_itself = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


@of_torch_itself
def test_forward_mode_goes_through_ideal_layers() -> None:
    run = layer("linear", "ideal")
    x, weight, bias = operands("linear")
    tangent = torch.randn_like(weight)

    with forward_ad.dual_level():
        y = run(x, forward_ad.make_dual(weight, tangent), bias)
        found = forward_ad.unpack_dual(y).tangent

    torch.testing.assert_close(found, x @ tangent.mT)


@of_torch_itself
@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_forward_mode_through_a_converter_is_an_error_not_zero(
    name: str, requires_grad: bool
) -> None:
    run = layer(name, "8bit")
    x, weight, bias = operands(name)
    weight.requires_grad_(requires_grad)

    with forward_ad.dual_level():
        assert run(x, weight, bias).shape[0] == 3  # nothing to differentiate, nothing wrong
        with pytest.raises(UnsupportedError, match="forward-mode"):
            run(x, forward_ad.make_dual(weight, torch.ones_like(weight)), bias)
