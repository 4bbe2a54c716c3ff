"""Many runs of one benchmark in one command: weights loaded once, a folder and a log for each, an index over all."""

import argparse
import contextlib
import copy
import datetime
import itertools
import json
import pathlib
import shlex
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from tqdm import tqdm

from codd_jax.distributed import is_first
from codd_jax.evaluation.benchmark import Benchmark, prepare
from codd_jax.evaluation.flags import Parser, add_benchmark_flags
from codd_jax.evaluation.models import Models
from codd_jax.evaluation.options import Options, read_options
from codd_jax.evaluation.presets import TaskPreset
from codd_jax.evaluation.results import write_json

INDEX, LOG = "grid.json", "log.txt"
# What belongs to the whole command and not to one of its runs.
_SHARED = ("output_dir", "run", "grid", "coordinator", "num_processes", "process_id", "prompt")


def read_grid(path: str | pathlib.Path) -> list[str]:
    """The runs of a grid file, as flags.

    Args:
      path: a YAML or JSON file: a mapping of flags to a value or a list of values, every combination of which is a run;
        or a list of such mappings. `true` stands for a flag without a value, `false` and null for leaving it out.

    Raises:
      FileNotFoundError: there is no such file. ValueError: it is neither YAML nor JSON, or of another shape.
    """
    import yaml

    path = pathlib.Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"--grid {path} does not exist; it is a YAML or JSON file such as {{num_steps: [64, 128]}}"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--grid {path} is neither YAML nor JSON: {str(error).splitlines()[0]}") from None
    blocks = content if isinstance(content, list) else [content]
    if not blocks or not all(isinstance(block, dict) and block for block in blocks):
        raise ValueError(f"--grid {path} holds no mapping of flags to values, such as {{num_steps: [64, 128]}}")
    return [line for block in blocks for line in _combinations(block, path)]


def _combinations(block: Mapping[str, Any], path: pathlib.Path) -> Iterator[str]:
    choices = []
    for name, values in block.items():
        values = values if isinstance(values, list) else [values]
        if not values or not all(value is None or isinstance(value, str | int | float) for value in values):
            raise ValueError(f"--grid {path}: {name} needs a value or a list of values, not {values!r}")
        choices.append([_flag(str(name), value) for value in values])
    for combination in itertools.product(*choices):
        yield " ".join(filter(None, combination))


def _flag(name: str, value: str | float | bool | None) -> str:
    name = f"--{name.removeprefix('--')}"
    if value is None or value is False:
        return ""
    return name if value is True else f"{name} {shlex.quote(str(value))}"


def read_runs(args: argparse.Namespace, preset: TaskPreset) -> list[tuple[str, Options]]:
    """The flags and the options of every run that a command line asks for with --grid and --run.

    Raises:
      ValueError: flags that are unknown, contradict each other, or belong to the whole command; two equal runs.
    """
    lines = [*(read_grid(args.grid) if args.grid else []), *(args.run or [])]
    folder = pathlib.Path(args.output_dir) / (args.tag or f"grid_{preset.name}")
    runs: list[tuple[str, Options]] = []
    names: dict[str, str] = {}
    for line in lines:
        shared = copy.copy(args)
        shared.output_dir, shared.tag = str(folder), None
        options = read_options(_parse(line, shared, preset), preset)
        name = options.run_name(preset.name)
        if name in names:
            raise ValueError(
                f"--run '{line}' and --run '{names[name]}' would share the folder {name}; leave one out, or give it a "
                "--tag"
            )
        names[name] = line
        runs.append((line, options))
    return runs


def _parse(line: str, args: argparse.Namespace, preset: TaskPreset) -> argparse.Namespace:
    """`args`, changed by the flags of one run."""
    parser = _RunParser(prog=f"--run '{line}'", add_help=False)
    add_benchmark_flags(parser, preset)
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"--run '{line}': {error}") from None
    given = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    if shared := sorted(given & set(_SHARED)):
        raise ValueError(f"--run '{line}': --{shared[0]} is for the whole command; put it outside the quotes")
    return parser.parse_args(words, args)


class _RunParser(Parser):
    def error(self, message: str):
        raise ValueError(f"{self.prog}: {message}")


