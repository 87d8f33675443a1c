"""Run a module as the model: bind the call, read the live weights, give back the model's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, fx

from ...runtime.errors import InputError, SyncError
from .decompose import Constant
from .module import Level, MlirModule

if TYPE_CHECKING:
    from ..inspected import Inspected

Engine = Literal["native", "callbacks", "iree"]
LEVEL_OF: dict[Engine, Level] = {"native": "linalg", "callbacks": "analog", "iree": "linalg"}
"""The level that each engine runs."""

Code = Callable[[Sequence[Tensor | int]], list[Tensor]]


class MlirExecutable:
    """Compiled MLIR of a model; called as the model, returns what the model returns.

    Weights, buffers and converter ranges are read from the live model in every call, as they are
    then, unless the module holds them inline. The results are on the CPU and carry no gradients.
    """

    def __init__(self, mlir: MlirModule, engine: Engine, code: Code) -> None:
        self.mlir = mlir
        self.engine = engine
        self._code = code

    @property
    def is_current(self) -> bool:
        """False once the model has another graph than this was made of."""
        return self.mlir._model.graph is self.mlir._graph

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Output for these inputs.

        Raises:
            InputError: they do not fit what the model was captured for.
            SyncError: the model was captured again since; emit and compile once more.
        """
        model = self.mlir._model
        model._follow_changes((args, kwargs))
        if not self.is_current:
            raise SyncError(
                "the model has another graph now than this MLIR was made of",
                fix="emit it again: compiled.to_mlir(...).compile(); run_mlir does so by itself",
            )
        signature = model.signature
        flat = signature.flatten(args, kwargs)
        check_sizes(self.mlir._graph, flat)
        values = [
            _input(flat[int(argument.path)], argument.dtype, argument.name)
            if argument.kind == "input"
            else argument.live(model)
            for argument in self.mlir.arguments
        ]
        outputs = self._code(values)
        return signature.unflatten(
            [_output(result, outputs) for result in self.mlir.results], args, kwargs
        )


def make(mlir: MlirModule, engine: Engine | None) -> MlirExecutable:
    """What ``MlirModule.compile`` documents."""
    if engine is None:
        engine = "callbacks" if mlir.level == "analog" else "native"
    if engine not in get_args(Engine):
        known = ", ".join(get_args(Engine))
        raise InputError(f"engine must be one of {known}, got {engine!r}")
    if mlir.level != LEVEL_OF[engine]:
        raise InputError(
            f"engine {engine!r} runs the level {LEVEL_OF[engine]!r}, this is {mlir.level!r}",
            fix=f"emit with level={LEVEL_OF[engine]!r}",
        )
    code: Code
    if engine == "iree":
        from .iree import IreeCode

        code = IreeCode(mlir.module)
    elif engine == "callbacks":
        from .callbacks import CallbackCode

        code = CallbackCode(mlir)
    else:
        from .native import NativeCode

        code = NativeCode(mlir.module)
    return MlirExecutable(mlir, engine, code)


def run_mlir(model: Inspected, engine: Engine, args: tuple[Any, ...], kwargs: Any) -> Any:
    """What ``CompiledModel.run_mlir`` documents."""
    model._follow_changes((args, kwargs))
    known: dict[Engine, MlirExecutable] = model.__dict__.setdefault("_executables", {})
    executable = known.get(engine)
    if executable is None or not executable.is_current:
        level = LEVEL_OF.get(engine, "linalg")
        # The tiles' content: a weight that is programmed anew by simpler arithmetic may be a step
        # off somewhere.
        mlir = model.to_mlir(level, programmed=level == "linalg")
        executable = known[engine] = mlir.compile(engine)
    return executable(*args, **kwargs)


def check_sizes(graph: fx.Graph, flat: Sequence[Any]) -> None:
    """Raise InputError if sizes do not fit together as they did when the graph was captured.

    Machine code does not check them: it would read past the end of a tensor.
    """
    known: dict[Any, int] = {}
    derived: list[tuple[str, Any, int]] = []
    for node, value in zip(graph.find_nodes(op="placeholder"), flat, strict=True):
        example = node.meta.get("val")
        if isinstance(example, Tensor):
            sizes, found = list(example.shape), list(value.shape)
        else:
            sizes, found = [example], [value]
        for size, have in zip(sizes, found, strict=True):
            if not isinstance(size, torch.SymInt):
                continue
            form = size.node.expr
            if form.is_Symbol and form not in known:
                known[form] = have
            else:
                derived.append((node.name, form, have))
    for name, form, have in derived:
        wanted = form.subs(known)
        if wanted.is_number and int(wanted) != have:
            raise InputError(
                f"input {name!r} has a size {have} where {wanted} goes with the other inputs"
            )


def _input(value: Any, dtype: torch.dtype, name: str) -> Tensor | int:
    if not isinstance(value, Tensor):
        return int(value)
    if value.dtype is not dtype:
        raise InputError(
            f"input {name!r} has dtype {value.dtype}, the MLIR is for {dtype}",
            fix=f"convert it with .to({dtype})",
        )
    return value.detach()


def _output(result: Any, outputs: list[Tensor]) -> Any:
    if isinstance(result, Constant):
        return result.value
    if isinstance(result, tuple):
        return int(outputs[result[0]])
    return outputs[result]
