"""The demo's tokenizer: whole words and whole numbers as single tokens, bytes for everything else.

It is written in HuggingFace layout with a chat template, so that the demo's bundle also runs the real tasks.
"""

import json
import pathlib
import re

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from experiments.demo_task import problems

MASK, END, START, TURN_END = "<|mdm_mask|>", "<|endoftext|>", "<|startoftext|>", "<|eot_id|>"
ROLES = tuple(f"<|{role}|>" for role in ("system", "user", "assistant"))
SPECIALS = (START, END, MASK, TURN_END, *ROLES)

# A word, number, or run of signs takes the blank before it along, so " 7" and " apples" are single tokens.
_PIECES = r" ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + (message['content'] | trim) }}"
    "{% if add_generation_prompt or not loop.last %}{{ '" + TURN_END + "' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Common English, so that prompts of other tasks take a few hundred tokens rather than a few thousand.
_COMMON_WORDS = """
a about after again all also am amount an and any are at away back bag be been before below best between bill both
bought box boy but by buy call came can car cat change children city class cost could cut day days did different do
does dog dollars done down during each eat end enough equal every far father feet few find first five fish flowers
food for four free friend friends from fruit full game gave get girl give go goes good got group had half has have he
help helpful her here high him his home hour hours house how if in inches into is it its job keep kids large last left
less let life like line little long look lost made make man many may me mean miles minute minutes money month more
morning most mother move much must my name need never new next night no not now number of off old on once one only or
order other our out over own page paid paper part party pay people per pets place play point price problem put
question ran read red rest right room rows run same saved saw school second see sell set she should show shop side six
small so sold some spend start step still store students such take ten than that the their them then there these they
thing third this those three time times to today together told too took total town tree trees trip turn twice two
under until up us use used very walk want was water way we week weeks well went were what when where which while white
who whole why will with work would write year years yes yesterday you your assistant answer reasoning
"""


def _demo_texts() -> list[str]:
    """Questions and solutions that between them use every word of the generator."""
    texts = []
    for operation, questions in problems.QUESTIONS.items():
        for index in range(max(len(problems.NAMES), len(problems.ITEMS))):
            for wording in range(len(questions)):
                problem = problems.Problem(
                    operation=operation,
                    wording=wording,
                    person=problems.NAMES[index % len(problems.NAMES)],
                    other=problems.NAMES[index - 1],
                    items=problems.ITEMS[index % len(problems.ITEMS)],
                    boxes=problems.BOXES[index % len(problems.BOXES)],
                    numbers=(5, 4, 3),
                )
                texts += [problem.question, *problem.solutions]
    return texts


def vocabulary() -> list[str]:
    """All tokens in the order of their ids: special tokens, bytes, characters, numbers, words."""
    bytes_ = [f"<0x{value:02X}>" for value in range(256)]
    characters = [chr(code) for code in range(32, 127)]
    numbers = [f" {number}" for number in range(problems.LARGEST_NUMBER + 1)]
    pieces = {piece for text in _demo_texts() for piece in re.findall(_PIECES, text)}
    words = sorted(pieces | {f" {word}" for word in _COMMON_WORDS.split()})
    return list(dict.fromkeys([*SPECIALS, *bytes_, *characters, *numbers, *words]))


def build_tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer as a `tokenizers.Tokenizer`; any text encodes, and decodes to itself."""
    ids = {token: index for index, token in enumerate(vocabulary())}
    # No merges: a piece is one token if the vocabulary has it, else characters and bytes.
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=ids, merges=[], byte_fallback=True, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(tokenizers.Regex(_PIECES), behavior="isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return tokenizer


def save_tokenizer(folder: pathlib.Path) -> None:
    """Write tokenizer.json, tokenizer_config.json (with the chat template) and special_tokens_map.json to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    build_tokenizer().save(str(folder / "tokenizer.json"))
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
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
