"""Rules that train a circuit: gradients of its logits by any optax transformation, or its expected counts.

A rule sums something over windows and makes a step of the sums. EM and Anemone raise log p(x) and never look at the
backbone; the others raise the conditional log-likelihood (CoDD, section 4.3).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct

from codd_jax.circuits import HMM, updates
from codd_jax.circuits.learning import conditional_counts, observed_counts
from codd_jax.circuits.likelihood import log_likelihood
from codd_jax.training.circuit import CircuitLogits
from codd_jax.training.potentials import Head, WindowPotentials
from codd_jax.training.statistics import WEIGHTINGS, Nats, log_likelihoods, potentials_of

# One object each, so that runs of the same settings share their compiled step.
OPTIMIZERS: dict[str, optax.GradientTransformation] = {
    "adam": optax.scale_by_adam(),
    "adamax": optax.scale_by_adamax(),
    "lion": optax.scale_by_lion(),
    "rmsprop": optax.scale_by_rms(),
    "momentum": optax.trace(0.9),
    "sgd": optax.identity(),
}
COUNT_RULES = ("em", "anemone", "dual_ratio", "ebw")
RULES = (*OPTIMIZERS, *COUNT_RULES)


@struct.dataclass
class Sums:
    """What a step needs, summed over windows.

    Attributes:
      step: what the rule makes its step of (a gradient, or counts).
      objective: the rule's own objective in nats, summed. windows: how many were summed.
      nats: of the masked tokens; zero for rules that do not look at the backbone.
    """

    step: Any
    objective: jax.Array
    windows: jax.Array
    nats: Nats


class Rule(Protocol):
    """How a circuit is trained; `state` is a pytree of the rule's own making."""

    def init(self, hmm: HMM) -> Any:
        """The state before the first step."""
        ...

    def circuit(self, state: Any) -> HMM:
        """The circuit that a state stands for."""
        ...

    def sums(self, windows: WindowPotentials, hmm: HMM, head: Head) -> Sums:
        """Sums over windows under a circuit."""
        ...

    def update(self, state: Any, hmm: HMM, sums: Sums, scale: jax.Array) -> Any:
        """The next state; `scale` in (0, 1] is the schedule's."""
        ...

    def review(self, before: Any, after: Any, fell: jax.Array) -> Any:
        """The state to go on with where the objective of the step's own windows `fell`, or did not."""
        ...


@dataclasses.dataclass(frozen=True)
class GradientRule:
    """An optax transformation on the logits of the circuit, and one with a rate of its own on its modulation.

    Attributes:
      transformation: without learning rate (`optax.scale_by_adam()`, say).
      rate, modulation_rate: what its updates are multiplied by. A rate of 0 for the circuit trains the modulation only.
      weighting: a key of `WEIGHTINGS`. dtype: of the potentials.
    """

    transformation: optax.GradientTransformation
    rate: float = 0.05
    modulation_rate: float = 0.003
    weighting: str = "uniform"
    dtype: str = "float32"
    reviews = False

    def init(self, hmm: HMM) -> Any:
        """Logits of the circuit, heads, and the optimiser's state of both."""
        params = {"circuit": CircuitLogits.of(hmm), "modulation": hmm.modulation}
        # What is static in a circuit travels as a circuit without arrays.
        return {"params": params, "optimizer": self.transformation.init(params), "shape": _static(hmm)}

    def circuit(self, state: Any) -> HMM:
        """Softmax of the logits, with the heads."""
        params, shape = state["params"], state["shape"]
        return params["circuit"].to_hmm(shape.length, shape.normalization).replace(modulation=params["modulation"])

    def sums(self, windows: WindowPotentials, hmm: HMM, head: Head) -> Sums:
        """The gradient of the weighted conditional log-likelihood by the circuit's probabilities and its heads."""

        def objective(hmm: HMM) -> tuple[jax.Array, tuple]:
            factorised, coupled = log_likelihoods(hmm, head, windows, self.dtype)
            total = jnp.sum(_possible(WEIGHTINGS[self.weighting](windows.noise) * coupled, factorised))
            return total, (factorised, coupled)

        (total, parts), gradient = jax.value_and_grad(objective, has_aux=True)(hmm)
        factorised, coupled = jax.lax.stop_gradient(parts)
        count = jnp.sum(windows.masked.any(-1), dtype=jnp.float32)
        return Sums(gradient, total, count, Nats.of(factorised, coupled, windows.masked))

    def update(self, state: Any, hmm: HMM, sums: Sums, scale: jax.Array) -> Any:
        """One step of ascent along the mean over windows, in nats per token of the window."""
        circuit, pull = jax.vjp(lambda params: self.circuit({**state, "params": params}), state["params"])
        per_token = 1 / (jnp.maximum(sums.windows, 1) * circuit.length)
        down = jax.tree.map(lambda x: -per_token * x, sums.step)
        changes, optimizer = self.transformation.update(pull(down)[0], state["optimizer"], state["params"])
        rates = {"circuit": self.rate, "modulation": self.modulation_rate}
        params = {
            name: jax.tree.map(lambda x, d, r=rates[name]: x - r * scale * d, state["params"][name], changes[name])
            for name in rates
        }
        return {**state, "params": params, "optimizer": optimizer}

    def review(self, before: Any, after: Any, fell: jax.Array) -> Any:
        """Gradient steps stand."""
        return after


