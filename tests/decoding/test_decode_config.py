"""A configuration refuses what cannot work, and says what would."""

import dataclasses

import pytest

from codd_jax.decoding import DecodeConfig


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be a whole number of at least 1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"gen_length": -1}, "gen_length is -1"),
        ({"block_length": 0}, "block_length is 0.*or None"),
        ({"top_k": 0}, "top_k is 0"),
        ({"remasking": "lowest"}, "remasking is 'lowest'; known are low_confidence, margin, .* maskgit_plus"),
        ({"window_remasking": "x"}, "window_remasking is 'x'; known"),
        ({"coupling": "joint"}, "coupling is 'joint'; known are latent, any_order, none"),
        ({"windows": "all"}, "windows is 'all'; known are None, cover, best"),
        ({"schedule": "odd"}, "schedule is 'odd'"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0 and at most 1"),
        ({"top_p": 1.2}, "top_p is 1.2"),
        ({"eps": 1.0}, "eps is 1.0"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": 0.9, "threshold_factor": 1.0}, "two rules"),
        ({"threshold": 0.9, "remasking": "entropy"}, "does not give one; use one of low_confidence, margin, topprob"),
        ({"threshold": 0.9, "windows": "cover", "window_remasking": "entropy"}, "window_remasking='entropy'"),
        ({"threshold": 0.9, "alg_temp": 0.5}, "alg_temp"),
        ({"threshold": 0.9, "schedule": "even"}, "fixes how many"),
        ({"threshold": 0.9, "windows": "best"}, "windows='cover'"),
        ({"pc_frac": -1}, "pc_frac is -1"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**options)


def test_steps_beyond_the_tokens_are_accepted_with_a_warning():
    with pytest.warns(UserWarning, match="steps=9 is more than gen_length=4"):
        DecodeConfig(steps=9, gen_length=4)


def split(family="llada", circuit_length=None, **options):
    return DecodeConfig(**options).split(family=family, mask_id=5, stop_ids=(7, 2), circuit_length=circuit_length)[0]


def test_families_have_their_own_schedules():
    assert split("dream", block_length=None).schedule == "timestep"
    assert split("dream").schedule == "even"
    assert split("llada", block_length=None).schedule == "even"
    assert split("dream", windows="cover", circuit_length=32).schedule == "timestep"
    assert split("dream", block_length=None, schedule="even").schedule == "even"
    assert split("dream", block_length=None, threshold=0.9).schedule == "threshold"


def test_lengths_of_blocks_and_windows():
    with pytest.raises(ValueError, match="block_length is 64 but the circuit covers windows of 32"):
        split(block_length=64, circuit_length=32)
    assert split(block_length=64, circuit_length=32, coupling="none").window_length == 64
    inside = split(block_length=64, circuit_length=32, windows="cover")
    assert (inside.block_length, inside.window_length) == (64, 32)
    whole = split(block_length=32, circuit_length=32, windows="cover")
    assert (whole.block_length, whole.window_length) == (512, 32)
    alone = split(block_length=16, windows="best")
    assert (alone.block_length, alone.window_length) == (512, 16)
    with pytest.raises(ValueError, match="without a circuit"):
        split(block_length=None, windows="cover")
    assert split(block_length=16, circuit_length=32).window_length == 32


def test_split_resolves_names_and_stop_ids():
    strategy = split(remasking="topk_margin", window_remasking="origin")
    assert (strategy.remasking, strategy.window_remasking) == ("margin", "random")
    assert strategy.stop_ids == (2, 7)
    assert split(stop_ids=[4]).stop_ids == (4,)
    assert split(stop_at_eos=False).stop_ids == ()
    assert hash(strategy) == hash(dataclasses.replace(strategy))
    with pytest.raises(ValueError, match="family is 'gpt'; known are llada, dream"):
        split("gpt")


@pytest.mark.parametrize(
    ("options", "sizes", "message"),
    [
        ({}, {"circuit_length": 32, "circuit_vocab_size": 90}, "circuit is over 90 tokens, the backbone over 100"),
        ({}, {"circuit_length": 16, "circuit_vocab_size": 100}, "block_length is 32 .* windows of 16"),
        ({}, {"mask_id": 100}, "mask id 100 is not among the 100 ids"),
        ({"stop_ids": [3, 200]}, {}, r"stop_ids \[200\]"),
        ({"steps": 3}, {}, "steps=3 for 16 blocks.*steps>=16"),
        ({}, {"circuit_mask_id": 4}, "circuit's mask id is 4, the backbone's is 5"),
    ],
)
def test_validation_against_backbone_and_circuit(options, sizes, message):
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**options).validate_against(**{"vocab_size": 100, "mask_id": 5} | sizes)
    DecodeConfig().validate_against(vocab_size=100, mask_id=5, circuit_length=32, circuit_vocab_size=100)
