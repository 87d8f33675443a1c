"""The content of tiles as named matrices, for files."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .errors import FormatError
from .noise import NoiseKey
from .programming import State
from .reference import flat_weight
from .spec import LayerSpec
from .tiles import FIXED, Programmed, hold, join


def flat_parts(held: Programmed, shape: torch.Size, spec: LayerSpec) -> dict[str, Tensor]:
    """All that ``held`` holds, by name.

    Args:
        held: content of the tiles of a weight.
        shape: of the weight.
        spec: settings of the layer.
    """
    parts = {"scale": held.scale}
    if held.slices is None:
        parts["written"] = flat_weight(held, shape, spec)
    for name, blocks in (("slice", held.slices), ("variance", held.read_variance)):
        for s, part in enumerate(blocks or ()):
            parts[f"{name}{s}"] = join(part, shape, spec)
    if held.gain is not None:
        parts["gain"] = held.gain
    return parts


def from_parts(
    parts: Mapping[str, Tensor],
    shape: torch.Size,
    spec: LayerSpec,
    groups: int,
    key: NoiseKey,
    seconds: float,
    significances: tuple[float, ...] = (1.0,),
    chip: NoiseKey | None = None,
) -> Programmed:
    """What ``flat_parts`` was made from.

    Raises:
        FormatError: a part is missing, too many, or of another shape.
    """
    count = len(significances)
    slices = ["written"] if significances == (1.0,) else [f"slice{s}" for s in range(count)]
    variances = [f"variance{s}" for s in range(count)] if spec.device.reads_noisily else []
    flat = torch.Size([shape[0], shape[1:].numel()])
    wanted = {**dict.fromkeys([*slices, *variances], flat), "scale": shape[:1]}
    if "gain" in parts:
        wanted["gain"] = shape[:1]
    if {name: part.shape for name, part in parts.items()} != wanted:
        raise FormatError("the content of tiles does not fit their layer")
    variance = tuple(parts[name] for name in variances) or None
    state = State(tuple(parts[name] for name in slices), significances, variance)
    held = hold(state, parts["scale"], shape, spec, groups, key, seconds, chip or FIXED)
    held.gain = parts.get("gain")
    return held
