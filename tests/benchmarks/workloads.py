"""The layers and models that benchmarks run, and what issue 4 asks of their forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import analogc
from analogc import Converter, Target, TileSpec, targets

Make = Callable[[], tuple[nn.Module, Tensor]]


class Block(nn.Module):
    """Basic block of a residual network."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet20(nn.Module):
    """He et al., CVPR 2016, section 4.2, with n = 3."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layers = _stages(16, (16, 32, 64), 3)
        self.fc = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(F.relu(self.bn(self.conv(x))))
        out: Tensor = self.fc(y.mean((2, 3)))
        return out


class ResNet18(nn.Module):
    """He et al., CVPR 2016, table 1."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(64)
        self.layers = _stages(64, (64, 128, 256, 512), 2)
        self.fc = nn.Linear(512, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)
        out: Tensor = self.fc(self.layers(y).mean((2, 3)))
        return out


class Bottleneck(nn.Module):
    """Bottleneck block of a residual network; the stride is in its 3x3 convolution."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, k, s, k // 2, bias=False) for a, b, k, s in sizes
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for _, b, _, _ in sizes)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y))
            y = F.relu(y) if i < 2 else y
        return F.relu(y + self.shortcut(x))


class ResNet50(nn.Module):
    """He et al., CVPR 2016, table 1."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn = nn.BatchNorm2d(64)
        layers, inputs = [], 64
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for i in range(blocks):
                width = 64 << stage
                layers.append(Bottleneck(inputs, width, 2 if stage and i == 0 else 1))
                inputs = 4 * width
        self.layers = nn.Sequential(*layers)
        self.fc = nn.Linear(2048, classes)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)
        out: Tensor = self.fc(self.layers(y).mean((2, 3)))
        return out


def _stages(inputs: int, widths: tuple[int, ...], blocks: int) -> nn.Sequential:
    layers = []
    for stage, width in enumerate(widths):
        for i in range(blocks):
            layers.append(Block(inputs, width, 2 if stage and i == 0 else 1))
            inputs = width
    return nn.Sequential(*layers)


class Attention(nn.Module):
    """Self-attention out of plain linears, which every tool can convert."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (
            part(x).view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, length, width))
        return out


class EncoderLayer(nn.Module):
    """Pre-norm transformer encoder layer."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.linear1, self.linear2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.linear2(F.gelu(self.linear1(self.norm2(x))))
        return out


@dataclass(frozen=True)
class Workload:
    """A model with its inputs, and settings of the tiles that differ from generic-8bit-noisy."""

    name: str
    make: Make
    limit: float | None = None
    """Greatest ratio of the forward to the digital one that issue 4 allows."""
    tile: int = 512
    dynamic: bool = False

    def build(self) -> tuple[nn.Module, Tensor]:
        """Model in eval mode and its input, the same each time."""
        torch.manual_seed(0)
        model, x = self.make()
        return model.eval(), x

    def target(self, dac_bits: int = 8) -> Target:
        """generic-8bit-noisy with the workload's settings."""
        dac = Converter(dac_bits, range="dynamic" if self.dynamic else "calibrated")
        tile = TileSpec(self.tile, self.tile)
        return targets.generic_8bit_noisy().replace(dac=dac, tile=tile)

    def compile(self, model: nn.Module, x: Tensor, dac_bits: int = 8) -> analogc.CompiledModel:
        """The analog twin, which shares the model's weights."""
        return analogc.compile(model, (x,), target=self.target(dac_bits), seed=0)


def linear(inputs: int, outputs: int, batch: int) -> Make:
    """A linear layer."""
    return lambda: (nn.Linear(inputs, outputs), torch.randn(batch, inputs))


def conv(
    inputs: int,
    outputs: int,
    size: int,
    batch: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    layout: torch.memory_format = torch.contiguous_format,
) -> Make:
    """A 2-d convolution that keeps the size, up to its stride."""

    def make() -> tuple[nn.Module, Tensor]:
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        return layer, torch.randn(batch, inputs, size, size).to(memory_format=layout)

    return make


def encoder(layers: int, width: int, heads: int, batch: int, length: int) -> Make:
    """Encoder layers with a hidden width of four times their own."""
    return lambda: (
        nn.Sequential(*(EncoderLayer(width, heads, 4 * width) for _ in range(layers))),
        torch.randn(batch, length, width),
    )


def mlp(*widths: int, batch: int) -> Make:
    """Linear layers with ReLU between them."""

    def make() -> tuple[nn.Module, Tensor]:
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        return nn.Sequential(*layers[:-1]), torch.randn(batch, widths[0])

    return make


LINEAR = Workload("Linear 512×512, b256", linear(512, 512, 256), 0.65)
CONV = Workload("Conv 64→64 3×3, 16×16, b32", conv(64, 64, 16, 32), 0.9)
DEPTHWISE = Workload("Conv 128 3×3 depthwise, 28×28, b8", conv(128, 128, 28, 8, groups=128))
LARGE = Workload("Linear 4096×4096, b64", linear(4096, 4096, 64), 0.5)
LAYERS = (
    LINEAR,
    Workload("Linear 512×512, b256, 2×2 tiles of 256", linear(512, 512, 256), 0.75, tile=256),
    Workload("Linear 512×512, b256, dynamic DAC", linear(512, 512, 256), dynamic=True),
    LARGE,
    Workload("Linear 4096×4096, b1", linear(4096, 4096, 1)),
    Workload("Linear 512×512, b1", linear(512, 512, 1)),
    CONV,
    Workload(
        "Conv 64→64 3×3, 16×16, b32, channels last",
        conv(64, 64, 16, 32, layout=torch.channels_last),
    ),
    Workload("Conv 64→64 3×3, 16×16, b32, dynamic DAC", conv(64, 64, 16, 32), dynamic=True),
    Workload("Conv 16→16 3×3, 32×32, b32", conv(16, 16, 32, 32)),
    Workload("Conv 512→512 3×3, 7×7, b4", conv(512, 512, 7, 4)),
    Workload("Conv 3→64 7×7/2, 224×224, b2", conv(3, 64, 224, 2, kernel=7, stride=2)),
    Workload("Conv 64→128 1×1/2, 56×56, b4", conv(64, 128, 56, 4, kernel=1, stride=2)),
    DEPTHWISE,
)

RESNET20 = Workload("ResNet-20, 32×32, b32", lambda: (ResNet20(), torch.randn(32, 3, 32, 32)), 1.1)
ENCODER = Workload("Encoder, 4 layers, d256, b8 s128", encoder(4, 256, 8, 8, 128), 1.0)
MODELS = (
    RESNET20,
    Workload("ResNet-18, 224×224, b8", lambda: (ResNet18(), torch.randn(8, 3, 224, 224)), 1.0),
    ENCODER,
    Workload("Encoder of BERT-base size, b4 s128", encoder(12, 768, 12, 4, 128), 0.8),
    Workload("MLP 784-512-512-10, b1", mlp(784, 512, 512, 10, batch=1), 1.5),
)
