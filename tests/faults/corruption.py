"""Damaged checkpoints: what loads is, bit for bit, what was saved, or nothing is loaded."""

from __future__ import annotations

import contextlib
import logging
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .base import Case, Failed, Figure, Numbers
from .played import play

FILES = ("state.safetensors", "state.json", "MANIFEST.json")
OLD, NEW = 8, 14
PAGE = 4096
Damage = tuple[str, Callable[[Path], None]]


def flips(rng: random.Random, count: int) -> Iterator[Damage]:
    """One bit of one of the three files, each file as often as the others."""
    for i in range(count):
        name, at, bit = FILES[i % 3], rng.random(), rng.randrange(8)

        def damage(step: Path, name: str = name, at: float = at, bit: int = bit) -> None:
            raw = bytearray((step / name).read_bytes())
            raw[int(at * len(raw))] ^= 1 << bit
            (step / name).write_bytes(raw)

        yield f"bit {bit} at {at:.6f} of {name}", damage


def pages(rng: random.Random, count: int) -> Iterator[Damage]:
    """A page of zeros, as a file system leaves it after a power cut."""
    for _ in range(count):
        at = rng.random()

        def damage(step: Path, at: float = at) -> None:
            path = step / FILES[0]
            raw = bytearray(path.read_bytes())
            start = int(at * len(raw)) // PAGE * PAGE
            page = raw[start : start + PAGE]
            if not any(page):  # nothing to lose there: the next one that is not empty
                start = next(i for i in range(0, len(raw), PAGE) if any(raw[i : i + PAGE]))
                page = raw[start : start + PAGE]
            raw[start : start + PAGE] = bytes(len(page))
            path.write_bytes(raw)

        yield f"zeros from {at:.6f} of {FILES[0]}", damage


def appended(rng: random.Random, count: int) -> Iterator[Damage]:
    """Bytes too many."""
    for i in range(count):
        name, more = FILES[i % 3], rng.randbytes(1 + i % 7)

        def damage(step: Path, name: str = name, more: bytes = more) -> None:
            with open(step / name, "ab") as file:
                file.write(more)

        yield f"{len(more)} bytes {more.hex()} after {name}", damage


