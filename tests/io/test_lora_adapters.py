"""LoRA adapters against the formula W + s·B·A written out by hand, and against PEFT where it is installed."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest

from codd_jax.backbones import PRESETS
from codd_jax.io.checkpoint import open_backbone
from codd_jax.io.lora import MergedSource
from codd_jax.io.tensors import SafetensorsFolder, write_safetensors
from experiments.random_checkpoint import write_checkpoint

Q, K, O, UP, EMBED = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.transformer.blocks.0.attn_out",
    "model.transformer.blocks.1.up_proj",
    "model.embed_tokens",
)
SHAPES = {Q: (8, 8), K: (4, 8), O: (8, 8), UP: (12, 8), EMBED: (20, 8)}


def numbers(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def write(folder, tensors, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    specs = {key: (value.dtype, value.shape) for key, value in tensors.items()}
    write_safetensors(folder / name, specs, tensors.__getitem__)
    return folder


@pytest.fixture
def base(tmp_path):
    tensors = {f"{module}.weight": numbers(*shape, seed=len(module)) for module, shape in SHAPES.items()}
    tensors |= {f"{Q}.bias": numbers(8, seed=5), "model.norm.weight": numbers(8, seed=6)}
    tensors["lm_head.weight"] = numbers(20, 8, seed=7)
    return SafetensorsFolder(write(tmp_path / "base", tensors))


def adapter(tmp_path, tensors=None, modules=(Q,), ranks=None, **config):
    """An adapter folder; without `tensors`, random factors for `modules`."""
    if tensors is None:
        tensors = {}
        for number, module in enumerate(modules):
            out, into = SHAPES[module]
            rank = (ranks or {}).get(module, 2)
            tensors[f"base_model.model.{module}.lora_A.weight"] = numbers(rank, into, seed=10 + number)
            tensors[f"base_model.model.{module}.lora_B.weight"] = numbers(out, rank, seed=20 + number)
    folder = write(tmp_path / "adapter", tensors, "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder, tensors


def product(tensors, module):
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"].astype(np.float64) for side in "AB")
    return b @ a


@pytest.mark.parametrize("rslora,scale", [(False, 6 / 2), (True, 6 / 2**0.5)])
def test_scale(tmp_path, base, rslora, scale):
    folder, tensors = adapter(tmp_path, modules=(Q, K, O, UP), use_rslora=rslora)
    merged = MergedSource(base, folder)
    for module in (Q, K, O, UP):
        expected = base.read(f"{module}.weight") + scale * product(tensors, module)
        np.testing.assert_allclose(merged.read(f"{module}.weight"), expected, rtol=1e-6, atol=1e-6)
    for name in ("model.norm.weight", f"{EMBED}.weight", f"{Q}.bias"):
        np.testing.assert_array_equal(merged.read(name), base.read(name))
        np.testing.assert_array_equal(merged.view(name), base.read(name))
    assert merged.names() == base.names()


def test_rank_and_alpha_patterns(tmp_path, base):
    ranks = {Q: 4, UP: 3}
    patterns = {
        "rank_pattern": {"q_proj": 4, r"blocks\.\d\.up_proj": 3},
        "alpha_pattern": {"layers.0.self_attn.q_proj": 5},
    }
    folder, tensors = adapter(tmp_path, modules=(Q, K, UP), ranks=ranks, **patterns)
    merged = MergedSource(base, folder)
    for module, scale in ((Q, 5 / 4), (K, 6 / 2), (UP, 6 / 3)):
        expected = base.read(f"{module}.weight") + scale * product(tensors, module)
        np.testing.assert_allclose(merged.read(f"{module}.weight"), expected, rtol=1e-6, atol=1e-6)


def test_bfloat16_is_merged_in_float32_and_rounded_once(tmp_path):
    weight = numbers(300, 8).astype(ml_dtypes.bfloat16)
    source = SafetensorsFolder(write(tmp_path / "base", {f"{Q}.weight": weight}))
    SHAPES_A, SHAPES_B = (2, 8), (300, 2)
    a, b = numbers(*SHAPES_A, seed=1), numbers(*SHAPES_B, seed=2)
    tensors = {f"base_model.model.{Q}.lora_A.weight": a, f"base_model.model.{Q}.lora_B.weight": b}
    merged = MergedSource(source, adapter(tmp_path, tensors)[0]).read(f"{Q}.weight")
    exact = weight.astype(np.float64) + 3.0 * (b.astype(np.float64) @ a)
    assert merged.dtype == ml_dtypes.bfloat16
    half_step = np.abs(exact) * 2.0**-8 + 1e-30
    assert (np.abs(merged.astype(np.float64) - exact) <= half_step * 1.001).all()


def test_fan_in_fan_out_turns_only_weights_that_fit_no_other_way(tmp_path, base):
    a, b = numbers(2, 12, seed=1), numbers(8, 2, seed=2)  # in 12, out 8: the base's up_proj is [12, 8]
    tensors = {f"base_model.model.{UP}.lora_A.weight": a, f"base_model.model.{UP}.lora_B.weight": b}
    square = adapter(tmp_path)[1]
    folder, _ = adapter(tmp_path, tensors | square, fan_in_fan_out=True)
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        merged = MergedSource(base, folder)
    expected = base.read(f"{UP}.weight") + 3.0 * (b @ a).T
    np.testing.assert_allclose(merged.read(f"{UP}.weight"), expected, rtol=1e-6, atol=1e-6)
    # As PEFT does for nn.Linear, which stores [out, in]: the option is ignored.
    expected = base.read(f"{Q}.weight") + 3.0 * product(square, Q)
    np.testing.assert_allclose(merged.read(f"{Q}.weight"), expected, rtol=1e-6, atol=1e-6)


def test_modules_saved_whole_biases_and_embeddings(tmp_path, base):
    head, norm, bias = numbers(20, 8, seed=30), numbers(8, seed=31), numbers(8, seed=32)
    a, b = numbers(2, 20, seed=33), numbers(8, 2, seed=34)
    tensors = adapter(tmp_path)[1] | {
        "base_model.model.lm_head.modules_to_save.default.weight": head,
        "base_model.model.model.norm.weight": norm,
        f"base_model.model.{Q}.base_layer.bias": bias,
        f"base_model.model.{EMBED}.lora_embedding_A": a,
        f"base_model.model.{EMBED}.lora_embedding_B": b,
    }
    merged = MergedSource(base, adapter(tmp_path, tensors, bias="lora_only", modules_to_save=["lm_head", "norm"])[0])
    np.testing.assert_array_equal(merged.read("lm_head.weight"), head)
    np.testing.assert_array_equal(merged.read("model.norm.weight"), norm)
    np.testing.assert_array_equal(merged.read(f"{Q}.bias"), bias)
    expected = base.read(f"{EMBED}.weight") + 3.0 * (b @ a).T
    np.testing.assert_allclose(merged.read(f"{EMBED}.weight"), expected, rtol=1e-6, atol=1e-6)


def test_lora_bias_is_added_to_the_bias(tmp_path, base):
    extra = numbers(8, seed=40)
    tensors = adapter(tmp_path)[1] | {f"base_model.model.{Q}.lora_B.bias": extra}
    merged = MergedSource(base, adapter(tmp_path, tensors, lora_bias=True)[0])
    np.testing.assert_allclose(merged.read(f"{Q}.bias"), base.read(f"{Q}.bias") + 3.0 * extra, rtol=1e-6)


def test_everything_that_does_not_fit_is_reported_together(tmp_path, base):
    tensors = {
        "base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight": numbers(2, 8),
        f"base_model.model.{Q}.lora_A.weight": numbers(2, 8),
        f"base_model.model.{K}.lora_A.weight": numbers(2, 9),
        f"base_model.model.{K}.lora_B.weight": numbers(4, 2),
        f"base_model.model.{UP}.lora_A.weight": numbers(3, 8),
        f"base_model.model.{UP}.lora_B.weight": numbers(12, 3),
        "base_model.model.lm_head.weight": numbers(21, 8),
        "base_model.model.score.weight": numbers(3, 8),
    }
    with pytest.raises(ValueError) as caught:
        MergedSource(base, adapter(tmp_path, tensors)[0])
    for part in (
        "no module model.layers.9.self_attn.q_proj",
        f"{Q} has lora_A without its other half",
        f"{K}: lora_B (4, 2) times lora_A (2, 9) does not fit the weight (4, 8)",
        f"{UP}: lora_A (3, 8) and lora_B (12, 3) are not of rank 2",
        "lm_head.weight is (21, 8), the base's lm_head.weight is (20, 8)",
        "score.weight: the base has no such tensor",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "config,reason",
    [
        ({"peft_type": "LOHA"}, "kind LOHA"),
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"peft_type": "VERA"}, "kind VERA"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"init_lora_weights": "loftq"}, "loftq"),
        ({"layer_replication": [[0, 1]]}, "layer replication"),
        ({"trainable_token_indices": [1]}, "trainable token indices"),
        ({"some_new_thing": 3}, "some_new_thing"),
        ({"r": 0}, "rank of at least 1"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern gives 'q_proj' the value 0"),
        ({"rank_pattern": {"(": 4}}, "rank_pattern has '\\(', which is no pattern"),
        ({"alpha_pattern": ["q"]}, r"alpha_pattern is \['q'\]"),
        ({"modules_to_save": ["wte"]}, "lists wte under modules_to_save"),
    ],
)
def test_other_adapters_are_refused_by_name(tmp_path, base, config, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        MergedSource(base, adapter(tmp_path, **config)[0])
    assert str(tmp_path / "adapter") in str(caught.value)


def test_what_would_be_merged_silently_wrong_is_reported(tmp_path, base):
    named = {
        f"base_model.model.{Q}.lora_{side}.{name}.weight": numbers(2, 8) if side == "A" else numbers(8, 2)
        for side in "AB"
        for name in ("one", "two")
    }
    head = {"base_model.model.lm_head.weight": numbers(20, 8), "lm_head.modules_to_save.a.weight": numbers(20, 8)}
    with pytest.raises(ValueError) as caught:
        MergedSource(base, adapter(tmp_path, named | head)[0])
    for part in ("lora_A.one.weight and ", "lora_B.two.weight are of one module", "both replace lm_head.weight"):
        assert part in str(caught.value)


def test_the_original_beside_a_saved_module_is_passed_over(tmp_path, base):
    saved, original = numbers(20, 8, seed=50), numbers(20, 8, seed=51)
    start = "base_model.model.lm_head."
    tensors = {f"{start}modules_to_save.default.weight": saved, f"{start}original_module.weight": original}
    merged = MergedSource(base, adapter(tmp_path, tensors, modules_to_save=["lm_head"])[0])
    np.testing.assert_array_equal(merged.read("lm_head.weight"), saved)
    assert merged.changed() == {"lm_head.weight"}


def test_a_wider_dtype_is_not_rounded_on_the_way(tmp_path):
    weight = numbers(30, 8).astype(ml_dtypes.bfloat16)
    stored = {f"{Q}.weight": weight, "model.norm.weight": weight[0]}
    tensors = {
        f"base_model.model.{Q}.lora_A.weight": numbers(2, 8),
        f"base_model.model.{Q}.lora_B.weight": numbers(30, 2),
    }
    narrow = MergedSource(SafetensorsFolder(write(tmp_path / "base", stored)), adapter(tmp_path, tensors)[0])
    wide = narrow.in_dtype(np.float32)
    exact = weight.astype(np.float64) + 3.0 * product(tensors, Q)
    np.testing.assert_allclose(wide.read(f"{Q}.weight"), exact, rtol=1e-6, atol=1e-6)
    assert (wide.dtype(f"{Q}.weight"), wide.dtype("model.norm.weight")) == (np.float32, ml_dtypes.bfloat16)
    assert narrow.read(f"{Q}.weight").dtype == ml_dtypes.bfloat16


def test_a_trained_head_on_a_tied_base_is_refused(tmp_path):
    config = dataclasses.replace(
        PRESETS["dream-1m"], width=16, num_layers=1, num_heads=2, num_kv_heads=2, head_dim=8, ffn_width=16,
        vocab_size=20, mask_id=19, eos_id=18, pad_id=18, bos_id=18,
    )  # fmt: skip
    folder = write_checkpoint(tmp_path / "untied", config)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "tie_word_embeddings": True}))
    tensors = {"base_model.model.lm_head.weight": numbers(20, 16)}
    with pytest.raises(ValueError, match=r"lm_head\.weight, which .* does not use: its head is tied"):
        open_backbone(folder, adapter=adapter(tmp_path, tensors)[0])


def test_a_dora_adapter_that_does_not_say_so(tmp_path, base):
    tensors = adapter(tmp_path)[1] | {f"base_model.model.{Q}.lora_magnitude_vector": numbers(8)}
    with pytest.raises(ValueError, match="DoRA"):
        MergedSource(base, adapter(tmp_path, tensors)[0])


def test_absent_and_pickled_files(tmp_path, base):
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json"):
        MergedSource(base, tmp_path)
    folder, _ = adapter(tmp_path)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin, which can run code"):
        MergedSource(base, folder)
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        MergedSource(base, folder)


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 3}}, {"modules_to_save": ["head"]}]
)
def test_peft_merges_to_the_same(tmp_path, options):
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8), "head": torch.nn.Linear(8, 3)})
    write(tmp_path / "base", {name: value.detach().numpy() for name, value in model.state_dict().items()})
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj"], **options))
    for parameter in wrapped.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    wrapped.save_pretrained(tmp_path / "peft")
    merged = MergedSource(SafetensorsFolder(tmp_path / "base"), tmp_path / "peft")
    for name, value in wrapped.merge_and_unload().state_dict().items():
        np.testing.assert_allclose(merged.read(name), value.numpy(), rtol=1e-6, atol=1e-6)
