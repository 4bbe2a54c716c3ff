"""Random circuits and evidence on tiny sizes, reproducible from a seed, with exact zeros and wide spreads on demand."""

import jax.numpy as jnp
import numpy as np

from codd_jax.circuits import HMM


def random_case(seed, size=(4, 3, 4), *, tied=True, latent=False, zeros=False, spread=None):
    """(hmm, log_phi, tokens, known, log_latent or None) for a size (T, H, V).

    zeros puts exact zeros into every parameter and into φ. spread sets the standard deviation in nats of log φ and of
    the latent potentials (default: mild ones of mixed width).
    """
    rng = np.random.default_rng([seed, *size, tied, latent, zeros])
    T, H, V = size
    lead_a, lead_e = ((), ()) if tied else ((T - 1,), (T,))

    def rows(*shape):
        x = rng.dirichlet(np.ones(shape[-1]), shape[:-1])
        if zeros:
            drop = rng.random(shape) < 0.4
            drop[np.arange(shape[-1]) == rng.integers(shape[-1], size=(*shape[:-1], 1))] = False
            x = np.where(drop, 0, x)
            x /= x.sum(-1, keepdims=True)
        return jnp.asarray(x, jnp.float32)

    hmm = HMM(rows(H), rows(*lead_a, H, H), rows(*lead_e, H, V), length=T)
    log_phi = rng.normal(size=(T, V)) * (rng.choice([0.5, 3, 20]) if spread is None else spread)
    log_phi -= np.log(np.exp(log_phi - log_phi.max(-1, keepdims=True)).sum(-1, keepdims=True))
    log_phi -= log_phi.max(-1, keepdims=True)
    if zeros:
        log_phi = np.where(rng.random((T, V)) < 0.2, -np.inf, log_phi)
    tokens = jnp.asarray(rng.integers(V, size=T), jnp.int32)
    known = jnp.asarray(rng.random(T) < 0.4)
    log_latent = rng.normal(size=(T, H)) * (1 if spread is None else spread) if latent else None
    log_latent = None if log_latent is None else jnp.asarray(log_latent, jnp.float32)
    return hmm, jnp.asarray(log_phi, jnp.float32), tokens, known, log_latent
