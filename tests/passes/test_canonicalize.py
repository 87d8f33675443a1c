from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from analogc.passes.base import FROM, module_path, source_name

if TYPE_CHECKING:
    from tests.passes.conftest import Lower, Make


@dataclass
class Form:
    """One way to write a product with a stored operand."""

    function: Callable[..., Any]
    inputs: tuple[tuple[int, ...], ...]
    weights: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    linears: int = 1
    left: tuple[str, ...] = ()
    """Products that remain."""


K, N = 4, 5
PRODUCTS = ("aten.mm", "aten.mv", "aten.dot", "aten.matmul", "aten.addmm", "aten.bmm")
W, B = {"W": (K, N)}, {"W": (K, N), "b": (N,)}
LEFT = {"W": (N, K)}

FORMS = {
    # stored on the right
    "x@W": Form(lambda m, x: x @ m.W, ((3, K),), W),
    "vector@W": Form(lambda m, x: x @ m.W, ((K,),), W),
    "batch@W": Form(lambda m, x: x @ m.W, ((2, 3, K),), W),
    "x@W.t": Form(lambda m, x: x @ m.W.t(), ((3, K),), LEFT),
    "x@W.T": Form(lambda m, x: x @ m.W.T, ((3, K),), LEFT),
    "x@W.mT": Form(lambda m, x: x @ m.W.mT, ((2, 3, K),), LEFT),
    "x@W.transpose": Form(lambda m, x: x @ m.W.transpose(-1, 0), ((3, K),), LEFT),
    "x@W.permute": Form(lambda m, x: x @ m.W.permute(1, 0), ((3, K),), LEFT),
    "x@W.permute-to-itself": Form(lambda m, x: x @ m.W.permute(0, 1), ((3, K),), W),
    "x@W.transpose-to-itself": Form(lambda m, x: x @ m.W.transpose(1, -1), ((3, K),), W),
    "x@(computed W)": Form(lambda m, x: x @ (m.W * 2).exp(), ((3, K),), W),
    "x@w": Form(lambda m, x: x @ m.w, ((3, K),), {"w": (K,)}),
    "batch@w": Form(lambda m, x: x @ m.w, ((2, 3, K),), {"w": (K,)}),
    "mm": Form(lambda m, x: torch.mm(x, m.W), ((3, K),), W),
    "dot": Form(lambda m, x: torch.dot(x, m.w), ((K,),), {"w": (K,)}),
    # stored on the left
    "W@x": Form(lambda m, x: m.W @ x, ((K, 3),), LEFT),
    "W@vector": Form(lambda m, x: m.W @ x, ((K,),), LEFT),
    "W@batch": Form(lambda m, x: m.W @ x, ((2, K, 3),), LEFT),
    "w@x": Form(lambda m, x: m.w @ x, ((K, 3),), {"w": (K,)}),
    "w@vector": Form(lambda m, x: m.w @ x, ((K,),), {"w": (K,)}),
    "w@batch": Form(lambda m, x: m.w @ x, ((2, K, 3),), {"w": (K,)}),
    "mm-left": Form(lambda m, x: torch.mm(m.W, x), ((K, 3),), LEFT),
    "mv": Form(lambda m, x: torch.mv(m.W, x), ((K,),), LEFT),
    "dot-left": Form(lambda m, x: torch.dot(m.w, x), ((K,),), {"w": (K,)}),
    "linear-of-stored-input": Form(lambda m, x: F.linear(m.W, x), ((3, K),), LEFT),
    "linear-of-stored-input-and-bias": Form(
        lambda m, x: F.linear(m.W, x, m.b), ((3, K),), {**LEFT, "b": (3,)}
    ),
    # addmm
    "addmm": Form(lambda m, x: torch.addmm(m.b, x, m.W), ((3, K),), B),
    "addmm-bias-2d": Form(lambda m, x: torch.addmm(m.b, x, m.W), ((3, K),), {**W, "b": (3, N)}),
    "addmm-bias-1": Form(lambda m, x: torch.addmm(m.b, x, m.W), ((3, K),), {**W, "b": (1,)}),
    "addmm-bias-from-input": Form(lambda m, x, c: torch.addmm(c, x, m.W), ((3, K), (3, N)), W),
    "addmm-alpha-beta": Form(
        lambda m, x: torch.addmm(m.b, x, m.W, beta=0.5, alpha=-2), ((3, K),), B
    ),
    "addmm-beta-0": Form(lambda m, x: torch.addmm(m.b, x, m.W, beta=0), ((3, K),), B),
    "addmm-left": Form(lambda m, x: torch.addmm(m.b, m.W, x), ((K, 3),), {**LEFT, "b": (3,)}),
    "addmm-left-alpha-beta": Form(
        lambda m, x: torch.addmm(m.b, m.W, x, beta=3, alpha=2), ((K, 3),), {**LEFT, "b": (N, 1)}
    ),
    "gpt2-conv1d": Form(
        lambda m, x: torch.addmm(m.b, x.view(-1, K), m.W).view(2, 3, N), ((2, 3, K),), B
    ),
    # F.linear itself
    "linear-1d-weight": Form(lambda m, x: F.linear(x, m.w), ((3, K),), {"w": (K,)}),
    "linear-1d-weight-and-bias": Form(
        lambda m, x: F.linear(x, m.w, m.b), ((2, 3, K),), {"w": (K,), "b": ()}
    ),
    # slices of a packed weight
    "packed-chunks": Form(
        lambda m, x: [x @ part for part in m.W.chunk(3, dim=1)], ((2, K),), {"W": (K, 9)}, 3
    ),
    # nothing is stored, or everything
    "activation@activation": Form(lambda m, x, y: x @ y, ((3, K), (K, 3)), {}, 0, ("aten.matmul",)),
    "stored@stored": Form(
        lambda m, x: x * (m.W @ m.V), ((K, 2),), {"W": (K, N), "V": (N, 2)}, 0, ("aten.matmul",)
    ),
    "batched-weights": Form(
        lambda m, x: torch.bmm(x, m.W), ((2, 3, K),), {"W": (2, K, N)}, 0, ("aten.bmm",)
    ),
    "matmul-3d-weight": Form(
        lambda m, x: x @ m.W, ((2, 3, K),), {"W": (2, K, N)}, 0, ("aten.matmul",)
    ),
}
NO_OPS = {
    "linear": Form(lambda m, x: m.fc(x), ((3, K),)),
    "functional-linear": Form(
        lambda m, x: F.linear(x, m.W, m.b), ((3, K),), {"W": (N, K), "b": (N,)}
    ),
    "linear-computed-weight": Form(lambda m, x: F.linear(x, m.W.tanh()), ((3, K),), LEFT),
    "packed-linear-chunks": Form(
        lambda m, x: [F.linear(x, part) for part in m.W.chunk(3)], ((2, K),), {"W": (9, K)}, 3
    ),
    "activation-linear": Form(lambda m, x, y: F.linear(x, y), ((3, K), (N, K))),
    "digital": Form(lambda m, x: torch.relu(x).sum(-1), ((3, K),), {}, 0),
}


