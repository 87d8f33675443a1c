from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import analogc
from analogc.passes.base import META
from analogc.passes.lower_products import LowerProducts
from analogc.runtime.mapping import Digital
from tests.passes.lowering import assert_analog, assert_same

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make


@dataclass
class Form:
    """One way to write a batched product with a stored operand."""

    function: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    weights: dict[str, tuple[int, ...]]
    linears: int = 1
    macs: int = 0
    """Counted by hand, if given."""
    batch: bool = True
    """Whether the first dim of the inputs can vary."""


def ein(equation: str, *names: str) -> Callable[..., Tensor]:
    def run(m: Any, *x: Tensor) -> Tensor:
        return torch.einsum(equation, *x, *(getattr(m, name) for name in names))

    return run


FORMS = {
    # einsum with one matrix
    "right": Form(ein("bi,ij->bj", "W"), ((3, 4),), {"W": (4, 5)}, 1, 60),
    "turned": Form(ein("bi,ji->jb", "W"), ((3, 4),), {"W": (5, 4)}, 1, 60),
    "implicit": Form(ein("bz,za", "W"), ((3, 4),), {"W": (4, 5)}, 1, 60),
    "vector": Form(ein("bti,i->bt", "w"), ((3, 2, 4),), {"w": (4,)}, 1, 24),
    "scalar": Form(ein("ij,ij->", "W"), ((4, 3),), {"W": (4, 3)}, 1, 12, False),
    "stored-first": Form(
        lambda m, x: torch.einsum("oi,bi->bo", m.W, x), ((3, 4),), {"W": (5, 4)}, 1, 60
    ),
    "ellipsis": Form(ein("...i,oi->...o", "W"), ((2, 3, 6, 4),), {"W": (5, 4)}, 1, 720),
    "ellipsis-in-both": Form(ein("...i,...oi->...o", "W"), ((6, 4),), {"W": (3, 1, 2, 4)}),
    "ellipsis-summed-away": Form(ein("...i,ij->j...", "W"), ((2, 3, 4),), {"W": (4, 5)}),
    "heads-in": Form(ein("btk,hdk->bhtd", "W"), ((2, 6, 5),), {"W": (3, 4, 5)}, 1, 720),
    "heads-out": Form(ein("bthd,hdk->btk", "W"), ((2, 6, 3, 4),), {"W": (3, 4, 5)}, 1, 720),
    "heads-out-split": Form(ein("bhtd,hdk->btk", "W"), ((2, 3, 6, 4),), {"W": (3, 4, 5)}, 1, 720),
    "letter-in-one-only": Form(ein("bci,ijk->bk", "W"), ((6, 2, 4),), {"W": (4, 3, 2)}),
    "diagonal-of-stored": Form(ein("bi,iij->bj", "W"), ((6, 4),), {"W": (4, 4, 3)}),
    "diagonal-of-input": Form(ein("bii,ij->bj", "W"), ((6, 4, 4),), {"W": (4, 3)}),
    "computed": Form(
        lambda m, x: torch.einsum("bi,ij->bj", x, torch.tanh(m.W)), ((3, 4),), {"W": (4, 5)}
    ),
    "slice": Form(
        lambda m, x: torch.einsum("bi,ij->bj", x, m.W[1, :, 2:5]), ((3, 4),), {"W": (2, 4, 6)}
    ),
    # several operands
    "low-rank": Form(
        ein("bi,ir,rj->bj", "W", "V"), ((3, 6),), {"W": (6, 2), "V": (2, 5)}, 2, 3 * 2 * (6 + 5)
    ),
    "low-rank-scaled": Form(
        ein("bi,ir,jr,r->bj", "W", "V", "s"), ((3, 4),), {"W": (4, 2), "V": (5, 2), "s": (2,)}, 2
    ),
    "scaled-rows": Form(ein("bi,ij,i->bj", "W", "s"), ((3, 4),), {"W": (4, 5), "s": (4,)}),
    "gated": Form(ein("bi,bj,ij->bj", "W"), ((3, 4), (3, 5)), {"W": (4, 5)}),
    "bilinear": Form(ein("bi,bj,oij->bo", "W"), ((3, 4), (3, 5)), {"W": (2, 4, 5)}, 1),
    # stacked matrices
    "experts": Form(ein("becd,edh->bech", "W"), ((2, 3, 6, 4),), {"W": (3, 4, 5)}, 3, 720),
    "experts-of-one-input": Form(ein("bd,edh->beh", "W"), ((2, 4),), {"W": (3, 4, 5)}, 1, 120),
    "experts-mixed": Form(
        ein("be,bd,edh->bh", "W"), ((2, 3), (2, 4)), {"W": (3, 4, 5)}, 1
    ),
    "stacked-twice": Form(
        ein("ghi,ghij->gjh", "W"), ((2, 3, 4),), {"W": (2, 3, 4, 5)}, 6, 120, False
    ),
    "stack-of-one": Form(ein("bgi,gij->bgj", "W"), ((3, 1, 4),), {"W": (1, 4, 5)}, 1, 60),
    "bmm": Form(lambda m, x: torch.bmm(x, m.W), ((2, 3, 4),), {"W": (2, 4, 5)}, 2, 120, False),
    "bmm-left": Form(lambda m, x: torch.bmm(m.W, x), ((2, 4, 3),), {"W": (2, 5, 4)}, 2, 120, False),
    "matmul": Form(lambda m, x: x @ m.W, ((2, 3, 4),), {"W": (2, 4, 5)}, 2, 120, False),
    "matmul-turned": Form(lambda m, x: x @ m.W.mT, ((6, 2, 3, 4),), {"W": (2, 5, 4)}, 2, 720),
    "matmul-left": Form(lambda m, x: m.W @ x, ((7, 2, 4, 3),), {"W": (2, 5, 4)}, 2, 840),
    "matmul-broadcast-x": Form(lambda m, x: x @ m.W, ((3, 4),), {"W": (2, 4, 5)}, 1, 120),
    "matmul-broadcast-w": Form(lambda m, x: x @ m.W, ((7, 2, 3, 4),), {"W": (1, 4, 5)}, 1, 840),
    "matmul-broadcast-both": Form(lambda m, x: x @ m.W, ((3, 6, 4),), {"W": (2, 1, 4, 5)}, 1, 720),
    "matmul-vector": Form(lambda m, x: m.W @ x, ((4,),), {"W": (2, 5, 4)}, 1, 40, False),
    "baddbmm": Form(
        lambda m, x: torch.baddbmm(m.b, x, m.W), ((2, 3, 4),), {"W": (2, 4, 5), "b": (2, 1, 5)},
        2, 120, False,
    ),
    "baddbmm-scaled": Form(
        lambda m, x: torch.baddbmm(m.b, x, m.W, alpha=0.5, beta=2),
        ((2, 3, 4),), {"W": (2, 4, 5), "b": (5,)}, 2, 120, False,
    ),
    "baddbmm-no-bias": Form(
        lambda m, x: torch.baddbmm(m.b, x, m.W, alpha=-1, beta=0),
        ((2, 3, 4),), {"W": (2, 4, 5), "b": (1, 3, 5)}, 2, 120, False,
    ),
    "addbmm": Form(
        lambda m, x: torch.addbmm(m.b, x, m.W), ((2, 3, 4),), {"W": (2, 4, 5), "b": (3, 5)},
        1, 120, False,
    ),
    # copies of a stored operand
    "expanded": Form(
        lambda m, x: torch.bmm(x, m.W.expand(x.shape[0], -1, -1)), ((7, 3, 4),), {"W": (4, 5)},
        1, 420,
    ),
    "expanded-twice": Form(
        lambda m, x: m.W.unsqueeze(1).expand(-1, 6, -1, -1).expand(x.shape[0], *[-1] * 4) @ x,
        ((7, 3, 6, 4, 2),), {"W": (3, 5, 4)}, 3, 7 * 3 * 6 * 5 * 4 * 2,
    ),
    "expanded-matmul": Form(
        lambda m, x: x @ m.W.expand(x.shape[0], 4, 5).contiguous(), ((7, 3, 4),), {"W": (4, 5)},
    ),
    "repeated": Form(
        lambda m, x: torch.bmm(m.W.repeat(x.shape[0], 1, 1), x), ((7, 4, 3),), {"W": (1, 5, 4)},
    ),
    "broadcast-columns": Form(
        lambda m, x: torch.einsum("bi,ij->bj", x, m.W.expand(4, 5)), ((7, 4),), {"W": (4, 1)},
    ),
    "repeated-in-place": Form(
        lambda m, x: torch.bmm(x, m.W.repeat(1, 2, 1)), ((2, 3, 8),), {"W": (2, 4, 5)}, 2, 240,
        False,
    ),
    "tensordot": Form(
        lambda m, x: torch.tensordot(x, m.W, dims=([1, -1], [2, 0])),
        ((2, 3, 4),), {"W": (4, 5, 3)}, 1, 120,
    ),
    "inner": Form(lambda m, x: torch.inner(x, m.W), ((2, 3, 4),), {"W": (6, 5, 4)}, 1, 720),
}  # fmt: skip

