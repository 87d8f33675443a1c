"""One graph of a model that dynamo captured in several."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from ..passes.base import PassContext
from ..passes.emit import forget_real_tensors
from ..runtime.calibrate import calibrate
from .access import View
from .batches import cloned
from .build import Program
from .dynamo_trace import home_of
from .holder import Holder
from .inspected import Inspected

if TYPE_CHECKING:
    from .dynamo_backend import Site

Key = tuple[int, str | tuple[str, ...]]


class Piece(Inspected):
    """A graph between two stretches of Python; its inputs and outputs are flat."""

    label: str
    """``frame/capture``, as in torch's own logs."""
    key: Key
    """What was captured, of which module: equal for a later capture of the same code."""
    names: tuple[str, ...]
    """Of its weights, in the model."""
    _site: weakref.ref[Site]
    _tables: list[tuple[Mapping[str, Any], str]]
    _is_new: bool

    def __init__(
        self, site: Site, names: tuple[str, ...], root: Holder, ctx: PassContext, program: Program
    ) -> None:
        super().__init__(nn.Module(), fx.Graph())
        home = home_of(site.template, names)
        self._modules = root._modules
        self._parameters = root._parameters
        self._buffers = root._buffers
        self.__dict__.update(
            _root=root, _ctx=ctx, _program=program, _view=View("direct"), _is_new=True,
            _site=weakref.ref(site), _tables=[_table(root, name) for name in names],
            label=site.template.label, names=names,
            key=(site.template.frame, names if home is None else home),
        )  # fmt: skip
        self.graph = program.graph

    def forward(self, *inputs: Any) -> Any:
        """Flat outputs of the graph for flat inputs, without the weights."""
        return self._function(self._root, *inputs)

    @property
    def is_alive(self) -> bool:
        """Whether dynamo still has the graph."""
        return self._site() is not None

    def takes(self, weights: Sequence[Tensor]) -> bool:
        """True if ``weights`` are those that the graph is bound to."""
        for (table, name), weight in zip(self._tables, weights, strict=True):
            if table.get(name) is not weight:
                return False
        return True

    def is_of(self, root: Holder) -> bool:
        """True if the tensors that it is bound to are in the same places of ``root``."""
        return all(
            _table(root, name)[0] is table
            for name, (table, _) in zip(self.names, self._tables, strict=True)
        )

    def run(self, inputs: Sequence[Any]) -> Any:
        """As ``forward``; the first inputs choose the ranges that are still open."""
        if self._is_new:
            forget_real_tensors(self.graph)
            calibrate(
                self.graph, self._root, [cloned((tuple(inputs), {}))[0]],
                self.target.calibration, only_missing=True,
            )  # fmt: skip
            self.__dict__["_is_new"] = False
        return self._function(self._root, *inputs)

    def __str__(self) -> str:
        return f"graph {self.label}: {self.tiles.summary()}\n{self.ir()}"

    __repr__ = __str__


def _table(root: Holder, path: str) -> tuple[Mapping[str, Any], str]:
    home, _, name = path.rpartition(".")
    try:
        module = root.get_submodule(home)
    except AttributeError:
        return {}, name
    tables = (module._parameters, module._buffers)
    return next((table for table in tables if name in table), {}), name
