"""Silero VAD on analog tiles: is a 32 ms frame speech? A net that analog hardware is hard on.

python docs/examples/voice_activity.py
"""

from __future__ import annotations

from collections.abc import Collection

import pretrained
import torch
from pretrained import Row, Study
from torch import Tensor, nn

import analogc

CALIBRATION = 320
"""Frames (of 938) that ranges are chosen from, without their labels."""
FRAGILE = "conv3"
"""Its large inputs cancel: programming noise of 2 % is as large as what its output varies by."""


def listen(model: nn.Module, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probability of speech of each frame, and the states ``[frames, 128]`` before it."""
    h = c = torch.zeros(1, 128)
    found, before_h, before_c = [], [], []
    with torch.no_grad():
        for frame in frames.split(1):
            before_h.append(h)
            before_c.append(c)
            p, h, c = model(frame, h, c)
            found.append(p)
    return torch.cat(found), torch.cat(before_h), torch.cat(before_c)


def study(wanted: Collection[str] = ()) -> Study:
    """A row for the digital model and for each target (or those wanted)."""
    model = pretrained.load_silero_vad()
    frames, speech = pretrained.load_talk()
    digital, h, c = listen(model, frames)

    def row(label: str, found: Tensor) -> Row:
        heard = found > 0.5
        return label, {
            "accuracy": float((heard == speech).float().mean()),
            "recall": float(heard[speech].float().mean()),
            "false alarms": float(heard[~speech].float().mean()),
            "mean change": float((found - digital).abs().mean()),
        }

    yield row("digital", digital), None
    examples = (frames[:CALIBRATION], h[:CALIBRATION], c[:CALIBRATION])
    spared = {
        name: (f"{FRAGILE} digital", FRAGILE) for name in pretrained.hardware() if "noisy" in name
    }
    for label, target, select in pretrained.variants(wanted, spared):
        compiled = analogc.compile(
            model, examples, target=target, dynamic_shapes="batch", select=select, seed=0
        )
        yield row(label, listen(compiled, frames)[0]), compiled


TABLES = {"Silero VAD, 938 frames (74.7 % speech)": study}

if __name__ == "__main__":
    pretrained.run(TABLES, __doc__)
