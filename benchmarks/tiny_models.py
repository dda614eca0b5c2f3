"""Tiny random models of every causal LM architecture of transformers, and a tokenizer of single bytes for them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
EDGE = 400  # tokens: windows, chunks and switches of the tiny models that have such a thing
MOST_PARAMETERS = 40_000_000
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size",
                     "intermediate_size_mlp", "expert_ffn_hidden_size", "input_embedding_size", "mlp_dim"), 96),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "decoder_layers", "num_layers"), 4),
    **dict.fromkeys(("num_decoder_layers", "num_encoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "decoder_attention_heads", "encoder_attention_heads",
                     "num_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "max_position_embeddings": 2048, "n_positions": 2048,
    "pad_token_id": 257, "bos_token_id": 258, "eos_token_id": 256, "moe_intermediate_size": 48, "num_experts": 4,
    "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_topk": 2,
    "shared_expert_intermediate_size": 48, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1,
    "mamba_d_state": 16, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_chunk_size": 32,
    "mamba_d_ssm": 128, "state_size": 16, "rotary_dim": 16, "mamba_expand": 2, "linear_num_value_heads": 4,
    "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16, "initializer_range": 0.2,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "sliding_window": EDGE, "attention_chunk_size": EDGE,
    "attention_window_size": EDGE, "window_size": EDGE, "is_decoder": True,
}  # fmt: skip
_LATENT = ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3",
           "youtu", "mistral4", "longcat_flash")  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {"head_dim": 8, "num_key_value_heads": 4} for name in _LATENT},
    "mamba2": {"num_heads": 16, "head_dim": 8, "n_groups": 1, "expand": 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "dots1": {"num_key_value_heads": 4, "n_shared_experts": 1},
    "zaya": {"num_experts_per_tok": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "llama4_text": {"floor_scale": EDGE, "attn_scale": 0.1},
    "qwen2": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen2_moe": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"use_sliding_window": True, "max_window_layers": 2},
    "qwen3_moe": {"use_sliding_window": True, "max_window_layers": 2},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1},
    "zamba2": {"layer_types": ["mamba", "hybrid"] * 3, "hybrid_layer_ids": [1, 3, 5], "num_hidden_layers": 6},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "whisper": {"max_target_positions": 2048},
    "gemma3n_text": {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 0,
                     "hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 320, "laurel_rank": 8,
                     "activation_sparsity_pattern": [0.0] * 4},
    "gemma4_text": {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 320, "num_kv_shared_layers": 0},
    "dots3_note_text": {"num_key_value_heads": 4},
    "phi3": {
        "original_max_position_embeddings": EDGE, "sliding_window": None,
        "rope_parameters": {
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.1, 1.3, 2.0, 4.0, 8.0, 16.0, 32.0], "original_max_position_embeddings": EDGE,
            "factor": 2048 / EDGE,
        },
    },
    "xmod": {"default_language": "en_XX"},
    "roformer": {"embedding_size": 64},
    "reformer": {"axial_pos_embds": False, "attn_layers": ["local", "lsh", "local", "lsh"]},
}  # fmt: skip
# The same model again with other settings: what its architecture alone does not show.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama: dynamic NTK": ("llama", {
        "max_position_embeddings": EDGE,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    }),
    "llama: longrope": ("llama", {
        "original_max_position_embeddings": EDGE, "rope_parameters": OPTIONS["phi3"]["rope_parameters"],
    }),
    "gpt_neox: dynamic NTK": ("gpt_neox", {
        "max_position_embeddings": EDGE,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    }),
    "bert: looks both ways": ("bert", {"is_decoder": False}),
    "roberta: looks both ways": ("roberta", {"is_decoder": False}),
}  # fmt: skip


def tiny_config(name: str, **options: Any) -> Any:
    """Config of a tiny model.

    Args:
        name: architecture, a key of transformers' causal LM mapping.
        options: settings that differ from the usual ones here.
    """
    kind = CONFIG_MAPPING[name]
    given = OPTIONS.get(name, {}) | options
    if "text_config" in getattr(kind, "sub_configs", {}):
        parts = {part: _part(sub, given) for part, sub in kind.sub_configs.items() if part.endswith("config")}
        return kind(**{k: v for k, v in parts.items() if v is not None})
    return _fill(kind, given)


def _part(kind: Any, options: dict[str, Any]) -> Any:
    return _fill(kind, options) if hasattr(kind, "model_type") and kind.model_type else None


def _fill(kind: Any, options: dict[str, Any]) -> Any:
    try:
        known = set(kind().to_dict())
    except Exception:  # a config that its own defaults do not satisfy; its annotations name the fields
        known = {f for k in kind.__mro__ for f in getattr(k, "__annotations__", {})}
    known |= set(getattr(kind, "attribute_map", {}) or {})
    settings = {k: v for k, v in _SIZES.items() if k in known} | options
    return kind(**settings)


def tiny_model(name: str, **options: Any) -> Any:
    """A random model in float32, or an error of the architecture's own: not everything in the mapping can be tiny.

    Raises:
        ValueError: it has more than 40 million parameters.
    """
    config = tiny_config(name, **options)
    with torch.device("meta"):
        size = sum(p.numel() for p in AutoModelForCausalLM.from_config(copy.deepcopy(config)).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"too large: {size / 1e6:.0f} million parameters")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for p in model.parameters():
        if not torch.isfinite(p).all() or p.abs().max() > 1e4:
            p.normal_(0, 0.05)
    return model


def byte_tokenizer() -> Any:
    """256 byte tokens and four control tokens, with a ChatML template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tok = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tok.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|pad|>", bos_token="<|bos|>",
        additional_special_tokens=["<|im_start|>"],
    )  # fmt: skip
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    return fast
