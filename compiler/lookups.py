"""How a graph's function gets the model's tensors: straight from the tables of the module tree.

Attribute access finds a parameter by way of ``nn.Module.__getattr__``, which takes 1 us each. What
left its table (pruning, a parametrisation of a compiled model) is still found as an attribute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx, nn
from torch.fx.graph import _format_target

Body = list[str]


def short_lookups(
    graph: fx.Graph, root: nn.Module, before: Callable[[Body], Body] | None = None
) -> Callable[[Body], Body]:
    """Transformer of a function body of ``graph``, which runs on ``root``.

    Args:
        graph: whose code it is.
        root: module that is the ``self`` of the function.
        before: another transformer, which goes first.
    """
    targets = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    known = {_format_target("self", path): _from_table(root, path) for path in targets}
    short = {long: found for long, found in known.items() if found is not None}

    def transform(body: Body) -> Body:
        lines = "".join(body if before is None else before(body)).splitlines()
        return [text + "\n" for line in lines for text in _lines(line, short)]

    return transform


def _lines(line: str, short: dict[str, str]) -> Iterable[str]:
    name, equals, value = line.partition(" = ")
    found = short.get(value) if equals else None
    if found is None:
        return (line,)
    space = line[: len(line) - len(line.lstrip())]
    return (
        f"{space}try:",
        f"{space}    {name.strip()} = {found}",
        f"{space}except KeyError:",
        f"{space}    {line.strip()}",
    )


def _from_table(root: nn.Module, path: str) -> str | None:
    """Expression for a parameter or buffer of ``self``; None for anything else."""
    *modules, name = path.split(".")
    at: nn.Module | None = root
    for part in modules:
        at = None if at is None else at._modules.get(part)
    if at is None:
        return None
    for table in ("_parameters", "_buffers"):
        if name in getattr(at, table):
            home = "".join(f"._modules[{part!r}]" for part in modules)
            return f"self{home}.{table}[{name!r}]"
    return None