@dataclasses.dataclass(frozen=True)
class CountRule:
    """Expected counts: "em" and "anemone" for log p(x), "dual_ratio" (local) and "ebw" (global) for the conditional.

    Attributes:
      name: which one (`circuits.updates` has the formulas).
      rate: the step size η; of "ebw", the reciprocal of the damping that it starts with.
      momentum: of the counts, 0 for none. pseudocount: α.
      dtype: of the potentials.
    """

    name: str
    rate: float
    momentum: float = 0.0
    pseudocount: float = 0.0
    dtype: str = "float32"

    @property
    def conditional(self) -> bool:
        """Whether the objective is the conditional log-likelihood."""
        return self.name in ("dual_ratio", "ebw")

    @property
    def reviews(self) -> bool:
        """Whether steps that lower the objective are taken back."""
        return self.name == "ebw"

    def init(self, hmm: HMM) -> Any:
        """The circuit itself, running means of its counts, and the damping."""
        if hmm.modulation is not None:
            raise ValueError(
                f"the rule {self.name!r} counts uses of the circuit's own parameters; a circuit with modulation is "
                "trained by gradients (adam, say)"
            )
        wanted = {"dual_ratio": "local", "ebw": "global"}.get(self.name, hmm.normalization)
        if hmm.normalization != wanted:
            raise ValueError(
                f"the rule {self.name!r} raises the {wanted}ly normalised likelihood and the circuit says "
                f"{hmm.normalization!r}; set normalization={wanted!r}"
            )
        hmm = jax.tree.map(lambda x: x.astype(jnp.float32), hmm)
        means = tuple(updates.Momentum.init(hmm) for _ in range(2 if self.conditional else 1))
        return {"circuit": hmm, "means": means, "damping": jnp.float32(1 / self.rate)}

    def circuit(self, state: Any) -> HMM:
        """The circuit."""
        return state["circuit"]

    def sums(self, windows: WindowPotentials, hmm: HMM, head: Head) -> Sums:
        """Counts, and the objective."""
        count = jnp.float32(windows.tokens.shape[0])
        if not self.conditional:
            total = jnp.sum(jax.vmap(lambda tokens: log_likelihood(hmm, tokens))(windows.tokens))
            return Sums((observed_counts(hmm, windows.tokens),), total, count, Nats.zeros())
        log_phi = potentials_of(head, windows, self.dtype)
        counts = conditional_counts(hmm, log_phi, windows.tokens, ~windows.masked, hmm.normalization)
        factorised, coupled = log_likelihoods(hmm, head, windows, self.dtype)
        total = jnp.sum(_possible(coupled, factorised))
        return Sums(counts, total, count, Nats.of(factorised, coupled, windows.masked))

    def update(self, state: Any, hmm: HMM, sums: Sums, scale: jax.Array) -> Any:
        """The rule's formula with momentum on its counts."""
        pairs = [mean.update(counts, self.momentum) for mean, counts in zip(state["means"], sums.step, strict=True)]
        counts, means = zip(*pairs, strict=True)
        rate = self.rate * scale
        if self.name == "em":
            moved = updates.em_update(hmm, *counts, rate, self.pseudocount)
        elif self.name == "anemone":
            moved = updates.anemone_update(hmm, *counts, sums.windows, rate, self.pseudocount)
        elif self.name == "dual_ratio":
            positive, negative = counts
            moved = updates.dual_ratio_update(hmm, positive, negative.emission, sums.windows, rate, self.pseudocount)
        else:
            moved = updates.extended_baum_welch_update(hmm, *counts, sums.windows, state["damping"] / scale)
        return {**state, "circuit": moved, "means": means}

    def review(self, before: Any, after: Any, fell: jax.Array) -> Any:
        """Where the objective fell the circuit goes back and the damping doubles; else it shrinks by a tenth."""
        circuit = jax.tree.map(lambda old, new: jnp.where(fell, old, new), before["circuit"], after["circuit"])
        damping = jnp.clip(before["damping"] * jnp.where(fell, 2.0, 0.9), 1e-6, 1e6)
        return {**after, "circuit": circuit, "damping": damping}


