"""The module tree of a compiled model: the user's own parameter and buffer tables, nothing else.

Each Holder shares the ``_parameters`` and ``_buffers`` dicts of the module that it stands for, so
there is one set of names and one set of tensors: a parameter that is written, replaced, moved or
loaded through the model is so in the compiled model, and the other way round.
"""

from __future__ import annotations

from typing import Self

from torch import nn

from ..passes.derive_weights import HOME
from ..runtime.errors import UnsupportedError
from ..runtime.ranges import RangeTable


class ModeFlag:
    """Shared by all holders of a tree: set when the mode of any of them may have changed."""

    dirty = False


class Holder(nn.Module):
    """Stands for one module of the model; has its tensors but not its code."""

    def __init__(self, module: nn.Module | None = None, flag: ModeFlag | None = None) -> None:
        super().__init__()
        self._analogc_mode = flag or ModeFlag()
        if module is not None:
            self._parameters = module._parameters
            self._buffers = module._buffers
            self._non_persistent_buffers_set = module._non_persistent_buffers_set
            self.training = module.training

    # Modules are found by nn.Module.__getattr__, slowly; the graph goes through these two often.

    @property
    def _analog(self) -> nn.Module:
        return _child(self, HOME)

    @property
    def ranges(self) -> nn.Module:
        """The table of converter ranges, in the compiler's own part of the tree."""
        return _child(self, "ranges")

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as on the module that this stands for."""
        super().train(mode)
        self._analogc_mode.dirty = True
        return self


def _child(module: nn.Module, name: str) -> nn.Module:
    child = module._modules.get(name)
    if child is None:
        raise AttributeError(name)  # and nn.Module.__getattr__ looks elsewhere
    return child


def hold(model: nn.Module) -> Holder:
    """Tree of holders for ``model``, with an empty home for the compiler's own modules."""
    known: dict[nn.Module, Holder] = {}
    flag = ModeFlag()

    def visit(module: nn.Module) -> Holder:
        if module not in known:
            holder = known[module] = Holder(module, flag)
            for name, child in module._modules.items():
                holder._modules[name] = None if child is None else visit(child)
        return known[module]

    root = visit(model)
    if HOME in root._modules:
        raise UnsupportedError(
            f"submodule {HOME!r} of the model has the name of analogc's own", fix="rename it"
        )
    home = Holder()
    for name in ("constants", "derived"):
        home._modules[name] = Holder()
    home._modules["ranges"] = RangeTable()
    root._modules[HOME] = home
    return root


def modules_of(root: nn.Module) -> list[nn.Module]:
    """The modules of a model or of its holders, in one order for both."""
    found: list[nn.Module] = []
    stack: list[nn.Module] = [root]
    seen: set[nn.Module] = set()
    while stack:
        module = stack.pop()
        if module in seen:
            continue
        seen.add(module)
        found.append(module)
        children = [c for name, c in module._modules.items() if c is not None and name != HOME]
        stack.extend(reversed(children))
    return found


def mode_of(root: nn.Module) -> tuple[bool, ...]:
    """Training flag of every module: what a captured graph depends on."""
    return tuple(module.training for module in modules_of(root))
