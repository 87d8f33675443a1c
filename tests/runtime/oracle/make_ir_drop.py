"""Writes ir_drop.json: currents of crossbars with line resistance by two other simulators.

    python make_ir_drop.py        with badcrossbar 1.1.0 and CrossSim 3.2.0 installed

badcrossbar is installed by ``pip install --no-deps badcrossbar==1.1.0`` next to numpy, scipy,
pathvalidate and sigfig (its dependency pycairo is for plots), CrossSim from its repository.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
Array = NDArray[np.float64]

PLAIN = [(16, 16, 1.0, 1.0), (64, 64, 0.35, 0.7), (24, 9, 5.0, 0.5)]
"""Rows, columns, resistance of a row and of a column for each cell [ohm]."""
PAIRS = [(16, 16, 1.0, 0.5, 20.0), (40, 12, 0.35, 0.35, 0.0)]
"""The same, and the resistance of a column's terminal [ohm]."""


def crossbar(rows: int, cols: int, seed: int) -> tuple[Array, Array]:
    """Conductances [uS] of a random crossbar and three input vectors [V]."""
    rng = np.random.default_rng(seed)
    return 0.1 + 25 * rng.random((rows, cols)), rng.standard_normal((3, rows))


def by_badcrossbar() -> list[list[list[float]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        import badcrossbar
    logging.disable(logging.CRITICAL)
    out = []
    for seed, (rows, cols, row, col) in enumerate(PLAIN):
        g, inputs = crossbar(rows, cols, seed)
        options = {"r_i_word_line": row, "r_i_bit_line": col, "all_currents": False}
        solved = badcrossbar.compute(inputs.T, 1e6 / g, node_voltages=False, **options)
        out.append((1e6 * solved.currents.output).tolist())
    return out


def by_crosssim() -> list[list[list[float]]]:
    """Pairs whose cells meet in one column, at a tolerance of 1e-12 V."""
    from simulator.backend import ComputeBackend
    from simulator.circuits.array.Interleaved_InputSource import InterleavedInputSourceArray
    from simulator.parameters.core_parameters import CoreStyle

    ComputeBackend(use_gpu=False)
    out = []
    for seed, (rows, cols, row, col, terminal) in enumerate(PAIRS):
        plus, inputs = crossbar(rows, cols, 100 + seed)
        minus, _ = crossbar(rows, cols, 200 + seed)
        lines = SimpleNamespace(
            Rp_row_norm=row * 1e-6, Rp_col_norm=col * 1e-6,
            Rp_row_terminal_norm=0.0, Rp_col_terminal_norm=terminal * 1e-6,
        )  # fmt: skip
        xbar = SimpleNamespace(
            array=SimpleNamespace(parasitics=lines),
            device=SimpleNamespace(nonlinear_IV=SimpleNamespace(enable=False)),
        )
        simulation = SimpleNamespace(
            fast_matmul=True, Niters_max_parasitics=100000, Verr_th_mvm=1e-12,
            hide_convergence_msg=True, Verr_matmul_criterion="max_max", relaxation_gamma=0.9,
        )  # fmt: skip
        core = SimpleNamespace(
            style=CoreStyle.BALANCED, balanced=SimpleNamespace(interleaved_posneg=True)
        )
        params = SimpleNamespace(xbar=xbar, simulation=simulation, core=core)
        array: Any = InterleavedInputSourceArray(params)
        found = [
            array.iterative_solve(plus.T.copy(), vector, matrix_neg=minus.T.copy())
            for vector in inputs
        ]
        out.append(np.stack(found).tolist())
    return out


def main() -> None:
    path = HERE / "ir_drop.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    for name, package, make in (
        ("badcrossbar", "badcrossbar", by_badcrossbar),
        ("CrossSim", "CrossSim", by_crosssim),
    ):
        try:
            version = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        stored[name] = {"version": version, "currents": make()}
    path.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
