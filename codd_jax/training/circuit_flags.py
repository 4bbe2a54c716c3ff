"""The command-line flags of circuit training, with help that teaches."""

import argparse
import pathlib

from codd_jax.evaluation.flags import count, number


def add_data_flags(parser: argparse.ArgumentParser) -> None:
    """Backbone, text, and the windows that are made of it."""
    add = parser.add_argument_group("backbone and data").add_argument
    add("--llada_ckpt", metavar="CKPT", help="LLaDA: a hub id, a HuggingFace folder, or a folder made by `convert`")
    add("--dream_ckpt", metavar="CKPT", help="the same for Dream; give one of the two, or none for the demo")
    add("--data", metavar="DATA", help="a JSONL file or a hub data set (openai/gsm8k:main) of questions and answers")
    add("--validation", metavar="DATA", help="the same, held out; else a random part of --data")
    add("--held_out", type=count(0), default=256, metavar="N", help="examples to validate on (%(default)s)")
    add("--question_field", default="question", metavar="NAME", help="of a record (%(default)s)")
    add("--answer_field", default="answer", metavar="NAME", help="(%(default)s); records with `messages` are chats")
    add("--system", metavar="TEXT", help="a system message before every question")
    add("--split", default="train", help="of a hub data set or a folder (%(default)s)")
    add("--limit", type=count(1), metavar="N", help="the first N examples only")
    add("--max_length", type=count(1), default=1024, metavar="L", help="longer rows are left out (%(default)s)")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the backbone (%(default)s)")
    add = parser.add_argument_group("windows and hidden states").add_argument
    add("--window", type=count(1), default=32, metavar="T", help="tokens of a window (%(default)s)")
    add("--masking", choices=("uniform", "blockwise"), default="uniform", help="every solution token with probability "
        "t, or as block-wise decoding meets them (%(default)s)")  # fmt: skip
    add("--masks", type=count(1), default=4, metavar="N", help="maskings of every example (%(default)s)")
    add("--store", type=pathlib.Path, metavar="DIR", help="of the hidden states (states in --output_dir)")
    add("--on_the_fly", action="store_true", help="store nothing: run the backbone at every step")
    add("--windows_per_row", type=count(1), default=4, metavar="N", help="with --on_the_fly, of a row (%(default)s)")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Where the circuit starts, the rule that trains it, and how long."""
    add = parser.add_argument_group("circuit and training").add_argument
    add("--states", type=count(1), default=1024, metavar="H", help="latent states (1024; the demo: 64)")
    add("--init", default="uniform", metavar="HOW", help="uniform: near the backbone itself; data: token statistics; "
        "or a circuit to start from (%(default)s)")  # fmt: skip
    add("--modulation", metavar="KINDS", help="heads that follow the context: latent, transition, emission, and noise "
        "to tell them how much is masked; best on a trained circuit (--init DIR)")  # fmt: skip
    add("--rule", default="adam", help="see below (%(default)s)")
    add("--rate", type=number, help="learning rate or step size (the rule's own; Adam's with --modulation 0.02)")
    add("--modulation_rate", type=number, default=0.003, help="of the heads (%(default)s)")
    add("--momentum", type=number, help="of expected counts (the rule's own)")
    add("--schedule", choices=("cosine", "linear", "constant"), default="cosine", help="of the rates (%(default)s)")
    add("--steps", type=count(1), metavar="N", help="(2000, without --seconds)")
    add("--seconds", type=number, help="processor seconds of this process in place of steps; the demo: 240")
    add("--batch_size", type=count(1), default=64, metavar="B", help="windows of a step (%(default)s)")
    add("--chunk", type=count(1), metavar="N", help="windows that a device works on at a time, to save memory (all)")
    add("--weighting", choices=("uniform", "1/sqrt(t)", "1/t"), default="uniform", help="of windows by their "
        "masked share t (%(default)s)")  # fmt: skip
    add("--normalization", choices=("global", "local"), default="global", help="of the objective (%(default)s)")
    add("--potentials_dtype", choices=("float32", "bfloat16"), default="float32", help="(%(default)s)")
    add("--validate_every", type=count(0), default=100, metavar="N", help="steps; 0: at the end only (%(default)s)")
    add("--patience", type=count(1), metavar="N", help="stop after N validations without a better one, keep the best")
    add("--mesh", metavar="SPEC", help='devices, as "data:8": every batch is split over all of them')
    add("--seed", type=count(0), default=0, metavar="N", help="of the first circuit and the order (%(default)s)")
    add(
        "--data_seed", type=count(0), default=0, metavar="N", help="of held-out examples and stored masks (%(default)s)"
    )
