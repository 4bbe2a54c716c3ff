"""Circuit quantities against enumeration in float64, over parameter layouts, zeros, evidence and latent potentials."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import circuits
from tests.oracles.hmm_cases import random_case
from tests.oracles.hmm_enumeration import Case

SEEDS = range(10)


@functools.cache
def compiled():
    """All quantities of one window as one program."""

    def everything(hmm, log_phi, tokens, known, log_latent):
        leaf = circuits.leaf_values(hmm, log_phi, tokens, known)
        return {
            "log_z": circuits.log_partition(hmm, log_phi, tokens, known, log_latent),
            "posterior": circuits.posterior_marginals(hmm, log_phi, tokens, known, log_latent),
            "conditionals": circuits.conditionals(hmm, log_phi, tokens, known, log_latent),
            "forward": circuits.forward_messages(hmm, leaf, log_latent),
            "backward": circuits.backward_messages(hmm, leaf, log_latent),
        }

    return jax.jit(everything)


def check(inputs, digits=2e-6):
    """Compares one window's quantities with enumeration; returns log Z."""
    case, got = Case.of(*inputs), jax.device_get(compiled()(*inputs))
    log_z = case.log_partition()
    np.testing.assert_allclose(got["log_z"], log_z, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(got["posterior"], case.posterior_marginals(), atol=digits)
    np.testing.assert_allclose(np.exp(got["conditionals"]), case.conditionals(), atol=digits)
    prior, alpha = got["forward"]
    np.testing.assert_allclose(prior, case.prior_messages(), rtol=1e-6, atol=1e-5)
    # α_t + β_t holds all the evidence, wherever the window is cut.
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = np.logaddexp.reduce(alpha.astype(float) + got["backward"], axis=-1)
    np.testing.assert_allclose(cut, np.full(case.length, log_z), rtol=1e-6, atol=1e-5)
    return log_z


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("tied", "latent"), [(True, False), (True, True), (False, True)])
def test_quantities_equal_enumeration(tied, latent, zeros):
    log_z = [check(random_case(seed, tied=tied, latent=latent, zeros=zeros)) for seed in SEEDS]
    assert zeros or np.isfinite(log_z).all()


def test_windows_of_one_position():
    for seed in SEEDS:
        check(random_case(seed, (1, 2, 3), tied=False))


@pytest.mark.parametrize("tied", [True, False])
def test_nothing_is_lost_far_below_the_largest_weight(tied):
    """With zeros in A and E, states and tokens 100 nats and more below the top can be all that is possible."""
    for seed in range(40):
        # Posteriors are ratios of numbers near e^-300, whose logarithms float32 holds to 1e-5.
        check(random_case(seed, tied=tied, latent=True, zeros=True, spread=50.0), digits=1e-4)


def test_a_state_far_below_the_top_survives_until_evidence_kills_the_others():
    """α_0 spreads over 200 nats; state 0 is sure, but only state 1 can reach what is observed next."""
    hmm = circuits.HMM(jnp.array([0.5, 0.5]), jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 1.0]]), length=3)
    log_phi = jnp.array([[0.0, -200.0], [0.0, -150.0], [0.0, 0.0]])
    tokens, known = jnp.array([0, 0, 1]), jnp.array([False, False, True])
    log_z = circuits.log_partition(hmm, log_phi, tokens, known)
    np.testing.assert_allclose(log_z, np.log(0.5) - 350, rtol=1e-6)
    gradient = jax.grad(circuits.log_partition, argnums=1)(hmm, log_phi, tokens, known)
    np.testing.assert_allclose(gradient, [[0, 1], [0, 1], [0, 0]], atol=1e-6)


def test_leaf_values_below_the_range_of_float32():
    """φ underflows at the only token that a state emits: the value is -300 or -1e4, not -inf."""
    hmm = circuits.HMM(jnp.array([0.5, 0.5]), jnp.full((2, 2), 0.5), jnp.array([[1.0, 0.0], [0.0, 1.0]]), length=2)
    log_phi = jnp.array([[0.0, -300.0], [-1e4, 0.0]])
    tokens, known = jnp.zeros(2, jnp.int32), jnp.zeros(2, bool)
    leaf = circuits.leaf_values(hmm, log_phi, tokens, known)
    np.testing.assert_allclose(leaf, [[0, -300], [-1e4, 0]])
    # Where the only token has φ = 0 it is -inf.
    leaf = circuits.leaf_values(hmm, log_phi.at[0, 1].set(-jnp.inf), tokens, known)
    np.testing.assert_allclose(leaf[0], [0, -np.inf])


