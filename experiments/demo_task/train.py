"""Train the demo's bundle: a small LLaDA on the generated problems, then a circuit on that frozen backbone."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from codd_jax.backbones import BackboneConfig, Transformer
from codd_jax.circuits import HMM
from codd_jax.evaluation.provenance import environment
from codd_jax.io.circuit import save_circuit
from codd_jax.io.safetensors import save_huggingface
from codd_jax.tokenizer import load_tokenizer
from codd_jax.training.circuit import CircuitLogits, circuit_loss, init_circuit_logits
from codd_jax.training.corruption import corrupt, stratified_counts
from codd_jax.training.hidden_cache import HiddenCache, cache_hidden_states, window_log_phi
from codd_jax.training.objective import (
    conditional_log_likelihoods,
    diffusion_loss,
    factorised_log_likelihoods,
)
from codd_jax.training.step import make_update, start_training
from codd_jax.training.windows import WindowBatch, put_windows, take_windows
from experiments.demo_task.data import WINDOW, sample_rows
from experiments.demo_task.tokenizer import save_tokenizer


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How much is trained; the defaults made the shipped bundle.

    Attributes:
      seed: of the data, the corruption and both initialisations.
      backbone_steps, backbone_batch, backbone_rate: AdamW steps, problems a step, peak learning rate (cosine).
      circuit_steps, circuit_batch, circuit_rate: the same for Adam on the circuit's logits.
      cached_windows: corrupted windows whose hidden states the circuit is trained on.
      circuit_least: fewest hidden tokens in those windows: with fewer there is little left to couple.
      circuit_noise: standard deviation of the circuit's first logits, which breaks the symmetry between its states.
      num_states: of the circuit.
    """

    seed: int = 0
    backbone_steps: int = 3500
    backbone_batch: int = 32
    backbone_rate: float = 2e-3
    circuit_steps: int = 2400
    circuit_batch: int = 64
    circuit_rate: float = 0.05
    cached_windows: int = 12288
    circuit_least: int = 16
    circuit_noise: float = 1.0
    num_states: int = 64


