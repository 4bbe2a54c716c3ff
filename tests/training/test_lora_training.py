"""LoRA in training: the factored forward pass against merged weights, what is trained, and PEFT's files."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.backbones.layers import LowRank
from codd_jax.backbones.low_rank import has_lora, merge_lora
from codd_jax.io.checkpoint import load_backbone, open_backbone
from codd_jax.io.converted import save_backbone
from codd_jax.io.safetensors import save_huggingface
from codd_jax.training.lora import LoraConfig, add_lora, save_adapter

SMALL = {
    "vocab_size": 48, "width": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "ffn_width": 24,
    "mask_id": 47, "eos_id": 46, "pad_id": 46,
}  # fmt: skip
LLADA, DREAM = (dataclasses.replace(PRESETS[name], **SMALL) for name in ("llada-1m", "dream-1m"))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 46, (2, 7)), jnp.int32)


def plain(config, layout, **options):
    """A backbone of NumPy's random numbers: made without compiling an initialisation."""
    rng = np.random.default_rng(3)
    graphdef, state = nnx.split(Transformer.abstract(config, layout=layout, **options))
    fill = lambda x: jnp.asarray(rng.normal(size=x.shape) * x.shape[-1] ** -0.5, x.dtype)  # noqa: E731
    return nnx.merge(graphdef, jax.tree.map(fill, state))


def tuned(config, layout, lora=LoraConfig(rank=3, alpha=6.0)):  # noqa: B008 - frozen
    """A random backbone with random factors, both of them."""
    backbone = add_lora(plain(config, layout), lora, jax.random.key(1))
    rng = np.random.default_rng(2)
    state = nnx.state(backbone, nnx.LoRAParam)
    nnx.update(backbone, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), state))
    return backbone


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, state):
    return nnx.merge(graphdef, state)(TOKENS)


def logits(backbone):
    return np.asarray(_logits(*nnx.split(backbone)))


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_the_factored_forward_pass_equals_the_merged_one(config, layout):
    backbone = tuned(config, layout)
    merged = merge_lora(backbone)
    assert has_lora(backbone) and not has_lora(merged)
    np.testing.assert_allclose(logits(backbone), logits(merged), rtol=0, atol=2e-4)
    assert nnx.graphdef(merged) == nnx.graphdef(plain(config, layout))
    assert np.abs(logits(merged) - logits(plain(config, layout))).max() > 0.1
    # By hand, of one layer's values.
    found, state = (jax.device_get(nnx.to_pure_dict(nnx.state(each))["blocks"]) for each in (merged, backbone))
    found, value = (x["v"] if layout == "stacked" else x[1]["v"] for x in (found, state))
    number = 1 if layout == "stacked" else Ellipsis
    expected = value["weight"][number] + 2.0 * value["lora"]["b"][number] @ value["lora"]["a"][number]
    np.testing.assert_allclose(found["weight"][number], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_fresh_factors_change_nothing_and_only_they_are_trained(layout):
    base = plain(LLADA, layout)
    backbone = add_lora(base, LoraConfig(rank=2, targets="q|v"), jax.random.key(0))
    assert not has_lora(base), "the given backbone stays as it is"
    np.testing.assert_allclose(logits(backbone), logits(base), rtol=0, atol=1e-6)
    graphdef, factors, frozen = nnx.split(backbone, nnx.LoRAParam, ...)
    names = {path[-3:] for path, _ in nnx.to_flat_state(factors)}
    assert names == {(projection, "lora", side) for projection in "qv" for side in "ab"}
    gradients = jax.jit(jax.grad(lambda factors: nnx.merge(graphdef, factors, frozen)(TOKENS).var()))(factors)
    moved = {path[-1] for path, leaf in nnx.to_flat_state(gradients) if np.any(leaf[...] != 0)}
    assert moved == {"b"}, "the first factor moves only once the second one has"


def test_no_product_of_the_factors_is_made():
    low = LowRank(jnp.ones((2, 64)), jnp.ones((64, 2)), 1.0, jnp.float32)
    text = jax.jit(lambda x: low(x)).lower(jnp.ones((5, 64))).as_text()
    assert "64x64" not in text and "5x2" in text


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
@pytest.mark.parametrize("config", [LLADA, DREAM], ids=["llada", "dream"])
def test_a_saved_adapter_is_merged_to_the_same_backbone(tmp_path, config, layout):
    lora = LoraConfig(rank=3, alpha=6.0, targets="q|o|down")
    backbone = tuned(config, layout, lora)
    save_huggingface(plain(config, layout), config, tmp_path / "base")
    save_adapter(tmp_path / "adapter", backbone, lora, base="someone/base")
    loaded = load_backbone(tmp_path / "base", adapter=tmp_path / "adapter", layout=layout, progress=False)
    np.testing.assert_allclose(logits(loaded), logits(merge_lora(backbone)), rtol=0, atol=1e-4)
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["r"] == 3 and settings["lora_alpha"] == 6 and settings["base_model_name_or_path"] == "someone/base"
    changed = open_backbone(tmp_path / "base", adapter=tmp_path / "adapter").source.changed()
    assert len(changed) == 2 * 3, "not the head, whose name in LLaDA is that of a projection"


def test_what_cannot_be_is_refused(tmp_path):
    backbone = plain(LLADA, "stacked")
    with pytest.raises(ValueError, match="targets 'z' match none of q, k, v, o, gate, up, down"):
        LoraConfig(targets="z")
    with pytest.raises(ValueError, match="no regular expression"):
        LoraConfig(targets="(")
    with pytest.raises(ValueError, match="rank 0"):
        LoraConfig(rank=0)
    with pytest.raises(ValueError, match=r"rank 9 exceeds 8, the smaller side of blocks\.k"):
        add_lora(backbone, LoraConfig(rank=9), jax.random.key(0))
    with pytest.raises(ValueError, match="no LoRA factors"):
        save_adapter(tmp_path, backbone, LoraConfig())
    with pytest.raises(ValueError, match="already; merge them first"):
        add_lora(tuned(LLADA, "stacked"), LoraConfig(rank=1), jax.random.key(0))


@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_rematerialisation_changes_memory_not_gradients(layout):
    config = dataclasses.replace(LLADA, num_layers=4)
    tokens = jnp.tile(TOKENS, (1, 8))

    def program(remat):
        graphdef, params = nnx.split(plain(config, layout, remat=remat))
        loss = lambda params: nnx.merge(graphdef, params)(tokens).var()  # noqa: E731
        lowered = jax.jit(jax.grad(loss)).lower(params)
        compiled = lowered.compile()
        return compiled(params), compiled.memory_analysis().temp_size_in_bytes, "barrier" in lowered.as_text()

    (found, small, barrier), (expected, large, none) = program(True), program(False)
    if layout == "stacked":
        assert small < 0.8 * large, (small, large)
    else:  # the compiler for CPU takes the barriers away and merges what is computed twice
        assert barrier and not none
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_whole_weights_are_written_merged_or_not_at_all(tmp_path):
    backbone = tuned(LLADA, "unrolled", LoraConfig(rank=2, targets="v"))
    for write in (
        lambda: save_huggingface(backbone, LLADA, tmp_path / "a"),
        lambda: save_backbone(tmp_path / "b", backbone),
    ):
        with pytest.raises(ValueError, match="merge them first"):
            write()
    assert not list(tmp_path.iterdir())
    CoDD(backbone).save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="no tokenizer"):
        loaded = CoDD.from_pretrained(tmp_path / "model", dtype="float32", progress=False)
    merged = nnx.to_pure_dict(nnx.state(merge_lora(backbone)))
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(loaded.backbone)), merged)
