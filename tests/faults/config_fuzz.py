"""Malformed configs and command lines end in one line with the fix: nothing written, no waiting."""

from __future__ import annotations

import contextlib
import io
import os
import re
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from . import config_broken, config_points
from .base import LINE, Case, Done, Failed, Figure, Numbers, ganlab
from .config_points import Point

SLOW = 3.0  # CPU seconds that one mistake may take
MOST_MB = 500  # that the process may grow by at one mistake
FAMILIES: dict[str, Callable[[], Iterator[Point]]] = {
    "misspelt": config_points.typos,
    "fields": config_points.fields,
    "files": config_broken.files,
    "combinations": config_broken.combinations,
    "devices": config_broken.devices,
    "words": config_broken.words,
}


def points(family: str) -> list[Point]:
    """Of one family; a third of the fields' many."""
    return list(FAMILIES[family]())[:: 3 if family == "fields" else 1]


class Trained(SystemExit):
    """A config that should have been refused got as far as a run."""

    def __init__(self, *_: object) -> None:
        super().__init__(99)


@contextlib.contextmanager
def no_training() -> Iterator[None]:
    """Inside, a run that would begin ends with code 99; nothing is fetched."""
    from ganlab.training import trainer

    before, env = (
        trainer.Run,
        {k: os.environ.get(k) for k in ("GANLAB_OFFLINE", "GANLAB_DEBUG", "GANLAB_CONFIGS")},
    )

    def begun(*_: object) -> None:
        raise Trained

    trainer.Run = begun  # type: ignore[assignment, misc]
    os.environ["GANLAB_OFFLINE"] = "1"
    for name in ("GANLAB_DEBUG", "GANLAB_CONFIGS"):
        os.environ.pop(name, None)
    try:
        yield
    finally:
        trainer.Run = before  # type: ignore[misc]
        for name, value in env.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def said(words: Sequence[str]) -> Done:
    """``ganlab`` with these words, in this process: what it printed, and CPU seconds."""
    from ganlab.cli import main

    out, err = io.StringIO(), io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(list(words))
    return Done(code, out.getvalue(), err.getvalue(), time.process_time() - began)


def judge(point: Point, done: Done) -> str | None:
    """What is wrong with an answer, or None."""
    lines = done.err.splitlines()
    errors = [line.removeprefix("ganlab: error: ") for line in lines if line.startswith("ganlab: error: ")]
    if "Traceback" in done.err + done.out:
        return "a traceback"
    if done.code not in point.codes:
        return f"code {done.code}: {done.err[:200]}"
    if point.words and (not errors or len(errors) != len(lines)):
        return f"said {done.err[:200]!r}"
    if any(len(line) > LINE for line in lines):
        return "a line is too long"
    told = [line for line in errors or lines if re.search(point.where, line)]
    if point.words and point.name.startswith(("key ", "group ")):
        told = [line for line in told if re.match(point.where, line)]
    if not told:
        return f"no line names {point.where!r}: {(errors or lines)[0][:200]}"
    if point.fix and not any(re.search(point.fix, line) for line in told):
        return f"no line says {point.fix!r}: {told[0][:200]}"
    return None


def checked(family: str, chosen: Sequence[Point]) -> Callable[[Path], Numbers]:
    """All these points, one after the other."""

    def check(place: Path) -> Numbers:
        wrong, seconds, most, meant, right = [], [], 0.0, 0, 0
        with no_training():
            said(["train", "stepz=1"])  # imports are no part of a mistake's time
            said(["status", "nowhere"])
            for number, point in enumerate(chosen):
                here = place / str(number)
                here.mkdir()
                for name, content in point.files.items():
                    (here / name).parent.mkdir(parents=True, exist_ok=True)
                    (here / name).write_bytes(content)
                os.chdir(here)
                before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                done = said(point.words)
                grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
                seconds.append(done.seconds)
                most = max(most, grown)
                why = judge(point, done)
                made = {p.name for p in here.iterdir()} - {n.split("/")[0] for n in point.files}
                if why is None and made:
                    why = f"left {sorted(made)} behind"
                if why is None and done.seconds > SLOW:
                    why = f"took {done.seconds:.1f} s"
                if why is None and grown > MOST_MB:
                    why = f"took {grown:.0f} MB"
                if point.meant:
                    meant += 1
                    right += re.search(rf"did you mean '{re.escape(point.meant)}'\?", done.err) is not None
                if why:
                    wrong.append(f"{point.name}: {why}")
            os.chdir(place)
        if right < 0.9 * meant:
            wrong.append(f"{right} of {meant} suggestions are right")
        if wrong:
            raise Failed(len(wrong), "; ".join(wrong[:20]))
        seconds.sort()
        told = {"p95": seconds[int(0.95 * (len(seconds) - 1))], "slowest": seconds[-1], "mb": most}
        return {**told, "meant": meant, "right": right}

    return check


def launched(*words: str, codes: tuple[int, ...], where: str) -> Callable[[Path], Numbers | None]:
    """A real ``python -m ganlab``."""

    def check(place: Path) -> None:
        done = ganlab(*words, cwd=place, env={"GANLAB_OFFLINE": "1", "GANLAB_CACHE": str(place / "cache")})
        why = judge(Point("", list(words), where, codes=codes), done)
        assert why is None, why
        assert not [p for p in place.iterdir() if p.name != "cache"], "something was written"

    return check


def cases() -> list[Case]:
    found = []
    for family in FAMILIES:
        every = points(family)
        size = 60
        for i in range(0, len(every), size):
            part = every[i : i + size]
            found.append(Case(f"{family} {i + 1}-{i + len(part)}", checked(family, part), len(part)))
    launches = [
        (("train", "stepz=3"), (2,), "'steps'"),
        (("train", "device=cuda:9"), (5,), "device=cpu"),
        (("train", "metric.extractor=inception"), (5,), "metric.extractor=cifar"),
        (("evaluate", "nowhere"), (3,), "nowhere"),
        (("sweep", "grid=sngan_fig11", "jobs=x"), (2,), "jobs"),
    ]
    for words, codes, where in launches:
        found.append(Case("launched: " + " ".join(words), launched(*words, codes=codes, where=where)))
    return found


def tell(numbers: Sequence[Numbers]) -> str:
    """Suggestions, seconds and memory of all."""
    meant, right = (sum(n.get(key, 0) for n in numbers) for key in ("meant", "right"))
    p95, slowest, mb = (max(n.get(key, 0) for n in numbers) for key in ("p95", "slowest", "mb"))
    rate = f"suggestion right for {right:,.0f} of {meant:,.0f} misspelt words ({right / max(meant, 1):.1%})"
    return f"{rate}; p95 {p95:.2f} s, slowest {slowest:.2f} s of CPU time; at most +{mb:.0f} MB"


FIGURES = [
    Figure(
        "config",
        "Malformed configs and command lines -> one line with the fix, no traceback, nothing written",
        (49, 50, 51, 52, 53),
        500,
        cases,
        tell,
    )
]
