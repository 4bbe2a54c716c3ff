"""Measure a conversion: peak anonymous memory, time, and whether a run that was killed half-way continues.

python -m experiments.random_checkpoint big --preset llada-8b --layers 2
python -m experiments.conversion_memory big --output_dir runs/conversion
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from codd_jax.io.tensors import SafetensorsFolder


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a running process (Linux); 0 once it has ended."""
    try:
        found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def convert(source: str, out: str | Path, *flags: str, kill_at_bytes: int | None = None) -> dict[str, float]:
    """Run `python -m convert` and poll its memory; SIGKILL it once that much has been written."""
    out = Path(out).absolute()
    start, peak = time.monotonic(), 0
    process = subprocess.Popen([sys.executable, "-m", "convert", source, str(out), "--quiet", *flags])
    while process.poll() is None:
        peak = max(peak, anonymous_bytes(process.pid))
        if kill_at_bytes is not None and folder_bytes(out.with_name(out.name + ".partial")) >= kill_at_bytes:
            process.kill()
        time.sleep(0.01)
    return {"code": process.returncode, "seconds": round(time.monotonic() - start, 2), "peak_rss_anon_mb": peak / 1e6}


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder that may be changing."""
    total = 0
    for place, _, names in os.walk(folder):  # unlike rglob, passes over folders that are renamed or removed meanwhile
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def main() -> None:
    """Convert once through, once killed half-way and continued; print and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SRC")
    parser.add_argument("--output_dir", default="runs/conversion")
    parser.add_argument("--keep", action="store_true", help="keep the converted folders")
    parser.add_argument("flags", nargs="*", help="further flags of python -m convert, after --")
    options = parser.parse_args()
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, object] = {"source": options.source}
    size = None
    if Path(options.source).is_dir():
        tensors = SafetensorsFolder(options.source)
        sizes = [tensors.dtype(name).itemsize * math.prod(tensors.shape(name)) for name in tensors.names()]
        size = sum(sizes)
        report |= {"checkpoint_mb": size / 1e6, "largest_tensor_mb": max(sizes) / 1e6}
    report["through"] = convert(options.source, folder / "through", *options.flags)
    if size is not None:
        report["killed"] = convert(options.source, folder / "continued", *options.flags, kill_at_bytes=size // 2)
        report["killed_left"] = sorted(file.name for file in folder.glob("continued*"))
        report["continued"] = convert(options.source, folder / "continued", *options.flags)
    if not options.keep:
        for name in ("through", "continued"):
            shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "memory.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    print(folder / "memory.json")


if __name__ == "__main__":
    main()
