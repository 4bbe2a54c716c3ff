"""The conditional log-likelihood, its gradients, expected counts and update rules against enumeration and goldens."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import circuits
from codd_jax.circuits import HMM, updates
from codd_jax.circuits.learning import Counts
from tests.oracles.hmm_cases import random_case
from tests.oracles.hmm_enumeration import Case

NORMALIZATIONS = ("global", "local")


@functools.cache
def compiled(normalization):
    """(CLL, gradients by the circuit, φ and g, F⁺, F⁻) of one window as one program."""

    def everything(hmm, log_phi, tokens, known, log_latent):
        def objective(hmm, log_phi, log_latent):
            return circuits.conditional_log_likelihood(hmm, log_phi, tokens, known, normalization, log_latent)

        argnums = (0, 1) if log_latent is None else (0, 1, 2)
        value, gradients = jax.value_and_grad(objective, argnums)(hmm, log_phi, log_latent)
        return value, gradients, circuits.conditional_counts(hmm, log_phi, tokens, known, normalization, log_latent)

    return jax.jit(everything)


def possible_cases(count=8, **options):
    """Random cases whose tokens are possible; one seed in a few has zeros that exclude them."""
    for seed in range(100):
        inputs = random_case(seed, **options)
        case = Case.of(*inputs)
        if case.conditional_log_likelihood("global") > -np.inf:
            yield inputs, case
            count -= 1
            if not count:
                return


def fold(hmm, counts):
    """Enumerated per-position counts, summed where the circuit's parameters are tied."""
    initial, transition, emission = counts
    return Counts(
        initial,
        transition if hmm.transition.ndim == 3 else transition.sum(0),
        emission if hmm.emission.ndim == 3 else emission.sum(0),
    )


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_objective_gradient_and_counts(tied, zeros, normalization):
    for latent in (False, True) if tied and normalization == "global" else (True,):
        for inputs, case in possible_cases(tied=tied, latent=latent, zeros=zeros):
            hmm = inputs[0]
            value, gradients, (up, down) = jax.device_get(compiled(normalization)(*inputs))
            np.testing.assert_allclose(value, case.conditional_log_likelihood(normalization), rtol=1e-6, atol=1e-5)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))
            # θ·∂/∂θ is the derivative by the unnormalised log-parameter.
            for name in ("initial", "transition", "emission"):
                theta, slope = getattr(hmm, name), getattr(gradients[0], name)
                np.testing.assert_allclose(theta * slope, getattr(up, name) - getattr(down, name), atol=1e-5)
            if normalization == "global":
                for counts, oracle in ((up, case.observed()), (down, case)):
                    jax.tree.map(
                        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), counts, fold(hmm, oracle.counts())
                    )


def test_gradient_by_potentials_and_latent_potentials():
    """∂CLL/∂ log φ and ∂/∂g are observed minus expected: an indicator minus posteriors, from enumeration."""
    for inputs, case in possible_cases(4, latent=True):
        _, (_, by_phi, by_g), _ = compiled("global")(*inputs)
        expected = case.counts()[2].sum(1)
        hit = np.arange(expected.shape[1]) == case.tokens[:, None]
        np.testing.assert_allclose(by_phi, np.where(case.known[:, None], 0, hit - expected), atol=1e-5)
        difference = case.observed().posterior_marginals() - case.posterior_marginals()
        np.testing.assert_allclose(by_g, difference, atol=1e-5)


def test_local_gradient_equals_finite_differences_of_the_enumeration():
    (inputs, case), *_ = possible_cases(1, latent=True)
    _, (by_hmm, by_phi, by_g), _ = compiled("local")(*inputs)
    for name, got in (("log_phi", by_phi), ("log_latent", by_g), ("initial", by_hmm.initial)):
        base, slope = getattr(case, name), np.zeros(np.shape(got))
        for index in np.ndindex(base.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = base.copy()
                moved[index] += step
                object.__setattr__(case, name, moved)
                ends.append(case.conditional_log_likelihood("local"))
            slope[index] = (ends[0] - ends[1]) / 2e-5
        object.__setattr__(case, name, base)
        np.testing.assert_allclose(got, slope, atol=2e-5)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_impossible_windows_have_zero_gradients(normalization):
    seen = 0
    for seed in range(30):
        inputs = random_case(seed, zeros=True, latent=True)
        value, gradients, counts = compiled(normalization)(*inputs)
        assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((gradients, counts)))
        if value == -jnp.inf:
            seen += 1
            assert not any(x.any() for x in jax.tree.leaves(gradients))
    assert seen > 3


def test_gradients_stay_exact_far_below_the_largest_weight():
    for inputs, case in possible_cases(25, latent=True, zeros=True, spread=50.0):
        value, gradients, (up, down) = jax.device_get(compiled("global")(*inputs))
        np.testing.assert_allclose(value, case.conditional_log_likelihood(), rtol=1e-5, atol=1e-4)
        oracle = case.observed().counts(), case.counts()
        for counts, expected in zip((up, down), oracle, strict=True):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), counts, fold(inputs[0], expected))
        for name in ("initial", "transition", "emission"):
            theta, slope = getattr(inputs[0], name), getattr(gradients[0], name)
            np.testing.assert_allclose(theta * slope, getattr(up, name) - getattr(down, name), atol=2e-4)


