from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch_mlir")

from torch_mlir import ir

from analogc.compiler.mlir import dialect, opt
from analogc.compiler.mlir.attributes import from_json, mapping_of, spec_of, to_json
from analogc.compiler.mlir.context import new_context
from analogc.compiler.mlir.passes.base import operations
from analogc.errors import InputError
from analogc.runtime.converters import Converter
from analogc.runtime.devices import GaussianDevice
from analogc.runtime.spec import LayerSpec

from .modules import Layer

SPEC = LayerSpec((0, 3, 7), Converter(), Converter(6, per_column=True))


def linear(spec: LayerSpec = SPEC) -> Layer:
    ranges = torch.ones(len(spec.blocks))
    static = spec.dac is not None and not spec.dynamic
    return Layer(
        spec, torch.randn(2, 7), torch.randn(5, 7), (0, 3, 5), torch.randn(5),
        input_range=ranges if static else None,
        adc_range=ranges[:, None].expand(-1, 5).contiguous() if spec.adc else None,
        tile=(4, 3),
    )  # fmt: skip


def conv(rows: tuple[int, ...] = (0, 18, 36)) -> Layer:
    spec = LayerSpec(rows, Converter(), Converter())
    ones = torch.ones(len(spec.blocks))
    return Layer(
        spec, torch.randn(2, 8, 6, 6), torch.randn(6, 4, 3, 3), (0, 3), torch.randn(6),
        input_range=ones, adc_range=ones, stride=(2, 1), padding=(1, 0), dilation=(1, 2),
        groups=2, tile=(20, 3),
    )  # fmt: skip


def bytecode(module: Any) -> bytes:
    stream = io.BytesIO()
    module.operation.write_bytecode(stream)
    return stream.getvalue()


@pytest.mark.parametrize("passes", ["cse", "split-to-tiles"])
@pytest.mark.parametrize(
    "layer", [linear(), conv(), conv((0, 20, 36))], ids=["linear", "conv", "cut"]
)
def test_text_and_bytecode_come_back_as_they_were(layer: Layer, passes: str) -> None:
    module = layer.module()
    opt.run(module, passes)
    text = module.operation.get_asm(enable_debug_info=True)
    for data in (text.encode(), bytecode(module)):
        again = opt.read(data)
        assert again.operation.get_asm(enable_debug_info=True) == text
        assert bytecode(again) == bytecode(opt.read(bytecode(again)))


finite = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | st.text('ab"\\é\n'),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text("ab-", min_size=1), inner)
        ),
        max_leaves=8,
    )
)
def test_plain_values_travel_as_attributes_without_loss(value: Any) -> None:
    with new_context(), ir.Location.unknown():
        attr = ir.Attribute.parse(str(from_json(value)))
        found = to_json(attr)
    assert json.dumps(found, sort_keys=True) == json.dumps(value, sort_keys=True)


@given(
    st.builds(
        LayerSpec,
        st.sampled_from([(0, 7), (0, 3, 7), (0, 4, 7)]),
        st.none()
        | st.builds(Converter, st.integers(2, 16), st.sampled_from(["calibrated", "dynamic"])),
        st.none()
        | st.builds(Converter, st.integers(2, 16), st.sampled_from(["calibrated", "full", 3, 0.1])),
        st.sampled_from(["column", "tensor"]),
        st.builds(GaussianDevice, st.floats(0, 1)),
        st.floats(0, 10),
    )
)
def test_spec_and_mapping_come_back_as_they_were(spec: LayerSpec) -> None:
    layer = linear(spec)
    layer.tile = (7, 3)
    module = opt.read(str(layer.module()).encode())
    (op,) = operations(module, dialect.LinearOp)
    assert spec_of(op) == spec
    assert mapping_of(op) == layer.mapping


def test_mapping_of_a_convolution_comes_back() -> None:
    layer = conv()
    module = layer.module()
    (op,) = operations(module, dialect.ConvOp)
    assert mapping_of(op) == layer.mapping


def test_equal_operations_merge_and_unused_ones_go() -> None:
    lines = str(linear().module()).splitlines()
    at = next(n for n, line in enumerate(lines) if "analog.linear" in line)
    twins = [lines[at].replace("%0 =", f"%{name} =") for name in ("a", "b")]
    lines[at:at] = twins
    text = "\n".join(lines).replace(
        "return %0", "%y = arith.addf %a, %b : tensor<?x5xf32>\n return %y"
    )
    module = opt.read(text.encode())
    assert str(module).count("analog.linear") == 3
    opt.run(module, "cse")
    assert str(module).count("analog.linear") == 1


