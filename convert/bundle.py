"""A folder with a backbone and its circuit (as PyTorch-CoDD saves them together) → one bundle."""

from __future__ import annotations

from codd_jax.io import circuit
from codd_jax.io.checkpoint import decode_defaults, open_backbone
from codd_jax.io.workspace import building, write_marker
from convert import backbone as backbones
from convert import circuit as circuits
from convert.job import Job, is_finished


def convert_bundle(job: Job) -> str:
    """Convert backbone and circuit into one folder; returns what to tell the user.

    Raises:
      ValueError: the circuit is over another vocabulary or mask id than the backbone; both are named.
    """
    opened = open_backbone(job.backbone, adapter=job.adapter)
    info = circuit.describe(job.circuit)
    try:
        info.check_fit(opened.config)
    except ValueError as error:
        raise ValueError(f"{job.source}: {error}") from error
    with building(job.out, job.identity(), overwrite=job.overwrite) as folder:
        for name in ("backbone", "circuit"):
            (folder / name).mkdir(exist_ok=True)
        if not is_finished(folder / "backbone"):
            backbones.write_into(folder / "backbone", job, opened)
        if not is_finished(folder / "circuit"):
            circuit.write_circuit(folder / "circuit", job.circuit, about=job.provenance(), progress=job.progress)
        about = {"decoding": defaults} if (defaults := decode_defaults(job.found)) else {}
        write_marker(folder, "bundle", **job.provenance(), **about)
    return f"{backbones.describe(opened)}; {circuits.describe(info)} → {job.out}"
