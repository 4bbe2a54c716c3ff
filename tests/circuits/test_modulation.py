"""Modulated circuits against enumeration of the chain that they stand for, matrices written out at every position."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import circuits
from codd_jax.circuits import Context, Modulation
from codd_jax.circuits.modulation import gate_potential
from tests.oracles.chi_square import assert_follows
from tests.oracles.hmm_cases import random_case
from tests.oracles.modulated_hmm import modulated_case

pytestmark = pytest.mark.usefixtures("quick_compilation")

WIDTH, RANK, NOISE = 3, 2, 0.75
ALL = ("latent", "transition", "emission")


def window(seed, kinds=ALL, size=(4, 3, 3), scale=1.0, **options):
    """(hmm, log_phi, tokens, known, hidden [T, D]): heads of every kind, drawn for `kinds` and zero for the others."""
    hmm, log_phi, tokens, known, _ = random_case(seed, size, **options)
    rng = np.random.default_rng([seed, 7])
    empty = Modulation.zeros(ALL, WIDTH, size[1], basis=rng.normal(size=(RANK, size[2])).astype(np.float32), noise=True)
    # The inputs of such narrow states are scaled up by 128 / 3.
    draw = {kind: rng.normal(size=getattr(empty, kind).shape).astype(np.float32) * scale / 40 for kind in kinds}
    hidden = rng.normal(size=(size[0], WIDTH)).astype(np.float32)
    return hmm.with_modulation(empty.replace(**draw)), log_phi, tokens, known, hidden


@jax.jit
def everything(hmm, log_phi, tokens, known, hidden, inside):
    """All quantities of one window as one program."""
    context = circuits.modulate(hmm, hidden, jnp.float32(NOISE), inside)
    leaf = circuits.leaf_values(hmm, log_phi, tokens, known, context)
    score = functools.partial(circuits.conditional_log_likelihood, hmm, log_phi, tokens, known)
    return {
        "log_z": circuits.log_partition_from_leaf(hmm, leaf, context),
        "posterior": circuits.posterior_marginals_from_leaf(hmm, leaf, context),
        "conditionals": circuits.conditionals_from_leaf(hmm, log_phi, leaf, context),
        "global": score("global", context),
        "local": score("local", context),
    }


def check(inputs, inside=None):
    """Compares one window's quantities with enumeration; returns log Z."""
    inside = np.ones(len(inputs[2]), bool) if inside is None else inside
    case = modulated_case(*inputs, NOISE, inside)
    got = jax.device_get(everything(*inputs, inside))
    exact = {"rtol": 2e-6, "atol": 2e-5}
    np.testing.assert_allclose(got["log_z"], case.log_partition(), **exact)
    np.testing.assert_allclose(got["posterior"], case.posterior_marginals(), atol=5e-6)
    np.testing.assert_allclose(np.exp(got["conditionals"]), case.conditionals(), atol=5e-6)
    for name in ("global", "local"):
        np.testing.assert_allclose(got[name], case.conditional_log_likelihood(name), **exact)
    return case.log_partition()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kinds", [("latent",), ("transition",), ("emission",), ALL])
def test_quantities_equal_enumeration(kinds, tied):
    for seed in range(4):
        assert np.isfinite(check(window(seed, kinds, tied=tied, spread=2.0)))


def test_zeros_in_the_circuit_and_large_heads():
    """Zeros in π, A, E and φ; the added emissions make possible what the circuit's own exclude."""
    assert np.isfinite([check(window(seed, scale=3.0, zeros=True)) for seed in range(8)]).sum() >= 2


def test_windows_of_one_position():
    check(window(0, ALL, (1, 2, 3), tied=False))


@pytest.mark.parametrize("normalization", ["global", "local"])
def test_any_order_draws_obey_the_chain_rule(normalization):
    """Whatever the order, the draws' log-probabilities add up to that of the sequence."""

    @jax.jit
    def draws(hmm, log_phi, tokens, known, hidden):
        context = circuits.modulate(hmm, hidden, jnp.float32(NOISE))
        sampler = functools.partial(circuits.sample_any_order, max_targets=3, log_latent=context)
        return jax.vmap(lambda key: sampler(hmm, log_phi, tokens, known, key))(jax.random.split(jax.random.key(0), 8))

    for seed in range(3):
        hmm, *rest = window(seed, spread=1.5)
        case = modulated_case(hmm, *rest, NOISE)
        joint = case.token_distribution() if normalization == "global" else case.local_token_distribution()
        drawn = draws(hmm.replace(normalization=normalization), *rest)
        assert drawn.possible.all()
        np.testing.assert_allclose(drawn.log_probs.sum(-1), np.log(joint[tuple(np.asarray(drawn.tokens).T)]), atol=5e-5)


def test_heads_of_zero_are_the_static_circuit():
    """Bit for bit, with exact zeros in the circuit, and whatever a row of A sums to."""
    for seed in range(4):
        inputs = window(seed, kinds=(), zeros=True)
        got, static = everything(*inputs, np.ones(4, bool)), plain(inputs[0].with_modulation(None), *inputs[1:4])
        jax.tree.map(np.testing.assert_array_equal, {name: got[name] for name in static}, static)
    for tied in (True, False):
        hmm = window(0, kinds=(), tied=tied)[0]
        skewed = hmm.replace(transition=hmm.transition * 0.9995)
        assert (gate_potential(skewed, jnp.zeros((2, 4, 3))) == 0).all()


@jax.jit
def plain(hmm, log_phi, tokens, known):
    """Quantities of the static circuit."""
    return {
        "log_z": circuits.log_partition(hmm, log_phi, tokens, known),
        "global": circuits.conditional_log_likelihood(hmm, log_phi, tokens, known),
    }


