"""What a denoising step must cost at least: its arithmetic and its memory traffic, part by part, per device.

Counted from the shapes alone, as XLA's own counts see the body of a loop once. Multiply and add are two operations;
elementwise work, well under 1 % of a backbone of useful size, is left out.
"""

from __future__ import annotations

import dataclasses

from codd_jax.backbones.config import BackboneConfig
from codd_jax.fitting.chips import Chip


@dataclasses.dataclass(frozen=True)
class CircuitShape:
    """The sizes of a circuit: H states, V tokens, windows of T; `tied` circuits have one A and E for all positions."""

    num_states: int
    vocab_size: int
    length: int
    emission_bytes: int = 4
    tied: bool = True

    def __post_init__(self):
        for name in ("num_states", "vocab_size", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"the circuit's {name} is {getattr(self, name)}; it must be at least 1")


@dataclasses.dataclass(frozen=True)
class StepShape:
    """The sizes of a denoising step.

    Attributes:
      batch: rows. length: positions of a row.
      ranked: positions of a row whose logits are computed: the block, or the circuit's window.
      computed: positions of a row that pass through the blocks; None: all. Fewer with cached keys and values.
      value_bytes: of a weight and of an activation.
      draws: tokens per row drawn by any-order sampling; None: by latents.
      fused_attention: a kernel keeps the scores to itself.
    """

    batch: int
    length: int
    ranked: int = 32
    computed: int | None = None
    value_bytes: int = 2
    draws: int | None = None
    fused_attention: bool = False

    def __post_init__(self):
        for name in ("batch", "length", "ranked"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("ranked", "computed"):
            if (getattr(self, name) or 1) > self.length:
                raise ValueError(f"{name} ({getattr(self, name)}) is more than the row's length ({self.length})")


@dataclasses.dataclass(frozen=True)
class Split:
    """Over how many devices rows ("data") and weights ("model") are spread, as in `codd_jax.sharding`."""

    data: int = 1
    model: int = 1

    def rows(self, batch: int) -> int:
        """Rows on the fullest device."""
        return -(-batch // self.data)

    def of(self, count: int) -> int:
        """The parts that `count` heads, channels or tokens are cut into; 1 (replicated) where they do not divide."""
        return self.model if count % self.model == 0 else 1


WHOLE = Split()


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one part on one device: `flops`, `bytes` that cross its memory at least once, and the product's precision."""

    flops: float
    bytes: float
    precision: str = "bfloat16"

    def seconds(self, chip: Chip) -> tuple[float, float]:
        """The floors by arithmetic and by memory."""
        return self.flops / chip.rate(self.precision), self.bytes / chip.memory_bandwidth


@dataclasses.dataclass(frozen=True)
class Floors:
    """Seconds that a step takes at least: by arithmetic, by memory, and part after part by the larger of the two."""

    arithmetic: float
    memory: float
    together: float


def floors(costs: dict[str, Cost], chip: Chip) -> Floors:
    """The floors of all parts together; communication between devices comes on top."""
    each = [cost.seconds(chip) for cost in costs.values()]
    return Floors(sum(a for a, _ in each), sum(m for _, m in each), sum(max(pair) for pair in each))


def step_costs(
    config: BackboneConfig, shape: StepShape, circuit: CircuitShape | None = None, split: Split = WHOLE
) -> dict[str, Cost]:
    """The parts of a denoising step in their order: "projections", "attention", "head" and the circuit's.

    "projections" are the matrix products of all blocks; "attention" is queries times keys and weights times values.
    The circuit's parts are those of `circuit_costs`. Weights count as read once a step, activations as never leaving
    the chip but for the logits of the ranked positions, which several parts need.
    """
    costs = {
        "projections": projection_cost(config, shape, split),
        "attention": attention_cost(config, shape, split),
        "head": head_cost(config, shape, split),
    }
    return costs if circuit is None else costs | circuit_costs(circuit, shape, split)


def projection_cost(config: BackboneConfig, shape: StepShape, split: Split = WHOLE, layers: int | None = None) -> Cost:
    """The matrix products of `layers` blocks (default: all): q, k, v, o, gate, up and down."""
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    weights = config.width * (
        2 * query / split.of(config.num_heads)
        + 2 * key / split.of(config.num_kv_heads)
        + 3 * config.ffn_width / split.of(config.ffn_width)
    )
    weights *= config.num_layers if layers is None else layers
    positions = split.rows(shape.batch) * (shape.computed or shape.length)
    return Cost(2 * positions * weights, weights * shape.value_bytes, _precision(shape.value_bytes))


def attention_cost(config: BackboneConfig, shape: StepShape, split: Split = WHOLE, layers: int | None = None) -> Cost:
    """Every computed position looks at every position; keys and values that are kept from before are read."""
    layers = config.num_layers if layers is None else layers
    rows, computed = split.rows(shape.batch), shape.computed or shape.length
    heads, kept = config.num_heads / split.of(config.num_heads), config.num_kv_heads / split.of(config.num_kv_heads)
    flops = 4 * rows * computed * shape.length * heads * config.head_dim * layers
    cache = 2 * rows * (shape.length - computed) * kept * config.head_dim * shape.value_bytes * layers
    return Cost(flops, cache, _precision(shape.value_bytes))


def head_cost(config: BackboneConfig, shape: StepShape, split: Split = WHOLE) -> Cost:
    """Float32 logits of the ranked positions."""
    tokens = config.vocab_size / split.of(config.vocab_size)
    positions = split.rows(shape.batch) * shape.ranked
    traffic = tokens * config.width * shape.value_bytes + 4 * positions * tokens
    return Cost(2 * positions * tokens * config.width, traffic, _precision(shape.value_bytes))


def circuit_costs(circuit: CircuitShape, shape: StepShape, split: Split = WHOLE) -> dict[str, Cost]:
    """The circuit's parts for one window a row.

    "leaf": E times the potentials, which reads E and the logits once. "messages": T - 1 products of H by H, whose
    matrix is read once where it is tied. "rows": the emission rows of the drawn latents, multiplied into the logits.
    With `shape.draws`, "any_order" in their place: for each token messages both ways and the conditionals of the
    whole window.
    """
    states, length, rows = circuit.num_states, circuit.length, split.rows(shape.batch)
    tokens = circuit.vocab_size / split.of(circuit.vocab_size)
    copies = 1 if circuit.tied else length
    emissions = copies * states * tokens * circuit.emission_bytes
    logits = 4 * rows * length * tokens
    transitions = 4 * states**2 * (1 if circuit.tied else length - 1)
    precision = _precision(circuit.emission_bytes, split_product=True)
    product = 2 * rows * length * states * tokens
    chain = 2 * (length - 1) * rows * states**2
    costs = {"leaf": Cost(product, emissions + logits, precision)}
    if shape.draws is None:
        costs["messages"] = Cost(chain, transitions, "float32")
        costs["rows"] = Cost(0, rows * length * tokens * circuit.emission_bytes + 2 * logits)
        return costs
    each = Cost(product + 2 * chain, emissions + logits + transitions)
    costs["any_order"] = Cost(shape.draws * each.flops, shape.draws * each.bytes, precision)
    return costs


def parameter_bytes(config: BackboneConfig, value_bytes: int = 2, split: Split = WHOLE) -> int:
    """Bytes of the backbone's weights on one device."""
    sizes = {
        "q": config.num_heads, "k": config.num_kv_heads, "v": config.num_kv_heads, "o": config.num_heads,
        "gate": config.ffn_width, "up": config.ffn_width, "down": config.ffn_width,
    }  # fmt: skip
    query, key = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    inner = {"q": query, "k": key, "v": key, "o": query} | dict.fromkeys(("gate", "up", "down"), config.ffn_width)
    matrices = sum(config.width * inner[name] for name in sizes)
    kept = sum(config.width * inner[name] // split.of(unit) for name, unit in sizes.items())
    vectors = config.num_block_params // config.num_layers - matrices
    tables = 1 if config.tie_embeddings else 2
    vocab = tables * config.vocab_size * config.width
    rest = config.num_params - config.num_block_params - vocab
    whole = config.num_layers * (kept + vectors) + vocab // split.of(config.vocab_size) + rest
    return whole * value_bytes


def circuit_bytes(circuit: CircuitShape, split: Split = WHOLE) -> int:
    """Bytes of the circuit's parameters on one device: E cut over the vocabulary, the rest whole and in float32."""
    copies, links = (1, 1) if circuit.tied else (circuit.length, circuit.length - 1)
    emissions = copies * circuit.num_states * circuit.vocab_size * circuit.emission_bytes
    return emissions // split.of(circuit.vocab_size) + 4 * circuit.num_states * (1 + links * circuit.num_states)


def activation_bytes(
    config: BackboneConfig, shape: StepShape, circuit: CircuitShape | None = None, split: Split = WHOLE
) -> int:
    """An estimate of the working memory of a step on one device: its hungriest moment, whichever that is.

    A block holds the residual stream with queries, keys and values and (unless fused) float32 scores beside their
    rounded copy, or with the two products of the feed-forward part; afterwards the logits are held three times over.
    Where keys and values are kept, it is the pass that refreshes them, over the whole row, that counts.
    """
    rows, size = split.rows(shape.batch), shape.value_bytes
    positions = rows * shape.length
    heads, kept = config.num_heads // split.of(config.num_heads), config.num_kv_heads // split.of(config.num_kv_heads)
    stream = 3 * positions * config.width * size
    mixing = positions * config.head_dim * (2 * heads + 2 * kept) * size
    if not shape.fused_attention:
        mixing += positions * heads * shape.length * (4 + size)
    feeding = 2 * positions * (config.ffn_width // split.of(config.ffn_width)) * size
    logits = 3 * 4 * rows * shape.ranked * (config.vocab_size // split.of(config.vocab_size))
    if circuit is not None:
        logits += 2 * 4 * rows * circuit.length * (circuit.vocab_size // split.of(circuit.vocab_size))
    cached = shape.computed is not None and shape.computed < shape.length
    cache = 2 * positions * kept * config.head_dim * size * config.num_layers if cached else 0
    return max(stream + mixing, stream + feeding, logits) + cache


def all_reduce_bytes(config: BackboneConfig, shape: StepShape, split: Split = WHOLE) -> int:
    """Bytes that each device sends in a step's all-reduces of the residual stream: two a block, one of the embedding.

    A ring over n devices sends 2 (n - 1) / n of the array from each.
    """
    if split.model == 1:
        return 0
    stream = split.rows(shape.batch) * (shape.computed or shape.length) * config.width * shape.value_bytes
    sums = (split.of(config.num_heads) > 1) + (split.of(config.ffn_width) > 1)
    count = config.num_layers * sums + (split.of(config.vocab_size) > 1)
    return count * stream * 2 * (split.model - 1) // split.model


def _precision(value_bytes: int, split_product: bool = False) -> str:
    if value_bytes >= 4:
        return "float32"
    return "split" if split_product else "bfloat16"
