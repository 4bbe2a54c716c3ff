"""What a backbone is made of, as one frozen dataclass: read from a checkpoint's config.json or taken from a preset."""

import dataclasses
import importlib
import pathlib
import types
import warnings
from collections.abc import Mapping
from typing import Any

from codd_jax.jsonfile import read_json

# In float32 an angle of position p is off by up to p / 2^24 radians: past this length neighbouring positions blur.
ROTARY_LIMIT = 2**17

# What `family_of` recognises, and the module of this package that reads it.
FAMILIES = {"llada": "codd_jax.backbones.llada", "dream": "codd_jax.backbones.dream"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Shape and options of a bidirectional transformer; hashable, so it can be a static argument of a jitted function.

    `vocab_size` counts the rows of the embedding and of the logits (LLaDA's `embedding_size`), which may exceed the
    tokenizer's. `max_length` is the context that the checkpoint states. `shift_logits` says that the logits for
    position i are those computed at position i-1 (Dream, arXiv:2508.15487).
    """

    family: str
    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_width: int
    rope_theta: float
    norm_eps: float
    max_length: int
    mask_id: int
    eos_id: int
    pad_id: int
    bos_id: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    norm_bias: bool = False
    head_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = False
    scale_logits: bool = False
    input_emb_norm: bool = False
    rope_float32: bool = True
    shift_logits: bool = False

    def __post_init__(self):
        if self.family not in FAMILIES:
            raise ValueError(f"backbone family {self.family!r} is unknown; known: {', '.join(FAMILIES)}")
        for name in ("vocab_size", "width", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_heads ({self.num_heads}) is not a multiple of num_kv_heads ({self.num_kv_heads}); "
                "each key/value head serves the same number of query heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim ({self.head_dim}) is odd; rotary embedding turns pairs of channels")
        if not 0 <= self.mask_id < self.vocab_size:
            raise ValueError(f"mask_id ({self.mask_id}) lies outside the vocabulary of {self.vocab_size} rows")

    @property
    def num_block_params(self) -> int:
        """Number of weights in all blocks together, without embedding and head."""
        query, key = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        count = 2 * self.width * (query + key) + 3 * self.width * self.ffn_width + 2 * self.width
        count += (query + 2 * key) * self.qkv_bias + (2 * self.width + 2 * self.ffn_width) * self.out_bias
        count += 2 * self.width * self.norm_bias + (query + key) * (1 + self.norm_bias) * self.qk_norm
        return self.num_layers * count

    @property
    def num_params(self) -> int:
        """Number of weights in the whole backbone; a tied head counts once."""
        count = self.num_block_params + self.vocab_size * self.width + self.width * (1 + self.norm_bias)
        if not self.tie_embeddings:
            count += self.vocab_size * (self.width + self.head_bias)
        return count

    @property
    def hard_length_limit(self) -> int:
        """The longest canvas that is computed at all: the stated context, or 2^17 positions where that is longer."""
        return max(self.max_length, ROTARY_LIMIT)


def check_length(config: BackboneConfig, length: int) -> None:
    """Refuse a canvas of `length` positions beyond the hard limit; warn when it exceeds the checkpoint's context."""
    if length > config.hard_length_limit:
        raise ValueError(
            f"a canvas of {length} positions exceeds the limit of {config.hard_length_limit} "
            f"(stated context {config.max_length}); shorten the prompt or gen_length"
        )
    if length > config.max_length:
        warnings.warn(
            f"a canvas of {length} positions exceeds the checkpoint's context of {config.max_length}; "
            "quality beyond it is untested",
            stacklevel=2,
        )


def family_of(config_json: Mapping[str, Any], where: str = "config.json") -> str:
    """Name the family ("llada" or "dream") of a HuggingFace config, or raise ValueError naming the architecture."""
    model_type = str(config_json.get("model_type") or "")
    listed = config_json.get("architectures") or []
    if not isinstance(listed, list):
        raise ValueError(f"{where}: architectures is {listed!r}; a list of names is expected")
    architectures = [str(name) for name in listed]
    names = {
        "llada": {"LLaDAModelLM", "LLaDAModel", "CoddLlada"},  # Codd*: saved together with a circuit by PyTorch-CoDD
        "dream": {"DreamModel", "DreamForDiffusionLM", "CoddDream"},
    }
    for family, known in names.items():
        if model_type.lower() == family and (not architectures or known & set(architectures)):
            return family
        if not model_type and known & set(architectures):
            return family
    raise ValueError(
        f"{where}: model_type {model_type!r} with architectures {architectures} is not supported; "
        "supported are LLaDA (model_type 'llada', LLaDAModelLM) and Dream (model_type 'Dream', DreamModel)"
    )


def config_from_huggingface(source: Mapping[str, Any] | str | pathlib.Path) -> BackboneConfig:
    """Read a `BackboneConfig` from a parsed config.json, from the file, or from the folder that holds it.

    Raises FileNotFoundError where there is no config.json and ValueError for unreadable JSON, another architecture or
    an option that this port does not compute; each message names the file and the key.
    """
    if isinstance(source, Mapping):
        config_json, where = source, "config.json"
    else:
        path = pathlib.Path(source)
        path = path / "config.json" if path.is_dir() else path
        where = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; a HuggingFace backbone folder holds a config.json")
        config_json = read_json(path)
    family = family_module(family_of(config_json, where))
    try:
        return family.read_config(config_json, where)
    except ValueError as error:  # those of `BackboneConfig` itself do not know the file
        if str(error).startswith(where):
            raise
        raise ValueError(f"{where}: {error}") from error


def family_module(family: str) -> types.ModuleType:
    """The module of a family: its `NAMES` table, `read_config` and `write_config`."""
    return importlib.import_module(FAMILIES[family])


def _llada(**numbers: Any) -> BackboneConfig:
    """LLaDA's constants (arXiv:2502.09992), with the small presets' vocabulary and special ids."""
    base = {"family": "llada", "rope_theta": 5e5, "norm_eps": 1e-5, "max_length": 4096, "vocab_size": 32000}
    base |= {"mask_id": 31999, "eos_id": 31998, "pad_id": 31998}
    base |= {"head_dim": numbers["width"] // numbers["num_heads"], "num_kv_heads": numbers["num_heads"]}
    return BackboneConfig(**(base | numbers))


PRESETS: dict[str, BackboneConfig] = {
    "llada-8b": _llada(
        width=4096, num_layers=32, num_heads=32, ffn_width=12288, vocab_size=126464,
        mask_id=126336, eos_id=126081, pad_id=126081, bos_id=126080,
    ),
    "dream-7b": BackboneConfig(
        family="dream", vocab_size=152064, width=3584, num_layers=28, num_heads=28, num_kv_heads=4, head_dim=128,
        ffn_width=18944, rope_theta=1e6, norm_eps=1e-6, max_length=131072, mask_id=151666, eos_id=151643,
        pad_id=151643, bos_id=151643, qkv_bias=True, rope_float32=False, shift_logits=True,
    ),
    "llada-92m": _llada(width=768, num_layers=12, num_heads=12, ffn_width=2304),
    "llada-27m": _llada(width=512, num_layers=8, num_heads=8, ffn_width=1536),
    "llada-1m": _llada(
        width=128, num_layers=4, num_heads=8, ffn_width=384, vocab_size=512, max_length=1024,
        mask_id=511, eos_id=510, pad_id=510,
    ),
    "dream-1m": BackboneConfig(
        family="dream", vocab_size=512, width=128, num_layers=4, num_heads=8, num_kv_heads=2, head_dim=16,
        ffn_width=384, rope_theta=1e6, norm_eps=1e-6, max_length=2048, mask_id=511, eos_id=510, pad_id=510,
        bos_id=510, qkv_bias=True, rope_float32=False, shift_logits=True,
    ),
}  # fmt: skip
