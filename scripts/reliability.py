"""Inject faults, count the cases that pass, and write RELIABILITY.md: ``make reliability``.

    scripts/reliability.py                 all figures
    scripts/reliability.py kill9 signals   only these; the other figures keep their last results
    scripts/reliability.py --list          list the figures
    scripts/reliability.py --page          only rewrite the page from stored results

Two figures run at a time, in separate processes; figures that measure time run alone. Results are stored in
``benchmarks/reliability/figures.json``, from which the page is generated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
for place in (ROOT / "tests", ROOT):
    sys.path.insert(0, str(place))
os.environ["OMP_NUM_THREADS"] = "1"  # cases fork, and a forked child has no thread pool
RECORD = ROOT / "benchmarks" / "reliability" / "figures.json"
PAGE = ROOT / "RELIABILITY.md"
CASES_PER_PROCESS = 25
LIMIT = 3600  # seconds per case
GROUPS = {  # order of the page; figures in no group come last
    "Stops and resumes": "kill9 fileops crash_loop torn signals twice interrupted power resume "
    "resume-controls looking mutations machines finished changed schedules",
    "Checkpoints": "corruption fallback misfits not-finite formats lost save-cost",
    "Disks, owners, clocks": "disks folders surroundings owners locks clocks networks paths",
    "Numbers and memory": "numerics soak",
    "Sweeps": "sabotage sweepkill sweepstop sweepshare slurm ray",
    "Many ranks": "ranks_same ranks_scores ranks_exact ranks_end",
    "Data": "cut-images odd-images bit-rot bad-sets containers come-and-go downloads data-kills data-workers",
    "Configs": "config missing",
    "Hostile input": "hostile archives escapes",
}
NOT_MEASURED = {  # needs a GPU, a service or more time
    "Resume on a GPU, deterministic mode, with and without CUDA graphs": "no GPU (`pytest -m gpu`)",
    "Real out-of-memory of a GPU in training, sampling and scoring": "no GPU",
    "Soak on a GPU, 100,000 updates": "no GPU",
    "A soak of 2 hours with a kill every minute": "longer than the suite",
    "20 green nights in a row": "no nightly runs yet",
    "Known vulnerabilities of the dependencies": "needs an advisory service",
}


# ---- subprocess: some cases of one figure


def run_cases(key: str, part: int, parts: int) -> None:
    """Run every ``parts``-th case, starting at ``part``; print one JSON line per case."""
    import torch
    from faults.base import Case, Failed, figures, inside

    torch.set_num_threads(1)

    def on_timeout(*_: object) -> None:
        raise AssertionError(f"timed out after {LIMIT} s")

    def result(case: Case, place: Path) -> dict[str, Any]:
        try:
            with inside(place):
                numbers = case.check(place)
        except Failed as error:
            return {"failed": error.count, "why": str(error)}
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            traceback.print_exc()
            return {"failed": case.n, "why": f"{type(error).__name__}: {error}"}
        return {"failed": 0, "numbers": dict(numbers or {})}

    signal.signal(signal.SIGALRM, on_timeout)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep output of cases out of the results
    with tempfile.TemporaryDirectory(prefix="ganlab-faults-") as root:
        os.environ["GANLAB_CACHE"] = str(Path(root) / "cache")
        for i, case in list(enumerate(figures()[key].cases()))[part::parts]:
            place = Path(root) / f"case-{i}"
            place.mkdir()
            signal.alarm(LIMIT)
            outcome = result(case, place)
            signal.alarm(0)
            print(json.dumps({"name": case.name, "n": case.n, **outcome}), file=out, flush=True)
            subprocess.run(["rm", "-rf", str(place)], check=False)


# ---- main process


class Suite:
    """Runs figures in subprocesses of at most CASES_PER_PROCESS cases, ``jobs`` at a time."""

    def __init__(
        self, keys: Sequence[str], jobs: int, on_done: Callable[[str, dict[str, Any]], None]
    ) -> None:
        from faults.base import figures

        self.on_done, self.environment = on_done, environment()
        self.figures, self.jobs = {k: figures()[k] for k in keys}, jobs
        self.rows: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
        self.lock, self.seconds = threading.Lock(), dict.fromkeys(keys, 0.0)

    def run(self) -> None:
        """Run all subprocesses; figures that measure time come last, one at a time."""
        parallel, sequential = list[tuple[str, int, int]](), list[tuple[str, int, int]]()
        for key, figure in self.figures.items():
            parts = max(1, -(-len(figure.cases()) // CASES_PER_PROCESS))
            (sequential if figure.alone else parallel).extend((key, i, parts) for i in range(parts))
        self._serve(parallel, self.jobs)
        self._serve(sequential, 1)

    def _serve(self, pieces: list[tuple[str, int, int]], jobs: int) -> None:
        waiting: Iterator[tuple[str, int, int]] = iter(pieces)

        def serve() -> None:
            while True:
                with self.lock:
                    piece = next(waiting, None)
                if piece is None:
                    return
                self._piece(*piece)

        threads = [threading.Thread(target=serve) for _ in range(jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _piece(self, key: str, part: int, parts: int) -> None:
        start = time.monotonic()
        command = [sys.executable, __file__, "--work", key, str(part), str(parts)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in process.stdout.splitlines()]
        expected = self.figures[key].cases()[part::parts]
        crash = {"why": "the process died"}
        rows += [{"name": c.name, "n": c.n, "failed": c.n, **crash} for c in expected[len(rows) :]]
        failed = [row for row in rows if row["failed"]]
        with self.lock:
            self.rows[key] += rows
            self.seconds[key] += time.monotonic() - start
            piece = f" {part + 1}/{parts}" if parts > 1 else ""
            checks, seconds = sum(row["n"] for row in rows), time.monotonic() - start
            log_progress(f"{key}{piece}: {checks} checks, {len(failed)} cases failed, {seconds:.0f} s")
            for row in failed:
                log_progress(f"  {row['name']}: {row['why'][:300]}")
            if failed:
                log_progress(process.stderr[-3000:])
            if len(self.rows[key]) == len(self.figures[key].cases()):
                self.on_done(key, self._record(key, self.figures[key]) | self.environment)

    def _record(self, key: str, figure: Any) -> dict[str, Any]:
        rows = self.rows[key]
        failures = [f"{row['name']}: {row['why'][:200]}" for row in rows if row["failed"]]
        numbers = [row["numbers"] for row in rows if row.get("numbers")]
        return {
            "points": sum(row["n"] for row in rows),
            "failed": sum(row["failed"] for row in rows),
            "failures": failures,
            "told": figure.told(numbers) if figure.told and numbers else "",
            "seconds": round(self.seconds[key]),
        }


def environment() -> dict[str, Any]:
    """Date, commit, machine and versions of this run."""
    import torch

    from ganlab.runs.provenance import git_revision, now, versions
    from ganlab.system.hardware import device_name

    return {
        "when": now(),
        "git": git_revision(),
        "machine": f"{os.cpu_count()} x {device_name(torch.device('cpu'))}",
        "versions": versions(),
    }


# ---- the page


def page(records: dict[str, dict[str, Any]]) -> str:
    """The content of RELIABILITY.md."""
    from faults.base import figures

    lines = ["", "| Figure | Faults | Checks | Passed | Notes |", "|---|---|--:|--:|---|"]
    for group, keys in grouped(figures()).items():
        lines.append(f"| **{group}** | | | | |")
        lines += [row(figures()[key], records.get(key)) for key in keys]
    lines += ["| **Not measured** | | | | |"]
    lines += [f"| {title} | | | not run | {why} |" for title, why in NOT_MEASURED.items()]
    failed = [f"- `{k}` {failure}" for k, r in records.items() for failure in r["failures"]]
    lines += ["", "## Failures", "", *(failed or ["None."])]
    lines += ["", "## Environments", ""]
    for text, keys in environments(records).items():
        lines.append(f"- {text}: {', '.join(f'`{key}`' for key in keys)}.")
    minutes = sum(r["seconds"] for r in records.values()) / 60
    total = f"Total: {minutes:.0f} process minutes, two processes at a time."
    return "\n".join([*lines, "", f"{total} Seeds are fixed in the cases (`tests/faults/`).", ""])


def grouped(keys: Iterable[str]) -> dict[str, list[str]]:
    """Figures by group, in the order of the page."""
    groups = {group: [k for k in names.split() if k in keys] for group, names in GROUPS.items()}
    rest = [key for key in keys if not any(key in names for names in groups.values())]
    return groups | ({"Others": rest} if rest else {})


def row(figure: Any, record: Mapping[str, Any] | None) -> str:
    """A row of the page's table."""
    faults = ", ".join(ranges(figure.faults))
    if record is None:
        return f"| {figure.title} | {faults} | | not run | |"
    passed = record["points"] - record["failed"]
    return f"| {figure.title} | {faults} | {record['points']:,} | {passed:,} | {record['told']} |"


