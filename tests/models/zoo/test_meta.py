"""Language models of full size on the meta device."""

from __future__ import annotations

import importlib
import resource
from time import perf_counter
from typing import Any

import pytest
import torch

import analogc

from .shim import need

pytestmark = pytest.mark.zoo


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    need("transformers")


@pytest.mark.parametrize(
    ("config", "model", "billions"),
    [("LlamaConfig", "LlamaForCausalLM", 6.7), ("MixtralConfig", "MixtralForCausalLM", 46)],
)
def test_full_size_compiles_on_meta(config: str, model: str, billions: float) -> None:
    transformers: Any = importlib.import_module("transformers")
    settings = getattr(transformers, config)()
    with torch.device("meta"):
        net = getattr(transformers, model)(settings).eval()
        tokens = torch.zeros(1, 128, dtype=torch.long)
    assert sum(p.numel() for p in net.parameters()) > billions * 1e9
    start = perf_counter()
    compiled = analogc.compile(net, (), {"input_ids": tokens, "use_cache": False})
    seconds = perf_counter() - start
    text = "\n".join(map(str, (compiled, compiled.tiles, compiled.coverage)))
    assert "model.layers.31.self_attn" in text
    assert seconds < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # KiB
    assert compiled(input_ids=tokens, use_cache=False).logits.is_meta
    if config == "LlamaConfig":
        assert compiled.coverage.unsupported == ()
        assert len(compiled.tiles) == 32 * 7 + 1
