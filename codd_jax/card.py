"""The model card that goes to the hub beside a saved model: what it is, how to run it, where it came from."""

from __future__ import annotations

from typing import Any

_CARD = """---
library_name: codd_jax
pipeline_tag: text-generation
tags:
- codd
- diffusion-language-model
- jax
- flax
{base_models}---

# {title}

A diffusion language model saved by [codd_jax](https://arxiv.org/abs/2603.00045): {family} backbone{with_circuit}.

```python
import codd_jax

model = codd_jax.CoDD.from_pretrained("{repo_id}")
out = model.generate("What is 7 + 5?", codd_jax.DecodeConfig(steps=64, gen_length=128))
print(out.text[0])
```

| | |
|---|---|
{rows}

The circuit couples the tokens that one denoising step predicts (Coupled Discrete Diffusion, arXiv 2603.00045).
The weights keep the licence of the models that they come from.
"""


def model_card(repo_id: str, facts: dict[str, Any], *, family: str, base_models: list[str], coupled: bool) -> str:
    """The card's Markdown, with the metadata header that the hub reads.

    Args:
      repo_id: the repository that the card is for.
      facts: rows of the card's table, in order.
      family: "llada" or "dream".
      base_models: hub ids that the weights come from.
      coupled: whether a circuit is part of the model.
    """
    header = "".join(["base_model:\n", *(f"- {name}\n" for name in base_models)]) if base_models else ""
    return _CARD.format(
        base_models=header,
        title=repo_id.rsplit("/", 1)[-1],
        family={"llada": "a LLaDA", "dream": "a Dream"}[family],
        with_circuit=" with a probabilistic circuit" if coupled else ", without a circuit",
        repo_id=repo_id,
        rows="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
    )
