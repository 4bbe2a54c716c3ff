"""Logits and hidden states against the PyTorch models' own, for every checkpoint fixture and both layouts."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from codd_jax.backbones import config_from_huggingface
from codd_jax.io.safetensors import load_backbone

FLOAT32 = ("llada_tiny", "llada_tiny_gqa", "llada_tiny_opts", "llada_tiny_tied", "dream_tiny")
BF16 = ("llada_tiny_bf16", "dream_tiny_bf16")
LAYOUTS = ("stacked", "unrolled")


@functools.lru_cache(maxsize=4)
def _load(folder, layout, dtype="float32"):
    return load_backbone(folder, config_from_huggingface(folder), dtype=dtype, layout=layout, progress=False)


@functools.lru_cache(maxsize=4)
def _program(folder, layout, dtype="float32"):
    graphdef, params = nnx.split(_load(folder, layout, dtype))
    run = jax.jit(lambda params, tokens, lengths: nnx.merge(graphdef, params)(tokens, lengths))
    return lambda tokens, lengths=None: np.asarray(run(params, tokens, lengths))


def _rows(arrays, shift):
    """Every golden row as (case, real ids, aligned logits); left padding is cut, real positions are kept."""
    rows = []
    for case in sorted({key.partition("__")[0] for key in arrays}):
        ids = arrays[f"{case}__ids"]
        mask = arrays.get(f"{case}__attention_mask", np.ones_like(ids)).astype(bool)
        for row in range(len(ids)):
            logits = arrays[f"{case}__logits"][row][mask[row]]
            rows.append((case, ids[row][mask[row]], np.concatenate([logits[:1], logits[:-1]]) if shift else logits))
    return rows


def _right_padded(rows, pad_id):
    lengths = np.array([len(ids) for _, ids, _ in rows], np.int32)
    tokens = np.full((len(rows), lengths.max()), pad_id, np.int32)
    for row, (_, ids, _) in enumerate(rows):
        tokens[row, : len(ids)] = ids
    return tokens, lengths


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", (*FLOAT32, *BF16))
def test_logits_equal_the_golden_ones_in_one_padded_batch(fixtures_dir, name, layout):
    folder = fixtures_dir / name
    config = config_from_huggingface(folder)
    rows = _rows(dict(np.load(folder / "forward.npz")), config.shift_logits)
    tokens, lengths = _right_padded(rows, config.pad_id)
    logits = _program(folder, layout)(tokens, lengths)
    for row, (case, ids, golden) in enumerate(rows):
        np.testing.assert_allclose(logits[row, : len(ids)], golden, rtol=0, atol=1e-4, err_msg=f"{case}, row {row}")


def test_the_golden_shift_is_the_one_applied(fixtures_dir):
    arrays = np.load(fixtures_dir / "dream_tiny" / "forward.npz")
    logits = _program(fixtures_dir / "dream_tiny", "stacked")(arrays["len16__ids"])
    np.testing.assert_allclose(logits, arrays["len16__shifted"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", BF16)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_bf16_compute_stays_near_both_goldens(fixtures_dir, name, layout):
    folder = fixtures_dir / name
    config, arrays = config_from_huggingface(folder), np.load(folder / "forward.npz")
    logits = _program(folder, layout, "bfloat16")(arrays["len9__ids"])
    assert logits.dtype == np.float32
    exact, rounded = arrays["len9__logits"], arrays["len9__logits_bf16_compute"]
    if config.shift_logits:
        exact, rounded = (np.concatenate([x[:, :1], x[:, :-1]], axis=1) for x in (exact, rounded))
    # As near to the exact logits as the other implementation's rounding; two roundings differ by more than one does.
    assert np.abs(logits - exact).max() < {"llada": 0.16, "dream": 0.13}[config.family]
    assert np.abs(logits - rounded).max() < 0.25
    assert np.sqrt(np.mean((logits - exact) ** 2)) < 1.1 * np.sqrt(np.mean((rounded - exact) ** 2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in FLOAT32 if name != "llada_tiny_tied"])
def test_hidden_states_equal_the_golden_ones(fixtures_dir, name, layout):
    arrays = np.load(fixtures_dir / name / "forward.npz")
    backbone = _load(fixtures_dir / name, layout)
    run = jax.jit(lambda tokens: (backbone.hidden_states(tokens), backbone(tokens, return_hidden=True)[1]))
    (embedded, blocks), hidden = run(arrays["hidden__ids"])
    np.testing.assert_allclose(embedded, arrays["hidden__embed"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(blocks, arrays["hidden__blocks"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(hidden, arrays["hidden__final_norm"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["llada_tiny_opts", "dream_tiny"])
def test_a_padded_row_equals_the_row_alone(fixtures_dir, name):
    arrays = np.load(fixtures_dir / name / "forward.npz")
    ids = arrays["len7__ids"]
    program = _program(fixtures_dir / name, "stacked")
    for filler in (0, 300):  # whatever stands in the padding must not matter
        padded = np.full((3, 12), filler, np.int32)
        padded[:, :7] = ids
        together = program(padded, np.array([7, 5, 1], np.int32))
        for row, length in enumerate((7, 5, 1)):
            alone = program(ids[row : row + 1, :length])
            np.testing.assert_allclose(together[row, :length], alone[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["llada_tiny_tied", "llada_tiny_opts", "dream_tiny"])
def test_the_head_on_chosen_positions_equals_the_full_logits_there(fixtures_dir, name):
    folder = fixtures_dir / name
    backbone = _load(folder, "unrolled")
    tokens = jnp.asarray(np.load(folder / "forward.npz")["len9__ids" if "tied" in name else "len7__ids"])
    lengths = jnp.full((len(tokens),), tokens.shape[1], jnp.int32)
    positions = jnp.tile(jnp.array([[0, 1, 6, 3]], jnp.int32), (len(tokens), 1))
    full = backbone(tokens, lengths)
    chosen = backbone(tokens, lengths, positions)
    np.testing.assert_allclose(chosen, np.take_along_axis(full, positions[..., None], axis=1), rtol=0, atol=1e-5)


def test_configs_are_read_as_the_fixtures_state_them(fixtures_dir):
    for folder in sorted(fixtures_dir.glob("*_tiny*")):
        config, raw = config_from_huggingface(folder), json.loads((folder / "config.json").read_text())
        llada = raw["model_type"] == "llada"
        assert config.family == ("llada" if llada else "dream")
        assert config.vocab_size == raw["embedding_size" if llada else "vocab_size"]
        assert config.mask_id == raw["mask_token_id"]
        assert config.shift_logits is not llada
