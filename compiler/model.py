"""The compiled model: an fx GraphModule on the model's own tensors."""

from __future__ import annotations

import copy
import inspect
import io
import types
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from ..passes.base import Pass, PassContext
from ..passes.derive_weights import HOME
from ..passes.emit import fake_mode
from ..runtime.calibrate import is_uncalibrated
from ..runtime.errors import InputError, SyncError, UnsupportedError
from ..runtime.guard import Access
from ..runtime.tiles import Programmed
from .access import View, refuse_empty, refuse_load
from .build import Program, build
from .copying import copy_context, copy_programs
from .holder import Holder, hold, mode_of, modules_of
from .home import home_of, is_real, on_meta
from .signature import ConstantLeaf
from .source import Source
from .structure import Structure
from .tile_table import TileTable
from .tiled import Tiled

Mode = tuple[bool, ...]


class CompiledModel(Tiled):
    """A model whose linear and conv work runs on simulated analog tiles.

    Call it as the model. Its parameters and buffers are the model's own objects; the tiles follow
    them. ``train()`` and ``eval()`` switch between two graphs, the other one being captured when
    it is first asked for. Made by ``analogc.compile`` and ``analogc.load``.
    """

    _programs: dict[Mode, Program]
    _passes: tuple[Pass, ...]
    _check: bool
    _structure: Structure

    def __init__(
        self,
        root: Holder,
        ctx: PassContext,
        programs: dict[Mode, Program],
        passes: Sequence[Pass],
        source: Source | None,
        data: Iterable[Any] | None = None,
        check: bool = False,
        held: Mapping[str, Programmed] | None = None,
        weight_access: Access = "direct",
    ) -> None:
        super().__init__(nn.Module(), fx.Graph())
        self.__dict__.update(
            _ctx=ctx, _programs=programs, _passes=tuple(passes), _source=source, _data=data,
            _check=check, _function=None,
        )  # fmt: skip
        _ALIVE[ctx.uid] = self
        self._bind(root, weight_access)
        self._enter_mode(held or {})

    def _bind(self, root: Holder, access: Access) -> None:
        """Make ``root`` the tree that the graphs run on and the user sees."""
        view = View(access)
        # The tables of the root holder (if access is direct, its very dicts): one set of names,
        # whichever way it is reached.
        shown = view.tree(root)
        self._parameters = shown._parameters
        self._buffers = shown._buffers
        self._modules = shown._modules
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.training = root.training
        self.__dict__.update(_root=root, _view=view, _program=None)

    # -- running ---------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the current graph; same arguments and result as the model.

        Raises:
            InputError: the inputs do not fit what the graph was captured for.
        """
        if torch.compiler.is_compiling():
            # Changes are followed at the start of a trace; holds() then leaves guards on what it
            # looks at, so that the next change starts another trace.
            _follow_while_tracing(self._ctx.uid)
        self._follow_changes((args, kwargs))
        signature = self._program.signature
        flat = signature.flatten(args, kwargs)
        function = self._shape_function if self._unready else self._function
        return signature.unflatten(function(self._root, *flat), args, kwargs)

    def _follow_changes(self, inputs: Any) -> None:
        if not self._structure.holds():
            self._follow_structure(self.auto_sync)
        if self._root._analogc_mode.dirty:
            self._enter_mode()
        if self._unready:
            self._check_ready(inputs)

    def takes(self, *args: Any, **kwargs: Any) -> bool:
        """True if the current graph was captured for inputs like these: structure and sizes."""
        try:
            flat = self._program.signature.flatten(args, kwargs)
        except InputError:
            return False
        guards = self._program.guards
        if guards is None:
            return True
        env = fake_mode(self.graph).shape_env
        leaves = self._program.signature.leaves
        sized = [v for v, at in zip(flat, leaves, strict=True) if not isinstance(at, ConstantLeaf)]
        return env is None or bool(env.evaluate_guards_expression(guards, sized))

    def recompile(self) -> Any:
        """Make the graph's function anew after a change of ``graph``."""
        code = super().recompile()
        program = self.__dict__.get("_program")
        self._own_forward(program.signature.parameters if program is not None else None)
        return code

    def _own_forward(self, signature: inspect.Signature | None) -> None:
        forward = _own_copy(type(self).forward)
        if signature is not None:
            # What the model's own forward takes, for help() and for whoever looks at it.
            forward.__signature__ = _as_method(signature)
        setattr(type(self), "forward", forward)  # noqa: B010

    def train(self, mode: bool = True) -> Self:
        """Switch to training (or eval) mode; captures that mode's graph if there is none yet.

        Raises:
            UnsupportedError: it was never captured, and the model is not there to capture it from.
        """
        if not self._structure.holds():
            self._follow_structure(self.auto_sync)
        before = mode_of(self._root)
        super().train(mode)
        self._root.training = mode
        try:
            self._enter_mode()
        except Exception:
            self._set_mode(before)
            raise
        return self

    def _set_mode(self, mode: Mode) -> None:
        for module, training in zip(modules_of(self._root), mode, strict=True):
            module.training = training
        self.training = self._root.training
        self._enter_mode()

    def _enter_mode(self, held: Mapping[str, Programmed] | None = None) -> None:
        """Make the graph of the holders' mode the current one.

        Args:
            held: what the tiles of some arrays hold already, by name.
        """
        self.training = self._root.training
        mode = mode_of(self._root)
        if mode not in self._programs:
            self._programs[mode] = self._capture()
        program = self._programs[mode]
        self._root._analogc_mode.dirty = False
        if program is not self._program:
            self.__dict__["_program"] = program
            self.graph = program.graph
            # Names are looked up in the tree of holders, which has no attributes of its own that
            # a submodule's name could clash with.
            self.graph.owning_module = self._view.tree(self._root)  # type: ignore[assignment]
            self._view.protect(program.graph, self._root)
            model = self._source.model if self._source is not None else None
            model = model if isinstance(model, nn.Module) else None
            self.__dict__["_structure"] = Structure(model, self._root, program.graph)
            self._unready = bool(on_meta(self._root))
            if self._unready:
                return
            self._calibrate(self._data, self.target.calibration, only_missing=True)
            for mapping, array, weight in self._live_weights() if held else ():
                content = (held or {}).get(mapping.array)
                if content is not None:
                    array.adopt(weight, content)
            # Tiles that are stale are left to the next forward, or to sync().
            for _, array, weight in self._live_weights():
                if array.programmed is None and not array.spec.is_ideal:
                    array.write(weight)

    def _check_ready(self, inputs: Any) -> None:
        """Raise if a call with real inputs has no weights or no converter ranges."""
        if on_meta(self._root):
            if is_real(inputs):
                raise self._no_weights()
        elif is_uncalibrated(self.graph, self._root):
            raise InputError(
                "the converter ranges are not calibrated: there was no data to choose them from",
                fix="call compiled.calibrate(data) once the weights are loaded",
            )

    def _shape_function(self, *flat: Any) -> Any:
        """The graph's function on tensors without memory."""
        try:
            return self._function(*flat)
        except NotImplementedError as err:
            raise UnsupportedError(
                "a size in this model depends on values (how many rows go to an expert, say), and "
                f"meta tensors have none: {str(err).partition('.')[0]}",
                fix="load the weights and call it with data; print(compiled) shows the sizes",
            ) from err

    def _no_weights(self) -> InputError:
        names = on_meta(self._root)
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        return InputError(
            f"weights are on the meta device: {shown}",
            fix="load_state_dict(state, assign=True), or to_empty(device=...) and load; a buffer "
            "that no state_dict has must be set on the model",
        )

    def _require_weights(self) -> None:
        """Raise if a weight has no memory; follow a model that was loaded since."""
        if not self._structure.holds():
            self._follow_structure(True)
        if self._unready and on_meta(self._root):
            raise self._no_weights()

    def _follow_structure(self, allowed: bool) -> None:
        """Capture the model again, which changed or moved; ranges and tiles are kept."""
        source = self._source
        assert source is not None and isinstance(source.model, nn.Module), "structure has a model"
        home = home_of(source.model)
        if home is not None and home.device.type != "meta" and on_meta(source.model):
            raise self._no_weights()
        if not allowed:
            raise SyncError(
                f"the graph is stale: {self._structure.difference()} in the model",
                fix="call compiled.sync(), or set compiled.auto_sync = True",
            )
        ctx, old = self._ctx, self._root
        root = hold(source.model)
        root.get_submodule(HOME)._modules["ranges"] = old.get_submodule(f"{HOME}.ranges")
        modes = {name: module.training for name, module in old.named_modules()}
        for name, module in root.named_modules():
            module.training = modes.get(name, self.training)
        before = ctx.root, ctx.derived
        ctx.root, ctx.derived = root, {}
        try:
            program = build(source, root, self._passes, ctx, self._check)
        except Exception:
            ctx.root, ctx.derived = before
            raise
        used = {mapping.array for mapping in TileTable.of(program.graph)}
        for array in set(ctx.arrays) - used:
            del ctx.arrays[array]
        self._programs.clear()
        self._programs[mode_of(root)] = program
        self._bind(root, self.weight_access)
        self._enter_mode()

    def _capture(self) -> Program:
        source = self._source
        if source is None or source.fixed:
            have = "training" if any(mode[0] for mode in self._programs) else "eval"
            raise UnsupportedError(
                f"this model was captured in {have} mode only, and its code is not here to "
                "capture another",
                fix="compile the nn.Module, in this process, to switch modes",
            )
        return build(source, self._root, self._passes, self._ctx, self._check)

    # -- the module tree -------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # The live tensors move; guards show where they are.
        self._root._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """As of any module; AccessError if that would lose guarded weights."""
        refuse_empty(self)
        return super().to_empty(device=device, recurse=recurse)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        refuse_load(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)

    # -- copies and files ------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write graphs, weights, ranges and tiles to one file that ``analogc.load`` reads."""
        from .archive import save

        save(self, Path(path))

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        root, source = copy.deepcopy((self._root, self._source), memo)
        ctx = copy_context(self._ctx, root)
        programs = copy_programs(self._programs, ctx)
        new = CompiledModel.__new__(CompiledModel)
        memo[id(self)] = new
        CompiledModel.__init__(
            new, root, ctx, programs, self._passes, source, self._data, self._check,
            self._contents(), self.weight_access,
        )  # fmt: skip
        return new

    def __copy__(self) -> CompiledModel:
        raise UnsupportedError(
            "a shallow copy of a compiled model would share its tiles", fix="use copy.deepcopy"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        from .archive import to_bytes

        return _from_pickle, (to_bytes(self),)


_ALIVE: weakref.WeakValueDictionary[str, CompiledModel] = weakref.WeakValueDictionary()


def _follow_while_tracing(uid: str) -> bool:
    model = _ALIVE[uid]
    if not model._structure.holds():
        model._follow_structure(model.auto_sync)
    return True


# torch.compiler.assume_constant_result, which imports all of dynamo: the tracer itself calls the
# function, outside the trace, which could not capture a model.
_follow_while_tracing._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _own_copy(function: Any) -> Any:
    # torch.compile counts recompilations by code object, and each model is another program.
    new = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    new.__doc__ = function.__doc__
    return new


def _as_method(signature: inspect.Signature) -> inspect.Signature:
    first = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    rest = [
        p.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) if p.name == "self" else p
        for p in signature.parameters.values()
    ]
    return signature.replace(parameters=[first, *rest])


def _from_pickle(data: bytes) -> CompiledModel:
    from .archive import from_file

    return from_file(io.BytesIO(data))
