"""What is Dream's own (arXiv:2508.15487): how its config.json reads, and what its checkpoint calls each parameter."""

from collections.abc import Mapping
from typing import Any

from codd_jax.backbones.config import BackboneConfig
from codd_jax.backbones.fields import flag, integer, number, refuse_unsupported, token_id

# Checkpoint module → module of the Transformer; `{layer}` stands for the layer number, weights and biases alike.
NAMES = {
    "model.embed_tokens": "embed",
    "model.layers.{layer}.input_layernorm": "blocks.attn_norm",
    "model.layers.{layer}.self_attn.q_proj": "blocks.q",
    "model.layers.{layer}.self_attn.k_proj": "blocks.k",
    "model.layers.{layer}.self_attn.v_proj": "blocks.v",
    "model.layers.{layer}.self_attn.o_proj": "blocks.o",
    "model.layers.{layer}.post_attention_layernorm": "blocks.ff_norm",
    "model.layers.{layer}.mlp.gate_proj": "blocks.gate",
    "model.layers.{layer}.mlp.up_proj": "blocks.up",
    "model.layers.{layer}.mlp.down_proj": "blocks.down",
    "model.norm": "final_norm",
    "lm_head": "head",
}

_SUPPORTED = {
    "hidden_act": ("silu",),
    "rope_scaling": (None,),
    "use_sliding_window": (False, None),
    "use_mrope": (False, None),
    "layer_types": (None,),
}


def read_config(config_json: Mapping[str, Any], folder_name: str = "config.json") -> BackboneConfig:
    """Turn Dream's config.json into a `BackboneConfig`; ValueError names every option that is not supported."""
    refuse_unsupported(config_json, _SUPPORTED, folder_name)
    width, num_heads = (integer(config_json, key, folder_name) for key in ("hidden_size", "num_attention_heads"))
    head_dim = integer(config_json, "head_dim", folder_name, None, least=0)
    if width % num_heads and head_dim is None:
        raise ValueError(f"{folder_name}: hidden_size ({width}) is not a multiple of num_attention_heads ({num_heads})")
    eos = token_id(config_json, "eos_token_id", folder_name)
    return BackboneConfig(
        family="dream",
        vocab_size=integer(config_json, "vocab_size", folder_name),
        width=width,
        num_layers=integer(config_json, "num_hidden_layers", folder_name),
        num_heads=num_heads,
        num_kv_heads=integer(config_json, "num_key_value_heads", folder_name, None, least=0) or num_heads,
        head_dim=head_dim or width // num_heads,
        ffn_width=integer(config_json, "intermediate_size", folder_name),
        rope_theta=_rope_theta(config_json, folder_name),
        norm_eps=number(config_json, "rms_norm_eps", folder_name, 1e-6),
        max_length=integer(config_json, "max_position_embeddings", folder_name),
        mask_id=token_id(config_json, "mask_token_id", folder_name),
        eos_id=eos,
        pad_id=token_id(config_json, "pad_token_id", folder_name, eos),
        bos_id=token_id(config_json, "bos_token_id", folder_name, None),
        qkv_bias=True,
        tie_embeddings=flag(config_json, "tie_word_embeddings", folder_name),
        rope_float32=False,
        shift_logits=True,
    )


def write_config(config: BackboneConfig) -> dict[str, Any]:
    """The config.json of a Dream checkpoint with this shape; `read_config` gives the same `BackboneConfig` back."""
    fixed = {
        "qkv_bias": True, "out_bias": False, "norm_bias": False, "head_bias": False, "qk_norm": False,
        "scale_logits": False, "input_emb_norm": False, "rope_float32": False, "shift_logits": True,
    }  # fmt: skip
    wrong = [f"{name}={getattr(config, name)}" for name, value in fixed.items() if getattr(config, name) != value]
    if wrong:
        raise ValueError(f"Dream's config.json cannot express {', '.join(wrong)}")
    written = {
        "architectures": ["DreamModel"], "model_type": "Dream", "hidden_act": "silu", "hidden_size": config.width,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "intermediate_size": config.ffn_width,
        "vocab_size": config.vocab_size, "tie_word_embeddings": config.tie_embeddings, "rope_scaling": None,
        "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length, "sliding_window": None, "use_sliding_window": False,
        "use_mrope": False, "mask_token_id": config.mask_id, "eos_token_id": config.eos_id,
        "pad_token_id": config.pad_id, "bos_token_id": config.bos_id,
    }  # fmt: skip
    if config.head_dim * config.num_heads != config.width:
        written["head_dim"] = config.head_dim
    return written


def _rope_theta(config_json: Mapping[str, Any], where: str) -> float:
    """rope_theta from its own key, or from the `rope_parameters` that newer transformers write."""
    parameters = config_json.get("rope_parameters")
    if parameters is None:
        return number(config_json, "rope_theta", where)
    if not isinstance(parameters, Mapping):
        raise ValueError(f"{where}: rope_parameters is {parameters!r}; an object is expected")
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        raise ValueError(f"{where} asks for what this port does not compute: rope_type={kind!r} (supported: 'default')")
    return number(parameters, "rope_theta", f"{where} (rope_parameters)")