def environments(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Figures by date, commit, machine and versions of their run."""
    groups: dict[str, list[str]] = {}
    for key, record in records.items():
        versions = ", ".join(f"{k} {v}" for k, v in record["versions"].items() if v)
        text = f"{record['when'][:10]}, commit {record['git']}, {record['machine']}, {versions}"
        groups.setdefault(text, []).append(key)
    return groups


def ranges(numbers: Sequence[int]) -> list[str]:
    """Collapse consecutive numbers: 1, 2, 3, 7 becomes 1-3, 7."""
    groups: list[list[int]] = []
    for n in sorted(numbers):
        if groups and n == groups[-1][-1] + 1:
            groups[-1].append(n)
        else:
            groups.append([n])
    return [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in groups]


def log_progress(text: str) -> None:
    """Print a progress message to stderr."""
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    """Run the suite; returns 1 if any case failed, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("figures", nargs="*")
    parser.add_argument("--list", action="store_true", help="list the figures")
    parser.add_argument("--page", action="store_true", help="only rewrite the page")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default 2)")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        key, part, parts = args.figures
        run_cases(key, int(part), int(parts))
        return 0
    from faults.base import figures

    if unknown := [key for key in args.figures if key not in figures()]:
        parser.error(f"unknown figure {unknown[0]!r}; choose from {', '.join(figures())}")
    if args.list:
        for key, figure in figures().items():
            print(f"{key:16} {figure.title} ({sum(case.n for case in figure.cases())} checks)")
        return 0
    from ganlab.system.files import write_atomic, write_json

    records: dict[str, dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    failed = 0

    def on_done(key: str, record: dict[str, Any]) -> None:
        nonlocal failed
        failed += record["failed"]
        points = record["points"]
        print(f"{key:16} {points - record['failed']} of {points}  {record['told']}", flush=True)
        records[key] = record  # stored after each figure, as the rest may take an hour
        RECORD.parent.mkdir(parents=True, exist_ok=True)
        write_json(RECORD, {key: records[key] for key in figures() if key in records})

    selected = list[str]()
    for key in args.figures or figures():
        if reason := figures()[key].needs():
            log_progress(f"{key}: not run: {reason}")
        else:
            selected.append(key)
    if not args.page:
        Suite(selected, args.jobs, on_done).run()
    write_atomic(PAGE, page({key: records[key] for key in figures() if key in records}).encode())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
