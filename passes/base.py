"""What a pass is: a frozen dataclass whose fields are its options, called on a graph.

Passes leave the graph valid and may assume that it is. An analysis writes one record into
``node.meta["analogc"]``; a rewrite only reads it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from ..runtime.noise import NoiseSource
from ..runtime.target import Target
from ..runtime.tiles import TileArray

META = "analogc"
"""Key under which nodes carry their TileMapping or Digital record."""
FROM = "analogc_from"
"""Key of a rewritten node's provenance: (pass, name of the node it replaced), oldest first."""

LOOP = "analogc_loop"
"""Key of a layer that is one step of a loop, with the loop's name: the steps that use one weight
share its converter ranges."""

STORED = "analogc_stored"
"""Key of a digital node with a computed operand to keep, as a weight is kept: its position."""
AUTOCAST = "analogc_autocast"
"""Key of a node inside an autocast region: the arguments of torch.autocast."""
CHECKPOINT = "analogc_checkpoint"
"""Key of a captured node inside a call of torch.utils.checkpoint: the number of the call."""


@dataclass(frozen=True, slots=True)
class PassResult:
    """A graph and whether the pass changed it."""

    module: fx.GraphModule
    modified: bool


@dataclass(slots=True)
class PassContext:
    """What passes share while one graph is compiled."""

    target: Target
    root: torch.nn.Module
    """The module tree that ``get_attr`` and ``call_module`` nodes refer to."""
    select: Callable[[Any], bool] | None = None
    """Predicate of the user: LayerInfo -> analog."""
    noise: NoiseSource = field(default_factory=NoiseSource)
    uid: str = "0"
    """Prefix of tile array keys; unique for each compiled model."""
    auto_sync: bool = True
    """Whether tile arrays program a changed weight by themselves."""
    lowerings: Mapping[Any, Callable[..., Any]] = field(default_factory=dict)
    """The user's own lowerings by operator; what is in them is replaced before anything else."""
    lowered: set[Any] = field(default_factory=set)
    """Operators that one of ``lowerings`` replaced."""
    strict: bool = False
    """Whether a weight-stationary operator without an analog form is an error."""
    arrays: dict[str, TileArray] = field(default_factory=dict)
    """Tile arrays by name; grows, so that another graph of the same model shares them."""
    array_names: dict[str, str] = field(default_factory=dict)
    """Name of each array by the expression of its weight and its groups."""
    derived: dict[str, str] = field(default_factory=dict)
    """Path of each DerivedWeight by its expression."""
    range_names: dict[str, str] = field(default_factory=dict)
    """Name of the range buffers of each use of an array."""
    first_tile: dict[str, int] = field(default_factory=dict)
    """Id of the first tile of each array."""
    frame: str = ""
    """Which of several graphs of a model is compiled; each has its own converter ranges."""
    tiles: int = 0
    """Number of tile ids given out."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Base of all passes."""

    name: ClassVar[str]

    def requires(self, module: fx.GraphModule) -> None:
        """Check what must hold before; raises VerifyError."""

    def ensures(self, module: fx.GraphModule) -> None:
        """Check what holds after; raises VerifyError."""

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        raise AssertionError(f"pass {self.name} does nothing")

    def __str__(self) -> str:
        """Text form: the name, and in braces the options that are not the default."""
        options = [
            f"{f.name}={_text(getattr(self, f.name))}"
            for f in dataclasses.fields(self)
            if getattr(self, f.name) != f.default
        ]
        return self.name + ("{" + " ".join(options) + "}" if options else "")


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def finish(module: fx.GraphModule, modified: bool) -> PassResult:
    """End of a rewriting pass: drop dead code and recompile if anything changed."""
    if modified:
        module.graph.eliminate_dead_code()
        module.graph.lint()
        module.recompile()
    return PassResult(module, modified)


_PLACE = ("nn_module_stack", "stack_trace", "source_fn_stack", "torch_fn", "from_node")


def inherit(new: fx.Node, old: fx.Node, by: str) -> None:
    """Give a new node the meta of the node it replaces, and where it came from."""
    for key in (*_PLACE, AUTOCAST, LOOP):
        if key in old.meta and key not in new.meta:
            new.meta[key] = old.meta[key]
    new.meta[FROM] = (*old.meta.get(FROM, ()), (by, old.name))


def source_name(node: fx.Node) -> str:
    """Name of the captured node that ``node`` was made from."""
    chain = node.meta.get(FROM)
    return chain[0][1] if chain else node.name


def module_path(node: fx.Node) -> str:
    """Path of the innermost module whose forward made the node."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path = next(reversed(stack.values()))[0]
    return str(path).removeprefix("L['self'].").removeprefix("L['self']")


def source_line(node: fx.Node) -> str | None:
    """User's source line ``file:line`` that made the node, if known."""
    trace = node.meta.get("stack_trace")
    if not trace:
        return None
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    users = [line for line in lines if "/torch/" not in line] or lines
    if not users:
        return None
    file, _, rest = users[-1].removeprefix('File "').partition('", line ')
    return f"{file}:{rest.partition(',')[0]}"
