"""A case measured: its paths in turn, the work counted, the peak found; the numbers of one row each."""

from __future__ import annotations

import contextlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ganlab.bench import cases
from ganlab.bench.cases import Case, Path_
from ganlab.bench.turns import Child, together
from ganlab.errors import ConfigError, GanlabError
from ganlab.sweeps.cost import in_turn
from ganlab.sweeps.process import print_status

MOST = 2000  # updates in a block
RECORDED = 8  # updates until a graph is recorded and replayed, and a compiler is done
PEAK_S = 0.6  # seconds a turn, and for each precision, of products and convolutions


@dataclass(frozen=True)
class Setup:
    """What all cases of a measurement share. ``device``: found; ``threads``: of each path."""

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
        """The plain loop first, where it knows the method; then ganlab's, engine by engine."""
        found = [Path_("ganlab", p, e) for e in self.engines for p in self.precisions]
        if not self.plain or case.method not in cases.METHODS:
            return found
        return [Path_("plain", "tf32" if self.cuda else "fp32"), *found]

    def child(self, name: str) -> Child:
        return Child(name, self.threads, self.config_dirs)


def spec(case: Case, path: Path_, setup: Setup) -> dict[str, Any]:
    """What a child is told to start a path."""
    told: dict[str, Any] = {
        "kind": path.kind,
        "precision": path.precision,
        "device": setup.device,
        "threads": setup.threads,
        "resolution": case.resolution,
        "batch_size": case.batch_size,
        "words": case.words(path, setup.device, setup.threads),
    }
    if path.kind == "plain":
        told |= {"script": str(cases.script()), "plain": case.plain()}
    return told


def measure(case: Case, setup: Setup) -> dict[str, Any]:
    """The case's record: ``paths``, a row each, ``peak`` (FLOP/s by precision) and ``flops``.

    A path that cannot be had here (no memory, no such device) has ``error`` and no numbers. Raises
    GanlabError if none can.
    """
    counts = counted(case, setup)
    rows: dict[str, dict[str, Any]] = {}
    with contextlib.ExitStack() as stack:
        children: dict[str, Child] = {}
        for path in setup.paths(case):
            row: dict[str, Any] = {"kind": path.kind, "precision": path.precision, "engine": path.engine}
            rows[path.name] = row | counts.get(path.kind, {})
            child = setup.child(f"{case.name} {path.name}")
            try:
                stack.enter_context(child)
                rows[path.name] = child.ask("start", **spec(case, path, setup)) | rows[path.name]
                children[path.name] = child
            except GanlabError as error:
                if isinstance(error, ConfigError):
                    raise
                rows[path.name]["error"] = str(error.mistakes[0])
                print_status(f"  {path.name}: {error.mistakes[0]}")
        if not children:
            raise GanlabError(case.name, "no path of it can be played here", "see the lines above")
        sizes = {
            name: calibrated(child, setup, rows[name]["first_s"] - rows[name]["build_s"])
            for name, child in children.items()
        }
        peaks = stack.enter_context(setup.child("peak"))
        told = _in_turn(children, sizes, peaks, setup)
        for name, child in children.items():
            rows[name] |= _numbers(told[name], sizes[name]) | child.ask("memory")
    found = [one for one in told["peak"] if one]
    peak = {p: max(one[p] for one in found) for p in found[0]}
    base = next((n for n, row in rows.items() if row["kind"] == "plain" and n in children), None)
    fewest = min(row["flops"] for row in rows.values() if "flops" in row)
    for name in children:
        row = rows[name]
        row["floor_s"] = fewest / peak[row["precision"]]
        row["share_of_floor"] = row["floor_s"] / row["s"]
        if base is not None:
            row |= _ratios(told[base], told[name], sizes[base], sizes[name])
    return {**case.told(), "paths": rows, "peak": peak, "flops": fewest, "ratio_to": base}


def calibrated(child: Child, setup: Setup, first: float = 0.0) -> int:
    """Updates that take about a block's time, found by playing some; ``first``: seconds of the first one."""
    if first > 2 * setup.block and not setup.cuda:  # long ones: the first has warmed up what there is
        return 1
    updates = RECORDED if setup.cuda else 1
    took = float(child.ask("run", updates=updates)["wall"]) / updates
    if took * 20 < setup.block:  # too short to tell
        took = float(child.ask("run", updates=20)["wall"]) / 20
    return max(1, min(MOST, math.ceil(setup.block / took - 0.5)))


