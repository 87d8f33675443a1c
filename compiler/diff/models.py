"""What two compiled models have, part by part, in a form that can be compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...passes.derive_weights import HOME
from ...passes.verify import OPS
from ...runtime.errors import UnsupportedError
from ...runtime.mapping import TileMapping
from ...runtime.reference import flat_weight
from ..holder import mode_of
from ..model import CompiledModel
from ..signature import NumberLeaf, Signature, TensorLeaf
from ..tree_json import parameters_to_json, tree_to_json
from .graphs import Change, GraphDiff, diff_lines
from .lines import flat, lines_of
from .values import (
    RangeDiff,
    TensorDiff,
    Tolerance,
    biggest_first,
    compare,
    compare_ranges,
)

_ALWAYS = ("programmed", "times_programmed", "calls")
"""What there is to know of an array that is not programmed."""
_RANGES = f"{HOME}.ranges."


def graphs_of(model: CompiledModel) -> dict[str, fx.Graph]:
    """Graphs by a label that means the same in another model: the mode, or a number."""
    if not model._programs:
        return {f"graph {i}": piece.graph for i, piece in enumerate(model.graphs)}
    found: dict[str, fx.Graph] = {}
    for mode, program in model._programs.items():
        label = "eval" if not any(mode) else "train" if all(mode) else "mixed modes"
        while label in found:
            label += "'"
        found[label] = program.graph
    return found


def changed(a: dict[str, Any], b: dict[str, Any]) -> tuple[Change, ...]:
    """Values that differ, by name."""
    names = dict.fromkeys((*a, *b))
    return tuple(Change(k, a.get(k), b.get(k)) for k in names if a.get(k) != b.get(k))


def settings_of(model: CompiledModel) -> dict[str, Any]:
    """Target, seed and all else that is not in a graph, by dotted names."""
    found = dict(flat(model.target.to_dict(), "target"))
    found["seed"] = model.seed
    found["weight_access"] = model.weight_access
    found["auto_sync"] = model.auto_sync
    found["mode"] = "train" if model.training else "eval"
    modes = mode_of(model._root)
    found["modules in training"] = f"{sum(modes)} of {len(modes)}"
    found["graphs"] = ", ".join(graphs_of(model))
    tied: dict[int, list[str]] = {}
    for name, value in _tensors(model):
        tied.setdefault(id(value), []).append(name)
    found["tied"] = [" = ".join(names) for names in tied.values() if len(names) > 1]
    return found


def diff_signatures(a: CompiledModel, b: CompiledModel) -> tuple[Change, ...]:
    """Inputs and outputs that differ, of the graphs that both have."""
    of_a, of_b = _signatures(a), _signatures(b)
    both = [label for label in of_a if label in of_b]
    return changed(
        {k: v for label in both for k, v in of_a[label].items()},
        {k: v for label in both for k, v in of_b[label].items()},
    )


def _signatures(model: CompiledModel) -> dict[str, dict[str, Any]]:
    """Inputs and outputs by the label of their graph; none if there are several graphs."""
    programs = zip(graphs_of(model), model._programs.values(), strict=False)
    return {label: dict(flat(_signature(p.signature), label)) for label, p in programs}


def _signature(signature: Signature) -> dict[str, Any]:
    inputs = {}
    for name, leaf in zip(signature.names, signature.leaves, strict=True):
        if isinstance(leaf, TensorLeaf):
            sizes = ", ".join("any" if size is None else str(size) for size in leaf.shape)
            inputs[f"input {name}"] = f"{str(leaf.dtype).removeprefix('torch.')}[{sizes}]"
        elif isinstance(leaf, NumberLeaf):
            inputs[f"input {name}"] = "any whole number"
        else:
            value = leaf.value
            plain = value is None or isinstance(value, bool | int | float | str)
            inputs[f"input {name}"] = repr(value) if plain else type(value).__name__
    structure: dict[str, Any] = {}
    for what, spec in (("inputs", signature.in_spec), ("outputs", signature.out_spec)):
        try:
            structure[what] = str(tree_to_json(spec))
        except UnsupportedError:
            structure[what] = str(spec)
    structure["parameters"] = str(parameters_to_json(signature.parameters))
    return {**inputs, **structure}


def diff_all_graphs(a: CompiledModel, b: CompiledModel) -> tuple[GraphDiff, ...]:
    """The graphs of equal labels; that a model has others is among the settings."""
    of_a, of_b = graphs_of(a), graphs_of(b)
    return tuple(
        diff_lines(lines_of(graph, a._root), lines_of(of_b[label], b._root), label)
        for label, graph in of_a.items()
        if label in of_b
    )


def diff_ranges(
    a: CompiledModel, b: CompiledModel, graphs: tuple[GraphDiff, ...], tolerance: Tolerance
) -> tuple[RangeDiff, ...]:
    """Ranges of layers that both have, those that changed most first."""
    found: list[RangeDiff] = []
    seen: set[tuple[str | None, str | None]] = set()
    of_a, of_b = graphs_of(a), graphs_of(b)
    for graph in graphs:
        nodes_a, nodes_b = ({n.name: n for n in g[graph.label].nodes} for g in (of_a, of_b))
        for node in graph.nodes:
            if node.a is None or node.b is None:
                continue
            x, y = nodes_a[node.a.name], nodes_b[node.b.name]
            if x.target not in OPS or y.target not in OPS:
                continue
            layer = x.meta["analogc"].layer
            for converter, place in (("DAC", 3), ("ADC", 4)):
                paths = _path(x.args[place]), _path(y.args[place])
                if paths in seen:  # the steps of a loop have one set
                    continue
                seen.add(paths)
                old, new = _buffer(a, paths[0]), _buffer(b, paths[1])
                found += compare_ranges(layer, converter, old, new, tolerance)
    return tuple(sorted(found, key=lambda diff: -abs(diff.change)))


def _path(node: object) -> str | None:
    return str(node.target) if isinstance(node, fx.Node) else None


def _buffer(model: CompiledModel, path: str | None) -> Tensor | None:
    return None if path is None else model._root.get_buffer(path)


def _tensors(model: CompiledModel) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers by all their names, ranges aside."""
    root = model._root
    yield from root.named_parameters(remove_duplicate=False)
    for name, value in root.named_buffers(remove_duplicate=False):
        if not name.startswith(_RANGES):
            yield name, value


