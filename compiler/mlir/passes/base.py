"""What an MLIR pass of analogc is: a frozen dataclass whose fields are its options.

It changes a module in place and leaves it valid. A fault of the module is an AnalogcError with the
location of the operation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch_mlir import ir
from torch_mlir.dialects import tensor

from ....passes.base import text_form
from ....runtime.errors import UnsupportedError
from .. import arithmetic, build
from ..attributes import to_json


@dataclass(frozen=True, slots=True)
class MlirPass:
    """Base of all passes."""

    name: ClassVar[str]

    def __call__(self, module: Any) -> None:
        """Transform ``module`` in place."""
        raise AssertionError(f"pass {self.name} does nothing")

    def __str__(self) -> str:
        """Text form: the name, and in braces the options that are not the default."""
        return text_form(self)


def operations(module: Any, *kinds: Any) -> list[Any]:
    """Operations of these classes, in the order of the text; they live as long as ``module``."""
    found: list[Any] = []

    def visit(op: Any) -> Any:
        view = op.opview
        if isinstance(view, kinds):
            found.append(view)
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return found


def operands(op: Any, kind: Any) -> dict[str, Any]:
    """Operands of a layer in the float type ``kind``, None where it has none.

    Sizes that the weight and the settings tell are in their types, whatever the operands' own say.
    """
    columns, inputs, *kernel = build.sizes(op.weight)
    blocks = len(op.rows) - 1
    groups = to_json(op.groups) if kernel else 1
    free = [None] * len(kernel)
    ranges = [blocks, columns]
    shapes = {
        "x": [*[None] * (build.rank(op.x) - 1 - len(kernel)), inputs * groups, *free],
        "scale": [columns],
        "bias": [columns],
        "input_range": [blocks],
        "adc_range": ranges,
    }
    found = {"weight": arithmetic.cast(op.weight, kind)}
    for name, shape in shapes.items():
        value = getattr(op, name)
        if value is not None:
            value = build.fixed(arithmetic.cast(value, kind), shape[: build.rank(value)])
        found[name] = value
    return found


def place(op: Any) -> str:
    """Where an operation is, for messages: its layer and its location."""
    mapping = getattr(op, "mapping", None)
    found = location(op)
    return found if mapping is None else f"layer {to_json(mapping.layer)}, {found}"


def location(item: Any) -> str:
    """Where an operation or a diagnostic is, as text: ``file:line:column``."""
    text = str(item.location).removeprefix("loc(").removesuffix(")")
    return text.replace('"', "")


def unsupported(op: Any, what: str, form: str = "linalg") -> UnsupportedError:
    """Error for an operation that has no lowering."""
    return UnsupportedError(
        f"{op.OPERATION_NAME}: {what} has no form in {form}",
        where=place(op),
        fix="keep the analog level, with calls into analogc's runtime (outline-analog-to-calls)",
    )


def replaced(op: Any, value: Any) -> None:
    """Put ``value`` in the place of the operation's one result, and drop the operation."""
    wanted = op.results[0].type
    if value.type != wanted:
        # The two know different sizes.
        with build.before(op):
            value = tensor.CastOp(wanted, value).result
    op.results[0].replace_all_uses_with(value)
    op.operation.erase()
