"""The parts a block is built from; weights keep HuggingFace's [out, in] orientation, so loading never transposes."""

import jax
import jax.numpy as jnp
from flax import nnx


class LowRank(nnx.Module):
    """scale · (x · aᵀ) · bᵀ, with a [rank, in] and b [out, rank]: a change of a Linear that is never multiplied out.

    LoRA, arXiv:2106.09685. In stacked blocks both factors have the leading layer axis that the weight has.
    """

    def __init__(self, a: jax.Array, b: jax.Array, scale: float, dtype: jnp.dtype):
        self.a = nnx.LoRAParam(a)
        self.b = nnx.LoRAParam(b)
        self.scale = scale
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] → [..., out] in `dtype`."""
        inner = project(x, self.a[...].astype(self.dtype))
        return project(inner, self.b[...].astype(self.dtype)) * jnp.asarray(self.scale, self.dtype)


class Linear(nnx.Module):
    """y = x · weightᵀ (+ bias) (+ lora(x)), with weight [out, in] and bias [out], computed in `dtype`.

    `lora` is None, or the `LowRank` change that `codd_jax.training.lora` attaches.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        std: float | None = None,
        dtype: jnp.dtype,
        param_dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        std = in_features**-0.5 if std is None else std
        weight = jax.random.normal(rngs.params(), (out_features, in_features), param_dtype) * jnp.asarray(
            std, param_dtype
        )
        self.weight = nnx.Param(weight)
        self.bias = nnx.Param(jnp.zeros((out_features,), param_dtype)) if use_bias else None
        self.lora = None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., in] → [..., out]; the bias joins the float32 sum, before rounding to `dtype`."""
        weight = self.weight[...].astype(self.dtype)
        if self.bias is None:
            y = project(x, weight)
        else:
            y = (project(x, weight, jnp.float32) + self.bias[...].astype(jnp.float32)).astype(self.dtype)
        return y if self.lora is None else y + self.lora(x)


class RMSNorm(nnx.Module):
    """Root-mean-square norm over the last axis: float32 inside, cast down, then times the weight (plus the bias)."""

    def __init__(self, width: int, *, eps: float, use_bias: bool = False, dtype: jnp.dtype, param_dtype: jnp.dtype):
        self.weight = nnx.Param(jnp.ones((width,), param_dtype))
        self.bias = nnx.Param(jnp.zeros((width,), param_dtype)) if use_bias else None
        self.eps = eps
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., width] → [..., width], in `dtype`."""
        wide = x.astype(jnp.float32)
        scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        y = (wide * scale).astype(self.dtype) * self.weight[...].astype(self.dtype)
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class Embedding(nnx.Module):
    """One row of weight [vocab, width] for every token id."""

    def __init__(self, vocab_size: int, width: int, *, dtype: jnp.dtype, param_dtype: jnp.dtype, rngs: nnx.Rngs):
        weight = jax.random.normal(rngs.params(), (vocab_size, width), param_dtype) * jnp.asarray(
            width**-0.5, param_dtype
        )
        self.weight = nnx.Param(weight)
        self.dtype = dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[...] int32 → [..., width]."""
        return jnp.take(self.weight[...], tokens, axis=0, mode="clip").astype(self.dtype)


def project(x: jax.Array, weight: jax.Array, out_dtype: jnp.dtype | None = None) -> jax.Array:
    """[..., in] times weight [out, in] → [..., out], accumulated in float32 where `out_dtype` is float32."""
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())), preferred_element_type=out_dtype)


def rotary_table(length: int, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Factors [length, head_dim] in float32 for `rotate` (arXiv:2104.09864) at positions 0..length-1.

    Cosines of the angles, and sines with the sign that their half of the channels takes.
    """
    frequency = 1.0 / theta ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angle = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x: jax.Array, table: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turn channel pairs (c, c + head_dim/2) of x [batch, length, heads, head_dim] by the table's angles.

    The table's factors are [length, head_dim], or [batch, length, head_dim] where rows stand at different positions.
    Computed in the wider of the dtypes of x and table: a float32 table gives LLaDA's full-precision rotation, one cast
    to the model's dtype gives Dream's. The result has the dtype of x.
    """
    cos, sin = (part[..., None, :] for part in table)
    return (x * cos + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin).astype(x.dtype)
