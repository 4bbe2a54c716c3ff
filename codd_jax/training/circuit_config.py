"""What may be set about the training of a circuit, checked when it is set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

from codd_jax.training.rules import Rule, make_rule

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


@dataclasses.dataclass(frozen=True)
class CircuitTraining:
    """How a circuit is trained.

    Attributes:
      rule: a name in `rules.RULES`, or a `Rule`.
      rate: its learning rate or step size; None: the rule's own.
      modulation_rate: of the heads of a modulated circuit.
      momentum, pseudocount: of counts; None: the rule's own.
      schedule: of the rates, a key of `SCHEDULES`.
      steps, seconds: the budget; seconds are processor time of this process after the first step. With both, whichever
        ends first; the schedule follows the one that is further.
      weighting: w(t) of a window with masked share t, a key of `statistics.WEIGHTINGS`.
      normalization: "global" or "local".
      potentials_dtype: "float32" or "bfloat16"; counts and gradients are float32.
      chunk: windows that a device works on at a time; None: its whole part of a batch.
      validate_every: steps between validations; 0: only at the end.
      patience: validations without improvement after which training stops, the best circuit being kept; None: never.
      checkpoint_every: steps between checkpoints.
    """

    rule: str | Rule = "adam"
    rate: float | None = None
    modulation_rate: float = 0.003
    momentum: float | None = None
    pseudocount: float = 1e-3
    schedule: str = "cosine"
    steps: int | None = 1000
    seconds: float | None = None
    weighting: str = "uniform"
    normalization: str = "global"
    potentials_dtype: str = "float32"
    chunk: int | None = None
    validate_every: int = 100
    patience: int | None = None
    checkpoint_every: int = 200

    def __post_init__(self):
        if self.steps is None and self.seconds is None:
            raise ValueError("training needs a budget: give steps, seconds, or both")
        if (self.steps is not None and self.steps < 1) or (self.seconds is not None and not self.seconds > 0):
            raise ValueError(
                f"a budget of {self.steps} steps and {self.seconds} seconds is empty; both must be positive"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule {self.schedule!r} is unknown; known are {', '.join(SCHEDULES)}")
        if self.potentials_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"potentials_dtype is {self.potentials_dtype!r}; it must be float32 or bfloat16")
        for name, least in (("validate_every", 0), ("checkpoint_every", 1), ("patience", 1), ("chunk", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if self.patience is not None and not self.validate_every:
            raise ValueError("patience counts validations, and validate_every=0 asks for none; set validate_every")
        self.make_rule()

    def check_batch(self, batch_size: int, devices: int) -> None:
        """Raises ValueError where batches of so many windows do not divide into equal chunks on so many devices."""
        share = batch_size / devices
        if share % 1 or (self.chunk is not None and share % min(self.chunk, share)):
            raise ValueError(
                f"a batch of {batch_size} windows cannot be split over {devices} devices in chunks of {self.chunk}; "
                "choose numbers that divide it"
            )

    def make_rule(self) -> Rule:
        """The rule with these settings; ValueError where they do not fit it."""
        return make_rule(
            self.rule,
            rate=self.rate,
            modulation_rate=self.modulation_rate,
            momentum=self.momentum,
            pseudocount=self.pseudocount,
            weighting=self.weighting,
            dtype=self.potentials_dtype,
        )
