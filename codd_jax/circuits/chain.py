"""The log-space recurrence that the forward and the backward messages share, in scans of scaled matrix products.

`post_t = prior_t + weight_t`, `prior_{t+1} = log(exp(post_t) · A_t)`: read forwards from log π these are the forward
messages, read backwards with A transposed from zeros they are the backward messages.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from codd_jax.circuits import logspace

# By the contracted axis, for CPUs: measured with 1,024 and 2,048 states. With 512, one product is as fast.
_BLOCKS = {0: 16, 1: 8}
_LARGE = 1024


class Chain(NamedTuple):
    """Messages of one direction, each post message shifted so that its maximum is 0: long products keep their digits.

    Attributes:
      prior: [..., T, H], the message that enters position t, in units of the previous post message.
      post: [..., T, H], with the weight of position t, maximum 0 (all -inf under impossible evidence).
      shift: [..., T], what was taken off at t; the true log message is `post_t + Σ_{s≤t} shift_s`.
    """

    prior: jax.Array
    post: jax.Array
    shift: jax.Array

    def unshifted(self) -> tuple[jax.Array, jax.Array]:
        """(prior, post) [..., T, H] as true log-values."""
        total = exact_cumsum(self.shift)[..., None]
        before = jnp.concatenate([jnp.zeros_like(total[..., :1, :]), total[..., :-1, :]], axis=-2)
        return self.prior + before, self.post + total


def exact_cumsum(x: jax.Array) -> jax.Array:
    """Running sums along the last axis that are rounded once each: coarse and fine parts are summed apart."""
    coarse = jnp.round(x * 64) / 64
    return jnp.cumsum(coarse, axis=-1) + jnp.cumsum(x - coarse, axis=-1)


def run_chain(first: jax.Array, weights: jax.Array, transition: jax.Array, reverse: bool = False) -> Chain:
    """The recurrence over all positions; exact under zeros and under any spread, differentiable.

    Args:
      first: [..., H] log message that enters the first (with `reverse` the last) position.
      weights: [..., T, H] log-weights, -inf allowed.
      transition: [H, H] or [T-1, H, H] probabilities, from the state at t to the state at t+1.
      reverse: from the last position to the first, against the arrows.
    """
    dtype = logspace.compute_dtype(first, weights)
    first = jnp.broadcast_to(first.astype(dtype), weights.shape[:-2] + weights.shape[-1:])
    transition = transition.astype(dtype)
    if reverse:
        weights = jnp.flip(weights, -2)
        transition = jnp.flip(transition, 0) if transition.ndim == 3 else transition
    chain = _run(first, weights.astype(dtype), transition, 1 if reverse else 0)
    if reverse:
        return Chain(jnp.flip(chain.prior, -2), jnp.flip(chain.post, -2), jnp.flip(chain.shift, -1))
    return chain


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _run(first: jax.Array, weights: jax.Array, transition: jax.Array, axis: int) -> Chain:
    """`run_chain` in scan order; `axis` of the transition is contracted with the message."""
    return _RUNS[axis](first, weights, transition)


def _exact(first: jax.Array, weights: jax.Array, transition: jax.Array, axis: int) -> Chain:
    scaling = logspace.Scaling.of(first.shape[-1], first.dtype)
    chain = _scan(first, weights, transition, axis, functools.partial(logspace.log_matvec, product=_message_product))

    def lossy(chain: Chain) -> jax.Array:
        # Nothing can be lost where no finite entry lies outside the band that every product sees.
        post, following = chain.post[..., :-1, :], chain.prior[..., 1:, :]
        hidden = jnp.any((post > -jnp.inf) & (post < -scaling.band), axis=-1)
        return jnp.any(hidden & jnp.any(following < scaling.floor, axis=-1))

    def again(carry):
        return _scan(first, weights, transition, axis, logspace.deep_log_matvec), jnp.zeros_like(carry[1])

    return lax.while_loop(lambda carry: logspace.batch_any(carry[1]), again, (chain, lossy(chain)))[0]


def _windows_as_rows(axis: int):
    """`_exact` for which `vmap` over windows is a leading dimension: products of many rows, not many products."""
    one = functools.partial(_exact, axis=axis)
    run = jax.custom_batching.custom_vmap(one)

    @run.def_vmap
    def rule(size, batched, first, weights, transition):
        if batched[2]:  # circuits of their own
            axes = [0 if flag else None for flag in batched]
            return jax.vmap(one, axes)(first, weights, transition), Chain(True, True, True)
        rows = [
            x if flag else jnp.broadcast_to(x, (size, *x.shape))
            for x, flag in zip((first, weights), batched[:2], strict=True)
        ]
        return run(*rows, transition), Chain(True, True, True)

    return run


_RUNS = {axis: _windows_as_rows(axis) for axis in (0, 1)}


def _scan(first, weights, transition, axis: int, product) -> Chain:
    """The recurrence as one scan, with `product(x, A, axis)` as the step."""
    tied = transition.ndim == 2
    weights = jnp.moveaxis(weights, -2, 0)

    def enter(prior, weight):
        post = prior + weight
        shift = logspace.finite_max(post)
        return post - shift, shift[..., 0]

    def step(prior, xs):
        weight, matrix = xs
        prior = product(enter(prior, weight)[0], transition if tied else matrix, axis)
        return prior, prior

    # Zeros of their own kind, so that under shard_map the carry varies over the mesh axes of weights and transition.
    first = first + jnp.zeros_like(weights[0]) + jnp.sum(jnp.zeros_like(transition[..., 0, 0]))
    rest = lax.scan(step, first, (weights[:-1], None if tied else transition))[1]
    prior = jnp.concatenate([first[None], rest])
    # Again, for all positions at once: the scan then writes one array instead of three.
    post, shift = enter(prior, weights)
    return Chain(jnp.moveaxis(prior, 0, -2), jnp.moveaxis(post, 0, -2), jnp.moveaxis(shift, 0, -1))


def _message_product(matrix: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """`logspace.matvec` for few rows of weights; CPUs multiply a large matrix faster as a batch of blocks of its rows.

    So for matrices of `_LARGE` rows and more that divide into the blocks, over axis 1 with one row of weights alone:
    with more, the whole product is faster.
    """
    blocks = _BLOCKS[axis]
    states, one_row = matrix.shape[0], weights.size == weights.shape[-1]
    whole = functools.partial(logspace.matvec, axis=axis)
    if states < _LARGE or states % blocks or (axis == 1 and not one_row):
        return whole(matrix, weights)

    def in_blocks(matrix, weights):
        matrix = matrix.reshape(blocks, states // blocks, -1)
        if axis == 1:
            weights = jnp.broadcast_to(weights, (blocks, *weights.shape))
            dims = (((2,), (weights.ndim - 1,)), ((0,), (0,)))
            out = lax.dot_general(matrix, weights, dims, precision=lax.Precision.HIGHEST)
            return jnp.moveaxis(out.reshape(-1, *out.shape[2:]), 0, -1)
        weights = weights.reshape(*weights.shape[:-1], blocks, -1)
        dims = (((weights.ndim - 1,), (1,)), ((weights.ndim - 2,), (0,)))
        return jnp.sum(lax.dot_general(weights, matrix, dims, precision=lax.Precision.HIGHEST), axis=0)

    return lax.platform_dependent(matrix, weights, cpu=in_blocks, default=whole)


@functools.partial(_run.defjvp, symbolic_zeros=True)
def _run_jvp(axis, primals, tangents):
    first, weights, transition = primals
    d_first, d_weights, d_transition = (None if type(t) is SymbolicZero else t for t in tangents)
    chain = _run(first, weights, transition, axis)
    post, following = chain.post[..., :-1, :], chain.prior[..., 1:, :]
    deep = logspace.batch_any(jnp.any((following > -jnp.inf) & (following < logspace.TANGENT_FLOOR)))
    scaled = logspace.exp_scaled(post, logspace.TANGENT_BITS)
    inverse = logspace.inverse_scaled(following)
    # Zeros of the messages' own kind, so that under shard_map a scan's carry varies over the same mesh axes.
    d_first = jnp.zeros_like(chain.prior[..., 0, :]) + (0.0 if d_first is None else d_first)
    d_weights = jnp.zeros_like(chain.prior) if d_weights is None else d_weights

    def fast(d_first, d_weights, d_transition):
        # The part of the transition is one product for all positions, outside the scan.
        extra = jnp.zeros_like(following)
        if d_transition is not None:
            extra = _products(scaled, d_transition, axis) * inverse

        def step(d_post, p, inv, matrix):
            return logspace.matvec(matrix, p * d_post, axis) * inv

        return _tangent_scan(step, d_first, d_weights, extra, (scaled, inverse), transition)

    def exact(d_first, d_weights, d_transition):
        extra = jnp.zeros_like(following)
        d_matrix = jnp.zeros_like(transition) if d_transition is None else d_transition

        @jax.checkpoint
        def step(d_post, x, out, matrix):
            matrix, d_matrix = matrix
            if axis == 1:
                matrix, d_matrix = matrix.T, d_matrix.T
            ratio = logspace.clipped_ratio(x[..., :, None], out[..., None, :])
            share = jnp.where(matrix > 0, ratio * matrix, 0)
            return jnp.sum(share * d_post[..., :, None] + ratio * d_matrix, axis=-2)

        return _tangent_scan(step, d_first, d_weights, extra, (post, following), (transition, d_matrix))

    d_prior = lax.cond(deep, exact, fast, d_first, d_weights, d_transition)
    return chain, Chain(d_prior, d_prior + d_weights, jnp.zeros_like(chain.shift))


def _products(weights: jax.Array, matrix: jax.Array, axis: int) -> jax.Array:
    """[..., T-1, H] weights times the tied or the position's own matrix."""
    if matrix.ndim == 2:
        return logspace.matvec(matrix, weights, axis)
    return jnp.moveaxis(jax.vmap(lambda w, m: logspace.matvec(m, w, axis))(jnp.moveaxis(weights, -2, 0), matrix), 0, -2)


def _tangent_scan(step, d_first, d_weights, extra, per_step, matrices):
    """The linear recurrence `d_prior_{t+1} = step(d_prior_t + d_weight_t) + extra_{t+1}` → d_prior [..., T, H]."""
    tied = jax.tree.leaves(matrices)[0].ndim == 2
    front = lambda x: jnp.moveaxis(x, -2, 0)  # noqa: E731

    def body(d_prior, xs):
        d_weight, add, values, matrix = xs
        d_prior = step(d_prior + d_weight, *values, matrices if tied else matrix) + add
        return d_prior, d_prior

    xs = (front(d_weights)[:-1], front(extra), tuple(front(x) for x in per_step), None if tied else matrices)
    rest = lax.scan(body, d_first, xs)[1]
    return jnp.moveaxis(jnp.concatenate([d_first[None], rest]), 0, -2)
