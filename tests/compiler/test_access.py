"""``weight_access``: readonly weights read like tensors and cannot be written; sealed ones show
metadata only; the model computes the same and follows the user's own parameters in every mode.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import io
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import analogc
from analogc import CompiledModel
from analogc.compiler import archive, archive_write
from analogc.errors import AccessError, FormatError, InputError, SyncError, UnsupportedError
from analogc.runtime.guard import refusal

from .write_routes import ROUTES

MODES = ["direct", "readonly", "sealed"]
GUARDED = MODES[1:]


Case = tuple[Any, CompiledModel, Tensor]


def build(mode: str, folded: bool = False, **options: Any) -> Case:
    """A model, compiled, and its input."""
    torch.manual_seed(0)
    middle = [nn.BatchNorm1d(12)] if folded else []
    model: Any = nn.Sequential(nn.Linear(12, 12), *middle, nn.ReLU(), nn.Linear(12, 5)).eval()
    x = torch.randn(4, 12)
    compiled = analogc.compile(model, (x,), seed=0, weight_access=mode, **options)  # type: ignore[arg-type]
    return model, compiled, x


_built = functools.cache(build)


def copied(mode: str, folded: bool = False) -> Case:
    """As ``build``, which takes longer."""
    case: Case = copy.deepcopy(_built(mode, folded))
    return case


class Shown:
    """A compiled model with its layers by index, as the routes expect them."""

    def __init__(self, compiled: CompiledModel) -> None:
        self.compiled = compiled

    def __getitem__(self, index: int) -> nn.Module:
        return self.compiled.get_submodule(str(index))

    def __setitem__(self, index: int, module: nn.Module) -> None:
        setattr(self.compiled, str(index), module)

    def __call__(self, x: Tensor) -> Any:
        return self.compiled(x)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)


# -- writing --------------------------------------------------------------------------------------

# numpy gives a copy, and refuses to write it.
COPIES = {"numpy", "numpy_inplace", "asarray", "memoryview"}


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class AddOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        return a.add_(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def _hook(m: Any) -> None:
    m[0].weight.register_post_accumulate_grad_hook(lambda p: p.data.add_(1))
    m(torch.randn(4, 12)).sum().backward()


def _inplace_add(m: Any) -> None:
    w = m[0].weight
    w += 1


def _inplace_or(m: Any) -> None:
    bits = m[0].weight.detach().view(torch.int32)
    bits |= 1


def _decoy(m: Any) -> None:
    # torch's C++ looks at no __torch_function__ here; what it finds is not the weight.
    capsule = torch._C._to_dlpack(m[0].weight)
    torch.utils.dlpack.from_dlpack(capsule)[1, 1] = 7.0


def _as_grad(m: Any) -> None:
    other = nn.Parameter(torch.ones(12, 12))
    other.grad = m[0].weight.detach()
    other.grad.zero_()


def _sparse(m: Any) -> None:
    indices = torch.arange(12)[None]
    values = m[0].weight.detach()
    torch.sparse_coo_tensor(indices, values, check_invariants=True)._values().zero_()
    # The values were copied.
    raise refusal("0", m.weight_access, "writing a copy")


def _momentum(m: Any) -> None:
    w, other = m[0].weight.detach(), torch.ones(12, 12)
    torch._fused_sgd_(
        [other], [other.clone()], [w], weight_decay=0.0, momentum=0.9, lr=0.1, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=True,
    )  # fmt: skip


def _torch_function_off(m: Any) -> None:
    with torch._C.DisableTorchFunctionSubclass():
        m[0].weight.detach().add_(1)


MORE: dict[str, Callable[[Any], Any]] = {
    "outside no_grad": lambda m: m[0].weight.add_(1),
    "+=": _inplace_add,
    "|= on a view": _inplace_or,
    "keyword out": lambda m: torch.neg(m[0].weight.detach(), out=m[0].weight),
    "out of plain operands": lambda m: torch.neg(torch.ones(12, 12), out=m[0].weight.detach()),
    "through get()": lambda m: m.weights["0"].get().data.zero_(),
    "set()": lambda m: m.weights["0"].set(torch.zeros(12, 12)),
    "named_parameters": lambda m: dict(m.named_parameters())["0.weight"].data.zero_(),
    "get_parameter": lambda m: m.get_parameter("0.weight").data.zero_(),
    "owning module": lambda m: m.graph.owning_module.get_parameter("0.weight").data.zero_(),
    "state_dict keep_vars": lambda m: m.state_dict(keep_vars=True)["0.weight"].data.zero_(),
    "rows": lambda m: next(iter(m[0].weight)).data.zero_(),
    "unbind": lambda m: m[0].weight.data.unbind()[0].zero_(),
    "chunks": lambda m: m[0].weight.detach().chunk(2)[0].zero_(),
    "base of a view": lambda m: m[0].weight.T._base.data.zero_(),
    "real part": lambda m: setattr(m[0].weight, "real", torch.zeros(12, 12)),
    "as_strided": lambda m: m[0].weight.data.as_strided((3,), (1,)).zero_(),
    "contiguous": lambda m: m[0].weight.data.contiguous().zero_(),
    "to": lambda m: m[0].weight.data.to(torch.float32).zero_(),
    "no-op cpu": lambda m: m[0].weight.data.cpu().zero_(),
    "another Parameter": lambda m: nn.Parameter(m[0].weight).data.zero_(),
    "as_subclass": lambda m: m[0].weight.data.as_subclass(Tensor).zero_(),
    "as_tensor": lambda m: torch.as_tensor(m[0].weight).data.zero_(),
    "asarray of torch": lambda m: torch.asarray(m[0].weight).data.zero_(),
    "batch norm statistics": lambda m: F.batch_norm(
        torch.randn(5, 12), m[0].weight.data[0], m[0].weight.data[1], training=True
    ),
    "autograd function": lambda m: AddOne.apply(m[0].weight.data),  # type: ignore[no-untyped-call]
    "post accumulate hook": _hook,
    "memory of another tensor": lambda m: torch.empty(0).set_(m[0].weight.detach()),
    "gradient of another tensor": _as_grad,
    "momentum of another tensor": _momentum,
    "values of a sparse tensor": _sparse,
    "vmap": lambda m: torch.func.vmap(lambda row: row.zero_())(m[0].weight.detach()),
    "func.grad": lambda m: torch.func.grad(lambda w: w.data.zero_().sum())(m[0].weight.detach()),
    "module_load": lambda m: m[0].weight.detach().module_load(torch.zeros(12, 12)),
    "compiled function": lambda m: torch.compile(lambda w: w.zero_(), backend="eager")(
        m[0].weight.detach()
    ),
    "share_memory_": lambda m: m[0].weight.share_memory_(),
    "resize_": lambda m: m[0].weight.data.resize_(3),
    "storage": lambda m: m[0].weight.storage(),
    "data_ptr": lambda m: ctypes.memset(m[0].weight.data_ptr(), 0, 4),
    "swapped the other way": lambda m: torch.utils.swap_tensors(
        nn.Parameter(torch.randn(12, 12)), m[0].weight
    ),
    "class": lambda m: setattr(m[0].weight, "__class__", nn.Parameter),
    "inference mode": lambda m: torch.inference_mode()(lambda: m[0].weight.add_(1))(),
    "without __torch_function__": _torch_function_off,
    "ema": lambda m: torch.optim.swa_utils.AveragedModel(m.compiled).update_parameters(m.compiled),
    "apply": lambda m: m.apply(lambda part: [p.zero_() for p in part.parameters()] and None),
    "to_empty": lambda m: m.to_empty(device="cpu"),
    "to_empty of a layer": lambda m: m[0].to_empty(device="cpu"),
    "load into a layer": lambda m: m[0].load_state_dict({"weight": torch.zeros(12, 12)}),
    "load into a parent": lambda m: nn.Sequential(m.compiled).load_state_dict(
        {"0.0.weight": torch.zeros(12, 12)}, strict=False
    ),
    "replaced module": lambda m: m.__setitem__(0, nn.Linear(12, 12)),
    "set_submodule": lambda m: m.set_submodule("0", nn.Linear(12, 12)),
    "add_module": lambda m: m.add_module("0", nn.Linear(12, 12)),
    "deleted module": lambda m: m.delete_submodule("0"),
    "deleted parameter": lambda m: delattr(m[0], "weight"),
    "no parameter": lambda m: setattr(m[0], "weight", None),
    "register_parameter": lambda m: m[0].register_parameter("weight", nn.Parameter(torch.ones(1))),
    "table": lambda m: m[0]._parameters.update(weight=nn.Parameter(torch.ones(12, 12))),
    "cleared table": lambda m: m[0]._parameters.clear(),
    "second name": lambda m: m[0].register_parameter("other", m[0].weight),
    "functional_call": lambda m: torch.func.functional_call(
        m.compiled, {"0.weight": torch.zeros(12, 12)}, (torch.randn(4, 12),)
    ),
    "parametrization": lambda m: parametrize.register_parametrization(m[0], "weight", Double()),
    "weight_norm": lambda m: parametrizations.weight_norm(m[0]),
    "spectral_norm": lambda m: parametrizations.spectral_norm(m[0]),
    "pruning": lambda m: prune.l1_unstructured(m[0], "weight", 0.5),
}


@pytest.mark.parametrize("folded", [False, True], ids=["plain", "folded"])
@pytest.mark.parametrize("mode", GUARDED)
@pytest.mark.parametrize("name", [*ROUTES, *MORE])
def test_no_write_gets_through(
    name: str, mode: str, folded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, compiled, x = copied(mode, folded)
    with torch.no_grad():
        before = compiled(x)
    state = copy.deepcopy(model.state_dict())
    threads: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: threads.append(args.exc_value))
    error: BaseException | None = None
    try:
        {**ROUTES, **MORE}[name](Shown(compiled))
    except (AccessError, TypeError, ValueError) as err:
        error = err
    error = threads[0] if threads else error
    if mode == "readonly" and name in COPIES:
        assert isinstance(error, TypeError | ValueError)
        assert "read-only" in str(error)
    else:
        assert isinstance(error, AccessError), error
        assert "layer '0'" in str(error) and "weight_access='direct'" in str(error)
        assert ("compiled.weights['0'].read()" in str(error)) == (mode == "sealed")
    for key, value in state.items():
        assert torch.equal(model.state_dict()[key], value), key
    with torch.no_grad():
        assert torch.equal(compiled(x), before)
    assert compiled.weights["0"].times_programmed == 1
    assert torch.equal(copy.deepcopy(model)[0].weight, model[0].weight)


@pytest.mark.parametrize("mode", GUARDED)
def test_what_goes_round_the_guard_finds_no_weight(mode: str) -> None:
    model, compiled, _ = build(mode)
    before = model[0].weight.detach().clone()
    other = torch.empty(0)
    other.data = compiled.get_parameter("0.weight")
    assert other.isnan().all()
    other[0, 0] = 7.0
    _decoy(Shown(compiled))
    assert torch.equal(model[0].weight, before)
    with torch._C.DisableTorchFunctionSubclass():
        assert compiled.get_parameter("0.weight").data_ptr() != model[0].weight.data_ptr()


@pytest.mark.parametrize("mode", GUARDED)
def test_a_refused_step_or_load_changes_nothing_at_all(mode: str) -> None:
    model, compiled, x = build(mode)
    bias = model[2].bias.detach().clone()
    optimizer = torch.optim.SGD(list(compiled.parameters())[::-1], lr=1.0, foreach=False)
    compiled(x).sum().backward()
    with pytest.raises(AccessError, match="optimizer"):
        optimizer.step()
    state = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    with pytest.raises(AccessError, match="loading"):
        compiled.load_state_dict(dict(reversed(state.items())))
    assert torch.equal(model[2].bias, bias)


@pytest.mark.parametrize("mode", GUARDED)
def test_the_users_own_parameters_are_written_as_ever(mode: str) -> None:
    model, compiled, x = build(mode)
    shown = compiled.get_parameter("0.weight")
    with torch.no_grad():
        model[0].weight.mul_(2.0)
        _, expected, _ = build("direct")
        expected.get_parameter("0.weight").copy_(model[0].weight)
        assert torch.equal(compiled(x), expected(x))
        assert compiled.weights["0"].times_programmed == 2
        if mode == "readonly":
            assert torch.equal(shown, model[0].weight)
            model[0].weight.mul_(shown)
            assert torch.equal(shown, model[0].weight)
        model[0].weight = nn.Parameter(torch.zeros(12, 12))
        assert compiled.get_parameter("0.weight") is not shown
        assert torch.equal(compiled.weights["0"].read(), torch.zeros(12, 12))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    before = compiled(x)
    before.sum().backward()
    optimizer.step()
    assert not torch.equal(compiled(x), before)


# -- reading --------------------------------------------------------------------------------------

VALUES: dict[str, Callable[[Tensor], Any]] = {
    "norm": lambda w: w.norm(),
    "torch.norm": lambda w: torch.linalg.norm(w),
    "sum": lambda w: w.sum(),
    "max": lambda w: w.max(dim=0),
    "item": lambda w: w[0, 0].item(),
    "float": lambda w: float(w.detach()[0, 0]),
    "bool": lambda w: bool((w > 100).any()),
    "tolist": lambda w: w.tolist(),
    "nonzero": lambda w: w.nonzero(),
    "comparison": lambda w: w > 10,
    "equality": lambda w: w == w,
    "torch.equal": lambda w: torch.equal(w, w.detach()),
    "allclose": lambda w: torch.allclose(w, w),
    "index": lambda w: w[1],
    "slice": lambda w: w[1:3, ::2],
    "mask": lambda w: w[torch.eye(12, dtype=torch.bool)],
    "contains": lambda w: 7.25 in w,
    "iteration": lambda w: list(w),
    "unbind": lambda w: w.unbind(1),
    "transpose": lambda w: w.T,
    "mT": lambda w: w.mT,
    "view": lambda w: w.view(-1),
    "reshape": lambda w: w.reshape(3, 48),
    "flatten": lambda w: w.flatten(),
    "clone": lambda w: w.clone(),
    "arithmetic": lambda w: 2 * w + 1 - w / 3,
    "abs": lambda w: abs(w),
    "matmul": lambda w: torch.ones(2, 12) @ w,
    "linear": lambda w: F.linear(torch.ones(2, 12), w),
    "foreach": lambda w: torch._foreach_norm([w, w]),
    "cat": lambda w: torch.cat([w, w]),
    "add to a plain tensor": lambda w: torch.zeros(12, 12).add_(w.detach()),
    "out of a read": lambda w: torch.add(w.detach(), 1, out=torch.empty(12, 12)),
    "copy to a plain tensor": lambda w: torch.empty(12, 12).copy_(w.detach()),
    "numpy": lambda w: w.detach().numpy(),
    "asarray": lambda w: np.asarray(w.detach()),
    "numpy ufunc": lambda w: np.sin(np.asarray(w.detach())),
    "torch.tensor": lambda w: torch.tensor(w.tolist()),
    "new_tensor": lambda w: w.new_tensor(w.tolist()),
    "double": lambda w: w.double(),
    "type": lambda w: w.type(torch.float64),
    "parameters_to_vector": lambda w: nn.utils.parameters_to_vector([w]),
    "func.grad": lambda w: torch.func.grad(lambda v: (v * v).sum())(w.detach()),
    "vmap": lambda w: torch.func.vmap(lambda row: row.sum())(w.detach()),
    "autograd.grad": lambda w: torch.autograd.grad(w.square().sum(), w)[0],
    "deepcopy": lambda w: copy.deepcopy(w),
    "copy": lambda w: copy.copy(w),
    "pickle": lambda w: pickle.loads(pickle.dumps(w)),
    "torch.save": lambda w: _saved(w),
}


def _saved(value: Any) -> Any:
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b) and a.requires_grad == b.requires_grad
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b))
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("name", VALUES)
def test_reading_values(name: str) -> None:
    model, readonly, _ = copied("readonly")
    _, sealed, _ = copied("sealed")
    found = VALUES[name](readonly.get_parameter("0.weight"))
    assert same(found, VALUES[name](model[0].weight))
    with pytest.raises(AccessError, match=r"weights\['0'\]\.read\(\)"):
        VALUES[name](sealed.get_parameter("0.weight"))


def _freeze(w: Tensor) -> bool:
    w.requires_grad = False
    return w.requires_grad


METADATA: dict[str, Callable[[Tensor], Any]] = {
    **{
        name: lambda w, name=name: getattr(w, name)  # type: ignore[misc]
        for name in (
            "shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_cpu", "is_meta", "is_mps",
            "is_sparse", "is_quantized", "is_leaf", "requires_grad", "grad", "itemsize", "nbytes",
            "_version", "retains_grad", "output_nr", "is_nested", "grad_fn",
        )
    },
    **{
        name: lambda w, name=name: getattr(w, name)()  # type: ignore[misc]
        for name in (
            "size", "dim", "numel", "nelement", "stride", "storage_offset", "element_size",
            "is_contiguous", "is_floating_point", "is_complex", "is_signed", "get_device",
            "ndimension", "type", "is_inference", "is_shared", "dim_order", "__len__",
        )
    },
    "size of a dim": lambda w: w.size(1),
    "stride of a dim": lambda w: w.stride(0),
    "len": len,
    "torch.numel": torch.numel,
    "torch.is_floating_point": torch.is_floating_point,
    "is_tensor": torch.is_tensor,
    "result_type": lambda w: torch.result_type(w, 1),
    "is_same_size": lambda w: w.is_same_size(torch.empty(12, 12)),
    "is_parameter": lambda w: isinstance(w, nn.Parameter),
    "zeros_like": lambda w: torch.zeros_like(w),
    "ones_like": lambda w: torch.ones_like(w),
    "new_zeros": lambda w: w.new_zeros(3),
    "hash": lambda w: hash(w) == id(w),
    "detached shape": lambda w: w.detach().shape,
    "data shape": lambda w: w.data.dtype,
    "keys": lambda w: "shape" in dir(w) and "norm" in dir(w),
    "hook": lambda w: w.register_hook(lambda grad: grad).remove(),
    "freeze": lambda w: w.requires_grad_(False).requires_grad,
    "freeze by attribute": lambda w: _freeze(w),
}  # fmt: skip


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METADATA)
def test_metadata_in_every_mode(name: str, mode: str) -> None:
    model, _, _ = copied("direct")
    _, compiled, _ = copied(mode)
    assert same(METADATA[name](compiled.get_parameter("0.weight")), METADATA[name](model[0].weight))


@pytest.mark.parametrize("mode", MODES)
def test_dir_and_repr_work_in_every_mode(mode: str) -> None:
    model, compiled, _ = build(mode)
    w = compiled.get_parameter("0.weight")
    layer = compiled.get_submodule("0")
    assert "weight" in dir(layer) and "weights" in dir(compiled)
    assert "0.weight" in repr(compiled) and repr(layer) and repr(compiled.weights)
    assert "[12, 12]" in repr(compiled.weights["0"])
    assert str(w) == repr(w) == f"{w}"
    number = f"{model[0].weight[0, 0].item():.4f}"
    assert (number in repr(w)) == (mode != "sealed")
    if mode == "sealed":
        assert repr(w) == "sealed weight of '0': [12, 12], torch.float32"


def test_numpy_of_a_readonly_weight_is_a_readonly_copy() -> None:
    model, compiled, _ = build("readonly")
    array = compiled.get_parameter("0.weight").detach().numpy()
    assert not array.flags.writeable
    assert not np.shares_memory(array, model[0].weight.detach().numpy())


def test_readonly_weights_take_part_in_autograd() -> None:
    model, compiled, _ = build("readonly")
    compiled.get_parameter("0.weight").square().sum().backward()
    torch.testing.assert_close(model[0].weight.grad, 2 * model[0].weight.detach())
    assert compiled.get_parameter("0.weight").grad is model[0].weight.grad
    compiled.zero_grad()
    assert model[0].weight.grad is None


@pytest.mark.parametrize("what", ["state", "layer", "model"])
def test_copies_and_pickles_of_what_is_shown(what: str) -> None:
    parts: dict[str, Callable[[CompiledModel], Any]] = {
        "state": lambda c: c.state_dict(),
        "layer": lambda c: c.get_submodule("0"),
        "model": lambda c: c,
    }
    for mode in GUARDED:
        model, compiled, _ = build(mode)
        shown = parts[what](compiled)
        ways: list[Callable[[Any], Any]] = [
            copy.deepcopy,
            lambda value: pickle.loads(pickle.dumps(value)),
        ]
        for make in ways:
            if mode == "sealed" and what != "model":
                with pytest.raises(AccessError):
                    make(shown)
                continue
            made = make(shown)
            if what == "model":
                assert made.weight_access == mode
                continue
            weight = made["0.weight"] if what == "state" else made.weight
            assert type(weight) in (Tensor, nn.Parameter)
            assert torch.equal(weight, model[0].weight)
            weight.data.zero_()
            assert model[0].weight.any()
        assert copy.copy(compiled.get_submodule("0")) is compiled.get_submodule("0")


# -- what is guarded ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", GUARDED)
def test_only_analog_weights_are_guarded(mode: str) -> None:
    model, compiled, _ = build(mode, folded=True)
    plain = {name for name, p in compiled.named_parameters() if p is model.get_parameter(name)}
    assert plain == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert compiled.get_buffer("1.running_var") is model[1].running_var
    assert [n for n, _ in compiled.named_parameters()] == [n for n, _ in model.named_parameters()]
    with torch.no_grad():
        compiled.get_parameter("1.weight").mul_(2.0)
    assert compiled.sync() == ["0"]


@pytest.mark.parametrize("mode", GUARDED)
def test_layers_kept_digital_stay_plain(mode: str) -> None:
    model, compiled, _ = build(mode, select="2")
    assert compiled.get_parameter("2.weight") is model[2].weight
    assert compiled.get_parameter("0.weight") is not model[0].weight
    compiled.load_state_dict({"2.weight": torch.zeros(5, 12)}, strict=False)
    assert not model[2].weight.any()
    setattr(compiled, "2", nn.Linear(12, 5))


@pytest.mark.parametrize("mode", GUARDED)
def test_a_computed_weight_is_guarded_with_its_sources(mode: str) -> None:
    layer = parametrizations.weight_norm(nn.Linear(6, 4))
    compiled = analogc.compile(layer, (torch.randn(2, 6),), weight_access=mode)  # type: ignore[arg-type]
    (weight,) = compiled.weights.values()
    for shown in (*(p for p in compiled.parameters() if p.dim() > 1), weight.get()):
        with pytest.raises(AccessError):
            shown.data.zero_()
    with pytest.raises(UnsupportedError, match="computed"):
        _ = weight.parameter
    assert weight.get().shape == (4, 6)
    torch.testing.assert_close(weight.read(), layer.weight, atol=0.02, rtol=0)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Any:
        return self.head(self.embedding(tokens))


@pytest.mark.parametrize("mode", GUARDED)
def test_a_tied_weight_has_one_guard_under_both_names(mode: str) -> None:
    model = Tied()
    compiled = analogc.compile(model, (torch.arange(5),), weight_access=mode)  # type: ignore[arg-type]
    assert compiled.get_parameter("embedding.weight") is compiled.get_parameter("head.weight")
    assert len(list(compiled.parameters())) == 1
    with pytest.raises(AccessError):
        compiled.get_parameter("embedding.weight").data.zero_()
    model.embedding.weight = nn.Parameter(torch.zeros(7, 6))
    # The layer goes by the first name; what has the other one is on no tile any more.
    assert compiled.get_parameter("embedding.weight") is not model.embedding.weight
    assert compiled.get_parameter("head.weight") is model.head.weight


@pytest.mark.parametrize("mode", GUARDED)
def test_a_guard_keeps_its_identity(mode: str) -> None:
    _, compiled, _ = build(mode)
    w = compiled.get_parameter("0.weight")
    assert w is compiled.get_submodule("0").weight is compiled.weights["0"].get()
    assert w is next(compiled.parameters()) is compiled.weights["0"].parameter
    assert w.requires_grad_() is w


# -- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["ideal", "generic-8bit", "generic-8bit-noisy"])
@pytest.mark.parametrize("folded", [False, True])
def test_every_mode_computes_the_same(target: str, folded: bool) -> None:
    found = []
    for mode in MODES:
        model, compiled, x = build(mode, folded, target=target)
        y = compiled(x)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in model.parameters())])
    assert same(found[0], found[1]) and same(found[0], found[2])


@pytest.mark.parametrize("mode", MODES)
def test_modes_of_training_devices_and_dtypes(mode: str) -> None:
    model, compiled, x = build(mode, folded=True)
    compiled.train()
    assert compiled.training and compiled.get_submodule("1").training
    compiled(x)
    assert model[1].num_batches_tracked == 1
    compiled.get_submodule("1").eval()
    assert not compiled._root.get_submodule("1").training
    compiled.eval()
    w = compiled.get_parameter("0.weight")
    compiled.double()
    assert w.dtype == model[0].weight.dtype == compiled.get_parameter("0.weight").dtype
    assert model[0].weight.dtype == torch.float64
    assert compiled(x.double()).dtype == torch.float64
    compiled.get_submodule("0").float()
    assert model[0].weight.dtype == torch.float32
    compiled.to("meta")
    assert compiled.get_parameter("0.weight").is_meta and compiled.get_parameter("0.weight").size()


@pytest.mark.parametrize("mode", GUARDED)
def test_under_torch_compile(mode: str) -> None:
    model, compiled, x = build(mode)
    fast = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(fast(x), compiled(x))
        model[0].weight.data.mul_(2.0)
        assert torch.equal(fast(x), compiled(x))


@pytest.mark.parametrize("mode", MODES)
def test_files_and_copies_keep_the_mode(mode: str, tmp_path: Path) -> None:
    _, compiled, x = build(mode)
    compiled.save(tmp_path / "model")
    stream = io.BytesIO()
    torch.save(compiled, stream)
    stream.seek(0)
    for again in (
        analogc.load(tmp_path / "model"),
        copy.deepcopy(compiled),
        pickle.loads(pickle.dumps(compiled)),
        torch.load(stream, weights_only=False),
        next(copy.deepcopy(nn.Sequential(compiled)).children()),
    ):
        assert isinstance(again, CompiledModel)
        assert again.weight_access == again.weights["0"].access == mode
        with torch.no_grad():
            assert torch.equal(again(x), compiled(x))
        if mode != "direct":
            with pytest.raises(AccessError):
                again.get_parameter("0.weight").data.zero_()


@pytest.mark.parametrize("value", [None, "open", 3])
def test_a_file_without_a_known_mode_is_refused(
    value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, compiled, _ = build("sealed")
    describe = archive_write.describe

    def altered(model: CompiledModel) -> Any:
        manifest, tensors = describe(model)
        del manifest["weight_access"]
        if value is not None:
            manifest["weight_access"] = value
        return json.loads(json.dumps(manifest)), tensors

    monkeypatch.setattr(archive, "describe", altered)
    compiled.save(tmp_path / "model")
    with pytest.raises(FormatError, match="weight_access"):
        analogc.load(tmp_path / "model")


@pytest.mark.parametrize("value", ["open", None, 1, ["sealed"]])
def test_an_unknown_mode(value: Any) -> None:
    with pytest.raises(InputError, match="'direct', 'readonly', 'sealed'"):
        analogc.compile(nn.Linear(3, 2), (torch.randn(1, 3),), weight_access=value)


@pytest.mark.parametrize("mode", GUARDED)
def test_compiling_or_exporting_what_is_guarded_is_refused(mode: str) -> None:
    _, compiled, x = build(mode)
    with pytest.raises(AccessError):
        torch.export.export(compiled, (x,))
    with pytest.raises(UnsupportedError, match="the model is compiled"):
        analogc.compile(compiled, (x,))


# -- get, set, read -------------------------------------------------------------------------------


def test_get_is_the_live_tensor_and_set_writes_it_in_place() -> None:
    model, compiled, _ = build("direct")
    weight = compiled.weights["0"]
    assert weight.access == "direct" and weight.get() is model[0].weight
    alias = model[0].weight.detach()
    weight.set(torch.ones(12, 12))
    assert torch.equal(alias, torch.ones(12, 12)) and weight.get() is model[0].weight
    for bad, what in (
        (torch.ones(12, 3), "shape"),
        (torch.ones(12, 12, dtype=torch.float64), "dtype"),
        (torch.ones(12, 12, device="meta"), "device"),
        ([[1.0]], "no tensor but list"),
        (np.ones((12, 12)), "no tensor but ndarray"),
    ):
        with pytest.raises(InputError, match=rf"'0'.*{what}"):
            weight.set(bad)  # type: ignore[arg-type]
    assert torch.equal(alias, torch.ones(12, 12))


def test_docstrings_point_to_the_physical_ways() -> None:
    kind = analogc.compiler.weights.AnalogWeight
    assert "read()" in str(kind.get.__doc__) and "program()" in str(kind.set.__doc__)


def test_sealed_refuses_the_simulators_view() -> None:
    _, compiled, _ = build("sealed")
    with pytest.raises(AccessError, match=r"programmed\(\).*"):
        compiled.weights["0"].programmed()
    _, compiled, _ = build("readonly")
    assert compiled.weights["0"].programmed().shape == (12, 12)


class Net(nn.Module):
    """A linear layer on several tiles, a grouped and a plain convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.grouped = nn.Conv2d(8, 6, 3, groups=2)
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Any:
        return self.fc(self.grouped(self.conv(x)).flatten(1))


