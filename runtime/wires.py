"""IR drop: resistance of a tile's lines.

Cells are ohmic and undriven rows are at 0 V, so the currents of a tile stay linear in its inputs:
one matrix of transfer conductances describes the tile and takes the place of the conductances when
they are programmed. A forward costs what it costs without resistance. The network is in ``nodal``.

A tile that a block fills in part is wired as that block alone: it lies at the terminals, and the
selectors of unused cells are off.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from . import solved
from .converters import is_number
from .errors import InputError
from .nodal import Line, currents, exact, first_order
from .noise import NoiseKey
from .progress import with_progress

Drive = Literal["left", "right", "both"]
Sense = Literal["bottom", "top", "both"]
Arrangement = Literal["separate", "adjacent", "shared"]
Method = Literal["auto", "exact", "first-order"]

TOLERABLE = 0.01
"""Estimated relative error of column currents beyond which ``method="auto"`` warns."""
_Tile = tuple[int, tuple[int, int], tuple[int, int]]
"""Number of the column block, its columns, its rows."""
_NOTHING = 1e-15
"""Resistance [ohm] that no current notices: 1e-19 of a cell of 100 uS."""
_BESIDE = 1e-10
"""Share of a terminal's resistance below which that of a segment would be lost in rounding."""
_TOGETHER = 1 << 17
"""Matrix entries of tiles that are solved together: many small ones, large ones by themselves."""


class WireResistanceWarning(UserWarning):
    """The first-order form of IR drop is used where it is not accurate."""


