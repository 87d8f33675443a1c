"""Pipelines: names, options, mixing with MLIR's passes, errors; and ``analogc opt``."""

from __future__ import annotations

import ctypes
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("torch_mlir")

from torch_mlir.dialects import func

from analogc.compiler.cli import main
from analogc.compiler.mlir import memref, opt
from analogc.compiler.mlir.dialect import LinearOp
from analogc.compiler.mlir.native import NativeCode
from analogc.compiler.mlir.passes.base import operations
from analogc.compiler.mlir.passes.outline_analog import OutlineAnalog
from analogc.errors import AnalogcError, InputError, UnsupportedError, VerifyError
from analogc.runtime.converters import Converter
from analogc.runtime.devices import GaussianDevice
from analogc.runtime.spec import LayerSpec

from .modules import Layer

BOTH = Converter(), Converter()


def layer(**settings: Any) -> Layer:
    spec = LayerSpec((0, 2, 4), *BOTH, **settings)
    ones = torch.ones(2)
    return Layer(
        spec, torch.randn(2, 4), torch.randn(3, 4), (0, 3), input_range=ones, adc_range=ones
    )


def test_pipeline_text_comes_back() -> None:
    text = "outline-analog-to-calls{abi=buffer},func.func(canonicalize,cse),symbol-dce"
    steps = opt.parse(text)
    assert ",".join(map(str, steps)) == text
    assert steps[0] == OutlineAnalog(abi="buffer")
    assert opt.parse(f"builtin.module( {text} )") == steps


def test_each_step_is_reported_with_its_time() -> None:
    seen: list[tuple[str, bool, float]] = []
    module = layer().module()

    def after(step: str, module: Any, seconds: float) -> None:
        seen.append((step, "analog." in str(module), seconds))

    opt.run(module, "split-to-tiles, expand-analog,func.func(canonicalize,cse)", after)

    assert [step[:2] for step in seen] == [
        ("split-to-tiles", True), ("expand-analog", False), ("func.func(canonicalize,cse)", False)
    ]  # fmt: skip
    assert all(0 < seconds < 60 for _, _, seconds in seen)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("split-to-tile", "split-to-tile'.*\n.*split-to-tiles, expand-analog, outline-analog"),
        ("cse,nothing-known", "no pipeline step 'nothing-known'"),
        ("func.func(nothing-known)", "does not refer to a registered pass"),
        ("func.func(expand-analog)", "does not refer to a registered pass"),
        ("cse,,cse", "empty step"),
        ("", "empty step"),
        ("func.func(cse", "brackets do not match"),
        ("cse)", "brackets do not match"),
        ("canonicalize{top=1}", "no such option top"),
        ("expand-analog{fast=1}", "pass expand-analog has no option 'fast=1'"),
        ("outline-analog-to-calls{abi=c}", "abi must be one of tensor, buffer, got 'c'"),
    ],
)
def test_wrong_pipelines_are_refused_before_anything_runs(text: str, message: str) -> None:
    module = layer().module()
    before = str(module)
    with pytest.raises(InputError, match=message):
        opt.run(module, f"split-to-tiles,{text}")
    assert str(module) == before


def test_a_step_that_fails_names_itself_and_the_place() -> None:
    with pytest.raises(VerifyError, match="pass torch-verify-linalg.* failed\nuser.py:12:3: .*"):
        opt.run(layer().module(), "torch-verify-linalg-on-tensors-backend-contract")


@pytest.mark.parametrize("first", ["", "split-to-tiles,"])
@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"output_noise": 0.5}, "output_noise = 0.5"),
        ({"device": GaussianDevice()}, "writing a weight into gaussian devices"),
    ],
)
def test_what_linalg_cannot_say_is_refused_with_the_place(
    settings: dict[str, Any], what: str, first: str
) -> None:
    module = layer(**settings).module()
    opt.run(module, f"{first}cse")
    before = str(module)
    with pytest.raises(UnsupportedError) as caught:
        opt.run(module, "expand-analog")
    assert what in str(caught.value)
    assert "user.py:12:3" in str(caught.value.where)
    assert first or "layer block/fc" in str(caught.value.where)
    assert str(module) == before


def test_a_setting_that_a_later_version_adds_is_refused_not_ignored() -> None:
    text = str(layer().module())
    for old, new in [
        ("settings = {output", 'settings = {wires = "real", output'),
        ("per_column = false}", "per_column = false, offset = 1.0 : f32}"),
    ]:
        changed = text.replace(old, new, 1)
        assert changed != text
        with pytest.raises(AnalogcError, match="wires|offset"):
            opt.run(opt.read(changed.encode()), "expand-analog")


def test_tiles_that_come_from_elsewhere_have_no_expansion() -> None:
    source = """
      func.func @main(%x: tensor<2x4xf32>, %t: !analog.tile<4, 3>) -> tensor<2x3xf32> {
        %0 = "analog.mvm"(%x, %t) {settings = {}}
          : (tensor<2x4xf32>, !analog.tile<4, 3>) -> tensor<2x3xf32>
        return %0 : tensor<2x3xf32>
      }"""
    with pytest.raises(UnsupportedError, match="not programmed in the same function"):
        opt.run(opt.read(source.encode()), "expand-analog")


# -- outline --------------------------------------------------------------------------------------


