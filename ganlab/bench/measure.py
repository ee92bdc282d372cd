"""Measure a case: time its paths in turn, count operations, and find the peak FLOP rate."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ganlab.bench import cases
from ganlab.bench.cases import Case, Path_
from ganlab.bench.turns import Child, request_all
from ganlab.errors import ConfigError, GanlabError
from ganlab.sweeps.cost import in_turn
from ganlab.sweeps.process import print_status

MAX_UPDATES = 2000  # per block
WARMUP_UPDATES = 8  # updates until graphs are recorded and compilation is done
PEAK_S = 0.6  # seconds per turn and precision spent on measuring the peak FLOP rate


@dataclass(frozen=True)
class Setup:
    """Settings shared by all cases. ``device``: resolved; ``threads``: per path; ``block``: seconds."""

    device: str
    cuda: bool
    threads: int
    rounds: int
    block: float
    precisions: list[str]
    engines: list[str]
    plain: bool
    config_dirs: tuple[str, ...] = ()

    def paths(self, case: Case) -> list[Path_]:
        """The plain loop first, if it implements the method; then ganlab's paths by engine."""
        ganlab_paths = [Path_("ganlab", p, e) for e in self.engines for p in self.precisions]
        if not self.plain or case.method not in cases.METHODS:
            return ganlab_paths
        return [Path_("plain", "tf32" if self.cuda else "fp32"), *ganlab_paths]

    def child(self, name: str) -> Child:
        return Child(name, self.threads, self.config_dirs)


def spec(case: Case, path: Path_, setup: Setup) -> dict[str, Any]:
    """The ``start`` request of a path."""
    message: dict[str, Any] = {
        "kind": path.kind,
        "precision": path.precision,
        "device": setup.device,
        "threads": setup.threads,
        "resolution": case.resolution,
        "batch_size": case.batch_size,
        "words": case.overrides(path, setup.device, setup.threads),
    }
    if path.kind == "plain":
        message |= {"script": str(cases.script()), "plain": case.plain()}
    return message


def measure(case: Case, setup: Setup) -> dict[str, Any]:
    """Measure a case. The record has ``paths`` (a row each), ``peak`` (FLOP/s by precision) and ``flops``.

    A path that fails (out of memory, missing device) has an ``error`` instead of numbers. Raises GanlabError
    if all paths fail.
    """
    counts = count_work(case, setup)
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        children: dict[str, Child] = {}
        for path in setup.paths(case):
            row: dict[str, Any] = {"kind": path.kind, "precision": path.precision, "engine": path.engine}
            rows[path.name] = row | counts.get(path.kind, {})
            child = setup.child(f"{case.name} {path.name}")
            try:
                stack.enter_context(child)
                rows[path.name] = child.request("start", **spec(case, path, setup)) | rows[path.name]
                children[path.name] = child
            except GanlabError as error:
                if isinstance(error, ConfigError):
                    raise
                rows[path.name]["error"] = str(error.mistakes[0])
                print_status(f"  {path.name}: {error.mistakes[0]}")
        if not children:
            raise GanlabError(case.name, "no path can run on this machine", "see the errors above")
        sizes = {
            name: calibrate(child, setup, rows[name]["first_s"] - rows[name]["build_s"])
            for name, child in children.items()
        }
        peak_child = stack.enter_context(setup.child("peak"))
        turns = _in_turn(children, sizes, peak_child, setup)
        for name, child in children.items():
            rows[name] |= _numbers(turns[name], sizes[name]) | child.request("memory")
    peaks_found = [rates for rates in turns["peak"] if rates]
    peak = {p: max(rates[p] for rates in peaks_found) for p in peaks_found[0]}
    base = next((n for n, row in rows.items() if row["kind"] == "plain" and n in children), None)
    fewest = min(row["flops"] for row in rows.values() if "flops" in row)
    for name in children:
        row = rows[name]
        row["floor_s"] = fewest / peak[row["precision"]]
        row["share_of_floor"] = row["floor_s"] / row["s"]
        if base is not None:
            row |= _ratios(turns[base], turns[name], sizes[base], sizes[name])
    return {**case.as_dict(), "paths": rows, "peak": peak, "flops": fewest, "ratio_to": base}


def calibrate(child: Child, setup: Setup, first: float = 0.0) -> int:
    """Number of updates that take about one block; ``first``: seconds of the first update."""
    if first > 2 * setup.block and not setup.cuda:  # slow updates: the first one was warm-up enough
        return 1
    updates = WARMUP_UPDATES if setup.cuda else 1
    seconds = float(child.request("run", updates=updates)["wall"]) / updates
    if seconds * 20 < setup.block:  # too short to time
        seconds = float(child.request("run", updates=20)["wall"]) / 20
    return max(1, min(MAX_UPDATES, math.ceil(setup.block / seconds - 0.5)))


