"""What is LLaDA's own (arXiv:2502.09992): how its config.json reads, and what its checkpoint calls each parameter."""

from collections.abc import Mapping
from typing import Any

from codd_jax.backbones.config import BackboneConfig
from codd_jax.backbones.fields import flag, integer, number, refuse_unsupported, require, token_id

# Checkpoint module → module of the Transformer; `{layer}` stands for the layer number, weights and biases alike.
NAMES = {
    "model.transformer.wte": "embed",
    "model.transformer.blocks.{layer}.attn_norm": "blocks.attn_norm",
    "model.transformer.blocks.{layer}.q_proj": "blocks.q",
    "model.transformer.blocks.{layer}.k_proj": "blocks.k",
    "model.transformer.blocks.{layer}.v_proj": "blocks.v",
    "model.transformer.blocks.{layer}.q_norm": "blocks.q_norm",
    "model.transformer.blocks.{layer}.k_norm": "blocks.k_norm",
    "model.transformer.blocks.{layer}.attn_out": "blocks.o",
    "model.transformer.blocks.{layer}.ff_norm": "blocks.ff_norm",
    "model.transformer.blocks.{layer}.ff_proj": "blocks.gate",
    "model.transformer.blocks.{layer}.up_proj": "blocks.up",
    "model.transformer.blocks.{layer}.ff_out": "blocks.down",
    "model.transformer.ln_f": "final_norm",
    "model.transformer.ff_out": "head",
}

# Options of the family whose other values change the computation in ways that are not ported.
_SUPPORTED = {
    "block_type": ("llama",),
    "activation_type": ("silu",),
    "layer_norm_type": ("rms",),
    "rope": (True,),
    "alibi": (False, None),
    "block_group_size": (1, None),
    "layer_norm_with_affine": (True,),
    "attention_layer_norm_with_affine": (True,),
    "rope_scaling": (None,),
    "sliding_window": (None,),
}


def read_config(config_json: Mapping[str, Any], folder_name: str = "config.json") -> BackboneConfig:
    """Turn LLaDA's config.json into a `BackboneConfig`; ValueError names every option that is not supported."""
    refuse_unsupported(config_json, _SUPPORTED, folder_name)
    for key in ("block_type", "activation_type", "layer_norm_type", "rope"):
        require(config_json, key, folder_name)  # the family's defaults for these are other architectures
    width, num_heads = (integer(config_json, key, folder_name) for key in ("d_model", "n_heads"))
    if width % num_heads:
        raise ValueError(f"{folder_name}: d_model ({width}) is not a multiple of n_heads ({num_heads})")
    vocab_size = integer(config_json, "embedding_size", folder_name, None, least=0)
    ffn_width = integer(config_json, "mlp_hidden_size", folder_name, None, least=0)
    include_bias = flag(config_json, "include_bias", folder_name)
    norm_bias = flag(config_json, "bias_for_layer_norm", folder_name)
    tied = flag(config_json, "weight_tying", folder_name, True)
    eos = token_id(config_json, "eos_token_id", folder_name)
    return BackboneConfig(
        family="llada",
        vocab_size=vocab_size or integer(config_json, "vocab_size", folder_name),
        width=width,
        num_layers=integer(config_json, "n_layers", folder_name),
        num_heads=num_heads,
        num_kv_heads=_num_kv_heads(config_json, num_heads, folder_name),
        head_dim=width // num_heads,
        ffn_width=ffn_width or int(number(config_json, "mlp_ratio", folder_name, 4) * width),
        rope_theta=number(config_json, "rope_theta", folder_name, 10000.0),
        norm_eps=number(config_json, "rms_norm_eps", folder_name, 1e-5),
        max_length=integer(config_json, "max_sequence_length", folder_name),
        mask_id=token_id(config_json, "mask_token_id", folder_name),
        eos_id=eos,
        pad_id=token_id(config_json, "pad_token_id", folder_name, eos),
        bos_id=token_id(config_json, "bos_token_id", folder_name, None),
        qkv_bias=include_bias or flag(config_json, "include_qkv_bias", folder_name),
        out_bias=include_bias,
        norm_bias=include_bias if config_json.get("bias_for_layer_norm") is None else norm_bias,
        head_bias=include_bias and not tied,
        qk_norm=flag(config_json, "attention_layer_norm", folder_name),
        tie_embeddings=tied,
        scale_logits=flag(config_json, "scale_logits", folder_name),
        input_emb_norm=flag(config_json, "input_emb_norm", folder_name),
        rope_float32=flag(config_json, "rope_full_precision", folder_name, True),
    )


def write_config(config: BackboneConfig) -> dict[str, Any]:
    """The config.json of a LLaDA checkpoint with this shape; `read_config` gives the same `BackboneConfig` back."""
    if config.head_dim * config.num_heads != config.width:
        raise ValueError(
            f"LLaDA has head_dim = width / num_heads; {config.head_dim} * {config.num_heads} != {config.width}"
        )
    if config.out_bias and not config.qkv_bias:
        raise ValueError("LLaDA's include_bias adds biases to q, k and v too; qkv_bias=False cannot be written")
    if config.head_bias != (config.out_bias and not config.tie_embeddings):
        raise ValueError("LLaDA's head has a bias exactly when the other projections have one and it is not tied")
    return {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "block_type": "llama", "block_group_size": 1,
        "activation_type": "silu", "layer_norm_type": "rms", "layer_norm_with_affine": True, "alibi": False,
        "attention_layer_norm": config.qk_norm, "attention_layer_norm_with_affine": True,
        "bias_for_layer_norm": config.norm_bias, "include_bias": config.out_bias, "include_qkv_bias": config.qkv_bias,
        "d_model": config.width, "n_layers": config.num_layers, "n_heads": config.num_heads,
        "n_kv_heads": config.num_kv_heads, "multi_query_attention": None, "mlp_hidden_size": config.ffn_width,
        "vocab_size": config.vocab_size, "embedding_size": config.vocab_size, "weight_tying": config.tie_embeddings,
        "rope": True, "rope_theta": config.rope_theta, "rope_full_precision": config.rope_float32,
        "rms_norm_eps": config.norm_eps, "max_sequence_length": config.max_length,
        "scale_logits": config.scale_logits, "input_emb_norm": config.input_emb_norm,
        "mask_token_id": config.mask_id, "eos_token_id": config.eos_id, "pad_token_id": config.pad_id,
        "bos_token_id": config.bos_id,
    }  # fmt: skip


def _num_kv_heads(config_json: Mapping[str, Any], num_heads: int, where: str) -> int:
    """n_kv_heads where given; else 1 for multi-query attention and n_heads otherwise; the two must not contradict."""
    given, multi_query = integer(config_json, "n_kv_heads", where, None), config_json.get("multi_query_attention")
    implied = 1 if multi_query else num_heads
    if given is None:
        return implied
    if multi_query is not None and given != implied:
        raise ValueError(
            f"{where}: n_kv_heads={given} contradicts multi_query_attention={multi_query}, "
            f"which means {implied}; set one of them to null"
        )
    return given
