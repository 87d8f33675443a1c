"""Training a compiled model: on ideal tiles the very steps of the digital model, bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from analogc import CompiledModel, TileSpec

STEPS = 20


class Encoder(nn.Module):
    """A small transformer: embedding, packed attention, feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.layer = nn.TransformerEncoderLayer(
            16, 2, 32, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(16, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(tokens)))
        return out.mean(1)


def mlp() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 11)
    ), torch.randn(8, 10)


def cnn() -> tuple[nn.Module, Tensor]:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 11),
    ), torch.randn(8, 2, 8, 8)  # fmt: skip


def transformer() -> tuple[nn.Module, Tensor]:
    return Encoder(), torch.randint(11, (8, 6))


MODELS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "mlp": mlp, "cnn": cnn, "transformer": transformer,
}  # fmt: skip
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
}
FROZEN = {
    "mlp": ("0.weight", "4.bias"),
    "cnn": ("3.weight", "1.weight"),
    "transformer": ("layer.self_attn.in_proj_weight", "embed.weight", "layer.linear2.weight"),
}


def pair(name: str, target: str = "ideal") -> tuple[CompiledModel, nn.Module, Tensor]:
    """A compiled model in train mode, and its digital twin."""
    model, x = MODELS[name]()
    model.train()
    twin = copy.deepcopy(model)
    preset = analogc.targets.get(target).replace(tile=TileSpec(16, 16))
    return analogc.compile(model, (x,), target=preset, seed=0), twin, x


def batches(x: Tensor, count: int = STEPS) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for _ in range(count):
        if x.is_floating_point():
            batch = torch.randn(x.shape, generator=generator)
        else:
            batch = torch.randint(11, x.shape, generator=generator)
        found.append((batch, torch.randint(11, x.shape[:1], generator=generator)))
    return found


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: list[tuple[Tensor, Tensor]],
    accumulate: int = 1,
) -> list[float]:
    losses = []
    for i, (x, y) in enumerate(data):
        loss = F.cross_entropy(model(x), y)
        (loss / accumulate).backward()
        losses.append(loss.item())
        if (i + 1) % accumulate == 0:
            optimizer.step()
            optimizer.zero_grad()
    return losses


def assert_same(compiled: nn.Module, twin: nn.Module) -> None:
    ours, theirs = compiled.state_dict(), twin.state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("frozen", [False, True], ids=["all", "frozen"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_curve_is_that_of_the_digital_model(name: str, kind: str, frozen: bool) -> None:
    compiled, twin, x = pair(name)
    before = {n: p.detach().clone() for n, p in compiled.named_parameters()}
    for model in (compiled, twin):
        for path in FROZEN[name] if frozen else ():
            model.get_parameter(path).requires_grad_(False)
    curves = [train(model, OPTIMIZERS[kind](model), batches(x)) for model in (compiled, twin)]
    assert curves[0] == curves[1]
    assert_same(compiled, twin)
    for path, p in compiled.named_parameters():
        assert torch.equal(p, before[path]) == (frozen and path in FROZEN[name]), path


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_freezing_in_the_middle(name: str, kind: str) -> None:
    compiled, twin, x = pair(name)
    curves = []
    for model in (compiled, twin):
        optimizer, data = OPTIMIZERS[kind](model), batches(x)
        losses = train(model, optimizer, data[:7])
        for path in FROZEN[name]:
            model.get_parameter(path).requires_grad_(False)
        losses += train(model, optimizer, data[7:14])
        model.requires_grad_()
        curves.append(losses + train(model, optimizer, data[14:]))
    assert curves[0] == curves[1]
    assert_same(compiled, twin)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_gradient_accumulation(name: str, kind: str) -> None:
    compiled, twin, x = pair(name)
    curves = [
        train(model, OPTIMIZERS[kind](model), batches(x), accumulate=4)
        for model in (compiled, twin)
    ]
    assert curves[0] == curves[1]
    assert_same(compiled, twin)


def checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer) -> bytes:
    buffer = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    return buffer.getvalue()


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, data: bytes) -> None:
    state = torch.load(io.BytesIO(data), weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])


