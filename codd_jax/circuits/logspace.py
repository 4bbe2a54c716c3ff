"""Products of non-negative matrices with log-weights, as matrix products in the linear domain that lose nothing.

Shift, exp, matmul, log is an order of magnitude faster than a broadcast log-sum-exp, but float32 underflows: entries
far below the largest weight vanish although a zero in the matrix may make them all that counts. Here results that could
have lost something are noticed and recomputed, level by level, inside a `while_loop` that runs zero times in the usual
case, under `vmap` too.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

# Derivatives of results further than this below the largest weight take the exact path; e^80 is still a float32.
TANGENT_FLOOR = -80.0
TANGENT_BITS = 60
# exp(-103.3) is the smallest positive float32.
_NEGLIGIBLE = 103.0
# TF32 or bf16 passes would cost three digits of every message; these products are small or bound by memory.
_PRECISION = lax.Precision.HIGHEST


def safe_log(x: jax.Array) -> jax.Array:
    """log x with log 0 = -inf and a zero, not NaN, gradient there."""
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1)), -jnp.inf)


def logsumexp(x: jax.Array, axis: int = -1, keepdims: bool = False) -> jax.Array:
    """log Σ exp x along `axis`; -inf, with zero gradients, where every entry is -inf."""
    shift = finite_max(x, axis)
    total = safe_log(jnp.sum(jnp.exp(x - shift), axis=axis, keepdims=True)) + shift
    return total if keepdims else jnp.squeeze(total, axis)


def log_normalize(x: jax.Array) -> jax.Array:
    """x minus its logsumexp along the last axis; all -inf stays all -inf."""
    total = logsumexp(x, keepdims=True)
    return x - jnp.where(total == -jnp.inf, 0, total)


def finite_max(x: jax.Array, axis: int = -1) -> jax.Array:
    """max x along `axis`, kept as a dimension, without gradient; 0 where it is -inf so that it can be subtracted."""
    top = lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    return jnp.where(top == -jnp.inf, 0, top)


@jax.custom_batching.custom_vmap
def batch_any(flag: jax.Array) -> jax.Array:
    """Whether the scalar `flag` holds, in any member of the batch under `vmap`: a branch on it stays a branch."""
    return flag


@batch_any.def_vmap
def _batch_any_rule(axis_size, in_batched, flag):
    return batch_any(jnp.any(flag)), False


class Scaling(NamedTuple):
    """How far products over `n` terms can be trusted in a float type, all for weights whose largest is 1.

    Attributes:
      bits: weights are multiplied by 2^bits before the product, the most (even) that cannot overflow.
      floor: results below exp(floor) may have lost more than 1e-7 of themselves.
      band: a weight above exp(-band) times any normal matrix entry is above the floor.
    """

    bits: int
    floor: float
    band: float

    @staticmethod
    def of(n: int, dtype) -> Scaling:
        """The scaling for a contraction over `n` entries, each at most about 1."""
        info = jnp.finfo(dtype)
        bits = (int(info.maxexp) - 2 - math.ceil(math.log2(n))) // 2 * 2
        floor = math.log(n) + math.log(float(info.tiny)) + math.log(1e7) - bits * math.log(2)
        return Scaling(bits, floor, math.log(float(info.tiny)) - floor)


def compute_dtype(*arrays) -> jnp.dtype:
    """float32, or float64 where an operand is."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*arrays))


