"""`python -m convert SRC OUT`: recognise what SRC is and write what codd_jax loads fastest."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence

_ABOUT = """\
Convert published checkpoints into folders that codd_jax restores straight into its shardings.

SRC is recognised by what it holds:
  LLaDA or Dream     a HuggingFace folder or hub id: config.json and safetensors
  a circuit          a .jpc file, a folder or hub id with model.jpc, or circuit.safetensors
  both               a folder that PyTorch-CoDD saved: backbone, pc_model.jpc, codd_config.json
OUT appears only when it is complete. An interrupted run leaves OUT.partial: the same command continues it.
Memory stays at about one tensor, whatever the checkpoint's size.
"""

_EXAMPLES = """\
examples:
  python -m convert GSAI-ML/LLaDA-8B-Instruct checkpoints/llada
  python -m convert ./Dream-v0-Instruct-7B checkpoints/dream --dtype bfloat16
  python -m convert GSAI-ML/LLaDA-8B-Instruct checkpoints/llada-d1 --adapter ./d1-lora
  python -m convert il18/llada-gsm-pc checkpoints/llada-gsm-pc
  python -m convert ./unified-codd-folder checkpoints/codd
  python -m convert checkpoints/llada-gsm-pc model.jpc --to-jpc        # back, for PyJuice
"""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m convert",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a folder, a .jpc file, or a hub id (owner/name)")
    parser.add_argument("out", metavar="OUT", help="the folder to make (with --to-jpc, the file)")
    parser.add_argument("--adapter", metavar="DIR", help="a PEFT LoRA adapter (folder or hub id) to merge in")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float32", "keep"), default="keep", help="of the backbone's tensors (keep)"
    )
    parser.add_argument("--to-jpc", action="store_true", help="write SRC's circuit as a .jpc file for PyJuice")
    parser.add_argument(
        "--drop-modulation",
        action="store_true",
        help="with --to-jpc, leave out what makes the circuit follow the context, which .jpc cannot hold",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT, and an interrupted run of another job")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    hub = parser.add_argument_group("hub")
    hub.add_argument("--revision", help="branch, tag or commit of SRC")
    hub.add_argument("--token", help="access token; by default the one of `hf auth login`")
    hub.add_argument("--cache-dir", help="where downloads are kept")
    hub.add_argument("--local-files-only", action="store_true", help="use the cache, ask nobody")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> str:
    """Convert as the command line says; returns what to tell the user."""
    from convert.backbone import convert_backbone
    from convert.bundle import convert_bundle
    from convert.circuit import convert_circuit, convert_to_jpc
    from convert.job import Job

    if options.to_jpc and (options.adapter is not None or options.dtype != "keep"):
        raise ValueError(
            "--to-jpc writes a circuit, in float32; --adapter and --dtype are of backbones: leave them out"
        )
    if options.drop_modulation and not options.to_jpc:
        raise ValueError("--drop-modulation is for --to-jpc alone; circuit folders keep the modulation")
    access = {name: getattr(options, name) for name in ("revision", "token", "cache_dir", "local_files_only")}
    job = Job.find(
        options.source,
        options.out,
        adapter=options.adapter,
        access=access,
        dtype=options.dtype,
        overwrite=options.overwrite,
        progress=not options.quiet,
    )
    if options.to_jpc:
        return convert_to_jpc(job, options.drop_modulation)
    if job.out.suffix == ".jpc":
        raise ValueError(f"{job.out} is to be a folder; add --to-jpc to write a .jpc file, or leave the suffix out")
    if job.backbone is not None and job.circuit is not None:
        return convert_bundle(job)
    return convert_backbone(job) if job.backbone is not None else convert_circuit(job)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 with one message where the input, the disk or the hub is at fault."""
    options = parse(arguments)
    try:
        print(run(options))
    except (ValueError, OSError) as error:
        where = f" ({error.filename})" if isinstance(error, OSError) and error.errno and error.filename else ""
        reason = error.strerror if isinstance(error, OSError) and error.errno and error.strerror else str(error)
        print(f"error: {reason}{where}", file=sys.stderr)
        return 2
    except MemoryError as error:
        print(f"error: {options.source} needs more memory than there is ({error or 'out of memory'})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        return 130
    return 0


def _report(unraisable: sys.UnraisableHookArgs) -> None:
    """Python's own report, unless it is TensorStore telling that a write ended after its save had failed."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _prepare_process() -> None:
    """Conversion computes nothing: keep accelerators free; libraries' remarks to themselves, our warnings short."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    logging.getLogger("absl").setLevel(logging.ERROR)
    sys.unraisablehook = _report
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)


if __name__ == "__main__":
    _prepare_process()
    sys.exit(main())
