"""From a compiled model to MLIR, at one of three levels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...passes.verify import OPS
from ...runtime.errors import AccessError, InputError, UnsupportedError
from ...runtime.extras import require
from ...runtime.spec import parse
from ..printing import counted
from .module import LEVELS, Level, MlirModule

if TYPE_CHECKING:
    from ..inspected import Inspected


def to_mlir(
    model: Inspected, level: Level, weights: str | Path, programmed: bool | None
) -> MlirModule:
    """What ``CompiledModel.to_mlir`` documents."""
    check(model)
    if level not in LEVELS:
        raise InputError(f"level must be one of {', '.join(LEVELS)}, got {level!r}")
    programmed = _programmed(model, level, programmed)
    from . import weights as storage
    from .context import new_context
    from .decompose import decompose, with_tiles
    from .importer import import_graph
    from .layers import build_layer
    from .lower import to_analog, to_linalg

    storage.check(weights)
    if weights != "args" and model.weight_access == "sealed":
        raise AccessError(
            "the weights are sealed, and would be written into the module or a file beside it",
            fix='emit with weights="args"',
        )
    flat = decompose(model)
    if programmed:
        flat = with_tiles(flat, model)
    literals = storage.literals(flat.arguments, model) if weights == "inline" else {}
    builder = None if level == "torch" else build_layer
    module, arguments = import_graph(flat, new_context(), builder, literals)
    if level != "torch":
        to_analog(module)
    if level == "linalg":
        to_linalg(module)
    made = MlirModule(module, level, arguments, flat.results, model)
    if weights not in ("args", "inline"):
        storage.write(Path(weights), made, model)
    made.verify()
    return made


def _programmed(model: Inspected, level: Level, wanted: bool | None) -> bool:
    """Whether weights are what the tiles hold, not what is written into them."""
    specs = [
        parse(str(node.args[-2])) for node in model.graph.nodes
        if node.op == "call_function" and node.target in OPS
    ]  # fmt: skip
    if wanted and level == "torch":
        raise InputError(
            "the operators of the torch level take the weights as they are, not the tiles' content",
            fix='level="analog"',
        )
    if wanted is None:
        return level == "linalg" and not all(spec.writes_exactly for spec in specs)
    return wanted


def check(model: Inspected) -> None:
    """Raise unless torch-mlir is there, and ``model`` is one graph."""
    require("torch_mlir", "mlir")
    if not any(module is model for module in model.graphs):
        raise UnsupportedError(
            f"this model is {counted(len(model.graphs), 'graph')} with Python around, and MLIR has "
            "one function for one graph",
            fix="emit them one by one: [graph.to_mlir() for graph in compiled.graphs]",
        )