def exp_scaled(x: jax.Array, bits: int) -> jax.Array:
    """2^bits · exp(x) for x ≤ 0 and even bits, without losing digits or range: the square of exp(x/2)·2^(bits/2)."""
    root = jnp.exp(0.5 * x) * jnp.asarray(2.0 ** (bits // 2), x.dtype)
    return root * root


def log_unscaled(total: jax.Array, bits: int) -> jax.Array:
    """log(total · 2^-bits) for even bits, within a rounding of the result where that is above -60; 0 gives -inf."""
    root = jnp.asarray(2.0 ** -(bits // 2), total.dtype)
    small = total < 2.0**-86 / root / root
    return safe_log(jnp.where(small, total, total * root * root)) - jnp.where(small, bits * math.log(2), 0)


def matvec(matrix: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Contracts axis 0 or 1 of `matrix` with the last one of `weights` [..., n] → [..., m], float32 accumulation.

    A bfloat16 matrix is used as it is: the weights go in as a sum of two bfloat16 parts, exact to 2^-17.
    """
    dtype = weights.dtype
    split = matrix.dtype == jnp.bfloat16
    if split:
        # reduce_precision, because a plain round trip through bfloat16 may be optimised away.
        high = lax.reduce_precision(weights, exponent_bits=8, mantissa_bits=7)
        weights = jnp.stack([high, weights - high]).astype(jnp.bfloat16)
    else:
        matrix = matrix.astype(dtype)
    if axis == 1:
        # With the matrix on the left the product runs twice as fast on CPUs; the barrier keeps it there.
        dims = (((1,), (weights.ndim - 1,)), ((), ()))
        out = lax.dot_general(matrix, weights, dims, precision=_PRECISION, preferred_element_type=dtype)
        out = jnp.moveaxis(lax.optimization_barrier(out), 0, -1)
    else:
        dims = (((weights.ndim - 1,), (0,)), ((), ()))
        out = lax.dot_general(weights, matrix, dims, precision=_PRECISION, preferred_element_type=dtype)
    return out[0] + out[1] if split else out


def log_matvec(x: jax.Array, matrix: jax.Array, axis: int, product=matvec) -> jax.Array:
    """log of matrix · exp(x) for x ≤ 0 with max 0, [..., n] → [..., m], as far as one scaled product can see.

    `product` stands in for `matvec`.
    """
    bits = Scaling.of(x.shape[-1], x.dtype).bits
    return log_unscaled(product(matrix, exp_scaled(x, bits), axis), bits)


def deep_log_matvec(
    x: jax.Array, matrix: jax.Array, axis: int, wanted: jax.Array | None = None, weight: jax.Array | None = None
) -> jax.Array:
    """`log_matvec` for any x, exact however far the weights that count lie below the largest one.

    A result below the floor has only zeros in the matrix against every weight of the top band, so the band can be
    dropped and the product repeated with the rest, until every result is found or no weight is left.

    Args:
      x: [..., n] log-weights, -inf allowed.
      matrix: [m, n] for axis 1 or [n, m] for axis 0, entries in [0, 1].
      axis: the axis of the matrix that is contracted.
      wanted: [...] bool; the other rows are not looked after and may come out rough.
      weight: [..., m] log-weights that the results will be added to and normalised with; results that would be less
        than exp(-103) of the largest one are then not looked for and stay as they are, -inf or rough.
    """
    scaling = Scaling.of(x.shape[-1], x.dtype)

    def level(x, top):
        out = log_matvec(x - top, matrix, axis)
        lost = out < scaling.floor
        if wanted is not None:
            lost &= wanted[..., None]
        if weight is not None:
            lost &= scaling.floor + weight > jnp.max(out + weight, axis=-1, keepdims=True) - _NEGLIGIBLE
        return out + top, lost

    def deeper(carry):
        out, lost, ceiling = carry
        rest = jnp.where(x > ceiling, -jnp.inf, x)
        left = jnp.max(rest, axis=-1, keepdims=True)
        top = jnp.where(left == -jnp.inf, 0, left)
        out_below, lost_below = level(rest, top)
        return jnp.where(lost, out_below, out), lost & lost_below & (left > -jnp.inf), top - scaling.band

    top = finite_max(x)
    start = (*level(x, top), top - scaling.band)
    return lax.while_loop(lambda carry: batch_any(jnp.any(carry[1])), deeper, start)[0]


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_matmul(
    log_weights: jax.Array,
    matrix: jax.Array,
    axis: int,
    wanted: jax.Array | None = None,
    result_weights: jax.Array | None = None,
) -> jax.Array:
    """log(matrix · exp(log_weights)) over the last axis, differentiable and exact; see `deep_log_matvec`.

    Args:
      log_weights: [..., n], -inf allowed, NaN passed on.
      matrix: [m, n] for axis 1, [n, m] for axis 0, entries in [0, 1], float32 or bfloat16.
      axis: which axis of the matrix is contracted.
      wanted: optional [...] bool, rows whose results are used.
      result_weights: optional [..., m], see `weight` of `deep_log_matvec`.

    Returns:
      [..., m] in float32 (float64 where log_weights is).
    """
    return deep_log_matvec(log_weights.astype(compute_dtype(log_weights)), matrix, axis, wanted, result_weights)


@functools.partial(log_matmul.defjvp, symbolic_zeros=True)
def _log_matmul_jvp(axis, primals, tangents):
    x, matrix, wanted, weight = primals
    d_x, d_matrix = (None if type(t) is SymbolicZero else t for t in tangents[:2])
    out = log_matmul(x, matrix, axis, wanted, weight)
    x = x.astype(out.dtype)
    if wanted is not None:  # whatever those rows hold, it must not reach a sum, not even times zero
        x = jnp.where(wanted[..., None], x, -jnp.inf)
    top = finite_max(x)
    deep = (out > -jnp.inf) & (out - top < TANGENT_FLOOR)
    deep = batch_any(jnp.any(deep if wanted is None else deep & wanted[..., None]))
    weights = exp_scaled(x - top, TANGENT_BITS)
    inverse = inverse_scaled(out - top)

    def fast(d_x, d_matrix):
        total = 0.0
        if d_x is not None:
            total = total + matvec(matrix.astype(out.dtype), weights * d_x.astype(out.dtype), axis)
        if d_matrix is not None:
            total = total + matvec(d_matrix.astype(out.dtype), weights, axis)
        return total * inverse

    def exact(d_x, d_matrix):
        return _deep_tangent(x, matrix, out, d_x, d_matrix, axis)

    if d_x is None and d_matrix is None:
        return out, jnp.zeros_like(out)
    return out, lax.cond(deep, exact, fast, d_x, d_matrix)


def inverse_scaled(x: jax.Array) -> jax.Array:
    """exp(-x) · 2^-60 for results x above the floor of derivatives; 0 for those at -inf or below it."""
    kept = x >= TANGENT_FLOOR
    root = jnp.exp(-0.5 * jnp.where(kept, x, 0)) * jnp.asarray(2.0 ** -(TANGENT_BITS // 2), x.dtype)
    return jnp.where(kept, root * root, 0)


def clipped_ratio(x: jax.Array, out: jax.Array) -> jax.Array:
    """exp(x - out), at most e^80, and 0 where out is -inf."""
    finite = out > -jnp.inf
    return jnp.where(finite, jnp.exp(jnp.minimum(x - jnp.where(finite, out, 0), -TANGENT_FLOOR)), 0)


def _deep_tangent(x, matrix, out, d_x, d_matrix, axis):
    """Σ_v exp(x_v - out_z)(M d_x_v + d_M), row by row of the matrix, so that memory stays that of one row."""
    rows = [matrix] + ([] if d_matrix is None else [d_matrix])

    def derivative(ratio, row, d_row, d_value):
        total = 0.0
        if d_value is not None:
            total = total + jnp.where(row > 0, ratio * row.astype(ratio.dtype), 0) * d_value
        if d_row is not None:
            total = total + ratio * d_row.astype(ratio.dtype)
        return total

    @jax.checkpoint
    def one_result(_, xs):
        out_z, row, *d_row = xs
        ratio = clipped_ratio(x, out_z[..., None])
        return None, jnp.sum(derivative(ratio, row, d_row[0] if d_row else None, d_x), axis=-1)

    @jax.checkpoint
    def one_weight(total, xs):
        (x_z, d_x_z), row, *d_row = xs
        ratio = clipped_ratio(x_z[..., None], out)
        d_value = None if d_x_z is None else d_x_z[..., None]
        return total + derivative(ratio, row, d_row[0] if d_row else None, d_value), None

    if axis == 1:
        return jnp.moveaxis(lax.scan(one_result, None, (jnp.moveaxis(out, -1, 0), *rows))[1], 0, -1)
    columns = (jnp.moveaxis(x, -1, 0), None if d_x is None else jnp.moveaxis(d_x, -1, 0))
    return lax.scan(one_weight, jnp.zeros_like(out), (columns, *rows))[0]
