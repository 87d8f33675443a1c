"""Preset targets; see ``analogc.runtime.targets``."""

from .runtime.targets import (
    generic_8bit,
    generic_8bit_noisy,
    get,
    ideal,
    isaac_like,
    names,
    pcm_hermes_one_device,
    pcm_hermes_two_device,
    pcm_like,
    reram_cmo,
    reram_milo,
    reram_wan2022,
    sonos,
)

__all__ = [
    "generic_8bit",
    "generic_8bit_noisy",
    "get",
    "ideal",
    "isaac_like",
    "names",
    "pcm_hermes_one_device",
    "pcm_hermes_two_device",
    "pcm_like",
    "reram_cmo",
    "reram_milo",
    "reram_wan2022",
    "sonos",
]
