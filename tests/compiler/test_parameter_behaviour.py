"""A weight on the tiles is a torch Parameter like any other: metadata, values, autograd, tools."""

from __future__ import annotations

import copy
import inspect
import io
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import analogc
from analogc import CompiledModel, TileSpec

from .closeness import assert_holds

KINDS = ["linear", "linear_tiled", "conv", "conv_tiled"]
RANGES = "_analog.ranges"


class Case:
    """A compiled model, its model, and a digital twin that nobody compiled."""

    def __init__(self, kind: str, target: str = "generic-8bit") -> None:
        self.model: nn.Sequential
        if kind.startswith("linear"):
            self.model = nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 10))
            self.x = torch.randn(6, 12)
        else:
            head = [nn.Conv2d(6, 10, 3, groups=2), nn.Flatten()]
            if kind.startswith("mixed"):
                head = [nn.Sequential(nn.Flatten(), nn.Linear(96, 10))]
            self.model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), *head)
            self.x = torch.randn(4, 3, 6, 6)
        self.twin = copy.deepcopy(self.model)
        preset = analogc.targets.get(target)
        if kind.endswith("tiled"):
            preset = preset.replace(tile=TileSpec(8, 8))
        self.compiled: CompiledModel = analogc.compile(self.model, (self.x,), target=preset, seed=0)
        assert all(m.grid != (1, 1) for m in self.compiled.tiles) == kind.endswith("tiled")
        self.names = ["0", "2"]

    def weight(self, name: str = "0") -> nn.Parameter:
        return self.compiled.get_parameter(f"{name}.weight")

    def loss(self, model: nn.Module | None = None) -> Tensor:
        out: Tensor = (model or self.compiled)(self.x)
        return (out - 1).square().mean()

    def assert_synced(self) -> None:
        """The next forward is that of a fresh compile from the current weights."""
        twin = copy.deepcopy(self.model)
        fresh = analogc.compile(twin, (self.x,), target=self.compiled.target, seed=0)
        with torch.no_grad():
            for name, value in fresh.get_submodule(RANGES).named_buffers():
                value.copy_(self.compiled.get_submodule(RANGES).get_buffer(name))
            assert torch.equal(self.compiled(self.x), fresh(self.x))

    def written(self) -> dict[str, int]:
        return {name: w.times_programmed for name, w in self.compiled.weights.items()}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    yield Case(request.param)


@pytest.fixture(params=KINDS)
def ideal(request: pytest.FixtureRequest) -> Case:
    return Case(request.param, "ideal")


# -- metadata -------------------------------------------------------------------------------------

ATTRIBUTES = [
    "shape", "ndim", "dtype", "device", "layout", "is_cuda", "is_leaf", "requires_grad", "nbytes",
    "itemsize", "is_sparse", "is_quantized", "is_meta",
]  # fmt: skip
METHODS = [
    "size", "dim", "ndimension", "numel", "nelement", "element_size", "is_contiguous", "stride",
    "storage_offset", "get_device", "is_floating_point", "is_complex", "is_signed", "is_pinned",
    "dense_dim", "sparse_dim", "type", "is_inference", "is_conj", "is_neg", "is_shared",
    "__len__", "__hash__",
]  # fmt: skip


def test_metadata_is_that_of_a_plain_parameter(case: Case) -> None:
    for name in case.names:
        weight, plain = case.weight(name), case.twin.get_parameter(f"{name}.weight")
        assert type(weight) is nn.Parameter
        for attribute in ATTRIBUTES:
            assert getattr(weight, attribute) == getattr(plain, attribute), attribute
            if attribute != "requires_grad":
                assert getattr(weight.data, attribute) == getattr(plain.data, attribute), attribute
        for method in METHODS:
            got, want = getattr(weight, method)(), getattr(plain, method)()
            assert got == want or method == "__hash__", method
        assert [weight.size(i) for i in range(weight.dim())] == list(plain.shape)
        assert isinstance(weight.data_ptr(), int)
        assert weight.untyped_storage().nbytes() == plain.untyped_storage().nbytes()
        assert repr(weight) == repr(plain) and str(weight.data) == str(plain.data)
        assert dir(weight) == dir(plain)
    assert case.weight() in {case.weight()}


