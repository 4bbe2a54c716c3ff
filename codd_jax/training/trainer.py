"""Training a circuit on a frozen backbone: the loop around a rule, with validation, checkpoints and a history."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import math
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from codd_jax.circuits import HMM
from codd_jax.sharding import AXES, replicated
from codd_jax.training.checkpoints import TrainingCheckpoints
from codd_jax.training.circuit_config import SCHEDULES, CircuitTraining
from codd_jax.training.circuit_step import make_step, make_validation
from codd_jax.training.history import by_share, per_token
from codd_jax.training.potentials import WindowPotentials, WindowSource
from codd_jax.training.statistics import Nats

# The last steps of a schedule still move; rules divide by the scale.
_LEAST_SCALE = 1e-3
_REPORT_EVERY = 20


class Diverged(ValueError):
    """A step or a validation that is not finite: the rule's settings are at fault, or the hidden states."""


@dataclasses.dataclass(frozen=True)
class TrainedCircuit:
    """What came out.

    Attributes:
      hmm: the circuit; the best one by validation with `patience`, else the last.
      history: plain JSON: `training` and `validation`, a list of records each, `steps`, `stopped` (why), and seconds of
        processor and wall time.
    """

    hmm: HMM
    history: dict[str, Any]


def train_circuit(
    source: WindowSource,
    hmm: HMM,
    config: CircuitTraining,
    *,
    mesh: jax.sharding.Mesh | None = None,
    folder: str | Path | None = None,
    about: dict[str, Any] | None = None,
    progress: bool = True,
) -> TrainedCircuit:
    """Fits a circuit to a frozen backbone.

    Args:
      source: windows with the backbone's states, and the head that reads them.
      hmm: where to start; with `modulation` its heads are trained as well. Its normalization becomes the config's.
      config: how.
      mesh: every batch is split over all its devices; the circuit does not depend on their number beyond rounding.
      folder: for checkpoints; a call with the same settings continues the run that it finds there, bit for bit.
      about: what else must be equal for a run to be the same (data, backbone), plain JSON.
      progress: show a bar with nats per masked token, of the backbone alone and coupled.

    Raises:
      ValueError: parts that do not fit each other, another run in `folder`, or a step that was not finite.
    """
    return _Run(source, hmm, config, mesh, folder, about, progress).go()


