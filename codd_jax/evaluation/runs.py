"""Results folders as they are found on disk, read without touching them: finished runs, partial ones, and grids."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from codd_jax.evaluation.presets import DECODING, FAMILIES, TASKS
from codd_jax.evaluation.results import SAMPLES, SETTINGS, SUMMARY, Key

# What a circuit adds to a decoding configuration; without one these fields say nothing.
CIRCUIT_FIELDS = (
    *("coupling", "pc_temperature", "pc_temperature_on", "pc_frac", "reverse_frac", "normalization"),
    *("windows", "window_remasking"),
)
# What tells runs of one backbone and method apart beside task, order, pace, circuit and seed.
_CONDITIONS = ("adapter", "dtype")
_DECODING_CONDITIONS = (
    *("block_length", "temperature", "top_p", "top_k", "cfg_scale", "alg_temp", "schedule", "step_split", "quota"),
    *("num_samples", "stop_at_eos"),
)
# As `grid.INDEX`, which this reader of files does not import for it.
GRID = "grid.json"
_NEEDED = ("doc_id", "repeat", "correct", "num_tokens", "steps_used", "seconds")


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as its folder tells it.

    Attributes:
      path: the folder. name: to show.
      settings: as in `settings.json`.
      samples: finished samples by (document id, repeat).
      summary: as in `summary.json`; None where the run has not ended.
    """

    path: pathlib.Path
    name: str
    settings: Mapping[str, Any]
    samples: Mapping[Key, Mapping[str, Any]]
    summary: Mapping[str, Any] | None

    @property
    def task(self) -> str:
        """The benchmark's name."""
        return self.settings["task"]

    @property
    def decoding(self) -> Mapping[str, Any]:
        """Fields of the decoding configuration."""
        return self.settings["decoding"]

    @property
    def family(self) -> str:
        """The backbone's family; folders that do not record it have it in their name."""
        named = [family for family in FAMILIES if f"_{family}_" in f"_{self.name}_"]
        return self.settings.get("family") or (named[0] if named else "backbone")

    @property
    def coupled(self) -> bool:
        """Whether a circuit couples the tokens of a step."""
        return self.decoding.get("coupling", "none") != "none"

    @property
    def method(self) -> str:
        """What decodes, in words."""
        if not self.coupled:
            return "backbone alone"
        return "CoDD, any-order" if self.decoding["coupling"] == "any_order" else "CoDD"

    @property
    def pace(self) -> str:
        """What sets the number of steps, and what is kept between them."""
        return pace_of(self.decoding)

    @property
    def scheduled(self) -> bool:
        """Whether the number of steps was set beforehand, as in the paper."""
        return not (self.decoding.get("threshold") or self.decoding.get("threshold_factor"))

    @property
    def registered(self) -> bool:
        """Whether the circuit's settings are those that were registered before any result."""
        names = ("pc_temperature", "pc_frac", "reverse_frac", "coupling")
        preset = DECODING.get(self.family, DECODING["llada"])
        return self.coupled and all(self.decoding.get(name) == preset[name] for name in names)

    @property
    def conditions(self) -> Mapping[str, str]:
        """What must agree for runs to stand in one table, by name and as text."""
        told = {name: self.settings.get(name) for name in _CONDITIONS}
        told |= {name: self.decoding.get(name) for name in _DECODING_CONDITIONS}
        return {name: _named(value) for name, value in told.items()}

    @property
    def as_in_paper(self) -> bool:
        """Whether the paper ran the like: its own models and prompts, without worked examples, sampled as there."""
        preset = DECODING.get(self.family, {})
        sampled = all(
            self.decoding.get(name, usual) == usual for name, usual in preset.items() if name in _DECODING_CONDITIONS
        )
        return sampled and self.settings.get("adapter") is None and not self.settings.get("num_shot")

    @property
    def circuit(self) -> str:
        """The circuit's name; empty without one."""
        return _named(self.settings["circuit"]) if self.coupled and self.settings.get("circuit") else ""

    @property
    def status(self) -> str:
        """Whole, a chosen part, or not finished."""
        if self.summary is None or self.summary["total"] < len(self.samples):
            return f"partial: {len(self.samples)} so far"
        if self.summary.get("limit") is not None:
            return f"first {self.summary['limit']} problems"
        return "complete"

    @property
    def headline(self) -> str:
        """The metric that `correct` stands for."""
        preset = TASKS.get(self.task)
        return (self.summary or {}).get("metric") or (preset.headline if preset else "")

    @functools.cached_property
    def totals(self) -> Mapping[str, float]:
        """Sums over the samples: correct, tokens, steps, seconds, failures; and their number."""
        names = {"correct": "correct", "tokens": "num_tokens", "steps": "steps_used", "seconds": "seconds"}
        samples = self.samples.values()
        sums = {name: sum(sample[field] for sample in samples) for name, field in names.items()}
        return {**sums, "failures": sum(s.get("pc_failures", 0) for s in samples), "count": len(self.samples)}

    @property
    def accuracy(self) -> float:
        """Share of correct samples."""
        return self.totals["correct"] / self.totals["count"]

    @property
    def tokens_per_pass(self) -> float:
        """Generated tokens per forward pass of the backbone."""
        return self.totals["tokens"] / max(self.totals["steps"], 1)

    @property
    def tokens_per_second(self) -> float | None:
        """Generated tokens a second; None where no time was taken."""
        return self.totals["tokens"] / self.totals["seconds"] if self.totals["seconds"] else None

    @property
    def seconds_per_sample(self) -> float:
        """Seconds a sample took of the devices."""
        return self.totals["seconds"] / self.totals["count"]


