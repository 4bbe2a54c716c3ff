"""Bidirectional attention with grouped key/value heads; padding is known from row lengths, never from [L, L] masks."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from codd_jax.backbones.splash import LANES, splash_attend

IMPLEMENTATIONS = ("auto", "xla", "cudnn", "splash")

# What JAX calls a GPU: as its default backend, and as the platform of a device.
_GPUS = ("gpu", "cuda")
# Finite, so that a row of length 0 yields numbers rather than NaN.
_MASKED = -1e30


def choose_implementation(name: str, dtype: jnp.dtype, head_dim: int, backend: str | None = None) -> str:
    """Resolve "auto" for a backend (default: JAX's own), and refuse what a kernel cannot do.

    On a GPU cuDNN's fused kernel in half precision with head_dim a multiple of 8, on a TPU splash attention in bfloat16
    or float32 with head_dim a multiple of 128, else XLA's own attention. Raises ValueError for an unknown name, and for
    a kernel that the backend, the dtype or head_dim rules out.
    """
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention_implementation {name!r} is unknown; known: {', '.join(IMPLEMENTATIONS)}")
    backend = backend or jax.default_backend()
    fits = jnp.dtype(dtype).itemsize == 2 and head_dim % 8 == 0 and head_dim <= 128
    splash_fits = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32) and head_dim % LANES == 0
    if name == "cudnn" and backend not in _GPUS:
        raise ValueError(f"cuDNN attention runs on NVIDIA GPUs and this is for {backend}; use 'xla' (or 'auto')")
    if name == "cudnn" and not fits:
        raise ValueError(
            f"cuDNN attention needs bfloat16 or float16 and a head_dim that is a multiple of 8 up to 128; got "
            f"{jnp.dtype(dtype).name} and {head_dim}; use attention_implementation='xla' (or 'auto')"
        )
    if name == "splash" and not splash_fits:
        raise ValueError(
            f"splash attention needs bfloat16 or float32 and a head_dim that is a multiple of {LANES}; got "
            f"{jnp.dtype(dtype).name} and {head_dim}; use attention_implementation='xla' (or 'auto')"
        )
    if name != "auto":
        return name
    if backend in _GPUS and fits:
        return "cudnn"
    return "splash" if backend == "tpu" and splash_fits else "xla"


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    implementation: str = "xla",
    mesh: Mesh | None = None,
) -> jax.Array:
    """Softmax attention of query [B, L, N, H] over key and value [B, S, K, H] → [B, L, N, H].

    Row b sees the first lengths[b] keys (all where lengths is None); query head n reads key/value head n // (N / K).
    Scores and softmax are in float32. With "splash", programs for other devices than TPUs take "xla", as do queries
    that would not fill a block of the kernel (an active block beside kept keys, say); it needs the `mesh`.
    """
    if implementation == "cudnn":
        return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")
    if implementation == "splash" and query.shape[1] >= LANES:
        return jax.lax.platform_dependent(
            query, key, value, lengths, tpu=functools.partial(splash_attend, mesh=mesh), default=_attend_in_xla
        )
    return _attend_in_xla(query, key, value, lengths)


def _attend_in_xla(query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array | None) -> jax.Array:
    batch, length, num_heads, head_dim = query.shape
    groups = key.shape[2]
    # Head-major operands: XLA multiplies them without reordering, 3 to 4 % of a forward pass on CPU.
    query = jnp.swapaxes(query, 1, 2).reshape(batch, groups, num_heads // groups, length, head_dim)
    key, value = jnp.swapaxes(key, 1, 2), jnp.swapaxes(value, 1, 2)
    scores = jnp.einsum("bkgqh,bksh->bkgqs", query, key, preferred_element_type=jnp.float32) * head_dim**-0.5
    if lengths is not None:
        real = jnp.arange(key.shape[2]) < lengths[:, None]
        scores = jnp.where(real[:, None, None, None, :], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("bkgqs,bksh->bkgqh", weights, value)
    return jnp.swapaxes(mixed.reshape(batch, num_heads, length, head_dim), 1, 2)


def heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, L, num_heads * head_dim] → [B, L, num_heads, head_dim]."""
    return x.reshape(*x.shape[:-1], num_heads, x.shape[-1] // num_heads)