NET = ("conv", "grouped", "fc")


def compiled_net(**changes: Any) -> tuple[CompiledModel, Net]:
    net = Net()
    access = changes.pop("weight_access", "direct")
    target = analogc.Target(tile=analogc.TileSpec(rows=10, cols=8), **changes)
    x = torch.randn(2, 3, 6, 6)
    return analogc.compile(net, (x,), target=target, weight_access=access, seed=1), net


@pytest.mark.parametrize("scale", ["column", "tensor"])
def test_without_converters_and_noise_a_read_is_what_is_programmed(scale: str) -> None:
    device = analogc.GaussianDevice(sigma=0.05)
    compiled, net = compiled_net(dac=None, adc=None, device=device, weight_scale=scale)
    for name in NET:
        found = compiled.weights[name].read()
        assert torch.equal(found, compiled.weights[name].programmed())
        assert found.shape == net.get_parameter(f"{name}.weight").shape
        assert not torch.equal(found, net.get_parameter(f"{name}.weight"))


def test_an_ideal_weight_is_read_exactly_and_as_a_copy() -> None:
    model, compiled, _ = build("sealed", target="ideal")
    found = compiled.weights["0"].read()
    assert torch.equal(found, model[0].weight) and type(found) is Tensor
    found.zero_()
    assert model[0].weight.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dac", ["calibrated", "dynamic"])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_read_is_within_half_an_adc_step(mode: str, dac: Any, bits: int) -> None:
    compiled, net = compiled_net(
        dac=analogc.Converter(8, range=dac),
        adc=analogc.Converter(bits, per_column=True),
        weight_access=mode,
    )
    for name in NET:
        weight = net.get_parameter(f"{name}.weight").detach()
        found = compiled.weights[name].read(noise=False)
        peak = weight.flatten(1).abs().amax(1)
        step = (peak / (2 ** (bits - 1) - 1)).view(-1, *[1] * (weight.dim() - 1))
        assert ((found - weight).abs() <= step * 0.501).all()
        assert not found.requires_grad and found.dtype == weight.dtype
        assert torch.equal(found, compiled.weights[name].read(noise=True))


