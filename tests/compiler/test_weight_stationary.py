"""Everything that multiplies by stored numbers goes analog, or is reported with its reason."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import analogc
from analogc.errors import UnsupportedError

HERE = Path(__file__).name
R = torch.randn


class Use(nn.Module):
    """A function of inputs and of named tensors or modules."""

    def __init__(self, function: Callable[..., Any], **held: Any) -> None:
        super().__init__()
        self.function = function
        for name, value in held.items():
            if isinstance(value, nn.Module):
                self.add_module(name, value)
            elif value.is_floating_point() or value.is_complex():
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, *inputs: Any) -> Any:
        return self.function(self, *inputs)


def ternary(w: Tensor) -> Tensor:
    """BitNet b1.58: weights of -1, 0, 1 times a scale, straight through."""
    scale = w.abs().mean()
    return w + ((w / scale).round().clamp(-1, 1) * scale - w).detach()


def use(function: Callable[..., Any], **held: Any) -> Callable[[], nn.Module]:
    return lambda: Use(function, **held)


X1, X2, X3 = R(6), R(4, 6), R(2, 5, 6)
IMAGE, IDS = R(2, 3, 8, 8), torch.randint(10, (2, 5))
W = R(7, 6)
PICKED = torch.tensor([0, 3, 1, 1])
CAUSAL = torch.ones(5, 5, dtype=torch.bool).tril()
sdpa = F.scaled_dot_product_attention


def complex_of(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (3, 2)))


def complex_conv(groups: int) -> Callable[[], nn.Module]:
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=groups, dtype=torch.complex64)
    return use(lambda m, x: torch.view_as_real(m.layer(torch.complex(x, x.flip(-1)))), layer=layer)


# (model, inputs, number of analog layers)
ANALOG: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], int]] = {
    "F.linear": (use(lambda m, x: F.linear(x, m.w), w=W), (X3,), 1),
    "mv": (use(lambda m, x: torch.mv(m.w, x), w=W), (X1,), 1),
    "addmv": (use(lambda m, x: torch.addmv(m.b, m.w, x, alpha=0.5, beta=2), w=W, b=R(7)), (X1,), 1),
    "dot": (use(lambda m, x: torch.dot(x, m.w), w=R(6)), (X1,), 1),
    "vdot": (use(lambda m, x: torch.vdot(m.w, x), w=R(6)), (X1,), 1),
    "vecdot": (use(lambda m, x: torch.linalg.vecdot(x, m.w), w=R(6)), (X2,), 1),
    "vecdot of dim": (use(lambda m, x: torch.linalg.vecdot(x, m.w, dim=0), w=R(4, 1)), (X2,), 1),
    "inner": (use(lambda m, x: torch.inner(x, m.w), w=W), (X3,), 1),
    "tensordot": (use(lambda m, x: torch.tensordot(x, m.w, ([2], [1])), w=W), (X3,), 1),
    "multi_dot": (
        use(lambda m, x: torch.linalg.multi_dot([x, m.a, m.b]), a=R(6, 4), b=R(4, 3)), (X2,), 2,
    ),
    "multi_dot to a vector": (
        use(lambda m, x: torch.linalg.multi_dot([x, m.a, m.b]), a=R(6, 4), b=R(4)), (X2,), 1,
    ),
    "chain_matmul": (
        use(lambda m, x: torch.chain_matmul(m.a, x, m.b), a=R(3, 4), b=R(6, 2)), (X2,), 2,
    ),
    "kron of weights": (use(lambda m, x: x @ torch.kron(m.a, m.b), a=R(3, 2), b=R(2, 4)), (X2,), 1),
    "addbmm": (use(lambda m, x: torch.addbmm(m.b, x, m.w), w=R(2, 6, 7), b=R(5, 7)), (X3,), 1),
    "baddbmm": (use(lambda m, x: torch.baddbmm(m.b, x, m.w), w=R(2, 6, 7), b=R(2, 5, 7)), (X3,), 2),
    "sum of a product": (use(lambda m, x: (x.unsqueeze(-2) * m.w).sum(-1), w=W), (X2,), 1),
    "sum that keeps its dim": (use(lambda m, x: (m.w * x).sum(-1, True), w=R(6)), (X2,), 1),
    "mean of a product": (
        use(lambda m, x: (x.unsqueeze(-2) * m.w).mean(2), w=W), (X2,), 1,
    ),
    "attention scores of a graph net": (
        use(lambda m, x: (x.unflatten(-1, (2, 3)) * m.w).sum(-1), w=R(1, 2, 3)), (X3,), 2,
    ),
    "conv_tbc": (use(lambda m, x: torch.conv_tbc(x, m.w, m.b, 1), w=R(3, 6, 4), b=R(4)), (X3,), 1),
    "unfold": (use(lambda m, x: m.w.flatten(1) @ F.unfold(x, 3), w=R(4, 3, 3, 3)), (IMAGE,), 1),
    "tensor unfold": (
        use(lambda m, x: torch.einsum("bchwij,ocij->bohw", x.unfold(2, 3, 1).unfold(3, 3, 1), m.w),
            w=R(4, 3, 3, 3)), (IMAGE,), 1,
    ),
    "reflect": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (IMAGE,), 1),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (IMAGE,), 1),
    "replicate": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="replicate"), (IMAGE,), 1),
    "same": (lambda: nn.Conv2d(3, 4, 4, padding="same"), (IMAGE,), 1),
    "one kernel for all channels": (
        use(lambda m, x: F.conv2d(x, m.w.expand(3, 1, 3, 3), groups=3), w=R(1, 1, 3, 3)),
        (IMAGE,), 1,
    ),
    "tied embedding": (
        use(lambda m, i: F.linear(m.e(i), m.e.weight), e=nn.Embedding(10, 6)), (IDS,), 1,
    ),
    "one-hot": (use(lambda m, i: F.one_hot(i, 10).float() @ m.w, w=R(10, 6)), (IDS,), 1),
    "weight norm": (lambda: parametrizations.weight_norm(nn.Linear(6, 7)), (X2,), 1),
    "spectral norm": (lambda: parametrizations.spectral_norm(nn.Linear(6, 7)), (X2,), 1),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(6, 6)), (X2,), 1),
    "fake-quantised": (
        use(lambda m, x: F.linear(x, (m.w / m.s).round().clamp(-8, 7) * m.s), w=W,
            s=torch.tensor(0.1)), (X2,), 1,
    ),
    "fake-quantised by torch": (
        use(lambda m, x: F.linear(x, torch.fake_quantize_per_tensor_affine(m.w, 0.1, 0, -8,
            7)), w=W),
        (X2,), 1,
    ),
    "int8 times scale": (
        use(lambda m, x: F.linear(x, m.q.float() * m.s), s=R(7, 1),
            q=torch.randint(-127, 127, (7, 6), dtype=torch.int8)), (X2,), 1,
    ),
    "ternary": (use(lambda m, x: F.linear(x, ternary(m.w)), w=W), (X2,), 1),
    "merged low-rank": (
        use(lambda m, x: F.linear(x, m.w + m.b @ m.a), w=W, a=R(2, 6), b=R(7, 2)), (X2,), 1,
    ),
    "low-rank": (
        use(lambda m, x: F.linear(x, m.w) + x @ m.a.t() @ m.b.t(), w=W, a=R(2, 6), b=R(7, 2)),
        (X2,), 3,
    ),
    "complex": (
        use(lambda m, x: torch.view_as_real(complex_of(x) @ torch.view_as_complex(m.w)),
            w=R(3, 5, 2)),
        (X2,), 1,
    ),
    "conjugate": (
        use(lambda m, x: (complex_of(x).conj() @ m.w.mH).abs(), w=R(5, 3, dtype=torch.complex64)),
        (X2,), 1,
    ),
    "complex layer": (
        use(lambda m, x: torch.view_as_real(m.l(complex_of(x))), l=nn.Linear(3, 4,
            dtype=torch.complex64)),
        (X2,), 1,
    ),
    "complex conv": (complex_conv(1), (R(2, 4, 5, 5),), 1),
    "complex grouped conv": (complex_conv(2), (R(2, 4, 5, 5),), 1),
    "Fourier layer": (
        use(lambda m, x: torch.fft.irfft(torch.einsum(
            "bim,iom->bom", torch.fft.rfft(x), torch.view_as_complex(m.w)), n=6), w=R(5, 3, 4, 2)),
        (X3,), 4,
    ),
    "stored keys and values": (
        use(lambda m, x: sdpa(x, m.k, m.v), k=R(2, 7, 6), v=R(2, 7, 6)), (X3,), 4,
    ),
    "learned queries": (use(lambda m, x: sdpa(m.q, x, x), q=R(2, 7, 6)), (X3,), 2),
    "learned queries, causal": (
        use(lambda m, x: sdpa(m.q, x, x, is_causal=True), q=R(2, 5, 6)), (X3,), 2,
    ),
    "learned queries, masked": (
        use(lambda m, x: sdpa(m.q, x, x, attn_mask=m.m, scale=0.3), q=R(2, 5, 6), m=CAUSAL),
        (X3,), 2,
    ),
    "grouped queries": (
        use(lambda m, x: sdpa(m.q, x[:, None], x[:, None], enable_gqa=True), q=R(2, 4, 5, 6)),
        (X3,), 2,
    ),
    "experts by index": (use(lambda m, i, x: torch.bmm(x[:, None], m.w[i])[:, 0], w=R(4, 6, 7)),
                         (PICKED, X2), 4),
    "transposed experts by index": (
        use(lambda m, i, x: torch.bmm(x[:, None], m.w[i].mT)[:, 0], w=R(4, 7, 6)), (PICKED, X2), 4,
    ),
    "experts by index on the left": (
        use(lambda m, i, x: (m.w.index_select(0, i) @ x[..., None])[..., 0], w=R(4, 7, 6)),
        (PICKED, X2), 4,
    ),
    "grouped_mm": (
        use(lambda m, x: torch._grouped_mm(x.bfloat16(), m.w.bfloat16(),
            torch.tensor([8, 16], dtype=torch.int32)).float(), w=R(2, 16, 16)), (R(16, 16),), 2,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:torch.chain_matmul is deprecated")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("what", ANALOG)
def test_product_with_stored_numbers_goes_analog(what: str) -> None:
    torch.manual_seed(0)
    make, inputs, layers = ANALOG[what]
    model = make().eval()
    compiled = analogc.compile(model, inputs, target="ideal", check=True, strict=True)
    assert len(compiled.coverage.analog) == layers
    wanted = model(*inputs)
    torch.testing.assert_close(compiled(*inputs), wanted, rtol=1e-5, atol=1e-6)
    weights = [p for p in model.parameters() if p.requires_grad]
    if weights and what != "grouped_mm":
        expected = torch.autograd.grad(wanted.square().sum(), weights)
        found = torch.autograd.grad(compiled(*inputs).square().sum(), weights)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:calibration data is zero")  # an expert that gets no row
@pytest.mark.parametrize("what", ["complex", "complex grouped conv", "experts by index"])
def test_lowered_products_run_on_noisy_tiles_and_survive_a_file(what: str, tmp_path: Path) -> None:
    make, inputs, _ = ANALOG[what]
    model = make().eval()
    compiled = analogc.compile(model, inputs, target="generic-8bit", seed=0, check=True)
    wanted = model(*inputs)
    assert (compiled(*inputs) - wanted).norm() < 0.05 * wanted.norm()
    compiled.save(tmp_path / "m")
    assert torch.equal(analogc.load(tmp_path / "m")(*inputs), compiled(*inputs))


ENCODER = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, dropout=0.0)
WHOLE: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], int]] = {
    "attention": (use(lambda m, x: m.m(x, x, x)[0], m=nn.MultiheadAttention(6, 2)), (X3,), 2),
    "attention with weights": (
        use(lambda m, x: m.m(x, x, x, need_weights=False)[0],
            m=nn.MultiheadAttention(6, 2, add_bias_kv=True, add_zero_attn=True)), (X3,), 2,
    ),
    "encoder": (lambda: nn.TransformerEncoder(ENCODER, 2), (X3,), 8),
    "decoder": (
        use(lambda m, x: m.m(x, x), m=nn.TransformerDecoder(
            nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True), 1)), (X3,), 7,
    ),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("what", WHOLE)
def test_attention_layers_are_analog_in_both_modes(what: str, training: bool) -> None:
    make, inputs, layers = WHOLE[what]
    model = make().train(training)
    compiled = analogc.compile(model, inputs, target="ideal", check=True, strict=True)
    assert len(compiled.coverage.analog) == layers
    torch.testing.assert_close(compiled(*inputs), model(*inputs))


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("mask", [None, "padding", "source"])
def test_fused_encoder_of_an_exported_program_is_taken_apart(
    norm_first: bool, mask: str | None
) -> None:
    layer = nn.TransformerEncoderLayer(
        6, 2, 8, batch_first=True, norm_first=norm_first, activation="gelu"
    ).eval()
    masks = {
        "padding": {"src_key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])},
        "source": {"src_mask": ~CAUSAL},
    }
    named: dict[str, Tensor] = masks.get(mask or "", {})
    fused = torch.ops.aten._transformer_encoder_layer_fwd.default
    with torch.no_grad():
        exported = torch.export.export(layer, (X3,), named, strict=True)
        assert fused in {node.target for node in exported.graph.nodes}
        compiled = analogc.compile(exported, target="ideal", check=True, strict=True)
        assert len(compiled.coverage.analog) == 4
        torch.testing.assert_close(compiled(X3, **named), layer(X3, **named))


# -- what cannot go analog ------------------------------------------------------------------------


@torch.library.custom_op("analogc_test::opaque_product", mutates_args=())
def opaque_product(x: Tensor, weight: Tensor) -> Tensor:
    """A body that nothing can look into."""
    return x @ weight.t()


@opaque_product.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class Sparse(nn.Module):
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", (R(7, 6) * (torch.rand(7, 6) > 0.5)).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.sparse.mm(self.weight, x.t()).t()
        return out


INT8 = torch.randint(-9, 9, (32, 16), dtype=torch.int8)
UNSUPPORTED: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...], str]] = {
    "cdist": (use(lambda m, x: torch.cdist(x, m.p), p=W), (X2,), "a distance to stored points"),
    "pairwise_distance": (
        use(lambda m, x: F.pairwise_distance(x[:, None], m.p), p=W), (X2,), "a distance to stored",
    ),
    "cosine_similarity": (
        use(lambda m, x: F.cosine_similarity(x[:, None], m.p, dim=-1), p=W), (X2,), "normalize",
    ),
    "solve": (use(lambda m, x: torch.linalg.solve(m.a, x), a=R(4, 4)), (X2,), "its inverse"),
    "weighted embedding bag": (
        use(lambda m, i, w: m.e(i, per_sample_weights=w), e=nn.EmbeddingBag(10, 6, mode="sum")),
        (IDS, R(2, 5)), "one_hot",
    ),
    "integers": (
        use(lambda m, x: torch._int_mm(x, m.q), q=INT8), (torch.ones(32, 32, dtype=torch.int8),),
        "its weight is int8: tiles hold real numbers; multiply by the dequantised weight",
    ),
    "sparse": (Sparse, (X2,), "its weight is sparse: tiles hold a dense one, weight.to_dense()"),
    "custom": (
        use(lambda m, x: opaque_product(x, m.w), w=W), (X2,),
        "lowerings={torch.ops.analogc_test.opaque_product.default: function}",
    ),
    "picked by a condition": (
        use(lambda m, x: F.linear(x, torch.where(x.sum() > 0, m.v, m.w)), w=W, v=R(7, 6)), (X2,),
        "an activation picks its weight",
    ),
    "too many matrices": (
        use(lambda m, x: sdpa(x.expand(65, 5, 6), m.k, x.expand(65, 5, 6)), k=R(65, 5, 6)),
        (X3[:1],),
        "its stored operand stacks 65 matrices, more than 64: lower-products{experts=65}",
    ),
    "too many experts": (
        use(lambda m, i, x: torch.bmm(x[:, None], m.w[i]), w=R(513, 6, 7)),
        (PICKED, X2), "513 matrices, more than 512: lower-indexed-products{experts=513}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSUPPORTED)
def test_what_has_no_analog_form_is_reported_and_refused_by_strict(what: str) -> None:
    make, inputs, reason = UNSUPPORTED[what]
    model = make().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = analogc.compile(model, inputs, target="ideal", check=True)
        torch.testing.assert_close(compiled(*inputs), model(*inputs))
        (row,) = compiled.coverage.unsupported
        assert reason in row.reason
        assert HERE in str(row.line)
        with pytest.raises(UnsupportedError) as info:
            analogc.compile(model, inputs, target="ideal", strict=True)
    assert row.reason in info.value.message and f"%{row.node}" in info.value.message
    assert HERE in info.value.message


DIGITAL: dict[str, tuple[Callable[[], nn.Module], tuple[Tensor, ...]]] = {
    "scale": (use(lambda m, x: x * m.s + m.b, s=R(5, 6), b=R(5, 6)), (X3,)),
    "norms": (lambda: nn.Sequential(nn.LayerNorm((5, 6)), nn.Softmax(-1)), (X3,)),
    "group norm": (lambda: nn.Sequential(nn.GroupNorm(1, 3), nn.PReLU(3)), (IMAGE,)),
    "embedding": (lambda: nn.Embedding(10, 6), (IDS,)),
    "embedding bag": (lambda: nn.EmbeddingBag(10, 6), (IDS,)),
    "outer": (use(lambda m, x: torch.outer(x, m.w), w=R(7)), (X1,)),
    "kron": (use(lambda m, x: torch.kron(x, m.w), w=R(3, 2)), (X2,)),
    "select": (use(lambda m, i: m.w[i], w=R(10, 6)), (IDS,)),
    "cat": (use(lambda m, x: torch.cat([x, m.w]), w=R(3, 6)), (X2,)),
    "rotary": (use(lambda m, x: x * m.f.cos() + x.flip(-1) * m.f.sin(), f=R(5, 6)), (X3,)),
    "FFT": (use(lambda m, x: torch.fft.irfft(torch.fft.rfft(x) * m.w, n=6), w=R(5, 4)), (X3,)),
    "sum of a scaled input": (use(lambda m, x: (x * m.w).sum(1), w=R(6)), (X3,)),
}  # fmt: skip


@pytest.mark.parametrize("what", DIGITAL)
def test_elementwise_work_with_stored_numbers_is_digital_by_rule(what: str) -> None:
    make, inputs = DIGITAL[what]
    compiled = analogc.compile(make().eval(), inputs, target="ideal", check=True, strict=True)
    assert {row.kind for row in compiled.coverage.rows} == {"rule"}


def test_products_of_parameters_alone_are_listed_with_their_work() -> None:
    model = Use(lambda m, x: x + m.a @ m.b, a=R(5, 3), b=R(3, 6))
    report = analogc.compile(model, (X3,), target="ideal").coverage
    assert [(r.op, r.kind, r.macs) for r in report.rows] == [
        ("aten.matmul", "rule", 5 * 3 * 6), ("aten.add.Tensor", "rule", 0),
    ]  # fmt: skip
    assert report.rows[0].reason == "of parameters alone: no activation"


def test_quantised_and_lazy_modules_are_refused_with_the_way_out() -> None:
    import torch.ao.nn.quantized as quantized

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.ReLU(), quantized.Linear(6, 7))
    with pytest.raises(UnsupportedError, match="submodule '1' is a Linear of torch.ao") as info:
        analogc.compile(model, (X2,))
    assert "compile the float model" in str(info.value.fix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lazy = nn.Sequential(nn.LazyLinear(4))
    with pytest.raises(analogc.errors.InputError, match="'weight' of submodule '0' has no shape"):
        analogc.compile(lazy, (X2,))
