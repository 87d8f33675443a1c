"""EfficientNet-Lite0: photos get the names that they get from the digital model."""

from __future__ import annotations

import efficientnet_lite
import pytest
from example_tables import assert_documented, measured

pytestmark = pytest.mark.slow


def test_agreement_with_the_digital_model_on_photos_and_crops() -> None:
    spared = "generic-8bit, depthwise digital"
    rows = measured(efficientnet_lite.study, "ideal", "generic-8bit", spared)
    assert rows["digital"]["photos right"] == 1
    assert rows["ideal"]["same class"] == 1 and rows["ideal"]["cosine of scores"] > 1 - 1e-5
    assert rows["generic-8bit"]["photos right"] == 1
    assert rows["generic-8bit"]["same class"] >= 0.85
    assert rows["generic-8bit"]["in top 5"] >= 0.95
    assert rows[spared]["cosine of scores"] > rows["generic-8bit"]["cosine of scores"]
    (title,) = efficientnet_lite.TABLES
    assert_documented(rows, title, within=0.06)
