"""A run that stops continues bit for bit, the number of devices does not matter, and what goes wrong is said."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.circuits import HMM
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.history import save_history
from codd_jax.training.potentials import Head, MemoryWindows, WindowPotentials
from codd_jax.training.trainer import train_circuit

T, D, V, H = 4, 6, 9, 3
QUICK = {"steps": 8, "validate_every": 4, "checkpoint_every": 2}


def make_source(count=48, batch_size=16, seed=0, cls=MemoryWindows):
    """Windows of two alternating sentences that the head half predicts."""
    keys = jax.random.split(jax.random.key(0), 3)
    head = Head(jax.random.normal(keys[0], (V, D)), None)
    tokens = jnp.where(jnp.arange(count)[:, None] % 2, jnp.arange(T), jnp.arange(T) + 4).astype(jnp.int32)
    hidden = head.weight[tokens] / 4 + 0.1 * jax.random.normal(keys[1], (count, T, D))
    windows = WindowPotentials.of(hidden, tokens, jax.random.uniform(keys[2], (count, T)) < 0.8)
    return cls(head, windows, windows.take(jnp.arange(20)), batch_size=batch_size, seed=seed)


def start():
    """A circuit to start from."""
    return HMM.random(jax.random.key(5), T, H, V, scale=0.5)


def train(folder=None, source=None, **options):
    """A short run."""
    source = make_source() if source is None else source
    return train_circuit(source, start(), CircuitTraining(**{**QUICK, **options}), folder=folder, progress=False)


def assert_equal_bits(a, b):
    """Circuits of equal bits."""
    jax.tree.map(np.testing.assert_array_equal, a.hmm, b.hmm)


class Stops(MemoryWindows):
    """A source that fails at one step."""

    at, error = 6, RuntimeError

    def batch(self, step):
        """The batch, or the failure."""
        if step == self.at:
            raise self.error("stopped")
        return super().batch(step)


def test_training_lowers_the_nats_and_says_so(tmp_path):
    out = train(steps=40, validate_every=20)
    history = out.history
    first, last = history["validation"]
    assert last["coupled"] < first["coupled"] and last["coupled"] < last["backbone"] == first["backbone"]
    assert history["steps"] == 40 and history["stopped"] == "the budget was spent"
    assert sum(row["tokens"] for row in last["by_share"]) > 40
    weighted = sum(row["tokens"] * row["coupled"] for row in last["by_share"]) / sum(
        row["tokens"] for row in last["by_share"]
    )
    assert weighted == pytest.approx(last["coupled"], rel=1e-5)
    path = save_history(tmp_path, history)
    assert json.loads(path.read_text()) == history and path.with_suffix(".png").stat().st_size > 10_000
    out.hmm.validate()


@pytest.mark.parametrize(("error", "rule"), [(RuntimeError, "adam"), (KeyboardInterrupt, "adam"), (RuntimeError, "em")])
def test_a_run_that_stops_continues_bit_for_bit(tmp_path, monkeypatch, error, rule):
    whole = train(rule=rule)
    monkeypatch.setattr(Stops, "error", error)
    with pytest.raises(error):
        train(tmp_path, make_source(cls=Stops), rule=rule)
    assert not (tmp_path / "step_00000008").exists()
    again = train(tmp_path, rule=rule)
    assert_equal_bits(whole, again)
    assert whole.history["validation"][-1]["coupled"] == again.history["validation"][-1]["coupled"]
    assert_equal_bits(whole, train(tmp_path, make_source(cls=Stops), rule=rule))  # finished: no step is taken again


def test_a_killed_run_continues_bit_for_bit(tmp_path):
    script = f"""
import os, signal
from tests.training.test_trainer import Stops, make_source, train
class Kills(Stops):
    def batch(self, step):
        if step == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().batch(step)
train({str(tmp_path)!r}, make_source(cls=Kills))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=_root())
    assert done.returncode == -9, done.stderr[-2000:]
    assert (tmp_path / "step_00000004").is_dir() and not (tmp_path / "step_00000008").exists()
    assert_equal_bits(train(), train(tmp_path))


def test_another_run_in_the_folder_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(ValueError, match=r"rate: None before, 0\.1 now"):
        train(tmp_path, rate=0.1)
    with pytest.raises(ValueError, match="start: "):
        train_circuit(
            make_source(),
            HMM.random(jax.random.key(6), T, H, V),
            CircuitTraining(**QUICK),
            folder=tmp_path,
            progress=False,
        )


EIGHT_DEVICES = """
import jax, numpy as np
from codd_jax.sharding import make_mesh
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.trainer import train_circuit
from tests.training.test_trainer import make_source, start
assert len(jax.devices()) == 8
for rule in ("adam", "dual_ratio"):
    config = CircuitTraining(rule=rule, steps=10, validate_every=0, normalization="local")
    circuits = [
        train_circuit(make_source(), start(), config, mesh=make_mesh(mesh), progress=False)
        for mesh in (None, "data:8", "data:2,model:4")
    ]
    for other in circuits[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), circuits[0].hmm, other.hmm)
        one, many = (run.history["validation"][-1]["coupled"] for run in (circuits[0], other))
        assert abs(one - many) < 1e-5
print("equal")
"""


def test_the_number_of_devices_does_not_matter():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", EIGHT_DEVICES]
    done = subprocess.run(command, env=environment, cwd=_root(), capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]


def test_early_stopping_keeps_the_best(tmp_path):
    out = train(tmp_path, steps=200, validate_every=4, patience=2, rate=3.0, schedule="constant")
    curve = [record["coupled"] for record in out.history["validation"]]
    assert out.history["stopped"] == "no better validation in 2 attempts" and out.history["steps"] < 200
    assert min(curve) == curve[-3], "two attempts after the best one"
    again = train(tmp_path, steps=200, validate_every=4, patience=2, rate=3.0, schedule="constant")
    assert again.history["steps"] == out.history["steps"]
    assert_equal_bits(out, again)


def test_a_budget_in_seconds_ends():
    out = train(steps=None, seconds=0.2, validate_every=0)
    assert out.history["steps"] >= 1 and 0.2 <= out.history["processor_seconds"] < 20


def test_a_step_that_is_not_finite_is_named(tmp_path):
    source = make_source()
    source.windows = source.windows.replace(hidden=source.windows.hidden.at[:, 0].set(jnp.nan))
    with pytest.raises(ValueError, match="step 1 is not finite"):
        train(tmp_path, source)
    assert not list(tmp_path.glob("step*")), "what is not finite is not kept"
    with pytest.raises(ValueError, match="gives none of the windows any probability"):
        train(rate=np.inf)


def test_parts_that_do_not_fit():
    source = make_source()
    for hmm, said in (
        (HMM.random(jax.random.key(0), T + 1, H, V), "covers 5 tokens and the windows have 4"),
        (HMM.random(jax.random.key(0), T, H, V + 1), "over 10 tokens and the backbone over 9"),
    ):
        with pytest.raises(ValueError, match=said):
            train_circuit(source, hmm, CircuitTraining(), progress=False)
    with pytest.raises(ValueError, match="batch of 16 windows cannot be split over 1 devices in chunks of 5"):
        train_circuit(source, start(), CircuitTraining(chunk=5), progress=False)


def _root():
    return pathlib.Path(__file__).resolve().parents[2]
