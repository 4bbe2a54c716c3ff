"""Everything a user may set about decoding, and its split into what a program is compiled for and what it is fed."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence

import numpy as np

from codd_jax.decoding.checks import check_cache, is_number, listed, plain, require_count, require_range
from codd_jax.decoding.strategy import Numbers, Strategy

ALGORITHMS = ("low_confidence", "margin", "entropy", "topprob", "random")
SYNONYMS = {"maskgit_plus": "low_confidence", "topk_margin": "margin", "origin": "random"}
FAMILIES = ("llada", "dream")
_CHOICES = {
    "coupling": ("latent", "any_order", "none"),
    "windows": (None, "cover", "best"),
    "schedule": (None, "even", "timestep"),
    "normalization": (None, "global", "local"),
    "pc_temperature_on": ("potentials", "coupled"),
    "step_split": ("even", "floor"),
    "quota": ("row", "batch"),
    "cache": ("none", "prefix", "dual"),
}
# Threshold decoding compares a probability; entropy is not one and a random number says nothing.
_PROBABILITIES = ("low_confidence", "margin", "topprob")


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How to decode. Names are CoDD's where CoDD has them; every value is checked on construction (ValueError).

    Attributes:
      steps: denoising steps, shared out over the blocks. Without effect under `threshold` and `threshold_factor`.
      gen_length: tokens to generate.
      block_length: tokens of a block; None (or gen_length) decodes the whole canvas at once. With `windows`, a
        block_length up to the window's length decodes the whole canvas too, and is the window's length where there is
        no circuit.
      remasking: how positions are ranked: low_confidence (probability of the chosen token), margin, entropy, topprob,
        random; maskgit_plus, topk_margin and origin are Dream's names for the first, second and last.
      temperature: of the token draw, 0 = greedy. top_p in (0, 1], top_k >= 1: filters on the draw; None = off.
      cfg_scale: classifier-free guidance, 0 = off.
      coupling: "latent" or "any_order" (paper, section 5.1), "none" leaves the circuit out.
      pc_temperature: τ of the circuit's potentials; only 0 < τ < 1 sharpens, as published.
      pc_temperature_on: "potentials" (published code) or "coupled" (the paper's text: sharpen p(x | z)).
      pc_frac: the circuit is used while the masked share of its window is below this; above it with reverse_frac;
        None = always.
      normalization: "global" or "local", None = as the circuit was trained.
      windows: None (the block is the window), "cover" (paper, section 5.2: fewest windows over the positions to
        commit) or "best" (published code: one window, re-ranked inside).
      window_remasking: ranks the positions that the windows are laid over; None = remasking.
      schedule: "even" or "timestep"; None = "timestep" for Dream's full canvas, else "even". eps: its last timestep.
      step_split: "even" shares steps out to all blocks, "floor" runs steps // blocks in each, as published.
      quota: "row", or "batch" as Dream's published full-canvas loop has it: one quota for all rows of a batch, which
        makes a row's tokens depend on its batch mates.
      alg_temp: draw the positions with this temperature instead of taking the best; None = off.
      threshold: commit every position whose confidence reaches this, at least one (Fast-dLLM, arXiv 2505.22618).
      threshold_factor: the same with a bound that falls with the number of tokens: (n + 1)(1 - c_n) < factor.
      cache: keys and values kept between the steps of a block, an approximation that saves time (Fast-dLLM, arXiv
        2505.22618): "none", "prefix" (of the positions before the block) or "dual" (and of those after it).
      cache_refresh: compute them anew every so many steps of a block; None = once a block. 1 is exact.
      stop_at_eos: finish a row when a finished block holds a stop id. stop_ids: those ids, None = the tokenizer's.
      num_samples: answers per prompt.
    """

    steps: int = 256
    gen_length: int = 512
    block_length: int | None = 32
    remasking: str = "low_confidence"
    temperature: float = 0.0
    top_p: float | None = None
    top_k: int | None = None
    cfg_scale: float = 0.0
    coupling: str = "latent"
    pc_temperature: float = 0.7
    pc_temperature_on: str = "potentials"
    pc_frac: float | None = 0.3
    reverse_frac: bool = False
    normalization: str | None = None
    windows: str | None = None
    window_remasking: str | None = None
    schedule: str | None = None
    eps: float = 1e-3
    step_split: str = "even"
    quota: str = "row"
    alg_temp: float | None = None
    threshold: float | None = None
    threshold_factor: float | None = None
    cache: str = "none"
    cache_refresh: int | None = None
    stop_at_eos: bool = True
    stop_ids: Sequence[int] | None = None
    num_samples: int = 1

    def __post_init__(self) -> None:
        """Raises a ValueError that names the value, what it may be, and the other value it clashes with."""
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))
        for name in ("steps", "gen_length", "num_samples"):
            require_count(name, getattr(self, name))
        for name in ("block_length", "top_k", "cache_refresh"):
            if getattr(self, name) is not None:
                require_count(name, getattr(self, name), " or None")
        for name in ("remasking", "window_remasking"):
            value = getattr(self, name)
            if not (value is None and name == "window_remasking"):
                canonical_algorithm(value, name)
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; known are {listed(known)}")
        self._check_ranges()
        self._check_clashes()
        if self.stop_ids is not None:
            object.__setattr__(self, "stop_ids", tuple(int(token) for token in self.stop_ids))

    def _check_ranges(self) -> None:
        for name in ("temperature", "cfg_scale", "pc_temperature"):
            require_range(name, getattr(self, name), 0.0, math.inf)
        for name in ("pc_frac", "alg_temp"):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), 0.0, math.inf, " or None")
        for name, low, high in (("top_p", 0.0, 1.0), ("threshold", 0.0, 1.0), ("threshold_factor", 0.0, math.inf)):
            value = getattr(self, name)
            if value is not None and not (is_number(value) and low < value <= high and math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}; it must be above {low:g} and at most {high:g}, or None")
        if not (is_number(self.eps) and 0.0 < self.eps < 1.0):
            raise ValueError(f"eps is {self.eps!r}; the last timestep must be between 0 and 1, both excluded")

    def _check_clashes(self) -> None:
        check_cache(self.cache, self.cache_refresh, self.block_length, self.windows)
        thresholds = [name for name in ("threshold", "threshold_factor") if getattr(self, name) is not None]
        if len(thresholds) == 2:
            raise ValueError(
                f"threshold ({self.threshold}) and threshold_factor ({self.threshold_factor}) are two rules for the "
                "same choice; set one of them to None"
            )
        if thresholds:
            name = thresholds[0]
            for field in ("remasking", "window_remasking"):
                value = getattr(self, field) or self.remasking
                if canonical_algorithm(value) not in _PROBABILITIES:
                    raise ValueError(
                        f"{name} compares a probability, but {field}={value!r} does not give one; "
                        f"use one of {listed(_PROBABILITIES)}"
                    )
            if self.alg_temp:
                raise ValueError(
                    f"alg_temp ({self.alg_temp}) draws positions at random, {name} takes all above a bound"
                )
            if self.schedule is not None:
                raise ValueError(f"schedule={self.schedule!r} fixes how many tokens a step commits, and so does {name}")
            if self.windows == "best":
                raise ValueError(f"windows='best' re-ranks a fixed number of tokens; use windows='cover' with {name}")
        elif self.steps > self.gen_length:
            warnings.warn(
                f"steps={self.steps} is more than gen_length={self.gen_length}: steps beyond one per token are empty",
                stacklevel=4,
            )

    def split(
        self, *, family: str, mask_id: int, stop_ids: Sequence[int] = (), circuit_length: int | None = None
    ) -> tuple[Strategy, Numbers]:
        """The static strategy and the traced numbers.

        Args:
          family: "llada" or "dream", whose sampler and default schedule to use.
          mask_id: the id that stands for an unknown token.
          stop_ids: what to stop at where the config itself names none.
          circuit_length: T of the circuit, None without one.
        """
        if family not in FAMILIES:
            raise ValueError(f"family is {family!r}; known are {listed(FAMILIES)}")
        coupled = circuit_length is not None and self.coupling != "none"
        block, window = self._lengths(circuit_length)
        schedule = self.schedule
        if schedule is None:
            schedule = "timestep" if family == "dream" and block >= self.gen_length else "even"
        if self.threshold is not None or self.threshold_factor is not None:
            schedule = "threshold" if self.threshold is not None else "factor"
        stops = self.stop_ids if self.stop_ids is not None else stop_ids
        remasking = canonical_algorithm(self.remasking)
        if self.quota == "batch" and (schedule != "timestep" or self.windows is not None):
            raise ValueError(
                f"quota='batch' is for the timestep schedule without windows; here the schedule is {schedule!r} and "
                f"windows is {self.windows!r}; use quota='row'"
            )
        strategy = Strategy(
            sampler="gumbel" if family == "llada" else "softmax",
            remasking=remasking,
            window_remasking=canonical_algorithm(self.window_remasking or self.remasking),
            schedule=schedule,
            step_split=self.step_split,
            quota=self.quota,
            block_length=block,
            windows=self.windows,
            window_length=window,
            coupling=self.coupling if coupled else "none",
            normalization=self.normalization,
            pc_temperature_on=self.pc_temperature_on,
            guided=self.cfg_scale > 0,
            cache=self.cache,
            mask_id=int(mask_id),
            stop_ids=tuple(sorted({int(token) for token in stops})) if self.stop_at_eos else (),
        )
        return strategy, self._numbers()

    def _lengths(self, circuit_length: int | None) -> tuple[int, int]:
        """Block and window length in force; a ValueError where a block does not fit the circuit's window."""
        block = self.gen_length if self.block_length is None else min(self.block_length, self.gen_length)
        if self.windows is None:
            if circuit_length is not None and self.coupling != "none" and block > circuit_length:
                raise ValueError(
                    f"block_length is {block} but the circuit covers windows of {circuit_length} tokens; set "
                    f"block_length={circuit_length} or less, or windows='cover' to lay windows over the block"
                )
            return block, block if circuit_length is None or self.coupling == "none" else circuit_length
        window = circuit_length
        if window is None:
            if self.block_length is None:
                raise ValueError("windows without a circuit take their length from block_length, which is None")
            window = self.block_length
        if self.block_length is None or self.block_length <= window:
            block = self.gen_length
        return block, window

    def _numbers(self) -> Numbers:
        always = -np.inf if self.reverse_frac else np.inf
        threshold = self.threshold if self.threshold is not None else self.threshold_factor
        return Numbers(
            steps=np.int32(self.steps),
            temperature=np.float32(self.temperature),
            top_p=np.float32(1.0 if self.top_p is None else self.top_p),
            top_k=np.int32(self.top_k or 0),
            cfg_scale=np.float32(self.cfg_scale),
            pc_temperature=np.float32(self.pc_temperature),
            pc_frac=np.float32(always if self.pc_frac is None else self.pc_frac),
            reverse_frac=np.bool_(self.reverse_frac),
            eps=np.float32(self.eps),
            alg_temp=np.float32(self.alg_temp or 0.0),
            threshold=np.float32(0.0 if threshold is None else threshold),
            cache_refresh=np.int32(np.iinfo(np.int32).max if self.cache_refresh is None else self.cache_refresh),
        )

    def validate_against(
        self,
        *,
        vocab_size: int,
        mask_id: int,
        circuit_length: int | None = None,
        circuit_vocab_size: int | None = None,
        circuit_mask_id: int | None = None,
    ) -> None:
        """Checks this configuration, the backbone and the circuit against each other, before anything is loaded.

        Args:
          vocab_size: columns of the backbone's logits. mask_id: the backbone's mask id.
          circuit_length, circuit_vocab_size: T and V of the circuit, None without one; circuit_mask_id: where it says.

        Raises:
          ValueError: naming both numbers and the way out.
        """
        if not 0 <= mask_id < vocab_size:
            raise ValueError(f"mask id {mask_id} is not among the {vocab_size} ids of the backbone's vocabulary")
        outside = [token for token in self.stop_ids or () if not 0 <= token < vocab_size]
        if outside:
            raise ValueError(f"stop_ids {outside} are not among the {vocab_size} ids of the backbone's vocabulary")
        if circuit_vocab_size is not None and circuit_vocab_size != vocab_size:
            raise ValueError(
                f"the circuit is over {circuit_vocab_size} tokens, the backbone over {vocab_size}: "
                "this circuit was trained for another backbone"
            )
        if circuit_mask_id is not None and circuit_mask_id != mask_id:
            raise ValueError(f"the circuit's mask id is {circuit_mask_id}, the backbone's is {mask_id}")
        block, _ = self._lengths(circuit_length)
        check_steps(self, -(-self.gen_length // block))


def check_steps(config: DecodeConfig, num_blocks: int) -> None:
    """Raises a ValueError where there are fewer steps than blocks: a block without a step would keep its masks."""
    thresholded = config.threshold is not None or config.threshold_factor is not None
    if config.steps < num_blocks and not thresholded:
        raise ValueError(
            f"steps={config.steps} for {num_blocks} blocks: every block needs at least one step; "
            f"use steps>={num_blocks} or a longer block_length"
        )


def canonical_algorithm(name: str, field: str = "remasking") -> str:
    """The one name of a ranking algorithm or its synonym; a ValueError listing the known ones."""
    canonical = SYNONYMS.get(name, name)
    if canonical not in ALGORITHMS:
        raise ValueError(f"{field} is {name!r}; known are {listed(ALGORITHMS)} and the synonyms {listed(SYNONYMS)}")
    return canonical
