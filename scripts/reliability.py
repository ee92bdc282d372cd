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
from collections.abc import Callable, Iterator, Sequence
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
INTRODUCTION = """\
Faults are injected into real processes (kills, signals, full disks, damaged and hostile files), and the
outcome is compared with that of an undisturbed run. `make reliability` runs all cases (`tests/faults/`) and
writes this page; `ARGS="kill9 disks"` runs two rows. `make test-slow` runs about thirty of the cases."""
NOT_TRIED = """\
Not tried: anything on a GPU (resume with recorded graphs, real out-of-memory; `pytest -m gpu`), soaks of
hours, known vulnerabilities of the dependencies. The ordinary tests try failing archives, images, data sets,
downloads and workers (`tests/data`) and checkpoints of another run or config (`tests/cli/test_check.py`)."""


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
            "summary": figure.summary(numbers) if figure.summary and numbers else "",
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

    lines = [
        "# Reliability",
        "",
        INTRODUCTION,
        "",
        "| Promise, and how it was tried | Checks | Failed |",
        "|---|--:|--:|",
    ]
    for key, figure in figures().items():
        record = records.get(key)
        note = f" ({record['summary']})" if record and record["summary"] else ""
        counts = f"{record['points']:,} | {record['failed']}" if record else "not run |"
        lines.append(f"| `{key}` {figure.promise}{note} | {counts} |")
    failed = [f"- `{k}` {failure}" for k, r in records.items() for failure in r["failures"]]
    lines += ["", *(["Failures:", "", *failed, ""] if failed else []), NOT_TRIED, ""]
    lines += [f"{text}: {', '.join(keys)}." for text, keys in environments(records).items()]
    now = {key: sum(case.n for case in figure.cases()) for key, figure in figures().items()}
    if stale := [key for key in records if key in now and records[key]["points"] != now[key]]:
        lines.append(f"The cases have changed since: {', '.join(stale)}.")
    return "\n".join([*lines, ""])


def environments(records: dict[str, dict[str, Any]]) -> dict[str, list[str]]:
    """Figures by date, commit, machine and versions of their run."""
    groups: dict[str, list[str]] = {}
    for key, record in records.items():
        versions = ", ".join(f"{k} {record['versions'][k]}" for k in ("python", "torch"))
        text = f"Run {record['when'][:10]} at commit {record['git']} on {record['machine']}, {versions}"
        groups.setdefault(text, []).append(key)
    return groups


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
            print(f"{key:16} {figure.promise} ({sum(case.n for case in figure.cases())} checks)")
        return 0
    from ganlab.system.files import write_atomic, write_json

    records: dict[str, dict[str, Any]] = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    failed = 0

    def on_done(key: str, record: dict[str, Any]) -> None:
        nonlocal failed
        failed += record["failed"]
        points = record["points"]
        print(f"{key:16} {points - record['failed']} of {points}  {record['summary']}", flush=True)
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
    if not args.page and not args.figures:  # and what is too slow for the default tests
        slow = [sys.executable, "-m", "pytest", "-q", "-m", "slow", "-p", "no:cacheprovider"]
        failed += subprocess.run(slow, cwd=ROOT, check=False).returncode not in (0, 5)  # 5: there are none
    write_atomic(PAGE, page({key: records[key] for key in figures() if key in records}).encode())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
