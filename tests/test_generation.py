"""How rows are handed to the decoder and come back, without decoding any."""

import jax
import numpy as np
import pytest
from flax import nnx

from codd_jax import CoDD, DecodeConfig, generation
from codd_jax.backbones import Transformer
from codd_jax.backbones.config import PRESETS
from codd_jax.decoding import Boundary, Finished, row_keys


@pytest.mark.parametrize(("pad_batch", "rows"), [(False, 3), (True, 8)])
def test_fewer_rows_than_a_batch_are_filled_up_on_request(monkeypatch, pad_batch, rows):
    seen = []

    def no_steps(denoiser, params, requests, strategy, numbers, **options):
        seen.append(options["rows"])
        done = [Finished(n, np.array([*p, 5, 6]), len(p), 2, 0) for n, p in enumerate(requests.prompts)]
        return iter([Boundary(done[1:], 0), Boundary(done[:1], 0)])

    monkeypatch.setattr(generation, "decode_requests", no_steps)
    model = CoDD(nnx.eval_shape(lambda: Transformer(PRESETS["llada-1m"], rngs=nnx.Rngs(0))))
    heard = []
    config = DecodeConfig(steps=8, gen_length=8)
    prompts, options = [[1], [2], [3]], {"batch_size": 8, "pad_batch": pad_batch}
    out = model.generate(prompts, config, on_finished=lambda finished: heard.append(sorted(finished)), **options)
    assert seen == [rows] and heard == [[1, 2], [0]]
    assert [ids.tolist() for ids in out.tokens] == [[5, 6]] * 3
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.generate([[1]], DecodeConfig(steps=8, gen_length=8), batch_size=0)


def test_one_seed_for_each_prompt():
    prompts = [[1, 2], [3], [1, 2]]
    each = jax.random.key_data(row_keys(prompts, [0, 0, 5]))
    together = jax.random.key_data(row_keys(prompts, 0))
    np.testing.assert_array_equal(each[:2], together[:2])
    np.testing.assert_array_equal(each[2:], jax.random.key_data(row_keys([[1, 2]], 5)))
    with pytest.raises(ValueError, match="2 seeds for 3 prompts"):
        row_keys(prompts, [0, 1])
