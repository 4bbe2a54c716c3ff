"""The transformers: LLaDA and Dream as one bidirectional flax.nnx model."""

from codd_jax.backbones.config import PRESETS, BackboneConfig, check_length, config_from_huggingface
from codd_jax.backbones.transformer import Transformer

__all__ = ["PRESETS", "BackboneConfig", "Transformer", "check_length", "config_from_huggingface"]