def build(form: Form, make: Make) -> tuple[nn.Module, list[Tensor]]:
    model = make(
        form.function,
        **{name: torch.randn(shape, dtype=torch.float64) for name, shape in form.weights.items()},
        fc=nn.Linear(K, N, dtype=torch.float64),
    )
    return model, [torch.randn(shape, dtype=torch.float64) for shape in form.inputs]


def assert_same(found: Any, expected: Any, model: nn.Module) -> None:
    """Equal outputs, and equal gradients of all parameters."""
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for y, z in zip(*(v if isinstance(v, list) else [v] for v in (found, expected)), strict=True):
        parameters = list(model.parameters())
        if not z.requires_grad:
            continue
        grad = torch.randn_like(z)
        ours, theirs = (
            torch.autograd.grad(v, parameters, grad, allow_unused=True, materialize_grads=True)
            for v in (y, z)
        )
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*FORMS, *NO_OPS])
def test_every_form_becomes_linear_with_the_same_numbers(
    name: str, lower: Lower, make: Make
) -> None:
    form = {**FORMS, **NO_OPS}[name]
    model, inputs = build(form, make)
    lowered = lower(model, *inputs)

    modified = lowered.run("canonicalize")

    assert modified == (name in FORMS and form.linears > 0)
    assert lowered.counts["aten.linear"] == form.linears
    assert tuple(op for op in lowered.ops if op in PRODUCTS) == form.left
    assert_same(lowered(*inputs), model(*inputs), model)


@pytest.mark.parametrize("name", [*FORMS, *NO_OPS])
def test_a_second_run_changes_nothing(name: str, lower: Lower, make: Make) -> None:
    model, inputs = build({**FORMS, **NO_OPS}[name], make)
    lowered = lower(model, *inputs)
    lowered.run("canonicalize")
    before = lowered.ir

    assert lowered.run("canonicalize") is False
    assert lowered.ir == before


@pytest.mark.parametrize("name", NO_OPS)
def test_a_canonical_graph_is_left_alone(name: str, lower: Lower, make: Make) -> None:
    model, inputs = build(NO_OPS[name], make)
    lowered = lower(model, *inputs)
    before, code = lowered.ir, lowered.module.code

    assert lowered.run("canonicalize") is False
    assert (lowered.ir, lowered.module.code) == (before, code)


