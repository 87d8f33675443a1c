"""Python code of a graph with regions: a region becomes a block.

``enter_*`` and ``leave`` become a ``with`` statement, which leaves no mode behind if an error
occurs inside; a checkpointed region becomes a function of its own.
"""

from __future__ import annotations

import re
from typing import Any

from torch import fx
from torch.fx.graph import CodeGen, _format_target

from ..passes.verify import OPS
from ..runtime.regions import (
    ENTERS,
    enter_autocast,
    enter_checkpoint,
    enter_grad_mode,
    leave,
    run_checkpointed,
)

_CONTEXTS = {enter_autocast: "torch.autocast", enter_grad_mode: "torch.set_grad_enabled"}
_COUNTER = re.compile(r"# COUNTER: (\d+)\n")


def has_regions(graph: fx.Graph) -> bool:
    """Whether the graph has any region."""
    return any(node.target in ENTERS for node in graph.nodes)


class RegionCode(CodeGen):
    """Code generation for one graph with regions."""

    def __init__(self, graph: fx.Graph) -> None:
        super().__init__()
        self._nodes = list(graph.nodes)
        self._body_transformer = self._blocks

    def additional_globals(self) -> list[tuple[str, Any]]:
        """What the blocks call."""
        return [*super().additional_globals(), ("run_checkpointed", run_checkpointed)]

    def _blocks(self, body: list[str]) -> list[str]:
        """Lines of the function, those of regions one level deeper."""
        out: list[str] = []
        closing: list[list[str]] = []
        at: fx.Node | None = None
        for line in "".join(body).splitlines(keepends=True):
            counter = _COUNTER.fullmatch(line)
            if counter is not None:
                at = self._nodes[int(counter[1])]
                out.append(line)
                continue
            indent = "    " * len(closing)
            if at is not None and at.target in ENTERS and _assigns(line, at):
                head, end = self._begin(at)
                out += [f"{indent}{text}\n" for text in [*head.splitlines(), "    pass"]]
                closing.append(end)
            elif at is not None and at.target is leave and _assigns(line, at):
                end = closing.pop()
                out += [f"{indent}{text}\n" for text in end[:1]]
                out += [f"{indent[4:]}{text}\n" for text in end[1:]]
            elif line.strip():
                out.append(indent + line)
            else:
                out.append(line)
        assert not closing, "every region ends"
        return out

    def _begin(self, node: fx.Node) -> tuple[str, list[str]]:
        """First line of a block; its last line, and what comes after it."""
        if node.target is not enter_checkpoint:
            args = ", ".join(map(repr, node.args))
            return f"with {_CONTEXTS[node.target]}({args}):", ["pass"]
        (end,) = node.users
        start, stop = self._nodes.index(node), self._nodes.index(end)
        inside = self._nodes[start + 1 : stop]
        members = set(inside)
        needed = dict.fromkeys(a for n in inside for a in n.all_input_nodes if a not in members)
        # The model's tensors are looked up inside: the second run may find a counter written.
        given = [n for n in needed if n.op != "get_attr"]
        looked_up = [n for n in needed if n.op == "get_attr"]
        results = [n for n in inside if any(user not in members for user in n.users)]
        keys = tuple(dict.fromkeys(str(n.args[-1]) for n in inside if n.target in OPS))
        names, found = (", ".join(map(repr, nodes)) for nodes in (given, results))
        name = f"_region_{node.name}"
        call = f"{found}{',' * bool(results)} = " if results else ""
        after = [f"{call}run_checkpointed({', '.join([repr(keys), name, *map(repr, given)])})"]
        # Values that only the region needed are not kept by the caller.
        done = [repr(n) for n in given if all(user in members for user in n.users)]
        if done:
            after.append(f"{' = '.join(done)} = None")
        head = f"def {name}({names}):"
        if looked_up:
            values = ", ".join(_format_target("self", str(n.target)) for n in looked_up)
            head += f"\n    {', '.join(map(repr, looked_up))} = {values}"
        return head, [f"return ({found}{',' * bool(results)})", *after]


def _assigns(line: str, node: fx.Node) -> bool:
    """Whether ``line`` is the statement of ``node``, as against one of its neighbours."""
    return re.match(rf"{re.escape(node.name)}\b[^=]*=", line) is not None
