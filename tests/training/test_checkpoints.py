"""Checkpoints come back bit for bit, the last two stay, other settings are refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.sharding import make_mesh, replicated
from codd_jax.training.checkpoints import TrainingCheckpoints


def state(seed):
    """A state with every kind of leaf."""
    key = jax.random.key(seed)
    weights = jax.random.normal(key, (3, 4))
    return {"w": weights, "half": weights.astype(jnp.bfloat16), "key": key, "step": jnp.int32(seed), "host": 7 + seed}


def check_equal(got, expected):
    """Equal bits and types."""
    for name, value in expected.items():
        assert type(got[name]) is type(value), name
        bits = [jax.random.key_data(x) if name == "key" else x for x in (got[name], value)]
        np.testing.assert_array_equal(*bits)


def test_the_last_two_come_back(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path, {"rate": 0.1})
    assert checkpoints.restore(state(0)) is None
    for step in (1, 2, 3):
        checkpoints.save(step, state(step), {"loss": step / 10})
    assert checkpoints.steps() == [2, 3] and sorted(p.suffix for p in tmp_path.glob("step*")) == [
        "",
        "",
        ".json",
        ".json",
    ]
    again = TrainingCheckpoints(tmp_path, {"rate": 0.1})
    step, got = again.restore(state(0))
    assert step == 3 and again.notes(3) == {"loss": 0.3}
    check_equal(got, state(3))
    check_equal(again.restore(state(0), 2)[1], state(2))
    again.save(3, state(9))
    check_equal(again.restore(state(0))[1], state(9))
    with pytest.raises(ValueError, match=r"no checkpoint of step 1; it holds \[2, 3\]"):
        again.restore(state(0), 1)


def test_arrays_go_into_the_shardings_asked_for(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path, {})
    checkpoints.save(1, state(1))
    mesh = make_mesh("data:1,model:1")
    abstract = {**state(0), "w": jax.ShapeDtypeStruct((3, 4), jnp.float32, sharding=replicated(mesh))}
    got = checkpoints.restore(abstract)[1]
    assert got["w"].sharding == replicated(mesh)
    np.testing.assert_array_equal(got["w"], state(1)["w"])


def test_other_settings_are_refused(tmp_path):
    TrainingCheckpoints(tmp_path, {"rate": 0.1, "data": {"seed": 0}}).save(1, state(1))
    with pytest.raises(ValueError, match=r"data\.seed: 0 before, 1 now\n  rate: 0\.1 before, 0\.2 now"):
        TrainingCheckpoints(tmp_path, {"rate": 0.2, "data": {"seed": 1}})
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"without the settings\.json"):
        TrainingCheckpoints(tmp_path, {"rate": 0.1})


def test_settings_may_change_before_the_first_checkpoint(tmp_path):
    TrainingCheckpoints(tmp_path, {"rate": 0.1})
    TrainingCheckpoints(tmp_path, {"rate": 0.2})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"rate": 0.2}


def test_what_does_not_fit_or_is_damaged_is_said(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path, {})
    checkpoints.save(1, state(1))
    with pytest.raises(ValueError, match="step_00000001 cannot be restored"):
        checkpoints.restore({**state(0), "more": jnp.zeros(3)})
    for file in (tmp_path / "step_00000001").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(ValueError, match="step_00000001 cannot be restored"):
        checkpoints.restore(state(0))


def test_a_save_that_was_killed_is_no_checkpoint(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path, {})
    checkpoints.save(1, state(1))
    (tmp_path / "step_00000002.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "step_00000002.json").write_text("{}")
    assert checkpoints.steps() == [1] and checkpoints.restore(state(0))[0] == 1
    checkpoints.save(2, state(2))
    check_equal(checkpoints.restore(state(0))[1], state(2))
