"""One optax step for any loss: the backbone, the circuit, or both are parameters like any other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """What training carries along: parameters, optimiser state, and the number of steps taken (int32 scalar)."""

    params: Any
    opt_state: Any
    step: jax.Array


def start_training(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `params` is any pytree of arrays."""
    return TrainState(params=params, opt_state=optimizer.init(params), step=jnp.zeros((), jnp.int32))


def make_update(
    loss: Callable[..., jax.Array], optimizer: optax.GradientTransformation
) -> Callable[..., tuple[TrainState, jax.Array]]:
    """Compile one descent step.

    Args:
      loss: `loss(params, *inputs)` → scalar to be made small.
      optimizer: the optax transformation that `start_training` was given.

    Returns:
      `update(state, *inputs)` → (next state, the loss before the step), jitted; the given state's memory is reused.
    """

    def update(state: TrainState, *inputs: Any) -> tuple[TrainState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state.params, *inputs)
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        return TrainState(params=params, opt_state=opt_state, step=state.step + 1), value

    return jax.jit(update, donate_argnums=0)
