"""Real data, scikit-learn's digits, and a small network for it: conv-batchnorm-relu, a residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...runtime.errors import AnalogcError

TEST_IMAGES = 450


@dataclass(frozen=True, slots=True)
class Digits:
    """Handwritten digits of 8 x 8 pixels, ``[n, 1, 8, 8]`` in -1..1, and their labels."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def calibration(self) -> list[Tensor]:
        """Batches of training images, to choose converter ranges from."""
        return list(self.train[:256].split(128))


def load_digits() -> Digits:
    """The 1797 digits that scikit-learn carries, always split alike.

    Raises:
        AnalogcError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets, model_selection
    except ImportError as err:
        raise AnalogcError(
            f"the demo's data comes with scikit-learn, which cannot be imported: {err}",
            fix='pip install "analogc[demo]"',
        ) from None
    data = datasets.load_digits()
    parts = model_selection.train_test_split(
        data.images, data.target, test_size=TEST_IMAGES, stratify=data.target, random_state=0
    )
    train, test = (torch.tensor(x, dtype=torch.float32).unsqueeze(1) / 8 - 1 for x in parts[:2])
    train_labels, test_labels = (torch.tensor(y, dtype=torch.int64) for y in parts[2:])
    return Digits(train, train_labels, test, test_labels)


class Residual(nn.Module):
    """Two convolutions with batch norm, and a way around them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Shape is kept."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


class DigitNetwork(nn.Module):
    """Digits ``[n, 1, 8, 8]`` to scores of the ten classes ``[n, 10]``."""

    def __init__(self, channels: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(channels)
        self.residual = Residual(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)
        self.widen_norm = nn.BatchNorm2d(2 * channels)
        self.head = nn.Linear(8 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of the classes."""
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.max_pool2d(self.residual(x), 2)
        x = F.relu(self.widen_norm(self.widen(x)))
        x = F.avg_pool2d(x, 2)
        scores: Tensor = self.head(x.flatten(1))
        return scores


def train(
    digits: Digits, epochs: int, after_epoch: Callable[[int, float], None], batch: int = 64
) -> DigitNetwork:
    """Train a network from torch's random state; returns it in eval mode.

    Args:
        digits: the data.
        epochs: passes over the training images.
        after_epoch: called with the number of epochs done and the mean loss of the last one.
        batch: images a step.
    """
    model = DigitNetwork()
    steps = epochs * -(-len(digits.train) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for epoch in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(digits.train)).split(batch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(digits.train[chosen]), digits.train_labels[chosen])
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(chosen)
        after_epoch(epoch + 1, total / len(digits.train))
    return model.eval()


def accuracy(model: nn.Module, digits: Digits) -> float:
    """Share of the test images that ``model`` gets right, in percent."""
    with torch.no_grad():
        right = model(digits.test).argmax(1) == digits.test_labels
    return 100 * float(right.double().mean())