class _Run:
    """One training run: what it carries along, and the loop."""

    def __init__(self, source, hmm, config, mesh, folder, about, progress):
        check_fit(source, hmm, mesh, config)
        self.source, self.config, self.mesh, self.progress = source, config, mesh, progress
        self.rule = config.make_rule()
        place = (lambda x: jax.device_put(x, replicated(mesh))) if mesh is not None else (lambda x: x)
        self.head = place(source.head)
        # A copy: the state's memory is reused from step to step, and the caller keeps the circuit.
        self.state = place(_copy(self.rule.init(hmm.replace(normalization=config.normalization))))
        self.best = _copy(self.rule.circuit(self.state)) if config.patience is not None else None
        self.notes = {"step": 0, "seconds": 0.0, "wall": 0.0, "training": [], "validation": [], "bad": 0}
        self.notes["stopped"] = None
        self.pending: list[tuple[Nats, Any, Any]] = []
        self.checkpoints = None
        if folder is not None:
            self.checkpoints = TrainingCheckpoints(folder, _settings(config, source, hmm, about))
            found = self.checkpoints.restore({"state": self.state, "best": self.best})
            if found is not None:
                self.state, self.best = found[1]["state"], found[1]["best"]
                self.notes = self.checkpoints.notes(found[0])

    def go(self) -> TrainedCircuit:
        """Steps until the budget is spent, then validates once more."""
        first, total = self.notes["step"], self.config.steps
        bar = tqdm(total=total, initial=first, desc="training the circuit", unit="step", disable=not self.progress)
        with bar, concurrent.futures.ThreadPoolExecutor(1) as reader:
            try:
                self._steps(reader, bar)
                if not self.notes["validation"] or self.notes["validation"][-1]["step"] != self.notes["step"]:
                    self._validate()
            except KeyboardInterrupt:
                # A step that was interrupted may have used up the memory of the state before it.
                if self.notes["step"] > first and not any(x.is_deleted() for x in jax.tree.leaves(self.state)):
                    self._save(bar)
                raise
            if self.notes["step"] > first:
                self._save(bar)
        return self._result()

    def _steps(self, reader: concurrent.futures.Executor, bar: tqdm) -> None:
        """The loop: while a step is computed the windows of the next one are read."""
        step = make_step(self.rule, self.mesh, self.config.chunk)
        clock = None
        read = lambda number: self._placed(self.source.batch(number))  # noqa: E731
        coming = reader.submit(read, self.notes["step"])
        while self.notes["stopped"] is None:
            if self._done() >= 1.0:
                self.notes["stopped"] = "the budget was spent"
                break
            windows = coming.result()
            coming = reader.submit(read, self.notes["step"] + 1)
            scale = max(_LEAST_SCALE, SCHEDULES[self.config.schedule](self._done()))
            self.state, *metrics = step(self.state, self.head, windows, jnp.float32(scale))
            self.pending.append(tuple(metrics))
            jax.block_until_ready(metrics)  # the clock must not run ahead of the devices
            clock = clock or self._clock()  # after the first step, which is compiled
            self.notes["step"] += 1
            self.notes["seconds"], self.notes["wall"] = time.process_time() - clock[0], time.perf_counter() - clock[1]
            bar.update()
            self._look(bar)
            if self.notes["step"] % self.config.checkpoint_every == 0:
                self._save(bar)
        self._report(bar)

    def _result(self) -> TrainedCircuit:
        hmm = self.best if self.best is not None else self.rule.circuit(self.state)
        history = {
            "training": self.notes["training"],
            "validation": self.notes["validation"],
            "steps": self.notes["step"],
            "stopped": self.notes["stopped"],
            "processor_seconds": round(self.notes["seconds"], 2),
            "wall_seconds": round(self.notes["wall"], 2),
        }
        return TrainedCircuit(hmm, history)

    def _done(self) -> float:
        """The share of the budget that is spent."""
        shares = [self.notes["step"] / self.config.steps if self.config.steps else 0.0]
        shares += [self.notes["seconds"] / self.config.seconds if self.config.seconds else 0.0]
        return min(1.0, max(shares))

    def _clock(self) -> tuple[float, float]:
        """When the run would have begun, had it not been interrupted."""
        return time.process_time() - self.notes["seconds"], time.perf_counter() - self.notes["wall"]

    def _placed(self, windows: WindowPotentials) -> WindowPotentials:
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, windows)
        return jax.device_put(windows, jax.NamedSharding(self.mesh, jax.P(AXES)))

    def _look(self, bar: tqdm) -> None:
        """Reports and validates when it is time to."""
        every, patience = self.config.validate_every, self.config.patience
        due = every and self.notes["step"] % every == 0
        if due or len(self.pending) >= _REPORT_EVERY:
            self._report(bar)
        if due:
            self._validate()
            if patience is not None and self.notes["bad"] >= patience:
                self.notes["stopped"] = f"no better validation in {patience} attempts"

    def _report(self, bar: tqdm) -> None:
        """Fetches the metrics of the last steps; ValueError where one is not finite."""
        if not self.pending:
            return
        first = self.notes["step"] - len(self.pending) + 1
        fetched = jax.device_get(self.pending)
        self.pending = []
        for number, (nats, objective, windows) in enumerate(fetched, start=first):
            if not np.isfinite(objective):
                raise Diverged(
                    f"step {number} is not finite ({objective}); lower the rate, or look for damaged hidden states. "
                    "Checkpoints of earlier steps are kept"
                )
            if nats.failures >= windows > 0:
                raise Diverged(
                    f"at step {number} the circuit gives none of the windows any probability; lower the rate, or start "
                    "from a circuit whose emissions are not zero. Checkpoints of earlier steps are kept"
                )
        nats = jax.tree.map(lambda *parts: sum(parts), *(entry[0] for entry in fetched))
        tokens = sum(float(entry[2]) for entry in fetched) * self.source.length
        record = {"step": self.notes["step"], **per_token(nats)}
        record["objective"] = float(sum(float(entry[1]) for entry in fetched)) / max(tokens, 1)
        self.notes["training"].append(record)
        shown = {name: f"{record[name]:.4f}" for name in ("backbone", "coupled") if record[name] is not None}
        bar.set_postfix(shown or {"objective": f"{record['objective']:.4f}"})

    def _validate(self) -> None:
        """Notes the nats of the held-out windows, and keeps the circuit if it is the best so far."""
        circuit = self.rule.circuit(self.state)
        sums = make_validation(self.mesh, self.config.chunk, self.config.potentials_dtype)
        parts = [jax.device_get(sums(self._placed(part), circuit, self.head)) for part in self.source.validation()]
        if not parts:
            return
        nats = jax.tree.map(lambda *arrays: sum(arrays), *parts)
        record = {"step": self.notes["step"], "seconds": round(self.notes["seconds"], 2), **per_token(nats)}
        if record["coupled"] is None or not np.isfinite(record["coupled"]):
            raise Diverged(
                f"the validation at step {self.notes['step']} is not finite, or masks nothing; lower the rate, "
                "or hold out more"
            )
        record["by_share"] = by_share(nats)
        lowest = min((entry["coupled"] for entry in self.notes["validation"]), default=math.inf)
        self.notes["validation"].append(record)
        better = record["coupled"] < lowest
        self.notes["bad"] = 0 if better else self.notes["bad"] + 1
        if better and self.best is not None:
            self.best = _copy(circuit)

    def _save(self, bar: tqdm) -> None:
        self._report(bar)  # so that no state is kept that is not finite
        if self.checkpoints is not None:
            self.checkpoints.save(self.notes["step"], {"state": self.state, "best": self.best}, self.notes)


