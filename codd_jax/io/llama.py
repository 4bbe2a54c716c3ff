"""A backbone under the names of transformers' own Llama or Qwen2, so that plain PyTorch code runs it.

The published LLaDA and Dream checkpoints bring code of their own; their arithmetic is that of Llama and of Qwen2 with
attention in both directions.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.io.safetensors import save_huggingface

USE = """
In PyTorch, attention in both directions is asked for by a 4-D mask of zeros:

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    logits = model(ids, attention_mask=torch.zeros(1, 1, L, L), use_cache=False).logits

The logits at a position are of the token there (LLaDA), or of the one after it (Dream)."""


def save_as_transformers(backbone: Transformer, folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Write a backbone as a `LlamaForCausalLM` or, where q, k and v alone have biases, a `Qwen2ForCausalLM`.

    Both use the same names for their tensors, which are Dream's. `USE` says how PyTorch code calls the result.

    Raises:
      ValueError: an option of the backbone that neither architecture has.
    """
    config_json = transformers_config(backbone.config)
    names = dataclasses.replace(backbone.config, family="dream")
    return save_huggingface(backbone, names, folder, config_json=config_json)


def transformers_config(config: BackboneConfig) -> dict[str, Any]:
    """The config.json for `save_as_transformers`."""
    foreign = ("norm_bias", "head_bias", "qk_norm", "scale_logits", "input_emb_norm")
    wrong = [name for name in foreign if getattr(config, name)]
    if config.out_bias and not config.qkv_bias:
        wrong.append("out_bias without qkv_bias")
    if wrong:
        raise ValueError(f"transformers' Llama and Qwen2 have no {', '.join(wrong)}; export in the family's own layout")
    qwen = config.qkv_bias and not config.out_bias
    written = {
        "architectures": ["Qwen2ForCausalLM" if qwen else "LlamaForCausalLM"],
        "model_type": "qwen2" if qwen else "llama",
        "hidden_act": "silu", "hidden_size": config.width, "intermediate_size": config.ffn_width,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_length, "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        # transformers 4 reads the one, transformers 5 the other.
        "rope_theta": config.rope_theta, "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "eos_token_id": config.eos_id, "pad_token_id": config.pad_id, "bos_token_id": config.bos_id,
        "mask_token_id": config.mask_id, "use_cache": False,
    }  # fmt: skip
    biases = {"use_sliding_window": False} if qwen else {"attention_bias": config.out_bias, "mlp_bias": config.out_bias}
    return written | biases
