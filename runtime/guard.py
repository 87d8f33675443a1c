"""Tensors that show a weight without letting it be written, or without letting it be seen.

A Guard is a proxy of a live tensor and has no memory of its own. Every torch function that meets
one comes to ``__torch_function__``, and runs on the live tensor if the guard's mode allows it:

    readonly   all that only reads. What would write, or hand out the memory (its address, a
               storage, a DLPack capsule), is refused; an alias that comes back is a guard again;
               NumPy gets a copy.
    sealed     metadata only: shape, dtype, device, ... Values are refused.

This keeps code from changing or using weights by accident. It is no vault: whoever goes for private
attributes or the autograd graph of the model's output finds the live tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import AccessError, InputError

Access = Literal["direct", "readonly", "sealed"]

_LIKE = {
    f"{kind}_like" for kind in ("empty", "zeros", "ones", "full", "rand", "randn", "randint")
} | {"new_empty", "new_zeros", "new_ones", "new_full", "new_empty_strided"}  # fmt: skip
_PLAIN = {
    "shape", "size", "dim", "ndim", "ndimension", "numel", "nelement", "__len__", "stride",
    "storage_offset", "dim_order", "element_size", "itemsize", "nbytes", "dtype", "device",
    "get_device", "layout", "is_contiguous", "is_floating_point", "is_complex", "is_signed",
    "is_cuda", "is_cpu", "is_xpu", "is_xla", "is_ipu", "is_hpu", "is_mps", "is_mtia", "is_maia",
    "is_vulkan", "is_meta", "is_sparse", "is_sparse_csr", "is_mkldnn", "is_quantized", "is_nested",
    "is_conj", "is_neg", "is_inference", "is_shared", "is_pinned", "is_leaf", "requires_grad",
    "retains_grad", "grad", "grad_dtype", "output_nr", "names", "has_names", "name", "_version",
    "__dir__",
}  # fmt: skip
"""Metadata: answered at once, with nothing in the answer to guard."""

_METADATA = _PLAIN | _LIKE | {
    "type", "is_same_size", "result_type", "requires_grad_", "retain_grad", "grad_fn",
    "register_hook", "register_post_accumulate_grad_hook", "_backward_hooks",
    "_post_accumulate_grad_hooks", "detach", "data",
}  # fmt: skip
"""What may be asked of a sealed weight; ``detach`` and ``data`` give a sealed alias."""

_SETTABLE = {"grad", "requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks"}
"""Attributes that may be assigned: those that are not the values."""

_EXPOSING = {
    "data_ptr", "_data_ptr", "const_data_ptr", "mutable_data_ptr", "untyped_storage", "storage",
    "_typed_storage", "__dlpack__", "__cuda_array_interface__", "set_",
}  # fmt: skip
"""What hands out the memory itself, to the caller or (``set_``) to another tensor."""


def checked_access(value: object) -> Access:
    """``value`` if it is an access mode; InputError if not."""
    if value not in get_args(Access):
        raise InputError(
            f"weight_access must be one of {', '.join(map(repr, get_args(Access)))}, got {value!r}"
        )
    return value  # type: ignore[return-value]


def refusal(layer: str, access: Access, what: str) -> AccessError:
    """The error for ``what`` was tried on the weight of ``layer``."""
    read = f"compiled.weights[{layer!r}].read() reads it through the tile"
    write = (
        "to change it, write the parameter of the model that was compiled (the tiles follow), "
        "or compile with weight_access='direct'"
    )
    if access == "readonly":
        state, fix = "read-only", f"{write}; .clone() gives a copy to work with"
    else:
        state, fix = "sealed", f"{read}; {write}"
    return AccessError(
        f"the weight of layer {layer!r} is {state}, and {what} is refused",
        where=f"layer {layer}",
        fix=fix,
    )


class Guard(Tensor):
    """Shows a live tensor, read-only or sealed."""

    _real: Tensor
    _layer: str
    _access: Access
    _is_param: bool

    @staticmethod
    def __new__(cls, real: Tensor, layer: str, access: Access) -> Guard:
        """Guard of ``real``, the weight of ``layer``."""
        # C++ code that goes round __torch_function__ (DLPack) finds one NaN, not the values.
        decoy = real.new_full((), torch.nan if real.is_floating_point() else 0)
        made: Guard = Tensor._make_subclass(cls, decoy.expand(real.shape))
        is_parameter = isinstance(real, nn.Parameter)
        made.__dict__.update(_real=real, _layer=layer, _access=access, _is_param=is_parameter)
        return made

    def __init__(self, real: Tensor, layer: str, access: Access) -> None:
        super().__init__()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func`` on the live tensors, if that is allowed."""
        kwargs = kwargs or {}
        name, kind = _name_of(func)
        if name in _PLAIN and len(args) == 1 and not kwargs and kind != "__set__":
            return func(args[0]._real)
        leaves = pytree.tree_leaves((args, kwargs))
        guards = [leaf for leaf in leaves if isinstance(leaf, Guard)]
        for guard in guards:
            guard._check(name, kind, args, kwargs)
        if name == "register_post_accumulate_grad_hook":
            # torch gives the hook the live tensor.
            shown, hook = args
            args = (shown, lambda _: hook(shown))
        real_args, real_kwargs = pytree.tree_map_only(Guard, _real, (tuple(args), kwargs))
        if name in ("numpy", "__array__"):
            copied = func(*real_args, **real_kwargs).copy()
            copied.flags.writeable = False
            return copied
        if kind:  # attributes: what may be assigned was checked
            return _show(func(*real_args, **real_kwargs), guards)
        with _Refuse(guards, [leaf for leaf in leaves if _is_plain(leaf)]):
            return _show(func(*real_args, **real_kwargs), guards)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Calls from C++ that went round ``__torch_function__``."""
        return cls.__torch_function__(func, types, args, kwargs)

    def _check(self, name: str, kind: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        what = f"assigning .{name}" if kind == "__set__" else name
        if kind in ("__set__", "__delete__"):
            allowed = name in _SETTABLE and args[0] is self
        elif self._access == "sealed":
            allowed = name in _METADATA and not (name == "type" and (len(args) > 1 or kwargs))
        else:
            targets = [kwargs.get("out")]
            if _writes_first(name, kwargs):
                targets += [args[0] if args else next(iter(kwargs.values()))]
            allowed = name not in _EXPOSING and not any(
                leaf is self for leaf in pytree.tree_leaves(targets)
            )
        if not allowed:
            raise refusal(self._layer, self._access, what)

    def _copy(self) -> Tensor:
        """The values as a plain tensor, for copies and pickles."""
        if self._access == "sealed":
            raise refusal(self._layer, self._access, "a copy")
        new = self._real.detach().clone()
        return nn.Parameter(new, self._real.requires_grad) if self._is_param else new

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            memo[id(self)] = self._copy()
        copied: Tensor = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._copy().__reduce_ex__(protocol)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("__class__", "__dict__"):
            raise refusal(self._layer, self._access, f"assigning .{name}")
        super().__setattr__(name, value)

    def __iter__(self) -> Iterator[Tensor]:
        # Tensor.__iter__ hides the rows in an iterator, where they would not be made guards.
        return iter(self.unbind(0))

    def __repr__(self) -> str:  # type: ignore[override]
        real = self._real
        if self._access == "sealed":
            return f"sealed weight of {self._layer!r}: {list(real.shape)}, {real.dtype}"
        return repr(real)

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


class _Refuse(TorchDispatchMode):
    """Raises when an operator is about to write the memory of one of the guards.

    Memory that the caller holds a plain tensor of may be written: the model's own parameter.
    """

    def __init__(self, guards: list[Guard], plain: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.guards = {_memory(guard._real): guard for guard in guards}
        for tensor in plain:
            self.guards.pop(_memory(tensor), None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at the operator's schema for what it writes."""
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            info = argument.alias_info
            # Batch norm's schema does not say that it writes the running statistics.
            if (info is not None and info.is_write) or argument.name.startswith("running_"):
                value = args[i] if i < len(args) else kwargs.get(argument.name)
                for leaf in pytree.tree_leaves(value):
                    guard = self.guards.get(_memory(leaf)) if isinstance(leaf, Tensor) else None
                    if guard is not None:
                        raise refusal(guard._layer, guard._access, func._schema.name)
        return func(*args, **kwargs)