def cuts(every: int) -> Iterator[Damage]:
    """Each file cut at each so many per cent of its length."""
    for name in FILES:
        for per_cent in range(0, 100, every):

            def damage(step: Path, name: str = name, per_cent: int = per_cent) -> None:
                raw = (step / name).read_bytes()
                (step / name).write_bytes(raw[: len(raw) * per_cent // 100])

            yield f"{name} cut at {per_cent} %", damage


def others() -> Iterator[Damage]:
    """Files of another step, files that are missing, links in their place."""
    for name in FILES:

        def swap(step: Path, name: str = name) -> None:
            shutil.copy(step.with_name(f"step-{OLD:09d}") / name, step / name)

        def lose(step: Path, name: str = name) -> None:
            (step / name).unlink()

        def link(step: Path, name: str = name) -> None:
            (step / name).unlink()
            (step / name).symlink_to(step.with_name(f"step-{OLD:09d}") / name)

        yield f"{name} of another step", swap
        yield f"{name} missing", lose
        yield f"{name} a link to another step's", link

    def whole(step: Path) -> None:
        shutil.rmtree(step)
        shutil.copytree(step.with_name(f"step-{OLD:09d}"), step)

    yield "another step's folder", whole


def made(place: Path) -> Path:
    """The run whose checkpoints are damaged, stopped on its way at ``NEW`` - 1 and finished."""
    play(place, "ema=0.9", "normalization=[sn]", "eval_every=0", "sample_every=0", "spectral_every=0")
    return place / "run"


def refused(damages: Callable[[], Sequence[Damage]]) -> Callable[[Path], Numbers]:
    """Each damage to the newest checkpoint: named, it is refused; else the one before it is loaded, equal."""

    def check(place: Path) -> Numbers:
        from ganlab.errors import CheckpointError
        from ganlab.runs.checkpoint import Checkpoints, digest
        from ganlab.runs.folder import RunFolder

        run = RunFolder(made(place))
        kept = Checkpoints(run.checkpoints, run.run_id)
        steps = [s for s in kept.steps() if s in (OLD, NEW)]
        assert steps == [OLD, NEW], kept.steps()
        for step in kept.steps():
            if step not in steps:
                shutil.rmtree(kept.path(step))
        saved = {step: digest(*kept.load(step)[1:]) for step in steps}
        assert saved[OLD] != saved[NEW]
        pristine = place / "pristine"
        shutil.copytree(kept.path(NEW), pristine)
        wrong, silent, list_ = list[str](), 0, damages()
        logging.getLogger("ganlab").disabled = True
        for what, damage in list_:
            damage(kept.path(NEW))
            silent += _safetensors_is_silent(kept.path(NEW), pristine)
            with contextlib.suppress(CheckpointError):
                wrong += [what] if digest(*kept.load(NEW)[1:]) != saved[NEW] else [f"unnoticed: {what}"]
            step, tensors, state = kept.load()
            if step != OLD or digest(tensors, state) != saved[OLD]:
                wrong.append(f"fell back wrongly: {what}")
            aside = list(kept.folder.glob("*.corrupt*"))
            if len(aside) != 1 or kept.path(NEW).exists():
                wrong.append(f"not quarantined: {what}")
            for path in [*aside, kept.path(NEW)]:
                shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(pristine, kept.path(NEW))
        logging.getLogger("ganlab").disabled = False
        assert digest(*kept.load(NEW)[1:]) == saved[NEW], "and the sound one loads"
        if wrong:
            raise Failed(len(wrong), f"{len(wrong)} of {len(list_)}: {wrong[0]}")
        return {"damaged": len(list_), "wrong": 0, "silent": silent}

    return check


def _safetensors_is_silent(step: Path, pristine: Path) -> bool:
    """Whether the tensors alone, without a manifest, would load in spite of being others."""
    import safetensors.torch

    path = step / FILES[0]
    if not path.is_file() or path.read_bytes() == (pristine / FILES[0]).read_bytes():
        return False
    try:
        safetensors.torch.load(path.read_bytes())
    except Exception:
        return False
    return True


def corruptions() -> list[Case]:
    def case(name: str, count: int, damages: Callable[[], Sequence[Damage]]) -> Case:
        return Case(name, refused(damages), count)

    return [
        case("1000 bit flips, seed 2", 1000, lambda: [*flips(random.Random(2), 1000)]),
        case("100 zeroed pages, seed 3", 100, lambda: [*pages(random.Random(3), 100)]),
        case("102 with bytes appended, seed 4", 102, lambda: [*appended(random.Random(4), 102)]),
        case("truncations at every 1 % of each file", 300, lambda: [*cuts(1)]),
        case("swapped, missing and linked files", 10, lambda: [*others()]),
    ]


# ---- the same through the command


def resumes(name: str, damage: Callable[[Path], None]) -> Callable[[Path], None]:
    """A damaged newest checkpoint: the run goes on from the one before and ends in the same state."""

    def check(place: Path) -> None:
        from .played import seen, unlike

        for folder in ("whole", "parts"):
            (place / folder).mkdir()
        play(place / "whole")
        play(place / "parts", stop=13)
        run = place / "parts" / "run"
        damage(run / "checkpoints" / "step-000000013")
        said = play(place / "parts")
        warned = [line for line in said.splitlines() if "set aside as step-000000013.corrupt" in line]
        assert len(warned) == 1, said[-400:]
        assert warned[0].startswith("ganlab: warning: "), warned[0]
        assert (run / "checkpoints" / "step-000000013.corrupt").is_dir(), "nothing is deleted"
        assert not (different := unlike(seen(place / "whole" / "run"), seen(run))), different

    return check


def all_invalid(kind: int) -> Callable[[Path], None]:
    """No checkpoint left that verifies: code 4, each step with its reason; resume=never begins anew."""

    def check(place: Path) -> None:
        from ganlab.cli import main
        from ganlab.config import compose

        from .played import child, take_few, words_of

        play(place, stop=10)
        kept = place / "run" / "checkpoints"
        steps = sorted(kept.glob("step-*"))
        for i, step in enumerate(steps):
            path = step / FILES[(kind + i) % 3]
            if kind < 3:
                raw = bytearray(path.read_bytes())
                raw[len(raw) // 2] ^= 1
                path.write_bytes(raw)
            elif kind == 3:
                path.write_bytes(b"")
            else:
                shutil.rmtree(step)
                step.mkdir()

        def again(*more: str) -> tuple[int, str]:
            compose.compose([])

            def work() -> int:
                take_few()
                return main.main(["train", *words_of(*more)])

            return child(work, place)

        for _ in range(2):  # and it keeps saying so
            code, said = again()
            errors = [line for line in said.splitlines() if line.startswith("ganlab: error: ")]
            assert code == 4, said[-400:]
            assert len(errors) == len(steps) > 2
            assert all(step.name in " ".join(errors) for step in steps)
            assert "Traceback" not in said
        code, said = again("resume=never")
        assert code == 0, said[-400:]
        assert (place / "run" / "before-1" / "checkpoints").is_dir()

    return check


def commands() -> list[Case]:
    damages = [*others(), *flips(random.Random(5), 6), *cuts(50)]
    damages = [d for d in damages if "another step" not in d[0]]
    cases = [Case(f"goes on after {name}", resumes(name, damage)) for name, damage in damages]
    kinds = (
        "a bit of each",
        "another bit of each",
        "a third bit of each",
        "an empty file in each",
        "empty folders",
    )
    return cases + [Case(f"all invalid: {what}", all_invalid(i)) for i, what in enumerate(kinds)]


def told(numbers: Sequence[Numbers]) -> str:
    found, silent = (int(sum(n[key] for n in numbers)) for key in ("damaged", "silent"))
    return f"{found} damaged, 0 loaded wrongly; safetensors alone would have loaded {silent} of them"


FIGURES = [
    Figure("corruption", "Corrupted checkpoints -> wrong loads", (27, 28), 1500, corruptions, told),
    Figure("fallback", "Runs that go on behind a damaged checkpoint", (27, 28, 29), 15, commands),
]
