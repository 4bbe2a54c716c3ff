"""What a decoding program is compiled for (`Strategy`) and what it is fed (`Numbers`), told apart by type."""

from __future__ import annotations

import dataclasses

import flax.struct
import jax


@dataclasses.dataclass(frozen=True)
class Strategy:
    """The static half of a `DecodeConfig`: a program is compiled for each. Build it with `DecodeConfig.split`.

    Attributes:
      sampler: "gumbel" (LLaDA: noise on the logits, scores from the plain logits) or "softmax" (Dream: scores from
        the tempered and filtered logits that the token was drawn from).
      remasking, window_remasking: canonical names out of `config.ALGORITHMS`; the second ranks the positions that
        windows are laid over.
      schedule: "even", "timestep", "threshold" or "factor".
      block_length: positions decoded before the next ones are looked at.
      window_length: positions that a window covers, the circuit's own length where there is one.
      mask_id, stop_ids: token ids.
    Others as in `DecodeConfig`.
    """

    sampler: str
    remasking: str
    window_remasking: str
    schedule: str
    step_split: str
    quota: str
    block_length: int
    windows: str | None
    window_length: int
    coupling: str
    normalization: str | None
    pc_temperature_on: str
    guided: bool
    cache: str
    mask_id: int
    stop_ids: tuple[int, ...]


@flax.struct.dataclass
class Numbers:
    """The traced half of a `DecodeConfig`, scalars: a sweep over any of them compiles nothing.

    float32 but for `steps`, `top_k` (0 = off), `cache_refresh` (int32) and `reverse_frac` (bool). Off are:
    temperature 0, top_p 1, cfg_scale 0, alg_temp 0. `pc_frac` is +inf (-inf reversed) to couple always. `threshold`
    holds either `threshold` or `threshold_factor`, as the schedule says. `cache_refresh` is the largest int32 to
    refresh at block boundaries alone.
    """

    steps: jax.Array
    temperature: jax.Array
    top_p: jax.Array
    top_k: jax.Array
    cfg_scale: jax.Array
    pc_temperature: jax.Array
    pc_frac: jax.Array
    reverse_frac: jax.Array
    eps: jax.Array
    alg_temp: jax.Array
    threshold: jax.Array
    cache_refresh: jax.Array
