"""Check that a wheel holds every module of the source tree, and nothing outside ``analogc/``.

It must hold the native library too: CI has a compiler.
"""

import sys
import zipfile
from pathlib import Path


def main(wheel: str) -> int:
    """Return 0 if the wheel is complete."""
    root = Path(__file__).resolve().parent.parent
    wanted = {"analogc/py.typed"}
    for folder in ("analogc", "analogc/interop"):
        wanted |= {f"{folder}/{p.name}" for p in (root / folder).glob("*.py")}
    for room in ("compiler", "passes", "runtime"):
        for kind in ("*.py", "html/*.css", "html/*.js", "*.irdl.mlir", "*.cu", "native/*.h"):
            wanted |= {f"analogc/{p.relative_to(root)}" for p in (root / room).rglob(kind)}
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    library = "analogc/runtime/native/_kernels."
    if not any(name.startswith(library) and name.endswith(".so") for name in held):
        wanted.add(f"{library}*.so")
    missing, extra = sorted(wanted - held), sorted(n for n in held if not n.startswith("analogc/"))
    for name in missing:
        print(f"missing from the wheel: {name}", file=sys.stderr)
    for name in extra:
        print(f"does not belong in the wheel: {name}", file=sys.stderr)
    print(f"{wheel}: {len(held)} files, {len(wanted)} of them required")
    return 1 if missing or extra else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
