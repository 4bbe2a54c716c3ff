"""One update of joint fine-tuning: mask rows, run the backbone once, couple every window, step all parameters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from codd_jax.backbones import Transformer
from codd_jax.circuits import HMM
from codd_jax.sharding import batch_sharding, replicated
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_parts import Structure, param_shardings, state_shardings
from codd_jax.training.joint_rows import RowBatch
from codd_jax.training.objective import coupled_log_likelihoods, factorised_log_likelihoods
from codd_jax.training.potentials import Head, aligned_states
from codd_jax.training.rows import mask_rows
from codd_jax.training.statistics import WEIGHTINGS, Nats


@struct.dataclass
class JointState:
    """What training carries along.

    Attributes:
      params: "backbone", "circuit" and "modulation", as far as they are trained.
      opt_state: of the optimiser. step: int32 scalar, updates made.
      key: of the masks; update n draws from fold_in(key, n).
    """

    params: Any
    opt_state: Any
    step: jax.Array
    key: jax.Array


@struct.dataclass
class Metrics:
    """What an update says of itself.

    Attributes:
      loss: nats per masked token, weighted as the objective is. nats: of the batch, before the update.
      norms: of the gradient, by group, before clipping.
    """

    loss: jax.Array
    nats: Nats
    norms: dict[str, jax.Array]


@struct.dataclass
class MaskedRows:
    """Rows with hidden tokens: noisy, clean, masked [batch, positions], lengths [batch], starts [batch, windows]."""

    noisy: jax.Array
    clean: jax.Array
    masked: jax.Array
    lengths: jax.Array
    starts: jax.Array


def make_optimizer(config: JointTraining) -> optax.GradientTransformation:
    """Adam for every group at its own rate and schedule, each group's gradient clipped by itself."""

    def adam(group: str) -> optax.GradientTransformation:
        decay = config.weight_decay if group == "backbone" else 0.0
        parts = [optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)]
        parts += [optax.scale_by_adam(b1=config.b1, b2=config.b2, mu_dtype=config.moment_dtype)]
        parts += [optax.add_decayed_weights(decay, mask=_decayed)] if decay else []
        return optax.chain(*parts, optax.scale_by_learning_rate(config.rate(group)))

    groups = ("backbone", "circuit", "modulation")
    return optax.multi_transform({group: adam(group) for group in groups}, lambda params: {key: key for key in params})


def first_state(params: Any, config: JointTraining) -> JointState:
    """The state before the first update."""
    key = jax.random.fold_in(jax.random.key(config.seed), 1)
    return JointState(params, make_optimizer(config).init(params), jnp.zeros((), jnp.int32), key)


def start(params: Any, config: JointTraining, structure: Structure, mesh: Mesh | None = None) -> JointState:
    """`first_state`, placed on the mesh; the given parameters' memory is reused."""
    return jax.jit(lambda params: _kept(first_state(params, config), structure, config, mesh), donate_argnums=0)(params)


def places(state: JointState, structure: Structure, config: JointTraining, mesh: Mesh) -> JointState:
    """A state with a sharding in the place of every array: an optimiser's state lies where its parameters lie."""
    params = param_shardings(state.params, structure.config, mesh, config.shard_over_data)
    optimizer = state_shardings(state.opt_state, state.params, params, mesh)
    return JointState(params, optimizer, replicated(mesh), replicated(mesh))


def _kept(state: JointState, structure: Structure, config: JointTraining, mesh: Mesh | None) -> JointState:
    """Inside a program: the state, kept where it belongs."""
    if mesh is None:
        return state
    return jax.lax.with_sharding_constraint(state, places(state, structure, config, mesh))


def update(
    state: JointState, frozen: Any, batch: RowBatch, structure: Structure, config: JointTraining, mesh: Mesh | None
) -> tuple[JointState, Metrics]:
    """One update; jitted, the given state's memory is reused.

    Args:
      state: where training stands. frozen: what is not trained.
      batch: clean rows, spread over the data axis where there is a mesh.
      structure: of the model. config: of the run, as `JointTraining.program` gives it. mesh: None for one device.

    Returns:
      The next state, and what the update says of itself.
    """
    return compiled_update(state, frozen, batch, structure, config.program(), mesh)


@functools.partial(jax.jit, static_argnums=(3, 4, 5), donate_argnums=0)
def compiled_update(
    state: JointState, frozen: Any, batch: RowBatch, structure: Structure, config: JointTraining, mesh: Mesh | None
) -> tuple[JointState, Metrics]:
    """`update` itself, to lower and compile from shapes alone."""
    masked = mask_batch(jax.random.fold_in(state.key, state.step), batch, structure, config)
    total = _total_weight(masked, batch.rows.window, config)

    def loss(params: Any, part: MaskedRows) -> tuple[jax.Array, Nats]:
        value, nats = objective(structure, config, params, frozen, part, batch.rows.window)
        return -value / total, nats

    gradient = jax.value_and_grad(loss, has_aux=True)
    (value, nats), gradients = _accumulate(gradient, state.params, masked, config.accumulate, mesh)
    changes, opt_state = make_optimizer(config).update(gradients, state.opt_state, state.params)
    after = JointState(optax.apply_updates(state.params, changes), opt_state, state.step + 1, state.key)
    norms = {group: _norm(part) for group, part in gradients.items()}
    return _kept(after, structure, config, mesh), Metrics(value, nats, norms)


def evaluate(
    params: Any, frozen: Any, batch: RowBatch, key: jax.Array, structure: Structure, config: JointTraining
) -> Nats:
    """Nats of one masking of a batch, drawn with `key`; jitted."""
    return _evaluate(params, frozen, batch, key, structure, config.program())


