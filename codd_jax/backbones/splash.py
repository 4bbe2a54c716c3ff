"""Attention by JAX's splash kernel for TPU: scores stay on the chip and never go through memory."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

# Lanes of a TPU register: lengths are padded to multiples, and the head's width must be one.
LANES = 128
# A block of scores in float32 is at most 512 KiB, a few per cent of the fast memory that the kernel works in.
_LARGEST_QUERIES, _LARGEST_KEYS = 256, 512


def splash_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lengths: jax.Array | None,
    mesh: Mesh | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """`attention.attend` through the kernel; differentiable.

    Args:
      query: [B, L, N, H]. key, value: [B, S, K, H]. lengths: [B] int32, or None for S.
      mesh: the devices that rows ("data") and heads ("model") are spread over. The kernel is not split by XLA itself.
      interpret: run it without a TPU, slowly, for tests.
    """
    if lengths is None:
        lengths = jnp.full(query.shape[:1], key.shape[1], jnp.int32)

    def local(query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array) -> jax.Array:
        return _on_one_device(query, key, value, lengths, interpret)

    return _over(mesh, local, query.shape, key.shape)(query, key, value, lengths)


def _over(mesh: Mesh | None, local: Callable, query: tuple[int, ...], key: tuple[int, ...]) -> Callable:
    """`local` on every device's rows and heads; what an axis does not divide, every device of it computes whole."""
    if mesh is None or mesh.size == 1:
        return local
    rows = "data" if query[0] % mesh.shape["data"] == 0 else None
    # Query head n reads key head n // (N / K), also within a device's share, as long as both are split alike.
    heads = "model" if query[2] % mesh.shape["model"] == key[2] % mesh.shape["model"] == 0 else None
    whole, row = PartitionSpec(rows, None, heads), PartitionSpec(rows)
    return jax.shard_map(local, mesh=mesh, in_specs=(whole, whole, whole, row), out_specs=whole, check_vma=False)


def _on_one_device(
    query: jax.Array, key: jax.Array, value: jax.Array, lengths: jax.Array, interpret: bool
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import SegmentIds

    length, keys, scale = query.shape[1], key.shape[1], query.shape[-1] ** -0.5
    query, key, value = (_padded(x) for x in (query * jnp.asarray(scale, query.dtype), key, value))
    attend = _kernel(query.shape[1], key.shape[1], query.shape[2], interpret)

    def row(query: jax.Array, key: jax.Array, value: jax.Array, count: jax.Array) -> jax.Array:
        # Segments see themselves alone: all queries and the real keys are 0, keys past the end are 1.
        past = jnp.arange(key.shape[1]) >= jnp.minimum(count, keys)
        segments = SegmentIds(q=jnp.zeros(query.shape[1], jnp.int32), kv=past.astype(jnp.int32))
        return attend(query, key, value, segments)

    by_head = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    return jnp.swapaxes(jax.vmap(row)(*by_head, lengths), 1, 2)[:, :length].astype(value.dtype)


def _kernel(queries: int, keys: int, num_heads: int, interpret: bool) -> Callable:
    """The kernel for padded lengths, forward and backward with the same blocks."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    block_q, block_kv = _block(queries, _LARGEST_QUERIES), _block(keys, _LARGEST_KEYS)
    blocks = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_kv_dkv_compute=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    full = splash.MultiHeadMask([splash.FullMask((queries, keys)) for _ in range(num_heads)])
    # Finite as the kernel's own, but not so large that a row without any real key overflows.
    return splash.make_splash_mha(
        full, block_sizes=blocks, head_shards=1, q_seq_shards=1, mask_value=-1e30, interpret=interpret
    )


def _block(length: int, largest: int) -> int:
    """The largest multiple of the lanes that divides a padded length, up to `largest`."""
    return max(size for size in range(LANES, largest + 1, LANES) if length % size == 0)


def _padded(x: jax.Array) -> jax.Array:
    """Axis 1 filled up to a multiple of the lanes."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % LANES), (0, 0), (0, 0)))