@pytest.mark.parametrize(
    ("name", "ir"),
    [
        (
            "x@W",
            """
            %inputs_0: f64[3, 4] = input
            %t_default: f64[5, 4] = aten.t(@W)
            %matmul: f64[3, 5] = aten.linear(%inputs_0, %t_default)
            output = (%matmul)
            """,
        ),
        (
            "x@W.t",
            """
            %inputs_0: f64[3, 4] = input
            %matmul: f64[3, 5] = aten.linear(%inputs_0, @W)
            output = (%matmul)
            """,
        ),
        (
            "w@batch",
            """
            %inputs_0: f64[2, 4, 3] = input
            %unsqueeze_default: f64[1, 4] = aten.unsqueeze(@w, 0)
            %transpose_int: f64[2, 3, 4] = aten.transpose.int(%inputs_0, -1, -2)
            %linear_default: f64[2, 3, 1] = aten.linear(%transpose_int, %unsqueeze_default)
            %transpose_int_1: f64[2, 1, 3] = aten.transpose.int(%linear_default, -1, -2)
            %matmul: f64[2, 3] = aten.squeeze.dim(%transpose_int_1, -2)
            output = (%matmul)
            """,
        ),
        (
            "addmm-alpha-beta",
            """
            %inputs_0: f64[3, 4] = input
            %t_default: f64[5, 4] = aten.t(@W)
            %linear_default: f64[3, 5] = aten.linear(%inputs_0, %t_default)
            %mul_scalar: f64[3, 5] = aten.mul.Scalar(%linear_default, -2)
            %mul_scalar_1: f64[5] = aten.mul.Scalar(@b, 0.5)
            %addmm: f64[3, 5] = aten.add.Tensor(%mul_scalar, %mul_scalar_1)
            output = (%addmm)
            """,
        ),
    ],
)
def test_printed_form(name: str, ir: str, lower: Lower, make: Make) -> None:
    model, inputs = build(FORMS[name], make)
    lowered = lower(model, *inputs)

    lowered.run("canonicalize")

    assert lowered.ir == "\n".join(line.strip() for line in ir.strip().splitlines())


def test_a_weight_that_is_computed_by_a_product_stays_out(lower: Lower, make: Make) -> None:
    model = make(lambda m, x: F.linear(x, m.A @ m.B), A=torch.randn(N, 2), B=torch.randn(2, K))
    lowered = lower(model, torch.randn(3, K))

    assert lowered.run("canonicalize") is False
    assert lowered.counts["aten.matmul"] == 1


def test_a_product_of_a_weight_and_chance_stays_out(lower: Lower, make: Make) -> None:
    # Neither stored nor an activation: it makes a weight, anew in each forward.
    model = make(
        lambda m, x: x @ (m.A @ F.dropout(m.B, 0.5, training=True)),
        A=torch.randn(K, 2),
        B=torch.randn(2, N),
    )
    lowered = lower(model, torch.randn(3, K))

    assert lowered.run("canonicalize") is False
    assert lowered.counts["aten.matmul"] == 2


def test_a_bias_with_beta_zero_is_not_looked_at(lower: Lower, make: Make) -> None:
    model = make(
        lambda m, x: torch.addmm(m.b, x, m.W, beta=0),
        W=torch.randn(K, N),
        b=torch.full((N,), float("nan")),
    )
    x = torch.randn(3, K)
    lowered = lower(model, x)

    lowered.run("canonicalize")

    assert bool(lowered(x).isfinite().all())
    torch.testing.assert_close(lowered(x), model(x))


def test_new_nodes_keep_name_place_and_provenance(lower: Lower) -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = nn.Parameter(torch.randn(K, N))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.W

    lowered = lower(nn.Sequential(nn.ReLU(), Inner()), torch.randn(3, K))
    lowered.run("canonicalize")

    (node,) = lowered.nodes("aten.linear")
    assert node.name == "matmul"
    assert module_path(node) == "1"
    assert node.meta[FROM] == (("canonicalize", "matmul"),)
    assert source_name(node) == "matmul"
    assert all("val" in n.meta for n in lowered.module.graph.nodes if n.op != "output")


# -- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cross", [False, True])
def test_packed_attention_projections_are_linear(cross: bool, lower: Lower, make: Make) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()

    def run(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        other = y if cross else x
        found: Tensor = attention(x, other, other, need_weights=False)[0]
        return found

    model = make(run, attention=attention)
    inputs = torch.randn(2, 3, 8).double(), torch.randn(2, 5, 8).double()
    lowered = lower(model, *inputs)

    lowered.run("canonicalize")

    # Self: one packed projection. Cross: the query's, and keys and values packed. Then the output.
    assert lowered.counts["aten.linear"] == (3 if cross else 2)
    torch.testing.assert_close(lowered(*inputs), model(*inputs), rtol=1e-12, atol=1e-12)


def test_parametrised_weights_are_linear_already(lower: Lower) -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(K, N)),
        parametrizations.orthogonal(nn.Linear(N, N)),
    ).eval()
    lowered = lower(model, torch.randn(3, K))

    lowered.run("canonicalize")

    assert lowered.counts["aten.linear"] == 2


