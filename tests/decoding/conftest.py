"""The tiny backbones that decoding is tested with, loaded once."""

import functools

import pytest
from flax import nnx

from codd_jax.backbones.config import config_from_huggingface
from codd_jax.decoding import BackboneDenoiser
from codd_jax.io.safetensors import load_backbone


@pytest.fixture(scope="session")
def tiny(fixtures_dir):
    """name → (denoiser, params, config) of a tiny checkpoint."""

    @functools.cache
    def load(name):
        config = config_from_huggingface(fixtures_dir / name)
        graphdef, params = nnx.split(load_backbone(fixtures_dir / name, config, layout="stacked", progress=False))
        return BackboneDenoiser(graphdef), params, config

    return load
