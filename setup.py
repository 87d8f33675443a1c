"""Build of the native CPU kernels; everything else is in pyproject.toml.

The library is optional: without a compiler the package installs without it and runs on torch
operations. It is loaded by ctypes, so it knows neither Python nor torch.
"""

import sys
from glob import glob

from setuptools import Extension, setup

# No -march: each file of an instruction set names it itself and is chosen at run time. The
# arithmetic is IEEE to the bit; the two -fno only say that nobody looks at errno or at traps.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
]
# Compiled with OpenMP but not linked to a runtime: the symbols are found in the one that torch has
# loaded, so there is one thread pool.
OPENMP = ["-fopenmp"] if sys.platform == "linux" else []

setup(
    ext_modules=[
        Extension(
            "analogc.runtime.native._kernels",
            sources=sorted(glob("analogc/runtime/native/*.cpp")),
            depends=sorted(glob("analogc/runtime/native/*.h")),
            language="c++",
            extra_compile_args=FLAGS + OPENMP,
            optional=True,
        )
    ]
)