def test_weight_and_bias_are_attributes_of_their_layer(case: Case) -> None:
    for name in case.names:
        layer, own = case.compiled.get_submodule(name), case.model.get_submodule(name)
        assert layer.weight is own.weight is case.weight(name)
        assert layer.bias is own.bias and isinstance(layer.bias, nn.Parameter)
        assert case.compiled.weights[name].parameter is own.weight
        assert case.compiled.weights[name].get() is own.weight


def test_parameters_lists_each_weight_once(case: Case) -> None:
    ours, theirs = list(case.compiled.named_parameters()), list(case.twin.named_parameters())
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    assert all(a is b for (_, a), b in zip(ours, case.model.parameters(), strict=True))
    assert len({p.data_ptr() for _, p in ours}) == len(ours)
    assert sum(p.numel() for p in case.compiled.parameters()) == sum(
        p.numel() for p in case.twin.parameters()
    )
    assert list(case.compiled.state_dict()) == list(case.twin.state_dict())


# -- reads ----------------------------------------------------------------------------------------

READS: dict[str, Callable[[Tensor], Any]] = {
    "norm": lambda w: w.norm(),
    "linalg_norm": lambda w: torch.linalg.vector_norm(w, 1),
    "nonzero": lambda w: w.nonzero(),
    "greater": lambda w: w > 10,
    "less": lambda w: w < 0,
    "equal": lambda w: w == w.clone(),
    "isfinite": lambda w: torch.isfinite(w),
    "argmax": lambda w: w.argmax(),
    "topk": lambda w: w.topk(2).values,
    "sum": lambda w: w.sum(),
    "std": lambda w: w.std(),
    "clone": lambda w: w.clone(),
    "detach": lambda w: w.detach(),
    "data": lambda w: w.data,
    "first": lambda w: w[0],
    "element": lambda w: w[(1,) * w.dim()],
    "slice": lambda w: w[1:3, ::2],
    "mask": lambda w: w[w > 0],
    "list": lambda w: w[[2, 0]],
    "select": lambda w: w.index_select(0, torch.tensor([1])),
    "view": lambda w: w.view(-1),
    "flatten": lambda w: w.flatten(1),
    "mT": lambda w: w.mT,
    "mH": lambda w: w.mH,
    "T": lambda w: w.flatten(1).T,
    "H": lambda w: w.flatten(1).H,
    "real": lambda w: w.real,
    "permute": lambda w: w.transpose(0, 1),
    "matmul": lambda w: w.flatten(1) @ w.flatten(1).T,
    "plus": lambda w: 1 + w * 2,
    "tolist": lambda w: w.tolist(),
    "item": lambda w: w.flatten()[0].item(),
    "iteration": lambda w: list(w),
    "numpy": lambda w: torch.from_numpy(w.detach().numpy().copy()),
    "double": lambda w: w.double(),
    "allclose": lambda w: torch.allclose(w, w + 0),
    "svd": lambda w: torch.linalg.svdvals(w.flatten(1)),
    "quantile": lambda w: w.quantile(0.5),
    "histogram": lambda w: w.detach().histc(4),
}
LIKE: dict[str, Callable[[Tensor], Tensor]] = {
    "empty_like": torch.empty_like, "zeros_like": torch.zeros_like, "ones_like": torch.ones_like,
    "rand_like": torch.rand_like, "randn_like": torch.randn_like,
    "full_like": lambda w: torch.full_like(w, 2.0),
    "randint_like": lambda w: torch.randint_like(w, 5),
    "new_zeros": lambda w: w.new_zeros(w.shape), "new_ones": lambda w: w.new_ones(w.shape),
    "new_tensor": lambda w: w.new_tensor(w.shape),
}  # fmt: skip


def same(got: Any, want: Any) -> bool:
    if isinstance(want, Tensor):
        return torch.equal(got, want) and got.requires_grad == want.requires_grad
    if isinstance(want, list) and isinstance(want[0], Tensor):
        return len(got) == len(want) and all(map(same, got, want))
    return bool(got == want)


