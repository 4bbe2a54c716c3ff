"""Joint fine-tuning: backbone and circuit learn together from the conditional log-likelihood (paper, Eq. 7)."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from codd_jax.model import CoDD
from codd_jax.sharding import batch_sharding
from codd_jax.training.checkpoints import TrainingCheckpoints
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_parts import Structure, count, flat, take_apart
from codd_jax.training.joint_report import Point, save_report
from codd_jax.training.joint_rows import RowSource
from codd_jax.training.joint_step import JointState, Metrics, evaluate, start, update
from codd_jax.training.rows import Rows
from codd_jax.training.statistics import Nats
from codd_jax.training.store import fingerprint, fingerprint_rows

# Stream of the masks that validation uses, whatever the seed of training.
_VALIDATION = 2**31
_LOOK = 20


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fine-tuned model.

    Attributes:
      model: with the tuned backbone (its LoRA factors beside the weights, not merged) and the tuned circuit.
      history: one `Point` for every validation, the first before any update.
      trained: weights that were trained, by group.
    """

    model: CoDD
    history: list[Point]
    trained: dict[str, int]


def joint_finetune(
    model: CoDD,
    rows: Sequence[Rows] | Rows,
    config: JointTraining,
    *,
    validation: Sequence[Rows] | Rows = (),
    mesh: Mesh | None = None,
    folder: str | pathlib.Path | None = None,
    consume: bool = False,
    progress: bool = True,
) -> Tuned:
    """Fine-tunes backbone and circuit together, each row's windows coupled after one run of the backbone.

    Args:
      model: where training starts; it is not changed, unless it is to be consumed.
      rows: clean rows (`rows.lay_out`), one group for each width, in windows of the circuit's length.
      config: what is trained, and how.
      validation: held-out rows; without them history follows the training batches.
      mesh: devices with axes data and model; default: the model's.
      folder: gets `checkpoints/`, history.json and history.png. The same call continues a run that was stopped, bit
        for bit on the same devices.
      consume: reuse the memory of the given model, which is of no use afterwards.
      progress: show a bar with nats per masked token of the backbone alone and coupled.

    Raises:
      ValueError: rows, model and config do not fit each other, or the folder holds a run with other settings.
      FloatingPointError: the loss is not finite; the message names the step, and the last checkpoint stays.
      KeyboardInterrupt: after Ctrl-C, once the state is saved.
    """
    mesh = model.mesh if mesh is None else mesh
    hmm = model.hmm
    aligned = not model.config.shift_logits if config.aligned is None else config.aligned
    source = RowSource(rows, validation, batch_size=config.batch_size, aligned=aligned, seed=config.seed)
    _check(model, source, config, mesh)
    checkpoints = None if folder is None else _open(pathlib.Path(folder), model, source, config)
    structure, params, frozen = take_apart(model.backbone, hmm, config, mesh, consume)
    trained = {group: count(part) for group, part in params.items()}
    state = start(params, config, structure, mesh)
    run = _Run(structure, config, mesh, source, frozen, checkpoints, progress)
    state, history = run.restore(state)
    state = run.train(state, history)
    history_to_save = [dataclasses.asdict(point) for point in history]
    if folder is not None:
        save_report(history_to_save, pathlib.Path(folder), trained, dataclasses.asdict(config))
    tuned = CoDD(
        structure.backbone(state.params, frozen),
        structure.circuit(state.params, frozen),
        model.tokenizer,
        mesh=mesh,
        defaults=model.defaults,
        sources=model.sources,
    )
    return Tuned(tuned, history, trained)


