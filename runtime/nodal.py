"""Currents of a crossbar of ohmic cells whose lines have resistance.

Such a network is linear: its column currents are ``I = V^T T`` with one matrix ``T [rows, cols]``
of transfer conductances: ``T[k, n]`` is the current out of column ``n`` for 1 V on row ``k``, all
other ends at 0 V. Without line resistance ``T`` is the conductances themselves.

``exact`` solves Kirchhoff's equations of all ``2 * rows * cols`` nodes by block elimination, which
follows the ladder: at each position along a line the network beyond it is one admittance matrix.
``first_order`` is right to first order in the resistances, and ``currents`` solves the same
equations for single inputs by conjugate gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its segments, and the terminals at its ends."""

    segment: float
    """Resistance [ohm] between neighbouring cells, and between a terminal and the first cell."""
    first: bool = True
    """Whether there is a terminal at the first cell."""
    last: bool = False
    """Whether there is a terminal at the last cell."""
    terminal: float = 0.0
    """Resistance [ohm] of a terminal, in series with its segment."""

    @property
    def end(self) -> float:
        """Resistance between a terminal and the nearest cell."""
        return self.segment + self.terminal

    @property
    def is_ideal(self) -> bool:
        """True without any resistance."""
        return self.end == 0


def exact(g: Tensor, row: Line, col: Line) -> Tensor:
    """Transfer conductances by elimination, ``[batch, P, rows, cols]`` as ``g`` is.

    Args:
        g: conductances [S] ``[batch, P, rows, cols]``, not negative; the ``P`` cells of one place
            have a row line each and share a node of the column. With ``P`` 1: a plain crossbar.
        row: the row lines, along the columns; driven.
        col: the column lines, along the rows; sensed at 0 V.

    The cost is about ``4 a^3 b`` operations for the sides ``a <= b`` (``a`` the columns if P > 1).
    """
    if row.is_ideal or col.is_ideal:
        return first_order(g, row, col)
    if g.shape[1] == 1 and g.shape[2] < g.shape[3]:
        # By reciprocity drive and sense may be exchanged: the matrices get the shorter side.
        return exact(g.mT, col, row).mT
    if not (col.first and col.last):
        return _sweep(g, row, col, 0.0)
    # One terminal at a time, the other at 0 V.
    first = _sweep(g, row, replace(col, last=False), 1 / col.end)
    return first + _sweep(g, row, replace(col, first=False), 1 / col.end)


def _sweep(g: Tensor, row: Line, col: Line, beyond: float) -> Tensor:
    """Transfer conductances to the one terminal of the columns.

    Args:
        g: as in ``exact``.
        row: as in ``exact``.
        col: as in ``exact``.
        beyond: admittance to 0 V at the columns' other end.
    """
    count = g.shape[2]
    order = range(count - 1, -1, -1) if col.first else range(count)
    chains = _Chains(g, row)
    out = torch.zeros_like(g)
    gathered: Tensor | float = 0.0
    # How the voltages one segment nearer to the terminal reach a position, from the last one on.
    reach: Tensor | None = None
    for step, k in enumerate(order):
        out[:, :, k] = chains.transfer[:, :, k]
        resistance = col.end if step == count - 1 else col.segment
        load = chains.admittance(k)
        if col.segment == 0:
            gathered = gathered + load
            load = gathered.clone()
        if resistance > 0:
            # 1 + resistance * (load + that of the network beyond, which is (1 - reach) / segment).
            matrix = load.mul_(resistance)
            own = 1 + resistance * beyond
            if reach is not None:
                own = 1 + resistance / col.segment
                matrix.sub_(reach, alpha=resistance / col.segment)
            matrix.diagonal(dim1=-2, dim2=-1).add_(own)
            reach = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
            done = slice(k, None) if col.first else slice(0, k + 1)
            out[:, :, done] = (out[:, :, done].flatten(1, 2) @ reach).view_as(out[:, :, done])
    return out


