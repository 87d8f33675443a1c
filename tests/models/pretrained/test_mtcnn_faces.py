"""MTCNN's R-Net and O-Net: 100 faces and 100 other pictures are told apart."""

from __future__ import annotations

from functools import partial

import mtcnn_faces
import pretrained
import pytest
from example_tables import assert_documented, measured

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("net", mtcnn_faces.SIZES)
def test_faces_are_told_from_other_pictures(net: str) -> None:
    rows = measured(partial(mtcnn_faces.study, net), *pretrained.hardware())
    assert rows["ideal"]["largest change"] < 1e-5
    for label, values in rows.items():
        assert values["accuracy"] >= (0.98 if "noisy" in label else 0.995), label
    assert_documented(rows, f"MTCNN {net}, 200 pictures", within=0.1)
