"""A circuit split over its vocabulary decodes the tokens that one device decodes, on four emulated devices."""

import os
import pathlib
import subprocess
import sys

# Devices can be emulated only before JAX starts, so the comparison runs in a process of its own.
FOUR_DEVICES = """
import dataclasses
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_default_matmul_precision", "highest")
from flax import nnx
from codd_jax import HMM, CoDD, DecodeConfig
from codd_jax.backbones import PRESETS, Transformer
from codd_jax.circuits import Modulation
from codd_jax.sharding import backbone_sharding, circuit_sharding, make_mesh

small = dict(num_layers=1, width=32, num_heads=2, num_kv_heads=2, head_dim=16, ffn_width=48)
config = dataclasses.replace(PRESETS["llada-1m"], vocab_size=64, mask_id=63, eos_id=62, pad_id=62, **small)
backbone = Transformer(config, rngs=nnx.Rngs(0))
hmm = HMM.random(jax.random.key(1), 8, 8, 64, scale=3.0)
decode = DecodeConfig(steps=8, gen_length=16, block_length=8, pc_frac=None, stop_at_eos=False)
prompts = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
alone = CoDD(backbone, hmm).generate(prompts, decode).tokens
without = CoDD(backbone).generate(prompts, decode).tokens

mesh = make_mesh("data:2,model:2")
sharding = backbone_sharding(config, mesh)
graphdef, state = nnx.split(backbone)
place = lambda path, param: (path, param.replace(jax.device_put(param[...], sharding(path, param.shape))))
state = nnx.from_flat_state([place(*item) for item in nnx.to_flat_state(state)])
split = jax.device_put(hmm, circuit_sharding(hmm, mesh))
assert split.emission.addressable_shards[0].data.shape == (8, 32)
shared = CoDD(nnx.merge(graphdef, state), split, mesh=mesh).generate(prompts, decode).tokens
np.testing.assert_array_equal(alone, shared)
assert not np.array_equal(alone, without)

heads = Modulation.zeros(("latent", "transition", "emission"), 32, 8, basis=jnp.zeros((2, 64)), noise=True)
leaves, tree = jax.tree.flatten(heads)
leaves = [0.1 * jax.random.normal(jax.random.key(i), x.shape) for i, x in enumerate(leaves)]
hmm = hmm.with_modulation(tree.unflatten(leaves))
following = CoDD(backbone, hmm).generate(prompts, decode).tokens
split = jax.device_put(hmm, circuit_sharding(hmm, mesh))
assert split.modulation.basis.addressable_shards[0].data.shape == (2, 32)
shared = CoDD(nnx.merge(graphdef, state), split, mesh=mesh).generate(prompts, decode).tokens
lists = [[row.tolist() for row in tokens] for tokens in (following, shared, alone)]  # of several lengths
assert lists[0] == lists[1] != lists[2]
print("equal")
"""


def test_tokens_do_not_depend_on_how_the_circuit_is_split():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment.pop("XLA_FLAGS", None)
    root = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", FOUR_DEVICES]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("equal"), done.stderr[-3000:]
