from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from analogc.runtime.derived import DerivedWeight
from analogc.runtime.standin import resolve


def folded(weight: Tensor, gamma: Tensor, var: Tensor) -> Tensor:
    """A batch norm's scale folded into a weight."""
    return weight * (gamma * torch.rsqrt(var + 1e-5))[:, None]


def derive(function: Callable[..., Tensor]) -> DerivedWeight:
    return DerivedWeight(fx.symbolic_trace(function))


def sources(dtype: torch.dtype = torch.float64) -> tuple[nn.Parameter, nn.Parameter, Tensor]:
    return (
        nn.Parameter(torch.randn(3, 4, dtype=dtype)),
        nn.Parameter(torch.randn(3, dtype=dtype)),
        torch.rand(3, dtype=dtype) + 0.5,
    )


def test_value_is_that_of_the_expression() -> None:
    weight, gamma, var = sources()

    torch.testing.assert_close(derive(folded)(weight, gamma, var), folded(weight, gamma, var))


def test_expression_is_evaluated_once_until_a_source_changes() -> None:
    weight, gamma, var = sources()
    derived = derive(folded)

    for _ in range(3):
        derived(weight, gamma, var)
        with torch.no_grad():
            derived(weight, gamma, var)
        derived(weight, gamma, var).sum().backward()

    assert derived.evaluations == 1


def add_in_place(t: Tensor) -> None:
    with torch.no_grad():
        t.add_(1)


def write_a_view(t: Tensor) -> None:
    with torch.no_grad():
        t.view(-1)[0] = 7


def swap_data(t: Tensor) -> None:
    t.data = t.data + 1


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("change", [add_in_place, write_a_view, swap_data])
def test_every_change_of_a_source_is_followed(which: int, change: Callable[[Tensor], None]) -> None:
    held = sources()
    derived = derive(folded)
    derived(*held)

    change(held[which])

    torch.testing.assert_close(derived(*held), folded(*held))
    derived(*held)
    assert derived.evaluations == 2


def test_another_tensor_in_place_of_a_source_is_followed() -> None:
    weight, gamma, var = sources()
    derived = derive(folded)
    derived(weight, gamma, var)
    other = nn.Parameter(weight.detach() * 2)

    torch.testing.assert_close(derived(other, gamma, var), folded(other, gamma, var))
    assert derived.evaluations == 2


def test_statistics_that_a_batch_norm_writes_are_followed() -> None:
    # torch's batch norm leaves the version counter of its statistics alone.
    norm = nn.BatchNorm1d(3).train()
    weight = nn.Parameter(torch.randn(3, 4))
    assert norm.running_var is not None
    derived = derive(folded)
    derived(weight, norm.weight, norm.running_var)

    norm(torch.randn(8, 3) * 5)

    torch.testing.assert_close(
        derived(weight, norm.weight, norm.running_var),
        folded(weight, norm.weight, norm.running_var),
    )


def test_a_fused_optimizer_step_is_followed() -> None:
    weight, gamma, var = sources(torch.float32)
    derived = derive(folded)
    optimizer = torch.optim.Adam([weight, gamma], lr=0.1, fused=True)
    derived(weight, gamma, var).square().sum().backward()

    optimizer.step()

    torch.testing.assert_close(derived(weight, gamma, var), folded(weight, gamma, var))


def test_gradients_reach_the_sources_as_by_plain_autograd() -> None:
    held = sources()
    grad = torch.randn(3, 4, dtype=torch.float64)

    found = torch.autograd.grad(derive(folded)(*held), held[:2], grad)

    expected = torch.autograd.grad(folded(*held), held[:2], grad)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("which", [0, 1])
def test_only_wanted_gradients_are_computed(which: int) -> None:
    held = sources()
    held[1 - which].requires_grad_(False)

    derive(folded)(*held).sum().backward()

    assert held[which].grad is not None
    assert held[1 - which].grad is None


def test_gradients_of_every_source_are_those_of_finite_differences() -> None:
    held = tuple(t.detach().clone().requires_grad_() for t in sources())
    derived = derive(folded)

    def of_copies(*tensors: Tensor) -> Tensor:
        # gradcheck writes its inputs through .data, which leaves no trace.
        value: Tensor = derived(*(t.clone() for t in tensors))
        return value

    assert torch.autograd.gradcheck(of_copies, held)
    assert torch.autograd.gradgradcheck(of_copies, held)


