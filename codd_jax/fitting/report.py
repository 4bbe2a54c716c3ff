"""Whether a program fits, as text for people: the reports of `fitting` and of `training.joint_fitting`."""

from __future__ import annotations

from typing import Any

GIB = 2**30
# Keys of a report → what they are called; those that a report lacks are left out.
_MEMORY = {
    "weight_bytes": "weights",
    "circuit_bytes": "circuit",
    "trained_bytes": "trained weights",
    "optimiser_bytes": "optimiser's state",
    "frozen_bytes": "frozen weights",
    "gradient_bytes": "gradients",
    "working_bytes": "activations, estimated",
    "estimate_bytes": "all, estimated",
}


def render(report: dict[str, Any]) -> str:
    """The report as text."""
    circuit, memory = report["circuit"], report["memory_bytes"]
    sizes = "no circuit"
    if circuit:
        sizes = (
            f"circuit of {circuit['num_states']} states, {circuit['vocab_size']} tokens, windows of {circuit['length']}"
        )
    lines = [
        f"{report['backbone']}: {report['weights'] / 1e9:.3g} billion weights in {report['dtype']}; {sizes}",
        _work(report),
        f"{report['chip']}: {report['devices']} device(s)"
        + (f" of {memory / GIB:.4g} GiB" if memory else "")
        + f", mesh {report['mesh']}",
        "",
        *_memory_lines(report),
        "",
        *_cost_lines(report),
        "",
        *_verdict(report),
    ]
    return "\n".join(lines)


def _work(report: dict[str, Any]) -> str:
    """What the program does."""
    if "train" not in report:
        return (
            f"{report['batch']} row(s) of {report['length']} positions, coupling {report['coupling']}, "
            f"cache {report['cache']}"
        )
    if report["train"] == "circuit":
        return f"circuit training, rule {report['rule']}, {report['batch']} windows a step on stored hidden states"
    return (
        f"fine-tuning, train {report['train']}: {report['trained'] / 1e6:,.4g} million weights trained in "
        f"{report['param_dtype']}; {report['batch']} row(s) of {report['length']} positions and {report['windows']} "
        f"windows in {report['accumulate']} part(s)"
    )


def _memory_lines(report: dict[str, Any]) -> list[str]:
    rows = [(name, report[key]) for key, name in _MEMORY.items() if key in report]
    if compiled := report["compiled"]:
        rows += [
            ("arguments, compiled", compiled["argument_bytes"]),
            ("working memory", compiled["temporary_bytes"]),
            ("code", compiled["code_bytes"]),
            ("peak", compiled["peak_bytes"]),
        ]
    return ["MiB per device"] + [f"  {name:<22}{size / 2**20:>12,.1f}" for name, size in rows]


def _cost_lines(report: dict[str, Any]) -> list[str]:
    timed = report["floors"] is not None
    lines = [
        f"{'a step, per device':<24}{'GFLOP':>12}{'MB':>12}" + (f"{'arithmetic':>14}{'memory':>12}" if timed else "")
    ]
    for name, part in report["parts"].items():
        line = f"  {name:<22}{part['flops'] / 1e9:>12,.2f}{part['bytes'] / 1e6:>12,.1f}"
        lines.append(line + (f"{1e3 * part['arithmetic']:>11.3f} ms{1e3 * part['memory']:>9.3f} ms" if timed else ""))
    if timed:
        floors = {name: 1e3 * seconds for name, seconds in report["floors"].items()}
        lines.append(
            f"floors: arithmetic {floors['arithmetic']:.3g} ms, memory {floors['memory']:.3g} ms, the larger of both "
            f"part by part {floors['together']:.3g} ms; links {floors['links']:.3g} ms on top"
        )
    if layer := report["layer"]:
        lines.append(
            f"one layer: {layer['xla_flops'] / 1e9:,.2f} GFLOP by XLA's count, {layer['analytic_flops'] / 1e9:,.2f} by "
            f"ours (ratio {layer['ratio']:.4f})"
        )
    if compiled := report["compiled"]:
        for kind, (number, size) in (compiled["collectives"] or {}).items():
            lines.append(f"{kind}: {number} in the program, {size / 1e6:,.2f} MB in all")
    return lines


def _verdict(report: dict[str, Any]) -> list[str]:
    compiled = report["compiled"]
    said = {True: "fits", False: "does not fit", None: "fits, if the memory suffices: its size is not known"}
    how = "by estimate"
    if report["compiler"]:
        how = f"the compiler: {report['compiler']}"
    elif compiled:
        how = f"compiled in {compiled['seconds']:.0f} s"
    lines = [f"mesh {report['mesh']} {said[report['fits']]} ({how})"]
    if not compiled and not report["compiler"]:
        lines += [
            f"  {each['mesh']:<20}{each['bytes'] / GIB:>8.2f} GiB per device, "
            + ("fits" if each["fits"] else "does not fit")
            + (f", {1e3 * each['seconds']:.3g} ms a step at least" if each["seconds"] is not None else "")
            for each in report["meshes"]
        ]
    best = report["suggested_mesh"]
    if best is None and report["devices_needed"]:
        lines.append(f"no mesh of these devices holds it; {report['devices_needed']} of this kind would")
    elif best is None:
        lines.append("no number of such devices holds it at this batch and length")
    elif best != report["mesh"]:
        lines.append(f"suggested: --mesh {best}")
    return lines
