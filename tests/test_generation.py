"""How rows are cut into batches, without decoding any."""

import pytest
from flax import nnx

from codd_jax import CoDD, DecodeConfig
from codd_jax.backbones import Transformer
from codd_jax.backbones.config import PRESETS
from codd_jax.generation import Job


@pytest.mark.parametrize(("pad_batch", "shapes"), [(False, [(3, 64)]), (True, [(8, 64)])])
def test_fewer_rows_than_a_batch_are_filled_up_on_request(monkeypatch, pad_batch, shapes):
    seen = []

    def no_steps(job, canvas):
        seen.append(canvas.tokens.shape)
        return iter([canvas])

    monkeypatch.setattr(Job, "_blocks", no_steps)
    model = CoDD(nnx.eval_shape(lambda: Transformer(PRESETS["llada-1m"], rngs=nnx.Rngs(0))))
    out = model.generate([[1], [2], [3]], DecodeConfig(steps=8, gen_length=8), batch_size=8, pad_batch=pad_batch)
    assert seen == shapes and len(out.tokens) == 3
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.generate([[1]], DecodeConfig(steps=8, gen_length=8), batch_size=0)
