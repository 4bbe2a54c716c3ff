"""Shared test set-up: exact matrix products, and the golden fixtures where they are at hand."""

import gc
import os
import pathlib
from collections.abc import Iterator

import jax
import pytest

# TF32 and bf16 passes would hide parity errors behind rounding.
jax.config.update("jax_default_matmul_precision", "highest")

_DEFAULT_FIXTURES = pathlib.Path(__file__).resolve().parents[1].parent / "shared" / "fixtures"


@pytest.fixture(scope="session")
def fixtures_dir() -> pathlib.Path:
    """The folder of golden outputs computed by other implementations (CODD_JAX_FIXTURES), or a skip."""
    folder = pathlib.Path(os.environ.get("CODD_JAX_FIXTURES", _DEFAULT_FIXTURES))
    if not folder.is_dir():
        pytest.skip(f"golden fixtures are not at {folder}; set CODD_JAX_FIXTURES to their folder")
    return folder


@pytest.fixture
def quick_compilation():
    """Skips the compiler's expensive passes: these tests compile many small programs and run each once."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Drop compiled programs after every file: each holds memory maps, and a process may only have so many of them."""
    yield
    jax.clear_caches()
    gc.collect()