def test_reads_give_what_a_plain_parameter_gives(case: Case) -> None:
    for name in case.names:
        weight, plain = case.weight(name), case.twin.get_parameter(f"{name}.weight")
        for what, read in READS.items():
            assert same(read(weight), read(plain)), what
        for what, make in LIKE.items():
            made = make(weight)
            assert type(made) is Tensor and not made.requires_grad, what
            assert made.dtype == weight.dtype and made.device == weight.device, what
            assert what == "new_tensor" or made.shape == weight.shape, what
        assert weight.norm() > 0 and len(weight.nonzero()) == weight.numel()
        assert (weight > 10).shape == weight.shape and not (weight > 10).any()
        other = torch.empty_like(weight)
        other.copy_(weight.detach())
        assert torch.equal(other, plain)


def test_reads_program_nothing_and_tiles_hold_what_was_read(case: Case) -> None:
    with torch.no_grad():
        before = case.compiled(case.x)
        for name in case.names:
            for read in (*READS.values(), *LIKE.values()):
                read(case.weight(name))
        assert torch.equal(case.compiled(case.x), before)
    assert set(case.written().values()) == {1}
    for name in case.names:
        held = case.compiled.weights[name].programmed()
        assert_holds(held, case.weight(name).detach())


@pytest.mark.parametrize("times", [1, 5])
def test_set_weight_is_in_the_tiles(case: Case, times: int) -> None:
    for name in case.names:
        for _ in range(times):
            value = torch.randn_like(case.weight(name))
            case.compiled.weights[name].set(value)
        assert torch.equal(case.weight(name), value)
        held = case.compiled.weights[name].programmed()
        assert_holds(held, value)
    case.assert_synced()


def test_doubling_the_weight_doubles_what_is_on_the_tiles(case: Case) -> None:
    before = case.compiled.weights["0"].programmed()
    with torch.no_grad():
        case.weight().mul_(2)
    torch.testing.assert_close(case.compiled.weights["0"].programmed(), before * 2)


# -- autograd -------------------------------------------------------------------------------------


def test_gradients_of_an_ideal_layer_are_exact(ideal: Case) -> None:
    x, y = ideal.x.clone().requires_grad_(), ideal.x.clone().requires_grad_()
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in ideal.model.parameters())
    (ideal.compiled(x) - 1).square().sum().backward()
    (ideal.twin(y) - 1).square().sum().backward()
    assert x.grad is not None and y.grad is not None and torch.equal(x.grad, y.grad)
    for ours, theirs in zip(ideal.compiled.parameters(), ideal.twin.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.equal(ours.grad, theirs.grad)


def test_gradient_reaches_parameters_and_can_be_set_and_cleared(case: Case) -> None:
    case.loss().backward()
    first = {n: p.grad.clone() for n, p in case.compiled.named_parameters() if p.grad is not None}
    assert len(first) == 4 and all(g.norm() > 0 for g in first.values())
    case.loss().backward()
    for name, p in case.compiled.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, 2 * first[name])
        p.grad = torch.ones_like(p)
        assert torch.equal(p.grad, torch.ones_like(p))
    case.compiled.zero_grad()
    assert all(p.grad is None for p in case.model.parameters())


@pytest.mark.parametrize("power", [1, 2])
def test_a_loss_on_the_weights_alone_gives_the_plain_gradient(case: Case, power: int) -> None:
    total = sum((p.abs() ** power).sum() for p in case.compiled.parameters())
    assert isinstance(total, Tensor) and total.requires_grad
    total.backward()
    for p in case.compiled.parameters():
        want = p.detach().sign() if power == 1 else 2 * p.detach()
        assert p.grad is not None
        torch.testing.assert_close(p.grad, want)


def test_regularisation_adds_to_the_gradient_of_the_loss(case: Case) -> None:
    case.loss().backward()
    plain = {n: p.grad.clone() for n, p in case.compiled.named_parameters() if p.grad is not None}
    case.compiled.zero_grad()
    (case.loss() + 0.1 * sum(p.square().sum() for p in case.compiled.parameters())).backward()
    for name, p in case.compiled.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, plain[name] + 0.2 * p.detach())


