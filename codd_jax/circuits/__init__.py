"""The circuit: a hidden Markov model that couples the tokens of a window (CoDD, sections 4 and 5)."""

from codd_jax.circuits.hmm import HMM

__all__ = ["HMM"]