def test_conditionals_find_tokens_of_improbable_states_when_phi_asks_for_them():
    """The posterior puts e^-160 on the only state that emits token 1, φ puts everything else e^-400 away."""
    hmm = circuits.HMM(jnp.array([0.5, 0.5]), jnp.eye(2), jnp.array([[1.0, 0.0], [0.0, 1.0]]), length=2)
    log_phi = jnp.array([[-400.0, 0.0], [0.0, 0.0]])
    g = jnp.array([[0.0, -160.0], [0.0, 0.0]])
    rows = circuits.conditionals(hmm, log_phi, jnp.zeros(2, jnp.int32), jnp.zeros(2, bool), g)
    np.testing.assert_allclose(rows[0], [-240, 0], atol=1e-4)


def test_batches_equal_single_windows():
    hmm = random_case(0)[0]
    windows = [random_case(seed, latent=True)[1:] for seed in range(5)]
    stacked = [jnp.stack(parts) for parts in zip(*windows, strict=True)]
    together = jax.vmap(functools.partial(compiled(), hmm))(*stacked)
    for i, window in enumerate(windows):
        alone = compiled()(hmm, *window)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[i], rtol=1e-6, atol=2e-6), alone, together)  # noqa: B023
    # The *_from_leaf functions take the batch as it is.
    leaf = circuits.leaf_values(hmm, *stacked[:3])
    posterior = jax.jit(circuits.posterior_marginals_from_leaf)(hmm, leaf, stacked[3])
    np.testing.assert_allclose(posterior, together["posterior"], atol=2e-6)
    rows = jax.jit(circuits.conditionals_from_leaf)(hmm, stacked[0], leaf, stacked[3])
    np.testing.assert_allclose(rows, together["conditionals"], rtol=1e-6, atol=2e-6)


def test_values_gradients_and_draws_under_shard_map():
    """The loops' carries vary over the mesh axes that their inputs vary over; one device is enough to notice."""
    hmm = random_case(0)[0]
    windows = [random_case(seed)[1:4] for seed in range(2)]
    stacked = [jnp.stack(parts) for parts in zip(*windows, strict=True)]
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def rows(hmm, log_phi, tokens, known):
        key = jax.random.key(0)
        gradient = jax.vmap(jax.grad(functools.partial(circuits.conditional_log_likelihood, hmm)))
        draw = jax.vmap(lambda p, t, k: circuits.sample_any_order(hmm, p, t, k, key).tokens)
        return gradient(log_phi, tokens, known), draw(log_phi, tokens, known)

    specs = (jax.P(), *[jax.P("data")] * 3)
    sharded = jax.jit(jax.shard_map(rows, mesh=mesh, in_specs=specs, out_specs=jax.P("data")))
    for got, expected in zip(sharded(hmm, *stacked), jax.jit(rows)(hmm, *stacked), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-6)


def test_jit_equals_eager():
    hmm, *evidence, g = random_case(2, latent=True)
    eager = circuits.log_partition_from_leaf(hmm, circuits.leaf_values(hmm, *evidence), g)
    np.testing.assert_allclose(eager, compiled()(hmm, *evidence, g)["log_z"], rtol=1e-6)


def test_bfloat16_emissions_are_read_exactly():
    """The circuit with rounded emissions is a circuit; its quantities are computed in float32."""
    hmm, *evidence = random_case(3)
    narrow = hmm.replace(emission=hmm.emission.astype(jnp.bfloat16))
    same = hmm.replace(emission=narrow.emission.astype(jnp.float32))
    for function in (circuits.log_partition, circuits.posterior_marginals, circuits.conditionals):
        np.testing.assert_allclose(function(narrow, *evidence), function(same, *evidence), rtol=1e-4, atol=2e-5)


def test_tokens_outside_the_vocabulary_are_impossible_and_masked_ones_are_not_read():
    hmm, log_phi, tokens, _, _ = random_case(1)
    known = jnp.array([True, False, False, False])
    for bad in (-1, hmm.vocab_size):
        assert circuits.log_partition(hmm, log_phi, tokens.at[0].set(bad), known) == -jnp.inf
        expected = circuits.log_partition(hmm, log_phi, tokens, known)
        assert circuits.log_partition(hmm, log_phi, tokens.at[1:].set(bad), known) == expected
    # φ of known positions is not read either.
    assert circuits.log_partition(hmm, log_phi.at[0].set(jnp.nan), tokens, known) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, t, k: (p[:, :-1], t, k), "vocabulary of 4"),
        (lambda p, t, k: (p[:-1], t[:-1], k[:-1]), "windows have 4 positions"),
        (lambda p, t, k: (p, t, k[:-1]), "must be equal"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    hmm, log_phi, tokens, known, _ = random_case(0)
    with pytest.raises(ValueError, match=message):
        circuits.log_partition(hmm, *change(log_phi, tokens, known))
