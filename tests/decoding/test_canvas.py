"""Layout and keys of a batch of rows."""

import jax
import numpy as np
import pytest

from codd_jax import decoding

PROMPTS = [[1, 2, 3], [4, 5], [1, 2, 3], [9]]


def test_rows_are_laid_out_with_padding():
    canvas = decoding.make_canvas(PROMPTS, [2, 4, 1, 3], mask_id=99, pad_id=0, bucket=8, rows=5)
    assert canvas.tokens.shape == (5, 8)
    np.testing.assert_array_equal(canvas.tokens[1], [4, 5, 99, 99, 99, 99, 0, 0])
    np.testing.assert_array_equal(canvas.lengths, [5, 6, 4, 4, 1])
    np.testing.assert_array_equal(canvas.done, [False] * 4 + [True])
    np.testing.assert_array_equal(canvas.given[0], [True] * 3 + [False] * 5)


def _data(keys):
    return np.asarray(jax.random.key_data(keys))


def test_keys_depend_on_prompt_occurrence_and_seed_alone():
    keys = _data(decoding.row_keys(PROMPTS, 0))
    assert len(np.unique(keys, axis=0)) == 4
    np.testing.assert_array_equal(_data(decoding.row_keys(PROMPTS[::-1], 0))[[1, 2, 0]], keys[[0, 1, 3]])
    np.testing.assert_array_equal(_data(decoding.row_keys([[9], [4, 5]], 0)), keys[[3, 1]])
    assert (_data(decoding.row_keys(PROMPTS, 1)) != keys).any(axis=1).all()


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompts"),
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1], [2]], {"rows": 1}, "2 prompts do not fit a batch of 1"),
        ([[1], [2]], {"gen_length": [3]}, "1 entries for 2 prompts"),
        ([[1]], {"prompt_lengths": [9]}, "begins at 9 but has 5"),
    ],
)
def test_bad_batches(prompts, options, message):
    with pytest.raises(ValueError, match=message):
        decoding.make_canvas(prompts, **{"gen_length": 4, "mask_id": 9, "pad_id": 0} | options)


def test_generations_are_cut_before_the_first_stop_id():
    canvas = decoding.make_canvas([[1, 7], [2]], 3, mask_id=9, pad_id=0)
    tokens = np.array([[1, 7, 5, 7, 6], [2, 3, 4, 5, 0]], np.int32)
    canvas = canvas.replace(tokens=tokens)
    cut = decoding.generations(canvas, stop_ids=(7,))
    np.testing.assert_array_equal(cut[0], [5])
    np.testing.assert_array_equal(cut[1], [3, 4, 5])
    np.testing.assert_array_equal(decoding.generations(canvas, rows=1)[0], [5, 7, 6])
