"""Replace operators by what a user's own functions make of them: ``compile(..., lowerings=...)``.

torch's fused encoder operators are replaced in the same way.

A function has the operator's signature. It is traced with the node's fake tensors, and the ATen
nodes that it makes take the node's place, its name, module and source line. Tensors that it holds
itself stay live: a parameter of the model by its name in the model, anything else as a constant.
Runs early, so that the other passes see nothing else than torch's own operators.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ..runtime.errors import InputError
from .base import Pass, PassContext, PassResult, finish, inherit, module_path, source_line
from .derive_weights import add_constant
from .emit import autocast_of, fake_mode, take_place, value_of
from .fused_attention import FUSED

Operator = torch._ops.OpOverload
Lowering = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class ApplyLowerings(Pass):
    """Replace every operator that the user gave a lowering for."""

    name: ClassVar[str] = "apply-lowerings"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        lowerings = {**FUSED, **ctx.lowerings}
        found = [node for node in module.graph.nodes if node.target in lowerings]
        # A tied tensor goes by its first name, as in named_parameters().
        names: dict[int, str] = {}
        for name, value in (
            (*ctx.root.named_parameters(), *ctx.root.named_buffers()) if found else ()
        ):
            names.setdefault(id(value), name)
        for node in found:
            ctx.lowered.add(node.target)
            _lower(node, lowerings[node.target], names, ctx)
        return finish(module, bool(found))


def _lower(node: fx.Node, function: Lowering, names: dict[int, str], ctx: PassContext) -> None:
    if node.target._schema.is_mutable:  # type: ignore[union-attr]
        raise _wrong(node, "cannot be lowered: it writes one of its operands")
    traced = _trace(node, function)
    graph, known = node.graph, dict[fx.Node, Any]()
    given = iter([arg for arg in pytree.tree_leaves((node.args, node.kwargs)) if _is_node(arg)])
    result: Any = None
    for inner in traced.graph.nodes:
        if inner.op == "placeholder":
            known[inner] = next(given)
            continue
        if inner.op == "output":
            result = fx.node.map_arg(inner.args[0], known.__getitem__)
            continue
        if inner.op != "get_attr" and not isinstance(inner.target, Operator):
            if inner.target is not operator.getitem and not _is_symbolic(inner):
                raise _wrong(node, f"uses {_named(inner.target)}, which a graph cannot hold here",
                             "leave it out; detach() stops a gradient")  # fmt: skip
        with graph.inserting_before(node):
            copied = graph.node_copy(inner, known.__getitem__)
        if inner.op == "get_attr":
            value = getattr(traced, str(inner.target))
            if id(value) not in names:
                names[id(value)] = add_constant(ctx.root, str(inner.target), value)
            copied.target = names[id(value)]
            copied.meta["val"] = fake_mode(graph).from_tensor(value, static_shapes=True)
        for key in ("nn_module_stack", "stack_trace"):
            copied.meta.pop(key, None)
        inherit(copied, node, ApplyLowerings.name)
        known[inner] = copied
    _replace(node, result)


def _trace(node: fx.Node, function: Lowering) -> fx.GraphModule:
    """``function`` on the operands of ``node``, as a graph of ATen operators."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    args, kwargs = pytree.tree_unflatten([value_of(leaf) for leaf in leaves], spec)
    check_arity(function, args, kwargs, f"the lowering of {node.target}", source_line(node))

    def flat(*values: Any) -> Any:
        given = iter(values)
        filled = [next(given) if _is_node(leaf) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return function(*args, **kwargs)

    mode = fake_mode(node.graph)
    values = [value_of(leaf) for leaf in leaves if _is_node(leaf)]
    try:
        with mode, enable_python_dispatcher(), autocast_of(node):
            traced = make_fx(flat, pre_dispatch=True)(*values)
    except InputError:
        raise
    except Exception as err:
        raise _wrong(node, f"fails: {type(err).__name__}: {err}") from err
    assert isinstance(traced, fx.GraphModule), "make_fx makes a GraphModule"
    output = next(iter(traced.graph.find_nodes(op="output"))).args[0]
    result = pytree.tree_map(value_of, output)
    difference = differs(result, node.meta["val"])
    if difference is not None:
        raise _wrong(node, f"returns {difference}")
    traced.graph.eliminate_dead_code()
    return traced


def _replace(node: fx.Node, result: Any) -> None:
    if _is_node(result):
        if result.name != node.name and len(result.users) == 0 and result.op != "placeholder":
            take_place(result, node)
            return
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            if user.target is not operator.getitem:
                raise _wrong(node, "returns several tensors, which the graph takes as one")
            user.replace_all_uses_with(result[int(str(user.args[1]))])
            node.graph.erase_node(user)
    node.graph.erase_node(node)


def check_arity(
    function: Lowering, args: Any, kwargs: Mapping[str, Any], what: str, where: str | None
) -> None:
    """Raise InputError if ``function`` cannot be called so; ``what`` it is, in words."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as err:
        given = [type(arg).__name__ for arg in args] + [f"{name}=" for name in kwargs]
        raise InputError(
            f"lowerings=: {what} takes {signature}, but is called with ({', '.join(given)}): {err}",
            where=where,
            fix="give it the parameters of what it stands for, in the same order",
        ) from None


def differs(found: Any, wanted: Any) -> str | None:
    """How one result differs from another in structure, shape, dtype or device; None: it does not.

    Both are tensors or structures of them.
    """
    a, b = pytree.tree_leaves(found), pytree.tree_leaves(wanted)
    if len(a) != len(b) or isinstance(found, Tensor) != isinstance(wanted, Tensor):
        return f"{_counted(found)} in place of {_counted(wanted)}"
    for x, y in zip(a, b, strict=True):
        if isinstance(y, Tensor) and (
            not isinstance(x, Tensor)
            or x.dim() != y.dim()
            or any(str(i) != str(j) for i, j in zip(x.shape, y.shape, strict=True))
            or (x.dtype, x.device) != (y.dtype, y.device)
        ):
            return f"{_described(x)} in place of {_described(y)}"
    return None


def _counted(value: Any) -> str:
    leaves = pytree.tree_leaves(value)
    if isinstance(value, Tensor):
        return "a tensor"
    if value is None:
        return "None"
    return f"{type(value).__name__} of {len(leaves)}" if leaves else repr(value)


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    shape = ", ".join(map(str, value.shape))
    kind = str(value.dtype).removeprefix("torch.")
    return f"{kind} [{shape}]" + ("" if value.device.type == "cpu" else f" on {value.device}")


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _is_symbolic(node: fx.Node) -> bool:
    """Arithmetic on sizes."""
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool)


def _named(target: Any) -> str:
    return str(getattr(target, "__name__", target))


def _wrong(node: fx.Node, what: str, fix: str | None = None) -> InputError:
    place = ", ".join(filter(None, (module_path(node), source_line(node))))
    return InputError(
        f"lowerings=: the lowering of {node.target} {what} (node %{node.name})",
        where=place or None,
        fix=fix
        or "it takes the operator's arguments and returns what the operator returns, made "
        "of torch operations",
    )
