"""Runs stopped anywhere and continued in another process are, bit for bit, those that were never stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .base import Case, Failed, Figure, Numbers
from .played import POINTS, STEPS, everything, play, seen, unlike

APART = (  # each of their points has a run of its own
    *("loss=wasserstein", "normalization=sn", "normalization=bn", "normalization=wn"),
    *("architecture=dcgan", "head=projection", "joint_fakes", "sn gamma"),
)


def identical(words: Sequence[str], at_once: bool) -> Callable[[Path], Numbers]:
    """The same run whole, and stopped at each of the points by a real SIGTERM, in processes of their own.

    ``at_once``: one run is stopped at all of them, one after the other; else each has a run of its own.
    """

    def check(place: Path) -> Numbers:
        folders = {name: place / name for name in ("whole", "parts")}
        for folder in folders.values():
            folder.mkdir()
        play(folders["whole"], *words)
        whole, bad = seen(folders["whole"] / "run"), list[str]()
        run = folders["parts"] / "run"
        for name, step in POINTS.items():
            play(folders["parts"], *words, stop=step)
            saved = run / "checkpoints" / f"step-{step:09d}"
            assert saved.is_dir(), f"nothing was saved at step {step}"
            if at_once and step != max(POINTS.values()):
                continue
            play(folders["parts"], *words)
            if different := unlike(whole, seen(run)):
                bad += [f"stopped at step {step} ({name}): {different} differ"] * (
                    len(POINTS) if at_once else 1
                )
            shutil.rmtree(run)
        if bad:
            raise Failed(len(bad), "; ".join(dict.fromkeys(bad)))
        return {"identical": len(POINTS)}

    return check


def matrix() -> list[Case]:
    return [Case(name, identical(w, name not in APART), len(POINTS)) for name, w in everything().items()]


def controls() -> list[Case]:
    """What must differ, does: else nothing above says anything."""

    def seeds(place: Path) -> None:
        for seed in (0, 1):
            (place / str(seed)).mkdir()
            play(place / str(seed), f"seed={seed}")
        a, b = (seen(place / str(seed) / "run") for seed in (0, 1))
        assert unlike(a, b) == "state, metrics.jsonl, samples, scores", unlike(a, b)

    def steps(place: Path) -> None:
        play(place, stop=STEPS - 1)
        before = seen(place / "run")
        play(place)
        assert "state" in unlike(before, seen(place / "run"))

    return [Case("another seed differs", seeds), Case("the next step differs", steps)]


LOOKS = {
    "eval_every": "eval_every=2",
    "eval_start": "eval_start=true",
    "sample_every": "sample_every=1",
    "spectral_every": "spectral_every=2",
    "log_every": "log_every=1",
    "save_every": "save_every=1",
    "nothing at all": "",
}
NOTHING = [f"{key}=0" for key in ("eval_every", "sample_every", "spectral_every", "log_every", "save_every")]


def untouched(words: Sequence[str], looks: Mapping[str, str]) -> Callable[[Path], None]:
    """However often a run is looked at, its last networks and optimisers are the same."""

    def trained(place: Path, *more: str) -> str:
        from ganlab.runs.checkpoint import Checkpoints, digest
        from ganlab.runs.folder import RunFolder

        place.mkdir()
        play(place, *words, *more)
        folder = RunFolder(place / "run")
        step, tensors, state = Checkpoints(folder.checkpoints, folder.run_id).load()
        assert step == STEPS
        return digest(tensors, state["game"])

    def check(place: Path) -> None:
        plain = trained(place / "plain")
        bad = []
        for i, (name, word) in enumerate(looks.items()):
            found = trained(place / str(i), *([word] if word else NOTHING))
            bad += [name] if found != plain else []
        if bad:
            raise Failed(len(bad), f"training is another with {', '.join(bad)}")

    return check


def looking() -> list[Case]:
    found = everything()
    parts = ("sn", "bn", "wn", "snr", "gp")
    names = ["EMA", "head=ac acgan", "architecture=dcgan", *(f"normalization={n}" for n in parts)]
    return [Case(name, untouched(found[name], LOOKS), len(LOOKS)) for name in names]


def told(numbers: Sequence[Numbers]) -> str:
    return f"{len(numbers)} configs x {len(POINTS)} points: state, metrics.jsonl, grids and scores equal"


FIGURES = [
    Figure("resume", "Resume points x configs identical (CPU)", (7, 32, 33), 200, matrix, told),
    Figure("resume-controls", "Negative controls of the resume digest", (), 2, controls),
    Figure("looking", "Ways of looking that leave training as it was", (), 50, looking),
]