# (rate, momentum of counts) between those that did best on the demo and on GSM8K text (docs/optimisers.md); those of
# rmsprop and sgd by analogy.
DEFAULT_RATES: dict[str, tuple[float, float]] = {
    "adam": (0.1, 0.0),
    "adamax": (0.9, 0.0),
    "lion": (0.05, 0.0),
    "rmsprop": (0.05, 0.0),
    "momentum": (300.0, 0.0),
    "sgd": (3000.0, 0.0),
    "em": (0.5, 0.0),
    "anemone": (0.3, 0.9),
    "dual_ratio": (1.0, 0.0),
    "ebw": (0.3, 0.0),
}


def make_rule(
    rule: str | Rule,
    *,
    rate: float | None = None,
    modulation_rate: float = 0.003,
    momentum: float | None = None,
    pseudocount: float = 1e-3,
    weighting: str = "uniform",
    dtype: str = "float32",
) -> Rule:
    """The rule of a name in `RULES`, or one of the caller's own.

    Raises:
      ValueError: an unknown rule or weighting, or one that the rule cannot use.
    """
    if not isinstance(rule, str):
        return rule
    if rule not in RULES:
        raise ValueError(f"rule {rule!r} is unknown; known are {', '.join(RULES)}")
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting {weighting!r} is unknown; known are {', '.join(WEIGHTINGS)}")
    usual = DEFAULT_RATES[rule]
    rate = usual[0] if rate is None else rate
    if rule in OPTIMIZERS:
        if momentum is not None:
            raise ValueError(f"momentum is of expected counts; the rule {rule!r} has its own")
        return GradientRule(OPTIMIZERS[rule], rate, modulation_rate, weighting, dtype)
    if weighting != "uniform":
        raise ValueError(
            f"the rule {rule!r} counts every window once, so weighting {weighting!r} has no meaning; use 'uniform' or "
            f"one of {', '.join(OPTIMIZERS)}"
        )
    return CountRule(rule, rate, usual[1] if momentum is None else momentum, pseudocount, dtype)


def _possible(coupled: jax.Array, factorised: jax.Array) -> jax.Array:
    """Log-likelihoods with 0 for windows that the circuit holds for impossible, NaN where the backbone says NaN."""
    return jnp.where(coupled > -jnp.inf, coupled, jnp.where(jnp.isnan(factorised), jnp.nan, 0))


@struct.dataclass
class _Shape:
    """What is static in a circuit."""

    length: int = struct.field(pytree_node=False)
    normalization: str = struct.field(pytree_node=False)


def _static(hmm: HMM) -> _Shape:
    return _Shape(hmm.length, hmm.normalization)
