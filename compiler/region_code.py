"""Python code of a graph with regions: a region becomes a block.

``enter_*`` and ``leave`` become a ``with`` statement, which leaves no mode behind if an error
occurs inside. A checkpointed region and a branch become functions of their own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _format_target

from ..passes.base import META
from ..runtime.mapping import TileMapping
from ..runtime.regions import (
    ENTERS,
    enter_autocast,
    enter_branch,
    enter_checkpoint,
    enter_grad_mode,
    join,
    leave,
    run_branch,
    run_checkpointed,
)

_CONTEXTS: dict[Any, str] = {
    enter_autocast: "torch.autocast",
    enter_grad_mode: "torch.set_grad_enabled",
}
_COUNTER = re.compile(r"# COUNTER: (\d+)")


def has_regions(graph: fx.Graph) -> bool:
    """Whether the graph has any region."""
    return any(node.target in ENTERS for node in graph.nodes)


class RegionCode(CodeGen):
    """Code generation for one graph with regions."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self._nodes = list(graph.nodes)
        self._place = {node: i for i, node in enumerate(self._nodes)}
        self._body_transformer = self._blocks

    def additional_globals(self) -> list[tuple[str, Any]]:
        """What the blocks call."""
        ours: list[tuple[str, Any]] = [
            ("run_checkpointed", run_checkpointed), ("run_branch", run_branch)
        ]  # fmt: skip
        return [*super().additional_globals(), *ours]

    def _blocks(self, body: list[str]) -> list[str]:
        """Lines of the function, those of regions one level deeper."""
        out: list[str] = []
        depth = 0
        at: fx.Node | None = None
        for line in "".join(body).splitlines():
            counter = _COUNTER.fullmatch(line)
            if counter is not None:
                at = self._nodes[int(counter[1])]
            if counter is not None or not line.strip():
                out.append(line)
                continue
            texts = [line]
            if at is not None and re.match(rf"{re.escape(at.name)}\b[^=]*=", line):
                if at.target in ENTERS:
                    head, *texts = self._begin(at)
                    out.append("    " * depth + head)
                    depth += 1
                elif at.target is leave:
                    last, *texts = self._end(at)
                    out.append("    " * depth + last)
                    depth -= 1
                elif at.target is join:
                    texts = self._join(at)
            out += ["    " * depth + text for text in texts]
        assert depth == 0, "every region ends"
        return [text + "\n" for text in out]

    def _begin(self, node: fx.Node) -> list[str]:
        """First lines of a block."""
        if node.target in _CONTEXTS:
            return [f"with {_CONTEXTS[node.target]}({_list(node.args)}):", "pass"]
        given, looked_up = self._needs(node)
        head = f"def {_name(node)}({_list(given)}):"
        return [head, *(f"{n!r} = {_format_target('self', str(n.target))}" for n in looked_up)]

    def _end(self, node: fx.Node) -> list[str]:
        """Last line of a block, and what follows it."""
        (begin,) = node.all_input_nodes
        if begin.target in _CONTEXTS:
            return ["pass"]
        results = self._results(begin)
        lines = [f"return {_tuple(results)}"]
        if begin.target is enter_checkpoint:
            layers = (n for n in self._inside(begin) if isinstance(n.meta.get(META), TileMapping))
            keys = dict.fromkeys(str(layer.args[-1]) for layer in layers)
            given, _ = self._needs(begin)
            call = f"run_checkpointed({_list([tuple(keys), _Text(_name(begin)), *given])})"
            lines.append(f"{_tuple(results)} = {call}" if results else call)
            lines += self._forget(given, node)
        return lines

    def _join(self, node: fx.Node) -> list[str]:
        condition, *_ = node.args
        operands: list[Any] = [condition]
        outside: list[fx.Node] = []
        for begin in node.args[3:]:
            assert isinstance(begin, fx.Node), "a branch has a beginning"
            given, _ = self._needs(begin)
            operands += [_Text(_name(begin)), _Text(_tuple(given))]
            outside += given
        return [f"{node!r} = run_branch({_list(operands)})", *self._forget(outside, node)]

    def _forget(self, given: list[fx.Node], end: fx.Node) -> list[str]:
        """Let go of values that nothing after ``end`` needs."""
        after = self._place[end]
        done = [n for n in dict.fromkeys(given) if all(self._place[u] <= after for u in n.users)]
        return [f"{' = '.join(map(repr, done))} = None"] if done else []

    def _inside(self, begin: fx.Node) -> list[fx.Node]:
        (end,) = (user for user in begin.users if user.target is leave)
        return self._nodes[self._place[begin] + 1 : self._place[end]]

    def _needs(self, begin: fx.Node) -> tuple[list[fx.Node], list[fx.Node]]:
        """What a region needs of the nodes before it: values, and tensors of the model."""
        inside = dict.fromkeys(self._inside(begin))
        needed = dict.fromkeys(arg for node in inside for arg in node.all_input_nodes)
        needed.update(dict.fromkeys(self._results(begin)))
        outside = [node for node in needed if node not in inside]
        # The model's tensors are looked up inside: a second run may find a counter written.
        return (
            [node for node in outside if node.op != "get_attr"],
            [node for node in outside if node.op == "get_attr"],
        )

    def _results(self, begin: fx.Node) -> list[Any]:
        """What is needed of a region after it."""
        if begin.target is enter_branch:
            (end,) = (user for user in begin.users if user.target is join)
            found = end.args[1 if begin.args[1] else 2]
            assert isinstance(found, list | tuple), "a branch returns a tuple"
            return list(found)
        inside = dict.fromkeys(self._inside(begin))
        return [n for n in inside if any(user not in inside for user in n.users)]


class _Text(str):
    """Code, as against a string."""

    def __repr__(self) -> str:
        return str(self)


def _name(begin: fx.Node) -> str:
    return f"_region_{begin.name}"


def _list(values: Iterable[Any]) -> str:
    return ", ".join(map(repr, values))


def _tuple(values: Sequence[Any]) -> str:
    return f"({_list(values)}{',' * (len(values) == 1)})"
