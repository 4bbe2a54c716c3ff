"""Coupled Discrete Diffusion (arXiv 2603.00045): diffusion language models that sample a step's tokens jointly."""

from codd_jax import circuits
from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.circuits import HMM
from codd_jax.decoding import DecodeConfig
from codd_jax.generation import Generation
from codd_jax.likelihood import LogLikelihood
from codd_jax.model import CoDD
from codd_jax.sharding import make_mesh
from codd_jax.version import __version__

__all__ = [
    "HMM",
    "BackboneConfig",
    "CoDD",
    "DecodeConfig",
    "Generation",
    "LogLikelihood",
    "Transformer",
    "__version__",
    "circuits",
    "make_mesh",
]
