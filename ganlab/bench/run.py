"""Run ``ganlab bench``: validate options, measure, store and present the results."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganlab.bench import KEYS, cases, chart, estimate, measure, text
from ganlab.bench.book import BenchFile, command_arguments
from ganlab.bench.cases import Case, Path_, Request
from ganlab.bench.measure import Setup
from ganlab.errors import ConfigError, GanlabError
from ganlab.sweeps.process import print_status
from ganlab.system.files import write_atomic
from ganlab.system.hardware import device_name, find_device

QUICK = {
    "cases": "cnn-sn,resnet-gp",
    "d_steps": "2",
    "rounds": 2,
    "block": "0.2",
    "width": "0.0625",
    "batch_size": 8,
}
RUNS = (1, 2, 4, 8)  # concurrent; 1 against 1 shows the noise
SAMPLES = (500, 1000, 2000)
SCALES: dict[str, tuple[Any, ...]] = {
    "batch_size": (16, 32, 64, 128, 256),
    "width": (0.125, 0.25, 0.5, 1.0),  # multiples of the requested width
    "resolution": (32, 48, 64, 96),
}


class Budget:
    """Time budget for starting measurements; counts those skipped after its end."""

    def __init__(self, minutes: int) -> None:
        self.end = time.monotonic() + 60 * minutes if minutes else None
        self.skipped = 0

    def left(self) -> bool:
        over = self.end is not None and time.monotonic() > self.end
        self.skipped += over
        return not over


def bench(own: Mapping[str, Any], config_dirs: Sequence[str] = ()) -> int:
    """Run the benchmark and return 0. Raises ConfigError with all mistakes before measuring."""
    if own["quick"]:
        own = {**own, **{k: v for k, v in QUICK.items() if own[k] == KEYS[k][0]}}
    device = find_device("cpu" if not re.match("auto|cuda", own["device"]) else own["device"])
    request = cases.parse_request(own, device.type == "cuda", config_dirs)
    if own["plain"]:
        cases.script()
    threads = own["threads"] or os.cpu_count() or 1
    setup = Setup(
        device=str(device),
        cuda=device.type == "cuda",
        threads=threads,
        rounds=own["rounds"],
        block=request.block,
        precisions=request.precisions,
        engines=request.engines,
        plain=own["plain"],
        config_dirs=tuple(str(Path(d).resolve()) for d in config_dirs),
    )
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    folder = Path(own["out"] or Path("outputs/bench") / (name + ("-quick" if own["quick"] else "")))
    bench_file, budget = BenchFile(folder, device, threads, command_arguments()), Budget(own["minutes"])
    todo = [(case, setup.paths(case)) for case in request.cases]
    for i, (case, paths) in enumerate(todo, 1):

        def measure_case(case: Case = case) -> dict[str, Any]:
            return measure.measure(case, setup)

        print_status(f"[{i}/{len(todo)}] {case.key}: {', '.join(path.name for path in paths)}")
        _measure_once(bench_file, budget, own, "cases", case.key, setup, paths, measure_case)
    base = _base(request)
    path = Path_("ganlab", setup.precisions[0], setup.engines[-1])
    if own["evaluation"]:
        _evaluation(bench_file, budget, own, request, setup)
    if own["packing"]:
        for runs in RUNS:
            for processes in (True, False) if runs > 1 else (False,):
                mode = "processes" if processes else "lanes"
                make = lambda n=runs, p=processes: measure.measure_packing(base, setup, path, n, p)  # noqa: E731
                _measure_once(
                    bench_file, budget, own, "packing", f"{base.key}-{mode}{runs}", setup, [path], make
                )
    if own["scaling"]:
        _scaling(bench_file, budget, own, base, setup, path)
    _show(bench_file, budget)
    return 0


def _base(request: Request) -> Case:
    """Case for packing and scaling: SNGAN's CNN with one D update, the lightest load."""
    return Case("cnn", "sn", 1, request.width, request.cases[0].batch_size)


