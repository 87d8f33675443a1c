"""Turn batched products and einsums with a stored operand into linears.

``einsum``, ``bmm``, ``baddbmm``, ``matmul`` of more than two dims, ``tensordot``, ``inner``, chains
of matrices and sums of elementwise products are all sums over labelled dims, ``bik,bkj->bij``, so
one rule does for them. Of a live and a stored operand, a label is

- summed over: in both and nowhere else. These are the rows of the matrix, K;
- of the stored operand alone: its columns, N;
- of the live operand alone: vectors, one MVM each;
- in both and in the result: a batch of matrices (stacked experts). Each is an array of its own, and
  gets a linear of its own over its slice, which is a view of the parameter.

Of several stored operands each is multiplied in turn, so that a low-rank product stays one. What is
left over at the end, activations among themselves or a scale, is one digital einsum.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import fx

from .base import Pass, PassContext, PassResult, finish
from .canonicalize import LINEAR, stored_on_the_right
from .copies import Copies, is_one
from .emit import Emitter
from .products import READERS, Labels, Operand, Product, read
from .select_analog import ZERO, aten, keep_digital, kept_for, too_many
from .stationary import is_zero, leaves, live_nodes, stationary_nodes

_NO_SUM = "no sum over a dim of its stored operand: nothing to multiply"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class LowerProducts(Pass):
    """Rewrite every batched product with a stored operand into ``linear``."""

    experts: int = 64
    """Most matrices that one stacked operand is split into."""
    name: ClassVar[str] = "lower-products"

    def __call__(self, module: fx.GraphModule, ctx: PassContext) -> PassResult:
        """Transform ``module`` in place."""
        fixed, live = stationary_nodes(module.graph), live_nodes(module.graph)
        copies = Copies(module.graph, fixed)
        modified = False
        for node in list(module.graph.nodes):
            if node.op != "call_function" or node not in live:
                continue
            node, again = _of_one_period(node, fixed, copies)
            modified |= again
            product = read(node)
            if product is not None and any(
                o.node in fixed or o.node in copies for o in product.operands
            ):
                modified |= _lower(node, product, fixed, copies, self.experts)
        return finish(module, modified)


def _of_one_period(node: fx.Node, fixed: set[fx.Node], copies: Copies) -> tuple[fx.Node, bool]:
    """A product with a stack that repeats a smaller one, [B E, ., .], as one with that, [E, ., .].

    Returns the product, and whether it is another one.
    """
    if node.target not in (aten.bmm.default, aten.matmul.default):
        return node, False
    operands = [arg for arg in node.args if isinstance(arg, fx.Node)]
    if any(o.meta["val"].dim() != 3 for o in operands):
        return node, False
    emit = Emitter(node, LowerProducts.name)
    for place, operand in enumerate(operands):
        other = operands[1 - place]
        stack = None if other in fixed or other in copies else copies.period(operand, emit)
        count = 1 if stack is None else stack.meta["val"].shape[0]
        if stack is None or not isinstance(count, int) or count == 1:
            continue
        fixed.add(stack)
        x = emit.call(aten.unflatten.int, other, 0, [-1, count])
        y = emit.call(aten.matmul.default, *((x, stack) if place else (stack, x)))
        emit.replace(emit.call(aten.flatten.using_ints, y, 0, 1))
        return y, True
    return node, False


def _lower(
    node: fx.Node, product: Product, fixed: set[fx.Node], copies: Copies, experts: int
) -> bool:
    product = _without_copies(product, fixed, copies, node)
    stored = [o for o in product.operands if o.node in fixed]
    if not stored or len(stored) == len(product.operands):
        return False
    if node.target not in READERS and not any(leaves(o.node) for o in stored):
        return False  # a sum with constant factors
    if node.target is aten.matmul.default and all(len(o.labels) < 3 for o in stored):
        return False
    if kept_for(node, *(o.node for o in stored), real=False):
        return False
    if any(is_zero(o.node) for o in stored):
        keep_digital(node, ZERO, "rule")
        return False
    groups = _with_scales(product.operands, fixed)
    if _next_pair([group[0] for group in groups], product.result, fixed) is None:
        keep_digital(node, _NO_SUM, "rule")
        return False
    count = _most_matrices(product, groups, fixed)
    if too_many(node, count, experts, LowerProducts.name):
        return False
    emit = Emitter(node, LowerProducts.name)
    wide = _wide(product)
    operands = [_scaled(emit, [_plain(emit, o, wide, fixed) for o in g], fixed) for g in groups]
    y = _contract(emit, operands, product.result, fixed)
    emit.replace(_epilogue(emit, y, product))
    return True


def _without_copies(
    product: Product, fixed: set[fx.Node], copies: Copies, node: fx.Node
) -> Product:
    """Stored operands without the copies of them that there are for each place of a live one."""
    live = [o for o in product.operands if o.node not in fixed and o.node not in copies]
    batch = {
        label
        for o in live
        for label, size in zip(o.labels, o.node.meta["val"].shape, strict=True)
        if label in product.result and not is_one(size)
    }
    emit = Emitter(node, LowerProducts.name)
    operands = [
        Operand(copies.original(o.node, emit), o.labels)
        if o.node in copies and all(o.labels[dim] in batch for dim in copies.dims[o.node])
        else o
        for o in product.operands
    ]
    return replace(product, operands=tuple(operands))


def _epilogue(emit: Emitter, y: fx.Node, product: Product) -> fx.Node:
    if product.alpha != 1:
        y = emit.call(aten.mul.Scalar, y, product.alpha)
    for dim in product.keep:
        y = emit.call(aten.unsqueeze.default, y, dim)
    bias = product.bias
    if bias is None or product.beta == 0:
        return y
    if product.beta != 1:
        bias = emit.call(aten.mul.Scalar, bias, product.beta)
    return emit.call(aten.add.Tensor, y, bias)


# -- the sum --------------------------------------------------------------------------------------


def _wide(product: Product) -> set[int]:
    """Labels with more than one place: a dim of size 1 under such a label is broadcast."""
    return {
        label
        for operand in product.operands
        for label, size in zip(operand.labels, operand.node.meta["val"].shape, strict=True)
        if not is_one(size)
    }


def _plain(emit: Emitter, operand: Operand, wide: set[int], fixed: set[fx.Node]) -> Operand:
    """``operand`` with each label once and without dims that are broadcast."""
    node, labels = operand.node, list(operand.labels)
    for label in sorted({label for label in labels if labels.count(label) > 1}):
        while labels.count(label) > 1:
            first = labels.index(label)
            second = labels.index(label, first + 1)
            node = emit.call(aten.diagonal.default, node, 0, first, second)
            labels = [*labels[:first], *labels[first + 1 : second], *labels[second + 1 :], label]
    for dim in reversed(range(len(labels))):
        if labels[dim] in wide and is_one(node.meta["val"].shape[dim]):
            node = emit.call(aten.squeeze.dim, node, dim)
            del labels[dim]
    if operand.node in fixed:
        fixed.add(node)
    return Operand(node, tuple(labels))


def _with_scales(operands: Sequence[Operand], fixed: set[fx.Node]) -> list[list[Operand]]:
    """Each operand, followed by the stored ones that only scale it: it has all their labels."""
    stored = [o for o in operands if o.node in fixed]
    stored.sort(key=lambda o: -len(set(o.labels)))
    groups = [[o] for o in operands if o.node not in fixed]
    lives = len(groups)
    for o in stored:
        fits = (g for g in groups[lives:] if set(o.labels) <= set(g[0].labels))
        home = next(fits, None)
        if home is None:
            groups.append([o])
        else:
            home.append(o)
    return groups


def _scaled(emit: Emitter, group: list[Operand], fixed: set[fx.Node]) -> Operand:
    if len(group) == 1:
        return group[0]
    # A dim that was broadcast away in the first may be in a scale.
    labels = tuple(dict.fromkeys(label for o in group for label in o.labels))
    node = _einsum_of(emit, group, labels)
    fixed.add(node)
    return Operand(node, labels)


def _einsum_of(emit: Emitter, operands: list[Operand], result: Labels) -> fx.Node:
    names = dict(zip(dict.fromkeys(n for o in operands for n in o.labels), LETTERS, strict=False))
    terms = ",".join("".join(names[n] for n in o.labels) for o in operands)
    equation = f"{terms}->{''.join(names[n] for n in result)}"
    return emit.call(aten.einsum.default, equation, [o.node for o in operands])


def _next_pair(
    operands: Iterable[Operand], result: Labels, fixed: set[fx.Node]
) -> tuple[Operand, Operand] | None:
    """A live and a stored operand with a label to sum over that no other operand has."""
    operands = list(operands)
    live = [o for o in operands if o.node not in fixed]
    stored = [o for o in operands if o.node in fixed]
    for x, w in itertools.product(live, stored):
        others = {label for o in operands if o is not x and o is not w for label in o.labels}
        sums = (set(x.labels) & set(w.labels)) - others - set(result)
        if any(not is_one(_size(o, n)) for n in sums for o in (x, w)):
            return x, w
    return None


def _size(operand: Operand, label: int) -> Any:
    return operand.node.meta["val"].shape[operand.labels.index(label)]


def _steps(
    operands: list[Operand], result: Labels, fixed: set[fx.Node]
) -> Iterator[tuple[Operand, Operand, Labels]]:
    """Pairs to multiply, with the labels of their product; the caller replaces them in the list."""
    while (pair := _next_pair(operands, result, fixed)) is not None:
        x, w = pair
        kept = set(result).union(*(o.labels for o in operands if o is not x and o is not w))
        every = dict.fromkeys((*x.labels, *w.labels))
        yield x, w, tuple(label for label in every if label in kept)


def _most_matrices(product: Product, groups: list[list[Operand]], fixed: set[fx.Node]) -> int:
    """Number of matrices in the stored operand that stacks the most."""
    wide, sizes, left = _wide(product), dict[int, int](), list[Operand]()
    for o in (group[0] for group in groups):
        shape = dict(zip(o.labels, o.node.meta["val"].shape, strict=True))
        labels = (n for n in shape if n not in wide or not is_one(shape[n]))
        left.append(Operand(o.node, tuple(labels)))
        if o.node in fixed:
            sizes |= {n: int(shape[n]) for n in left[-1].labels}
    most = 1
    for x, w, kept in _steps(left, product.result, fixed):
        most = max(most, math.prod(sizes[n] for n in w.labels if n in x.labels and n in kept))
        left[:] = [o for o in left if o is not x and o is not w]
        left.append(Operand(x.node, kept))
    return most


def _contract(
    emit: Emitter, operands: list[Operand], result: Labels, fixed: set[fx.Node]
) -> fx.Node:
    left = list(operands)
    for x, w, kept in _steps(left, result, fixed):
        order = result if len(left) == 2 else kept
        y = _multiply(emit, x, w, order, fixed)
        left[:] = [o for o in left if o is not x and o is not w]
        left.append(Operand(y, order))
    (first, *others) = left
    if not others and first.labels == result:
        return first.node
    rest = _einsum_of(emit, left, result)
    if any(o.node in fixed for o in left):
        keep_digital(rest, _NO_SUM, "rule")
    return rest


def _multiply(
    emit: Emitter, x: Operand, w: Operand, result: Labels, fixed: set[fx.Node]
) -> fx.Node:
    """``x`` times ``w``, with the labels of the result in that order."""
    x = _without(emit, x, {*w.labels, *result}, fixed)
    w = _without(emit, w, {*x.labels, *result}, fixed)
    batch = [label for label in x.labels if label in w.labels and label in result]
    if batch:
        label, rest = batch[0], _minus(result, batch[0])
        count = int(w.node.meta["val"].shape[w.labels.index(label)])
        # Unbind: the gradient of a select is as large as what it selects from.
        places = emit.call(aten.unbind.int, x.node, x.labels.index(label))
        parts = []
        for i in range(count):
            given = Operand(emit.call(operator.getitem, places, i), _minus(x.labels, label))
            parts.append(_multiply(emit, given, _at(emit, w, label, i, fixed), rest, fixed))
        return emit.call(aten.stack.default, parts, result.index(label))
    sums = [label for label in w.labels if label in x.labels]
    vectors = [label for label in x.labels if label not in sums]
    columns = [label for label in w.labels if label not in sums]
    weight = _matrix(emit, w, columns, sums, fixed)
    rows = _permuted(emit, x.node, x.labels, [*vectors, *sums])
    if len(sums) > 1:
        rows = emit.call(aten.flatten.using_ints, rows, len(vectors), -1)
    y = emit.call(LINEAR, rows, weight)
    if not columns:
        y = emit.call(aten.squeeze.dim, y, -1)
    elif len(columns) > 1:
        sizes = [int(w.node.meta["val"].shape[w.labels.index(label)]) for label in columns]
        y = emit.call(aten.unflatten.int, y, -1, sizes)
    return _permuted(emit, y, [*vectors, *columns], result)


def _matrix(
    emit: Emitter, w: Operand, columns: list[int], sums: list[int], fixed: set[fx.Node]
) -> fx.Node:
    """The stored operand as [N, K]."""
    if len(columns) == len(sums) == 1:
        if w.labels == (*columns, *sums):
            return w.node
        return stored_on_the_right(emit, w.node, fixed)
    node = _permuted(emit, w.node, w.labels, [*columns, *sums])
    if len(sums) > 1:
        node = emit.call(aten.flatten.using_ints, node, len(columns), -1)
    if not columns:
        return emit.call(aten.unsqueeze.default, node, 0)
    if len(columns) > 1:
        node = emit.call(aten.flatten.using_ints, node, 0, len(columns) - 1)
    return node


def _without(emit: Emitter, operand: Operand, wanted: set[int], fixed: set[fx.Node]) -> Operand:
    """``operand`` summed over the labels that nothing else has."""
    dims = [i for i, label in enumerate(operand.labels) if label not in wanted]
    if not dims:
        return operand
    node = emit.call(aten.sum.dim_IntList, operand.node, dims)
    if operand.node in fixed:
        fixed.add(node)
    return Operand(node, tuple(label for label in operand.labels if label in wanted))


def _at(emit: Emitter, w: Operand, label: int, index: int, fixed: set[fx.Node]) -> Operand:
    """The stored operand at one place along ``label``."""
    node = emit.call(aten.select.int, w.node, w.labels.index(label), index)
    fixed.add(node)
    return Operand(node, _minus(w.labels, label))


def _minus(labels: Labels, label: int) -> Labels:
    return tuple(n for n in labels if n != label)


def _permuted(
    emit: Emitter, node: fx.Node, labels: Sequence[int], wanted: Sequence[int]
) -> fx.Node:
    if list(labels) == list(wanted):
        return node
    return emit.call(aten.permute.default, node, [labels.index(label) for label in wanted])
