"""What measured rates say of whole runs and grids: the hours of Figure 1's cells, the share of scoring."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.config import compose
from ganlab.errors import GanlabError
from ganlab.sweeps import cost, runner
from ganlab.sweeps import grid as grids

GRID = "sngan_fig1_cifar"
SHIPPED = {
    "SNGAN CNN, setting C": ["+experiment=sngan_cifar", "setting=C"],
    "SNGAN CNN, setting A": ["+experiment=sngan_cifar", "setting=A"],
    "SNGAN ResNet": ["+experiment=sngan_cifar_resnet"],
}


class Rate(NamedTuple):
    """Seconds of an update of a case by a path."""

    net: str
    method: str
    d_steps: int
    path: str
    s: float
    g_batch_size: int


def rates(told: Mapping[str, Any]) -> list[Rate]:
    """The measured ones of full width and batch 64."""
    return [
        Rate(case["net"], case["method"], case["d_steps"], name, row["s"], case["batch_size"])
        for record in told.get("cases", {}).values()
        for case in [record["told"]]
        if case["width"] == 1 and case["batch_size"] == 64
        for name, row in case["paths"].items()
        if "s" in row
    ]


def conclusions(told: Mapping[str, Any]) -> list[str]:
    """Lines; none where nothing was measured at full width."""
    found = rates(told)
    scored = [record["told"] for record in told.get("evaluation", {}).values()]
    lines = [] if not found else [*_grid_lines(found, scored), *_share_lines(found, scored)]
    return [*lines, *_packing_lines(told)]


def _grid_lines(found: list[Rate], scored: list[dict[str, Any]]) -> list[str]:
    """How long the 48 cells of SNGAN's Figure 1 would take one after the other, by path."""
    cells = list(_cells())
    paths = dict.fromkeys(r.path for r in found if r.net == "cnn")
    lines = []
    images = sum(number for *_, number in cells)
    for path in paths:
        mine = {(r.method, r.d_steps): r.s for r in found if r.net == "cnn" and r.path == path}
        total, stand_in = 0.0, dict[str, int]()
        for method, d_steps, steps, _ in cells:
            seconds = mine.get((method, d_steps))
            if seconds is None and ("sn", d_steps) in mine:
                seconds = mine["sn", d_steps]
                stand_in[method] = stand_in.get(method, 0) + 1
            if seconds is None:
                break
            total += seconds * steps
        else:
            more = ""
            if stand_in:
                words = ", ".join(f"{n} {method}" for method, n in stand_in.items())
                more = f" (cells taken to cost what sn does: {words})"
            lines.append(
                f"Figure 1's {len(cells)} cells, {sum(steps for _, _, steps, _ in cells):,} updates, {path}: "
                f"{cost.format_duration(total)} one after the other, without scoring{more}"
            )
    for one in scored:
        if one["net"] == "cnn" and one["width"] == 1 and lines:
            hours = cost.format_duration(images / one["images_per_s"])
            lines.append(f"Figure 1's {images:,} scored images with {one['extractor']}: {hours}")
    return lines


def _cells(*words: str) -> Iterator[tuple[str, int, int, int]]:
    """(method as cases call it, d_steps, updates, images scored) of each cell of the grid."""
    nowhere = str(Path(os.devnull) / "grid")  # a grid of that name under outputs/ is no business of this
    for job in runner.make_plan(GRID, ["metric.extractor=cifar", *words], grids.Scale(), nowhere).jobs:
        images = cost.scored_images(compose.build(job.tree))
        yield "+".join(job.tree["normalization"]) or "none", int(job.tree["d_steps"]), job.steps, images


def _share_lines(found: list[Rate], scored: list[dict[str, Any]]) -> list[str]:
    """What part of a shipped run is scoring, by path and extractor."""
    lines = []
    for name, words in SHIPPED.items():
        for one in scored:
            if one["width"] != 1:
                continue
            try:
                e = compose.build(compose.compose([*words, f"metric.extractor={one['extractor']}"]))
            except GanlabError:  # weights that are not here
                continue
            net = type(e.architecture).__name__.lower()
            images = cost.scored_images(e)
            for r in found:
                if (r.net, r.method, r.d_steps) != (net, "sn", e.d_steps) or one["net"] != net:
                    continue
                training, scoring = e.steps * r.s, images / one["images_per_s"]
                share = scoring / (training + scoring)
                took = cost.format_duration(training), cost.format_duration(scoring)
                lines.append(
                    f"{name}, {e.steps:,} updates, {r.path}: training {took[0]}, "
                    f"{images:,} images scored with {one['extractor']} {took[1]}: {share:.1%}"
                )
    return lines


def _packing_lines(told: Mapping[str, Any]) -> list[str]:
    """The best number of runs at once, by what they do together."""
    records = [record["told"] for record in told.get("packing", {}).values()]
    if not records:
        return []
    best = max(records, key=lambda r: float(r["gain"]))
    if best["runs"] == 1:
        return ["packing: one run at a time is the fastest here"]
    return [
        f"packing: {best['runs']} runs at once in {best['how']} do {best['gain']:.2f} times the updates "
        "of one alone"
    ]
