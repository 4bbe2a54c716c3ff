"""Draws against the enumerated joint by chi-square tests at fixed seeds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import circuits
from codd_jax.circuits.any_order import priorities
from tests.oracles.chi_square import assert_follows
from tests.oracles.hmm_cases import random_case
from tests.oracles.hmm_enumeration import Case

DRAWS = 20_000
many_latents = jax.jit(jax.vmap(circuits.sample_latents, in_axes=(None, None, None, None, 0, None)))


def window(normalization="global", seed=0, zeros=False):
    """A window of 4 positions over 3 states and 3 tokens with one known token and a latent potential."""
    rng = np.random.default_rng(seed)
    hmm = circuits.HMM.random(jax.random.key(seed), 4, 3, 3, scale=1.5, normalization=normalization)
    if zeros:
        transition = np.array([[0, 1, 0], [0, 0.3, 0.7], [0.5, 0, 0.5]], np.float32)
        emission = np.array([[0.5, 0.5, 0], [0, 0.2, 0.8], [1, 0, 0]], np.float32)
        hmm = circuits.HMM.from_probabilities(hmm.initial, transition, emission, 4, normalization)
    log_phi = jax.nn.log_softmax(jnp.asarray(rng.normal(size=(4, 3)) * 1.5, jnp.float32))
    tokens, known = jnp.array([1, 0, 0, 2]), jnp.array([False, False, True, False])
    return hmm, log_phi, tokens, known, jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)


def keys(seed=5):
    return jax.random.split(jax.random.key(seed), DRAWS)


@pytest.mark.parametrize(("normalization", "zeros"), [("global", False), ("global", True), ("local", True)])
def test_latent_sampling_follows_the_joint(normalization, zeros):
    hmm, log_phi, tokens, known, g = window(normalization, zeros=zeros)
    draws = many_latents(hmm, log_phi, tokens, known, keys(), g)
    # A locally normalised circuit's latents see the known tokens only.
    seen = jnp.zeros_like(log_phi) if normalization == "local" else log_phi
    assert_follows(draws, Case.of(hmm, seen, tokens, known, g).latent_distribution())


@pytest.mark.parametrize("seed", [2, 5])
def test_latents_of_an_untied_circuit_whose_initial_excludes_states(seed):
    hmm, log_phi, tokens, known, g = random_case(seed, (4, 3, 3), tied=False, latent=True, zeros=True, spread=1.5)
    assert not hmm.initial.all() and circuits.log_partition(hmm, log_phi, tokens, known, g) > -jnp.inf
    draws = many_latents(hmm, log_phi, tokens, known, keys(), g)
    assert_follows(draws, Case.of(hmm, log_phi, tokens, known, g).latent_distribution())


@pytest.mark.parametrize(
    ("normalization", "order", "zeros", "max_targets"),
    [
        ("global", "confidence", False, None),
        ("global", "margin", True, 3),
        ("global", "random", True, None),
        ("local", "entropy", False, None),
    ],
)
def test_any_order_sampling_follows_the_joint(normalization, order, zeros, max_targets):
    hmm, log_phi, tokens, known, g = window(normalization, seed=3, zeros=zeros)
    sampler = functools.partial(circuits.sample_any_order, order=order, max_targets=max_targets, log_latent=g)
    draws = jax.vmap(lambda k: sampler(hmm, log_phi, tokens, known, k))(keys())
    case = Case.of(hmm, log_phi, tokens, known, g)
    joint = case.token_distribution() if normalization == "global" else case.local_token_distribution()
    assert draws.possible.all() and (draws.drawn == ~known).all()
    assert_follows(draws.tokens, joint)
    # The chain rule: whatever the order, the draws' log-probabilities add up to that of the sequence.
    expected = np.log(joint[tuple(np.asarray(draws.tokens).T)])
    np.testing.assert_allclose(draws.log_probs.sum(-1), expected, atol=2e-5)


def test_unconditional_and_evidence_sampling():
    hmm, log_phi, tokens, known, g = window(seed=8)
    flat = jnp.zeros_like(log_phi)
    free = jax.vmap(lambda k: circuits.sample(hmm, k))(keys())
    assert_follows(free, Case.of(hmm, flat, tokens, jnp.zeros_like(known)).token_distribution())
    given = jax.vmap(lambda k: circuits.sample(hmm, k, tokens, known, g))(keys())
    assert_follows(given, Case.of(hmm, flat, tokens, known, g).token_distribution())


@pytest.mark.parametrize("order", ["confidence", "entropy"])
def test_any_order_greedy_equals_a_plain_loop(order):
    hmm, log_phi, tokens, known, g = window(seed=4)
    got = circuits.sample_any_order(
        hmm, log_phi, tokens, known, jax.random.key(0), order=order, temperature=0.0, log_latent=g
    )
    x, seen = np.array(tokens), np.array(known)
    for rank in range(3):
        rows = Case.of(hmm, log_phi, x, seen, g).conditionals()
        sure = np.asarray(priorities(jnp.log(jnp.asarray(rows, jnp.float32)), order))
        t = int(np.argmax(np.where(seen, -np.inf, sure)))
        x[t], seen[t] = rows[t].argmax(), True
        assert got.ranks[t] == rank
        p = rows[t].max()
        np.testing.assert_allclose(got.scores[t], np.log(p / (1 - p)), atol=1e-4)
    np.testing.assert_array_equal(got.tokens, x)


def test_any_order_draws_only_targets_and_so_many_alone_and_in_a_batch():
    hmm, log_phi, tokens, known, _ = window(seed=4)
    targets, counts = jnp.array([True, False, True, True]), jnp.array([0, 1, 2, 5])
    sampler = functools.partial(circuits.sample_any_order, hmm, log_phi, tokens, known, jax.random.key(1), targets)
    alone = [sampler(count) for count in counts]
    for draws, count in zip(alone, (0, 1, 2, 2), strict=True):
        assert draws.drawn.sum() == count and draws.possible
        assert not draws.drawn[1] and not draws.drawn[2]
        np.testing.assert_array_equal(draws.tokens[~draws.drawn], tokens[~draws.drawn])
        assert sorted(np.asarray(draws.ranks).tolist()) == [*range(count), *[4] * (4 - count)]
    # A shorter draw is the beginning of a longer one, and the batch runs as long as its longest.
    assert alone[2].ranks[jnp.argmax(alone[1].drawn)] == 0
    together = jax.vmap(sampler)(counts)
    for i, draws in enumerate(alone):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[i], rtol=1e-5, atol=1e-5), draws, together)  # noqa: B023


def test_any_order_accepts_its_own_draw_and_order():
    hmm, log_phi, tokens, known, _ = window(seed=6)

    def worst(key, row):
        return jnp.argmin(row), -row.min()

    got = circuits.sample_any_order(
        hmm, log_phi, tokens, known, jax.random.key(0), order=lambda rows: jnp.arange(4.0), draw=worst
    )
    np.testing.assert_array_equal(got.ranks, [2, 1, 4, 0])
    np.testing.assert_allclose(got.scores[3], -got.log_probs[3])


def test_impossible_evidence_draws_nothing():
    hmm, log_phi, _, _, _ = window(zeros=True)
    tokens, known = jnp.array([2, 0, 2, 0]), jnp.array([True, True, False, False])
    hmm = hmm.replace(transition=jnp.eye(3), emission=jnp.eye(3))
    assert circuits.log_partition(hmm, log_phi, tokens, known) == -jnp.inf
    got = circuits.sample_any_order(hmm, log_phi, tokens, known, jax.random.key(0))
    assert not got.possible and not got.drawn.any()
    np.testing.assert_array_equal(got.tokens, tokens)
    latents = circuits.sample_latents(hmm, log_phi, tokens, known, jax.random.key(0))
    assert (latents >= 0).all() and (latents < 3).all()
    assert not circuits.posterior_marginals(hmm, log_phi, tokens, known).any()


def test_unknown_order_is_refused():
    hmm, log_phi, tokens, known, _ = window()
    with pytest.raises(ValueError, match="sideways"):
        circuits.sample_any_order(hmm, log_phi, tokens, known, jax.random.key(0), order="sideways")
