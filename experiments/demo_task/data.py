"""Problems as rows of token ids: the prompt in the chat template, then the answer's window, filled up with EOS."""

from collections.abc import Iterator
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerBase

from codd_jax.tokenizer import encode_chat, encode_text, render_chat
from codd_jax.training.dataset import Example
from codd_jax.training.windows import WindowBatch
from experiments.demo_task.problems import PHRASINGS, Problem, sample_problems

WINDOW = 32
PROMPT_LIMIT = 26  # tokens of the longest prompt; every row of a batch is this plus the window


def encode_rows(tokenizer: PreTrainedTokenizerBase, problems: list[Problem], solutions: list[str]) -> WindowBatch:
    """Rows [count, PROMPT_LIMIT + WINDOW] of prompt, solution and EOS, with the window right after the prompt.

    Raises ValueError where a prompt or a solution does not fit its part of the row.
    """
    blank = "\0"
    before, after = render_chat(tokenizer, [{"role": "user", "content": blank}]).split(blank)
    prompts = tokenizer([before + problem.question + after for problem in problems], add_special_tokens=False)
    answers = tokenizer(solutions, add_special_tokens=False)
    tokens = np.full((len(problems), PROMPT_LIMIT + WINDOW), tokenizer.eos_token_id, np.int32)
    starts = np.zeros(len(problems), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompts["input_ids"], answers["input_ids"], strict=True)):
        if len(prompt) > PROMPT_LIMIT or len(answer) >= WINDOW:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and a solution of {len(answer)} do not fit {PROMPT_LIMIT} and "
                f"{WINDOW - 1}; shorten the templates or raise the limits"
            )
        starts[row] = len(prompt)
        tokens[row, : len(prompt)] = prompt
        tokens[row, len(prompt) : len(prompt) + len(answer)] = answer
    return WindowBatch(tokens=tokens, lengths=starts + WINDOW, starts=starts)


def sample_rows(tokenizer: PreTrainedTokenizerBase, seed: int, batch: int, held_out: bool) -> Iterator[WindowBatch]:
    """Endless batches of one split, every solution in a phrasing drawn evenly."""
    problems = sample_problems(seed, held_out)
    rng = np.random.default_rng((seed, int(held_out), 1))
    while True:
        drawn = [next(problems) for _ in range(batch)]
        phrasings = rng.integers(len(PHRASINGS), size=batch)
        yield encode_rows(tokenizer, drawn, [p.solution(int(i)) for p, i in zip(drawn, phrasings, strict=True)])


def demo_examples(tokenizer: PreTrainedTokenizerBase, count: int, seed: int, held_out: bool) -> list[Example]:
    """`count` problems of one split as training examples, every solution in a phrasing drawn evenly."""
    rng = np.random.default_rng((seed, int(held_out), 2))
    return [
        Example(
            tuple(encode_chat(tokenizer, [{"role": "user", "content": problem.question}])),
            tuple(encode_text(tokenizer, problem.solution(int(rng.integers(len(PHRASINGS)))))),
        )
        for problem in islice(sample_problems(seed, held_out), count)
    ]
