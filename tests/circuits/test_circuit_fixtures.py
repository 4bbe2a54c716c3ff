"""Circuit quantities against the float64 values that come with the circuit files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import circuits
from codd_jax.circuits import HMM

NAMES = (
    "hom_raw_T4_H4_V5",
    "hom_compiled_T4_H4_V5",
    "hom_given_T5_H4_V3_block2",
    "inhom_raw_T4_H3_V5",
    "inhom_compiled_T4_H4_V3_block2",
    "hom_compiled_T8_H32_V50_block8",
    "hom_compiled_T32_H32_V64_block32",
    "hom_sparse_edges_T4_H8_V5_block2",
    "hom_categorical_em_T4_H4_V6",
    "hom_softevidence_T4_H4_V6",
)


@pytest.mark.parametrize("name", NAMES)
def test_quantities_equal_the_golden_values(fixtures_dir, name):
    golden = np.load(fixtures_dir / "jpc" / f"{name}.npz")
    log_phi, known = golden["log_phi"], golden["value_mask"]
    tokens = jnp.asarray(golden["tokens"], jnp.int32)
    hmm = HMM.from_probabilities(golden["pi"], golden["A"], golden["E"], length=tokens.shape[1])
    np.testing.assert_array_equal(hmm.emission, golden["E"])

    def both(log_phi, tokens, known):
        evidence = hmm, log_phi, tokens, known
        return circuits.log_partition(*evidence), circuits.posterior_marginals(*evidence)

    program = jax.jit(jax.vmap(both))
    log_z, posterior = program(log_phi, tokens, known)
    chosen = np.take_along_axis(log_phi, golden["tokens"][..., None], -1)[..., 0].astype(np.float64)
    np.testing.assert_allclose(log_z, golden["log_z"] - (chosen * known).sum(-1), atol=1e-4, rtol=0)
    np.testing.assert_allclose(posterior, golden["posterior_z"], atol=1e-5)

    log_z, _ = program(log_phi, tokens, np.zeros_like(known))
    np.testing.assert_allclose(log_z, golden["log_z_all_masked"], atol=1e-4, rtol=0)
    log_z, _ = program(log_phi, tokens, np.ones_like(known))
    np.testing.assert_allclose(log_z, golden["log_joint_all_observed"] - chosen.sum(-1), atol=1e-4, rtol=0)
    np.testing.assert_allclose(log_z, golden["log_lik"], atol=1e-4, rtol=0)
    log_z, _ = program(np.zeros_like(log_phi), tokens, known)
    np.testing.assert_allclose(log_z, golden["log_marginal_lik"], atol=1e-4, rtol=0)


def test_local_normalisation_equals_the_golden_values(fixtures_dir):
    golden = np.load(fixtures_dir / "jpc" / "hom_softevidence_T4_H4_V6.npz")
    hmm = HMM.from_probabilities(golden["pi"], golden["A"], golden["E"], length=4, normalization="local")
    objective = functools.partial(circuits.conditional_log_likelihood, hmm, normalization="local")
    tokens = jnp.asarray(golden["tokens"], jnp.int32)
    masked = jnp.zeros(tokens.shape, bool)
    # With everything masked the evidence of the known tokens is 1.
    np.testing.assert_allclose(
        jax.vmap(objective)(golden["log_phi"], tokens, masked), golden["log_lik_locally_normalised"], atol=1e-4, rtol=0
    )
