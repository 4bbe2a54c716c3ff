"""Joint fine-tuning shown on the demo: from one start and with equal updates, what circuit, backbone or both reach."""

import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from codd_jax import CoDD, DecodeConfig
from codd_jax.evaluation import wilson_interval
from codd_jax.tokenizer import encode_chat, encode_text
from codd_jax.training.dataset import Example
from codd_jax.training.joint import Tuned, joint_finetune
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.rows import Rows, lay_out
from experiments.demo_task.data import WINDOW
from experiments.demo_task.problems import Problem, sample_problems

BUNDLE = pathlib.Path(__file__).parent / "bundle"
# Ways of answering that the shipped bundle never saw: other word orders, made of words that it knows.
PHRASINGS = (
    "{x} has {r} {i}, for {s}. #### {r}",
    "There are {r} {i} from {s}. #### {r}",
    "With {r} {i} in all, {s}. #### {r}",
    "From {s} we get {r} {i} for {x}. #### {r}",
)
ARMS = {
    "circuit": {"train": "none", "train_circuit": True},
    "backbone": {"train": "full", "train_circuit": False},
    "joint": {"train": "full", "train_circuit": True},
}
LABELS = {"start": "before", "circuit": "circuit only", "backbone": "backbone only", "joint": "both"}
COLOURS = {"start": "#999999", "circuit": "#d55e00", "backbone": "#009e73", "joint": "#0072b2"}
STEPS = (1, 2, 4)


def run_arms(
    output_dir: str | pathlib.Path = "runs/joint_demo",
    *,
    steps: int = 250,
    batch_size: int = 32,
    problems: int = 200,
    seed: int = 0,
    decode_steps: Sequence[int] = STEPS,
    progress: bool = True,
) -> dict[str, Any]:
    """Fine-tunes the demo's bundle to phrasings that are new to it, in three ways, and compares what comes out.

    Args:
      output_dir: gets a folder for each arm, table.json, table.md and plot.png; the same call continues.
      steps, batch_size: updates of each arm and rows of an update.
      problems: held-out problems that are decoded. seed: of everything.
      decode_steps: denoising steps for the window of 32 tokens.
      progress: show bars.

    Returns:
      What table.json holds: by arm the held-out nats per masked token of the backbone alone and coupled, and the
      share of problems solved with its 95 % interval by number of steps.
    """
    folder, began = pathlib.Path(output_dir), time.perf_counter()
    model = CoDD.from_pretrained(BUNDLE, circuit=BUNDLE, dtype="float32", progress=False)
    rows = make_rows(model, seed, steps * batch_size, held_out=False)
    validation = make_rows(model, seed + 1, 256, held_out=True)
    drawn = list(itertools.islice(sample_problems(seed + 2, True), problems))
    arms: dict[str, Any] = {}
    for name, trained in ARMS.items():
        config = recipe(steps, batch_size, seed, **trained)
        if progress:
            print(f"{LABELS[name]}:")
        tuned = joint_finetune(model, rows, config, validation=validation, folder=folder / name, progress=progress)
        if "start" not in arms:
            arms["start"] = _facts(dataclasses.replace(tuned, history=tuned.history[:1]), model, drawn, decode_steps)
        arms[name] = _facts(tuned, tuned.model, drawn, decode_steps)
    result = {
        "updates": steps,
        "batch_size": batch_size,
        "problems": problems,
        "seed": seed,
        "phrasings": PHRASINGS,
        "decode_steps": list(decode_steps),
        "arms": arms,
        "seconds": round(time.perf_counter() - began, 1),
    }
    (folder / "table.json").write_text(json.dumps(result, indent=2) + "\n")
    (folder / "table.md").write_text(markdown(result) + "\n")
    _plot(result, folder / "plot.png")
    return result


