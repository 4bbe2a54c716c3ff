"""From a .jpc file to log Z and posteriors: the values that another implementation computed in float64."""

import jax
import numpy as np
import pytest

from codd_jax import circuits
from codd_jax.io import jpc


@pytest.mark.parametrize("name", ["inhom_compiled_T4_H4_V3_block2", "hom_softevidence_T4_H4_V6"])
def test_log_partition_and_posteriors(fixtures_dir, name):
    hmm = jpc.read(fixtures_dir / "jpc" / f"{name}.jpc")
    golden = np.load(fixtures_dir / "jpc" / f"{name}.npz")
    log_phi, tokens, known = golden["log_phi"], golden["tokens"].astype(np.int32), golden["value_mask"]
    of_known = np.where(known, np.take_along_axis(log_phi, tokens[..., None], -1)[..., 0], 0.0).sum(-1)

    def both(log_phi, tokens, known):
        evidence = hmm, log_phi, tokens, known
        return circuits.log_partition(*evidence), circuits.posterior_marginals(*evidence)

    partition, posterior = jax.jit(jax.vmap(both))(log_phi, tokens, known)
    np.testing.assert_allclose(np.asarray(partition), golden["log_z"] - of_known, atol=1e-4, rtol=0)
    np.testing.assert_allclose(np.asarray(posterior), golden["posterior_z"], atol=1e-5)
