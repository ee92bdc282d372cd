"""What a whole checkpoint costs beside a bare torch.save, and its share of training time."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from .base import Case, Figure, Numbers
from .played import play

ROUNDS, MB = 5, 100


def against_torch(megabytes: int, rounds: int) -> Callable[[Path], Numbers]:
    """The same tensors by torch.save and as a checkpoint, A B A B ...; each written where the other is."""

    def check(place: Path) -> Numbers:
        import torch

        from ganlab.runs.checkpoint import Checkpoints, digest

        n = megabytes * 250_000 // 20
        tensors = {f"layer{i}": torch.randn(n, generator=torch.Generator().manual_seed(i)) for i in range(20)}
        bare, synced, whole = list[float](), list[float](), list[float]()
        kept = Checkpoints(place / "checkpoints", "a" * 32, 2)
        for step in range(1, rounds + 1):
            began = time.perf_counter()
            torch.save(tensors, place / f"bare-{step}.pt")
            bare.append(time.perf_counter() - began)
            with open(place / f"bare-{step}.pt", "r+b") as file:
                os.fsync(file.fileno())
            synced.append(time.perf_counter() - began)
            began = time.perf_counter()
            kept.save(step, tensors, {"step": step})
            whole.append(time.perf_counter() - began)
            (place / f"bare-{step}.pt").unlink()
            kept.prune()
        assert digest(kept.load()[1]) == digest(tensors), "what was timed was a whole save"
        ratios = [b / a for a, b in zip(bare, whole, strict=True)]
        durable = median(b / a for a, b in zip(synced, whole, strict=True))
        times = {"bare": median(bare), "whole": median(whole), "mb": megabytes}
        return {"ratio": median(ratios), "durable": durable, **times}

    return check


def share(place: Path) -> Numbers:
    """Seconds in ``save`` of a run's whole time, at a save every 100 updates of a small CNN."""
    words = ["steps=300", "save_every=100", "eval_every=0", "sample_every=0", "spectral_every=0"]

    def timed() -> None:
        from ganlab.training.trainer import Run

        real, spent = Run.save, [0.0]

        def save(self: Run) -> None:
            began = time.perf_counter()
            real(self)
            spent[0] += time.perf_counter() - began
            (place / "spent.json").write_text(json.dumps(spent[0]))

        Run.save = save  # type: ignore[method-assign]

    play(place, *words, "architecture.width=0.125", "batch_size=32", patch=timed)
    spent = json.loads((place / "spent.json").read_text())
    wall = json.loads((place / "run" / "result.json").read_text())["wall_s"]
    shutil.rmtree(place / "run")
    return {"share": spent / wall}


def cases() -> list[Case]:
    return [Case(f"{MB} MB, {ROUNDS} rounds", against_torch(MB, ROUNDS)), Case("share of a run", share)]


def told(numbers: Sequence[Numbers]) -> str:
    saves = [n for n in numbers if "ratio" in n]
    shares = [n["share"] for n in numbers if "share" in n]
    text = "; ".join(
        f"{n['ratio']:.2f} times bare torch.save, {n['durable']:.2f} times one that is synced "
        f"({n['whole']:.3f} s, {n['bare']:.3f} s bare, {n['mb']:.0f} MB)"
        for n in saves
    )
    return text + "".join(f"; {s:.2%} of training time (a save every 100 updates)" for s in shares)


FIGURES = [
    Figure("save-cost", "Save against bare torch.save; its share", (), 2, cases, told, alone=True),
]
