"""Circuits: .jpc (or safetensors) → a converted circuit folder, and any circuit → .jpc."""

from __future__ import annotations

import dataclasses

from codd_jax.circuits.hmm import HMM
from codd_jax.io import circuit, jpc
from codd_jax.io.workspace import building
from convert.job import Job


def convert_circuit(job: Job) -> str:
    """Convert a circuit into a folder; returns what to tell the user."""
    info = circuit.describe(job.circuit)
    with building(job.out, job.identity(), overwrite=job.overwrite) as folder:
        circuit.write_circuit(folder, job.circuit, about=job.provenance(), progress=job.progress)
    return f"{describe(info)} → {job.out}"


def convert_to_jpc(job: Job, drop_modulation: bool = False) -> str:
    """Write a circuit as a .jpc file that PyJuice loads; returns what to tell the user.

    Raises:
      ValueError: there is no circuit, or it follows the context and `drop_modulation` does not allow to leave that out.
      FileExistsError: OUT is there already.
    """
    if job.circuit is None:
        raise ValueError(f"{job.source} holds no circuit; --to-jpc writes circuits alone")
    if job.out.exists() and not job.overwrite:
        raise FileExistsError(f"{job.out} exists already; choose another OUT, or pass --overwrite to replace it")
    info = circuit.describe(job.circuit)
    if info.modulation is not None and not drop_modulation:
        raise ValueError(
            f"the circuit {info.modulation}, which .jpc cannot hold; keep it as a circuit folder, or add "
            "--drop-modulation to write the static circuit that is left without it"
        )
    info, arrays = circuit.read_arrays(job.circuit)
    info = dataclasses.replace(info, modulation=None)
    job.out.absolute().parent.mkdir(parents=True, exist_ok=True)
    jpc.write(job.out, HMM(**arrays, length=info.length, normalization=info.normalization))
    return f"{describe(info)} → {job.out}, {job.out.stat().st_size / 1e6:,.1f} MB"


def describe(info: circuit.CircuitInfo) -> str:
    """The circuit in a few words."""
    return (
        f"circuit over {info.length} tokens, {info.num_states} states, vocabulary {info.vocab_size:,}, "
        f"{info.normalization} normalization{'' if info.modulation is None else f', {info.modulation}'}"
    )
