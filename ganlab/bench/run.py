"""``ganlab bench``: what is asked for, measured part by part, kept, and shown."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ganlab.bench import KEYS, cases, chart, estimate, measure, text
from ganlab.bench.book import Book, arguments
from ganlab.bench.cases import Asked, Case, Path_
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
RUNS = (1, 2, 4, 8)  # at once; one beside another one tells how even the turns are
SAMPLES = (500, 1000, 2000)
SCALES: dict[str, tuple[Any, ...]] = {
    "batch_size": (16, 32, 64, 128, 256),
    "width": (0.125, 0.25, 0.5, 1.0),  # times the width asked for
    "resolution": (32, 48, 64, 96),
}


class Budget:
    """Whether there is time to begin something more. Told once when there is not."""

    def __init__(self, minutes: int) -> None:
        self.end = time.monotonic() + 60 * minutes if minutes else None
        self.skipped = 0

    def left(self) -> bool:
        over = self.end is not None and time.monotonic() > self.end
        self.skipped += over
        return not over


def bench(own: Mapping[str, Any], config_dirs: Sequence[str] = ()) -> int:
    """Measure, keep, show. Returns 0. Raises ConfigError with every mistake, before anything is measured."""
    if own["quick"]:
        own = {**own, **{k: v for k, v in QUICK.items() if own[k] == KEYS[k][0]}}
    device = find_device("cpu" if not re.match("auto|cuda", own["device"]) else own["device"])
    asked = cases.asked(own, device.type == "cuda", config_dirs)
    if own["plain"]:
        cases.script()
    threads = own["threads"] or os.cpu_count() or 1
    setup = Setup(
        device=str(device),
        cuda=device.type == "cuda",
        threads=threads,
        rounds=own["rounds"],
        block=asked.block,
        precisions=asked.precisions,
        engines=asked.engines,
        plain=own["plain"],
        config_dirs=tuple(str(Path(d).resolve()) for d in config_dirs),
    )
    name = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower()).strip("-")
    folder = Path(own["out"] or Path("outputs/bench") / (name + ("-quick" if own["quick"] else "")))
    book, budget = Book(folder, device, threads, arguments()), Budget(own["minutes"])
    todo = [(case, setup.paths(case)) for case in asked.cases]
    for i, (case, paths) in enumerate(todo, 1):

        def play(case: Case = case) -> dict[str, Any]:
            return measure.measure(case, setup)

        print_status(f"[{i}/{len(todo)}] {case.key}: {', '.join(path.name for path in paths)}")
        _once(book, budget, own, "cases", case.key, setup, paths, play)
    base = _base(asked)
    path = Path_("ganlab", setup.precisions[0], setup.engines[-1])
    if own["evaluation"]:
        _evaluation(book, budget, own, asked, setup)
    if own["packing"]:
        for runs in RUNS:
            for processes in (True, False) if runs > 1 else (False,):
                how = "processes" if processes else "lanes"
                make = lambda n=runs, p=processes: measure.packed(base, setup, path, n, p)  # noqa: E731
                _once(book, budget, own, "packing", f"{base.key}-{how}{runs}", setup, [path], make)
    if own["scaling"]:
        _scaling(book, budget, own, base, setup, path)
    _show(book, budget)
    return 0


def _base(asked: Asked) -> Case:
    """What packing and scaling look at: SNGAN's CNN at one D update, where a machine is the least busy."""
    return Case("cnn", "sn", 1, asked.width, asked.cases[0].batch_size)


def _once(
    book: Book,
    budget: Budget,
    own: Mapping[str, Any],
    section: str,
    key: str,
    setup: Setup,
    paths: Sequence[Path_],
    make: Callable[[], dict[str, Any]],
) -> None:
    """Measure and keep one record, unless it is there, time is over, or it can't be had here (said)."""
    settings = {"rounds": setup.rounds, "block": setup.block, "paths": [path.name for path in paths]}
    if not own["fresh"] and book.done(section, key, settings):
        print_status(f"  {key}: measured already")
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
    took = time.monotonic() - began
    book.put(section, key, {**record, "took_s": round(took, 1)}, settings)
    print_status(f"  {key}: {text.in_short(section, record)} ({took:.0f} s)")


def _evaluation(book: Book, budget: Budget, own: Mapping[str, Any], asked: Asked, setup: Setup) -> None:
    """Each net with each extractor whose weights are here, on several numbers of images."""
    path = Path_("ganlab", "fp32", "eager")
    for net in dict.fromkeys(case.net for case in asked.cases):
        case = Case(net, "sn", 1, asked.width, asked.cases[0].batch_size)
        for extractor in ("cifar", "inception"):
            made = lambda c=case, x=extractor: _scored(c, setup, path, x, own["quick"])  # noqa: E731
            _once(book, budget, own, "evaluation", f"{case.key}-{extractor}", setup, [path], made)


def _scored(case: Case, setup: Setup, path: Path_, extractor: str, quick: bool) -> dict[str, Any]:
    numbers = SAMPLES[:1] if quick or (extractor == "inception" and not setup.cuda) else SAMPLES
    with setup.child(f"{case.key} {extractor}") as child:
        spec = {**measure.spec(case, path, setup), "extractor": extractor}
        found = [child.ask("score", samples=n, **spec) for n in (numbers[0], *numbers)][1:]
    last = found[-1]
    told = {"net": case.net, "width": case.width, "extractor": extractor, "points": found}
    rates = {
        "images_per_s": last["samples"] / last["s"],
        "make_images_per_s": last["samples"] / last["make_s"],
    }
    return told | rates


def _scaling(
    book: Book, budget: Budget, own: Mapping[str, Any], base: Case, setup: Setup, path: Path_
) -> None:
    """Curves of ganlab's own path; each point a record."""
    alone = replace(setup, plain=False, precisions=[path.precision], engines=[path.engine])
    for axis, values in SCALES.items():
        for value in values[:2] if own["quick"] else values:
            case = replace(base, **{axis: base.width * value if axis == "width" else value})

            def make(case: Case = case, axis: str = axis) -> dict[str, Any]:
                found = measure.measure(case, alone)
                row = found["paths"][path.name]
                return {"axis": axis, "value": getattr(case, axis), "path": path.name, **row, **case.told()}

            _once(book, budget, own, "scaling", f"{axis}-{case.key}", alone, [path], make)


def _show(book: Book, budget: Budget) -> None:
    """The tables on the screen; ``bench.md`` and the charts beside ``bench.json``."""
    told = book.all
    if not any(told.get(name) for name in told if name != "format"):
        raise GanlabError(str(book.folder), "nothing could be measured", "see the lines above")
    conclusions = estimate.conclusions(told)
    text.show(told, conclusions)
    write_atomic(book.folder / "bench.md", text.markdown(told, conclusions).encode())
    for name, picture in chart.pictures(told).items():
        write_atomic(book.folder / f"{name}.png", picture)
    if budget.skipped:
        print(f"{budget.skipped} not begun: the minutes are over; the same command goes on with them")
    print(f"{book.folder}: bench.json, bench.md, {', '.join(f'{n}.png' for n in chart.pictures(told))}")