def _show(result: Any, guards: list[Guard]) -> Any:
    """``result`` with every alias of a guarded tensor guarded too."""
    if not guards or result is None or isinstance(result, bool | int | float | str):
        return result
    by_memory = {_memory(guard._real): guard for guard in guards}
    by_memory.pop(None, None)

    def show(value: Tensor) -> Tensor:
        for guard in guards:
            if value is guard._real:
                return guard
        memory = _memory(value)
        if memory is None or type(value) not in (Tensor, nn.Parameter):
            return (
                value.clone()
            )  # a sparse tensor, say, may hold the memory where it cannot be seen
        if memory in by_memory:
            return Guard(value, by_memory[memory]._layer, by_memory[memory]._access)
        return value

    return pytree.tree_map_only(Tensor, show, result)


def _is_plain(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, Guard)


def _real(guard: Guard) -> Tensor:
    return guard._real


def _memory(tensor: Tensor) -> int | None:
    """Names the memory of a tensor; None for one without (a sparse or a traced tensor)."""
    try:
        cell: int = tensor.untyped_storage()._cdata
    except (RuntimeError, NotImplementedError):
        return None
    return cell


def _name_of(func: Any) -> tuple[str, str]:
    """Name of a torch function or attribute, and for the latter how it is used."""
    name = func.__name__
    if name not in ("__get__", "__set__", "__delete__"):
        return name.partition(".")[0], ""
    attribute = func.__self__
    found: Any = attribute.fget if isinstance(attribute, property) else attribute
    return found.__name__, name


def _writes_first(name: str, kwargs: dict[str, Any]) -> bool:
    """True if a function of this name writes its first argument."""
    in_place = name.endswith("_") and not name.endswith("__") and name != "requires_grad_"
    return in_place or name == "__setitem__" or kwargs.get("inplace") is True


def _refuse_steps(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    # Before the step, so that it is not left half done: it would write the plain parameters first.
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if isinstance(parameter, Guard):
                raise refusal(parameter._layer, parameter._access, "an optimizer's step()")


register_optimizer_step_pre_hook(_refuse_steps)
