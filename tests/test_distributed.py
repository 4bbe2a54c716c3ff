"""How processes are described, and what their helpers do where there is one process only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from codd_jax import distributed
from codd_jax.sharding import batch_sharding, make_mesh


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ((None, 2, None), "need the first process's address"),
        (("host", 2, 0), "needs the form HOST:PORT"),
        (("host:port", 2, 0), "needs the form HOST:PORT"),
        (("host:1234", 2, None), "--num_processes and --process_id beside it"),
        (("host:1234", 2, 2), "not among the processes 0 to 1"),
        (("auto", 2, None), "finds out by itself"),
    ],
)
def test_bad_descriptions_are_refused_before_anyone_is_waited_for(description, message):
    with pytest.raises(ValueError, match=message):
        distributed.initialize(*description)


def test_one_process_needs_nobody():
    distributed.initialize()
    distributed.check_mesh(None)
    assert distributed.is_first()
    assert distributed.from_first(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(FileNotFoundError, match="gone"):
        distributed.from_first(lambda: (_ for _ in ()).throw(FileNotFoundError("gone")))
    fetched = distributed.fetch({"x": jnp.arange(3)})
    assert isinstance(fetched["x"], np.ndarray)
    sharding = batch_sharding(make_mesh("data:1", jax.devices()[:1]))
    placed = distributed.place({"x": np.arange(4)}, sharding)
    assert placed["x"].sharding == sharding
