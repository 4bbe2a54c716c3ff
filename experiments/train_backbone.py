"""Train a small LLaDA and its tokenizer from scratch on question and solution pairs, to try circuits on real text."""

import json
import pathlib
from collections.abc import Sequence

from codd_jax.compilation import enable_compilation_cache
from codd_jax.evaluation.flags import Parser, count, number

EXAMPLES = """
examples
  about three million weights on GSM8K's training set, on two cores in half an hour; the same command continues a
  stopped run:
    python -m experiments.train_backbone --data gsm8k/train.jsonl --output_dir runs/gsm8k_backbone
  some 50 million weights on an accelerator:
    python -m experiments.train_backbone --data gsm8k/train.jsonl --width 640 --layers 10 --heads 10 --batch_size 64
"""


def make_parser() -> Parser:
    """The command line."""
    name = "python -m experiments.train_backbone"
    parser = Parser(prog=name, usage=f"{name} --data FILE [flags]", description=__doc__, epilog=EXAMPLES)
    add = parser.add_argument
    add("--data", required=True, metavar="FILE", help="a JSONL file, or a hub data set as name:configuration")
    add("--question_field", default="question", metavar="NAME", help="(%(default)s)")
    add("--answer_field", default="answer", metavar="NAME", help="(%(default)s)")
    add("--vocab_size", type=count(263), default=2048, metavar="N", help="of the byte-level BPE (%(default)s)")
    add("--width", type=count(8), default=192, metavar="N", help="(%(default)s)")
    add("--layers", type=count(1), default=6, metavar="N", help="(%(default)s)")
    add("--heads", type=count(1), default=6, metavar="N", help="(%(default)s)")
    add("--window", type=count(2), default=32, metavar="T", help="of the circuits to come (%(default)s)")
    add("--steps", type=count(1), default=2000, metavar="N", help="(%(default)s)")
    add("--batch_size", type=count(2), default=16, metavar="N", help="rows a step (%(default)s)")
    add("--rate", type=number, default=2e-3, metavar="R", help="peak learning rate (%(default)s)")
    add("--max_length", type=count(16), default=320, metavar="N", help="longer examples are left out (%(default)s)")
    add("--seed", type=count(0), default=0, metavar="N")
    add("--output_dir", default="runs/backbone", metavar="DIR", help="HuggingFace layout (%(default)s)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, trains tokenizer and backbone, and prints where they are."""
    parser = make_parser()
    args = parser.parse_args(argv)
    enable_compilation_cache()
    try:
        print(train(args))
    except (ValueError, OSError, FloatingPointError) as error:
        parser.error(str(error))


def train(args) -> pathlib.Path:
    """Tokenizer first (once), then the backbone beside it."""
    from codd_jax.evaluation.provenance import identify
    from codd_jax.io.safetensors import save_huggingface
    from codd_jax.tokenizer import load_tokenizer
    from codd_jax.training.checkpoints import differences
    from codd_jax.training.dataset import corpus_texts, read_examples
    from codd_jax.training.pretraining import Pretraining, pretrain, small_llada
    from codd_jax.training.text_tokenizer import train_text_tokenizer

    folder = pathlib.Path(args.output_dir)
    fields = {"question_field": args.question_field, "answer_field": args.answer_field}
    made_from = {"vocab_size": args.vocab_size, "data": identify(args.data), **fields}
    stated = folder / "tokenizer.source"
    if not stated.is_file():
        train_text_tokenizer(corpus_texts(args.data, **fields), args.vocab_size, folder)
        stated.write_text(json.dumps(made_from, indent=1) + "\n", encoding="utf-8")
    elif changed := differences(json.loads(stated.read_text(encoding="utf-8")), made_from):
        raise ValueError(
            f"the tokenizer in {folder} was made otherwise:\n  "
            + "\n  ".join(changed)
            + "\nChoose another --output_dir"
        )
    tokenizer = load_tokenizer(folder)
    examples = read_examples(args.data, tokenizer, **fields)
    config = small_llada(tokenizer, args.width, args.layers, args.heads)
    recipe = Pretraining(
        steps=args.steps,
        batch=args.batch_size,
        rate=args.rate,
        window=args.window,
        max_length=args.max_length,
        seed=args.seed,
    )
    print(f"{config.num_params / 1e6:.1f} million weights, {len(examples)} examples, vocabulary {config.vocab_size}")
    save_huggingface(pretrain(config, examples, recipe, folder), None, folder)
    return folder


if __name__ == "__main__":
    main()
