"""Which node of one graph is which of another.

Names alone will not do: with one layer more, ``linear_3`` is another one. So nodes are matched by
what they are computed from, then by what they are used for, then by their order, then by name.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from difflib import SequenceMatcher

from .lines import Line

Pairs = dict[int, int]
_MOST = 4_000_000
"""Product of lengths up to which sequences are aligned."""


def match(a: Sequence[Line], b: Sequence[Line]) -> Pairs:
    """Indices of corresponding nodes: of ``a`` to of ``b``."""
    pairs: Pairs = {}
    _same_origin(a, b, pairs)
    _same_use(a, b, pairs, _identity)
    _same_use(a, b, pairs, _kind)
    _same_order(a, b, pairs)
    _same_name(a, b, pairs)
    return pairs


def _same_origin(a: Sequence[Line], b: Sequence[Line], pairs: Pairs) -> None:
    """Match what is the same function of the same inputs and weights, of the same type."""
    ids: dict[Hashable, int] = {}
    of_a, of_b = _origins(a, ids), _origins(b, ids)
    free: dict[int, list[int]] = defaultdict(list)
    for j in reversed(range(len(b))):
        free[of_b[j]].append(j)
    for i, origin in enumerate(of_a):
        if free[origin]:
            pairs[i] = free[origin].pop()


def _origins(lines: Sequence[Line], ids: dict[Hashable, int]) -> list[int]:
    found: list[int] = []
    named: dict[str, int] = {}
    for line in lines:
        own = (line.name,) if line.op == "input" else (_identity(line), line.type)
        key = (own, tuple(named.get(ref, -1) for ref in line.refs))
        named[line.name] = ids.setdefault(key, len(ids))
        found.append(named[line.name])
    return found


def _same_use(
    a: Sequence[Line], b: Sequence[Line], pairs: Pairs, sort: Callable[[Line], Hashable]
) -> None:
    """Match nodes of one sort that the same nodes use in the same places, from the outputs on."""
    if a and b and a[-1].op == b[-1].op == "output":
        pairs.setdefault(len(a) - 1, len(b) - 1)
    taken = set(pairs.values())
    uses_a, uses_b = _uses(a), _uses(b)
    index_b = {line.name: j for j, line in enumerate(b)}
    # All uses of a node come after it: they are matched, or never will be, when its turn comes.
    for i in reversed(range(len(a))):
        uses = uses_a[a[i].name]
        if i in pairs or not uses or any(user not in pairs for user, _ in uses):
            continue
        user, place = uses[0]
        refs = b[pairs[user]].refs
        j = index_b.get(refs[place], -1) if place < len(refs) else -1
        if j < 0 or j in taken or sort(a[i]) != sort(b[j]):
            continue
        if [(pairs[user], place) for user, place in uses] == uses_b[b[j].name]:
            pairs[i] = j
            taken.add(j)


def _identity(line: Line) -> Hashable:
    return (_kind(line), line.module, line.paths)


def _kind(line: Line) -> Hashable:
    # Arguments beside nodes count for what picks one of several values.
    return (line.base, len(line.paths), line.args[1:] if line.base == "getitem" else ())


def _uses(lines: Sequence[Line]) -> dict[str, list[tuple[int, int]]]:
    """Index and place of each use of a node, by its name, in order."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for i, line in enumerate(lines):
        for place, ref in enumerate(line.refs):
            found[ref].append((i, place))
    return found


def _same_order(a: Sequence[Line], b: Sequence[Line], pairs: Pairs) -> None:
    """Align what is left by operator, module and weights."""
    rest_a, rest_b = _left(a, b, pairs)
    if len(rest_a) * len(rest_b) > _MOST:
        return
    keys_a, keys_b = (
        [(lines[i].base, lines[i].module, lines[i].paths) for i in rest]
        for lines, rest in ((a, rest_a), (b, rest_b))
    )
    for i, j, size in SequenceMatcher(None, keys_a, keys_b, autojunk=False).get_matching_blocks():
        pairs.update({rest_a[i + k]: rest_b[j + k] for k in range(size)})


def _same_name(a: Sequence[Line], b: Sequence[Line], pairs: Pairs) -> None:
    """Match what has one name and one operator, or one place: it was changed where it stands."""
    rest_a, rest_b = _left(a, b, pairs)
    index_a = {line.name: i for i, line in enumerate(a)}
    index_b = {b[j].name: j for j in rest_b}
    names_b = [line.name for line in b]
    for i in rest_a:
        j = index_b.get(a[i].name)
        if j is None:
            continue
        operands = [pairs.get(index_a.get(ref, -1), -1) for ref in a[i].refs]
        same_operands = [names_b[k] for k in operands if k >= 0] == list(b[j].refs)
        if a[i].base == b[j].base or (a[i].module == b[j].module and same_operands):
            pairs[i] = j


def _left(a: Sequence[Line], b: Sequence[Line], pairs: Pairs) -> tuple[list[int], list[int]]:
    taken = set(pairs.values())
    return [i for i in range(len(a)) if i not in pairs], [
        j for j in range(len(b)) if j not in taken
    ]


def in_order(pairs: Pairs) -> set[int]:
    """Nodes of ``a`` in the longest run of pairs that stand in one order in both graphs."""
    items = sorted(pairs.items())
    ends: list[int] = []
    where: list[int] = []
    before: list[int] = []
    for k, (_, j) in enumerate(items):
        at = bisect_left(ends, j)
        before.append(where[at - 1] if at else -1)
        if at == len(ends):
            ends.append(j)
            where.append(k)
        else:
            ends[at], where[at] = j, k
    found = set()
    k = where[-1] if where else -1
    while k >= 0:
        found.add(items[k][0])
        k = before[k]
    return found


def renamed(a: Sequence[Line], b: Sequence[Line], pairs: Pairs) -> dict[str, str]:
    """Weights of ``a`` that have another name in ``b``: those that corresponding nodes use.

    Only where it is one to one; a node that uses another weight than before is another thing.
    """
    found: dict[str, set[str]] = defaultdict(set)
    back: dict[str, set[str]] = defaultdict(set)
    for i, j in pairs.items():
        if a[i].base == b[j].base and len(a[i].paths) == len(b[j].paths):
            for old, new in zip(a[i].paths, b[j].paths, strict=True):
                found[old].add(new)
                back[new].add(old)
    single = {old: next(iter(new)) for old, new in found.items() if len(new) == 1}
    return {old: new for old, new in single.items() if old != new and len(back[new]) == 1}
