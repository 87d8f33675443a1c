"""Which nodes are pure functions of parameters, buffers and constants: what a tile can hold."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

aten = torch.ops.aten
_NORMS_WITH_STATISTICS = {
    aten.batch_norm.default: (3, 4, 5),
    aten.instance_norm.default: (3, 4, 5),
}
_FRESH = {
    aten.linear.default, aten.matmul.default, aten.batch_norm.default,
    aten.layer_norm.default, aten.group_norm.default, aten.instance_norm.default,
    *(getattr(aten, f"conv{n}d").default for n in (1, 2, 3)),
    *(getattr(aten, f"conv{n}d").padding for n in (1, 2, 3)),
}  # fmt: skip
"""Operators made of others whose result is always memory of its own: no need to try."""
_TRANSPOSES = {
    aten.t.default, aten.transpose.int, aten.permute.default, aten.numpy_T.default,
    aten.mT.default,
}  # fmt: skip

STORED_VIEWS = {
    *_TRANSPOSES, aten.view.default, aten.reshape.default, aten.unsqueeze.default,
    aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims, aten.flatten.using_ints,
    aten.unflatten.int, aten.expand.default, aten.contiguous.default, aten.clone.default,
    aten.to.dtype, aten.select.int, aten.slice.Tensor, operator.getitem, aten.detach.default,
    aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.movedim.int,
}  # fmt: skip
"""Operators that show their first operand in another form."""


def stationary_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose value changes only when a parameter or buffer is written from outside.

    A buffer that the graph itself writes (running statistics in training mode) is not stationary,
    nor is anything computed from it, nor anything random.
    """
    written = written_nodes(graph)
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr":
            if node not in written:
                found.add(node)
        elif (
            node.op == "call_function"
            and node not in written
            and is_pure(node.target)
            and all(arg in found for arg in node.all_input_nodes)
        ):
            found.add(node)
    return found


def live_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on an input of the model: activations."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(arg in found for arg in node.all_input_nodes):
            found.add(node)
    return found


def is_pure(target: Any) -> bool:
    """True for operators that write nothing and draw nothing random."""
    if target is operator.getitem:
        return True
    return (
        isinstance(target, torch._ops.OpOverload)
        and not target._schema.is_mutable
        and torch.Tag.nondeterministic_seeded not in target.tags
    )


def written_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Nodes whose memory some node of the graph may write, by themselves or as another's view."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        for arg in _writes(node):
            stack = [arg]
            while stack:
                at = stack.pop()
                if at in found:
                    continue
                found.add(at)
                stack.extend(_memory_of(at))
    return found


def _memory_of(node: fx.Node) -> list[fx.Node]:
    """Operands whose memory the results of ``node`` may share."""
    if node.op != "call_function" or node.target in _FRESH:
        return []
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return list(node.all_input_nodes)
    if any(result.alias_info is not None for result in target._schema.returns):
        shared = [_argument(node, i) for i, arg in enumerate(target._schema.arguments)
                  if arg.alias_info is not None]  # fmt: skip
        return [item for value in shared for item in _flat(value) if isinstance(item, fx.Node)]
    if not torch._C._dispatch_has_kernel_for_dispatch_key(
        target.name(), "CompositeImplicitAutograd"
    ):
        return []  # a kernel of its own that declares no alias makes none
    # What is made of other operators may be a view of an operand, such as dropout in eval mode.
    operands = [a for a in node.all_input_nodes if isinstance(a.meta.get("val"), torch.Tensor)]
    return [arg for arg in operands if _may_share(node, arg)]


def _may_share(node: fx.Node, operand: fx.Node) -> bool:
    """Try it on tensors without memory, which have storages all the same."""
    made: dict[fx.Node, Any] = {}
    try:
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda arg: made.setdefault(arg, _like(arg.meta["val"]))
        )
        with torch.no_grad():
            results = node.target(*args, **kwargs)  # type: ignore[operator]
    except Exception:
        return True  # cannot be tried
    memory = made[operand].untyped_storage()._cdata
    tensors = [value for value in pytree.tree_leaves(results) if isinstance(value, torch.Tensor)]
    return any(value.untyped_storage()._cdata == memory for value in tensors)


def _like(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        shape, strides = (list(map(_hint, x)) for x in (value.shape, value.stride()))
        return torch.empty_strided(shape, strides, dtype=value.dtype, device="meta")
    return _hint(value)


def _hint(size: Any) -> Any:
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _argument(node: fx.Node, index: int) -> Any:
    """Value of the argument that has this place in the operator's schema."""
    if index < len(node.args):
        return node.args[index]
    name = node.target._schema.arguments[index].name  # type: ignore[union-attr]
    return node.kwargs.get(name)


def _writes(node: fx.Node) -> list[fx.Node]:
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    where = _NORMS_WITH_STATISTICS.get(node.target)
    if where is not None:
        *statistics, training = (node.args[i] for i in where)
        return [arg for arg in statistics if training and isinstance(arg, fx.Node)]
    out: list[fx.Node] = []
    for i, arg in enumerate(node.target._schema.arguments):
        if arg.alias_info is None or not arg.alias_info.is_write:
            continue
        out.extend(item for item in _flat(_argument(node, i)) if isinstance(item, fx.Node))
    return out


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def without_transpose(node: fx.Node) -> fx.Node | None:
    """The node that ``node`` is the 2-D transpose of, if it is one."""
    if node.op != "call_function" or node.target not in _TRANSPOSES:
        return None
    base = node.args[0]
    assert isinstance(base, fx.Node), "a transpose has a tensor operand"
    if base.meta["val"].dim() != 2 or node.meta["val"].dim() != 2:
        return None
    if node.target is aten.transpose.int:
        turned = (int(str(node.args[1])) - int(str(node.args[2]))) % 2 == 1
    elif node.target is aten.permute.default:
        turned = [d % 2 for d in _flat(node.args[1])] == [1, 0]
    else:
        turned = True
    return base if turned else None


def without_matrix_transpose(node: fx.Node) -> fx.Node | None:
    """The node of which ``node`` is a stack of transposed matrices, [E, N, K] of [E, K, N]."""
    if node.op != "call_function" or node.meta["val"].dim() != 3:
        return None
    dims = [arg for arg in node.args[1:] if isinstance(arg, int)]
    if node.target is aten.transpose.int:
        turned = sorted(d % 3 for d in dims) == [1, 2]
    elif node.target is aten.permute.default:
        turned = [d % 3 for d in _flat(node.args[1])] == [0, 2, 1]
    else:
        turned = node.target is aten.mT.default
    base = node.args[0] if turned else None
    return base if isinstance(base, fx.Node) else None


def leaves(node: fx.Node) -> list[fx.Node]:
    """The get_attr nodes that a stationary node is computed from, in graph order of discovery."""
    found: dict[fx.Node, None] = {}
    stack, seen = [node], {node}
    while stack:
        at = stack.pop()
        if at.op == "get_attr":
            found[at] = None
        for arg in reversed(at.all_input_nodes):
            if arg not in seen:
                seen.add(arg)
                stack.append(arg)
    return list(found)


def expression_key(node: fx.Node, known: dict[fx.Node, str] | None = None) -> str:
    """Text that is equal for structurally equal expressions of the same parameters."""
    known = {} if known is None else known
    if node not in known:
        if node.op == "get_attr":
            known[node] = str(node.target)
        else:
            args = fx.node.map_arg((node.args, node.kwargs), lambda arg: expression_key(arg, known))
            known[node] = f"{node.target}{args}"
    return known[node]
