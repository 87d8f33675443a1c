"""No attribute, whatever its value, gets past the verifiers and makes a pass fall over."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

pytest.importorskip("torch_mlir")

from analogc.compiler.mlir import opt
from analogc.compiler.mlir.context import new_context
from analogc.errors import AnalogcError

from .test_dialect import conv, linear

VALUES = [
    '"text"', "-1", "0", "3 : i32", "9223372036854775807", "0.5", "0x7FC00000 : f32", "true",
    "unit", "f32", "[]", "[1, 2]", "{}", '{a = "b"}', "@symbol", "dense<1> : tensor<2xi64>",
    "array<i64>", "array<i64: -1>", "array<i64: 0, 3>", "array<i64: 7, 0>", "array<i32: 0, 3, 7>",
    "#analog.ideal", '#analog.converter<3, "full", {}>', "#analog.converter<8, 2.0, {a = 1}>",
    '#analog.device<"x", {}>', '#analog.device<"gaussian", {sigma = "x"}>',
    '#analog.mapping<"", "", {}>', '#analog.mapping<"l", "a", {col_bounds = array<i64: 0>}>',
]  # fmt: skip
VALUE = "|".join(
    [
        r"array<[^>]*>",
        r"#analog\.\w+(?:<[^{}]*\{[^{}]*\}>)?",
        r"\{[^{}]*\}",
        r"\"[^\"]*\"",
        r"[\w.+-]+(?: : \w+)?",
    ]
)


def mutants(text: str) -> Iterator[str]:
    """``text`` with each of the values in the place of each attribute, nested ones too."""
    for match in re.finditer(rf"(?<=[{{ ])\w+ = (?=(?:{VALUE}))", text):
        old = re.compile(VALUE).match(text, match.end())
        assert old is not None
        for value in VALUES:
            yield text[: match.end()] + value + text[old.end() :]


@pytest.mark.parametrize("layer", ["linear", "conv"])
@pytest.mark.parametrize("first", ["cse", "split-to-tiles,cse"])
def test_bad_attributes_are_errors_of_ours(layer: str, first: str) -> None:
    module = (linear() if layer == "linear" else conv()).module()
    opt.run(module, first)
    # One operation of each kind is enough.
    lines, seen = [], set()
    for line in str(module).splitlines():
        name = re.search(r'"(analog\.\w+)"', line)
        if name is not None and name.group(1) not in seen:
            seen.add(name.group(1))
            lines.append(line)
    context = new_context()
    accepted = 0
    for line in lines:
        for mutant in mutants(line):
            text = str(module).replace(line, mutant)
            try:
                found = opt.read(text.encode(), context)
                accepted += 1
                opt.run(found, "outline-analog-to-calls" if accepted % 2 else "split-to-tiles")
                opt.run(found, "expand-analog")
            except AnalogcError:
                pass
    assert len(lines) == (1 if first == "cse" else 6)
    assert accepted > 0