X = torch.float64


def build(form: Form, make: Make, dtype: torch.dtype = X) -> tuple[nn.Module, tuple[Tensor, ...]]:
    tensors = {name: torch.randn(shape, dtype=dtype) for name, shape in form.weights.items()}
    return make(form.function, **tensors), tuple(
        torch.randn(shape, dtype=dtype) for shape in form.inputs
    )


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_linears_with_the_same_numbers(
    name: str, lower: Lower, make: Make
) -> None:
    form = FORMS[name]
    model, inputs = build(form, make)
    lowered = lower(model, *inputs)

    assert lowered.run("inline-regions", "lower-products") is True
    assert lowered.counts["aten.linear"] == form.linears
    before = lowered.ir
    assert lowered.run("lower-products") is False
    assert lowered.ir == before
    assert_same(lowered, model, inputs)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_compiles_to_the_same_numbers_and_all_its_work_is_analog(
    name: str, make: Make
) -> None:
    form = FORMS[name]
    model, inputs = build(form, make)
    shapes = "batch" if form.batch else None
    compiled = analogc.compile(model, inputs, target="ideal", check=True, dynamic_shapes=shapes)

    assert_same(compiled, model, inputs)
    if form.batch:
        more = tuple(torch.cat([x, x, x]) for x in inputs)
        if name not in ("diagonal-of-input",):
            assert_same(compiled, model, more)
    report = compiled.coverage
    assert len(report.analog) == form.linears and not report.unsupported
    if form.macs:
        assert (report.macs, report.analog_share) == (form.macs, 1.0)


