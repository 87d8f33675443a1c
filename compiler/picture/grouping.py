"""Nodes grouped by the module that made them, so that a folded group is one box in a dataflow.

A group is a call of a module, not the module: if data leaves a module, goes through other code and
comes back (an activation that a block uses twice), the second call is a group of its own. So a
path never leaves a group and returns to it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ..listing import Line


@dataclass(frozen=True, slots=True)
class Group:
    """One call of a module."""

    parent: int
    """Index of the group around it; -1: none."""
    label: str
    """Path from that group on, for example ``layers.0``."""
    path: str
    """Path of the module."""
    call: int
    """1 for the first group of the module, 2 for the second, ..."""


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups of a graph, and the innermost one of each of its nodes (-1: none)."""

    groups: tuple[Group, ...]
    home: tuple[int, ...]


def grouped(lines: Sequence[Line], hidden: frozenset[str] = frozenset()) -> Grouping:
    """Group ``lines``, which are in an order of execution.

    A group that would hold a single box is left out; kinds in ``hidden`` do not count.
    """
    parents, labels, home = _calls(lines)
    return _without_single(lines, hidden, parents, labels, home)


def _calls(lines: Sequence[Line]) -> tuple[list[int], list[str], list[int]]:
    parents: list[int] = []
    labels: list[str] = []
    home: list[int] = []
    latest: dict[tuple[int, str], int] = {}
    within: dict[str, int] = {}
    reached: dict[str, int] = {}
    # Sets of groups as bits: those around a node, and those that a path to it began in.
    for line in lines:
        inputs = [name for name in line.inputs if name in within]
        reached[line.name] = 0
        left = 0
        for name in inputs:
            reached[line.name] |= reached[name] | within[name]
            left |= reached[name] & ~within[name]
        group, bits = -1, 0
        for part in line.module.split(".") if line.module else ():
            key = (group, part)
            if key not in latest or left >> latest[key] & 1:
                latest[key] = len(parents)
                parents.append(group)
                labels.append(part)
            group = latest[key]
            bits |= 1 << group
        within[line.name] = bits
        home.append(group)
    return parents, labels, home


def _without_single(
    lines: Sequence[Line],
    hidden: frozenset[str],
    parents: list[int],
    labels: list[str],
    home: list[int],
) -> Grouping:
    boxes = Counter(
        group for line, group in zip(lines, home, strict=True) if line.kind not in hidden
    )
    kept: set[int] = set()
    # Inner groups have larger numbers than those around them.
    for group in range(len(parents) - 1, -1, -1):
        if boxes[group] > 1:
            kept.add(group)
            boxes[parents[group]] += 1
        else:
            boxes[parents[group]] += boxes[group]
    numbers: dict[int, int] = {-1: -1}
    paths: dict[int, str] = {-1: ""}
    calls: Counter[str] = Counter()
    found: list[Group] = []
    short: dict[int, str] = {-1: ""}
    for group, parent in enumerate(parents):
        paths[group] = f"{paths[parent]}.{labels[group]}".lstrip(".")
        label = f"{short[parent]}.{labels[group]}".lstrip(".")
        if group in kept:
            numbers[group], short[group] = len(found), ""
            calls[paths[group]] += 1
            found.append(Group(numbers[parent], label, paths[group], calls[paths[group]]))
        else:
            numbers[group], short[group] = numbers[parent], label
    return Grouping(tuple(found), tuple(numbers[group] for group in home))