def broken(layer: Layer, passes: str, old: str, new: str) -> str:
    module = layer.module(())
    opt.run(module, passes)
    text, count = re.subn(old, new, str(module), count=1)
    assert count == 1, f"{old} is not in\n{module}"
    with pytest.raises(InputError) as caught:
        opt.read(text.encode())
    line = next(
        n for n, each in enumerate(text.splitlines(), 1)
        if each not in str(module).splitlines()
    )  # fmt: skip
    assert f"-:{line}:" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dac = #analog.converter<8", "dac = #analog.converter<1", "must be 2..16, got 1"),
        ("adc = #analog.converter<6", "adc = #analog.converter<17", "must be 2..16, got 17"),
        (
            '"calibrated"',
            '"often"',
            "must be 'calibrated', 'average', 'dynamic', 'full' or a number",
        ),
        (r"(dac = #.*?)\"calibrated\"", r'\1"full"', "range='full' and per_column are for an ADC"),
        (r"(dac = #.*?)\"calibrated\"", r'\1"dynamic"', "input_range if and only if"),
        (r"(dac = #.*?)\"calibrated\"", r"\1-2.0 : f64", "positive finite number"),
        (r"dac = #analog.converter<.*?}>", "dac = #analog.ideal", "input_range if and only if"),
        (r"adc = #analog.converter<.*?}>", "adc = #analog.ideal", "adc_range if and only if"),
        (
            "rows = array<i64: 0, 3, 7>",
            "rows = array<i64: 0, 3, 6>",
            "row blocks up to the weight's 7",
        ),
        ("rows = array<i64: 0, 3, 7>", "rows = array<i64: 0, 7>", "of shape 1, got 2"),
        (
            "rows = array<i64: 0, 3, 7>",
            "rows = array<i64: 0, 2, 7>",
            "2..7 overflows a tile of 4 rows",
        ),
        ("array<i64: 0, 3, 5>", "array<i64: 0, 5>", "0..5 overflows a tile of 3 columns"),
        ("array<i64: 0, 3, 5>", "array<i64: 0, 3, 4>", "col_bounds that rise from 0 to 5"),
        ("columns_per_weight = 1", "columns_per_weight = 2", "3 columns, 2 each"),
        ("first_tile = 3", "first_tile = -1", "first_tile >= 0"),
        (", tile_rows = 4 : i64", "", "bad field 'tile_rows'"),
        ("tile_rows = 4 : i64", 'tile_rows = "4"', "bad field 'tile_rows'"),
        ('weight_scale = "column"', 'weight_scale = "row"', "must be 'column' or 'tensor'"),
        ('device<"ideal"', 'device<"magic"', "unknown device"),
        ("output_noise = 0.0", "output_noise = -1.0", "finite number >= 0"),
        ("output_noise = 0.0.*? : f64", "", "output_noise"),
        ("Sizes = array<i32: 1, 1, 0, 1, 1, 1>", "Sizes = array<i32: 1, 1, 1, 1>", "5 operands"),
        (
            "Sizes = array<i32: 1, 1, 0, 1, 1, 1>",
            "Sizes = array<i32: 1, 1, 2, 1, 0, 0>",
            "5 operands",
        ),
        ("operandSegmentSizes = array<i32: 1, 1, 0, 1, 1, 1>, ", "", "missing"),
        ("rows = array<i64: 0, 3, 7>", 'rows = "0, 3, 7"', "rows of a wrong kind"),
        ("rows = array<i64: 0, 3, 7>, ", "", "requires attribute 'rows'"),
    ],
)
def test_bad_settings_are_refused_where_they_are(old: str, new: str, message: str) -> None:
    assert re.search(message, broken(linear(), "cse", old, new))


SIGNATURE = r"(?s)tensor<2x7xf32>, tensor<5x7xf32>, tensor<5xf32>, tensor<2xf32>, tensor<2x5xf32>"


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ("2x6 5x7 5 2 2x5 2x5", "x of shape 2x7, got 2x6"),
        ("2x7 5x7 4 2 2x5 2x5", "bias of shape 5, got 4"),
        ("2x7 5x7 5 3 2x5 2x5", "input_range of shape 2, got 3"),
        ("2x7 5x7 5 2 2x4 2x5", "adc_range of shape 2 or 2x5, got 2x4"),
        ("2x7 5x7 5 2 2x5 2x6", "y of shape 2x5, got 2x6"),
        ("2x7 5x7 5 2 2x5 2x5f", "one element type, got f32 and f64"),
        ("2x7 5x7x1 5 2 2x5 2x5", r"weight of shape \[N, K\], got 5x7x1"),
        ("2x7 ?x7 5 2 2x5 2x5", "weight of static shape, got \\?x7"),
        ("2x7 5x7 5i 2 2x5 2x5", "bias of floats, got i32"),
        (" 5x7 5 2 2x5 5", r"x of shape \[..., K\], got a scalar"),
    ],
)
def test_wrong_shapes_are_refused(types: str, message: str) -> None:
    kinds = [_tensor(each) for each in types.split(" ")]
    *inputs, y = kinds
    text = str(linear().module(()))
    (attributes,) = re.findall(r"\) (\{adc.*\}) : \(", text)
    names = [f"%a{n}" for n in range(len(inputs))]
    head = ", ".join(f"{name}: {kind}" for name, kind in zip(names, inputs, strict=True))
    source = (
        f"func.func @main({head}) {{\n"
        f'  %0 = "analog.linear"({", ".join(names)}) {attributes}\n'
        f"    : ({', '.join(inputs)}) -> {y}\n  return\n}}\n"
    )
    with pytest.raises(InputError, match=message) as caught:
        opt.read(source.encode())
    assert "-:2:8" in str(caught.value)


