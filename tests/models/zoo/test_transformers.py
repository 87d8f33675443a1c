"""transformers' model families, small and with random weights."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import analogc

from .checks import check_model, randomise
from .shim import need

pytestmark = [
    pytest.mark.zoo,
    # Few tokens, many experts: some get none.
    pytest.mark.filterwarnings("ignore:calibration data is zero:UserWarning"),
]

VOCABULARY = 100
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**ENCODER, **SPECIAL, "num_key_value_heads": 2, "head_dim": 8}
GPT = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, **SPECIAL,
}  # fmt: skip
BOTH = {
    "vocab_size": VOCABULARY, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "decoder_start_token_id": 1, **SPECIAL,
}  # fmt: skip
VISION = {
    "image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4,
}  # fmt: skip
SPEECH = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "conv_dim": (16, 16), "conv_kernel": (8, 4), "conv_stride": (4, 4),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "vocab_size": 30,
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
    "num_heads": 4, "decoder_start_token_id": 0,
}  # fmt: skip


def tokens(rows: int = 2, length: int = 10) -> Tensor:
    return torch.randint(3, VOCABULARY, (rows, length))


def text() -> dict[str, Tensor]:
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def ids() -> dict[str, Tensor]:
    return {"input_ids": tokens()}


def pair() -> dict[str, Tensor]:
    return {**text(), "decoder_input_ids": tokens(length=6)}


def image() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


def wave() -> dict[str, Tensor]:
    return {"input_values": torch.randn(2, 800)}


def whisper() -> dict[str, Tensor]:
    return {
        "input_features": torch.randn(2, 16, 40),
        "decoder_input_ids": tokens(length=6),
    }


def caption() -> dict[str, Tensor]:
    return {**text(), **image()}


Family = tuple[str, str, dict[str, Any], Callable[[], dict[str, Tensor]]]
FAMILIES: list[Family] = [
    ("BertConfig", "BertForMaskedLM", ENCODER, text),
    ("RobertaConfig", "RobertaForSequenceClassification", ENCODER, text),
    ("DebertaV2Config", "DebertaV2ForTokenClassification", {
        **ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
    }, text),
    ("DistilBertConfig", "DistilBertForMaskedLM", {
        "vocab_size": VOCABULARY, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4,
        "max_position_embeddings": 64,
    }, text),
    ("AlbertConfig", "AlbertForMaskedLM", {**ENCODER, "embedding_size": 16}, text),
    ("ElectraConfig", "ElectraForSequenceClassification", {
        **ENCODER, "embedding_size": 16,
    }, text),
    ("MPNetConfig", "MPNetModel", ENCODER, text),
    ("GPT2Config", "GPT2LMHeadModel", GPT, text),
    ("OPTConfig", "OPTForCausalLM", {
        **ENCODER, **SPECIAL, "ffn_dim": 64, "word_embed_proj_dim": 32,
    }, text),
    ("BloomConfig", "BloomForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "n_layer": 2, "n_head": 4, **SPECIAL,
    }, text),
    ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**ENCODER, **SPECIAL}, ids),
    ("LlamaConfig", "LlamaForCausalLM", DECODER, text),
    ("MistralConfig", "MistralForCausalLM", {**DECODER, "sliding_window": 6}, ids),
    ("Qwen3Config", "Qwen3ForCausalLM", DECODER, ids),
    ("Gemma2Config", "Gemma2ForCausalLM", {**DECODER, "sliding_window": 6}, ids),
    ("MixtralConfig", "MixtralForCausalLM", {**DECODER, "num_local_experts": 4}, ids),
    ("Qwen3MoeConfig", "Qwen3MoeForCausalLM", {
        **DECODER, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    }, ids),
    ("GptOssConfig", "GptOssForCausalLM", {
        **DECODER, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }, ids),
    ("MambaConfig", "MambaForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
        **SPECIAL,
    }, ids),
    ("T5Config", "T5ForConditionalGeneration", T5, pair),
    ("BartConfig", "BartForConditionalGeneration", BOTH, pair),
    ("WhisperConfig", "WhisperForConditionalGeneration", {
        **BOTH, "num_mel_bins": 16, "max_source_positions": 20, "max_target_positions": 32,
    }, whisper),
    ("Wav2Vec2Config", "Wav2Vec2ForCTC", SPEECH, wave),
    ("HubertConfig", "HubertForCTC", SPEECH, wave),
    ("ViTConfig", "ViTForImageClassification", VISION, image),
    ("BeitConfig", "BeitForImageClassification", VISION, image),
    ("Dinov2Config", "Dinov2Model", VISION, image),
    ("SwinConfig", "SwinForImageClassification", {
        "image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
        "window_size": 4,
    }, image),
    ("SegformerConfig", "SegformerForSemanticSegmentation", {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [16, 32],
        "num_attention_heads": [1, 2], "patch_sizes": [7, 3], "strides": [4, 2],
        "mlp_ratios": [2, 2], "decoder_hidden_size": 32,
    }, image),
    ("ConvNextConfig", "ConvNextForImageClassification", {
        "hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2, "image_size": 32,
    }, image),
    ("ResNetConfig", "ResNetForImageClassification", {
        "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
    }, image),
    ("CLIPConfig", "CLIPModel", {
        "text_config": {**ENCODER, **SPECIAL}, "vision_config": VISION, "projection_dim": 16,
    }, caption),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def installed() -> None:
    need("transformers")
    importlib.import_module("transformers").logging.set_verbosity_error()


def build(config: str, model: str, options: dict[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")
    made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return randomise(made).eval()


@pytest.mark.parametrize("family", FAMILIES, ids=[family[1] for family in FAMILIES])
def test_families(family: Family) -> None:
    config, model, options, inputs = family
    check_model(build(config, model, options), (), inputs())


# -- generation -----------------------------------------------------------------------------------

GENERATORS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", "GPT2LMHeadModel", GPT),
    "llama": ("LlamaConfig", "LlamaForCausalLM", DECODER),
    "sliding": ("MistralConfig", "MistralForCausalLM", {**DECODER, "sliding_window": 6}),
    "mamba": ("MambaConfig", "MambaForCausalLM", {
        "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
        **SPECIAL,
    }),
    "t5": ("T5Config", "T5ForConditionalGeneration", T5),
}  # fmt: skip


@pytest.mark.parametrize("name", GENERATORS)
def test_generate_gives_the_digital_tokens(name: str) -> None:
    model: Any = build(*GENERATORS[name])
    prompt = tokens(length=8)
    options = {"max_new_tokens": 8, "do_sample": False}
    want = model.generate(prompt, **options)
    with contextlib.ExitStack() as stack:
        attached = stack.enter_context(analogc.attach(model, target="ideal"))
        if model.config.is_encoder_decoder:
            # generate() runs the encoder by itself.
            encoder = stack.enter_context(analogc.attach(model.get_encoder(), target="ideal"))
        got = model.generate(prompt, **options)
        # A decoder whose prompt is one token has a cache of length 1 first, which is a kind apart.
        assert len(attached.graphs) == (3 if model.config.is_encoder_decoder else 2)
        assert not model.config.is_encoder_decoder or len(encoder.graphs) == 1
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"cache_implementation": "static"}], ids=["beams", "static"]
)
def test_generate_with_beams_and_caches_of_fixed_size(options: dict[str, Any]) -> None:
    model: Any = build(*GENERATORS["gpt2"])
    prompt = tokens(length=8)
    want = model.generate(prompt, max_new_tokens=8, do_sample=False, **options)
    with analogc.attach(model, target="ideal") as attached:
        got = model.generate(prompt, max_new_tokens=8, do_sample=False, **options)
    assert torch.equal(got, want)
    assert len(attached.graphs) == 2


def test_generate_programs_each_weight_once() -> None:
    model: Any = build(*GENERATORS["llama"])
    with analogc.attach(model, target="generic-8bit-noisy", seed=0) as attached:
        model.generate(tokens(length=8), max_new_tokens=8, do_sample=False)
    assert len(attached.weights) == 15
    assert {weight.times_programmed for weight in attached.weights.values()} == {1}


def test_decoder_step_takes_a_cache_of_any_length() -> None:
    model: Any = build(*GENERATORS["llama"])
    prompt, step = tokens(), tokens(length=1)
    with torch.no_grad():
        ours, theirs = (model(prompt).past_key_values for _ in range(2))
        example = model(prompt).past_key_values
        compiled = analogc.compile(
            model, (step,), {"past_key_values": example}, target="ideal", dynamic_shapes="auto"
        )
        for _ in range(3):
            got = compiled(step, past_key_values=ours)
            want = model(step, past_key_values=theirs)
            torch.testing.assert_close(got.logits, want.logits, rtol=1e-6, atol=1e-6)
            assert got.past_key_values is ours
    assert ours.get_seq_length() == theirs.get_seq_length() == 13
