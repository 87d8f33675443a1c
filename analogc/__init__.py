"""analogc: compile any PyTorch model to analog in-memory-computing tiles.

compiled = analogc.compile(model, (x,), target="generic-8bit")
y = compiled(x)
print(compiled)             # the graph, with shapes and tiles
print(compiled.coverage)    # what went analog, and why the rest did not
"""

from . import devices, errors, interop, targets
from .compiler.archive import load
from .compiler.attach import Attached, attach
from .compiler.compile import compile, compiled_models
from .compiler.coverage import CoverageReport
from .compiler.diff import Diff, diff
from .compiler.evaluate import evaluate
from .compiler.evaluation import EvaluationResult
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