@functools.partial(jax.jit, static_argnums=(4, 5))
def _evaluate(
    params: Any, frozen: Any, batch: RowBatch, key: jax.Array, structure: Structure, config: JointTraining
) -> Nats:
    masked = mask_batch(key, batch, structure, config)
    return objective(structure, config, params, frozen, masked, batch.rows.window)[1]


def mask_batch(key: jax.Array, batch: RowBatch, structure: Structure, config: JointTraining) -> MaskedRows:
    """A batch with tokens hidden as the config says."""
    noisy, masked, _ = mask_rows(key, batch.rows, structure.config.mask_id, config.masking)
    return MaskedRows(noisy, jnp.asarray(batch.rows.tokens), masked, batch.rows.lengths, batch.starts)


def objective(
    structure: Structure, config: JointTraining, params: Any, frozen: Any, rows: MaskedRows, window: int
) -> tuple[jax.Array, Nats]:
    """The weighted log-likelihood of all windows' masked tokens, summed, in nats; and the unweighted sums."""
    backbone, hmm = structure.backbone(params, frozen), structure.circuit(params, frozen)
    factorised, coupled, masked = window_log_likelihoods(backbone, hmm, rows, window)
    coupled = jnp.where(jnp.isnan(factorised), jnp.nan, coupled)  # NaN is not impossible: it must show
    chosen = coupled if config.objective == "coupled" and hmm is not None else factorised
    weight = WEIGHTINGS[config.weighting](masked.mean(-1, dtype=jnp.float32))
    value = jnp.sum(weight * jnp.where(chosen == -jnp.inf, 0, chosen))
    factorised, coupled = jax.lax.stop_gradient((factorised.reshape(-1), coupled.reshape(-1)))
    return value, Nats.of(factorised, coupled, masked.reshape(-1, window))


def window_log_likelihoods(
    backbone: Transformer, hmm: HMM | None, rows: MaskedRows, window: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-likelihoods of the masked tokens of every window, from one run of the backbone.

    Args:
      backbone, hmm: the model; without a circuit both likelihoods are the backbone's.
      rows: as masked. window: T.

    Returns:
      Factorised and coupled log-likelihoods [batch, windows], and the masks [batch, windows, T].
    """
    there = rows.starts >= 0
    starts = jnp.maximum(rows.starts, 0)
    states = aligned_states(backbone, backbone.encode(rows.noisy, rows.lengths), starts, window)
    flat = (starts[..., None] + jnp.arange(window)).reshape(starts.shape[0], -1)
    tokens, masked = (
        jnp.take_along_axis(x, flat, axis=1).reshape(*starts.shape, window) for x in (rows.clean, rows.masked)
    )
    masked &= there[..., None]
    head = Head.of(backbone)

    # Windows one after the other, and again for the gradient: T·V potentials a row are all that is held at a time.
    @jax.checkpoint
    def one(states: jax.Array, tokens: jax.Array, masked: jax.Array) -> tuple[jax.Array, jax.Array]:
        log_phi = head.log_phi(states)
        factorised = factorised_log_likelihoods(log_phi, tokens, masked)
        if hmm is None:
            return factorised, factorised
        return factorised, coupled_log_likelihoods(hmm, log_phi, tokens, masked, hidden=states)

    by_window = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), (states, tokens, masked))
    _, (factorised, coupled) = jax.lax.scan(lambda _, part: (None, one(*part)), None, by_window)
    return factorised.T, coupled.T, masked


def _total_weight(rows: MaskedRows, window: int, config: JointTraining) -> jax.Array:
    """The weighted number of masked tokens in a batch: what its objective is divided by, however it is parted."""
    starts = jnp.maximum(rows.starts, 0)
    flat = (starts[..., None] + jnp.arange(window)).reshape(starts.shape[0], -1)
    masked = jnp.take_along_axis(rows.masked, flat, axis=1).reshape(*starts.shape, window)
    masked &= (rows.starts >= 0)[..., None]
    weight = WEIGHTINGS[config.weighting](masked.mean(-1, dtype=jnp.float32))
    return jnp.maximum(jnp.sum(weight * masked.sum(-1)), 1.0)


def _accumulate(gradient: Callable, params: Any, rows: MaskedRows, parts: int, mesh: Mesh | None) -> Any:
    """((value, nats), gradients) of a batch, worked through in equal parts whose results are added in float32."""
    if parts == 1:
        return gradient(params, rows)

    def cut(x: jax.Array) -> jax.Array:
        # Part n is every parts-th row from n: each device keeps rows that it has.
        x = jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1)
        if mesh is None:
            return x
        spec = jax.P(None, *batch_sharding(mesh).spec)
        return jax.lax.with_sharding_constraint(x, jax.NamedSharding(mesh, spec))

    shapes = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[: x.shape[0] // parts], rows))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)

    def add(total: Any, part: MaskedRows) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, part)), None

    total, _ = jax.lax.scan(add, nothing, jax.tree.map(cut, rows))
    return jax.tree.map(lambda x, shape: x.astype(shape.dtype), total, shapes)


def _norm(tree: Any) -> jax.Array:
    """Of all values together."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree)))


def _decayed(params: Any) -> Any:
    """True for matrices: norms and biases are not decayed."""

    def matrix(path: tuple, _: Any) -> bool:
        name = str(getattr(path[-1], "key", ""))
        return not (name.endswith("bias") or "norm" in name)

    return jax.tree_util.tree_map_with_path(matrix, params)
