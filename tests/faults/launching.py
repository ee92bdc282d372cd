"""Tiny runs in forked children that start in no time: their config is composed and their data read here."""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder

from .base import Done, Forked, inside, records, state_digest, tiny

# What a run can be made of: each kind of state that a resume has to bring back.
GAMES: dict[str, tuple[str, ...]] = {
    "sn+ema": ("normalization=[sn]", "ema=0.9", "d_steps=2"),
    "bn": ("normalization=[bn]", "optimizer.betas=[0.5,0.9]"),
    "conditional": (
        "architecture=resnet",
        "architecture.head=projection",
        "architecture.width=0.02",
        "dataset.resolution=32",
        "normalization=[sn]",
        "steps=8",
    ),
    "accumulate": ("accumulate=2", "normalization=[sn]", "flip=true", "dequantize=true"),
    "wgan-gp": ("loss=wasserstein", "normalization=[gp]", "eval_every=3", "sample_every=5"),
}
OFTEN = ("save_every=3", "keep_checkpoints=2")

# A run with checkpoints and grids on its way; `steps=` is its user's.
GAME = (
    "normalization=[sn]",
    "save_every=2",
    "keep_checkpoints=2",
    "sample_every=4",
    "log_every=1",
)


@functools.cache
def composed(words: tuple[str, ...]) -> Any:
    from ganlab.config import compose

    return compose.compose(list(words))


@functools.cache
def digits(resolution: int, channels: int) -> Any:
    from ganlab.data.digits import Digits

    return Digits(resolution, channels).load()  # type: ignore[arg-type]


def begin(
    place: Path,
    *more: str,
    before: Callable[[], object] | None = None,
    **env: str,
) -> Forked:
    """``ganlab train`` of a tiny run in ``place/run``, as a process that can be killed."""
    words = tiny(*more)
    made = composed(tuple(words[1:]))
    size = next(int(w.partition("=")[2]) for w in words if w.startswith("dataset.resolution="))
    images = digits(size, 1)
    gc.freeze()  # a child then copies fewer pages

    def prepared() -> None:
        from ganlab.config import compose
        from ganlab.data.digits import Digits

        compose.compose = lambda *_, **__: made  # type: ignore[assignment]
        Digits.load = lambda *_, **__: images  # type: ignore[method-assign]
        if before:
            before()

    return Forked(*words, cwd=place, before=prepared, env=env)


def finish(place: Path, *more: str, timeout: float = 120) -> Done:
    """The same command again, to the end."""
    done = begin(place, *more).wait(timeout)
    assert done.code == 0, f"exit code {done.code}: {done.err[-300:]}"
    return done


class Whole:
    """A run that nothing disturbed: what every other one has to end as."""

    def __init__(self, words: Sequence[str]) -> None:
        with tempfile.TemporaryDirectory(dir=Path.cwd().parent) as folder, inside(Path(folder)):
            self.seconds = finish(Path(folder), *words).seconds
            run = Path(folder) / "run"
            self.digest, self.records = state_digest(run), told(run)
            self.pictures = pictures(run)


def told(run: Path) -> list[dict[str, Any]]:
    """The metrics by step and kind: a resume may tell two kinds of one step the other way round."""
    return sorted(records(run), key=lambda r: (r["step"], r["kind"]))


def pictures(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (run / "samples").glob("*.png")}


@functools.cache
def whole(*words: str) -> Whole:
    return Whole(words)


def assert_identical(place: Path, *words: str) -> None:
    """The finished run in ``place`` is what it would be undisturbed: state, metrics, pictures."""
    from .base import nothing_lost

    run, wanted = place / "run", whole(*words)
    nothing_lost(run)
    assert state_digest(run) == wanted.digest, "the state differs from the undisturbed run's"
    assert told(run) == wanted.records, "the metrics differ from the undisturbed run's"
    assert pictures(run) == wanted.pictures, "the pictures differ from the undisturbed run's"


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints that verify. Raises what is wrong with one that does not."""
    if not (run / "run.json").is_file():
        return []
    folder = RunFolder(run)
    kept = Checkpoints(folder.checkpoints, folder.run_id)
    steps = kept.steps()
    for step in steps:
        kept.verify(step)
    return steps


def newest(run: Path) -> int:
    """The newest step that was told or saved, -1 before any; cheap, for a run that goes on."""
    try:
        return max((int(n[5:]) for n in os.listdir(run / "checkpoints") if n[5:].isdecimal()), default=-1)
    except OSError:
        return -1


def last_told(run: Path) -> int:
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return -1
    return int(json.loads(lines[-1])["step"]) if lines else -1


def stop_soon() -> None:
    """A SIGTERM with the next checkpoint."""
    from ganlab.runs.checkpoint import Checkpoints

    prune = Checkpoints.prune

    def pruned(self: Checkpoints, keep_also: Any = ()) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        prune(self, keep_also)

    Checkpoints.prune = pruned  # type: ignore[method-assign]
