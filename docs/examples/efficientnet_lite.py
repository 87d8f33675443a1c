"""EfficientNet-Lite0 on analog tiles: how often does it name a picture as the digital one does?

python docs/examples/efficientnet_lite.py
"""

from __future__ import annotations

from collections.abc import Collection

import pretrained
import torch
from pretrained import Row, Study
from torch import Tensor, nn

import analogc
from analogc import LayerInfo

PHOTOS = {
    "chelsea": (281, 282, 285),
    "coffee": (967,),
    "rocket": (657, 744),
    "camera": (872,),
    "motorcycle": (665, 670),
    "china": (698, 442),
    "flower": (985,),
}
"""Photos, and the ImageNet classes that describe them."""
CROPS = 10
"""Of each photo."""


def crops(name: str, number: int, seed: int) -> Tensor:
    """Random squares of a photo, 60 to 100 % of its height, every other one mirrored."""
    picture = pretrained.load_photo(name)
    height, width = picture.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    found = []
    for i in range(number):
        a, b, c = torch.rand(3, generator=generator).tolist()
        side = int(min(height, width) * (0.6 + 0.4 * a))
        part = pretrained.crop(
            picture, int(b * (height - side)), int(c * (width - side)), side, 224
        )
        found.append(part.flip(-1) if i % 2 else part)
    return (torch.stack(found) - 127) / 128


def centres() -> Tensor:
    """The middle of each photo, 224 of 256 parts."""
    found = []
    for name in PHOTOS:
        picture = pretrained.load_photo(name)
        height, width = picture.shape[1:]
        side = min(height, width) * 224 // 256
        found.append(pretrained.crop(picture, (height - side) // 2, (width - side) // 2, side, 224))
    return (torch.stack(found) - 127) / 128


def calibration() -> list[Tensor]:
    """Other crops of the photos and of an astronaut's, which is not among them."""
    return [crops(name, 4, 1) for name in (*PHOTOS, "astronaut")]


def scores(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Of the middles of the photos, and of all crops."""
    with torch.no_grad():
        return model(centres()), torch.cat([model(crops(name, CROPS, 0)) for name in PHOTOS])


def not_depthwise(layer: LayerInfo) -> bool:
    """A depthwise convolution puts 9 weights on a tile of their own."""
    return layer.groups == 1


def study(wanted: Collection[str] = ()) -> Study:
    """A row for the digital model and for each target (or those wanted)."""
    model = pretrained.load_efficientnet_lite0()
    batches = calibration()
    digital = scores(model)
    usual = digital[1].argmax(1)
    labels = list(PHOTOS.values())

    def row(label: str, found: tuple[Tensor, Tensor]) -> Row:
        right = [int(best) in ok for best, ok in zip(found[0].argmax(1), labels, strict=True)]
        top5 = (found[1].topk(5).indices == usual.unsqueeze(1)).any(1)
        return label, {
            "photos right": sum(right) / len(right),
            "same class": float((found[1].argmax(1) == usual).float().mean()),
            "in top 5": float(top5.float().mean()),
            "cosine of scores": float(torch.cosine_similarity(found[1], digital[1]).mean()),
        }

    yield row("digital", digital), None
    spared = {
        name: ("depthwise digital", not_depthwise)
        for name in pretrained.hardware()
        if name != "ideal"
    }
    for label, target, select in pretrained.variants(wanted, spared):
        compiled = analogc.compile(
            model,
            (batches[0][:2],),
            target=target,
            dynamic_shapes="batch",
            select=select,
            calibration_data=batches,
            seed=0,
        )
        yield row(label, scores(compiled)), compiled


TABLES = {f"EfficientNet-Lite0, {len(PHOTOS)} photos, {CROPS} crops of each": study}

if __name__ == "__main__":
    pretrained.run(TABLES, __doc__)