@pytest.mark.parametrize(
    ("name", "arrays"),
    [("right", 1), ("heads-out", 1), ("bmm", 2), ("experts", 3), ("low-rank", 2)],
)
def test_eight_bit_tiles_come_close(name: str, arrays: int, make: Make) -> None:
    model, inputs = build(FORMS[name], make, torch.float32)
    assert_analog(model, inputs, arrays, within=0.1)


def test_expected_graph_of_an_einsum(lower: Lower, make: Make) -> None:
    lowered = lower(*_flat(build(FORMS["heads-out"], make)))
    lowered.run("lower-products")

    assert lowered.ops == [
        "aten.permute", "aten.flatten.using_ints", "aten.flatten.using_ints", "aten.linear",
    ]  # fmt: skip


def test_expected_graph_of_stacked_matrices(lower: Lower, make: Make) -> None:
    lowered = lower(*_flat(build(FORMS["bmm"], make)))
    lowered.run("lower-products")

    assert lowered.ir == (
        "%inputs_0: f64[2, 3, 4] = input\n"
        "%unbind_int: (f64[3, 4], f64[3, 4]) = aten.unbind.int(%inputs_0, 0)\n"
        "%getitem: f64[3, 4] = getitem(%unbind_int, 0)\n"
        "%select_int: f64[4, 5] = aten.select.int(@W, 0, 0)\n"
        "%t_default: f64[5, 4] = aten.t(%select_int)\n"
        "%linear_default: f64[3, 5] = aten.linear(%getitem, %t_default)\n"
        "%getitem_1: f64[3, 4] = getitem(%unbind_int, 1)\n"
        "%select_int_1: f64[4, 5] = aten.select.int(@W, 0, 1)\n"
        "%t_default_1: f64[5, 4] = aten.t(%select_int_1)\n"
        "%linear_default_1: f64[3, 5] = aten.linear(%getitem_1, %t_default_1)\n"
        "%bmm: f64[2, 3, 5] = aten.stack([%linear_default, %linear_default_1], 0)\n"
        "output = (%bmm)"
    )


