"""Every rule raises its own objective; chunks do not change sums; gradients are those of the library's objective."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax.circuits import HMM, Modulation
from codd_jax.circuits.learning import conditional_counts
from codd_jax.training.circuit_config import CircuitTraining
from codd_jax.training.circuit_step import make_step
from codd_jax.training.potentials import Head, WindowPotentials
from codd_jax.training.rules import COUNT_RULES, DEFAULT_RATES, RULES, make_rule
from codd_jax.training.statistics import BINS, WEIGHTINGS, Nats, log_likelihoods, sum_over_windows

T, D, V, H, BATCH = 4, 6, 9, 3, 16


@functools.cache
def world():
    """A head, windows of two alternating sentences that it half predicts, and a circuit to start from."""
    keys = jax.random.split(jax.random.key(0), 4)
    head = Head(jax.random.normal(keys[0], (V, D)), None)
    tokens = jnp.where(jnp.arange(BATCH)[:, None] % 2, jnp.arange(T), jnp.arange(T) + 4)
    hidden = head.weight[tokens] / 4 + 0.1 * jax.random.normal(keys[1], (BATCH, T, D))
    masked = jax.random.uniform(keys[2], (BATCH, T)) < 0.8
    masked = masked.at[0].set(False).at[1].set(True)
    windows = WindowPotentials.of(hidden, tokens.astype(jnp.int32), masked)
    return head, windows, HMM.random(keys[3], T, H, V, scale=0.5)


@pytest.mark.parametrize("name", [*COUNT_RULES, "adam", "sgd"])
def test_every_rule_raises_its_own_objective(name):
    head, windows, hmm = world()
    rule = make_rule(name, rate=1.0 if name == "sgd" else None, momentum=0.0 if name in COUNT_RULES else None)
    hmm = hmm.replace(normalization="local" if name == "dual_ratio" else "global")
    step = make_step(rule)
    state = jax.tree.map(jnp.array, rule.init(hmm))
    objectives = []
    for _ in range(12):
        state, nats, objective, _ = step(state, head, windows, jnp.float32(1))
        objectives.append(float(objective))
    assert objectives[-1] > objectives[0] + 1
    if name in ("em", "ebw"):  # full batches: no step may fall, and a fallen one is taken back
        assert (np.diff(objectives) > -1e-4).all()
    if name not in ("em", "anemone"):
        coupled = log_likelihoods(rule.circuit(state), head, windows)[1]
        assert float(coupled.sum()) > -float(nats.coupled.sum())
    rule.circuit(state).validate()


def test_sums_are_gradients_and_do_not_depend_on_chunks():
    head, windows, hmm = world()
    rule = make_rule("adam")
    whole = jax.jit(sum_over_windows(rule.sums))(windows, hmm, head)
    parts = jax.jit(sum_over_windows(rule.sums, chunk=4))(windows, hmm, head)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), whole, parts)
    up, down = conditional_counts(hmm, head.log_phi(windows.hidden), windows.tokens, ~windows.masked)
    for name in ("initial", "transition", "emission"):
        by_theta = getattr(hmm, name) * getattr(whole.step, name)
        np.testing.assert_allclose(by_theta, getattr(up, name) - getattr(down, name), atol=1e-4)
    assert float(whole.windows) == 15 and float(whole.nats.failures) == 0
    with pytest.raises(ValueError, match="16 windows a device cannot be worked on 5 at a time"):
        sum_over_windows(rule.sums, chunk=5)(windows, hmm, head)


def test_weighting_counts_windows_by_their_share():
    head, windows, hmm = world()
    coupled = np.asarray(log_likelihoods(hmm, head, windows)[1])
    share = np.asarray(windows.noise)
    for name, power in (("uniform", 0), ("1/sqrt(t)", 0.5), ("1/t", 1)):
        got = make_rule("adam", weighting=name).sums(windows, hmm, head).objective
        weights = np.divide(1, share**power, where=share > 0, out=np.zeros_like(share))
        assert float(got) == pytest.approx(float((weights * coupled)[share > 0].sum()), rel=1e-5), name
    assert set(WEIGHTINGS) == {"uniform", "1/sqrt(t)", "1/t"}


def test_bfloat16_potentials_are_close():
    head, windows, hmm = world()
    exact, rough = (make_rule("adam", dtype=dtype).sums(windows, hmm, head) for dtype in ("float32", "bfloat16"))
    assert exact.step.emission.dtype == rough.step.emission.dtype == jnp.float32
    assert float(rough.objective) == pytest.approx(float(exact.objective), rel=1e-2)
    assert float(rough.objective) != float(exact.objective)


def test_nats_go_into_the_bin_of_their_share():
    masked = jnp.asarray([[1, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]], bool)
    nats = Nats.of(-jnp.arange(1.0, 5.0), jnp.asarray([-1.0, -2.0, 0.0, -jnp.inf]), masked)
    assert nats.backbone.tolist() == [3, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert nats.coupled.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 2]
    assert nats.tokens.tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 4] and len(nats.tokens) == BINS
    assert float(nats.failures) == 1


def test_heads_learn_at_their_own_rate():
    head, windows, hmm = world()
    hmm = hmm.with_modulation(Modulation.zeros(("latent",), D, H))
    rule = make_rule("adam", rate=0.0, modulation_rate=0.1)
    step = make_step(rule)
    state, *_ = step(jax.tree.map(jnp.array, rule.init(hmm)), head, windows, jnp.float32(0.5))
    moved = rule.circuit(state)
    np.testing.assert_allclose(moved.emission, hmm.emission, atol=1e-6)
    assert np.abs(moved.modulation.latent).max() == pytest.approx(0.05, rel=1e-2), "Adam's first step is the rate"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rule": "newton"}, "rule 'newton' is unknown"),
        ({"weighting": "t"}, "weighting 't' is unknown"),
        ({"rule": "em", "weighting": "1/t"}, "has no meaning"),
        ({"rule": "adam", "momentum": 0.9}, "has its own"),
        ({"steps": None}, "needs a budget"),
        ({"steps": 0}, "is empty"),
        ({"seconds": 0.0}, "is empty"),
        ({"schedule": "step"}, "schedule 'step' is unknown"),
        ({"potentials_dtype": "float16"}, "must be float32 or bfloat16"),
        ({"patience": 3, "validate_every": 0}, "patience counts validations"),
        ({"chunk": 0}, "chunk is 0"),
    ],
)
def test_settings_that_cannot_be(options, said):
    with pytest.raises(ValueError, match=said):
        CircuitTraining(**options)


def test_every_name_has_a_rule_and_a_rate():
    assert {name: make_rule(name).rate for name in RULES} == {name: rate for name, (rate, _) in DEFAULT_RATES.items()}


def test_count_rules_refuse_what_they_cannot_train():
    _, _, hmm = world()
    with pytest.raises(ValueError, match="set normalization='local'"):
        make_rule("dual_ratio").init(hmm)
    with pytest.raises(ValueError, match="trained by gradients"):
        make_rule("ebw").init(hmm.with_modulation(Modulation.zeros(("latent",), D, H)))
