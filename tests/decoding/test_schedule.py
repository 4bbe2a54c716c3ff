"""Schedules against the published loops' step counts (golden), for every step count and eps of the fixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.decoding import schedule


@pytest.fixture(scope="module")
def goldens(fixtures_dir):
    with np.load(fixtures_dir / "decode_loops" / "schedules.npz") as archive:
        return dict(archive)


@jax.jit
def _timesteps(steps, eps):
    return schedule.timestep(jnp.arange(513), steps, eps)


@jax.jit
def _timestep_quotas(steps, eps):
    def body(masks, step):
        quota = schedule.timestep_quota(masks, step, steps, eps)
        return masks - quota, quota

    return jax.lax.scan(body, jnp.int32(512), jnp.arange(512))[1]


def test_timesteps_bit_for_bit(goldens):
    seen = 0
    for name, golden in goldens.items():
        if not name.startswith("dream_timesteps"):
            continue
        steps, eps = int(name.split("_steps")[1].split("_")[0]), np.float32(name.split("_eps")[1])
        np.testing.assert_array_equal(_timesteps(np.int32(steps), eps)[: steps + 1], golden, err_msg=name)
        seen += 1
    assert seen == 42
    assert _timesteps._cache_size() == 1


def test_timestep_quotas(goldens):
    for name, golden in goldens.items():
        if name.startswith("dream_n512"):
            steps, eps = int(name.split("_steps")[1].split("_")[0]), np.float32(name.split("_eps")[1])
            np.testing.assert_array_equal(_timestep_quotas(np.int32(steps), eps)[:steps], golden, err_msg=name)
            assert golden.sum() == 512


def test_even_quotas(goldens):
    for name, golden in goldens.items():
        if name.startswith("llada"):
            masks, steps = int(name.split("_n")[1].split("_")[0]), len(golden)
            quota = schedule.even_quota(jnp.int32(masks), jnp.arange(steps), jnp.int32(steps))
            np.testing.assert_array_equal(quota, golden, err_msg=name)


@pytest.mark.parametrize(("steps", "blocks"), [(12, 3), (10, 4), (7, 5), (64, 16), (5, 5)])
def test_steps_split_over_blocks(steps, blocks):
    index = jnp.arange(blocks)
    even, offset = schedule.block_steps(jnp.int32(steps), jnp.int32(blocks), index, "even")
    assert int(even.sum()) == steps and int(even.max() - even.min()) <= 1
    np.testing.assert_array_equal(offset, np.cumsum(even) - even)
    floor, offset = schedule.block_steps(jnp.int32(steps), jnp.int32(blocks), index, "floor")
    np.testing.assert_array_equal(floor, np.full(blocks, steps // blocks))
    np.testing.assert_array_equal(offset, np.arange(blocks) * (steps // blocks))