def _measure_once(
    bench_file: BenchFile,
    budget: Budget,
    own: Mapping[str, Any],
    section: str,
    key: str,
    setup: Setup,
    paths: Sequence[Path_],
    make: Callable[[], dict[str, Any]],
) -> None:
    """Measure and store one record, unless it exists or time is up; failures are reported, not raised."""
    settings = {"rounds": setup.rounds, "block": setup.block, "paths": [path.name for path in paths]}
    if not own["fresh"] and bench_file.done(section, key, settings):
        print_status(f"  {key}: already measured")
        return
    if not budget.left():
        return
    began = time.monotonic()
    try:
        record = make()
    except GanlabError as error:
        if isinstance(error, ConfigError):
            raise
        print_status(f"  {key}: {error.mistakes[0]}")
        return
    seconds = time.monotonic() - began
    bench_file.add(section, key, {**record, "took_s": round(seconds, 1)}, settings)
    print_status(f"  {key}: {text.summarize(section, record)} ({seconds:.0f} s)")


def _evaluation(
    bench_file: BenchFile, budget: Budget, own: Mapping[str, Any], request: Request, setup: Setup
) -> None:
    """Score each network with each installed extractor, for several numbers of images."""
    path = Path_("ganlab", "fp32", "eager")
    for net in dict.fromkeys(case.net for case in request.cases):
        case = Case(net, "sn", 1, request.width, request.cases[0].batch_size)
        for extractor in ("cifar", "inception"):
            make = lambda c=case, x=extractor: _measure_scoring(c, setup, path, x, own["quick"])  # noqa: E731
            _measure_once(
                bench_file, budget, own, "evaluation", f"{case.key}-{extractor}", setup, [path], make
            )


def _measure_scoring(case: Case, setup: Setup, path: Path_, extractor: str, quick: bool) -> dict[str, Any]:
    numbers = SAMPLES[:1] if quick or (extractor == "inception" and not setup.cuda) else SAMPLES
    with setup.child(f"{case.key} {extractor}") as child:
        spec = {**measure.spec(case, path, setup), "extractor": extractor}
        points = [child.request("score", samples=n, **spec) for n in (numbers[0], *numbers)][1:]
    last = points[-1]
    record = {"net": case.net, "width": case.width, "extractor": extractor, "points": points}
    rates = {
        "images_per_s": last["samples"] / last["s"],
        "make_images_per_s": last["samples"] / last["make_s"],
    }
    return record | rates


def _scaling(
    bench_file: BenchFile, budget: Budget, own: Mapping[str, Any], base: Case, setup: Setup, path: Path_
) -> None:
    """Measure cost curves of ganlab's path; each point is a record."""
    alone = replace(setup, plain=False, precisions=[path.precision], engines=[path.engine])
    for axis, values in SCALES.items():
        for value in values[:2] if own["quick"] else values:
            case = replace(base, **{axis: base.width * value if axis == "width" else value})

            def make(case: Case = case, axis: str = axis) -> dict[str, Any]:
                record = measure.measure(case, alone)
                row = record["paths"][path.name]
                return {
                    "axis": axis,
                    "value": getattr(case, axis),
                    "path": path.name,
                    **row,
                    **case.as_dict(),
                }

            _measure_once(bench_file, budget, own, "scaling", f"{axis}-{case.key}", alone, [path], make)


def _show(bench_file: BenchFile, budget: Budget) -> None:
    """Print the tables; write ``bench.md`` and the charts next to ``bench.json``."""
    measurements = bench_file.measurements
    if not any(measurements.get(name) for name in measurements if name != "format"):
        raise GanlabError(str(bench_file.folder), "nothing could be measured", "see the errors above")
    conclusions = estimate.conclusions(measurements)
    text.show(measurements, conclusions)
    write_atomic(bench_file.folder / "bench.md", text.markdown(measurements, conclusions).encode())
    pictures = chart.pictures(measurements)
    for name, picture in pictures.items():
        write_atomic(bench_file.folder / f"{name}.png", picture)
    if budget.skipped:
        print(f"{budget.skipped} not started: time is up; rerun the same command to continue")
    print(f"{bench_file.folder}: bench.json, bench.md, {', '.join(f'{name}.png' for name in pictures)}")