def _tensor(shape: str) -> str:
    element = {"f": "f64", "i": "i32"}.get(shape[-1:], "f32")
    dims = shape.rstrip("fi")
    return f"tensor<{dims}{'x' if dims else ''}{element}>"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("groups = 2", "groups = 4", "groups that divide the 6 outputs"),
        ("groups = 2", "groups = 3", "col_bounds that rise from 0 to 2"),
        ("stride = array<i64: 2, 1>", "stride = array<i64: 2>", "2 integers >= 1"),
        ("stride = array<i64: 2, 1>", "stride = array<i64: 0, 1>", "2 integers >= 1"),
        ("padding = array<i64: 1, 0>", "padding = array<i64: -1, 0>", "2 integers >= 0"),
        (
            "dilation = array<i64: 1, 2>",
            "dilation = array<i64: 9, 2>",
            "at least the kernel's size",
        ),
        ("dilation = array<i64: 1, 2>", "dilation = array<i64: 1, 1>", "y of shape 2x6x3x4"),
    ],
)
def test_bad_windows_are_refused(old: str, new: str, message: str) -> None:
    assert re.search(message, broken(conv(), "cse", old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("size = array<i64: 4, 3>", "size = array<i64: 2, 3>", "3 rows overflows a tile of 2 rows"),
        ("size = array<i64: 4, 3>", "size = array<i64: 4, 2>", "overflows a tile of 2 columns"),
        ("columns_per_weight = 1", "columns_per_weight = 2", "tile of 3 columns, 2 each"),
        ("tile_id = 3", "tile_id = -3", "tile_id >= 0"),
        (r"written = false", "written = 0.5", "written of a wrong kind"),
        ("axis = 1", "axis = 2", "axis to be a dim of"),
        ("converter<8", "converter<20", "must be 2..16, got 20"),
        (r"converter = #analog.converter<8.*?}>", "converter = #analog.ideal", "converter"),
        ('weight_scale = "column"', 'weight_scale = "both"', "column or tensor"),
        (
            "Sizes = array<i32: 2, 2, 1, 1>",
            "Sizes = array<i32: 3, 1, 1, 1>",
            "3 units or none, got 1",
        ),
    ],
)
def test_bad_tiles_and_converters_are_refused(old: str, new: str, message: str) -> None:
    assert re.search(message, broken(linear(), "split-to-tiles", old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kernel = array<i64: 3, 3>", "kernel = array<i64: 3, 4>", "whole channels of 12 taps"),
        ("kernel = array<i64: 3, 3>", "kernel = array<i64: 3, 2>", "codes of shape 2x3x6x6"),
        ("kernel = array<i64: 3, 3>", "kernel = array<i64: 9>", r"codes \[B, C, \*size\]"),
        (r"(conv_mvm.*)stride = array<i64: 2, 1>", r"\1stride = array<i64: 1, 1>", "sums of shape"),
    ],
)
def test_bad_convolutions_on_tiles_are_refused(old: str, new: str, message: str) -> None:
    assert re.search(message, broken(conv(), "split-to-tiles", old, new))


def test_a_tile_of_another_size_is_refused() -> None:
    source = """
      func.func @main(%w: tensor<3x2xf32>, %s: tensor<3xf32>) {
        %0 = "analog.program"(%w, %s) {array = "a", columns_per_weight = 1 : i64, tile_id = 0 : i64,
          device = #analog.device<"ideal", {}>, size = array<i64: 8, 8>, written = false}
          : (tensor<3x2xf32>, tensor<3xf32>) -> !analog.tile<3, 2>
        return
      }"""
    with pytest.raises(InputError, match="-:3:14: .*tile of 2 rows and 3 columns, got 3 and 2"):
        opt.read(source.encode())


def test_one_context_loads_the_dialect_once() -> None:
    context = new_context()
    dialect.load(context)
    assert str(linear().module()) == str(linear().module())
