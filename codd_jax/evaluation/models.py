"""Weights that are read once and serve every run of a command."""

from typing import Any

import jax

from codd_jax import sharding
from codd_jax.decoding.config import DecodeConfig
from codd_jax.evaluation.options import Options
from codd_jax.io import checkpoint, hub
from codd_jax.loading import load_circuit
from codd_jax.model import CoDD


class Models:
    """The models that runs ask for; only one backbone is held at a time, and the circuits met with it."""

    def __init__(self):
        self._key: Any = None
        self._model: CoDD | None = None
        self._circuits: dict[str | None, Any] = {}

    def get(self, options: Options, decode: DecodeConfig | None = None) -> CoDD:
        """The model of a command line; `decode` takes the place of decoding defaults stored with it.

        Raises:
          ValueError and OSError: as `CoDD.from_pretrained`.
        """
        key = (options.checkpoint, options.adapter, dtype_of(options), options.mesh)
        if key != self._key:
            # The old weights go before the new ones come: two of them would not fit.
            self._model, self._key, self._circuits = None, None, {}
            self._model = CoDD.from_pretrained(
                options.checkpoint,
                circuit=options.circuit,
                adapter=options.adapter,
                defaults=decode,
                dtype=dtype_of(options),
                mesh=sharding.make_mesh(options.mesh),
            )
            self._key, self._circuits[options.circuit] = key, self._model.hmm
            return self._model
        base = self._model
        if options.circuit not in self._circuits:
            self._circuits[options.circuit] = self._load_circuit(options)
        hmm = self._circuits[options.circuit]
        return CoDD(base.backbone, hmm, base.tokenizer, mesh=base.mesh, defaults=decode, sources=base.sources)

    def _load_circuit(self, options: Options) -> Any:
        """The circuit that a run names, or the checkpoint's own, or None."""
        source = options.circuit or own_circuit(options.checkpoint)
        if source is None:
            return None
        return load_circuit(source, dtype="float32", mesh=self._model.mesh)


def own_circuit(source: str) -> Any:
    """The circuit that lies in a checkpoint's folder, None where there is none."""
    return checkpoint.parts(hub.resolve(source))[1]


def dtype_of(options: Options) -> str:
    """The run's dtype: bfloat16 as the paper; float32 on CPUs, which emulate bfloat16 slowly."""
    return options.dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
