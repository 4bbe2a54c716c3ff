"""What the context adds to a circuit in one window: potentials of its states, and a change of its emissions.

Every circuit function takes a `Context` where it takes an array of latent potentials (CoDD, appendix E).
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from codd_jax.circuits import logspace

# e^80 is still a float32; exponents above it belong to weights of 0, whose derivatives alone see them.
_EXPONENT_LIMIT = 80.0


@flax.struct.dataclass
class Context:
    """A window's modulation; the emissions become E_t(z, v) = (E(z, v) + Σ_r c_{t,r}(z) B_r(v)) / (1 + Σ_r c_{t,r}(z)).

    Attributes:
      log_latent: [..., T, H] latent potentials g, or None. They belong to every position, known ones included.
      mixture: [..., T, R, H], c ≥ 0, or None; with `basis` or without either.
      basis: [R, V] probabilities, rows B_r that all windows and positions share.
    """

    log_latent: jax.Array | None = None
    mixture: jax.Array | None = None
    basis: jax.Array | None = None

    @property
    def batch_axes(self) -> Context:
        """What `vmap(in_axes=...)` takes for a batch of contexts: the basis is shared."""
        return Context(log_latent=0, mixture=0, basis=None)

    def at(self, positions: jax.Array) -> Context:
        """The context of the positions [K] of one window, in this order, as if they were a window of K."""
        pick = lambda x: None if x is None else x[positions]  # noqa: E731
        return Context(pick(self.log_latent), pick(self.mixture), self.basis)


# Latent potentials alone, or with changed emissions.
Latent = jax.Array | Context | None


def log_latent_of(context: Latent) -> jax.Array | None:
    """The latent potentials [..., T, H], None where there are none."""
    return context.log_latent if isinstance(context, Context) else context


def emission_change(context: Latent) -> Context | None:
    """The context if it changes the emissions, else None; ValueError for a mixture without a basis or the reverse."""
    if not isinstance(context, Context):
        return None
    if (context.mixture is None) != (context.basis is None):
        raise ValueError("a context's mixture and basis belong together; one of them is None")
    return None if context.mixture is None else context


def batch_axes(context: Latent) -> Context | int | None:
    """The `in_axes` of a batch of latent potentials or contexts."""
    return context.batch_axes if isinstance(context, Context) else None if context is None else 0


def check_context(context: Latent, length: int, states: int) -> None:
    """Raises a ValueError where a context's shapes are not those of `length` positions and `states` states."""
    log_latent, change = log_latent_of(context), emission_change(context)
    if log_latent is not None and log_latent.shape[-2:] != (length, states):
        raise ValueError(
            f"log_latent has shape {log_latent.shape}; the window needs [..., {length}, {states}] (positions, states)"
        )
    if change is not None and change.mixture.shape[-3:] != (length, change.basis.shape[0], states):
        raise ValueError(
            f"mixture has shape {change.mixture.shape}; the window and a basis of {change.basis.shape[0]} rows need "
            f"[..., {length}, {change.basis.shape[0]}, {states}] (positions, rows, states)"
        )


def mixed_masked_leaf(own: jax.Array, log_phi: jax.Array, context: Context, wanted: jax.Array | None) -> jax.Array:
    """log Σ_v E_t(z, v) φ_t(v) [..., T, H] from the circuit's own log Σ_v E(z, v) φ_t(v).

    Derivatives by c are those from above at c = 0, and the value there is `own`, bit for bit.
    """
    mixture = context.mixture.astype(own.dtype)
    reach = logspace.log_matmul(log_phi, context.basis, 1, wanted)[..., None]
    largest = jnp.max(logspace.safe_log(mixture) + reach, axis=-2)
    top = jax.lax.stop_gradient(jnp.maximum(own, largest))
    top = jnp.where(top == -jnp.inf, 0, top)
    parts = mixture * jnp.exp(jnp.minimum(reach - top[..., None, :], _EXPONENT_LIMIT))
    total = jnp.exp(own - top) + jnp.sum(parts, axis=-2)
    return top + logspace.safe_log(total) - log_mass(context)


def mixed_known_probabilities(own: jax.Array, index: jax.Array, context: Context) -> jax.Array:
    """E_t(z, x_t) [..., T, H] from the circuit's own E(z, x_t) and tokens `index` [..., T] of the vocabulary."""
    basis = jnp.moveaxis(context.basis[:, index], 0, -1)[..., None].astype(own.dtype)
    mixture = context.mixture.astype(own.dtype)
    return (own + jnp.sum(mixture * basis, axis=-2)) / (1 + jnp.sum(mixture, axis=-2))


def mixed_rows(own: jax.Array, latents: jax.Array, context: Context) -> jax.Array:
    """E_t(z_t, ·) [T, V] of a latent path [T] from the circuit's own rows E(z_t, ·)."""
    mixture = jnp.take_along_axis(context.mixture, latents[:, None, None], axis=-1)[..., 0].astype(own.dtype)
    added = jnp.matmul(mixture, context.basis.astype(own.dtype), precision=jax.lax.Precision.HIGHEST)
    return (own + added) / (1 + jnp.sum(mixture, axis=-1, keepdims=True))


def basis_share(log_w: jax.Array, log_phi: jax.Array, context: Context) -> jax.Array:
    """log Σ_r (Σ_z w_t(z) c_{t,r}(z)) B_r(v) [..., T, V]; `log_w` [..., T, H] is already over 1 + Σ_r c_{t,r}(z)."""
    weights = logspace.logsumexp(log_w[..., None, :] + logspace.safe_log(context.mixture.astype(log_w.dtype)))
    return logspace.log_matmul(weights, context.basis, 0, None, log_phi)


def log_mass(context: Context) -> jax.Array:
    """log(1 + Σ_r c_{t,r}(z)) [..., T, H], what the changed emissions are divided by."""
    return jnp.log1p(jnp.sum(context.mixture, axis=-2))
