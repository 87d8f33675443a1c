"""How a weight lies on tiles: the record that passes write and everything else reads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from .errors import FormatError


@dataclass(frozen=True, slots=True)
class TileMapping:
    """Placement of one analog node's weight, of groups · rows · columns blocks.

    ``node.meta["analogc"]`` of every analog node holds one. Nodes that share a weight share an
    ``array`` and its tile ids.
    """

    layer: str
    """Name of this use of the weight; unique in the graph."""
    array: str
    """Name of the tile array that holds the weight; shared by all uses of one weight."""
    op: str
    """``linear``, ``conv1d``, ``conv2d`` or ``conv3d``."""
    out_features: int
    """N: columns of one group's matrix."""
    in_features: int
    """K: rows of one group's matrix (conv: in channels / groups · kernel volume)."""
    groups: int
    row_bounds: tuple[int, ...]
    """Boundaries of the row blocks over K."""
    col_bounds: tuple[int, ...]
    """Boundaries of the column blocks over N, in weights."""
    first_tile: int
    """Id of the first tile; the others follow, group by group, row block by row block."""
    tile_rows: int
    tile_cols: int
    columns_per_weight: int
    weight_shape: tuple[int, ...]
    macs: int
    """Multiply-accumulates of one call at the example shape."""
    module: str = ""
    """Path of the module whose forward made the call."""
    source: str = ""
    """Name of the captured node that it was rewritten from."""

    @property
    def grid(self) -> tuple[int, int]:
        """Row blocks and column blocks of one group."""
        return len(self.row_bounds) - 1, len(self.col_bounds) - 1

    @property
    def all_col_bounds(self) -> tuple[int, ...]:
        """Boundaries of the column blocks over the columns of all groups."""
        n = self.out_features
        return (0, *(g * n + b for g in range(self.groups) for b in self.col_bounds[1:]))

    @property
    def tiles(self) -> int:
        """Number of tiles, all groups."""
        rows, cols = self.grid
        return self.groups * rows * cols

    @property
    def tile_ids(self) -> range:
        """Ids of the tiles."""
        return range(self.first_tile, self.first_tile + self.tiles)

    @property
    def utilisation(self) -> float:
        """Share of the tiles' cells that hold a weight, 0..1."""
        cells = self.groups * self.out_features * self.in_features * self.columns_per_weight
        return cells / (self.tiles * self.tile_rows * self.tile_cols)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> TileMapping:
        """Mapping from plain values; FormatError if they are not one."""
        if not isinstance(data, dict):
            raise FormatError("a tile mapping must be a JSON object")
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in data.items()
        }
        for f in dataclasses.fields(cls):
            value = fields.get(f.name, f.default)
            good = {
                "str": isinstance(value, str),
                "int": isinstance(value, int),
                "tuple[int, ...]": isinstance(value, tuple)
                and all(isinstance(item, int) for item in value),
            }[str(f.type)]
            if not good:
                raise FormatError(f"tile mapping: bad field {f.name!r}")
        try:
            return cls(**fields)
        except TypeError as err:
            raise FormatError(f"tile mapping: {err}") from None


@dataclass(frozen=True, slots=True)
class Digital:
    """Why a compute node stays digital; ``node.meta["analogc"]`` of such a node holds one."""

    rule: str
    """``rule`` (it has no stationary weight), ``choice`` (the user's), or ``unsupported``."""
    reason: str
    macs: int = 0
    module: str = ""
