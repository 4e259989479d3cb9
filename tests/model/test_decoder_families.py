"""Each supported family: a tiny random model is exported, and its logits are transformers' own (`make test-torch`)."""

from __future__ import annotations

import json
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from engineworks.errors import ModelError
from engineworks.model.decoder.families import FAMILIES, check_family, context_problems
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.decoder.torch_decoder import Call, check_window
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.steps.decoder.export import prove
from engineworks.steps.decoder.fused_model import SourceModel, difference_of, fused_model

CONTEXT = 48
BASE = {
    "vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4}
WINDOWED = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
LATE_WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
CASES = {
    "apertus": {}, "arcee": {}, "cohere": {}, "cohere2": WINDOWED, "ernie4_5": {"head_dim": 16}, "exaone4": WINDOWED,
    "gemma": {"head_dim": 16}, "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 24},
    "gemma3_text": {"head_dim": 16, **WINDOWED}, "glm": {"head_dim": 16}, "glm4": {"head_dim": 16},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": CONTEXT}, "gpt_neox": {},
    "gpt_oss": {
        "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, **WINDOWED, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1.5e5, "factor": 32.0, "original_max_position_embeddings": 4096,
        },
    },
    "granite": {"embedding_multiplier": 3.0, "logits_scaling": 4.0}, "helium": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16}, "llama": {}, "mistral": {"sliding_window": 8},
    "mixtral": {"num_local_experts": 4}, "nemotron": {"partial_rotary_factor": 0.5}, "olmo": {"clip_qkv": 0.8},
    "olmo2": {}, "olmo3": WINDOWED, "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "phi": {"partial_rotary_factor": 0.5}, "phi3": {"sliding_window": 8, "original_max_position_embeddings": CONTEXT},
    "qwen2": {"tie_word_embeddings": True, **LATE_WINDOW},
    "qwen2_moe": {"num_experts": 4, "shared_expert_intermediate_size": 32, **EXPERTS, **LATE_WINDOW},
    "qwen3": {"head_dim": 16}, "qwen3_moe": {"num_experts": 4, "head_dim": 16, **EXPERTS},
    "smollm3": {"no_rope_layers": [1, 0]}, "stablelm": {}, "starcoder2": {},
    "deepseek_v3": {
        "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
        "moe_intermediate_size": 32, "first_k_dense_replace": 1, "head_dim": 8,
    },
}  # fmt: skip


UNFUSED = ("deepseek_v3", "gpt_oss")
"""Keys and values of different sizes, and sinks: their attention stays in standard operators on the CPU."""


def test_every_family_has_a_case():
    assert CASES.keys() == FAMILIES.keys()


def test_an_unknown_family_is_named_with_the_known_ones():
    with pytest.raises(ModelError, match="decoder family 'mamba' is not known") as raised:
        check_family({"model_type": "mamba"})
    assert "llama" in raised.value.hint


@pytest.mark.parametrize(
    ("config", "context", "message"),
    [
        ({"max_position_embeddings": 64}, 128, "more than the model was made for"),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32}}, 64, "change with the"),
        ({"use_bidirectional_attention": True}, 64, "attend to later ones"),
        ({"layer_types": ["conv", "full_attention"]}, 64, "layers of kind conv keep a state"),
    ],
)
def test_caches_that_would_be_wrong(config, context, message):
    ((said, _),) = context_problems(config, context)
    assert message in said


@pytest.mark.parametrize(
    ("config", "right"),
    [
        ({"sliding_window": 8}, False),
        ({"sliding_window": 4}, True),
        ({"sliding_window": CONTEXT}, True),
        ({"sliding_window": 8, "layer_types": ["full_attention"]}, True),
        ({"sliding_window": None}, True),
        ({}, True),
    ],
)
def test_a_window_that_does_not_reach_the_attention(config, right):
    call = Call()
    call.masks = {0: None, 4: None}
    with nullcontext() if right else pytest.raises(ModelError, match="sliding window of 8 positions does not reach"):
        check_window(call, SimpleNamespace(**config), CONTEXT)


@pytest.mark.torch
@pytest.mark.parametrize("family", CASES)
def test_an_export_gives_the_familys_own_logits(family, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from engineworks.model.decoder.from_huggingface import write_decoder

    torch.manual_seed(0)
    kind = transformers.AutoConfig.for_model(family).__class__
    given = {k: v for k, v in BASE.items() if family != "gpt2" or k in ("vocab_size", "tie_word_embeddings")}
    config = kind(**{**given, **CASES[family]})
    model = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name.lower():
                weight.copy_(torch.randn_like(weight) * (0.3 if "embed" in name else weight.shape[-1] ** -0.5))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "out").mkdir()
    given = {"folder": str(tmp_path / "model"), "out": str(tmp_path / "out"), "context": CONTEXT}
    face = DecoderInterface.from_json(write_decoder(given)["interface"])
    prove(tmp_path / "out", face, family)  # raises where the logits differ
    assert face.form == "in_place"
    plain = SourceModel(tmp_path / "out" / MODEL_FILE, face)
    fused = fused_model(plain, tmp_path / "fused.onnx")
    assert not fused or not difference_of(plain, fused, "fp32")
    operators = {n.op_type for n in load_model((fused or plain).path, weights=False).graph.node}
    assert ("GroupQueryAttention" in operators) == (family not in UNFUSED)
    assert json.loads(json.dumps(face.to_json()))["context"] == CONTEXT