def test_read_noise_is_the_output_noise_in_units_of_the_weight_scale() -> None:
    compiled, net = compiled_net(dac=None, adc=None, output_noise=0.1)
    weight = compiled.weights["fc"]
    reads = torch.stack([weight.read() for _ in range(200)])
    assert not torch.equal(reads[0], reads[1])
    assert torch.equal(weight.read(noise=False), weight.programmed())
    scale = net.fc.weight.detach().abs().amax(1, keepdim=True)
    error = (reads - net.fc.weight.detach()) / scale
    assert error.std().item() == pytest.approx(0.1, rel=0.02)
    assert error.mean().item() == pytest.approx(0.0, abs=0.002)


def test_reads_repeat_with_the_seed() -> None:
    reads = []
    for _ in range(2):
        _, compiled, _ = build("sealed", target="generic-8bit-noisy")
        reads.append([compiled.weights["0"].read() for _ in range(2)])
    assert same(reads[0], reads[1])


def test_a_read_follows_the_parameter_or_says_that_the_tiles_are_stale() -> None:
    model, compiled, _ = build("sealed")
    model[0].weight.data.zero_()
    assert not compiled.weights["0"].read().any()
    compiled.auto_sync = False
    model[0].weight.data.fill_(0.5)
    with pytest.raises(SyncError, match="layer '0'"):
        compiled.weights["0"].read()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_read_has_the_weights_dtype(dtype: torch.dtype) -> None:
    layer = nn.Linear(6, 4).to(dtype)
    compiled = analogc.compile(layer, (torch.randn(2, 6).to(dtype),), weight_access="sealed")
    (weight,) = compiled.weights.values()
    assert weight.read().dtype == dtype
    torch.testing.assert_close(weight.read(), layer.weight.detach(), atol=0.01, rtol=0)