@functools.partial(jax.jit, static_argnums=0)
def slopes(normalization, hmm, log_phi, tokens, known, hidden):
    """The gradient of the conditional log-likelihood by the heads."""

    def score(modulation):
        modulated = hmm.replace(modulation=modulation)
        context = circuits.modulate(modulated, hidden, jnp.float32(NOISE))
        return circuits.conditional_log_likelihood(modulated, log_phi, tokens, known, normalization, context)

    return jax.grad(score)(hmm.modulation)


@pytest.mark.parametrize("scale", [0.0, 1.0])
@pytest.mark.parametrize("normalization", ["global", "local"])
def test_gradients_by_the_heads_equal_finite_differences(normalization, scale):
    """Of the enumerated likelihood in float64; at zero c is stepped into, where half the one-sided slope is passed."""
    inputs = window(1, scale=scale, spread=2.0)
    hmm, log_phi, tokens, known, hidden = inputs
    gradient = slopes(normalization, *inputs)
    rng = np.random.default_rng(5)
    step = 1e-5
    for name in (*ALL, "basis") if scale else ALL:
        head = np.asarray(getattr(hmm.modulation, name), np.float64)
        direction = rng.normal(size=head.shape)
        if scale == 0 and name == "emission":
            # Of one sign at every position: along the constant among the noise features alone.
            direction = np.zeros_like(head)
            direction[WIDTH] = np.abs(rng.normal(size=head.shape[1:]))

        def at(amount, name=name, head=head, direction=direction):
            moved = hmm.modulation.replace(**{name: head + amount * direction})
            case = modulated_case(hmm.replace(modulation=moved), log_phi, tokens, known, hidden, NOISE)
            return case.conditional_log_likelihood(normalization)

        one_sided = scale == 0 and name == "emission"
        slope = (at(step) - at(0)) / step / 2 if one_sided else (at(step) - at(-step)) / step / 2
        got = float(np.sum(np.asarray(getattr(gradient, name), np.float64) * direction))
        assert abs(slope) > 1e-4
        np.testing.assert_allclose(got, slope, rtol=2e-3, atol=1e-4, err_msg=name)


def test_samples_follow_the_joint():
    """Latents, then tokens of their rows: unconditional, with evidence, and coupled, in the enumerated proportions."""
    hmm, log_phi, tokens, known, hidden = window(2, spread=1.0, scale=1.5)
    known = jnp.array([False, True, False, False])
    context = circuits.modulate(hmm, hidden, jnp.float32(NOISE))
    keys = jax.random.split(jax.random.key(1), 8000)

    @jax.jit
    def draw(keys):
        free = jax.vmap(lambda key: circuits.sample(hmm, key, log_latent=context))(keys)
        given = jax.vmap(lambda key: circuits.sample(hmm, key, tokens, known, context))(keys)

        def coupled(key):
            first, second = jax.random.split(key)
            path = circuits.sample_latents(hmm, log_phi, tokens, known, first, context)
            logits = circuits.latent_logits(hmm, log_phi, path, context)
            return jnp.where(known, tokens, jax.random.categorical(second, logits))

        return free, given, jax.vmap(coupled)(keys)

    free, given, coupled = draw(keys)
    case = modulated_case(hmm, log_phi, tokens, known, hidden, NOISE)
    assert_follows(coupled, case.token_distribution())
    flat = modulated_case(hmm, jnp.zeros_like(log_phi), tokens, known, hidden, NOISE)
    assert_follows(given, flat.token_distribution())
    nothing = modulated_case(hmm, jnp.zeros_like(log_phi), tokens, jnp.zeros(4, bool), hidden, NOISE)
    assert_follows(free, nothing.token_distribution())


def test_positions_outside_the_row_are_left_alone():
    for seed in range(4):
        inputs, inside = window(seed, spread=1.0), np.arange(4) < 2
        assert check(inputs, inside) != check(inputs)


def test_bad_input():
    hmm, log_phi, tokens, known, hidden = window(5)
    with pytest.raises(ValueError, match="pass hidden"):
        circuits.modulate(hmm, None)
    with pytest.raises(ValueError, match="pass noise"):
        circuits.modulate(hmm, hidden)
    with pytest.raises(ValueError, match="width 5 and the circuit's modulation was made for 3"):
        circuits.modulate(hmm, jnp.zeros((4, 5)), jnp.float32(1))
    with pytest.raises(ValueError, match="5 positions and the circuit covers 4"):
        circuits.modulate(hmm, jnp.zeros((5, WIDTH)), jnp.float32(1))
    with pytest.raises(ValueError, match="modulation is bigram"):
        Modulation.zeros(("latent", "bigram"), WIDTH, 3)
    with pytest.raises(ValueError, match="'emission' needs one"):
        Modulation.zeros(("emission",), WIDTH, 3)
    with pytest.raises(ValueError, match=r"basis has shape \(2, 5\)"):
        hmm.with_modulation(hmm.modulation.replace(basis=jnp.zeros((RANK, 5))))
    with pytest.raises(ValueError, match="belong together"):
        circuits.log_partition(hmm, log_phi, tokens, known, Context(mixture=jnp.zeros((4, RANK, 3))))
    with pytest.raises(ValueError, match=r"mixture has shape \(4, 1, 3\)"):
        change = Context(mixture=jnp.zeros((4, 1, 3)), basis=jnp.ones((RANK, 3)) / 3)
        circuits.log_partition(hmm, log_phi, tokens, known, change)
    with pytest.raises(ValueError, match="emissions do not follow the context"):
        circuits.observed_counts(hmm, tokens, circuits.modulate(hmm, hidden, jnp.float32(1)))
    assert circuits.modulate(hmm.with_modulation(None), None) is None
