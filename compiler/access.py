"""What a compiled model shows of its tensors, in the modes ``readonly`` and ``sealed``.

The graph runs on the tree of holders, which has the live tensors. The user sees a second tree: the
same modules and tensors, looked up on every access, with analog weights as guards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping
from itertools import chain
from typing import Any, Self

from torch import Tensor, fx, nn

from ..passes.base import META
from ..passes.verify import OPS
from ..runtime.guard import Access, Guard, refusal
from .holder import Holder


class View:
    """Decides which tensors are analog weights, and keeps one guard for each."""

    def __init__(self, access: Access) -> None:
        self.access = access
        self._weights: list[tuple[MutableMapping[str, Any], str, str]] = []
        self._guards: dict[int, Guard] = {}
        self._shown: dict[int, Shown] = {}

    def tree(self, root: Holder) -> Holder:
        """The tree that the user sees."""
        shown = root if self.access == "direct" else self.show(root)
        assert isinstance(shown, Holder), "a holder is shown as one"
        return shown

    def protect(self, graph: fx.Graph, root: Holder) -> None:
        """Guard what the analog weights of ``graph`` are made of."""
        for path, layer in _weights_of(graph, root):
            home, _, name = path.rpartition(".")
            module = root.get_submodule(home)
            table = module._parameters if name in module._parameters else module._buffers
            if not any(at is table and key == name for at, key, _ in self._weights):
                self._weights.append((table, name, layer))

    def show(self, value: Any) -> Any:
        """A tensor or module of the holders as the user sees it."""
        if isinstance(value, Holder):
            if id(value) not in self._shown:
                self._shown[id(value)] = Shown(value, self)
            return self._shown[id(value)]
        if not isinstance(value, Tensor) or self.access == "direct":
            return value
        if id(value) not in self._guards:
            # Guards of parameters that were replaced go; those that stay keep their identity.
            live = {id(at[key]): (at[key], layer) for at, key, layer in self._weights if key in at}
            self._guards = {
                key: self._guards[key] if key in self._guards else Guard(real, layer, self.access)
                for key, (real, layer) in live.items()
                if real is not None
            }
        return self._guards.get(id(value), value)

    def show_weight(self, value: Tensor, layer: str) -> Tensor:
        """The weight of ``layer`` as the user sees it; it may be computed from parameters."""
        shown: Tensor = self.show(value)
        if self.access == "direct" or shown is not value:
            return shown
        return Guard(value, layer, self.access)


def _weights_of(graph: fx.Graph, root: Holder) -> Iterator[tuple[str, str]]:
    """Path and layer of every tensor that an analog weight is, or is computed from.

    A vector no longer than a side of the weight is a scale, such as a batch norm's: not guarded.
    """
    for node in graph.nodes:
        if node.op != "call_function" or node.target not in OPS:
            continue
        mapping = node.meta[META]
        weight = node.args[1]
        if weight.op == "get_attr":
            yield weight.target, mapping.layer
        else:
            for source in weight.args:
                value: Any = root
                for part in source.target.split("."):
                    value = getattr(value, part)
                if value.dim() > 1 or value.numel() > max(mapping.weight_shape):
                    yield source.target, mapping.layer


class Table(MutableMapping[str, Any]):
    """A module's table of parameters, buffers or modules, as the user sees it."""

    def __init__(self, real: MutableMapping[str, Any], view: View) -> None:
        self._real = real
        self._view = view

    def __getitem__(self, name: str) -> Any:
        return self._view.show(self._real[name])

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_guards((self.get(name), value), f"assigning {name!r}")
        self._real[name] = value

    def __delitem__(self, name: str) -> None:
        _refuse_guards((self[name],), f"deleting {name!r}")
        del self._real[name]

    def __contains__(self, name: object) -> bool:
        return name in self._real

    def __iter__(self) -> Iterator[str]:
        return iter(self._real)

    def __len__(self) -> int:
        return len(self._real)


class Shown(Holder):
    """A holder as the user sees it: all its state is the holder's, its tables are guarded."""

    def __init__(self, real: Holder, view: View) -> None:
        self.__dict__.update(
            real.__dict__,
            _analogc_real=real,
            _parameters=Table(real._parameters, view),
            _buffers=Table(real._buffers, view),
            _modules=Table(real._modules, view),
        )

    @property
    def training(self) -> bool:
        """Mode of the module."""
        return bool(self._real().training)

    @training.setter
    def training(self, value: bool) -> None:
        self._real().training = value

    def _real(self) -> Holder:
        real: Holder = self.__dict__["_analogc_real"]
        return real

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._real()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def to_empty(self, *, device: Any, recurse: bool = True) -> Self:
        """Refused where there are analog weights: they would be lost."""
        _refuse_guards((self,), "to_empty()")
        return super().to_empty(device=device, recurse=recurse)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        refuse_load(self, state, prefix)
        super()._load_from_state_dict(state, prefix, *rest)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A copy or pickle of a part is one of plain values, so it takes what reading them takes.
        for guard in _guards_in(self):
            guard._copy()
        return _itself, (self._real(),)

    def __copy__(self) -> Shown:
        return self


def _itself(holder: Holder) -> Holder:
    return holder


def _guards_in(value: Any) -> Iterator[Guard]:
    if isinstance(value, nn.Module):
        for tensor in chain(value.parameters(), value.buffers()):
            yield from _guards_in(tensor)
    elif isinstance(value, Guard):
        yield value


def _refuse_guards(values: tuple[Any, ...], what: str) -> None:
    for guard in chain.from_iterable(map(_guards_in, values)):
        raise refusal(guard._layer, guard._access, what)


def refuse_empty(module: nn.Module) -> None:
    """Raise if emptying ``module`` would lose a guarded weight."""
    _refuse_guards((module,), "to_empty()")


def refuse_load(module: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Raise, before anything is written, if ``state`` has values for a guarded weight."""
    named = chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        if isinstance(tensor, Guard) and prefix + name in state:
            raise refusal(tensor._layer, tensor._access, f"loading {prefix + name!r}")