@pytest.mark.parametrize("into", ["compiled", "same", "digital"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_resuming_from_a_checkpoint_in_the_middle(name: str, kind: str, into: str) -> None:
    compiled, twin, x = pair(name)
    data = batches(x)
    want = train(twin, OPTIMIZERS[kind](twin), data)

    optimizer = OPTIMIZERS[kind](compiled)
    losses = train(compiled, optimizer, data[:10])
    saved = checkpoint(compiled, optimizer)
    other: nn.Module = compiled
    if into == "same":
        train(compiled, optimizer, data[:4])  # away from the checkpoint, and back
    elif into == "digital":
        other = MODELS[name]()[0].train()
        optimizer = OPTIMIZERS[kind](other)
    else:
        other = pair(name)[0]
        optimizer = OPTIMIZERS[kind](other)
    resume(other, optimizer, saved)
    assert losses + train(other, optimizer, data[10:]) == want
    assert_same(other, twin)


@pytest.mark.parametrize("name", MODELS)
def test_resuming_from_a_saved_or_copied_compiled_model(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compiled, twin, x = pair(name)
    data = batches(x)
    want = train(twin, OPTIMIZERS["AdamW"](twin), data)
    optimizer = OPTIMIZERS["AdamW"](compiled)
    losses = train(compiled, optimizer, data[:10])
    path = tmp_path_factory.mktemp("saved") / "model.analogc"
    compiled.save(path)
    for other in (analogc.load(path), copy.deepcopy(compiled)):
        again = OPTIMIZERS["AdamW"](other)
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert losses + train(other, again, data[10:]) == want
        assert_same(other, twin)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_loss_of_8_bit_tiles_goes_down(name: str, kind: str) -> None:
    compiled, _, x = pair(name, "generic-8bit")
    data = batches(x, 1) * STEPS
    losses = train(compiled, OPTIMIZERS[kind](compiled), data)
    assert all(map(torch.isfinite, map(torch.tensor, losses)))
    assert losses[-1] < 0.75 * losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_8_bit_training_resumes_as_if_it_had_not_stopped(name: str) -> None:
    compiled, _, x = pair(name, "generic-8bit")
    other = copy.deepcopy(compiled)
    data = batches(x, 8)
    want = train(compiled, OPTIMIZERS["AdamW"](compiled), data)
    optimizer = OPTIMIZERS["AdamW"](other)
    losses = train(other, optimizer, data[:4])
    saved = checkpoint(other, optimizer)
    train(other, optimizer, data[:2])
    resume(other, optimizer, saved)
    assert losses + train(other, optimizer, data[4:]) == want
    assert_same(other, compiled)


def test_train_and_eval_alternate_as_in_the_digital_model() -> None:
    compiled, twin, x = pair("cnn")
    curves = []
    for model in (compiled, twin):
        optimizer, data, losses = OPTIMIZERS["SGD"](model), batches(x), []
        for i in range(0, STEPS, 5):
            losses += train(model.train(), optimizer, data[i : i + 5])
            with torch.no_grad():
                losses.append(F.cross_entropy(model.eval()(x), data[0][1]).item())
        curves.append(losses)
    # Eval folds the batch norm into the weight: other rounding, while training is exact.
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]))
    assert_same(compiled, twin)


def test_dropout_draws_the_digital_model_s_numbers() -> None:
    model = nn.Sequential(nn.Linear(10, 16), nn.Dropout(0.5), nn.Linear(16, 11))
    twin, x = copy.deepcopy(model), torch.randn(8, 10)
    compiled = analogc.compile(model, (x,), target="ideal", seed=0)
    curves = []
    for each in (compiled, twin):
        torch.manual_seed(3)
        curves.append(train(each, OPTIMIZERS["SGD"](each), batches(x)))
    assert curves[0] == curves[1]