def pace_of(decoding: Mapping[str, Any]) -> str:
    """What sets the number of steps, and what is kept between them, from the fields of a `DecodeConfig`."""
    pace = f"{decoding.get('steps')} steps"
    if decoding.get("threshold"):
        pace = f"threshold {decoding['threshold']:g}"
    elif decoding.get("threshold_factor"):
        pace = f"factor {decoding['threshold_factor']:g}"
    cache = decoding.get("cache", "none")
    if cache == "none":
        return pace
    refresh = decoding.get("cache_refresh")
    return f"{pace}, {cache} cache" + (f" refreshed every {refresh}" if refresh else "")


def _named(value: Any) -> str:
    """A setting as text; of a file or folder its name."""
    if value is None:
        return "none"
    return str(value["source"]) if isinstance(value, Mapping) and "source" in value else str(value)


def differences_of(groups: Sequence[Mapping[str, str]]) -> list[str]:
    """For each of several conditions, in words, what they do not all share; empty texts where they agree."""
    varied = [name for name in groups[0] if len({group[name] for group in groups}) > 1] if groups else []
    return [", ".join(f"{name} {group[name]}" for name in varied) for group in groups]


def find_runs(folders: Sequence[str | pathlib.Path]) -> tuple[list[Run], list[str]]:
    """The runs in folders and below them, and what was left out, with reasons.

    Args:
      folders: run folders, grid folders, or folders that hold such.

    Raises:
      FileNotFoundError: a folder is not there.
      ValueError: there is no run that can be read in all of them; the message has the reasons.
    """
    runs: dict[pathlib.Path, Run] = {}
    left_out: list[str] = []
    for given in folders:
        folder = pathlib.Path(given).expanduser()
        if not folder.is_dir():
            what = "is a file; give the folder that it lies in" if folder.exists() else "does not exist"
            raise FileNotFoundError(f"{given} {what}")
        left_out += [reason for index in sorted(folder.rglob(GRID)) for reason in _not_begun(index)]
        places = sorted({file.parent for name in (SETTINGS, SAMPLES) for file in folder.rglob(name)})
        if not places:
            left_out.append(f"{folder} holds no run: there is no {SETTINGS} in it or below it")
        for place in places:
            if place.resolve() in runs:
                continue
            try:
                name = place.name if place == folder else str(place.relative_to(folder))
                runs[place.resolve()] = read_run(place, name)
            except (ValueError, OSError) as error:
                left_out.append(str(error))
    if not runs:
        raise ValueError(
            "there is nothing to report:\n  "
            + "\n  ".join(left_out)
            + f"\nGive folders that a benchmark wrote ({SETTINGS}, {SAMPLES}), such as its --output_dir"
        )
    return list(runs.values()), left_out


def _not_begun(index: pathlib.Path) -> Iterator[str]:
    """The runs of a grid that left no settings, with reasons."""
    try:
        for run in _read_json(index)["runs"]:
            if not (index.parent / run["folder"] / SETTINGS).is_file():
                yield f"{index.parent / run['folder']} was not begun: {run['flags']}"
    except (ValueError, KeyError, TypeError) as error:
        yield f"{index} is no index of a grid ({error!r})"


def read_run(folder: pathlib.Path, name: str | None = None) -> Run:
    """One run's folder.

    Raises:
      ValueError: it is no run's folder, or a file in it is damaged, or nothing was finished yet.
    """
    settings = _read_json(folder / SETTINGS)
    if not isinstance(settings.get("task"), str) or not isinstance(settings.get("decoding"), dict):
        raise ValueError(f"{folder / SETTINGS} does not describe a benchmark's run (no task, or no decoding)")
    samples: dict[Key, Mapping[str, Any]] = {}
    for sample in _read_samples(folder / SAMPLES):
        samples.setdefault((sample["doc_id"], sample["repeat"]), sample)
    if not samples:
        raise ValueError(f"{folder} was begun, but no sample in it is finished")
    summary = _read_json(folder / SUMMARY) if (folder / SUMMARY).is_file() else None
    if summary is not None and not isinstance(summary.get("total"), int):
        raise ValueError(f"{folder / SUMMARY} is no summary of a run (no total)")
    return Run(folder, name or folder.name, settings, samples, summary)


def _read_samples(file: pathlib.Path) -> Iterator[Mapping[str, Any]]:
    """Finished samples; a last line that was being written is none."""
    if not file.is_file():
        return
    content = file.read_bytes()
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), start=1):
        try:
            sample = json.loads(line)
            if not all(isinstance(sample[name], int | float) for name in _NEEDED):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file}, line {number} is no finished sample with {', '.join(_NEEDED)}") from None
        yield sample


def _read_json(file: pathlib.Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise ValueError(f"{file.parent} has no {file.name}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} does not hold a JSON object")
    return content
