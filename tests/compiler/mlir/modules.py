"""Modules with one analog layer whose weights and ranges are arguments, and what it computes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_mlir import ir
from torch_mlir.dialects import func

from analogc.compiler.mlir import dialect
from analogc.compiler.mlir.attributes import i64, mapping_attribute, spec_attributes
from analogc.compiler.mlir.context import new_context
from analogc.runtime import reference
from analogc.runtime.mapping import TileMapping
from analogc.runtime.noise import NoiseKey
from analogc.runtime.spec import LayerSpec
from analogc.runtime.tiles import Programmed, program

_TYPES = {torch.float32: "f32", torch.float64: "f64", torch.float16: "f16", torch.bfloat16: "bf16"}


@dataclasses.dataclass
class Layer:
    """One layer with example operands."""

    spec: LayerSpec
    x: Tensor
    weight: Tensor
    cols: tuple[int, ...]
    bias: Tensor | None = None
    input_range: Tensor | None = None
    adc_range: Tensor | None = None
    scale: Tensor | None = None
    stride: Sequence[int] = ()
    padding: Sequence[int] = ()
    dilation: Sequence[int] = ()
    groups: int = 1
    tile: tuple[int, int] = (512, 512)

    @property
    def is_linear(self) -> bool:
        return self.weight.dim() == 2

    @property
    def mapping(self) -> TileMapping:
        shape = tuple(self.weight.shape)
        op = "linear" if self.is_linear else f"conv{len(shape) - 2}d"
        return TileMapping(
            layer="block/fc", array="fc", op=op,
            out_features=shape[0] // self.groups, in_features=self.spec.rows[-1],
            groups=self.groups, row_bounds=self.spec.rows, col_bounds=self.cols, first_tile=3,
            tile_rows=self.tile[0], tile_cols=self.tile[1], columns_per_weight=1,
            weight_shape=shape, macs=7, module="block", source="fc_1",
        )  # fmt: skip

    @property
    def operands(self) -> dict[str, Tensor]:
        names = ("x", "weight", "scale", "bias", "input_range", "adc_range")
        found = {name: getattr(self, name) for name in names}
        return {name: value for name, value in found.items() if value is not None}

    def output_shape(self) -> list[int]:
        if self.is_linear:
            return [*self.x.shape[:-1], self.weight.shape[0]]
        return list(self._convolve(self.x.double(), self.weight.double(), self.groups).shape)

    def module(self, dynamic: Sequence[int] = (0,), vague: bool = False) -> Any:
        """``main`` of the operands in order; the dims ``dynamic`` of the input have no size.

        ``vague``: nor have those of the other operands, save the weight, or the input's inner one.
        """
        y = self.output_shape()
        spatial = [d for d in dynamic if d > 1 and not self.is_linear]
        free = set(dynamic) | set(spatial)
        with new_context(), ir.Location.file("user.py", 12, 3):
            kinds = {name: _type(value) for name, value in self.operands.items()}
            kinds["x"] = _type(self.x, dynamic)
            if vague:
                inner = self.x.dim() - 1 if self.is_linear else 1
                kinds = {name: _type(value, (0, 1)) for name, value in self.operands.items()}
                kinds["x"] = _type(self.x, [*dynamic, inner])
                kinds["weight"] = _type(self.weight)
            result = _type(torch.empty(y, dtype=self.x.dtype), [d for d in free if d < len(y)])
            module = ir.Module.create()
            with ir.InsertionPoint(module.body):
                main = func.FuncOp("main", (list(kinds.values()), [result]))
                with ir.InsertionPoint(main.add_entry_block()):
                    operands = dict(zip(kinds, main.arguments, strict=True))
                    func.ReturnOp([self._build(operands, result)])
            module.operation.verify()
        return module

    def _build(self, operands: dict[str, Any], result: Any) -> Any:
        settings = {**spec_attributes(self.spec.to_text()), "y": result, **operands}
        settings["mapping"] = mapping_attribute(self.mapping)
        if self.is_linear:
            return dialect.LinearOp(**settings).y
        for name in ("stride", "padding", "dilation"):
            settings[name] = ir.DenseI64ArrayAttr.get(list(getattr(self, name)))
        return dialect.ConvOp(**settings, groups=i64(self.groups)).y

    # -- what it computes -------------------------------------------------------------------------

    def programmed(self) -> Programmed:
        """Content of the devices: ideal ones unless it is given."""
        if self.scale is None:
            return program(self.weight, self.spec, NoiseKey(0, "test", 0))
        flat = self.weight.flatten(1)
        blocks = tuple(flat[:, a:b] for a, b in self.spec.blocks)
        return Programmed(blocks, self.scale)

    def expected(self) -> Tensor:
        """Result by the decomposition of ``runtime/reference.py``."""
        tiles = self.programmed()
        x = self.x.to(tiles.scale.dtype)
        ranges = self.input_range, self.adc_range
        if self.is_linear:
            y = reference.linear(x, tiles.blocks, tiles.scale, self.bias, *ranges, self.spec)
        elif self.spec.dynamic:
            y = reference.conv(
                x, tiles, self.bias, *ranges, self.spec, self.weight.shape,
                self.stride, self.padding, self.dilation, self.groups,
            )  # fmt: skip
        else:
            y = self._blockwise(x, tiles)
        return y.to(self.x.dtype)

    def _convolve(self, x: Tensor, weight: Tensor, groups: int) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[weight.dim() - 3]
        found: Tensor = conv(
            x, weight, None, list(self.stride), list(self.padding), list(self.dilation), groups
        )
        return found

    def _blockwise(self, x: Tensor, tiles: Programmed) -> Tensor:
        """Static ranges: codes of the feature map, and a block's weight among zeros."""
        spec = self.spec
        matrix = reference.flat_weight(tiles, self.weight.shape, spec)
        spread = [-1, *[1] * (self.weight.dim() - 2)]
        parts, gains = [], []
        for r, (start, stop) in enumerate(spec.blocks):
            codes, full = x, torch.ones((), dtype=x.dtype)
            if spec.dac is not None:
                assert self.input_range is not None
                full = self.input_range[r].to(x.dtype)
                codes = reference.dac(x, full, spec.dac.bits)
            block = torch.zeros_like(matrix)
            block[:, start:stop] = matrix[:, start:stop]
            p = self._convolve(codes, block.view(self.weight.shape), self.groups)
            if spec.adc is not None:
                assert self.adc_range is not None
                limit = self.adc_range[r].to(x.dtype)
                p = reference.adc(p, limit.view(spread) if limit.dim() else limit, spec.adc.bits)
            parts.append(p)
            gains.append((full * tiles.scale).view(spread))
        bias = None if self.bias is None else self.bias.view(spread)
        y: Tensor = reference.accumulate(parts, gains, bias)
        return y


def _type(value: Tensor, dynamic: Sequence[int] = ()) -> Any:
    free = ir.ShapedType.get_dynamic_size()
    sizes = [free if d in dynamic else n for d, n in enumerate(value.shape)]
    return ir.RankedTensorType.get(sizes, ir.Type.parse(_TYPES[value.dtype]))