def diff_weights(
    a: CompiledModel, b: CompiledModel, graphs: tuple[GraphDiff, ...], tolerance: Tolerance
) -> tuple[TensorDiff, ...]:
    """Parameters and buffers that differ, those that differ most first."""
    of_a, of_b = dict(_tensors(a)), dict(_tensors(b))
    found = []
    for name, old, new in _partners(of_a, of_b, [graph.weights for graph in graphs]):
        x, y = of_a.get(old), of_b.get(new)
        changes: tuple[Change, ...] = ()
        if x is not None and y is not None and x.requires_grad != y.requires_grad:
            changes = (Change("requires_grad", x.requires_grad, y.requires_grad),)
        found.append(compare(name, x, y, tolerance, changes))
    return _shown(found, a, b)


def _partners(
    a: Iterable[str], b: Iterable[str], renamed: Iterable[Mapping[str, str]]
) -> Iterator[tuple[str, str, str]]:
    """What to call a pair, its name in ``a`` and its name in ``b``; ``""``: it has no partner."""
    to: dict[str, str] = {}
    for names in renamed:
        for old, new in names.items():
            to.setdefault(old, new)
    targets = set(to.values())
    here, there = list(a), set(b)
    taken = set()
    for old in here:
        new = to.get(old, "" if old in targets else old)
        new = new if new in there else ""
        taken.add(new)
        yield (old if new in ("", old) else f"{old} → {new}"), old, new
    for new in b:
        if new not in taken:
            yield new, "", new


def diff_tiles(
    a: CompiledModel, b: CompiledModel, graphs: tuple[GraphDiff, ...], tolerance: Tolerance
) -> tuple[TensorDiff, ...]:
    """Arrays that hold other weights, or are in another state, of those that both have."""
    of_a, of_b = dict(_arrays(a)), dict(_arrays(b))
    found = []
    for name, old, new in _partners(of_a, of_b, [graph.arrays for graph in graphs]):
        if old in of_a and new in of_b:
            (x, state), (y, other) = of_a[old], of_b[new]
            if x is None or y is None:  # nothing to compare; why, the state tells
                x = y = None
                state, other = (
                    {k: v for k, v in s.items() if k in _ALWAYS} for s in (state, other)
                )
            found.append(compare(name, x, y, tolerance, changed(state, other)))
    return _shown(found, a, b)


def _arrays(model: CompiledModel) -> Iterator[tuple[str, tuple[Tensor | None, dict[str, Any]]]]:
    """What each array stands for, ``[N, K]``, with all programming errors, and its state."""
    contents = model._contents()
    mapping: TileMapping
    for mapping in model.tiles:
        array = model._ctx.arrays[mapping.array]
        held = contents.get(mapping.array)
        stale = "stale" if array.programmed is not None else "no"
        state: dict[str, Any] = {
            "programmed": "ideal" if array.spec.is_ideal else "yes" if held else stale,
            "times_programmed": array.times_programmed,
            "calls": array.calls,
        }
        value = None
        if held is not None:
            state["seconds"] = held.seconds
            state["noise key"] = f"{held.key.seed}/{held.key.stream}/{held.key.counter}"
            shape = torch.Size(mapping.weight_shape)
            value = flat_weight(held, shape, array.spec) * held.scale[:, None]
        yield mapping.array, (value, state)


def _shown(
    found: list[TensorDiff | None], a: CompiledModel, b: CompiledModel
) -> tuple[TensorDiff, ...]:
    diffs = [diff for diff in found if diff is not None]
    if "sealed" in (a.weight_access, b.weight_access):
        # That a sealed weight differs can be told, how much cannot.
        diffs = [dataclasses.replace(d, max_abs=None, max_rel=None, where=()) for d in diffs]
    return biggest_first(diffs)
