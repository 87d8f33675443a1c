"""Small models with the structures of well-known ones, down to buffers that are not persistent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, WIDTH, HEADS, POSITIONS = 50, 32, 4, 16


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, T, D]`` to ``[B, heads, T, D / heads]``."""
    return x.view(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], -1)


# -- BERT -----------------------------------------------------------------------------------------


class BertLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.dense = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.intermediate, self.output = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.output_norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (split_heads(f(x), HEADS) for f in (self.query, self.key, self.value))
        y = joined(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
        x = self.norm(x + self.dense(y))
        return self.output_norm(x + self.output(F.gelu(self.intermediate(x))))  # type: ignore[no-any-return]


class Bert(nn.Module):
    """Padding mask, three embeddings, ids of positions and types in non-persistent buffers."""

    position_ids: Tensor
    token_type_ids: Tensor

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.positions, self.types = nn.Embedding(POSITIONS, WIDTH), nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer() for _ in range(layers))
        self.pooler = nn.Linear(WIDTH, WIDTH)
        ids = torch.arange(POSITIONS).expand(1, -1)
        self.register_buffer("position_ids", ids, persistent=False)
        self.register_buffer("token_type_ids", torch.zeros_like(ids), persistent=False)

    def forward(self, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        b, t = ids.shape
        kinds = self.token_type_ids[:, :t].expand(b, t)
        x = self.words(ids) + self.types(kinds) + self.positions(self.position_ids[:, :t])
        x = self.norm(x)
        mask = (1.0 - attention_mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        for layer in self.layers:
            x = layer(x, mask.expand(b, 1, t, t))
        return x, torch.tanh(self.pooler(x[:, 0]))


# -- GPT-2 ----------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """A linear layer whose weight is ``[K, N]``, by addmm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.1 * torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view(*x.size()[:-1], self.weight.shape[1])


class GptBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.projection = Conv1D(WIDTH, 3 * WIDTH), Conv1D(WIDTH, WIDTH)
        self.up, self.down = Conv1D(WIDTH, 4 * WIDTH), Conv1D(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.attention(self.norm(x)).split(WIDTH, dim=2)
        q, k, v = (split_heads(part, HEADS) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).contiguous().view(x.shape)
        x = x + self.projection(y)
        u = self.up(self.second_norm(x))
        wave = torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * torch.pow(u, 3)))
        return x + self.down(0.5 * u * (1 + wave))  # type: ignore[no-any-return]


class Gpt(nn.Module):
    """Fused q, k and v, causal attention, and a head tied to the embedding."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(16, WIDTH)
        self.blocks = nn.ModuleList(GptBlock() for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


# -- Llama ----------------------------------------------------------------------------------------


class RmsNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


class LlamaLayer(nn.Module):
    groups = 2
    """Heads that share keys and values."""

    def __init__(self) -> None:
        super().__init__()
        narrow = WIDTH // self.groups
        self.q, self.o = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.k, self.v = (nn.Linear(WIDTH, narrow, bias=False) for _ in range(2))
        self.gate, self.up = (nn.Linear(WIDTH, 64, bias=False) for _ in range(2))
        self.down = nn.Linear(64, WIDTH, bias=False)
        self.norm, self.second_norm = RmsNorm(), RmsNorm()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        y = self.norm(x)
        heads = HEADS // self.groups
        q, k, v = split_heads(self.q(y), HEADS), *(
            split_heads(f(y), heads) for f in (self.k, self.v)
        )  # fmt: skip
        q, k = q * cos + rotated(q) * sin, k * cos + rotated(k) * sin
        y = joined(F.scaled_dot_product_attention(q, self.each(k), self.each(v), is_causal=True))
        x = x + self.o(y)
        y = self.second_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))  # type: ignore[no-any-return]

    def each(self, x: Tensor) -> Tensor:
        b, heads, t, size = x.shape
        return x[:, :, None].expand(b, heads, self.groups, t, size).reshape(b, -1, t, size)


class Llama(nn.Module):
    """RMS norms, grouped queries, SwiGLU, rotary positions from a non-persistent buffer."""

    inv_freq: Tensor

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(LlamaLayer() for _ in range(layers))
        self.norm = RmsNorm()
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        size = WIDTH // HEADS
        frequencies = 10000.0 ** -(torch.arange(0, size, 2).float() / size)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        places = torch.arange(ids.shape[1], device=ids.device)[None, None].float()
        angles = (self.inv_freq[None, :, None] @ places).transpose(1, 2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.head(self.norm(x))  # type: ignore[no-any-return]


# -- vision ---------------------------------------------------------------------------------------


class VitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.second_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, t, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = x + self.proj(joined(F.scaled_dot_product_attention(q, k, v)))
        return x + self.down(F.gelu(self.up(self.second_norm(x))))  # type: ignore[no-any-return]


class Vit(nn.Module):
    def __init__(self, layers: int = 1, patch: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, WIDTH, patch, patch)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(0.1 * torch.randn(1, (16 // patch) ** 2 + 1, WIDTH))
        self.blocks = nn.ModuleList(VitBlock() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])  # type: ignore[no-any-return]


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.relu(y)  # type: ignore[no-any-return]


def resnet18(width: int = 4) -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = width
    for i, outputs in enumerate((width, 2 * width, 4 * width, 8 * width)):
        first = BasicBlock(inputs, outputs, 1 if i == 0 else 2)
        blocks += [first, BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1), *blocks, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(),
        nn.Linear(inputs, 5),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 8, 1), nn.Conv2d(8, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.up(y))


class InvertedResidual(nn.Module):
    def __init__(
        self, inputs: int, wide: int, outputs: int, kernel: int, squeeze: bool, stride: int
    ) -> None:
        super().__init__()
        depthwise = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.block = nn.Sequential(
            nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide, eps=0.001),
            nn.Hardswish(inplace=True), depthwise, nn.BatchNorm2d(wide, eps=0.001),
            nn.Hardswish(inplace=True), SqueezeExcite(wide) if squeeze else nn.Identity(),
            nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs, eps=0.001),
        )  # fmt: skip
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.block(x)
        if self.adds:
            y += x
        return y  # type: ignore[no-any-return]


def mobilenet_v3() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.Hardswish(inplace=True),
        InvertedResidual(8, 16, 8, 3, True, 2), InvertedResidual(8, 24, 12, 3, False, 2),
        InvertedResidual(12, 30, 12, 5, True, 1), nn.Conv2d(12, 24, 1, bias=False),
        nn.BatchNorm2d(24), nn.Hardswish(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(24, 32), nn.Hardswish(inplace=True), nn.Dropout(0.2), nn.Linear(32, 5),
    )  # fmt: skip


# -- all of them ----------------------------------------------------------------------------------


def tokens() -> Tensor:
    return torch.randint(VOCABULARY, (2, 8))


def padded() -> tuple[Tensor, Tensor]:
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    return tokens(), mask


def picture(size: int) -> tuple[Tensor]:
    return (torch.randn(2, 3, size, size),)


ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Any, ...]], int]] = {
    "bert": (Bert, padded, 7),
    "gpt2": (Gpt, lambda: (tokens(),), 5),
    "llama": (Llama, lambda: (tokens(),), 8),
    "vit": (Vit, lambda: picture(16), 6),
    "resnet18": (resnet18, lambda: picture(32), 21),
    "mobilenet_v3": (mobilenet_v3, lambda: picture(32), 17),
}
"""What makes the model and its inputs, and how many analog layers it has."""


def build(name: str) -> tuple[nn.Module, tuple[Any, ...], int]:
    """Model in eval mode with statistics that are not the trivial ones, inputs, layers."""
    make, inputs, layers = ARCHITECTURES[name]
    model = make().eval()
    for key, buffer in model.named_buffers():
        if key.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif key.endswith("running_mean"):
            buffer.uniform_(-0.2, 0.2)
    return model, inputs(), layers
