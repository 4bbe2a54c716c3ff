"""What an update of joint fine-tuning must cost at least, part by part, per device; counted from the shapes alone.

A product x·Wᵀ costs the same again for the gradient of x and once more for that of W; with rematerialisation what the
gradient needs is computed a second time.
"""

from __future__ import annotations

import dataclasses

from codd_jax.backbones.config import BackboneConfig
from codd_jax.backbones.low_rank import PROJECTIONS
from codd_jax.fitting.costs import (
    CircuitShape,
    Cost,
    Split,
    StepShape,
    attention_cost,
    head_cost,
    parameter_bytes,
    projection_cost,
)
from codd_jax.training.joint_config import JointTraining


@dataclasses.dataclass(frozen=True)
class UpdateShape:
    """The sizes of an update: rows of `length` positions with so many windows of T = `window` each.

    With `fused_attention` a kernel keeps the scores to itself.
    """

    training: JointTraining
    length: int
    windows: int
    window: int
    value_bytes: int = 2
    fused_attention: bool = False

    def step(self) -> StepShape:
        """The forward pass over the whole batch, with the logits of all windows."""
        ranked = min(self.windows * self.window, self.length)
        return StepShape(self.training.batch_size, self.length, ranked, value_bytes=self.value_bytes)


def update_costs(
    config: BackboneConfig,
    shape: UpdateShape,
    circuit: CircuitShape | None,
    split: Split = Split(),  # noqa: B008
) -> dict[str, Cost]:
    """The parts of an update: "projections", "lora" where it is trained, "attention", "head" and "circuit"."""
    training, step = shape.training, shape.step()
    grown = 1 if training.remat else 0
    forward = projection_cost(config, step, split)
    # All but the last product of a block is computed again: its result is not needed for a gradient.
    again = forward.flops * (1 - _share(config, "down", split)) * grown
    passes = {"full": 3.0, "lora": 2.0, "head": 1.0, "none": 1.0}[training.train]
    deep = training.train in ("full", "lora")
    flops = passes * forward.flops + (again if deep else 0)
    costs = {"projections": Cost(flops, (2 + grown) * forward.bytes, forward.precision)}
    if training.train == "lora":
        # The last product's second factor is not applied again; a block's first inputs need no gradient in layer 1.
        costs["lora"] = Cost((3 + grown) * lora_flops(config, training, step, split), 0, forward.precision)
    attention = attention_cost(config, step, split)
    costs["attention"] = Cost((3 + grown if deep else 1) * attention.flops, 0, attention.precision)
    head = head_cost(config, step, split)
    # Windows are coupled one by one and again for the gradient.
    head_passes = 2 + (1 if deep else 0) + (1 if training.train in ("full", "head") else 0)
    costs["head"] = Cost(head_passes * head.flops, head_passes * head.bytes, head.precision)
    if circuit is not None and training.objective == "coupled":
        tokens = circuit.vocab_size / split.of(circuit.vocab_size)
        product = 2 * split.rows(step.batch) * shape.windows * circuit.length * circuit.num_states * tokens
        count = 2 + (1 if training.train != "none" else 0) + (1 if training.train_circuit else 0)
        traffic = shape.windows * count * circuit.num_states * tokens * 4
        costs["circuit"] = Cost(count * product, traffic, "float32")
    return costs


def layer_flops(config: BackboneConfig, shape: UpdateShape, split: Split = Split()) -> float:  # noqa: B008
    """Of one block in an update, without rematerialisation, of the rows of one part of the batch."""
    training = dataclasses.replace(shape.training, remat=False)
    training = dataclasses.replace(training, batch_size=training.batch_size // training.accumulate, accumulate=1)
    single = dataclasses.replace(config, num_layers=1)
    costs = update_costs(single, dataclasses.replace(shape, training=training), None, split)
    return sum(cost.flops for name, cost in costs.items() if name != "head")


def lora_flops(config: BackboneConfig, training: JointTraining, step: StepShape, split: Split) -> float:
    """The forward products with both factors, over all rows and layers."""
    positions = split.rows(step.batch) * step.length
    sizes = _sizes(config, split)
    # The factor at the side that is not split is whole on every device.
    each = sum(training.lora.rank * (out + into) for name, (out, into) in sizes.items() if name in training.lora.chosen)
    return 2 * positions * each * config.num_layers


def activation_bytes(
    config: BackboneConfig,
    shape: UpdateShape,
    circuit: CircuitShape | None,
    split: Split = Split(),  # noqa: B008
) -> int:
    """An estimate of an update's working memory on one device, without gradients of weights.

    With rematerialisation: what goes into every block, and the hungriest block's own activations several times over
    (values, their gradients, float32 scores); without: the latter for every block. Then the potentials of one window a
    row with what its gradient needs, and of a trained circuit the gradient of E that is summed up.
    """
    training, size = shape.training, shape.value_bytes
    rows = split.rows(training.batch_size // training.accumulate)
    positions = rows * shape.length
    heads = config.num_heads // split.of(config.num_heads)
    ffn = config.ffn_width // split.of(config.ffn_width)
    scores = 0 if shape.fused_attention else positions * heads * shape.length * (4 + size)
    block = positions * (6 * config.width + 4 * heads * config.head_dim + 3 * ffn) * size + scores
    deep = training.train in ("full", "lora")
    layers = config.num_layers
    kept = 0 if not deep else layers * (positions * config.width * size if training.remat else block)
    tokens = config.vocab_size // split.of(config.vocab_size)
    logits = 6 * 4 * rows * shape.window * tokens
    if circuit is not None and training.objective == "coupled":
        logits += (2 if training.train_circuit else 1) * 4 * circuit.num_states * tokens
    return kept + max(2 * block, logits)


def link_bytes(config: BackboneConfig, shape: UpdateShape, weights: int, split: Split) -> int:
    """Bytes that each device sends: sums of the residual stream over "model", and of gradients over "data"."""
    training = shape.training
    sent = 0
    if split.model > 1:
        stream = split.rows(training.batch_size) * shape.length * config.width * shape.value_bytes
        sums = (split.of(config.num_heads) > 1) + (split.of(config.ffn_width) > 1)
        passes = (2 + training.remat) if training.train in ("full", "lora") else 1
        sent += config.num_layers * sums * passes * stream * 2 * (split.model - 1) // split.model
    if split.data > 1:
        sent += weights * 2 * (split.data - 1) // split.data
        if training.shard_over_data:
            sent += (2 + training.remat) * parameter_bytes(config, shape.value_bytes, Split(1, split.model))
    return sent


def _sizes(config: BackboneConfig, split: Split) -> dict[str, tuple[float, float]]:
    """(out, in) of the projections on one device."""
    query = config.num_heads * config.head_dim / split.of(config.num_heads)
    key = config.num_kv_heads * config.head_dim / split.of(config.num_kv_heads)
    ffn, width = config.ffn_width / split.of(config.ffn_width), config.width
    sizes = [(query, width), (key, width), (key, width), (width, query), (ffn, width), (ffn, width), (width, ffn)]
    return dict(zip(PROJECTIONS, sizes, strict=True))


def _share(config: BackboneConfig, name: str, split: Split) -> float:
    """The part of a block's products that one projection makes."""
    sizes = {key: out * into for key, (out, into) in _sizes(config, split).items()}
    return sizes[name] / sum(sizes.values())