# -- convolutions ---------------------------------------------------------------------------------

CONV_INPUTS = {1: (2, 4, 11), 2: (2, 4, 9, 8), 3: (1, 4, 5, 6, 7)}
CONVS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# torch says once that it copies the input; so do we, by an op of its own.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_text_padding_becomes_numbers(
    dims: int, padding: str, kernel: int, dilation: int, lower: Lower
) -> None:
    size = (kernel, *[3] * (dims - 1))  # an even and an odd side
    model = CONVS[dims](4, 6, size, padding=padding, dilation=dilation, groups=2).double().eval()
    x = torch.randn(CONV_INPUTS[dims]).double()
    if padding == "valid" and dims == 3 and dilation * (kernel - 1) >= 5:
        x = torch.randn(1, 4, 9, 9, 9).double()
    lowered = lower(model, x)

    assert lowered.run("canonicalize") is True

    (node,) = lowered.nodes(f"aten.conv{dims}d")
    assert [len(part) for part in node.args[3:6]] == [dims] * 3
    assert node.args[6] == 2
    odd = padding == "same" and dilation * (kernel - 1) % 2 == 1
    assert lowered.counts["aten.constant_pad_nd"] == odd
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_missing_conv_arguments_are_filled_in(dims: int, lower: Lower, make: Make) -> None:
    weight = torch.randn(6, 4, *[3] * dims).double()
    model = make(lambda m, x: FUNCTIONS[dims](x, m.W), W=weight)
    x = torch.randn(CONV_INPUTS[dims]).double()
    lowered = lower(model, x)

    assert lowered.run("canonicalize") is True
    (node,) = lowered.nodes(f"aten.conv{dims}d")
    assert node.args[2:] == (None, [1] * dims, [0] * dims, [1] * dims, 1)
    assert lowered.run("canonicalize") is False
    assert_same(lowered(x), model(x), model)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [2, "same"])
def test_other_padding_modes_are_an_op_of_their_own(
    mode: Any, padding: int | str, lower: Lower
) -> None:
    model = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=mode).double().eval()
    x = torch.randn(2, 4, 9, 8).double()
    lowered = lower(model, x)

    lowered.run("canonicalize")

    (node,) = lowered.nodes("aten.conv2d")
    assert node.args[4] == [0, 0]
    assert_same(lowered(x), model(x), model)


def test_unbatched_convolutions_and_strides(lower: Lower) -> None:
    model = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)).double().eval()
    x = torch.randn(4, 9, 8).double()
    lowered = lower(model, x)

    lowered.run("canonicalize")

    assert_same(lowered(x), model(x), model)


# -- decomposed programs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "shape", "op"),
    [
        (nn.Linear(K, N), (3, K), "aten.linear"),
        (nn.Linear(K, N, bias=False), (3, K), "aten.linear"),
        (nn.Linear(K, N), (2, 3, K), "aten.linear"),
        (nn.Linear(K, N), (K,), "aten.linear"),
        (nn.Conv1d(4, 6, 3, padding="same"), (2, 4, 9), "aten.conv1d"),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9, 8), "aten.conv2d"),
        (nn.Conv3d(4, 6, 2, dilation=2), (2, 4, 5, 6, 7), "aten.conv3d"),
        (nn.Conv2d(4, 6, 3), (4, 9, 8), "aten.conv2d"),
    ],
)
def test_decomposed_programs_come_back_to_layers(
    model: nn.Module, shape: tuple[int, ...], op: str, lower: Lower
) -> None:
    model, x = model.double().eval(), torch.randn(shape).double()
    program = torch.export.export(model, (x,)).run_decompositions()
    lowered = lower(program, x)
    assert lowered.counts[op] == 0

    assert lowered.run("canonicalize") is True

    assert lowered.counts[op] == 1
    assert not set(lowered.ops) & {*PRODUCTS, "aten.convolution"}
    torch.testing.assert_close(lowered(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_decomposed_transposed_convolution_is_left_alone(lower: Lower) -> None:
    model, x = nn.ConvTranspose2d(4, 6, 3).eval(), torch.randn(2, 4, 5, 5)
    lowered = lower(torch.export.export(model, (x,)).run_decompositions(), x)

    assert lowered.run("canonicalize") is False
    assert lowered.counts["aten.convolution"] == 1


def test_lifted_constants_are_detached_without_writing(lower: Lower, make: Make) -> None:
    model = make(lambda m, x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]))
    x = torch.randn(2, 4)
    lowered = lower(model, x)
    assert lowered.counts["aten.detach_"] == 1

    assert lowered.run("canonicalize") is True

    assert lowered.counts["aten.detach_"] == 0
    assert torch.equal(lowered(x), model(x))
