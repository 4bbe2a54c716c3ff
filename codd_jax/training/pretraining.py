"""A small LLaDA from scratch: masked diffusion on question and solution pairs, for experiments without real weights."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.training.checkpoints import TrainingCheckpoints
from codd_jax.training.dataset import Example
from codd_jax.training.rows import Rows, bucketed, lay_out, mask_rows
from codd_jax.training.step import make_update, start_training
from codd_jax.training.store import fingerprint_rows


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """How a backbone is trained from scratch.

    Attributes:
      steps: AdamW steps. batch: rows a step. rate: peak learning rate, cosine after a warmup of `warmup` steps.
      window: solutions are filled up with EOS to a multiple of it, as circuits and blocks will see them.
      bucket: row widths are multiples of it; a batch holds rows of one width.
      max_length: longer examples are left out.
      seed: of the weights, the order of the rows and the masks.
      save_every: steps between checkpoints.
    """

    steps: int = 2000
    batch: int = 16
    rate: float = 2e-3
    warmup: int = 100
    window: int = 32
    bucket: int = 64
    max_length: int = 320
    seed: int = 0
    save_every: int = 200


def small_llada(tokenizer: Any, width: int, num_layers: int, num_heads: int, max_length: int = 1024) -> BackboneConfig:
    """LLaDA's layout for a tokenizer of `text_tokenizer`; the vocabulary is filled up to a multiple of 64."""
    if width % num_heads:
        raise ValueError(f"width {width} is no multiple of {num_heads} heads")
    return BackboneConfig(
        family="llada",
        vocab_size=-(-len(tokenizer) // 64) * 64,
        width=width,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=width // num_heads,
        ffn_width=-(-8 * width // 3 // 64) * 64,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_length=max_length,
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.bos_token_id,
    )


def pretrain(
    config: BackboneConfig,
    examples: Sequence[Example],
    training: Pretraining,
    folder: str | pathlib.Path,
    progress: bool = True,
) -> Transformer:
    """Trains a backbone, or goes on where a stopped run of the same settings left off.

    Half of each batch is masked uniformly over the solution, half as block-wise decoding finds it (earlier windows
    known, later ones hidden); a hidden token weighs 1 / t (arXiv:2502.09992, Eq. 6), within bounds.

    Args:
      config: of the backbone. examples: tokenized pairs. training: the recipe.
      folder: gets `checkpoints/` and, at the end, `history.json`.
      progress: show a bar.

    Returns:
      The trained backbone, float32.

    Raises:
      FloatingPointError: the loss is not finite. ValueError: the folder holds a run with other settings.
    """
    folder = pathlib.Path(folder)
    kept = [example for example in examples if len(example.prompt) + len(example.solution) < training.max_length]
    groups = [
        lay_out([kept[i] for i in group], training.window, config.eos_id, config.pad_id, training.bucket)
        for group in bucketed(kept, training.window, training.bucket)
    ]
    if not groups:
        raise ValueError(f"no example is shorter than {training.max_length} tokens; allow longer rows")
    settings = {
        "backbone": dataclasses.asdict(config),
        **dataclasses.asdict(training),
        "rows": fingerprint_rows(groups),
    }
    checkpoints = TrainingCheckpoints(folder / "checkpoints", settings)
    backbone = Transformer(config, layout="unrolled", rngs=nnx.Rngs(training.seed))
    graphdef, params = nnx.split(backbone)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, training.rate, min(training.warmup, training.steps // 4), training.steps, 0.05 * training.rate
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.05))
    update = make_update(_loss(graphdef, config.mask_id), optimizer)
    state = start_training(params, optimizer)
    # The structure of `nnx.State` stays out of the files: leaves are saved in their order.
    leaves, tree = jax.tree.flatten(state)
    start, history = 0, []
    if (restored := checkpoints.restore(leaves)) is not None:
        start, leaves = restored
        state = jax.tree.unflatten(tree, leaves)
        history = checkpoints.notes(start)["history"]
    key = jax.random.key(training.seed)
    recent: list[jax.Array] = []
    with tqdm(total=training.steps, initial=start, desc="backbone", unit="step", disable=not progress) as bar:
        for step in range(start, training.steps):
            rows = _draw(groups, training, step)
            state, value = update(state, rows, jax.random.fold_in(key, step))
            recent.append(value)
            bar.update()
            if (step + 1) % 50 == 0 or step + 1 == training.steps:
                mean = float(np.mean(jax.device_get(recent)))
                if not np.isfinite(mean):
                    raise FloatingPointError(f"the loss is {mean} after {step + 1} steps; lower the learning rate")
                history.append([step + 1, mean])
                bar.set_postfix(loss=f"{mean:.3f}")
                recent.clear()
            if (step + 1) % training.save_every == 0 or step + 1 == training.steps:
                checkpoints.save(step + 1, jax.tree.leaves(state), {"history": history})
    (folder / "history.json").write_text(json.dumps({"settings": settings, "loss": history}, indent=1) + "\n")
    return nnx.merge(graphdef, state.params)


def _draw(groups: Sequence[Rows], training: Pretraining, step: int) -> Rows:
    """The batch of a step, of rows of one width; widths come as often as they have rows."""
    rng = np.random.default_rng((training.seed, step))
    sizes = np.array([len(rows.prompt_lengths) for rows in groups])
    rows = groups[rng.choice(len(groups), p=sizes / sizes.sum())]
    return rows.take(rng.integers(len(rows.prompt_lengths), size=training.batch))


def _loss(graphdef: nnx.GraphDef, mask_id: int):
    def loss(params: Any, rows: Rows, key: jax.Array) -> jax.Array:
        half = rows.tokens.shape[0] // 2
        parts = []
        for index, (scheme, chosen) in enumerate(
            (("uniform", rows.take(slice(0, half))), ("blockwise", rows.take(slice(half, None))))
        ):
            noisy, masked, ratios = mask_rows(jax.random.fold_in(key, index), chosen, mask_id, scheme)
            weights = jnp.ones_like(ratios) if scheme == "blockwise" else 1 / jnp.maximum(ratios, 0.1)
            parts.append((noisy, masked * weights[:, None]))
        noisy, weights = (jnp.concatenate(part) for part in zip(*parts, strict=True))
        logits = nnx.merge(graphdef, params)(noisy, rows.lengths)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, rows.tokens)
        return jnp.sum(losses * weights) / jnp.maximum(jnp.sum(weights), 1)

    return loss
