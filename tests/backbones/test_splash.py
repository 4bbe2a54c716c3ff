"""Splash attention, interpreted without a TPU, against XLA's: lengths, grouped heads, gradients, many devices."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.backbones.attention import attend, choose_implementation
from codd_jax.backbones.splash import splash_attend

FOUR_DEVICES = """
import jax, numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
from codd_jax.sharding import make_mesh
from tests.backbones.test_splash import attend, operands, splash_attend

for spec, batch, heads in (("data:2,model:2", 2, 2), ("data:2,model:2", 3, 1), ("data:4", 4, 2)):
    *parts, lengths = operands(batch, 128, 128, 2 * heads, heads)
    mesh = make_mesh(spec)
    found = jax.jit(lambda *parts: splash_attend(*parts, mesh, interpret=True))(*parts, lengths)
    np.testing.assert_allclose(found, attend(*parts, lengths), atol=1e-5)
    spread = [axis for axis in found.sharding.spec if axis is not None]
    assert ("data" in spread) == (batch % mesh.shape["data"] == 0), (spec, batch, spread)
print("equal")
"""


def operands(batch, queries, keys, num_heads, num_kv_heads, dtype=jnp.float32):
    """Queries, keys, values and lengths."""
    rng = np.random.default_rng(0)
    shapes = [(batch, queries, num_heads, 128), *[(batch, keys, num_kv_heads, 128)] * 2]
    parts = [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]
    return *parts, jnp.asarray(rng.integers(1, keys + 1, batch), jnp.int32)


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "groups"), [(256, 256, 2, 2), (130, 130, 4, 2), (128, 700, 2, 1), (5, 129, 1, 1)]
)
def test_it_agrees_with_xla(queries, keys, heads, groups):
    *parts, lengths = operands(2, queries, keys, heads, groups)
    found = splash_attend(*parts, lengths, interpret=True)
    np.testing.assert_allclose(found, attend(*parts, lengths), atol=1e-5)
    np.testing.assert_allclose(splash_attend(*parts, None, interpret=True), attend(*parts, None), atol=1e-5)


def test_bfloat16_stays_bfloat16():
    *parts, lengths = operands(1, 128, 128, 2, 2, jnp.bfloat16)
    found, wanted = splash_attend(*parts, lengths, interpret=True), attend(*parts, lengths)
    assert found.dtype == wanted.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), wanted.astype(jnp.float32), atol=0.03)


def test_a_row_without_tokens_is_finite():
    *parts, _ = operands(2, 128, 128, 1, 1)
    found = splash_attend(*parts, jnp.asarray([0, 7]), interpret=True)
    assert bool(jnp.isfinite(found).all())
    np.testing.assert_allclose(found[1], attend(*parts, jnp.asarray([0, 7]))[1], atol=1e-5)


def test_gradients_agree():
    *parts, lengths = operands(2, 130, 130, 4, 2)
    weights = jax.random.normal(jax.random.key(1), parts[0].shape)

    def pull(function):
        return jax.grad(lambda parts: jnp.sum(weights * function(*parts, lengths)))(tuple(parts))

    wanted = pull(attend)
    for found, one in zip(pull(lambda *args: splash_attend(*args, interpret=True)), wanted, strict=True):
        np.testing.assert_allclose(found, one, atol=2e-5)


def test_it_is_split_by_rows_and_heads():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    done = subprocess.run([sys.executable, "-c", FOUR_DEVICES], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == "equal", done.stderr[-3000:]


def test_elsewhere_it_is_xla():
    for queries in (5, 130):
        *parts, lengths = operands(1, queries, 130, 2, 2)
        np.testing.assert_array_equal(attend(*parts, lengths, "splash"), attend(*parts, lengths))


@pytest.mark.parametrize(
    ("name", "dtype", "head_dim", "backend", "chosen"),
    [
        ("auto", "bfloat16", 128, "tpu", "splash"),
        ("auto", "float32", 128, "tpu", "splash"),
        ("auto", "bfloat16", 64, "tpu", "xla"),
        ("auto", "bfloat16", 64, "gpu", "cudnn"),
        ("auto", "float32", 128, "gpu", "xla"),
        ("auto", "bfloat16", 128, "cpu", "xla"),
        ("xla", "bfloat16", 128, "tpu", "xla"),
    ],
)
def test_the_kernel_suits_the_device(name, dtype, head_dim, backend, chosen):
    assert choose_implementation(name, dtype, head_dim, backend) == chosen


def test_narrow_heads_are_refused():
    with pytest.raises(ValueError, match="multiple of 128; got 64"):
        choose_implementation("splash", "bfloat16", 64)