def test_gradient_of_a_batch_is_the_sum_and_reaches_softmax_logits():
    """Under vmap too, and through softmax rows: (F⁺ − F⁻) − θ·its row sum."""
    hmm = random_case(0)[0]
    windows = [inputs[1:] for inputs, _ in possible_cases(5)]
    stacked = [jnp.stack(parts) for parts in list(zip(*windows, strict=True))[:3]]

    def objective(logits):
        circuit = HMM.from_logits(*logits, length=hmm.length)
        return jax.vmap(functools.partial(circuits.conditional_log_likelihood, circuit))(*stacked).sum()

    logits = [jnp.log(x) for x in (hmm.initial, hmm.transition, hmm.emission)]
    gradients = jax.jit(jax.grad(objective))(logits)
    up, down = circuits.conditional_counts(hmm, *stacked)
    for gradient, name in zip(gradients, ("initial", "transition", "emission"), strict=True):
        change = getattr(up, name) - getattr(down, name)
        expected = change - getattr(hmm, name) * change.sum(-1, keepdims=True)
        np.testing.assert_allclose(gradient, expected, atol=2e-5)


def test_expected_counts_without_potentials_and_over_a_batch():
    hmm, log_phi, tokens, known, _ = random_case(3, tied=False)
    flat = circuits.expected_counts(hmm, None, tokens, known)
    oracle = Case.of(hmm, np.zeros_like(log_phi), tokens, known)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), flat, fold(hmm, oracle.counts()))
    twice = circuits.expected_counts(hmm, None, jnp.stack([tokens, tokens]), jnp.stack([known, known]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, 2 * b, atol=1e-5), twice, flat)


@pytest.mark.parametrize("inputs", ["cat", "soft"])
def test_anemone_and_dual_ratio_equal_the_goldens(fixtures_dir, inputs):
    golden = np.load(fixtures_dir / "jpc" / "em_update_golden.npz")
    tokens = golden[f"{inputs}_tokens"].astype(np.int32)
    rates = {"num_windows": 4, "step_size": float(golden["step_size"]), "pseudocount": float(golden["pseudocount"])}

    @jax.jit
    def step(state, window, log_phi, momentum):
        hmm, memories = state
        if inputs == "cat":
            pair = (circuits.observed_counts(hmm, window),) * 2
        else:
            pair = circuits.conditional_counts(hmm, log_phi, window, jnp.zeros(window.shape, bool), "local")
        (up, first), (down, second) = (m.update(c, momentum) for m, c in zip(memories, pair, strict=True))
        if inputs == "cat":
            return updates.anemone_update(hmm, up, **rates), (first, second)
        return updates.dual_ratio_update(hmm, up, down.emission, **rates), (first, second)

    for name, momentum in (("0", 0.0), ("0.9", float(golden["momentum"]))):
        hmm = HMM(*(jnp.asarray(golden[f"{inputs}_init_{part}"]) for part in ("pi", "A", "E")), length=4)
        state = hmm, (updates.Momentum.init(hmm),) * 2
        for batch in np.split(np.arange(6), 3):
            state = step(state, tokens[batch], golden["soft_log_phi"][batch], momentum)
        for part, got in zip(("pi", "A", "E"), jax.tree.leaves(state[0]), strict=True):
            np.testing.assert_allclose(got, golden[f"{inputs}_anemone_mu{name}_{part}"], atol=1e-5)


def test_em_raises_the_likelihood():
    hmm = random_case(0, tied=False)[0]
    windows = jnp.asarray(np.random.default_rng(0).integers(4, size=(30, 4)), jnp.int32)
    likelihood = jax.jit(jax.vmap(circuits.log_likelihood, in_axes=(None, 0)))
    before = likelihood(hmm, windows).sum()
    step = jax.jit(lambda hmm: updates.em_update(hmm, circuits.observed_counts(hmm, windows), 0.7, 1e-6))
    for _ in range(5):
        hmm = step(hmm).validate()
        after = likelihood(hmm, windows).sum()
        assert after > before
        before = after
    counts = circuits.observed_counts(hmm, windows)
    full = updates.em_update(hmm, counts, pseudocount=0.5)
    share = (counts.emission + 0.5 / 4) / (counts.emission.sum(-1, keepdims=True) + 0.5)
    np.testing.assert_allclose(full.emission, share, atol=1e-6)


def test_extended_baum_welch_raises_the_conditional_likelihood():
    hmm = random_case(0)[0]
    windows = [inputs[1:4] for inputs, _ in possible_cases(8)]
    stacked = [jnp.stack(parts) for parts in zip(*windows, strict=True)]
    objective = jax.jit(
        lambda hmm: jax.vmap(functools.partial(circuits.conditional_log_likelihood, hmm))(*stacked).sum()
    )

    @jax.jit
    def step(hmm):
        up, down = circuits.conditional_counts(hmm, *stacked)
        return updates.extended_baum_welch_update(hmm, up, down, num_windows=8, damping=2.0)

    before = start = objective(hmm)
    for _ in range(6):
        hmm = step(hmm).validate()
        after = objective(hmm)
        assert after > before
        before = after
    assert after > start + 0.1


def test_top_down_anchors_are_the_counts_of_the_circuits_own_windows():
    for tied in (True, False):
        hmm = random_case(5, tied=tied)[0]
        nothing = jnp.zeros(4, jnp.int32), jnp.zeros(4, bool)
        oracle = Case.of(hmm, np.zeros((4, 4)), *nothing).counts()
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), updates.top_down_anchors(hmm), fold(hmm, oracle)
        )
