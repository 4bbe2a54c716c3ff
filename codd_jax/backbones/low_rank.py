"""Backbones with low-rank changes beside their projections: finding them, and merging them into the weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict

from codd_jax.backbones.layers import Linear
from codd_jax.backbones.transformer import Transformer

PROJECTIONS = ("q", "k", "v", "o", "gate", "up", "down")


def projections(backbone: Transformer, chosen: tuple[str, ...] = PROJECTIONS) -> list[tuple[str, Linear]]:
    """The chosen projections with their names, "blocks.q" (stacked) or "blocks.0.q" (unrolled), in a fixed order."""
    if backbone.layout == "stacked":
        return [(f"blocks.{name}", getattr(backbone.blocks, name)) for name in chosen]
    return [
        (f"blocks.{layer}.{name}", getattr(block, name))
        for layer, block in enumerate(backbone.blocks)
        for name in chosen
    ]


def has_lora(backbone: Transformer) -> bool:
    """Whether any projection has low-rank factors."""
    return any(linear.lora is not None for _, linear in projections(backbone))


def require_merged(backbone: Transformer) -> None:
    """Raises ValueError where there are factors, which formats of whole weights have no place for."""
    if has_lora(backbone):
        raise ValueError("the backbone has LoRA factors beside its weights; merge them first (low_rank.merge_lora)")


def merge_lora(backbone: Transformer) -> Transformer:
    """The backbone with weight + scale · b · a in place of each factored weight, summed in float32 and rounded once.

    The given backbone is not changed; arrays without factors are shared, and without any it is returned itself.
    """
    if not has_lora(backbone):
        return backbone
    merged: dict[tuple, jax.Array] = {}
    for name, linear in projections(backbone):
        if linear.lora is not None:
            path = (*(int(part) if part.isdigit() else part for part in name.split(".")), "weight")
            merged[path] = _merged(linear.weight[...], linear.lora.a[...], linear.lora.b[...], linear.lora.scale)
    flat = {path: leaf[...] for path, leaf in nnx.to_flat_state(nnx.state(backbone, nnx.Param)) if "lora" not in path}
    # A structure that never had factors, so that programs are shared.
    return Transformer.from_params(
        backbone.config, unflatten_dict(flat | merged), backbone.dtype, layout=backbone.layout, **backbone.options
    )


@jax.jit
def _merged(weight: jax.Array, a: jax.Array, b: jax.Array, scale: float) -> jax.Array:
    product = jnp.einsum(
        "...or,...ri->...oi", b.astype(jnp.float32), a.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST
    )
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)
