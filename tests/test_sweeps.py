"""A sweep over traced numbers compiles nothing, from prompt to text: XLA's own compilations are counted."""

import dataclasses

import jax
import pytest
from flax import nnx

from codd_jax import HMM, CoDD, DecodeConfig, Transformer
from codd_jax.backbones import PRESETS

FIELDS = {
    "pc_temperature": (0.1, 0.2, 0.5, 0.7, 1.0),
    "pc_frac": (0.3, 0.5, 0.7, 1.0, None),
    "temperature": (0.0, 0.2, 0.5, 0.9, 1.0),
    "threshold": (0.5, 0.7, 0.8, 0.9, 0.95),
}
PROMPTS = [[5, 6, 7], [8, 9]]


@pytest.fixture(scope="module")
def model():
    config = dataclasses.replace(PRESETS["llada-1m"], num_layers=1, width=16, num_heads=2, num_kv_heads=2, head_dim=8)
    backbone = Transformer(config, rngs=nnx.Rngs(0))
    return CoDD(backbone, HMM.random(jax.random.key(0), 8, 4, config.vocab_size))


@pytest.fixture
def compilations():
    """A list that grows by one with every program that XLA compiles."""
    seen = []

    def listen(name, *_, **__):
        if name == "/jax/core/compile/backend_compile_duration":
            seen.append(name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("coupling", ["latent", "any_order"])
@pytest.mark.parametrize("pace", [{"steps": 4}, {"threshold": 0.6}])
def test_a_sweep_compiles_nothing(model, compilations, coupling, pace):
    base = DecodeConfig(**{"steps": 8, **pace}, gen_length=16, block_length=8, coupling=coupling, pc_frac=0.9)
    model.generate(PROMPTS, base)
    before = len(compilations)
    assert before, "nothing was counted"
    for field, values in FIELDS.items():
        if field == "threshold" and "threshold" not in pace:
            continue
        for value in values:
            model.generate(PROMPTS, dataclasses.replace(base, **{field: value}))
    for seed in range(1, 6):
        model.generate(PROMPTS, base, seed=seed)
    assert len(compilations) == before
