"""From a viewer's command line to a replay: which model decodes which question, recorded live or read from a file."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from codd_jax.decoding.config import DecodeConfig
from codd_jax.evaluation import benchmark, viewer_terminal
from codd_jax.evaluation.options import Options, read_options
from codd_jax.evaluation.presets import SIDE_BY_SIDE, TaskPreset
from codd_jax.evaluation.provenance import identify
from codd_jax.evaluation.question import Question, check_sources, from_run
from codd_jax.evaluation.runs import pace_of
from codd_jax.evaluation.trajectory import Recorder, Trajectory
from codd_jax.evaluation.viewer import Replay, make_replay, read_replay
from codd_jax.model import CoDD
from codd_jax.tokenizer import render_chat

# Flags of a model that mean nothing where the run or the file says how it was decoded.
_DECODING = (
    *("alg", "num_steps", "gen_length", "block_length", "dream_block", "dream_window", "temperature", "top_p", "top_k"),
    *("threshold", "threshold_factor", "cache", "cache_refresh", "cfg_scale"),
    *("coupling", "pc_temperature", "pc_frac", "reverse_frac", "seed"),
)
_MODEL = ("llada_ckpt", "dream_ckpt", "model_alias", "peft_ckpt", "pc_ckpt", "dtype", "mesh")


@dataclasses.dataclass(frozen=True)
class Bundle:
    """What is watched without a checkpoint: a small model with its circuit, how it decodes, and a prompt."""

    folder: pathlib.Path
    decode: DecodeConfig
    prompt: str


def watch(args: argparse.Namespace, preset: TaskPreset, bundle: Bundle, *, terminal: bool, delay: float) -> Replay:
    """Records or reads what a command line asks for, and shows it in the terminal if that is wanted.

    Args:
      args: `prompt`, `results`, `doc`, `replay` and the flags of `flags.add_model_flags`.
      preset: the task whose system prompt a user's message gets, and whose other flags have their defaults.
      bundle: taken where no model is named.
      terminal: show it while it is decoded; delay: seconds a step, at least.

    Raises:
      ValueError: flags that contradict each other, a sample that is not there, or a model that is not the run's.
      FileNotFoundError: a file or folder is not there.
    """
    _check_flags(args)
    if args.replay:
        replay = read_replay(args.replay)
        if terminal:
            viewer_terminal.again(replay.trajectories, delay=delay)
        return replay
    model, question, about = _prepare(args, preset, bundle)
    recorders = question.recorders(model)
    trajectories = viewer_terminal.live(recorders, delay=delay) if terminal else _record(recorders)
    return make_replay(question.prompt, about, trajectories, question.notes(trajectories))


def _check_flags(args: argparse.Namespace) -> None:
    """Raises a ValueError for flags that would be ignored."""
    sources = [name for name in ("prompt", "results", "replay") if getattr(args, name) is not None]
    if len(sources) > 1:
        raise ValueError(f"--{sources[0]} and --{sources[1]} are two things to watch; leave one of them out")
    if args.doc is not None and not args.results:
        raise ValueError("--doc counts the problems of a run; name its folder with --results")
    if args.prompt is not None and not args.prompt.strip():
        raise ValueError("--prompt is empty")
    given = [name for name in (*_MODEL, *_DECODING) if getattr(args, name) not in (None, False, 0)]
    named = any(getattr(args, name) for name in ("llada_ckpt", "dream_ckpt", "model_alias"))
    if args.replay and given:
        raise ValueError(f"--{given[0]} with --replay, which decodes nothing; leave one of them out")
    if args.results:
        if not named:
            raise ValueError("--results needs the run's model; give --llada_ckpt or --dream_ckpt")
        if ignored := [name for name in given if name in _DECODING]:
            raise ValueError(f"--{ignored[0]} with --results, whose run was decoded by its own settings")
    elif given and not named:
        raise ValueError(f"--{given[0]} without a model; give --llada_ckpt or --dream_ckpt, or no flag for the demo")


def _prepare(args: argparse.Namespace, preset: TaskPreset, bundle: Bundle) -> tuple[CoDD, Question, str]:
    """The model, the question, and a line about them; weights are read last."""
    if not (args.llada_ckpt or args.dream_ckpt or args.model_alias):
        model = CoDD.from_pretrained(bundle.folder, circuit=bundle.folder, dtype="float32", progress=False)
        prompt = render_chat(model.tokenizer, [{"role": "user", "content": args.prompt or bundle.prompt}])
        return model, Question(prompt, bundle.decode), _about("the built-in demo", bundle.decode, 0)
    if args.results:
        run, question = from_run(args.results, args.doc or 0)
        options = read_options(args, preset)
        parts = {"backbone": options.checkpoint, "circuit": options.circuit, "adapter": options.adapter}
        check_sources(run, {name: identify(source) for name, source in parts.items()})
        options = dataclasses.replace(options, dtype=options.dtype or run.settings.get("dtype"))
        benchmark.inspect(options)
        model = benchmark.load_model(options, question.decode)
        about = f"{run.name}, problem {args.doc or 0}: {_about(options.checkpoint, question.decode, question.seed)}"
        return model, question, about
    if args.prompt is None:
        raise ValueError("there is nothing to decode; give --prompt, or a run's folder with --results")
    options: Options = read_options(args, preset)
    checked = benchmark.inspect(options, **SIDE_BY_SIDE)
    messages = [{"role": "user", "content": args.prompt}]
    prompt = render_chat(checked.tokenizer, messages, system=preset.system_prompt)
    question = Question(prompt, checked.decode, options.seed)
    model = benchmark.load_model(options, checked.decode)
    return model, question, _about(options.checkpoint, checked.decode, options.seed)


def _about(source: Any, decode: DecodeConfig, seed: int) -> str:
    pace = pace_of(dataclasses.asdict(decode))
    parts = [pathlib.PurePath(str(source)).name, f"{decode.gen_length} tokens, {pace}"]
    parts += [f"ranked by {decode.remasking}", f"temperature {decode.temperature:g}", f"seed {seed}"]
    if decode.coupling != "none":
        share = "always" if decode.pc_frac is None else f"{decode.pc_frac:g}"
        parts += [f"circuit: τ {decode.pc_temperature:g}, pc_frac {share}"]
    return ", ".join(parts)


def _record(recorders: Sequence[Recorder]) -> list[Trajectory]:
    """Every trajectory, with a bar over their steps."""
    with tqdm(total=sum(one.planned_steps for one in recorders), desc="recording", unit="step") as bar:
        for one in recorders:
            for _ in one:
                bar.update()
        bar.total = bar.n
    return [one.trajectory for one in recorders]
