"""MTCNN's R-Net and O-Net on analog tiles: face or not, on 200 pictures out of LFW.

python docs/examples/mtcnn_faces.py
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import pretrained
import torch
import torch.nn.functional as F
from pretrained import Row, Study
from torch import Tensor

import analogc

SIZES = {"R-Net": 24, "O-Net": 48}


def resized(pictures: Tensor, size: int) -> Tensor:
    """Grey pictures of 0..1 as the nets want them."""
    wanted = F.interpolate(pictures, (size, size), mode="bilinear", antialias=True)
    return (wanted.expand(-1, 3, -1, -1) * 255 - 127.5) / 128


def calibration(size: int) -> list[Tensor]:
    """Windows of photos that are none of the 200 pictures, an astronaut's face among them."""
    generator = torch.Generator().manual_seed(0)
    found = [pretrained.crop(pretrained.load_photo("astronaut"), 70, 175, 100, size)]
    for name in ("astronaut", "chelsea", "camera", "motorcycle"):
        picture = pretrained.load_photo(name)
        for a, b, c in torch.rand(32, 3, generator=generator).tolist():
            side = int(30 + 120 * a)
            top, left = int(b * (picture.shape[1] - side)), int(c * (picture.shape[2] - side))
            found.append(pretrained.crop(picture, top, left, side, size))
    grey = torch.stack(found).mean(1, keepdim=True) / 255
    return [resized(grey, size)]


def study(net: str, wanted: Collection[str] = ()) -> Study:
    """A row for the digital net and for each target (or those wanted)."""
    model = pretrained.load_face_nets()[net]
    pictures, faces = pretrained.load_faces()
    inputs = resized(pictures, SIZES[net])
    batches = calibration(SIZES[net])
    with torch.no_grad():
        digital = model(inputs)

    def row(label: str, found: Tensor) -> Row:
        return label, {
            "accuracy": float(((found > 0.5) == faces).float().mean()),
            "least sure face": float(found[faces].min()),
            "surest other": float(found[~faces].max()),
            "largest change": float((found - digital).abs().max()),
        }

    yield row("digital", digital), None
    for label, target, _ in pretrained.variants(wanted, {}):
        compiled = analogc.compile(
            model,
            (inputs[:2],),
            target=target,
            dynamic_shapes="batch",
            calibration_data=batches,
            seed=0,
        )
        with torch.no_grad():
            yield row(label, compiled(inputs)), compiled


TABLES = {f"MTCNN {net}, 200 pictures": partial(study, net) for net in SIZES}

if __name__ == "__main__":
    pretrained.run(TABLES, __doc__)
