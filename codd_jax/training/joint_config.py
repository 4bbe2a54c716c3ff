"""What a joint fine-tuning run is, as one frozen dataclass: what is trained, at which rates, on how much."""

from __future__ import annotations

import dataclasses
from typing import Any

import optax

from codd_jax.training.lora import LoraConfig
from codd_jax.training.rows import SCHEMES
from codd_jax.training.statistics import WEIGHTINGS

TRAIN = ("full", "lora", "head", "none")
OBJECTIVES = ("coupled", "factorised")
SCHEDULES = ("cosine", "constant")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JointTraining:
    """Fine-tuning of backbone and circuit under one objective (paper, Eq. 7).

    Attributes:
      steps: optimiser updates. batch_size: rows of an update. accumulate: parts a batch is worked through in, for
        memory; the update is that of the whole batch.
      train: of the backbone, "full", "lora", "head" or "none". train_circuit: the circuit, with its modulation if any.
      objective: "coupled" is the conditional log-likelihood of backbone and circuit, "factorised" the backbone's own.
      backbone_rate, circuit_rate, modulation_rate: peak learning rates.
      schedule: "cosine" down to zero or "constant", of the backbone; circuit_schedule: of circuit and modulation.
      warmup: updates in which the rates rise from zero.
      weight_decay: of the backbone's matrices (AdamW). clip_norm: of the gradients, of backbone, circuit and
        modulation each by itself; None: not at all. b1, b2: Adam's.
      lora: factors where train is "lora".
      masking: "uniform" or "blockwise", as `rows.mask_rows`. weighting: of a window by its masked share, a key of
        `statistics.WEIGHTINGS`. aligned: windows at the blocks of block-wise decoding; None: as the family is decoded.
      remat: compute each block again for the gradient, in place of keeping its activations.
      dtype: what the backbone computes in; None: as loaded. param_dtype: of trained weights ("float32": master
        weights, which small updates are not lost in). moment_dtype: of Adam's first moment; None: of the weights.
      shard_over_data: spread trained weights and optimiser state over the data axis, too (ZeRO, arXiv:1910.02054).
      validate_every, save_every: updates between validations and checkpoints.
      seed: of masks, order and LoRA's first factor.
    """

    steps: int
    batch_size: int = 8
    accumulate: int = 1
    train: str = "lora"
    train_circuit: bool = True
    objective: str = "coupled"
    backbone_rate: float = 1e-4
    circuit_rate: float = 0.01
    modulation_rate: float = 0.001
    schedule: str = "cosine"
    circuit_schedule: str = "cosine"
    warmup: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.99
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    masking: str = "uniform"
    weighting: str = "uniform"
    aligned: bool | None = None
    remat: bool = True
    dtype: str | None = None
    param_dtype: str = "float32"
    moment_dtype: str | None = None
    shard_over_data: bool = False
    validate_every: int = 100
    save_every: int = 100
    seed: int = 0

    def __post_init__(self):
        choices = {
            "train": TRAIN, "objective": OBJECTIVES, "schedule": SCHEDULES, "circuit_schedule": SCHEDULES,
            "masking": SCHEMES, "weighting": tuple(WEIGHTINGS),
        }  # fmt: skip
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        for name in ("steps", "batch_size", "accumulate", "validate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("backbone_rate", "circuit_rate", "modulation_rate", "weight_decay", "warmup"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a finite number of at least 0")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ValueError(f"clip_norm is {self.clip_norm}; it must be above 0, or None for no clipping")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot be worked through in {self.accumulate} equal parts; choose "
                "an accumulate that divides it"
            )
        if self.warmup >= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must end before the last of {self.steps} steps")
        if self.train == "none" and not self.train_circuit:
            raise ValueError("train='none' with train_circuit=False trains nothing")
        if self.objective == "factorised" and self.train == "none":
            raise ValueError("the factorised objective does not know the circuit; with train='none' nothing would move")

    def rate(self, group: str) -> optax.Schedule:
        """The learning rate of "backbone", "circuit" or "modulation" by step."""
        peak = getattr(self, f"{group}_rate")
        kind = self.schedule if group == "backbone" else self.circuit_schedule
        rest = self.steps - self.warmup
        fall = optax.cosine_decay_schedule(peak, rest) if kind == "cosine" else optax.constant_schedule(peak)
        if not self.warmup:
            return fall
        # The first update is not wasted on a rate of zero.
        rise = optax.linear_schedule(peak / (self.warmup + 1), peak, self.warmup)
        return optax.join_schedules([rise, fall], [self.warmup])

    def program(self) -> JointTraining:
        """The same recipe without what compiled programs do not depend on."""
        return dataclasses.replace(self, validate_every=1, save_every=1, seed=0)

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first; how often it looks around is free."""
        facts = dataclasses.asdict(self)
        for name in ("validate_every", "save_every", "remat", "accumulate", "shard_over_data"):
            del facts[name]
        return facts
