"""The compiled programs of circuit training: one step of a rule, and the sums of a validation."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from codd_jax.circuits import HMM
from codd_jax.training.potentials import Head, WindowPotentials
from codd_jax.training.rules import Rule
from codd_jax.training.statistics import Nats, log_likelihoods, sum_over_windows


@functools.lru_cache(maxsize=16)
def make_step(rule: Rule, mesh: jax.sharding.Mesh | None = None, chunk: int | None = None) -> Callable[..., Any]:
    """A jitted `step(state, head, windows, scale)` → (state, Nats, objective, windows); reuses the state's memory."""

    def step(state: Any, head: Head, windows: WindowPotentials, scale: jax.Array):
        hmm = rule.circuit(state)
        sums = sum_over_windows(rule.sums, mesh, chunk)(windows, hmm, head)
        moved = rule.update(state, hmm, sums, scale)
        if rule.reviews:
            again = sum_over_windows(lambda *parts: rule.sums(*parts).objective, mesh, chunk)
            after = again(windows, rule.circuit(moved), head)
            moved = rule.review(state, moved, ~(after >= sums.objective))
        return moved, sums.nats, sums.objective, sums.windows

    return jax.jit(step, donate_argnums=0)


@functools.lru_cache(maxsize=16)
def make_validation(mesh: jax.sharding.Mesh | None, chunk: int | None, dtype: str) -> Callable[..., Nats]:
    """A jitted `nats(windows, hmm, head)` → `Nats`."""

    def nats(windows: WindowPotentials, hmm: HMM, head: Head) -> Nats:
        return Nats.of(*log_likelihoods(hmm, head, windows, dtype), windows.masked)

    return jax.jit(sum_over_windows(nats, mesh, chunk))
