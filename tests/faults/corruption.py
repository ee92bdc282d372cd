"""Damaged checkpoints: what loads is, bit for bit, what was saved, or nothing is loaded."""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .base import Case, Failed, Figure
from .runs import epochs, finish

FILES = ("state.safetensors", "state.json", "MANIFEST.json")
OLD, NEW = 8, 14
PAGE = 4096
Damage = tuple[str, Callable[[Path], object]]
WORDS = epochs("ema=0.9", "eval_every=0", "sample_every=0", "spectral_every=0")


def rewrite(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    """Of a checkpoint's folder: one file's content changed."""
    return lambda step: (step / name).write_bytes(change((step / name).read_bytes()))


def flip(raw: bytes, at: float, bit: int) -> bytes:
    i = int(at * len(raw))
    return raw[:i] + bytes([raw[i] ^ 1 << bit]) + raw[i + 1 :]


def zero_page(raw: bytes, at: float) -> bytes:
    """A page of zeros, as a file system leaves it after a power cut; the first that is not empty yet."""
    start = int(at * len(raw)) // PAGE * PAGE
    if not any(raw[start : start + PAGE]):
        start = next(i for i in range(0, len(raw), PAGE) if any(raw[i : i + PAGE]))
    page = raw[start : start + PAGE]
    return raw[:start] + bytes(len(page)) + raw[start + PAGE :]


def flips(draw: random.Random, count: int) -> Iterator[Damage]:
    for i in range(count):
        name, at, bit = FILES[i % 3], draw.random(), draw.randrange(8)
        yield f"bit {bit} at {at:.6f} of {name}", rewrite(name, functools.partial(flip, at=at, bit=bit))


def pages(draw: random.Random, count: int) -> Iterator[Damage]:
    for _ in range(count):
        at = draw.random()
        yield f"zeros from {at:.6f}", rewrite(FILES[0], functools.partial(zero_page, at=at))


def appended(draw: random.Random, count: int) -> Iterator[Damage]:
    for i in range(count):
        name, more = FILES[i % 3], draw.randbytes(1 + i % 7)
        yield f"{len(more)} bytes {more.hex()} after {name}", rewrite(name, lambda raw, m=more: raw + m)  # type: ignore[misc]


def cuts(every: int) -> Iterator[Damage]:
    """Each file cut at each so many per cent of its length."""
    for name in FILES:
        for share in range(0, 100, every):
            cut = rewrite(name, lambda raw, share=share: raw[: len(raw) * share // 100])  # type: ignore[misc]
            yield f"{name} cut at {share} %", cut


def others() -> Iterator[Damage]:
    """Files of another step, files that are missing, links in their place."""

    def older(step: Path, name: str = "") -> Path:
        return step.with_name(f"step-{OLD:09d}") / name

    def link(step: Path, name: str) -> None:
        (step / name).unlink()
        (step / name).symlink_to(older(step, name))

    for name in FILES:
        yield f"{name} missing", lambda step, name=name: (step / name).unlink()  # type: ignore[misc]
        yield f"{name} a link", functools.partial(link, name=name)
        yield f"{name} of another step", lambda step, n=name: shutil.copy(older(step, n), step / n)  # type: ignore[misc]

    def replace(step: Path) -> None:
        shutil.rmtree(step)
        shutil.copytree(older(step), step)

    yield "another step's folder", replace


def refused(damages: Callable[[], Sequence[Damage]], place: Path) -> None:
    """Each damage to the newest checkpoint: named, it is refused; else the one before it is loaded, equal."""
    from ganlab.errors import CheckpointError
    from ganlab.runs.checkpoint import Checkpoints, digest
    from ganlab.runs.folder import RunFolder

    finish(place, *WORDS)
    run = RunFolder(place / "run")
    kept = Checkpoints(run.checkpoints, run.run_id)
    for step in kept.steps():
        if step not in (OLD, NEW):
            shutil.rmtree(kept.path(step))
    saved = {step: digest(*kept.load(step)[1:]) for step in (OLD, NEW)}
    assert saved[OLD] != saved[NEW]
    pristine, failures = place / "pristine", list[str]()
    shutil.copytree(kept.path(NEW), pristine)
    logging.getLogger("ganlab").disabled = True
    for what, damage in damages():
        damage(kept.path(NEW))
        with contextlib.suppress(CheckpointError):
            failures += [what] if digest(*kept.load(NEW)[1:]) != saved[NEW] else [f"unnoticed: {what}"]
        step, tensors, state = kept.load()
        if step != OLD or digest(tensors, state) != saved[OLD]:
            failures.append(f"fell back wrongly: {what}")
        aside = list(kept.folder.glob("*.corrupt*"))
        if len(aside) != 1 or kept.path(NEW).exists():
            failures.append(f"not quarantined: {what}")
        for path in [*aside, kept.path(NEW)]:
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(pristine, kept.path(NEW))
    logging.getLogger("ganlab").disabled = False
    assert digest(*kept.load(NEW)[1:]) == saved[NEW], "the sound one does not load"
    if failures:
        raise Failed(len(failures), failures[0])


def cases() -> list[Case]:
    def case(name: str, count: int, damages: Callable[[], Sequence[Damage]]) -> Case:
        return Case(name, functools.partial(refused, damages), count)

    return [
        case("1000 bit flips, seed 2", 1000, lambda: [*flips(random.Random(2), 1000)]),
        case("100 zeroed pages, seed 3", 100, lambda: [*pages(random.Random(3), 100)]),
        case("102 with bytes appended, seed 4", 102, lambda: [*appended(random.Random(4), 102)]),
        case("truncations at every 1 % of each file", 300, lambda: [*cuts(1)]),
        case("swapped, missing and linked files", 10, lambda: [*others()]),
    ]


FIGURES = [Figure("corruption", "Damaged checkpoints: none loads wrongly, the one before is loaded", cases)]