def _in_turn(
    children: dict[str, Child], sizes: dict[str, int], peaks: Child, setup: Setup
) -> dict[str, list[dict[str, Any]]]:
    def block(name: str) -> Any:
        return lambda: children[name].request("run", updates=sizes[name])

    def products() -> Any:
        precisions = sorted({*setup.precisions, "tf32" if setup.cuda else "fp32"})
        return peaks.request(
            "peak", device=setup.device, precisions=precisions, threads=setup.threads, seconds=PEAK_S
        )

    # calibration was the warm-up, so ``in_turn`` needs none
    blocks = {**{name: block(name) for name in children}, "peak": products}
    return in_turn(blocks, setup.rounds, warm=0)


def _numbers(turns: Sequence[dict[str, Any]], updates: int) -> dict[str, Any]:
    """Seconds per update: median and range over rounds, and CPU time."""
    wall = [turn["wall"] / updates for turn in turns]
    return {
        "s": statistics.median(wall),
        "least_s": min(wall),
        "most_s": max(wall),
        "cpu_s": statistics.median(turn["cpu"] / updates for turn in turns),
        "updates_per_s": 1 / statistics.median(wall),
        "updates": updates,
        "rounds": len(turns),
        "used": turns[-1]["used"],
        "why": turns[-1]["why"],
    }


def _ratios(base: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], n: int, m: int) -> dict[str, Any]:
    """Speed relative to the base, round by round, and by CPU time, which is less sensitive to load."""
    ratios = [(b["wall"] / n) / (a["wall"] / m) for b, a in zip(base, own, strict=True)]
    cpu = statistics.median((b["cpu"] / n) / (a["cpu"] / m) for b, a in zip(base, own, strict=True))
    return {
        "ratio": statistics.median(ratios),
        "ratio_least": min(ratios),
        "ratio_most": max(ratios),
        "ratio_cpu": cpu,
    }


def count_work(case: Case, setup: Setup) -> dict[str, dict[str, Any]]:
    """Count operations and FLOPs of an update by kind of path, on a CPU."""
    plain_path = Path_("plain", "fp32")
    kinds = [p.kind for p in setup.paths(case)]
    message = spec(case, Path_("ganlab", "fp32"), setup)
    if "plain" in kinds:
        message |= spec(case, plain_path, setup) | {"words": message["words"]}
    with setup.child(f"{case.name} counted") as child:
        return child.request("count", **message | {"kinds": sorted(set(kinds))})


def measure_packing(case: Case, setup: Setup, path: Path_, runs: int, processes: bool) -> dict[str, Any]:
    """Measure ``runs`` concurrent runs, in turn with a single run that has all threads.

    They run in separate processes, which share the CPU threads, or as lanes of one process. ``s``: seconds
    per update, over all runs; ``gain``: total throughput relative to the single run.
    """
    alone = spec(case, path, setup)
    threads = max(1, setup.threads // runs) if processes else setup.threads
    overrides = [w for w in alone["words"] if not w.startswith("threads=")]
    shared = alone | {"words": [*overrides, f"threads={threads}"], "lanes": 1 if processes else runs}
    with contextlib.ExitStack() as stack:
        single = stack.enter_context(setup.child(f"{case.name} alone"))
        single.request("start", **alone)
        several = []
        for _ in range(runs if processes else 1):
            several.append(stack.enter_context(Child(f"{case.name} x{runs}", threads, setup.config_dirs)))
            several[-1].request("start", **shared)
        n, m = calibrate(single, setup), min(calibrate(child, setup) for child in several)
        blocks = {
            "one": lambda: request_all([single], "run", updates=n)[0] / n,
            "all": lambda: request_all(several, "run", updates=m)[0] / m / runs,
        }
        seconds = in_turn(blocks, setup.rounds, warm=0)
        memory = [child.request("memory") for child in several]
    gains = [a / b for a, b in zip(seconds["one"], seconds["all"], strict=True)]
    return {
        "runs": runs,
        "how": "processes" if processes else "lanes",
        "path": path.name,
        "threads": threads,
        "updates": m,
        "s": statistics.median(seconds["all"]),
        "least_s": min(seconds["all"]),
        "most_s": max(seconds["all"]),
        "gain": statistics.median(gains),
        "gain_least": min(gains),
        "gain_most": max(gains),
        **{key: sum(row[key] for row in memory) for key in memory[0]},
    }
