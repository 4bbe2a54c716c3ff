"""Reading config.json: every option, and a refusal by name for what is not computed."""

import dataclasses
import importlib
import json

import pytest

from codd_jax.backbones import PRESETS, BackboneConfig, check_length, config_from_huggingface
from codd_jax.backbones.config import FAMILIES

LLADA = {
    "model_type": "llada", "architectures": ["LLaDAModelLM"], "block_type": "llama", "activation_type": "silu",
    "layer_norm_type": "rms", "rope": True, "d_model": 64, "n_heads": 4, "n_layers": 2, "mlp_hidden_size": 96,
    "vocab_size": 320, "embedding_size": 384, "max_sequence_length": 256, "mask_token_id": 304, "eos_token_id": 301,
    "pad_token_id": None, "weight_tying": False, "rope_theta": 5e5,
}  # fmt: skip
DREAM = {
    "model_type": "Dream", "architectures": ["DreamModel"], "hidden_act": "silu", "hidden_size": 64,
    "num_hidden_layers": 3, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 160,
    "vocab_size": 352, "max_position_embeddings": 131072, "mask_token_id": 324, "eos_token_id": 320,
    "rope_theta": 1e6, "rms_norm_eps": 1e-6,
}  # fmt: skip


def test_absent_options_take_the_family_defaults():
    llada, dream = config_from_huggingface(LLADA), config_from_huggingface(DREAM)
    assert (llada.num_kv_heads, llada.head_dim, llada.vocab_size, llada.pad_id) == (4, 16, 384, 301)
    assert not any((llada.qkv_bias, llada.out_bias, llada.norm_bias, llada.head_bias, llada.qk_norm))
    assert (llada.rope_float32, llada.shift_logits, llada.bos_id) == (True, False, None)
    assert (dream.qkv_bias, dream.out_bias, dream.rope_float32, dream.shift_logits) == (True, False, False, True)
    assert (dream.num_kv_heads, dream.head_dim, dream.pad_id) == (2, 8, 320)


@pytest.mark.parametrize(
    ("given", "multi_query", "expected"),
    [(None, None, 4), (None, True, 1), (None, False, 4), (2, None, 2), (1, True, 1)],
)
def test_llada_key_value_heads(given, multi_query, expected):
    config = config_from_huggingface(LLADA | {"n_kv_heads": given, "multi_query_attention": multi_query})
    assert config.num_kv_heads == expected


def test_llada_contradicting_key_value_heads_are_refused():
    with pytest.raises(ValueError, match="n_kv_heads=2 contradicts multi_query_attention=True"):
        config_from_huggingface(LLADA | {"n_kv_heads": 2, "multi_query_attention": True})


@pytest.mark.parametrize(("norm", "expected"), [(None, True), (False, False), (True, True)])
def test_llada_include_bias_reaches_every_projection(norm, expected):
    config = config_from_huggingface(LLADA | {"include_bias": True, "bias_for_layer_norm": norm})
    assert config.qkv_bias and config.out_bias and config.head_bias and config.norm_bias is expected
    assert not config_from_huggingface(LLADA | {"include_bias": True, "weight_tying": True}).head_bias