def _in_turn(
    children: dict[str, Child], sizes: dict[str, int], peaks: Child, setup: Setup
) -> dict[str, list[dict[str, Any]]]:
    def block(name: str) -> Any:
        return lambda: children[name].ask("run", updates=sizes[name])

    def products() -> Any:
        wanted = sorted({*setup.precisions, "tf32" if setup.cuda else "fp32"})
        return peaks.ask(
            "peak", device=setup.device, precisions=wanted, threads=setup.threads, seconds=PEAK_S
        )

    # calibrating was the round that warms up: ``in_turn`` would begin with one more
    blocks = {**{name: block(name) for name in children}, "peak": products}
    return in_turn(blocks, setup.rounds, warm=0)


def _numbers(told: Sequence[dict[str, Any]], updates: int) -> dict[str, Any]:
    """Seconds of an update: the median of the rounds, their range, and of the processor."""
    wall = [one["wall"] / updates for one in told]
    return {
        "s": statistics.median(wall),
        "least_s": min(wall),
        "most_s": max(wall),
        "cpu_s": statistics.median(one["cpu"] / updates for one in told),
        "updates_per_s": 1 / statistics.median(wall),
        "updates": updates,
        "rounds": len(told),
        "used": told[-1]["used"],
        "why": told[-1]["why"],
    }


def _ratios(base: Sequence[dict[str, Any]], mine: Sequence[dict[str, Any]], n: int, m: int) -> dict[str, Any]:
    """How many times as fast as the base, round by round; and by processor time, which load moves less."""
    found = [(b["wall"] / n) / (a["wall"] / m) for b, a in zip(base, mine, strict=True)]
    cpu = statistics.median((b["cpu"] / n) / (a["cpu"] / m) for b, a in zip(base, mine, strict=True))
    return {
        "ratio": statistics.median(found),
        "ratio_least": min(found),
        "ratio_most": max(found),
        "ratio_cpu": cpu,
    }


def counted(case: Case, setup: Setup) -> dict[str, dict[str, Any]]:
    """Operations and FLOPs of an update by kind of path, counted on a CPU."""
    plain = Path_("plain", "fp32")
    kinds = [p.kind for p in setup.paths(case)]
    told = spec(case, Path_("ganlab", "fp32"), setup)
    if "plain" in kinds:
        told |= spec(case, plain, setup) | {"words": told["words"]}
    with setup.child(f"{case.name} counted") as child:
        return child.ask("count", **told | {"kinds": sorted(set(kinds))})


def packed(case: Case, setup: Setup, path: Path_, runs: int, processes: bool) -> dict[str, Any]:
    """``runs`` at once, in turn with one alone that has all threads.

    In as many processes, which share the CPU threads, or as lanes of one process. ``s``: seconds for each
    update of any of them; ``gain``: how many times the updates of one alone they do together.
    """
    alone = spec(case, path, setup)
    threads = max(1, setup.threads // runs) if processes else setup.threads
    words = [w for w in alone["words"] if not w.startswith("threads=")]
    shared = alone | {"words": [*words, f"threads={threads}"], "lanes": 1 if processes else runs}
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(setup.child(f"{case.name} alone"))
        one.ask("start", **alone)
        several = []
        for _ in range(runs if processes else 1):
            several.append(stack.enter_context(Child(f"{case.name} x{runs}", threads, setup.config_dirs)))
            several[-1].ask("start", **shared)
        n, m = calibrated(one, setup), min(calibrated(child, setup) for child in several)
        blocks = {
            "one": lambda: together([one], "run", updates=n)[0] / n,
            "all": lambda: together(several, "run", updates=m)[0] / m / runs,
        }
        took = in_turn(blocks, setup.rounds, warm=0)
        memory = [child.ask("memory") for child in several]
    gains = [a / b for a, b in zip(took["one"], took["all"], strict=True)]
    return {
        "runs": runs,
        "how": "processes" if processes else "lanes",
        "path": path.name,
        "threads": threads,
        "updates": m,
        "s": statistics.median(took["all"]),
        "least_s": min(took["all"]),
        "most_s": max(took["all"]),
        "gain": statistics.median(gains),
        "gain_least": min(gains),
        "gain_most": max(gains),
        **{key: sum(told[key] for told in memory) for key in memory[0]},
    }
