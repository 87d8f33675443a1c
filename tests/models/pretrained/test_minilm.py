"""all-MiniLM-L6-v2: sentences find their paraphrases on ideal and on 8-bit tiles."""

from __future__ import annotations

import minilm
import pytest
from example_tables import assert_documented, measured

pytestmark = pytest.mark.slow


def test_paraphrases_and_closeness_to_the_digital_model() -> None:
    per_vector = "generic-8bit, DAC range per vector"
    rows = measured(minilm.study, "ideal", "generic-8bit", per_vector)
    assert rows["digital"]["R@1"] == 1
    assert rows["ideal"]["R@1"] == 1 and rows["ideal"]["worst cosine"] > 1 - 1e-5
    assert rows["generic-8bit"]["R@1"] == 1
    assert rows[per_vector]["R@1"] == 1
    assert rows[per_vector]["cosine to digital"] >= 0.99
    assert rows[per_vector]["worst cosine"] > rows["generic-8bit"]["worst cosine"]
    (title,) = minilm.TABLES
    assert_documented(rows, title, within=0.01)
