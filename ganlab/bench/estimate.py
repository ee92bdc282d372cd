"""Extrapolate measured rates to whole runs and grids: hours of SNGAN's Figure 1, share of scoring."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.config import compose
from ganlab.errors import GanlabError
from ganlab.sweeps import cost, plan
from ganlab.sweeps import grid as grids

GRID = "sngan_fig1_cifar"
SHIPPED = {
    "SNGAN CNN, setting C": ["+experiment=sngan_cifar", "setting=C"],
    "SNGAN CNN, setting A": ["+experiment=sngan_cifar", "setting=A"],
    "SNGAN ResNet": ["+experiment=sngan_cifar_resnet"],
}


class Rate(NamedTuple):
    """Seconds ``s`` per update of a case by a path."""

    net: str
    method: str
    d_steps: int
    path: str
    s: float
    g_batch_size: int


def rates(measurements: Mapping[str, Any]) -> list[Rate]:
    """Measured rates at full width and batch size 64."""
    return [
        Rate(case["net"], case["method"], case["d_steps"], name, row["s"], case["batch_size"])
        for record in measurements.get("cases", {}).values()
        for case in [record["told"]]
        if case["width"] == 1 and case["batch_size"] == 64
        for name, row in case["paths"].items()
        if "s" in row
    ]


def conclusions(measurements: Mapping[str, Any]) -> list[str]:
    """Conclusions, one line each; empty if nothing was measured at full width."""
    measured = rates(measurements)
    evaluations = [record["told"] for record in measurements.get("evaluation", {}).values()]
    lines = (
        [] if not measured else [*_grid_lines(measured, evaluations), *_share_lines(measured, evaluations)]
    )
    return [*lines, *_packing_lines(measurements)]


def _grid_lines(measured: list[Rate], evaluations: list[dict[str, Any]]) -> list[str]:
    """Estimated duration of the 48 cells of SNGAN's Figure 1, run sequentially, by path."""
    cells = list(_cells())
    paths = dict.fromkeys(r.path for r in measured if r.net == "cnn")
    lines = []
    images = sum(number for *_, number in cells)
    for path in paths:
        by_method = {(r.method, r.d_steps): r.s for r in measured if r.net == "cnn" and r.path == path}
        total, substitutes = 0.0, dict[str, int]()
        for method, d_steps, steps, _ in cells:
            seconds = by_method.get((method, d_steps))
            if seconds is None and ("sn", d_steps) in by_method:
                seconds = by_method["sn", d_steps]
                substitutes[method] = substitutes.get(method, 0) + 1
            if seconds is None:
                break
            total += seconds * steps
        else:
            note = ""
            if substitutes:
                methods = ", ".join(f"{n} {method}" for method, n in substitutes.items())
                note = f" (assuming the cost of sn for: {methods})"
            lines.append(
                f"Figure 1's {len(cells)} cells, {sum(steps for _, _, steps, _ in cells):,} updates, {path}: "
                f"{cost.format_duration(total)} sequentially, without scoring{note}"
            )
    for evaluation in evaluations:
        if evaluation["net"] == "cnn" and evaluation["width"] == 1 and lines:
            hours = cost.format_duration(images / evaluation["images_per_s"])
            lines.append(f"Figure 1's {images:,} scored images with {evaluation['extractor']}: {hours}")
    return lines


def _cells(*overrides: str) -> Iterator[tuple[str, int, int, int]]:
    """(method as named in cases, d_steps, updates, scored images) of each cell of the grid."""
    nowhere = str(Path(os.devnull) / "grid")  # ignore an existing grid under outputs/
    for job in plan.plan_grid(GRID, ["metric.extractor=cifar", *overrides], grids.Scale(), nowhere).jobs:
        images = cost.scored_images(compose.build(job.tree))
        yield "+".join(job.tree["normalization"]) or "none", int(job.tree["d_steps"]), job.steps, images


def _share_lines(measured: list[Rate], evaluations: list[dict[str, Any]]) -> list[str]:
    """Share of scoring in the shipped runs, by path and extractor."""
    lines = []
    for name, overrides in SHIPPED.items():
        for evaluation in evaluations:
            if evaluation["width"] != 1:
                continue
            try:
                e = compose.build(
                    compose.compose([*overrides, f"metric.extractor={evaluation['extractor']}"])
                )
            except GanlabError:  # the extractor's weights are not installed
                continue
            net = type(e.architecture).__name__.lower()
            images = cost.scored_images(e)
            for r in measured:
                if (r.net, r.method, r.d_steps) != (net, "sn", e.d_steps) or evaluation["net"] != net:
                    continue
                training, scoring = e.steps * r.s, images / evaluation["images_per_s"]
                share = scoring / (training + scoring)
                durations = cost.format_duration(training), cost.format_duration(scoring)
                lines.append(
                    f"{name}, {e.steps:,} updates, {r.path}: training {durations[0]}, "
                    f"{images:,} images scored with {evaluation['extractor']} {durations[1]}: {share:.1%}"
                )
    return lines


def _packing_lines(measurements: Mapping[str, Any]) -> list[str]:
    """The number of concurrent runs with the highest total throughput."""
    records = [record["told"] for record in measurements.get("packing", {}).values()]
    if not records:
        return []
    best = max(records, key=lambda r: float(r["gain"]))
    if best["runs"] == 1:
        return ["packing: one run at a time is fastest on this machine"]
    return [
        f"packing: {best['runs']} concurrent runs in {best['how']} reach {best['gain']:.2f} times the "
        "throughput of a single run"
    ]