class _Chains:
    """Row lines on their own: each a chain of nodes, with a cell from each node to a column.

    The inverse of a chain's nodal matrix is known entry by entry: its diagonal from the admittances
    to both sides, and off it by the voltage ratios along the chain. No difference is taken, so
    every entry is exact to rounding for any resistance.
    """

    def __init__(self, g: Tensor, line: Line) -> None:
        self.g = g
        self.sums = g.sum(1)
        if line.is_ideal:
            self.factor = torch.ones_like(g)
            self.transfer = g
            return
        left = _admittances(g, line.segment, 1 / line.end if line.first else 0.0)
        right = _admittances(g.flip(-1), line.segment, 1 / line.end if line.last else 0.0).flip(-1)
        impedance = 1 / (left + g + right)
        self.scaled = g * impedance
        zero = torch.zeros_like(g[..., :1])
        # Logarithm of the voltage that reaches a node from the first one, and from the last one.
        down = -torch.log1p(line.segment * (right + g)[..., 1:]).cumsum(-1)
        self.down = torch.cat([zero, down], -1)
        up = -torch.log1p(line.segment * (left + g)[..., :-1]).flip(-1).cumsum(-1).flip(-1)
        self.up = torch.cat([up, zero], -1)
        seen = torch.zeros_like(g)
        if line.first:
            seen += (self.up[..., :1] - self.up).exp_().div_(line.end)
        if line.last:
            seen += (self.down[..., -1:] - self.down).exp_().div_(line.end)
        # Share of a cell's current with ideal lines that reaches the terminals.
        self.factor = impedance * seen
        self.transfer = g * self.factor

    def admittance(self, k: int) -> Tensor:
        """Lower half of the matrix ``[batch, cols, cols]`` of all chains at position ``k``."""
        down = self.down[:, :, k]
        half = (down[..., :, None] - down[..., None, :]).exp_().tril_()
        half.mul_(self.g[:, :, k, :, None]).mul_(self.scaled[:, :, k, None, :])
        half = half[:, 0] if half.shape[1] == 1 else half.sum(1)
        half.neg_().diagonal(dim1=-2, dim2=-1).add_(self.sums[:, k])
        return half


def _admittances(g: Tensor, segment: float, end: float) -> Tensor:
    """To the left of each node, its own cell left out; ``end`` is that of the first node."""
    out = torch.empty_like(g)
    seen: Tensor | float = end
    for i in range(g.shape[-1]):
        out[..., i] = seen
        total = out[..., i] + g[..., i]
        seen = total / (1 + segment * total)
    return out


def first_order(g: Tensor, row: Line, col: Line) -> Tensor:
    """Transfer conductances to first order in the resistances; operands and result of ``exact``.

    Each cell sees its row with ideal columns and its column with ideal rows, in series. That is
    exact if either kind of line is ideal.
    """
    across = _Chains(g, row).factor
    down = _Chains(g.sum(1, keepdim=True).mT, col).factor.mT
    if row.is_ideal or col.is_ideal:
        return g * (down if row.is_ideal else across)
    return g / (1 / across + 1 / down - 1)


def _shared(count: int, line: Line, like: Tensor) -> Tensor:
    """Resistance that each pair of cells of an unloaded line has in common ``[count, count]``."""
    place = torch.arange(count, dtype=like.dtype, device=like.device) * line.segment + line.end
    if not line.first:
        place = place.flip(0)
    low = torch.minimum(place[:, None], place[None, :])
    if not (line.first and line.last):
        return low
    whole = place[-1] + line.end
    high = torch.maximum(place[:, None], place[None, :])
    return low * (whole - high) / whole if float(whole) > 0 else low


def currents(
    g: Tensor, row: Line, col: Line, inputs: Tensor, tolerance: float = 1e-9, most: int = 500
) -> Tensor:
    """Column currents [A] ``[batch, cols]`` for row voltages ``inputs``, each solved by itself.

    Conjugate gradients on the currents of all cells, whose equations are ``R i + E i = V``: ``R``
    the cells' own resistances, ``E`` the resistance that cells share on their lines. An iteration
    is two small matrix products; it takes few where the drops are small.

    Args:
        g: ``[P, rows, cols]`` [S], as in ``exact``.
        row: as in ``exact``.
        col: as in ``exact``.
        inputs: ``[batch, P, rows]`` [V].
        tolerance: of the residual, relative.
        most: iterations at most.
    """
    across, down = _shared(g.shape[2], row, g), _shared(g.shape[1], col, g)
    root = g.sqrt()

    def apply(x: Tensor) -> Tensor:
        # Scaled by the root of the conductances, which may be zero: 1 + G^1/2 E G^1/2.
        i = root * x
        return x + root * (i @ across + down @ i.sum(1, keepdim=True))

    found = _conjugate_gradients(apply, inputs[..., None] * root, tolerance, most)
    return (root * found).sum((1, 2))


def _conjugate_gradients(
    apply: Callable[[Tensor], Tensor], right: Tensor, tolerance: float, most: int
) -> Tensor:
    x = torch.zeros_like(right)
    residual = right.clone()
    direction = residual
    size = residual.square().sum((1, 2, 3), keepdim=True)
    stop = size * tolerance**2
    for _ in range(most):
        if bool((size <= stop).all()):
            break
        moved = apply(direction)
        length = size / (direction * moved).sum((1, 2, 3), keepdim=True).clamp_min(1e-300)
        x = x + length * direction
        residual = residual - length * moved
        new = residual.square().sum((1, 2, 3), keepdim=True)
        direction = residual + new / size.clamp_min(1e-300) * direction
        size = new
    return x
