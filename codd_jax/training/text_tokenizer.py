"""A byte-level BPE tokenizer trained on a corpus, in HuggingFace layout with LLaDA's kind of chat template."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

START, END, MASK, TURN_END = "<|startoftext|>", "<|endoftext|>", "<|mdm_mask|>", "<|eot_id|>"
ROLES = tuple(f"<|{role}|>" for role in ("system", "user", "assistant"))
SPECIALS = (START, END, MASK, TURN_END, *ROLES)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) }}"
    "{% if add_generation_prompt or not loop.last %}{{ '" + TURN_END + "' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def train_text_tokenizer(texts: Iterable[str], vocab_size: int, folder: str | pathlib.Path) -> None:
    """Trains a tokenizer and writes it to `folder` as `load_tokenizer` reads it.

    Digits are single tokens, as in the published models: numbers are then spelled, not looked up.

    Args:
      texts: the corpus.
      vocab_size: tokens in all, the 7 special ones and 256 bytes included.
      folder: is made if need be.

    Raises:
      ValueError: a vocabulary too small for bytes and special tokens.
    """
    least = len(SPECIALS) + 256
    if vocab_size < least:
        raise ValueError(f"a vocabulary of {vocab_size} has no room for {least} bytes and special tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "mask_token": MASK}
    config = {
        **special,
        "additional_special_tokens": [TURN_END, *ROLES],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    for name, content in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
