"""The command-line flags that every benchmark script shares: CoDD's own names, with help that teaches."""

import argparse
import contextlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn

from codd_jax.evaluation.presets import DECODING, FAMILIES, TaskPreset

ALWAYS = "always"
_WORKED_EXAMPLES = {
    "train": "with --data they come from train.jsonl beside the file",
    "own": "they are lm-eval's own",
    None: "this task has none",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one message and exit code 2, and which takes no abbreviations."""

    def __init__(self, **settings: Any):
        """As argparse's; the description and the epilog keep their line breaks."""
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and leaves with exit code 2; with CODD_JAX_TRACEBACK=1 it shows where that was found."""
        if sys.exc_info()[0] is not None and os.environ.get("CODD_JAX_TRACEBACK"):
            raise
        # Help with flags is no help against a missing file or network.
        hint = "" if isinstance(sys.exc_info()[1], OSError) else "(--help explains every flag)\n"
        self.exit(2, f"{self.prog}: error: {message}\n{hint}")


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Shows warnings as one line of text, without the place in the code that they came from."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        yield


def add_benchmark_flags(parser: argparse.ArgumentParser, preset: TaskPreset) -> None:
    """Adds the flags that all benchmark scripts share, in groups; defaults of None mean "as the preset says"."""
    _add_flags_of_model_and_decoding(parser, preset)
    _add_task_flags(parser.add_argument_group("task and results").add_argument, preset)
    _add_run_flags(parser.add_argument_group("many runs, many hosts").add_argument)


def add_model_flags(parser: argparse.ArgumentParser, preset: TaskPreset) -> None:
    """Adds the flags of model, circuit and decoding; `options.read_options` finds the others at their defaults."""
    unseen = argparse.ArgumentParser()
    _add_task_flags(unseen.add_argument, preset)
    shown = vars(parser.parse_known_args([])[0])
    parser.set_defaults(**{name: value for name, value in vars(unseen.parse_args([])).items() if name not in shown})
    _add_flags_of_model_and_decoding(parser, preset)


def _add_flags_of_model_and_decoding(parser: argparse.ArgumentParser, preset: TaskPreset) -> None:
    _add_model_flags(parser.add_argument_group("model").add_argument)
    _add_circuit_flags(parser.add_argument_group("circuit").add_argument, preset)
    _add_decoding_flags(
        parser.add_argument_group("decoding (defaults registered in codd_jax/evaluation/presets.py)").add_argument
    )


def _add_model_flags(add) -> None:
    add("--llada_ckpt", metavar="CKPT", help="LLaDA: a hub id, a HuggingFace folder, or a folder made by `convert`")
    add("--dream_ckpt", metavar="CKPT", help="the same for Dream; give one of the two")
    add("--model_alias", choices=FAMILIES, help="alone: that family's published checkpoint, from the hub")
    add("--peft_ckpt", metavar="DIR", help="a LoRA adapter in PEFT's layout, merged into the backbone")
    add("--dtype", choices=("bfloat16", "float32"), help="of the weights (bfloat16; float32 on CPU)")
    add("--mesh", metavar="SPEC", help='devices, as "data:2,model:4": prompts over data, weights over model')


def _add_circuit_flags(add, preset: TaskPreset) -> None:
    published = " and ".join(preset.circuits.values())
    add(
        "--pc_ckpt",
        metavar="CKPT",
        help="a hub id, a .jpc file or a folder; without it the backbone decodes alone. Published for such problems: "
        f"{published}",
    )
    add("--pc_temperature", type=number, metavar="TAU", help=f"sharpens {_default('pc_temperature')}")
    add(
        "--pc_frac",
        type=share,
        metavar="F",
        help=f"use it while less than this share of its window is masked, or '{ALWAYS}' {_default('pc_frac')}",
    )
    add("--reverse_frac", action="store_const", const=True, help="use it while more than that share is masked")
    add("--coupling", metavar="HOW", help=f"latent, any_order or none {_default('coupling')}")


def _add_decoding_flags(add) -> None:
    add(
        "--alg",
        metavar="NAME",
        help=f"which tokens to keep: low_confidence, margin, entropy, topprob, random {_default('remasking')}",
    )
    add("--num_steps", type=count(1), metavar="N", help="denoising steps (half of --gen_length)")
    add("--gen_length", type=count(1), metavar="N", help=f"tokens to generate {_default('gen_length')}")
    add("--block_length", type=count(1), metavar="N", help="tokens of a block (32, or the circuit's window if shorter)")
    add("--dream_block", action="store_true", help="decode Dream in blocks, as LLaDA is; else on the full canvas")
    add(
        "--dream_window",
        nargs="?",
        const="cover",
        choices=("cover", "best"),
        help="windows for the circuit on Dream's full canvas: as few as cover the tokens of a step (the paper's, and "
        "the default), or the one best window of the published code",
    )
    add("--temperature", type=number, metavar="T", help=f"of the token draw, 0 is greedy {_default('temperature')}")
    add("--top_p", type=number, metavar="P", help=f"draw from the most probable tokens {_default('top_p')}")
    add("--top_k", type=count(0), metavar="K", help=f"draw from so many tokens, 0 is off {_default('top_k')}")
    add("--threshold", type=number, metavar="P", help="keep every token surer than this, in place of fixed --num_steps")
    add(
        "--threshold_factor",
        type=number,
        metavar="F",
        help="the same with a bound that falls with the number of tokens: keep n while (n + 1)(1 - probability) < F",
    )
    add("--cache", choices=("none", "prefix", "dual"), help="keep keys and values between steps; approximate (none)")
    add(
        "--cache_refresh",
        type=count(1),
        metavar="N",
        help="with --cache: compute them anew every N steps of a block, 1 is exact; else at its beginning alone",
    )
    add("--cfg_scale", type=number, metavar="S", help=f"classifier-free guidance, 0 is off {_default('cfg_scale')}")
    add("--seed", type=count(0), default=0, metavar="N", help="of every draw (%(default)s)")


def _add_task_flags(add, preset: TaskPreset) -> None:
    columns = ", ".join(f'"{column}"' for column in (*preset.columns, *preset.list_columns))
    add("--task", default=preset.name, help="%(default)s, which is all that this script evaluates")
    add("--data", metavar="FILE", help=f"problems from a JSONL file with {columns}; else from the hub")
    add("--limit", type=count(1), metavar="N", help="the first N problems only; a later run may take more")
    add(
        "--num_shot",
        type=count(0),
        default=0,
        metavar="N",
        help=f"worked examples in each prompt (%(default)s); {_WORKED_EXAMPLES[preset.worked_examples]}",
    )
    add(
        "--batch_size",
        type=count(1),
        default=8,
        metavar="N",
        help="prompts at a time (%(default)s); answers do not depend on it",
    )
    add(
        "--output_dir",
        default="results",
        metavar="DIR",
        help="results go into a folder in here named after the settings (%(default)s); the same command again "
        "continues a run that was stopped",
    )
    add("--tag", help="a word for that folder's name")
    if preset.runs_code:
        add(
            "--run_generated_code",
            action="store_true",
            help="score answers by running the programs in them on this machine, each in a process with limits on time "
            "and memory but in no sandbox; nothing is evaluated without this word",
        )


def _add_run_flags(add) -> None:
    add(
        "--run",
        action="append",
        metavar="FLAGS",
        help="one of several runs, with these flags after the others: --run '--num_steps 64' --run '--num_steps 128 "
        "--pc_frac 0.7'; weights are loaded once, and the runs share the folder OUTPUT_DIR/TAG",
    )
    add(
        "--grid",
        metavar="FILE",
        help="many runs from a YAML or JSON file of flags and lists of values, every combination of which is run: "
        "{num_steps: [64, 128], pc_frac: [0.3, 0.7]}, or a list of such",
    )
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help="several hosts: the first one's address, or 'auto' on a TPU slice; the same command on each. --mesh then "
        "spans the devices of all of them, and the first one writes the results",
    )
    add("--num_processes", type=count(1), metavar="N", help="how many hosts (processes) there are")
    add("--process_id", type=count(0), metavar="N", help="which of them this is, from 0")


def _default(field: str) -> str:
    """(default), by family where the families differ."""
    llada, dream = (DECODING[family][field] for family in FAMILIES)
    shown = ["off" if value is None else value for value in (llada, dream)]
    return f"({shown[0]})" if llada == dream else f"({shown[0]} for LLaDA, {shown[1]} for Dream)"


def count(low: int, high: int = 2**63 - 1):
    """An argparse type: a whole number of at least `low` and at most `high`."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d{1,100}", text) or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text[:60]!r} is not a whole number of at least {low}")
        if int(text) > high:
            raise argparse.ArgumentTypeError(f"{text} is above {high}")
        return int(text)

    return parse


def number(text: str) -> float:
    """An argparse type: a finite number that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def share(text: str) -> float | str:
    """An argparse type: a share, or the word for no bound."""
    return text if text == ALWAYS else number(text)
