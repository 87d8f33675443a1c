"""What may stay digital by rule, and why the rest has no analog form.

Nothing that multiplies by a stored matrix may pass as elementwise. So the list here is of operators
that are known to do no such thing; any other one that takes an activation and a stored matrix is
reported as unsupported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from .stationary import STORED_VIEWS

aten = torch.ops.aten

_NO_PRODUCT = {
    # elementwise, without torch's tag for it
    "prelu", "outer", "ger", "addr", "kron", "polar", "complex", "cross", "linalg_cross", "rsub",
    "subtract", "multiply", "divide", "true_divide", "floor_divide", "float_power", "arctan2",
    "add", "mul", "sub", "div", "where", "clip", "clamp", "maximum", "minimum", "max", "min",
    "allclose", "isin", "copy", "fill", "masked_fill",
    "fake_quantize_per_channel_affine", "fake_quantize_per_tensor_affine",
    # norms scale and shift
    "layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "rms_norm", "batch_norm",
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
    "instance_norm", "_fused_rms_norm", "renorm",
    # moving, picking and comparing
    "cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack",
    "row_stack", "block_diag", "cartesian_prod", "meshgrid", "broadcast_tensors", "roll", "pad",
    "embedding", "index", "index_select", "gather", "take", "take_along_dim", "put", "scatter",
    "scatter_add", "scatter_reduce", "index_add", "index_put", "index_copy", "index_fill",
    "index_reduce", "select_scatter", "slice_scatter", "diagonal_scatter", "as_strided_scatter",
    "masked_scatter", "_index_put_impl", "_unsafe_index", "_unsafe_index_put",
    "searchsorted", "bucketize", "grid_sampler", "grid_sampler_2d", "grid_sampler_3d",
    "nll_loss_nd", "nll_loss2d", "kl_div",
}  # fmt: skip
"""ATen operators, by name, that multiply by no stored matrix whatever their operands are."""

_LOOKUP = "sums rows that it looks up by an index: one_hot(index) @ weight would be a product"
_DISTANCE = (
    "a distance to stored points is no product: written as |x|^2 - 2 x w^T + |w|^2 it has one, "
    "which goes analog"
)
_SOLVE = "solves equations with a stored matrix: multiply by its inverse, which can be stored"
_WHY = {
    "cdist": _DISTANCE, "_cdist_forward": _DISTANCE, "pairwise_distance": _DISTANCE,
    "dist": _DISTANCE,
    "cosine_similarity": "a normalised product: write it as F.linear(normalize(x), normalize(w))",
    "embedding_bag": _LOOKUP, "_embedding_bag": _LOOKUP, "_embedding_bag_forward_only": _LOOKUP,
    "linalg_solve": _SOLVE, "_linalg_solve_ex": _SOLVE, "linalg_solve_triangular": _SOLVE,
    "triangular_solve": _SOLVE, "cholesky_solve": _SOLVE, "lu_solve": _SOLVE,
    "linalg_lu_solve": _SOLVE, "linalg_lstsq": _SOLVE,
}  # fmt: skip


def why_unsupported(node: fx.Node, fixed: set[fx.Node], live: set[fx.Node]) -> str | None:
    """Why a live node that no other rule knows has no analog form; None: it has no need of one."""
    op = node.target
    if not isinstance(op, torch._ops.OpOverload) or node not in live:
        return None
    name = op._schema.name.partition("::")[2].removesuffix("_")
    if op.namespace == "aten" and (
        torch.Tag.pointwise in op.tags or name in _NO_PRODUCT or name.endswith("_loss")
    ):
        return None
    if "embedding_bag" in name and not _is_weighted(node):
        return None
    stored = [arg for arg in node.all_input_nodes if arg in fixed and is_matrix(arg)]
    if not stored or not any(_is_number(arg) for arg in node.all_input_nodes if arg not in fixed):
        return None
    sparse = next((arg for arg in stored if is_sparse(arg)), None)
    if sparse is not None:
        return SPARSE
    integer = next((reason for arg in stored if (reason := unreal(arg)) is not None), None)
    shown = str(op).removesuffix(".default")
    return (
        _WHY.get(name)
        or (integer if op.namespace == "aten" else None)
        or f"{shown} has no analog form: give one in torch operations by "
        f"lowerings={{torch.ops.{op}: function}}"
    )


SPARSE = "its weight is sparse: tiles hold a dense one, weight.to_dense()"


def is_sparse(node: fx.Node) -> bool:
    """Whether a stored operand is in a sparse layout."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.layout != torch.strided


def is_matrix(node: fx.Node) -> bool:
    """Whether a tensor has at least two dims of more than one place."""
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.dtype in (torch.bool, torch.int64):
        return False
    return sum(1 for size in value.shape if not (isinstance(size, int) and size == 1)) > 1


def unreal(weight: fx.Node) -> str | None:
    """Why a weight is not made of real numbers, if it is not."""
    dtype = weight.meta["val"].dtype
    if dtype.is_floating_point:
        return None
    kind = str(dtype).removeprefix("torch.")
    if dtype.is_complex:
        return (
            f"its weight is {kind}: tiles hold real numbers; multiply by its real and its "
            "imaginary part"
        )
    return (
        f"its weight is {kind}: tiles hold real numbers; multiply by the dequantised weight, "
        "weight.float() * scale"
    )


def picked(weight: fx.Node, fixed: set[fx.Node]) -> bool:
    """Whether an activation picks ``weight`` out of stored matrices (experts by index)."""
    at: Any = weight
    while isinstance(at, fx.Node) and at.op == "call_function" and at not in fixed:
        if at.target in STORED_VIEWS:
            at = at.args[0]
            continue
        source = at.args[0] if at.args else None
        if at.target in _PICKS and isinstance(source, fx.Node):
            return source in fixed and source.meta["val"].dim() > 2
        if at.target is aten.where.self:
            return all(isinstance(a, fx.Node) and a in fixed and is_matrix(a) for a in at.args[1:])
        return False
    return False


PICKED = (
    "an activation picks its weight out of stored ones: multiply by each of them, and pick among "
    "the results"
)
_PICKS = {aten.index.Tensor, aten.index_select.default, aten.gather.default}


def _is_weighted(node: fx.Node) -> bool:
    """Whether an embedding bag multiplies by weights of its samples."""
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    place = names.index("per_sample_weights") if "per_sample_weights" in names else len(node.args)
    given = node.args[place] if place < len(node.args) else node.kwargs.get("per_sample_weights")
    return given is not None


def _is_number(node: fx.Node) -> bool:
    value = node.meta.get("val")
    items = value if isinstance(value, tuple | list) else [value]
    return any(isinstance(item, torch.Tensor) and item.dtype != torch.bool for item in items)
