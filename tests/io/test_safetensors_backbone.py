"""HuggingFace weights into a backbone and back: placement, one message for all faults, bit-exact round trips."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from codd_jax.backbones import PRESETS, Transformer, config_from_huggingface
from codd_jax.io.safetensors import Placement, SafetensorsFolder, load_backbone, plan, save_huggingface

FIXTURES = (
    "llada_tiny", "llada_tiny_sharded", "llada_tiny_bf16", "llada_tiny_gqa", "llada_tiny_opts", "llada_tiny_tied",
    "dream_tiny", "dream_tiny_bf16",
)  # fmt: skip


class Memory:
    """A tensor source over a dict, with the required methods only."""

    def __init__(self, tensors):
        self.tensors, self.reads = tensors, []

    def names(self):
        return set(self.tensors)

    def shape(self, name):
        return self.tensors[name].shape

    def dtype(self, name):
        return self.tensors[name].dtype

    def read(self, name):
        self.reads.append(name)
        return self.tensors[name]

    def origin(self, name):
        return "memory"


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("layout", ["stacked", "unrolled"])
def test_fixtures_survive_the_round_trip_bit_for_bit(fixtures_dir, tmp_path, name, layout):
    source, config = SafetensorsFolder(fixtures_dir / name), config_from_huggingface(fixtures_dir / name)
    dtype = source.dtype(next(iter(source.names())))
    backbone = load_backbone(source, config, dtype=dtype, layout=layout, progress=False)
    files = save_huggingface(backbone, config, tmp_path, max_shard_bytes=150_000)
    assert all(file.stat().st_size < 200_000 for file in files)
    assert config_from_huggingface(tmp_path) == config
    written = SafetensorsFolder(tmp_path)
    assert written.names() == source.names()
    for tensor in source.names():
        assert written.dtype(tensor) == source.dtype(tensor)
        assert written.read(tensor).tobytes() == source.read(tensor).tobytes(), tensor


def test_sharded_and_single_files_hold_the_same_backbone(fixtures_dir):
    one, many = (
        nnx.state(load_backbone(fixtures_dir / name, config_from_huggingface(fixtures_dir / name), progress=False))
        for name in ("llada_tiny", "llada_tiny_sharded")
    )
    jax.tree.map(np.testing.assert_array_equal, one, many)


def test_the_plan_names_paths_and_layers(fixtures_dir):
    folder = fixtures_dir / "dream_tiny"
    placements = plan(config_from_huggingface(folder), SafetensorsFolder(folder))
    assert Placement("model.layers.2.self_attn.o_proj.weight", ("blocks", "o", "weight"), 2) in placements
    assert Placement("lm_head.weight", ("head", "weight"), None) in placements
    layers = [item.layer for item in placements if item.layer is not None]
    assert layers == sorted(layers) and set(layers) == {0, 1, 2}


def test_everything_that_does_not_fit_is_in_one_message(fixtures_dir):
    tensors = load_file(fixtures_dir / "llada_tiny" / "model.safetensors")
    config = config_from_huggingface(fixtures_dir / "llada_tiny")
    blocks = "model.transformer.blocks"
    tensors["model.transformer.wpe.weight"] = np.zeros(3, np.float32)
    tensors[f"{blocks}.7.q_proj.weight"] = np.zeros((64, 64), np.float32)
    tensors[f"{blocks}.01.q_proj.weight"] = tensors[f"{blocks}.1.q_proj.weight"]
    tensors[f"{blocks}.0.k_proj.weight"] = np.zeros((32, 64), np.float32)
    tensors[f"{blocks}.0.v_proj.weight"] = np.zeros((64, 64), np.int8)
    del tensors["model.transformer.ln_f.weight"]
    source = Memory(tensors)
    with pytest.raises(ValueError) as caught:
        load_backbone(source, config, progress=False)
    message = str(caught.value)
    assert f"unmapped (2): {blocks}.7.q_proj.weight; model.transformer.wpe.weight" in message
    assert "missing (1): model.transformer.ln_f.weight" in message
    assert f"duplicate (1): {blocks}.1.q_proj.weight and {blocks}.01.q_proj.weight" in message
    assert f"mis-shaped (1): {blocks}.0.k_proj.weight is (32, 64), the config asks for (64, 64)" in message
    assert f"not float (1): {blocks}.0.v_proj.weight is int8" in message
    assert not source.reads


def test_another_familys_tensors_are_all_reported(fixtures_dir):
    config = config_from_huggingface(fixtures_dir / "llada_tiny")
    with pytest.raises(ValueError, match=r"(?s)dream_tiny.*unmapped \(39\): .*and 31 more.*missing \(30\)"):
        plan(config, SafetensorsFolder(fixtures_dir / "dream_tiny"))


def test_rotary_buffers_and_a_tied_heads_copy_are_passed_over(fixtures_dir):
    tensors = load_file(fixtures_dir / "llada_tiny_tied" / "model.safetensors")
    tensors["model.transformer.ff_out.weight"] = tensors["model.transformer.wte.weight"]
    tensors["model.transformer.blocks.0.rotary_emb.inv_freq"] = np.zeros(4, np.float32)
    config = config_from_huggingface(fixtures_dir / "llada_tiny_tied")
    assert load_backbone(Memory(tensors), config, progress=False).head is None


def test_any_source_of_tensors_loads_and_each_is_read_once():
    config = dataclasses.replace(PRESETS["dream-1m"], num_layers=2)
    backbone = Transformer(config, rngs=nnx.Rngs(0))
    names = {}
    for path, param in nnx.to_flat_state(nnx.state(backbone)):
        names[path] = np.asarray(param[...])
    hf = {"model.embed_tokens.weight": names["embed", "weight"], "model.norm.weight": names["final_norm", "weight"]}
    hf["lm_head.weight"] = names["head", "weight"].astype(np.float64)
    table = {
        "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
        "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "attn_norm": "input_layernorm",
        "ff_norm": "post_attention_layernorm",
    }  # fmt: skip
    for path, array in names.items():
        if path[0] == "blocks":
            for layer in range(2):
                hf[f"model.layers.{layer}.{table[path[1]]}.{path[2]}"] = array[layer]
    for layout in ("stacked", "unrolled"):
        source = Memory(hf)
        loaded = load_backbone(source, config, layout=layout, progress=False)
        assert sorted(source.reads) == sorted(hf)
        stacked = nnx.state(loaded.with_layout("stacked"))
        jax.tree.map(np.testing.assert_array_equal, stacked, nnx.state(backbone))


def test_dtypes_are_cast_on_the_way(fixtures_dir):
    config = config_from_huggingface(fixtures_dir / "llada_tiny")
    for dtype, param_dtype in (("bfloat16", None), ("bfloat16", "float32")):
        backbone = load_backbone(
            fixtures_dir / "llada_tiny", config, dtype=dtype, param_dtype=param_dtype, progress=False
        )
        stored = {leaf.dtype for leaf in jax.tree.leaves(nnx.state(backbone))}
        assert stored == {jnp.dtype(param_dtype or dtype)} and backbone.dtype == jnp.bfloat16


def test_a_checkpoint_of_another_shape_names_both(fixtures_dir, tmp_path):
    shutil.copy(fixtures_dir / "llada_tiny_gqa" / "model.safetensors", tmp_path)
    shutil.copy(fixtures_dir / "llada_tiny" / "config.json", tmp_path)
    with pytest.raises(
        ValueError, match=r"(?s)missing \(9\).*blocks\.2.*mis-shaped.*is \(32, 64\).*asks for \(64, 64\)"
    ):
        load_backbone(tmp_path, config_from_huggingface(tmp_path), progress=False)


def test_an_empty_file_is_reported_as_missing_everything(tmp_path):
    save_file({"x": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"(?s)unmapped \(1\): x.*missing \(39\)"):
        plan(PRESETS["llada-1m"], SafetensorsFolder(tmp_path))


def test_saving_over_another_layout_of_shards_replaces_it(tmp_path):
    shape = {"width": 16, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8, "ffn_width": 16, "num_layers": 1}
    config = dataclasses.replace(PRESETS["llada-1m"], **shape)
    old, new = (Transformer(config, rngs=nnx.Rngs(seed)) for seed in range(2))
    (tmp_path / "model_card.safetensors").touch()
    first = save_huggingface(old, config, tmp_path, max_shard_bytes=30_000)
    assert len(first) > 2
    for options in ({}, {"max_shard_bytes": 40_000}, {}):
        files = save_huggingface(new, config, tmp_path, **options)
        held = {file.name for file in tmp_path.glob("*.safetensors")}
        assert held == {"model_card.safetensors", *(file.name for file in files)}
        loaded = load_backbone(tmp_path, config, progress=False)
        np.testing.assert_array_equal(np.asarray(loaded.embed.weight[...]), np.asarray(new.embed.weight[...]))
        old, new = new, old