def test_hooks_run_and_can_change_the_gradient(case: Case) -> None:
    seen: list[str] = []
    case.loss().backward()
    plain = {n: p.grad.clone() for n, p in case.compiled.named_parameters() if p.grad is not None}
    case.compiled.zero_grad()
    handles = []
    for name, p in case.compiled.named_parameters():

        def triple(grad: Tensor) -> Tensor:
            return grad * 3

        def arrived(q: Tensor, name: str = name) -> None:
            assert q is case.compiled.get_parameter(name) and q.grad is not None
            seen.append(name)

        handles += [p.register_hook(triple), p.register_post_accumulate_grad_hook(arrived)]
    case.loss().backward()
    assert sorted(seen) == sorted(plain)
    for name, p in case.compiled.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, 3 * plain[name])
    for handle in handles:
        handle.remove()


def test_optimizer_in_backward_hooks_trains(case: Case) -> None:
    optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in case.compiled.parameters()}

    def step(p: Tensor) -> None:
        assert isinstance(p, nn.Parameter)
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step)
    before = case.loss().item()
    for _ in range(3):
        case.loss().backward()
    assert case.loss().item() < before
    for p in optimizers:
        p._post_accumulate_grad_hooks.clear()
    case.assert_synced()


def test_module_hooks_of_the_compiled_model_run(case: Case) -> None:
    seen = []
    handle = case.compiled.register_forward_hook(lambda module, args, out: seen.append(out))
    out = case.compiled(case.x)
    handle.remove()
    assert seen[0] is out