@dataclasses.dataclass
class _Run:
    """The loop, with what does not change in it."""

    structure: Structure
    config: JointTraining
    mesh: Mesh | None
    source: RowSource
    frozen: Any
    checkpoints: TrainingCheckpoints | None
    progress: bool

    def restore(self, state: JointState) -> tuple[JointState, list[Point]]:
        """The latest checkpoint's state, in the place of `state`, and its history."""
        leaves = flat(state)
        restored = None if self.checkpoints is None else self.checkpoints.restore(leaves)
        if restored is None:
            return state, []
        step, stored = restored
        history = [Point(**point) for point in self.checkpoints.notes(step)["history"]]
        return jax.tree.unflatten(jax.tree.structure(state), [stored[name] for name in leaves]), history

    def train(self, state: JointState, history: list[Point]) -> JointState:
        """Updates to the end; `history` grows."""
        config, began = self.config, time.perf_counter()
        done, recent = int(state.step), []
        if not history:
            history.append(self.look(state, done, [], 0.0))
        earlier = history[-1].seconds
        with tqdm(total=config.steps, initial=done, desc="fine-tuning", unit="step", disable=not self.progress) as bar:
            try:
                while done < config.steps:
                    batch = jax.device_put(self.source.batch(done), batch_sharding(self.mesh))
                    state, metrics = update(state, self.frozen, batch, self.structure, config, self.mesh)
                    done += 1
                    recent.append(metrics)
                    bar.update()
                    last, due = done == config.steps, done % config.save_every == 0
                    if last or due or done % config.validate_every == 0 or done % _LOOK == 0:
                        _check_finite(recent, done)
                        bar.set_postfix_str(_postfix(recent[-_LOOK:]))
                    if last or done % config.validate_every == 0:
                        history.append(self.look(state, done, recent, earlier + time.perf_counter() - began))
                        recent = []
                    if last or due:
                        self.save(done, state, history)
                if history[-1].step != done:  # stopped between the last update and its validation
                    history.append(self.look(state, done, [], earlier))
                    self.save(done, state, history)
            except KeyboardInterrupt:
                done = int(state.step) if not _deleted(state) else done
                if not _deleted(state):
                    _check_finite(recent, done)
                    self.save(done, state, history)
                where = "nothing was saved" if self.checkpoints is None else "the same command continues"
                raise KeyboardInterrupt(f"stopped after step {done} of {config.steps}; {where}") from None
        return state

    def look(self, state: JointState, done: int, recent: list[Metrics], seconds: float) -> Point:
        """Held-out nats (without held-out rows: those of the latest batches), and the gradient's norms."""
        held_out = list(self.source.validation())
        if held_out:
            key = jax.random.key(_VALIDATION)
            parts = [
                evaluate(
                    state.params,
                    self.frozen,
                    jax.device_put(batch, batch_sharding(self.mesh)),
                    jax.random.fold_in(key, number),
                    self.structure,
                    self.config,
                )
                for number, batch in enumerate(held_out)
            ]
        else:
            parts = [metrics.nats for metrics in recent]
        norms = {} if not recent else {name: float(value) for name, value in recent[-1].norms.items()}
        return Point.of(done, jax.device_get(parts), bool(held_out), norms, seconds)

    def save(self, step: int, state: JointState, history: list[Point]) -> None:
        """A checkpoint, unless there is one of this step."""
        if self.checkpoints is not None and step not in self.checkpoints.steps():
            notes = {"history": [dataclasses.asdict(point) for point in history]}
            self.checkpoints.save(step, flat(state), notes)


def _check(model: CoDD, source: RowSource, config: JointTraining, mesh: Mesh | None) -> None:
    """Raises ValueError where the parts of a run do not fit each other."""
    if model.hmm is None and config.objective == "coupled":
        raise ValueError(
            "the coupled objective needs a circuit and the model has none; give one, or choose objective='factorised'"
        )
    if model.hmm is not None and model.hmm.length != source.window:
        raise ValueError(
            f"the rows are laid out for windows of {source.window} tokens and the circuit covers {model.hmm.length}; "
            "lay them out with the circuit's length"
        )
    for group in (*source.groups, *source.held_out):
        highest = int(np.max(group.tokens))
        if highest >= model.config.vocab_size:
            raise ValueError(
                f"the rows hold token {highest} and the backbone's vocabulary has {model.config.vocab_size}: they were "
                "made with another tokenizer"
            )
    share = 1 if mesh is None else mesh.shape["data"]
    if config.batch_size % (share * config.accumulate):
        raise ValueError(
            f"a batch of {config.batch_size} rows in {config.accumulate} part(s) cannot be spread evenly over a data "
            f"axis of {share}; choose a batch size that is a multiple of {share * config.accumulate}"
        )


def _open(folder: pathlib.Path, model: CoDD, source: RowSource, config: JointTraining) -> TrainingCheckpoints:
    """The folder's checkpoints; refused where they are of another model, other rows or another recipe."""
    settings = {
        "backbone": fingerprint(model.backbone),
        "circuit": None if model.hmm is None else _digest(model.hmm),
        "rows": fingerprint_rows(source.groups),
        "validation": fingerprint_rows(source.held_out),
        **config.settings(),
    }
    return TrainingCheckpoints(folder / "checkpoints", settings)


def _digest(hmm: Any) -> list[float]:
    """Numbers that two circuits hardly share."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(hmm)]
    return [hmm.length, hmm.num_states, *(round(float(np.square(leaf).sum()), 9) for leaf in leaves)]


def _check_finite(recent: list[Metrics], done: int) -> None:
    """Raises FloatingPointError, naming the first step whose loss or gradient is not finite or sees no window."""
    values = jax.device_get([(metrics.loss, metrics.norms, metrics.nats) for metrics in recent])
    for number, (loss, norms, nats) in enumerate(values):
        wrong = [name for name, value in {"loss": loss, **norms}.items() if not np.isfinite(value)]
        reason = f"{', '.join(wrong)} not finite (loss {float(loss):g})" if wrong else ""
        if not wrong and nats.failures > 0 and not nats.tokens.sum():
            reason = "the circuit gives none of the windows any probability"
        if reason:
            raise FloatingPointError(
                f"step {done - len(values) + number + 1}: {reason}; lower the learning rates, or clip the gradients. "
                "The last checkpoint before it is kept"
            )


def _postfix(recent: list[Metrics]) -> str:
    total: Nats = jax.tree.map(lambda *x: np.sum(np.asarray(jax.device_get(x)), axis=0), *(m.nats for m in recent))
    tokens = max(total.tokens.sum(), 1)
    return (
        f"nats/masked token: backbone {total.backbone.sum() / tokens:.4f}, coupled {total.coupled.sum() / tokens:.4f}"
    )


def _deleted(state: JointState) -> bool:
    """Whether an update that did not return has taken the state's memory."""
    return any(leaf.is_deleted() for leaf in jax.tree.leaves(state))