def recipe(steps: int, batch_size: int, seed: int, **trained: Any) -> JointTraining:
    """The same rates for every arm."""
    return JointTraining(
        steps=steps,
        batch_size=batch_size,
        backbone_rate=1e-3,
        circuit_rate=0.03,
        warmup=min(20, steps // 4),
        remat=False,
        validate_every=max(1, steps // 5),
        save_every=max(1, steps // 5),
        seed=seed,
        **trained,
    )


def make_rows(model: CoDD, seed: int, count: int, held_out: bool) -> Rows:
    """Rows of problems whose solutions are in the new phrasings, drawn evenly."""
    rng = np.random.default_rng((seed, int(held_out), 3))
    examples = []
    for problem in itertools.islice(sample_problems(seed, held_out), count):
        text = solutions(problem)[rng.integers(len(PHRASINGS))]
        prompt = encode_chat(model.tokenizer, [{"role": "user", "content": problem.question}])
        examples.append(Example(tuple(prompt), tuple(encode_text(model.tokenizer, text))))
    return lay_out(examples, WINDOW, model.config.eos_id, model.config.pad_id, bucket=32)


def solutions(problem: Problem) -> tuple[str, ...]:
    """Every answer to a problem in the new phrasings."""
    calculation = " and ".join(f"{left} {sign} {right} = {result}" for left, sign, right, result in problem.steps)
    return tuple(
        phrasing.format(x=problem.person, i=problem.items, s=calculation, r=problem.answer) for phrasing in PHRASINGS
    )


def _facts(tuned: Tuned, model: CoDD, problems: list[Problem], decode_steps: Sequence[int]) -> dict[str, Any]:
    """The last look's nats, and the share of problems solved by coupled decoding."""
    last, solved = tuned.history[-1], {}
    for steps in decode_steps:
        config = DecodeConfig(
            steps=steps, gen_length=WINDOW, block_length=WINDOW, pc_temperature=1.0, pc_frac=None, coupling="latent"
        )
        texts = model.generate([problem.question for problem in problems], config, batch_size=len(problems)).text
        right = sum(text.strip() in solutions(problem) for problem, text in zip(problems, texts, strict=True))
        solved[str(steps)] = [right / len(problems), *wilson_interval(right, len(problems))]
    return {"backbone": last.backbone, "coupled": last.coupled, "by_ratio": last.by_ratio, "solved": solved}


def markdown(result: dict[str, Any]) -> str:
    """The table, with what its numbers are."""
    steps = [str(number) for number in result["decode_steps"]]
    header = ["trained", "backbone alone", "coupled", "coupled, 90–100 % masked"]
    header += [f"solved in {number} step{'s' if number != '1' else ''}" for number in steps]
    lines = [header, ["---"] + ["---:"] * (len(header) - 1)]
    for name, arm in result["arms"].items():
        nats = [f"{arm['backbone']:.4f}", f"{arm['coupled']:.4f}", f"{arm['by_ratio']['0.9-1.0'][1]:.4f}"]
        cells = [
            f"{100 * s:.1f} % ({100 * low:.1f}–{100 * high:.1f})" for s, low, high in map(arm["solved"].get, steps)
        ]
        lines.append([LABELS[name], *nats, *cells])
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    what = (
        f"The demo's bundle, fine-tuned to {len(result['phrasings'])} phrasings that are new to it: "
        f"{result['updates']} updates of {result['batch_size']} rows each, the same rows and masks for all.\n"
        "Nats per masked token of held-out rows, mask ratio uniform over 0 to 1; share of "
        f"{result['problems']} held-out problems solved by coupled decoding, with its 95 % interval."
    )
    return f"{what}\n\n{table}"


def _plot(result: dict[str, Any], path: pathlib.Path) -> None:
    """Coupled nats and accuracy, arm by arm."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.0, 3.8), layout="constrained")
    arms, steps = result["arms"], result["decode_steps"]
    names = list(arms)
    left.bar([LABELS[name] for name in names], [arms[name]["coupled"] for name in names], color=COLOURS.values())
    left.tick_params(axis="x", labelsize=9)
    left.set_ylabel("coupled nats per masked token")
    for place, name in enumerate(names):
        left.annotate(f"{arms[name]['coupled']:.3f}", (place, arms[name]["coupled"]), ha="center", va="bottom")
        solved = np.asarray([arms[name]["solved"][str(number)] for number in steps]) * 100
        right.fill_between(steps, solved[:, 1], solved[:, 2], color=COLOURS[name], alpha=0.15, linewidth=0)
        right.plot(steps, solved[:, 0], color=COLOURS[name], marker="o", linewidth=2, label=LABELS[name])
    right.set_xscale("log", base=2)
    right.set_xticks(steps, [str(number) for number in steps])
    right.minorticks_off()
    right.set_ylim(-3, 103)
    right.set_xlabel("denoising steps for a window of 32 tokens")
    right.set_ylabel("problems solved, %")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.suptitle(f"Fine-tuning the demo to new phrasings: {result['updates']} updates each, 95 % bands", fontsize=11)
    figure.savefig(path, dpi=150)
    plt.close(figure)