@pytest.mark.parametrize(
    ("base", "change", "named"),
    [
        (LLADA, {"alibi": True}, "alibi=True"),
        (LLADA, {"block_type": "sequential"}, "block_type='sequential'"),
        (LLADA, {"activation_type": "swiglu"}, "activation_type='swiglu'"),
        (LLADA, {"layer_norm_type": "gemma_rms"}, "layer_norm_type='gemma_rms'"),
        (LLADA, {"block_group_size": 2}, "block_group_size=2"),
        (LLADA, {"rope": False}, "rope=False"),
        (LLADA, {"rope_scaling": {"factor": 2}}, "rope_scaling"),
        (LLADA, {"layer_norm_with_affine": False}, "layer_norm_with_affine=False"),
        (DREAM, {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        (DREAM, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope_type='yarn'"),
        (DREAM, {"use_sliding_window": True}, "use_sliding_window=True"),
        (DREAM, {"hidden_act": "gelu"}, "hidden_act='gelu'"),
        (LLADA, {"d_model": None}, "d_model"),
        (LLADA, {"mask_token_id": None}, "mask_token_id"),
        (LLADA, {"mask_token_id": 384}, "mask_id \\(384\\)"),
        (LLADA, {"d_model": 66}, "d_model \\(66\\)"),
        (DREAM, {"num_key_value_heads": 3}, "num_kv_heads \\(3\\)"),
        (DREAM, {"intermediate_size": 0}, "intermediate_size is 0"),
        (LLADA, {"n_heads": 0}, r"config\.json: n_heads is 0"),
        (LLADA, {"d_model": "abc"}, r"config\.json: d_model is 'abc'"),
        (LLADA, {"d_model": float("inf")}, "d_model is inf"),
        (LLADA, {"d_model": 64.5}, "d_model is 64.5"),
        (LLADA, {"architectures": 5}, "architectures is 5"),
        (LLADA, {"rms_norm_eps": None}, "rms_norm_eps is None"),
        (LLADA, {"mlp_ratio": None, "mlp_hidden_size": None}, "mlp_ratio is None"),
        (LLADA, {"n_kv_heads": [1]}, r"n_kv_heads is \[1\]"),
        (LLADA, {"eos_token_id": []}, r"eos_token_id is \[\]"),
        (LLADA, {"include_bias": "no"}, "include_bias is 'no'"),
        (LLADA, {"rope_theta": float("nan")}, "rope_theta is nan"),
        (DREAM, {"rope_parameters": 5}, "rope_parameters is 5"),
        (DREAM, {"head_dim": 7}, r"config\.json: head_dim \(7\) is odd"),
        ({}, {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "'llama'.*LlamaForCausalLM"),
        (LLADA, {"architectures": ["LLaDAMoEModelLM"]}, "LLaDAMoEModelLM"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(base, change, named):
    with pytest.raises(ValueError, match=named):
        config_from_huggingface(base | change)


@pytest.mark.parametrize("base", [LLADA, DREAM])
def test_of_several_ends_the_first_is_taken(base):
    config = config_from_huggingface(base | {"eos_token_id": [7, 9], "pad_token_id": None})
    assert (config.eos_id, config.pad_id) == (7, 7)


def test_all_unsupported_options_are_named_together():
    with pytest.raises(ValueError, match=r"block_type='x'.*alibi=True"):
        config_from_huggingface(LLADA | {"alibi": True, "block_type": "x"})


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        config_from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"config\.json is not readable JSON"):
        config_from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="holds a list"):
        config_from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        config_from_huggingface(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(DREAM))
    assert config_from_huggingface(str(tmp_path)) == config_from_huggingface(DREAM)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_their_config_json(name):
    config = PRESETS[name]
    module = importlib.import_module(FAMILIES[config.family])
    assert config_from_huggingface(json.loads(json.dumps(module.write_config(config)))) == config


def test_what_a_family_cannot_express_is_not_written():
    dream = importlib.import_module(FAMILIES["dream"])
    with pytest.raises(ValueError, match="qk_norm=True"):
        dream.write_config(dataclasses.replace(PRESETS["dream-1m"], qk_norm=True))
    llada = importlib.import_module(FAMILIES["llada"])
    with pytest.raises(ValueError, match="include_bias"):
        llada.write_config(dataclasses.replace(PRESETS["llada-1m"], out_bias=True))


def test_presets_have_the_published_sizes():
    assert PRESETS["llada-8b"].num_params == 8_015_581_184  # arXiv:2502.09992 states 8.02 B
    assert round(PRESETS["llada-8b"].num_block_params / 1e9, 2) == 6.98
    assert round(PRESETS["dream-7b"].num_params / 1e9, 2) == 7.62  # as Qwen2.5-7B
    assert isinstance(hash(PRESETS["dream-7b"]), int)


def test_lengths_beyond_the_limits():
    config = PRESETS["llada-8b"]
    check_length(config, 4096)
    with pytest.warns(UserWarning, match=r"4097 positions exceeds the checkpoint's context of 4096"):
        check_length(config, 4097)
    with pytest.raises(ValueError, match="131073 positions exceeds the limit of 131072"):
        check_length(config, 131073)


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="'gpt' is unknown"):
        dataclasses.replace(PRESETS["llada-1m"], family="gpt")
    assert BackboneConfig is type(PRESETS["llada-1m"])
