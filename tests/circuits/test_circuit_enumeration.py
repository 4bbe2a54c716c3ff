"""Circuit quantities against enumeration in float64, over parameter layouts, zeros, evidence and latent potentials."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import circuits
from tests.oracles.hmm_enumeration import Case

SIZES = [(4, 3, 4), (1, 2, 3)]
SEEDS = range(12)


def random_case(seed, size, tied, latent, zeros):
    """(hmm, log_phi, tokens, known, log_latent or None) drawn from `seed`; `zeros` puts exact zeros everywhere."""
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

    hmm = circuits.HMM(rows(H), rows(*lead_a, H, H), rows(*lead_e, H, V), length=T)
    log_phi = np.asarray(jax.nn.log_softmax(jnp.asarray(rng.normal(size=(T, V)) * rng.choice([0.5, 3, 20]))))
    if zeros:
        log_phi = np.where(rng.random((T, V)) < 0.2, -np.inf, log_phi)
    log_phi = jnp.asarray(log_phi, jnp.float32)
    tokens = jnp.asarray(rng.integers(V, size=T), jnp.int32)
    known = jnp.asarray(rng.random(T) < 0.4)
    log_latent = jnp.asarray(rng.normal(size=(T, H)), jnp.float32) if latent else None
    return hmm, log_phi, tokens, known, log_latent


def everything(hmm, log_phi, tokens, known, log_latent):
    """All quantities of one window in one program."""
    leaf = circuits.leaf_values(hmm, log_phi, tokens, known)
    return {
        "log_z": circuits.log_partition(hmm, log_phi, tokens, known, log_latent),
        "posterior": circuits.posterior_marginals(hmm, log_phi, tokens, known, log_latent),
        "conditionals": circuits.conditionals(hmm, log_phi, tokens, known, log_latent),
        "forward": circuits.forward_messages(hmm, leaf, log_latent),
        "backward": circuits.backward_messages(hmm, leaf, log_latent),
    }


compiled = jax.jit(everything)


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_quantities_equal_enumeration(size, tied, latent, zeros):
    impossible = 0
    for seed in SEEDS:
        inputs = random_case(seed, size, tied, latent, zeros)
        case = Case.of(*inputs)
        got = jax.device_get(compiled(*inputs))
        log_z = case.log_partition()
        impossible += log_z == -np.inf
        np.testing.assert_allclose(got["log_z"], log_z, rtol=1e-6, atol=1e-5)
        np.testing.assert_allclose(got["posterior"], case.posterior_marginals(), atol=2e-6)
        np.testing.assert_allclose(np.exp(got["conditionals"]), case.conditionals(), atol=2e-6)
        prior, alpha = got["forward"]
        with np.errstate(divide="ignore"):
            for t in range(case.length):
                total = np.log(np.exp(alpha[t].astype(float) + got["backward"][t]).sum())
                np.testing.assert_allclose(total, log_z, rtol=1e-5, atol=1e-5)
        assert not np.isnan(prior).any()
    assert zeros or not impossible


def test_zeros_produce_impossible_evidence_somewhere():
    cases = [random_case(seed, SIZES[0], True, False, True) for seed in SEEDS]
    assert any(Case.of(*inputs).log_partition() == -np.inf for inputs in cases)
