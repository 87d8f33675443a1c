"""A module of MLIR that was made of a compiled model."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...runtime.errors import InputError
from .arguments import Argument

if TYPE_CHECKING:
    from ..inspected import Inspected
    from .execute import Engine, MlirExecutable

Level = Literal["torch", "analog", "linalg"]
LEVELS: tuple[Level, ...] = ("torch", "analog", "linalg")
_SHOWN = 16
"""Elements of a constant that ``str`` shows."""


class MlirModule:
    """A compiled model as a function ``main`` in MLIR; made by ``compiled.to_mlir``.

    Arguments of the function are the model's inputs, then its weights and converter ranges, in the
    order of ``arguments``; results are the flat outputs that are tensors.
    """

    def __init__(
        self,
        module: Any,
        level: Level,
        arguments: tuple[Argument, ...],
        results: tuple[Any, ...],
        model: Inspected,
    ) -> None:
        self.module = module
        """The ``torch_mlir.ir.Module``; passes may transform it in place."""
        self.level = level
        self.arguments = arguments
        """What each argument of ``main`` stands for."""
        self.results = results
        self._model = model
        self._graph = model.graph

    def text(self, locations: bool = False, names: bool = False) -> str:
        """All of it as text, which parses to an equal module.

        Args:
            locations: with module paths and the user's source lines.
            names: values called after arguments and modules, not numbered.
        """
        return str(
            self.module.operation.get_asm(enable_debug_info=locations, use_name_loc_as_prefix=names)
        )

    def __str__(self) -> str:
        limit = _SHOWN
        return str(
            self.module.operation.get_asm(large_elements_limit=limit, large_resource_limit=limit)
        )

    def __repr__(self) -> str:
        inputs = sum(argument.kind == "input" for argument in self.arguments)
        weights = len(self.arguments) - inputs
        return f"MlirModule(level={self.level!r}, {inputs} inputs, {weights} weights)"

    def bytecode(self) -> bytes:
        """All of it as MLIR bytecode, locations and constants included."""
        stream = io.BytesIO()
        self.module.operation.write_bytecode(stream)
        return stream.getvalue()

    def save(self, path: str | Path) -> None:
        """Write it to ``path``: ``.mlir`` as text with locations, ``.mlirbc`` as bytecode.

        Raises:
            InputError: another suffix.
        """
        path = Path(path)
        if path.suffix == ".mlir":
            path.write_text(self.text(locations=True), encoding="utf-8")
        elif path.suffix == ".mlirbc":
            path.write_bytes(self.bytecode())
        else:
            raise InputError(
                f"{path.name!r} has the suffix {path.suffix!r}",
                fix="name it .mlir for text, or .mlirbc for bytecode",
            )

    def verify(self) -> None:
        """Check every operation.

        Raises:
            VerifyError: one breaks a rule; the message says where.
        """
        from .pipelines import verify

        verify(self.module)

    def compile(self, engine: Engine | None = None) -> MlirExecutable:
        """Machine code of it, to call as the model; see ``CompiledModel.run_mlir`` for engines.

        Raises:
            InputError: the engine does not run this level, or is not installed.
        """
        from .execute import make

        return make(self, engine)