@pytest.mark.parametrize("abi", ["tensor", "buffer"])
@pytest.mark.parametrize("operands", ["all", "input"])
def test_calls_carry_what_the_callee_needs(abi: str, operands: str) -> None:
    module = layer(output_noise=0.5, device=GaussianDevice()).module()
    (op,) = operations(module, LinearOp)
    attributes = {name: str(op.operation.attributes[name]) for name in op.operation.attributes}
    opt.run(module, f"outline-analog-to-calls{{abi={abi} operands={operands} prefix=rt.}}")
    (call,) = operations(module, func.CallOp)
    declared = next(op for op in operations(module, func.FuncOp) if op.is_external)

    assert declared.name.value == "rt.block_fc" and call.callee.value == "rt.block_fc"
    assert declared.attributes["analog.layer"].value == "block/fc"
    assert declared.attributes["analog.op"].value == "analog.linear"
    held = declared.attributes["analog.attributes"]
    assert {item.name: str(item.attr) for item in held} == attributes
    assert len(call.operands) == (4 if operands == "all" else 1) + (abi == "buffer")
    assert len(call.results) == (abi == "tensor")
    again = opt.read(str(module).encode())
    assert str(again) == str(module)


def test_calls_of_one_layer_share_a_declaration_and_others_have_their_own() -> None:
    first = str(layer().module()).splitlines()
    at = next(n for n, line in enumerate(first) if "analog.linear" in line)
    twin = first[at].replace("%0 =", "%twin =")
    other = (
        first[at]
        .replace("%0 =", "%other =")
        .replace('weight_scale = "column"', 'weight_scale = "tensor"')
    )
    first[at:at] = [twin, other]
    module = opt.read("\n".join(first).encode())
    opt.run(module, "outline-analog-to-calls")
    names = [op.name.value for op in operations(module, func.FuncOp) if op.is_external]
    assert sorted(names) == ["analog.block_fc", "analog.block_fc_2"]
    assert str(module).count("call @analog.block_fc(") == 2


def test_calls_on_buffers_run_as_machine_code() -> None:
    ones = torch.ones(1)
    layer = Layer(
        LayerSpec((0, 27), *BOTH), torch.randn(2, 3, 8, 7), torch.randn(4, 3, 3, 3), (0, 4),
        input_range=ones, adc_range=ones, stride=(2, 1), padding=(1, 2), dilation=(1, 2),
    )  # fmt: skip
    module = layer.module(dynamic=(0, 2, 3))
    opt.run(module, "outline-analog-to-calls{abi=buffer prefix=rt_}")
    kinds = [ctypes.POINTER(memref.descriptor(n)) for n in (4, 4, 1, 1, 4)]
    seen: list[Tensor] = []

    def call(*buffers: Any) -> None:
        *given, out = (memref.view(each.contents, torch.float32) for each in buffers)
        seen.extend(value.clone() for value in given)
        out.copy_(layer.expected())

    code = NativeCode(module, {"rt_block_fc": ctypes.CFUNCTYPE(None, *kinds)(call)})
    (found,) = code(list(layer.operands.values()))

    assert torch.equal(found, layer.expected())
    assert all(map(torch.equal, seen, layer.operands.values()))


# -- command line ---------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.mlir"
    path.write_text(str(layer().module()))
    return path


def test_command_writes_text_that_the_next_one_reads(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, code = tmp_path / "tiles.mlir", tmp_path / "tiles.mlirbc"
    for path in (out, code):
        assert main(["opt", "--passes", "split-to-tiles,cse", str(source), "-o", str(path)]) == 0
    assert code.read_bytes()[:4] == opt.MAGIC
    printed = []
    for path in (out, code):
        assert main(["opt", "--passes", "expand-analog,canonicalize,cse", str(path)]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert "linalg.generic" in printed[0] and "analog." not in printed[0]


def test_command_reads_standard_input_as_text_and_bytecode(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = tmp_path / "same.mlirbc"
    assert main(["opt", "--passes", "cse", str(source), "-o", str(code)]) == 0
    printed = []
    for path in (source, code):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
        assert main(["opt", "--passes", "cse", "-"]) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] and '"analog.linear"' in printed[0]


def test_command_prints_between_and_times_beside_the_result(
    source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "split-to-tiles,expand-analog"
    assert main(["opt", "--passes", text, str(source), "--print-between", "--timing"]) == 0
    out, err = capsys.readouterr()
    assert "analog." not in out
    assert '"analog.mvm"' in err.split("// ----- expand-analog -----")[0]
    assert [line.split()[0] for line in err.splitlines()[-3:]] == [
        "split-to-tiles", "expand-analog", "total"
    ]  # fmt: skip


def test_command_keeps_locations_if_asked(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["opt", "--passes", "expand-analog", "--locations", str(source)]) == 0
    assert f'loc("{source}":3:10)' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "passes", "message"),
    [
        (b"func.func @f(", "cse", "in.mlir:1:13: expected"),
        (b"\x00\xff\xfe", "cse", "in.mlir"),
        (b"func.func @f() { return }", "split", "no pipeline step 'split'"),
        (None, "cse", "No such file"),
    ],
)
def test_command_reports_faults_in_one_message(
    content: bytes | None,
    passes: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "in.mlir"
    if content is not None:
        path.write_bytes(content)
    assert main(["opt", "--passes", passes, str(path)]) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


def test_other_commands_do_not_need_torch_mlir() -> None:
    code = (
        "import sys\n"
        "import analogc.compiler.cli as cli\n"
        "cli.main(['targets'])\n"
        "print('torch_mlir' in sys.modules)\n"
        "sys.modules['torch_mlir'] = None\n"
        "print(cli.main(['opt', '--passes', 'cse', 'x.mlir']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["False", "1"]
    assert "pip install 'analogc[mlir]'" in done.stderr
