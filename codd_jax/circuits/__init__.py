"""The circuit: a hidden Markov model that couples the tokens of a window (CoDD, sections 4 and 5)."""

from codd_jax.circuits.any_order import AnyOrderDraw, sample_any_order, sample_any_order_from_leaf
from codd_jax.circuits.context import Context
from codd_jax.circuits.hmm import HMM
from codd_jax.circuits.learning import Counts, conditional_counts, expected_counts, observed_counts
from codd_jax.circuits.likelihood import conditional_log_likelihood, log_likelihood
from codd_jax.circuits.messages import (
    backward_messages,
    forward_messages,
    leaf_values,
    log_partition,
    log_partition_from_leaf,
)
from codd_jax.circuits.modulation import Modulation, modulate
from codd_jax.circuits.posterior import (
    conditionals,
    conditionals_from_leaf,
    latent_logits,
    posterior_marginals,
    posterior_marginals_from_leaf,
    sample,
    sample_latents,
    sample_latents_and_partition,
    sample_latents_from_leaf,
)

__all__ = [
    "HMM",
    "AnyOrderDraw",
    "Context",
    "Counts",
    "Modulation",
    "backward_messages",
    "conditional_counts",
    "conditional_log_likelihood",
    "conditionals",
    "conditionals_from_leaf",
    "expected_counts",
    "forward_messages",
    "latent_logits",
    "leaf_values",
    "log_likelihood",
    "log_partition",
    "log_partition_from_leaf",
    "modulate",
    "observed_counts",
    "posterior_marginals",
    "posterior_marginals_from_leaf",
    "sample",
    "sample_any_order",
    "sample_any_order_from_leaf",
    "sample_latents",
    "sample_latents_and_partition",
    "sample_latents_from_leaf",
]
