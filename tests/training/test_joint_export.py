"""Tuned models on disk: what this project loads again, and what transformers and PEFT make of it where they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.backbones.low_rank import merge_lora
from codd_jax.circuits import HMM
from codd_jax.io.llama import save_as_transformers
from codd_jax.io.safetensors import save_huggingface
from codd_jax.training.joint_config import JointTraining
from codd_jax.training.joint_export import save_tuned
from codd_jax.training.lora import LoraConfig, add_lora, save_adapter

SMALL = {
    "vocab_size": 48, "width": 16, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "head_dim": 4, "ffn_width": 24,
    "mask_id": 47, "eos_id": 46, "pad_id": 46,
}  # fmt: skip
CONFIGS = {name: dataclasses.replace(PRESETS[f"{name}-1m"], **SMALL) for name in ("llada", "dream")}
LORA = LoraConfig(rank=3, alpha=6.0, targets="q|v|o|down")
TOKENS = np.random.default_rng(0).integers(0, 46, (2, 7)).astype(np.int32)


def fill(module, seed, kind=nnx.Param):
    rng = np.random.default_rng(seed)
    state = nnx.state(module, kind)
    nnx.update(module, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) * 0.4, x.dtype), state))
    return module


def base(config):
    graphdef, state = nnx.split(Transformer.abstract(config, layout="unrolled"))
    return fill(nnx.merge(graphdef, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state)), 1)


def tuned(config):
    backbone = fill(add_lora(base(config), LORA, jax.random.key(0)), 2, nnx.LoRAParam)
    return CoDD(backbone, HMM.random(jax.random.key(1), 4, 3, config.vocab_size))


def logits(backbone):
    graphdef, state = nnx.split(backbone)
    return np.asarray(jax.jit(lambda state: nnx.merge(graphdef, state)(jnp.asarray(TOKENS)))(state))


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_a_tuned_model_loads_again_whole(tmp_path, family):
    config = CONFIGS[family]
    model = tuned(config)
    recipe = JointTraining(steps=1, train="lora", lora=LORA)
    folders = save_tuned(tmp_path / "out", model, recipe, base="someone/base", layout="transformers")
    assert set(folders) == {"model", "adapter", "transformers"}
    with pytest.warns(UserWarning, match="no tokenizer"):
        loaded = CoDD.from_pretrained(folders["model"], dtype="float32", progress=False)
    expected = logits(merge_lora(model.backbone))
    np.testing.assert_allclose(logits(loaded.backbone), expected, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), loaded.hmm, model.hmm)
    save_huggingface(base(config), config, tmp_path / "base")
    with pytest.warns(UserWarning, match="no tokenizer"):
        adapted = CoDD.from_pretrained(tmp_path / "base", dtype="float32", adapter=folders["adapter"], progress=False)
    np.testing.assert_allclose(logits(adapted.backbone), expected, rtol=0, atol=1e-4)
    written = json.loads((folders["transformers"] / "config.json").read_text())
    assert written["model_type"] == {"llada": "llama", "dream": "qwen2"}[family]


def test_weights_are_stored_in_the_dtype_asked_for(tmp_path):
    model = tuned(CONFIGS["llada"])
    folders = save_tuned(tmp_path, model, JointTraining(steps=1, lora=LORA), dtype="bfloat16")
    with pytest.warns(UserWarning, match="no tokenizer"):
        loaded = CoDD.from_pretrained(folders["model"], dtype="float32", progress=False)
    whole = nnx.state(merge_lora(model.backbone))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), whole)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(loaded.backbone), rounded)


def test_what_no_layout_can_hold_is_refused_before_anything_is_written(tmp_path):
    config = dataclasses.replace(CONFIGS["llada"], qk_norm=True)
    model = CoDD(base(config))
    with pytest.raises(ValueError, match="have no qk_norm; export in the family's own layout"):
        save_tuned(tmp_path / "out", model, JointTraining(steps=1), layout="transformers")
    with pytest.raises(ValueError, match="layout 'gguf' is unknown; known are own, transformers"):
        save_tuned(tmp_path / "out", model, JointTraining(steps=1), layout="gguf")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["llada"],
        dataclasses.replace(CONFIGS["llada"], qkv_bias=True, out_bias=True),
        dataclasses.replace(CONFIGS["llada"], tie_embeddings=True),
        CONFIGS["dream"],
    ],
    ids=["llada", "biased", "tied", "dream"],
)
def test_transformers_computes_the_same_logits(tmp_path, config):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    backbone = base(config)
    save_as_transformers(backbone, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).float().eval()
    assert type(model).__name__ == ("Qwen2ForCausalLM" if config.family == "dream" else "LlamaForCausalLM")
    length = TOKENS.shape[1]
    with torch.no_grad():
        mask = torch.zeros(1, 1, length, length)
        found = model(torch.tensor(TOKENS, dtype=torch.long), attention_mask=mask, use_cache=False).logits.numpy()
    if config.shift_logits:
        found = np.concatenate([found[:, :1], found[:, :-1]], axis=1)
    np.testing.assert_allclose(found, logits(backbone), rtol=0, atol=2e-5)


@pytest.mark.parametrize("family", ["llada", "dream"])
def test_peft_loads_the_adapter(tmp_path, family):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    config, model = CONFIGS[family], tuned(CONFIGS[family])
    save_as_transformers(base(config), tmp_path / "base")
    # transformers' names for the modules are Dream's.
    save_adapter(tmp_path / "adapter", model.backbone, LORA, names=CONFIGS["dream"])
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base").float()
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == 4 * config.num_layers
    length = TOKENS.shape[1]
    with torch.no_grad():
        mask = torch.zeros(1, 1, length, length)
        found = adapted(input_ids=torch.tensor(TOKENS, dtype=torch.long), attention_mask=mask, use_cache=False)
    found = found.logits.numpy()
    if config.shift_logits:
        found = np.concatenate([found[:, :1], found[:, :-1]], axis=1)
    np.testing.assert_allclose(found, logits(model.backbone), rtol=0, atol=1e-4)
