"""Fine-tune backbone and circuit together (paper, Eq. 7): all weights, LoRA or the head; without a model, the demo."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, count, number, plain_warnings

EXAMPLES = """
examples
  the demo, which needs no checkpoint: circuit only, backbone only and both, from one start (minutes on two cores):
    python -m experiments.joint_finetune
  LoRA and the circuit on question and solution pairs:
    python -m experiments.joint_finetune --llada_ckpt GSAI-ML/LLaDA-8B-Instruct --pc_ckpt il18/llada-gsm-pc \\
        --data openai/gsm8k:main --train lora --rank 16 --steps 1000 --batch_size 16 --mesh data:2,model:4
  all weights, a batch worked through in eight parts, the optimiser's state spread over all devices:
    python -m experiments.joint_finetune --llada_ckpt DIR --pc_ckpt DIR --data train.jsonl --train full \\
        --backbone_rate 1e-5 --batch_size 64 --accumulate 8 --mesh data:4,model:4 --shard_over_data
the same command again continues a run that was stopped

what comes out (--output_dir)
  model/         a HuggingFace checkpoint with circuit and tokenizer, for --llada_ckpt (and --pc_ckpt) of every script
  adapter/       with --train lora: PEFT's layout, for --peft_ckpt here and for PEFT
  transformers/  with --layout transformers: the backbone as transformers' Llama (LLaDA) or Qwen2 (Dream)
  history.json, history.png
will it fit: python -m experiments.fit --train lora --topology v5p:2x2x2
"""
RATES = {"backbone": "1e-4, with --train full 1e-5", "circuit": "0.01", "modulation": "0.001"}


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.joint_finetune"
    parser = Parser(prog=name, usage=f"{name} [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument_group("model and data").add_argument
    add("--llada_ckpt", metavar="CKPT", help="LLaDA: a hub id, a HuggingFace folder, or a folder made by `convert`")
    add("--dream_ckpt", metavar="CKPT", help="the same for Dream; give one of the two")
    add("--pc_ckpt", metavar="CKPT", help="the circuit to start from: a hub id, a .jpc file or a folder")
    add("--data", metavar="DATA", help="a JSONL file or a hub data set (openai/gsm8k:main) of questions and answers")
    add("--validation", metavar="DATA", help="the same, held out; else the last of --data in a random order")
    add("--held_out", type=count(0), default=64, metavar="N", help="examples to validate on (%(default)s)")
    add("--question_field", default="question", help="of a record (%(default)s)")
    add("--answer_field", default="answer", help="of a record (%(default)s); records with `messages` are chats")
    add("--system", help="a system message before every question")
    add("--limit", type=count(1), metavar="N", help="the first N examples only")
    add("--max_length", type=count(1), default=1024, metavar="L", help="longer rows are left out (%(default)s)")
    add = parser.add_argument_group("what is trained, and how").add_argument
    add("--train", choices=("full", "lora", "head", "none"), default="lora", help="of the backbone (%(default)s)")
    add("--freeze_circuit", action="store_true", help="leave the circuit as it is")
    add("--objective", choices=("coupled", "factorised"), default="coupled", help="Eq. 7, or the backbone's own loss")
    add("--rank", type=count(1), default=16, help="of LoRA (%(default)s)")
    add("--alpha", type=number, default=32.0, help="LoRA's scale is alpha / rank (%(default)s)")
    add("--targets", default="q|k|v|o|gate|up|down", help="a regular expression over projections (%(default)s)")
    for group, shown in RATES.items():
        add(f"--{group}_rate", type=number, metavar="R", help=f"peak learning rate ({shown})")
    add("--steps", type=count(1), metavar="N", help="updates (1000; the demo: 250)")
    add("--batch_size", type=count(1), metavar="B", help="rows of an update (8; the demo: 32)")
    add("--accumulate", type=count(1), default=1, metavar="N", help="parts a batch is worked through in (%(default)s)")
    add("--warmup", type=count(0), metavar="N", help="updates in which rates rise (a twentieth of --steps)")
    add("--schedule", choices=("cosine", "constant"), default="cosine", help="of all rates after that (%(default)s)")
    add("--weight_decay", type=number, default=0.0, help="of the backbone's matrices (%(default)s)")
    add("--clip_norm", type=number, default=1.0, help="of each group's gradient, 0 for none (%(default)s)")
    add("--masking", choices=("uniform", "blockwise"), default="uniform", help="earlier blocks known, or not (uniform)")
    add("--weighting", default="uniform", help="of a window by its masked share: uniform, 1/sqrt(t), 1/t (%(default)s)")
    add("--validate_every", type=count(1), default=100, metavar="N", help="updates (%(default)s)")
    add("--save_every", type=count(1), default=100, metavar="N", help="updates between checkpoints (%(default)s)")
    add("--seed", type=count(0), default=0, metavar="N", help="of masks, order and LoRA's start (%(default)s)")
    add = parser.add_argument_group("devices and results").add_argument
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the computation (%(default)s)")
    add("--param_dtype", choices=("float32", "bfloat16"), default="float32", help="of trained weights (%(default)s)")
    add("--no_remat", action="store_true", help="keep activations in place of computing blocks twice")
    add("--mesh", metavar="SPEC", help='devices, as "data:2,model:4": rows over data, weights over model')
    add("--shard_over_data", action="store_true", help="trained weights and optimiser state over the data axis, too")
    add("--layout", choices=("own", "transformers"), default="own", help="of the export, see below (%(default)s)")
    add("--output_dir", type=pathlib.Path, metavar="DIR", help="(runs/joint_finetune; the demo: runs/joint_demo)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, fine-tunes, and prints where the results are."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    with plain_warnings():
        try:
            run_demo(parser, args) if not (args.llada_ckpt or args.dream_ckpt) else run(args)
        except (ValueError, OSError, NotImplementedError, FloatingPointError) as error:
            parser.error(str(error))
        except KeyboardInterrupt as stopped:
            print(f"\n{stopped or 'interrupted; the same command continues'}", file=sys.stderr)
            sys.exit(130)


def run_demo(parser: Parser, args: argparse.Namespace) -> None:
    """The three arms on the built-in demo."""
    from experiments.demo_task import joint

    demo = {"steps", "batch_size", "seed", "output_dir"}
    given = {name for name, value in vars(args).items() if value != parser.get_default(name)}
    if given - demo:
        listed = ", ".join(f"--{name}" for name in sorted(given - demo))
        raise ValueError(f"{listed} without a model; give --llada_ckpt or --dream_ckpt, or no such flag for the demo")
    settings = {name: getattr(args, name) for name in given}
    result = joint.run_arms(**settings)
    print(f"\n{joint.markdown(result)}\n\n{args.output_dir or 'runs/joint_demo'}")


def run(args: argparse.Namespace) -> None:
    """A model of the user's."""
    from codd_jax.io.llama import USE
    from codd_jax.training.joint_job import read_job, run_job

    tuned, folders = run_job(read_job(args))
    first, last = tuned.history[0], tuned.history[-1]
    for point in (first, last):
        if point.coupled is not None:
            print(f"step {point.step}: {point.backbone:.4f} nats per masked token alone, {point.coupled:.4f} coupled")
    print("\n".join(f"{name}: {folder}" for name, folder in folders.items()))
    if "transformers" in folders:
        print(USE)


if __name__ == "__main__":
    main()
