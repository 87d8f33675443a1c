"""All benchmarks: digital torch, this compiler and other simulators on the same workloads.

    python tests/benchmarks/run.py [--threads 1] [--budget 2] [--only layers,models] [--out FILE.md]

The target is generic-8bit-noisy unless a row says otherwise. Ratios are to the digital model in
the same run: of thread CPU time with one thread, which a busy machine hardly changes, of wall time
with more, which needs a quiet one. The limits of issue 4 are printed, nothing is asserted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import time
import warnings
from pathlib import Path

SECTIONS = {
    "layers": "forward",
    "models": "forward",
    "formats": "forward",
    "reference": "forward",
    "overhead": "forward",
    "training": "training",
    "costs": "costs",
    "compiling": "compiling",
    "growth": "growth",
    "sync": "sync",
    "wires": "wires",
    "peers": "peers",
    "physics": "physics",
}
"""Each section is the function of its name in that module."""


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds a figure")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    parser.add_argument("--out", type=Path, help="markdown file to write as well")
    chosen = parser.parse_args()
    if unknown := set(chosen.only.split(",")) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    return chosen


def main() -> None:
    """Run the sections; print each table when it is done."""
    chosen = options()
    # Libraries read these when they are loaded, so nothing heavy is imported before.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(chosen.threads)
    import torch
    from rich.console import Console
    from tables import environment
    from timing import keep_memory

    keep_memory()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    console = Console()
    head = [f"{name}: {value}" for name, value in environment().items()]
    console.print(*head, sep="\n", highlight=False)
    parts = ["\n".join(f"- {line}" for line in head)]
    for section in chosen.only.split(","):
        run = getattr(importlib.import_module(SECTIONS[section]), section)
        start = time.perf_counter()
        for table in run(chosen.budget):
            taken, load = time.perf_counter() - start, os.getloadavg()[0]
            table.note = f"{table.note} Took {taken:.0f} s, load {load:.1f}.".strip()
            console.print(table)
            parts.append(table.markdown())
            if chosen.out is not None:
                chosen.out.write_text("\n\n".join(parts) + "\n")
            start = time.perf_counter()


if __name__ == "__main__":
    main()