def run_grid(
    runs: Sequence[tuple[str, Options]], preset: TaskPreset, *, progress: bool = True
) -> tuple[pathlib.Path, dict[str, str]]:
    """Runs a grid, or what is left of it.

    Every run is checked before the first weights are read. Runs of one checkpoint share its weights, and runs that
    differ in numbers alone share their programs. A run that fails is logged, and the others go on.

    Args:
      runs: from `read_runs`. preset: the benchmark.
      progress: show a bar over the runs and one over the problems of each.

    Returns:
      The folder of all runs, and the reasons of those that failed, by name.

    Raises:
      ValueError and OSError with the reason, before weights are loaded wherever it can be known by then.
    """
    tasks: dict[Any, Any] = {}
    benchmarks = [_prepare(line, options, preset, tasks) for line, options in runs]
    root = benchmarks[0].folder.parent
    if is_first():
        _write_index(root, [(benchmark, line) for benchmark, (line, _) in zip(benchmarks, runs, strict=True)])
    models, failed = Models(), {}
    # Stable: runs of one checkpoint follow each other, otherwise they keep their order.
    sources = [
        (b.options.checkpoint, b.options.adapter or "", b.options.dtype or "", b.options.mesh or "") for b in benchmarks
    ]
    order = sorted(range(len(benchmarks)), key=lambda n: sources.index(sources[n]))
    with tqdm(total=len(benchmarks), desc="runs", unit="run", disable=not (progress and is_first())) as bar:
        for number in order:
            benchmark, line = benchmarks[number], runs[number][0]
            bar.set_postfix_str(benchmark.folder.name)
            reason = _run_logged(benchmark, line, models, progress)
            if reason is not None:
                failed[benchmark.folder.name] = reason
            bar.update()
    return root, failed


def _prepare(line: str, options: Options, preset: TaskPreset, tasks: dict[Any, Any]) -> Benchmark:
    try:
        return prepare(options, preset, tasks)
    except (ValueError, OSError) as error:
        raise type(error)(f"--run '{line}': {error}") from error


def _run_logged(benchmark: Benchmark, line: str, models: Models, progress: bool) -> str | None:
    """Runs one of the grid with its log beside its results; the reason if it failed."""
    with _log(benchmark.folder, line) as log:
        clock = time.perf_counter()
        try:
            summary = benchmark.run(models, progress=progress)
        except Exception as error:
            log(f"failed: {str(error) or type(error).__name__}")
            if jax.process_count() > 1:  # the other processes may not have met it, and would wait for ever
                raise
            return str(error)
        except BaseException as error:
            log(f"stopped: {type(error).__name__}")
            raise
        low, high = summary["interval_95"]
        log(
            f"finished in {time.perf_counter() - clock:.1f} s: accuracy {summary['accuracy']:.4f} "
            f"({summary['correct']} of {summary['total']}, 95 % interval {low:.4f} to {high:.4f}), "
            f"{summary['tokens']} tokens in {summary['steps_used']} steps"
        )
    return None


@contextlib.contextmanager
def _log(folder: pathlib.Path, line: str) -> Iterator[Any]:
    """A function that adds a line to the run's log; warnings go there, too."""
    if not is_first():
        yield lambda text: None
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as file, warnings.catch_warnings():

        def log(text: str) -> None:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            file.write(f"{now} {text}\n")
            file.flush()

        shown = warnings.showwarning

        def show(message, *details):
            log(f"warning: {message}")
            shown(message, *details)

        warnings.showwarning = show
        log(f"started: {line}")
        yield log


def _write_index(root: pathlib.Path, runs: Sequence[tuple[Benchmark, str]]) -> None:
    """`grid.json`: every run of this folder, those of earlier commands included."""
    entries = {
        benchmark.folder.name: {"name": benchmark.folder.name, "flags": line, "folder": benchmark.folder.name}
        for benchmark, line in runs
    }
    root.mkdir(parents=True, exist_ok=True)
    index = root / INDEX
    if index.is_file():
        try:
            earlier = json.loads(index.read_text(encoding="utf-8"))["runs"]
            entries = {run["name"]: run for run in earlier if (root / run["folder"]).is_dir()} | entries
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{index} is not the index of a grid; choose another --output_dir or --tag") from None
    write_json(index, {"runs": list(entries.values())})
