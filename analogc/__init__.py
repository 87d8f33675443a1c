"""analogc: compile any PyTorch model to analog in-memory-computing tiles.

compiled = analogc.compile(model, (x,), target="generic-8bit")
y = compiled(x)
print(compiled)             # the graph, with shapes and tiles
print(compiled.coverage)    # what went analog, and why the rest did not
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import devices, errors, targets
from .compiler.archive import load
from .compiler.attach import Attached, attach
from .compiler.compile import compile, compiled_models
from .compiler.coverage import CoverageReport
from .compiler.model import CompiledModel
from .compiler.symbolic import SymbolicTrace
from .passes.pipeline import DEFAULT_PASSES
from .passes.select_analog import LayerInfo
from .runtime.clip import WeightClip
from .runtime.converters import Converter
from .runtime.devices import Cell, GaussianDevice, IdealDevice
from .runtime.mapping import TileMapping
from .runtime.periphery import Periphery
from .runtime.slicing import Slicing
from .runtime.sqnr import ConverterRangeWarning
from .runtime.target import Calibration, Target, TileSpec
from .runtime.wires import WireResistanceWarning, Wires

if TYPE_CHECKING:
    from . import interop
    from .compiler.diff import Diff, diff
    from .compiler.evaluate import evaluate
    from .compiler.evaluation import EvaluationResult

__version__ = "0.1.0"

__all__ = [
    "DEFAULT_PASSES",
    "Attached",
    "Calibration",
    "Cell",
    "CompiledModel",
    "Converter",
    "ConverterRangeWarning",
    "CoverageReport",
    "Diff",
    "EvaluationResult",
    "GaussianDevice",
    "IdealDevice",
    "LayerInfo",
    "Periphery",
    "Slicing",
    "SymbolicTrace",
    "Target",
    "TileMapping",
    "TileSpec",
    "WeightClip",
    "WireResistanceWarning",
    "Wires",
    "attach",
    "compile",
    "compiled_models",
    "devices",
    "diff",
    "errors",
    "evaluate",
    "interop",
    "load",
    "targets",
]

_LATER = {
    "Diff": ".compiler.diff",
    "EvaluationResult": ".compiler.evaluation",
    "diff": ".compiler.diff",
    "evaluate": ".compiler.evaluate",
    "interop": ".interop",
}
"""Names that compiling and running a model do not need, imported at first use."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_LATER[name], __name__)
    # A submodule is an attribute by the import itself.
    globals()[name] = found = getattr(module, name, module)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