def _flat(built: tuple[nn.Module, tuple[Tensor, ...]]) -> tuple[Any, ...]:
    return (built[0], *built[1])


@pytest.mark.parametrize(
    ("function", "weights"),
    [
        (lambda m, x: torch.einsum("bij,bjk->bik", x, x), {}),
        (lambda m, x: x @ m.W, {"W": (4, 5)}),
        (lambda m, x: torch.relu(x), {}),
        (lambda m, x: x * torch.einsum("ij,jk->ik", m.W, m.W).sum(), {"W": (4, 4)}),
    ],
)
def test_nothing_to_lower(function: Any, weights: dict[str, Any], lower: Lower, make: Make) -> None:
    model = make(function, **{name: torch.randn(shape) for name, shape in weights.items()})
    lowered = lower(model, torch.randn(2, 4, 4))
    before, code = lowered.ir, lowered.module.code

    assert lowered.run("lower-products") is False
    assert (lowered.ir, lowered.module.code) == (before, code)


@pytest.mark.parametrize(
    ("function", "weight", "rule", "reason"),
    [
        (
            lambda m, x: torch.einsum("bi,i->bi", x, m.W), torch.randn(4), "rule",
            "no sum over a dim of its stored operand: nothing to multiply",
        ),
        (
            lambda m, x: torch.einsum("bi,ij->bj", x.long(), m.W),
            torch.ones(4, 5, dtype=torch.int64), "unsupported",
            "its weight is int64: tiles hold real numbers; multiply by the dequantised weight, "
            "weight.float() * scale",
        ),
        (
            lambda m, x: torch.einsum("bi,ij->bj", x, m.W), torch.empty(4, 0), "rule",
            "its weight is empty",
        ),
        (
            lambda m, x: torch.bmm(x.expand(65, 3, 4), m.W),
            torch.randn(65, 4, 5), "unsupported",
            "its stored operand stacks 65 matrices, more than 64: lower-products{experts=65} in "
            "passes= makes a linear of each",
        ),
    ],
    ids=["scale", "integer", "empty", "too-many"],
)  # fmt: skip
def test_what_stays_digital_says_why(
    function: Any, weight: Tensor, rule: str, reason: str, lower: Lower, make: Make
) -> None:
    model = make(function, W=weight)
    x = torch.randn(3, 4)
    lowered = lower(model, x)
    assert lowered.run("inline-regions", "lower-products") is False
    lowered.run("canonicalize,fold-batch-norm,select-analog")

    records = [n.meta.get(META) for n in lowered.module.graph.nodes]
    (found,) = [r for r in records if isinstance(r, Digital) and r.macs or _is(r, reason)]
    assert (found.rule, found.reason) == (rule, reason)
    torch.testing.assert_close(lowered(x), model(x))


def _is(record: Any, reason: str) -> bool:
    return isinstance(record, Digital) and record.reason == reason


def test_more_matrices_on_request(lower: Lower, make: Make) -> None:
    model = make(lambda m, x: torch.bmm(x, m.W), W=torch.randn(65, 2, 3, dtype=X))
    x = torch.randn(65, 1, 2, dtype=X)
    lowered = lower(model, x)

    assert lowered.run(LowerProducts(experts=65)) is True
    assert lowered.counts["aten.linear"] == 65
    assert_same(lowered, model, (x,))


def test_a_weight_shared_with_a_linear_has_one_array(make: Make) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, m.W)
        z: Tensor = torch.einsum("bi,oi->bo", x, m.W) @ m.W
        return torch.einsum("bo,oi->bi", y, m.W) + z

    compiled = analogc.compile(make(run, W=torch.randn(5, 4)), (torch.randn(3, 4),), check=True)

    # As [5, 4], and turned.
    assert len(compiled.tiles) == 2
    assert len(compiled.coverage.analog) == 4


def test_outer_products_are_no_sums(lower: Lower, make: Make) -> None:
    """Such as the angles of rotary embeddings: frequencies times positions."""
    model = make(lambda m, x: m.w.expand(x.shape[0], -1, 1) @ x[:, None, :], w=torch.randn(1, 4, 1))
    lowered = lower(model, torch.randn(2, 6))

    assert lowered.run("inline-regions,lower-products") is False
    (record,) = (n.meta[META] for n in lowered.module.graph.nodes if META in n.meta)
    assert record.rule == "rule" and "no sum" in record.reason