@dataclass(frozen=True, slots=True)
class Wires:
    """Resistance of a tile's lines [ohm], and how the tile is wired.

    Row 0 is the top one, column 0 the left one. The default of 0.35 ohm a cell is what the default
    IR drop of aihwkit 1.2.0 assumes (``IOParameters.ir_drop_g_ratio``).

    Cells whose input drives a selector while their current comes over another line are not
    covered: which cells are connected then depends on the input, and no one matrix describes it.

    Raises:
        InputError: a field out of its domain.
    """

    row_resistance: float = 0.35
    """Of a row, between neighbouring cells and between its terminal and the first cell."""
    col_resistance: float = 0.35
    """The same of a column."""
    source_resistance: float = 0.0
    """Of the driver at each terminal of a row."""
    sense_resistance: float = 0.0
    """Of the circuit that senses the current at each terminal of a column."""
    drive: Drive = "left"
    """At which end rows are driven; with ``both`` at both, by the same voltage."""
    sense: Sense = "bottom"
    """At which end columns are sensed, at 0 V; with ``both`` the two currents are added."""
    arrangement: Arrangement = "separate"
    """Where the devices of one weight lie. ``separate``: each in a crossbar of its own.
    ``adjacent``: side by side in one row, in columns of their own. ``shared``: on one node of one
    column, each with a row line of its own that carries the input with that device's sign, so
    that the currents of a pair cancel where they arise."""
    method: Method = "auto"
    """``exact``: all nodes of the network, solved when the tile is programmed. ``first-order``:
    right to first order in the resistances, see ``first_order_error``. ``auto``: exact up to
    ``exact_limit``, beyond it first order, with a warning if that is not accurate. Where only rows
    or only columns have resistance, all are exact and take no time."""
    exact_limit: int = 256
    """Longer side of the largest crossbar that ``auto`` solves exactly. The time grows with the
    fourth power of the side."""

    def __post_init__(self) -> None:
        for name in ("row_resistance", "col_resistance", "source_resistance", "sense_resistance"):
            value = getattr(self, name)
            if not is_number(value) or value < 0:
                raise InputError(f"Wires.{name} must be a finite number >= 0 [ohm], got {value!r}")
        kinds = {"drive": Drive, "sense": Sense, "arrangement": Arrangement, "method": Method}
        for name, kind in kinds.items():
            value = getattr(self, name)
            if value not in get_args(kind):
                raise InputError(
                    f"Wires.{name} must be one of {', '.join(get_args(kind))}, got {value!r}"
                )
        limit = self.exact_limit
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise InputError(f"Wires.exact_limit must be an int >= 0, got {limit!r}")

    @property
    def is_ideal(self) -> bool:
        """True without any resistance."""
        return self.row.is_ideal and self.col.is_ideal

    @property
    def row(self) -> Line:
        """A row line."""
        first, last = self.drive != "right", self.drive != "left"
        return _line(self.row_resistance, first, last, self.source_resistance)

    @property
    def col(self) -> Line:
        """A column line."""
        first, last = self.sense != "bottom", self.sense != "top"
        return _line(self.col_resistance, first, last, self.sense_resistance)

    def effective(
        self,
        g: Tensor,
        rows: tuple[int, ...],
        cols: tuple[int, ...],
        reference: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Transfer conductances in place of conductances.

        Args:
            g: ``[P, N, K]`` [uS]: P devices of each weight, N columns, K rows; not negative.
            rows: boundaries of the tiles along K, from 0.
            cols: boundaries of the tiles along N, from 0.
            reference: ``[P, column blocks, K]`` [uS] of a reference column, right of the others of
                each tile.

        Returns:
            As ``g`` and ``reference``. A tile with a value that is not finite has no finite one.

        Warns:
            WireResistanceWarning: see ``method``.
        """
        if self.is_ideal or g.is_meta or not g.numel():
            return g, reference
        out = torch.empty_like(g)
        beside = None if reference is None else torch.empty_like(reference)
        for part in with_progress(_parts(rows, cols), "solving for IR drop"):
            tiles = [
                g[:, n0:n1, k0:k1]
                if reference is None
                else torch.cat([g[:, n0:n1, k0:k1], reference[:, [c], k0:k1]], 1)
                for c, (n0, n1), (k0, k1) in part
            ]
            for (c, (n0, n1), (k0, k1)), tile in zip(part, self._solved(tiles), strict=True):
                out[:, n0:n1, k0:k1] = tile[:, : n1 - n0]
                if beside is not None:
                    beside[:, c, k0:k1] = tile[:, -1]
        return out, beside

    def _solved(self, tiles: list[Tensor]) -> list[Tensor]:
        """Transfer conductances of tiles ``[P, N, K]`` of one size [uS]."""

        def solve(batch: Tensor) -> Tensor:
            return self._solve(batch.double() * 1e-6) * 1e6

        quick = self.row.is_ideal or self.col.is_ideal
        if quick or not self.is_exact(*self._wired(tiles[0][None]).shape[2:]):
            return list(solve(torch.stack(tiles)))
        return solved.through(solve, tiles, self)

    def _solve(self, g: Tensor) -> Tensor:
        """Transfer conductances of tiles ``g`` ``[tiles, P, N, K]`` [S]."""
        network = self._wired(g)
        assert not bool((network < 0).any()), "no conductance is negative"
        finite = network.isfinite().flatten(1).all(1).view(-1, 1, 1, 1)
        network = torch.where(finite, network, 0.0)
        if self.is_exact(network.shape[2], network.shape[3]):
            found = exact(network, self.row, self.col)
        else:
            found = first_order(network, self.row, self.col)
            if self.method == "auto":
                self._judge(network, found)
        return self._unwired(torch.where(finite, found, torch.nan), g.shape)

    def is_exact(self, rows: int, cols: int) -> bool:
        """Whether a crossbar of this size is solved exactly."""
        if self.row.is_ideal or self.col.is_ideal:
            return True
        return self.method == "exact" or (
            self.method == "auto" and max(rows, cols) <= self.exact_limit
        )

    def _wired(self, g: Tensor) -> Tensor:
        """Tiles ``[tiles, P, N, K]`` as crossbars ``[batch, P', rows, cols]``."""
        if self.arrangement == "separate":
            return g.flatten(0, 1)[:, None].mT
        if self.arrangement == "adjacent":
            return g.permute(0, 3, 2, 1).flatten(2)[:, None]
        return g.mT

    def _unwired(self, network: Tensor, shape: torch.Size) -> Tensor:
        """The other way round."""
        tiles, planes, columns, inputs = shape
        if self.arrangement == "separate":
            return network.mT.reshape(shape)
        if self.arrangement == "adjacent":
            return network.reshape(tiles, inputs, columns, planes).permute(0, 3, 2, 1)
        return network.mT

    def _judge(self, network: Tensor, found: Tensor) -> None:
        worst = int(network.sum((1, 2, 3)).argmax())
        error = _error(network[worst], found[worst], self.row, self.col)
        if error > TOLERABLE:
            size = " x ".join(str(n) for n in network.shape[2:])
            warnings.warn(
                f"IR drop of {size} crossbars to first order is off by about {100 * error:.1f} % "
                f"of the column currents; Wires(method='exact') is right and takes longer, "
                f"smaller tiles have less of it",
                WireResistanceWarning,
                stacklevel=2,
            )


def _line(segment: float, first: bool, last: bool, terminal: float) -> Line:
    """A line, without segments that are nothing beside its terminals or any cell."""
    terminal = 0.0 if terminal < _NOTHING else terminal
    segment = 0.0 if segment < max(_NOTHING, _BESIDE * terminal) else segment
    return Line(segment, first, last, terminal)


def first_order_error(g: Tensor, wires: Wires) -> float:
    """How far the first-order form is from the exact currents of one crossbar, relative.

    Measured on a few inputs, of one sign and of both, whose exact currents are found one by one.

    Args:
        g: ``[rows, cols]`` [uS].
        wires: its lines.
    """
    network = g.double()[None] * 1e-6
    return _error(
        network, first_order(network[None], wires.row, wires.col)[0], wires.row, wires.col
    )


def _error(network: Tensor, transfer: Tensor, row: Line, col: Line) -> float:
    """Of crossbars ``[P, rows, cols]`` [S] that share their columns."""
    key = NoiseKey(0, "probe", 0)
    drawn = key.normal(torch.Size([2, *network.shape[:2]]), network.dtype, network.device)
    probes = torch.cat([torch.ones_like(drawn[:1]), drawn.abs()[:1], drawn[1:]])
    right = currents(network, row, col, probes)
    found = torch.einsum("bpk,pkn->bn", probes, transfer)
    size = torch.linalg.vector_norm(right, dim=1)
    off = torch.linalg.vector_norm(found - right, dim=1)
    return float((off / size.clamp_min(1e-300)).max())


def _parts(rows: tuple[int, ...], cols: tuple[int, ...]) -> list[list[_Tile]]:
    """The tiles: those of one size together, as many as are worth it."""
    by_size: dict[tuple[int, int], list[_Tile]] = {}
    for c, (n0, n1) in enumerate(zip(cols, cols[1:], strict=False)):
        for k0, k1 in zip(rows, rows[1:], strict=False):
            by_size.setdefault((n1 - n0, k1 - k0), []).append((c, (n0, n1), (k0, k1)))
    parts = []
    for size, found in by_size.items():
        most = max(1, _TOGETHER // min(size) ** 2)
        parts += [found[i : i + most] for i in range(0, len(found), most)]
    return parts