def backbone_config(tokenizer: PreTrainedTokenizerBase) -> BackboneConfig:
    """The demo's backbone: about a million weights in LLaDA's layout, 8 heads so that it can be sharded."""
    return BackboneConfig(
        family="llada",
        vocab_size=-(-len(tokenizer) // 64) * 64,
        width=128,
        num_layers=4,
        num_heads=8,
        num_kv_heads=8,
        head_dim=16,
        ffn_width=352,
        rope_theta=1e4,
        norm_eps=1e-5,
        max_length=4096,
        mask_id=tokenizer.mask_token_id,
        eos_id=tokenizer.eos_token_id,
        pad_id=tokenizer.pad_token_id,
        bos_id=tokenizer.bos_token_id,
    )


def train_backbone(tokenizer: PreTrainedTokenizerBase, recipe: Recipe, progress: bool = True) -> Transformer:
    """Masked diffusion on the solutions, prompts always in sight; weights end up rounded to bfloat16 as shipped."""
    config = backbone_config(tokenizer)
    backbone = Transformer(config, layout="unrolled", rngs=nnx.Rngs(recipe.seed))
    graphdef, params = nnx.split(backbone)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.backbone_rate, min(100, recipe.backbone_steps // 4), recipe.backbone_steps
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def loss(params: Any, batch: WindowBatch, key: jax.Array) -> jax.Array:
        count_key, mask_key = jax.random.split(key)
        clean = take_windows(batch.tokens, batch.starts, WINDOW)
        # Half of the windows are mostly hidden: few-step decoding begins there, and 1/t gives them little weight.
        half = clean.shape[0] // 2
        dense_key = jax.random.fold_in(count_key, 1)
        sparse, dense = stratified_counts(count_key, clean.shape[0] - half, WINDOW), 3 * WINDOW // 4
        counts = jnp.concatenate([sparse, stratified_counts(dense_key, half, WINDOW, dense)])
        noisy, masked = corrupt(mask_key, clean, counts, config.mask_id)
        rows = put_windows(batch.tokens, batch.starts, noisy)
        positions = batch.starts[:, None] + jnp.arange(WINDOW)
        logits = nnx.merge(graphdef, params)(rows, batch.lengths, positions)
        return diffusion_loss(logits, clean, masked)

    update = make_update(loss, optimizer)
    state = start_training(params, optimizer)
    batches = sample_rows(tokenizer, recipe.seed, recipe.backbone_batch, held_out=False)
    key = jax.random.key(recipe.seed)
    with _Bar(recipe.backbone_steps, "training the backbone", progress) as bar:
        for step in range(recipe.backbone_steps):
            state, value = update(state, next(batches), jax.random.fold_in(key, step))
            bar.update(value)
    rounded = jax.tree.map(lambda array: array.astype(jnp.bfloat16).astype(array.dtype), state.params)
    return nnx.merge(graphdef, rounded)


def cache_windows(
    backbone: Transformer, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, batch: int = 256
) -> HiddenCache:
    """Hidden states of corrupted training windows that the circuit is fitted to, from problems of their own."""
    graphdef, params = nnx.split(backbone)
    rows = sample_rows(tokenizer, recipe.seed + 1, batch, held_out=False)
    key = jax.random.fold_in(jax.random.key(recipe.seed), 1)
    number = -(-recipe.cached_windows // batch)
    batches = (
        (next(rows), stratified_counts(jax.random.fold_in(key, 2 * index), batch, WINDOW, recipe.circuit_least))
        for index in range(number)
    )
    return cache_hidden_states(graphdef, params, batches, key, length=WINDOW, mask_id=backbone.config.mask_id)


def train_circuit(backbone: Transformer, cache: HiddenCache, recipe: Recipe, progress: bool = True) -> HMM:
    """Adam on the circuit's logits for the conditional log-likelihood of cached windows; the backbone is frozen."""
    graphdef, params = nnx.split(backbone)
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.circuit_rate, recipe.circuit_steps))

    def loss(logits: CircuitLogits, params: Any, windows: HiddenCache) -> jax.Array:
        log_phi = window_log_phi(nnx.merge(graphdef, params), windows.hidden)
        return circuit_loss(logits, log_phi, windows.tokens, windows.masked)

    key = jax.random.key(recipe.seed)
    init_key = jax.random.fold_in(key, 2)
    logits = init_circuit_logits(init_key, recipe.num_states, backbone.config.vocab_size, recipe.circuit_noise)
    update = make_update(loss, optimizer)
    state = start_training(logits, optimizer)
    rng = np.random.default_rng((recipe.seed, 2))
    with _Bar(recipe.circuit_steps, "training the circuit", progress) as bar:
        for _ in range(recipe.circuit_steps):
            chosen = rng.integers(cache.tokens.shape[0], size=recipe.circuit_batch)
            state, value = update(state, params, cache.take(chosen))
            bar.update(value)
    return state.params.to_hmm(WINDOW)


def held_out_nats(
    backbone: Transformer, hmm: HMM, tokenizer: PreTrainedTokenizerBase, ratios: Sequence[float], count: int = 512
) -> dict[str, dict[str, float]]:
    """Negative log-likelihood in nats per hidden token of held-out windows: {mask ratio: {backbone, coupled}}."""
    graphdef, params = nnx.split(backbone)
    rows = next(sample_rows(tokenizer, seed=0, batch=count, held_out=True))
    nats = {}
    for ratio in ratios:
        hidden = np.full(count, round(ratio * WINDOW))
        windows = cache_hidden_states(
            graphdef, params, [(rows, hidden)], jax.random.key(0), length=WINDOW, mask_id=backbone.config.mask_id
        )
        log_phi = window_log_phi(backbone, windows.hidden)
        known = (log_phi, windows.tokens, windows.masked)
        factorised, coupled = factorised_log_likelihoods(*known), conditional_log_likelihoods(hmm, *known)
        total = -float(hidden.sum())
        nats[str(ratio)] = {
            "backbone": round(float(jnp.sum(factorised)) / total, 4),
            "coupled": round(float(jnp.sum(coupled)) / total, 4),
        }
    return nats


def train_bundle(folder: pathlib.Path, recipe: Recipe, progress: bool = True) -> dict[str, Any]:
    """Train everything and write the bundle to `folder`; returns what its training.json says of the run."""
    save_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    clocks = [(time.perf_counter(), time.process_time())]
    backbone = train_backbone(tokenizer, recipe, progress)
    clocks.append((time.perf_counter(), time.process_time()))
    hmm = train_circuit(backbone, cache_windows(backbone, tokenizer, recipe), recipe, progress)
    clocks.append((time.perf_counter(), time.process_time()))
    stored = jax.tree.map(lambda array: array.astype(jnp.bfloat16), nnx.state(backbone))
    save_huggingface(nnx.merge(nnx.graphdef(backbone), stored), backbone.config, folder)
    save_circuit(folder, hmm, {"mask_id": backbone.config.mask_id})
    spent = {
        name: {"seconds": round(after[0] - before[0], 1), "cpu_seconds": round(after[1] - before[1], 1)}
        for name, before, after in zip(("backbone", "circuit"), clocks, clocks[1:], strict=False)
    }
    facts = {
        "recipe": dataclasses.asdict(recipe),
        "spent": spent,
        "backbone_parameters": backbone.config.num_params,
        "held_out_nats_per_hidden_token": held_out_nats(backbone, hmm, tokenizer, (0.5, 0.8, 0.9, 1.0)),
        "environment": environment(),
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    return facts


class _Bar:
    """A progress bar with the mean loss of the last steps; a loss that is not finite ends the training."""

    def __init__(self, steps: int, description: str, progress: bool):
        self.bar = tqdm(total=steps, desc=description, unit="step", disable=not progress)
        self.recent: list[jax.Array] = []

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, value: jax.Array) -> None:
        """Count one step and its loss, which is fetched only every 50th time."""
        self.recent.append(value)
        self.bar.update()
        if len(self.recent) >= 50:
            mean = float(np.mean(jax.device_get(self.recent)))
            if not np.isfinite(mean):
                raise ValueError(f"the loss is {mean} after {self.bar.n} steps; lower the learning rate")
            self.bar.set_postfix(loss=f"{mean:.4f}")
            self.recent.clear()