def check_fit(source: WindowSource, hmm: HMM, mesh: jax.sharding.Mesh | None, config: CircuitTraining) -> None:
    """Raises ValueError, naming both numbers, where source, circuit and devices do not fit."""
    if hmm.length != source.length:
        raise ValueError(f"the circuit covers {hmm.length} tokens and the windows have {source.length}")
    if hmm.vocab_size != source.head.vocab_size:
        raise ValueError(
            f"the circuit is over {hmm.vocab_size} tokens and the backbone over {source.head.vocab_size}: start from a "
            "circuit of this backbone"
        )
    if hmm.modulation is not None and hmm.modulation.width != source.head.width:
        raise ValueError(
            f"the circuit's modulation reads states of width {hmm.modulation.width} and the backbone's have "
            f"{source.head.width}"
        )
    config.check_batch(source.batch_size, 1 if mesh is None else mesh.size)


def _settings(config: CircuitTraining, source: WindowSource, hmm: HMM, about: dict[str, Any] | None) -> dict[str, Any]:
    """What must be equal for a run to be the same."""
    described = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    described["rule"] = config.rule if isinstance(config.rule, str) else repr(config.rule)
    start = hashlib.sha256()
    for array in jax.tree.leaves(hmm):
        start.update(np.ascontiguousarray(jax.device_get(array)).tobytes())
    return {
        **described,
        "batch_size": source.batch_size,
        "windows": len(source),
        "start": start.hexdigest()[:16],
        **(about or {}),
    }


def _copy(tree: Any) -> Any:
    return jax.tree.map(jnp.array, tree)