def test_second_derivative_is_that_of_plain_autograd() -> None:
    held = sources()

    def penalty(value: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad(value.pow(3).sum(), held[1], create_graph=True)
        (second,) = torch.autograd.grad(grad.square().sum(), held[0])
        return second

    torch.testing.assert_close(penalty(derive(folded)(*held)), penalty(folded(*held)))


def test_a_source_that_the_value_ignores_gets_no_gradient() -> None:
    def first(a: Tensor, b: Tensor) -> Tensor:
        return a * 2

    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    derive(first)(a, b).sum().backward()

    assert a.grad is not None and a.grad.tolist() == [2, 2]
    assert b.grad is None


def test_gradient_is_that_of_the_value_that_was_used() -> None:
    weight, gamma, var = sources()
    derived = derive(folded)

    y = derived(weight, gamma, var)
    add_in_place(gamma)

    # As anywhere in torch, writing what a backward pass needs is an error, not a wrong gradient.
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_value_has_no_graph_without_gradients() -> None:
    weight, gamma, var = sources()
    derived = derive(folded)

    with torch.no_grad():
        assert not derived(weight, gamma, var).requires_grad
    assert derived(weight, gamma, var).requires_grad
    assert not derived(weight.detach(), gamma.detach(), var).requires_grad


def test_autocast_does_not_change_the_value() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    derived = derive(lambda w: w @ w.mT)

    with torch.autocast("cpu", torch.bfloat16):
        inside = derived(weight)

    assert inside.dtype == torch.float32
    assert torch.equal(inside, derived(weight))
    assert derived.evaluations == 1


def test_inference_tensors_are_evaluated_each_time() -> None:
    with torch.inference_mode():
        weight = torch.ones(2)
        derived = derive(lambda w: w * 2)
        assert derived(weight).tolist() == [2, 2]
        weight.add_(1)
        assert derived(weight).tolist() == [4, 4]


def test_transforms_see_the_expression_itself() -> None:
    held = sources()
    derived = derive(folded)
    derived(*held)

    mapped = torch.vmap(derived, in_dims=(0, None, None))(
        torch.stack([held[0], 2 * held[0]]), held[1], held[2]
    )
    gradient = torch.func.grad(lambda w: derived(w, held[1], held[2]).square().sum())(held[0])

    torch.testing.assert_close(mapped[1], folded(2 * held[0], held[1], held[2]))
    (expected,) = torch.autograd.grad(folded(*held).square().sum(), held[0])
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(derived(*held), folded(*held))


def test_an_expression_without_sources_is_a_constant() -> None:
    derived = derive(lambda: torch.eye(3))

    assert torch.equal(derived(), torch.eye(3))
    assert torch.equal(derived(), torch.eye(3))
    assert derived.evaluations == 1


def test_a_copy_takes_no_remembered_value_along() -> None:
    held = sources()
    derived = derive(folded)
    derived(*held)

    other = copy.deepcopy(derived)

    assert other._held is None
    torch.testing.assert_close(other(*held), folded(*held))
    add_in_place(held[0])
    torch.testing.assert_close(derived(*held), other(*held))


def test_meta_tensors_go_through() -> None:
    value = derive(folded)(*(t.to("meta") for t in sources()))

    assert value.is_meta and value.shape == (3, 4)


# -- stand-ins ------------------------------------------------------------------------------------


def without_memory() -> tuple[DerivedWeight, tuple[Tensor, ...]]:
    return DerivedWeight(fx.symbolic_trace(folded), "stand-in"), sources()


def test_a_stand_in_has_the_form_of_the_value_and_the_memory_of_one_element() -> None:
    derived, held = without_memory()
    operand = derived(*held)

    assert (operand.shape, operand.dtype) == ((3, 4), torch.float64)
    assert operand.untyped_storage().nbytes() == 8
    assert operand.isnan().all()  # to use it as a tensor must show


def test_a_stand_in_resolves_to_the_value_whatever_its_sources_become() -> None:
    derived, held = without_memory()
    for change in (add_in_place, write_a_view, swap_data):
        assert torch.equal(resolve(derived(*held)), folded(*held))
        change(held[0])
    assert torch.equal(resolve(derived(*held)), folded(*held))


def test_an_unchanged_expression_has_one_stand_in_and_a_changed_one_another() -> None:
    derived, held = without_memory()
    first = derived(*held)
    assert derived(*held).data_ptr() == first.data_ptr()
    add_in_place(held[1])
    assert derived(*held).data_ptr() != first.data_ptr()
    assert derived.evaluations == 1  # the second has not been asked for


def test_a_stand_in_follows_a_change_of_dtype() -> None:
    derived, held = without_memory()
    derived(*held)
    single = tuple(source.detach().float() for source in held)

    assert derived(*single).dtype == torch.float32
    torch.testing.assert_close(resolve(derived(*single)), folded(*single))


def test_gradients_go_through_a_stand_in() -> None:
    derived, held = without_memory()
    grad = torch.randn(3, 4, dtype=torch.float64)

    found = torch.autograd.grad(derived(*held), held[:2], grad)

    for ours, theirs in zip(found, torch.autograd.grad(folded(*held), held[:2], grad), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("shape", [(3, 1, 1, 1), (1, 1), (1, 4)])
def test_stand_ins_of_lengths_of_one(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    derived = DerivedWeight(fx.symbolic_trace(lambda w: w * 2), "stand-in")

    assert torch.equal(resolve(derived(weight)), weight * 2)


def test_a_view_of_a_source_needs_no_stand_in() -> None:
    weight = torch.randn(4, 6)
    derived = DerivedWeight(fx.symbolic_trace(lambda w: w[:2].mT), "stand-in")

    assert derived(weight).data_ptr() == weight.data_ptr()


def test_what_keeps_nothing_is_evaluated_each_time() -> None:
    weight = nn.Parameter(torch.randn(4, 6))
    derived = DerivedWeight(fx.symbolic_trace(lambda w: w * 2), "nothing")

    assert torch.equal(derived(weight), weight * 2)
    weight.data.add_(1)
    assert torch.equal(derived(weight), weight * 2)
    assert derived._held is None
