"""Finds and loads the native library.

ANALOGC_NATIVE=0        do not use it
ANALOGC_ISA=avx2        use no more than this: baseline, avx2, avx512, avx512vnni

On x86 without AVX2 layers run on torch operations, which are faster there, unless ANALOGC_ISA says
baseline; noise and fingerprints are the library's all the same.
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import warnings
from ctypes import POINTER, c_float, c_int32, c_int64, c_uint32, c_uint64, c_void_p
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch  # loads the OpenMP runtime that the library uses  # noqa: F401

ABI_VERSION = 5
ISAS = ("baseline", "avx2", "avx512", "avx512vnni")


class Weight(ctypes.Structure):
    """``analogc_weight`` of abi.h."""

    _fields_ = [
        ("columns", c_int64),
        ("channels", c_int64),
        ("taps", c_int64),
        ("tap_row", c_int64),
        ("groups", c_int64),
        ("blocks", c_int64),
        ("rows", c_void_p),
        ("format", c_int32),
        ("unused", c_int32),
        ("data", c_void_p),
        ("step", c_void_p),
    ]


class Layer(ctypes.Structure):
    """``analogc_layer`` of abi.h."""

    _fields_ = [
        ("weight", Weight),
        ("batch", c_int64),
        ("size", c_int64 * 3),
        ("stride", c_int64 * 3),
        ("padding", c_int64 * 3),
        ("dilation", c_int64 * 3),
        ("kernel", c_int64 * 3),
        ("out", c_int64 * 3),
        ("channels_last_in", c_int32),
        ("channels_last_out", c_int32),
        ("dac_levels", c_int32),
        ("adc_levels", c_int32),
        ("dynamic", c_int32),
        ("adc_per_column", c_int32),
        ("threads", c_int32),
        ("output_noise", c_float),
        ("x", c_void_p),
        ("alpha", c_void_p),
        ("bias", c_void_p),
        ("input_range", c_void_p),
        ("adc_range", c_void_p),
        ("y", c_void_p),
        ("mask", c_void_p),
        ("key", c_uint64),
        ("call", c_uint64),
    ]


class Library:
    """The loaded library: its functions with their types."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Load ``path``; OSError or AttributeError if it is not the library of this version."""
        self.path = Path(path)
        lib = ctypes.CDLL(os.fspath(path))
        lib.analogc_abi_version.restype = c_int32
        if (found := lib.analogc_abi_version()) != ABI_VERSION:
            raise OSError(f"{path} has ABI version {found}, not {ABI_VERSION}: build it again")
        weight, layer = POINTER(Weight), POINTER(Layer)
        self.packed_size = lib.analogc_packed_size
        self.packed_size.argtypes, self.packed_size.restype = [weight], c_int64
        self.pack = lib.analogc_pack
        self.pack.argtypes, self.pack.restype = [weight, c_void_p, c_int32], c_int32
        self.unpack = lib.analogc_unpack
        self.unpack.argtypes = [weight, c_void_p, c_void_p, c_int32]
        self.unpack.restype = c_int32
        self.unpack_rows = lib.analogc_unpack_rows
        self.unpack_rows.argtypes = [
            weight, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int32,
        ]  # fmt: skip
        self.unpack_rows.restype = c_int32
        self.call = lib.analogc_call
        pointers = [c_void_p] * 7
        self.call.argtypes = [layer, *pointers, c_uint64, c_uint64, c_int32]
        self.call.restype = c_int32
        self.normals = lib.analogc_normals
        self.normals.argtypes = [
            c_void_p, c_int64, c_int64, c_uint64, c_uint32, c_uint32, c_int32,
        ]  # fmt: skip
        self.normals.restype = None
        self.drive = lib.analogc_drive
        self.drive.argtypes = [
            c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_void_p, c_int64, c_void_p, c_int32,
            c_void_p, c_int64, c_int32,
        ]  # fmt: skip
        self.drive.restype = c_int32
        self.mask_gradient = lib.analogc_mask_gradient
        self.mask_gradient.argtypes = [c_void_p, c_void_p, c_int64, c_void_p, c_int32]
        self.mask_gradient.restype = c_int32
        self.clip_gradient = lib.analogc_clip_gradient
        self.prepare = lib.analogc_prepare
        self.prepare.argtypes = [
            weight, c_void_p, c_int32, *[c_int64] * 4, *[c_void_p] * 4, c_int32, c_int32,
            *[c_void_p] * 3, c_int32,
        ]  # fmt: skip
        self.prepare.restype = c_int32
        self.mask_blocks = lib.analogc_mask_blocks
        self.mask_blocks.argtypes = [
            c_void_p, c_void_p, c_int64, c_int64, c_void_p, c_void_p, c_int32,
        ]  # fmt: skip
        self.mask_blocks.restype = c_int64
        self.clip_gradient = lib.analogc_clip_gradient
        self.clip_gradient.argtypes = [
            c_void_p, c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64, c_void_p, c_void_p,
            c_int64, c_int32,
        ]  # fmt: skip
        self.clip_gradient.restype = c_int32
        self.add_mixed = lib.analogc_add_mixed
        self.add_mixed.argtypes = [layer, *[c_void_p] * 5, c_int64, *[c_void_p] * 3, c_int32]
        self.add_mixed.restype = c_int32
        self.shared_channels = lib.analogc_shared_channels
        self.shared_channels.argtypes = [layer, *[c_void_p] * 6, c_int32]
        self.shared_channels.restype = c_int32
        self.mask_turned = lib.analogc_mask_turned
        self.mask_turned.argtypes = [
            c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32,
        ]  # fmt: skip
        self.mask_turned.restype = c_int32
        self.drive_turned = lib.analogc_drive_turned
        self.drive_turned.argtypes = [
            c_void_p, c_int64, c_int64, c_int64, c_void_p, c_int32, c_void_p, c_int32,
        ]  # fmt: skip
        self.drive_turned.restype = c_int32
        self.clip_turned = lib.analogc_clip_turned
        self.clip_turned.argtypes = [
            c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p, c_void_p, c_int32,
        ]  # fmt: skip
        self.clip_turned.restype = c_int32
        self.hash = lib.analogc_hash
        self.hash.argtypes, self.hash.restype = [c_void_p, c_uint64], c_uint64
        self.hash_many = lib.analogc_hash_many
        self.hash_many.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int32]
        self.hash_many.restype = None
        self._isa_use = lib.analogc_isa_use
        self._isa_use.argtypes, self._isa_use.restype = [c_int32], c_int32
        self._supported = lib.analogc_isa_supported
        self._supported.argtypes, self._supported.restype = [], c_int32

    @property
    def runs_layers(self) -> bool:
        """False where the layer kernels are slower than torch operations."""
        asked = os.environ.get("ANALOGC_ISA") == "baseline"
        return asked or self.isa != "baseline" or platform.machine() not in ("x86_64", "AMD64")

    @property
    def isas(self) -> tuple[str, ...]:
        """Instruction sets that this machine and the library have, best last."""
        return ISAS[: self._supported() + 1]

    @property
    def isa(self) -> str:
        """The one in use. All give the same bits."""
        return ISAS[self._isa_use(-1)]

    @isa.setter
    def isa(self, name: str) -> None:
        if name not in self.isas:
            raise ValueError(f"no instruction set {name!r} here: {', '.join(self.isas)}")
        self._isa_use(ISAS.index(name))


def find() -> Path | None:
    """File of the library beside this module, or None if it was not built."""
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_kernels{suffix}")
        if path.is_file():
            return path
    return None


@functools.cache
def library() -> Library | None:
    """The library, or None (with one warning) if it is missing or was switched off."""
    if os.environ.get("ANALOGC_NATIVE") == "0":
        return None
    path = find()
    if path is None:
        _warn("was not built (it needs a C++17 compiler when analogc is installed)")
        return None
    try:
        found = Library(path)
        if wanted := os.environ.get("ANALOGC_ISA"):
            found.isa = wanted
    except (OSError, AttributeError, ValueError) as err:
        _warn(f"cannot be used: {err}")
        return None
    return found


def _warn(reason: str) -> None:
    warnings.warn(
        f"analogc: the native CPU library {reason}; layers run on torch operations, several times "
        "slower. ANALOGC_NATIVE=0 silences this.",
        RuntimeWarning,
        stacklevel=3,
    )
