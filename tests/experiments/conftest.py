"""Scripts run in this process leave the user's cache of compiled programs alone."""

import jax
import pytest


@pytest.fixture(autouse=True)
def no_compilation_cache():
    """Switches the cache off, as JAX_ENABLE_COMPILATION_CACHE=0 does."""
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)
