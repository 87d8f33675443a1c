"""The picture half of a CompiledModel: pages, graph text, and files for other viewers."""

from __future__ import annotations

from pathlib import Path

from .inspected import Inspected


class Pictured(Inspected):
    """Draws itself. Each method also writes a file if it is given a path."""

    def to_html(self, path: str | Path | None = None) -> str:
        """Interactive page, one file that loads nothing: graph, passes, tiles, distributions.

        The same model gives the same text. Weights that are sealed or on the meta device have no
        distribution on it.
        """
        from .picture.explorer import explorer

        return _written(explorer(self), path)

    def to_dot(self, path: str | Path | None = None) -> str:
        """DOT text for Graphviz, clustered by module; analogc itself needs no Graphviz."""
        from .picture.dot import to_dot

        return _written(to_dot(self.graphs), path)

    def to_model_explorer(self, path: str | Path | None = None) -> str:
        """JSON text that Google's Model Explorer opens: a graph collection, grouped by module."""
        from .picture.model_explorer import to_json

        return _written(to_json(self), path)

    def _repr_html_(self) -> str:
        from .picture.page import fragment

        return fragment(self)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8", newline="\n")
    return text