# -- freezing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["parameter", "module", "attribute", "digital model"])
@pytest.mark.parametrize("frozen", ["0", "2"])
def test_a_frozen_layer_stays_and_resumes(case: Case, frozen: str, through: str) -> None:
    def freeze(value: bool) -> None:
        weight = case.weight(frozen)
        if through == "parameter":
            assert weight.requires_grad_(value) is weight
        elif through == "attribute":
            weight.requires_grad = value
        else:
            source = case.model if through == "digital model" else case.compiled
            source.get_submodule(frozen).requires_grad_(value)

    (other,) = {"0", "2"} - {frozen}
    optimizer = torch.optim.SGD(case.compiled.parameters(), lr=0.1, momentum=0.9)
    freeze(False)
    assert not case.weight(frozen).requires_grad
    before = {n: p.detach().clone() for n, p in case.compiled.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        case.loss().backward()
        optimizer.step()
    assert case.weight(frozen).grad is None
    assert torch.equal(case.weight(frozen), before[f"{frozen}.weight"])
    bias_froze = through in ("module", "digital model")
    for name in (f"{other}.weight", f"{other}.bias", f"{frozen}.bias"):
        kept = torch.equal(case.compiled.get_parameter(name), before[name])
        assert kept == (bias_froze and name == f"{frozen}.bias")
    with torch.no_grad():
        case.compiled(case.x)
    assert case.written() == {frozen: 1, other: 4}
    freeze(True)
    case.loss().backward()
    optimizer.step()
    assert not torch.equal(case.weight(frozen), before[f"{frozen}.weight"])
    case.assert_synced()


def test_a_wholly_frozen_model_still_gives_the_input_gradient(case: Case) -> None:
    assert case.compiled.requires_grad_(False) is case.compiled
    x = case.x.clone().requires_grad_()
    case.compiled(x).square().sum().backward()
    assert x.grad is not None and x.grad.norm() > 0
    assert all(p.grad is None for p in case.compiled.parameters())
    assert not case.compiled(case.x).requires_grad
    case.compiled.requires_grad_()
    case.loss().backward()
    assert all(p.grad is not None for p in case.compiled.parameters())


# -- tools ----------------------------------------------------------------------------------------


def test_vector_of_parameters_and_back(case: Case) -> None:
    vector = nn.utils.parameters_to_vector(case.compiled.parameters())
    assert torch.equal(vector, nn.utils.parameters_to_vector(case.twin.parameters()))
    assert vector.requires_grad
    vector.sum().backward()
    assert all(
        p.grad is not None and torch.equal(p.grad, torch.ones_like(p))
        for p in case.compiled.parameters()
    )
    nn.utils.vector_to_parameters(vector.detach() * 0.5, case.compiled.parameters())
    torch.testing.assert_close(case.weight(), case.twin.get_parameter("0.weight") * 0.5)
    case.assert_synced()


def test_clipping_of_gradients(ideal: Case) -> None:
    for model in (ideal.compiled, ideal.twin):
        ideal.loss(model).backward()
    ours, theirs = list(ideal.compiled.parameters()), list(ideal.twin.parameters())
    norm = nn.utils.clip_grad_norm_(ours, 0.01)
    assert norm > 0 and torch.equal(norm, nn.utils.clip_grad_norm_(theirs, 0.01))
    total = nn.utils.get_total_norm([p.grad for p in ours if p.grad is not None])
    torch.testing.assert_close(total, torch.tensor(0.01), rtol=1e-3, atol=1e-6)
    nn.utils.clip_grad_value_(ours, 1e-4)
    nn.utils.clip_grad_value_(theirs, 1e-4)
    assert all(
        p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)
        for p, q in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_grad_scaler_scales_nothing_but_the_loss(kind: str) -> None:
    case = Case(kind, "ideal")
    plain = torch.optim.SGD(case.twin.parameters(), lr=0.1)
    scaled = torch.optim.SGD(case.compiled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for _ in range(3):
        for optimizer, model in ((plain, case.twin), (scaled, case.compiled)):
            optimizer.zero_grad()
            loss = case.loss(model)
            if optimizer is plain:
                loss.backward()
                optimizer.step()
            else:
                scaler.scale(loss).backward()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
    for p, q in zip(case.compiled.parameters(), case.twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_grad_scaler_skips_a_step_with_infinite_gradients(case: Case) -> None:
    optimizer = torch.optim.SGD(case.compiled.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu")
    before = case.weight().detach().clone()
    (scaler.scale(case.loss()) * math.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(case.weight(), before)
    assert scaler.get_scale() < 65536.0


@pytest.mark.parametrize("ema", [False, True])
def test_averaged_model(case: Case, ema: bool) -> None:
    how: dict[str, Any] = {"multi_avg_fn": get_ema_multi_avg_fn(0.5)} if ema else {}
    average = AveragedModel(case.compiled, **how)
    first = case.weight().detach().clone()
    average.update_parameters(case.compiled)
    with torch.no_grad():
        for p in case.compiled.parameters():
            p.mul_(3)
    average.update_parameters(case.compiled)
    torch.testing.assert_close(average.module.get_parameter("0.weight"), first * 2)
    assert torch.equal(case.weight(), first * 3)
    inner = average.module
    assert isinstance(inner, CompiledModel)
    other = copy.deepcopy(case.model)
    other.load_state_dict(inner.state_dict())
    with torch.no_grad():
        fresh = analogc.compile(other, (case.x,), target=case.compiled.target, seed=0)
        for name, value in fresh.get_submodule(RANGES).named_buffers():
            value.copy_(inner.get_submodule(RANGES).get_buffer(name))
        assert torch.equal(average(case.x), fresh(case.x))


def test_functional_call_uses_the_given_weights_and_leaves_its_own(case: Case) -> None:
    given = {n: (p.detach() * 0.5).requires_grad_() for n, p in case.compiled.named_parameters()}
    own = case.weight().detach().clone()
    out = torch.func.functional_call(case.compiled, given, (case.x,))
    out.sum().backward()
    assert all(value.grad is not None for value in given.values())
    assert torch.equal(case.weight(), own) and case.weight().grad is None
    case.assert_synced()
    with torch.no_grad():
        for name, p in case.compiled.named_parameters():
            p.copy_(given[name])
        assert torch.equal(case.compiled(case.x), out)


def test_per_sample_gradients(ideal: Case) -> None:
    def loss(state: dict[str, Tensor], model: nn.Module, x: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(model, state, (x[None].expand_as(ideal.x),))
        return out[0].square().sum()

    gradients = []
    for model in (ideal.compiled, ideal.twin):
        state = {n: p.detach() for n, p in model.named_parameters()}
        per_sample = torch.func.vmap(torch.func.grad(loss), in_dims=(None, None, 0))
        gradients.append(per_sample(state, model, ideal.x))
    for name, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][name])


# -- copies and files -----------------------------------------------------------------------------


def test_copies_and_pickles_of_a_weight_are_plain_parameters(case: Case) -> None:
    weight = case.weight()
    buffer = io.BytesIO()
    torch.save(weight, buffer)
    buffer.seek(0)
    for made in (
        copy.deepcopy(weight), pickle.loads(pickle.dumps(weight)),
        torch.load(buffer, weights_only=True),
    ):  # fmt: skip
        assert type(made) is nn.Parameter and torch.equal(made, weight)
        assert made.data_ptr() != weight.data_ptr()
    assert type(weight.clone()) is Tensor


def test_deepcopy_and_pickle_of_the_model_are_independent(case: Case) -> None:
    for made in (copy.deepcopy(case.compiled), pickle.loads(pickle.dumps(case.compiled))):
        with torch.no_grad():
            before = case.compiled(case.x)
            assert torch.equal(made(case.x), before)
            assert not {p.data_ptr() for p in made.parameters()} & {
                p.data_ptr() for p in case.compiled.parameters()
            }
            made.get_parameter("0.weight").mul_(-1)
            assert torch.equal(case.compiled(case.x), before)
            assert not torch.equal(made(case.x), before)
    assert set(case.written().values()) == {1}


def test_deepcopy_of_the_state_dict(case: Case) -> None:
    state = copy.deepcopy(case.compiled.state_dict())
    with torch.no_grad():
        before = case.compiled(case.x)
        for p in case.compiled.parameters():
            p.zero_()
        assert not torch.equal(case.compiled(case.x), before)
        case.compiled.load_state_dict(state)
        assert torch.equal(case.compiled(case.x), before)


def test_checkpoints_are_those_of_the_digital_model(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(case.compiled.state_dict(), path)
    state = torch.load(path, weights_only=True)
    twin = copy.deepcopy(case.twin)
    with torch.no_grad():
        for p in twin.parameters():
            p.normal_()
    twin.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(
        twin.parameters(), case.compiled.parameters(), strict=True))  # fmt: skip
    with torch.no_grad():
        for p in twin.parameters():
            p.normal_()
    case.compiled.load_state_dict(twin.state_dict(), strict=True)
    assert torch.equal(case.weight(), twin.get_parameter("0.weight"))
    case.assert_synced()


@pytest.mark.parametrize("into", ["compiled", "digital"])
def test_safetensors(case: Case, tmp_path: Path, into: str) -> None:
    path = str(tmp_path / "model.safetensors")
    save_model(case.compiled, path)
    other = copy.deepcopy(case.twin if into == "digital" else case.compiled)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    missing, unexpected = load_model(other, path)
    assert not missing and not unexpected
    assert all(map(torch.equal, other.parameters(), case.compiled.parameters()))
    if into == "compiled":
        with torch.no_grad():
            assert torch.equal(other(case.x), case.compiled(case.x))


def test_a_partial_checkpoint_leaves_the_rest(case: Case) -> None:
    state = case.compiled.state_dict()
    kept = {"2.weight": torch.ones_like(state["2.weight"])}
    found = case.compiled.load_state_dict(kept, strict=False)
    assert sorted(found.missing_keys) == ["0.bias", "0.weight", "2.bias"]
    assert torch.equal(case.weight(), case.twin.get_parameter("0.weight"))
    with torch.no_grad():
        case.compiled(case.x)
    assert case.written() == {"0": 1, "2": 2}
    with pytest.raises(RuntimeError, match="Missing key"):
        case.compiled.load_state_dict(kept)
    with pytest.raises(RuntimeError, match="size mismatch"):
        case.compiled.load_state_dict({**state, "0.weight": torch.ones(1)})


def test_a_square_weight_is_not_transposed() -> None:
    model, x = nn.Sequential(nn.Linear(9, 9)), torch.randn(3, 9)
    target = analogc.targets.generic_8bit().replace(tile=TileSpec(4, 4))
    compiled = analogc.compile(model, (x,), target=target, seed=0)
    value = torch.arange(81.0).view(9, 9)
    compiled.load_state_dict({"0.weight": value, "0.bias": torch.zeros(9)})
    assert_holds(compiled.weights["0"].programmed(), value)


# -- optimizers -----------------------------------------------------------------------------------

EXCLUDED = {
    "SparseAdam": "takes sparse gradients only",
    "Optimizer": "the base class",
}


def optimizers() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    for name, kind in inspect.getmembers(torch.optim, inspect.isclass):
        if not issubclass(kind, torch.optim.Optimizer) or name in EXCLUDED:
            continue
        takes = inspect.signature(kind).parameters
        yield name, kind, {}
        for flag in ("foreach", "fused", "amsgrad", "nesterov", "maximize"):
            if flag in takes:
                more = {"momentum": 0.9} if flag == "nesterov" and name == "SGD" else {}
                yield f"{name}-{flag}", kind, {flag: True, **more}
        if name != "SGD" and "weight_decay" in takes:
            yield f"{name}-weight_decay", kind, {"weight_decay": 0.1}
        if name in ("SGD", "RMSprop"):
            yield f"{name}-momentum-decay", kind, {"momentum": 0.9, "weight_decay": 0.1}
        # capturable=True is for accelerators: torch refuses it for CPU parameters.


ALL = {name: (kind, options) for name, kind, options in optimizers()}


def test_all_kinds_of_optimizer_are_tried() -> None:
    kinds = {name.partition("-")[0] for name in ALL}
    assert {"SGD", "Adam", "AdamW", "LBFGS", "Adafactor", "ASGD", "Rprop"} <= kinds
    assert len(kinds) >= 13 and len(ALL) > 40


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_trains_as_it_does_the_digital_model(name: str) -> None:
    make, options = ALL[name]
    ideal, rough = Case("mixed_tiled", "ideal"), Case("mixed_tiled")

    def train(case: Case, model: nn.Module) -> None:
        parameters = list(model.parameters())
        if name.startswith("Muon"):  # for matrices only
            parameters = [p for p in parameters if p.dim() == 2]
        optimizer = make(parameters, **options)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = case.loss(model)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)

    train(ideal, ideal.twin)
    train(ideal, ideal.compiled)
    for ours, theirs in zip(ideal.compiled.parameters(), ideal.twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    before = nn.utils.parameters_to_vector(rough.compiled.parameters()).detach()
    train(rough, rough.compiled)
    assert not torch.equal(nn.utils.parameters_to_vector(rough.compiled.parameters()), before)
    rough.assert_synced()


def test_parameter_groups_keep_their_own_settings(ideal: Case) -> None:
    for model in (ideal.compiled, ideal.twin):
        groups: list[dict[str, Any]] = [
            {"params": model.get_submodule("0").parameters(), "lr": 0.5, "weight_decay": 0.1},
            {"params": model.get_submodule("2").parameters()},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        for _ in range(3):
            optimizer.zero_grad()
            ideal.loss(model).backward()
            optimizer.step()
            scheduler.step()
    assert all(map(torch.equal, ideal.compiled.parameters(), ideal.twin.parameters()))


def test_zero_grad_discards_a_pending_update(case: Case) -> None:
    optimizer = torch.optim.SGD(case.compiled.parameters(), lr=0.1)
    case.loss().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(case.weight(), case.twin.get_parameter("0.weight"))
    with torch.no_grad():
        case.compiled(case.x)
    assert set(case.written().values()) == {1}


@pytest.mark.parametrize("assign", [False, True])
def test_an_optimizer_made_before_load_state_dict_trains(case: Case, assign: bool) -> None:
    optimizer = torch.optim.SGD(case.compiled.parameters(), lr=0.1, momentum=0.9)
    state = {n: p.detach() * 0.5 for n, p in case.compiled.named_parameters()}
    case.compiled.load_state_dict(state, assign=assign)
    if assign:  # torch's own meaning: other parameters from now on
        assert case.weight() not in {p for g in optimizer.param_groups for p in g["params"]}
        optimizer = torch.optim.SGD(case.compiled.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        loss = case.loss()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    case.assert_synced()


def test_ten_updates_never_drift_from_the_digital_model(ideal: Case) -> None:
    rough = ideal.compiled
    for _ in range(10):
        for model in (rough, ideal.twin):
            model.zero_grad()
            ideal.loss(model).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p.sub_(p.grad, alpha=0.1)  # type: ignore[arg-type]
        with torch.no_grad():
            assert torch.equal(rough(ideal.x), ideal.twin(ideal.x))
