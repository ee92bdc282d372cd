"""Tiny runs in forked children that start in no time: their config is composed and their data read here.

The parts of runs are read from ``configs/`` and from signatures: a new loss or normalization is in the
figures by being there.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import json
import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

from ganlab.data.base import SampleSet
from ganlab.data.digits import Digits
from ganlab.data.fingerprint import fingerprint
from ganlab.runs.checkpoint import Checkpoints, digest
from ganlab.runs.folder import RunFolder

from .base import ROOT, Done, Forked, inside, nothing_lost, records, state_digest, tiny

LOAD = Digits.load
# What a run can be made of: each kind of state that a resume has to bring back.
RECIPES: dict[str, tuple[str, ...]] = {
    "sn+ema": ("normalization=[sn]", "ema=0.9", "d_steps=2"),
    "bn": ("normalization=[bn]", "optimizer.betas=[0.5,0.9]"),
    "conditional": (
        *("architecture=resnet", "architecture.head=projection", "architecture.width=0.02"),
        *("dataset.resolution=32", "normalization=[sn]", "steps=8"),
    ),
    "accumulate": ("accumulate=2", "normalization=[sn]", "flip=true", "dequantize=true"),
    "wgan-gp": ("loss=wasserstein", "normalization=[gp]", "eval_every=3", "sample_every=5"),
}
OFTEN = ("save_every=3", "keep_checkpoints=2")
# A run with checkpoints and grids on its way; `steps=` is its user's.
EVENTFUL = ("normalization=[sn]", "save_every=2", "keep_checkpoints=2", "sample_every=4", "log_every=1")
# Sixty images and batches of six: an epoch ends within a run of fourteen updates.
EPOCHS = (
    *("architecture.width=0.03", "architecture.z_dim=4", "normalization=[sn]", "steps=14", "batch_size=6"),
    *("d_steps=2", "metric.protocol.is_n_fake=16", "eval_every=6", "log_every=3", "sample_every=5"),
    *("spectral_every=7", "keep_checkpoints=9"),
)
FEW = 60


@functools.cache
def composed(words: tuple[str, ...]) -> Any:
    from ganlab.config import compose

    return compose.compose(list(words))


@functools.cache
def digits(resolution: int, channels: int, count: int) -> SampleSet:
    """The first ``count`` digits, all classes among them; 0: all."""
    data = LOAD(Digits(resolution, channels))  # type: ignore[arg-type]
    if not count:
        return data
    images, labels = data.images[:count], data.labels[:count]  # type: ignore[index]
    return dataclasses.replace(data, images=images, labels=labels, fingerprint=fingerprint(images, labels))


def epochs(*more: str) -> tuple[str, ...]:
    """``EPOCHS`` and words that win over them; a setting's own ``d_steps`` is not taken."""
    keys = {word.partition("=")[0] for word in more}
    return (*(w for w in EPOCHS if w.partition("=")[0] not in keys), *more)


def begin(place: Path, *more: str, before: Callable[[], object] | None = None, **env: str) -> Forked:
    """``ganlab train`` of a tiny run in ``place/run``, as a process that can be killed.

    A batch of six means ``EPOCHS``, with as few images.
    """
    words = tiny(*more)
    config = composed(tuple(words[1:]))
    count = FEW if config.tree["batch_size"] == 6 else 0
    dataset = config.tree["dataset"]
    images = digits(dataset["resolution"], dataset["channels"], count)
    gc.freeze()  # a child then copies fewer pages

    def prepare() -> None:
        from ganlab.config import compose

        compose.compose = lambda *_, **__: config  # type: ignore[assignment]
        Digits.load = lambda *_, **__: images  # type: ignore[method-assign]
        if before:
            before()

    return Forked(*words, cwd=place, before=prepare, env=env)


def finish(place: Path, *more: str, before: Callable[[], object] | None = None, timeout: float = 120) -> Done:
    """The same command again, to the end."""
    done = begin(place, *more, before=before).wait(timeout)
    assert done.code == 0, f"exit code {done.code}: {done.err[-500:]}"
    return done


def stop_at(place: Path, step: int, *more: str) -> None:
    """Begin or continue a run, and stop it by a SIGTERM as ``step`` updates are done."""

    def before() -> None:
        from ganlab.training.engine import Engine

        real = Engine.update

        def update(self: Any, number: int) -> None:
            real(self, number)
            if number + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)

        Engine.update = update  # type: ignore[method-assign]

    done = begin(place, *more, before=before).wait(120)
    assert done.code == 128 + signal.SIGTERM, f"exit code {done.code}: {done.err[-500:]}"
    assert (place / "run" / "checkpoints" / f"step-{step:09d}").is_dir(), f"nothing was saved at step {step}"


def outcome(run: Path) -> dict[str, Any]:
    """All that a finished run leaves, without clocks: last state, metrics, pictures, scores.

    The metrics by step and kind: a resume may write two kinds of one step the other way round.
    """
    scores = json.loads((run / "result.json").read_text())["scores"]
    return {
        "state": state_digest(run),
        "metrics": sorted(records(run), key=lambda r: (r["step"], r["kind"])),
        "pictures": {p.name: p.read_bytes() for p in (run / "samples").glob("*.png")},
        "scores": {
            name: {k: v for k, v in score.items() if k != "seconds"}
            for name, score in scores.items()
            if score
        },
    }


@functools.cache
def whole(*words: str) -> tuple[dict[str, Any], float]:
    """The outcome of a run that nothing disturbed, and its seconds."""
    with tempfile.TemporaryDirectory(dir=Path.cwd().parent) as folder, inside(Path(folder)):
        seconds = finish(Path(folder), *words).seconds
        return outcome(Path(folder) / "run"), seconds


def differences(place: Path, *words: str) -> str:
    """In which of ``outcome`` the finished run in ``place`` differs from an undisturbed one."""
    actual, expected = outcome(place / "run"), whole(*words)[0]
    return ", ".join(key for key in expected if actual[key] != expected[key])


def assert_identical(place: Path, *words: str) -> None:
    """The finished run in ``place`` is what it would be undisturbed."""
    nothing_lost(place / "run")
    differing = differences(place, *words)
    assert not differing, f"{differing} differ from the undisturbed run's"


def trained(run: Path) -> str:
    """Digest of the newest networks and optimizers: what was trained, not what was logged on the way."""
    folder = RunFolder(run)
    step, tensors, state = Checkpoints(folder.checkpoints, folder.run_id).load(quarantine=False)
    return f"{step} {digest(tensors, state['game'])}"


def committed(run: Path) -> list[int]:
    """Steps of the checkpoints, all of which must verify."""
    if not (run / "run.json").is_file():
        return []
    folder = RunFolder(run)
    kept = Checkpoints(folder.checkpoints, folder.run_id)
    for step in kept.steps():
        kept.load(step)
    return kept.steps()


def newest(run: Path) -> int:
    """The newest step that was saved, -1 before any; cheap, for a run that goes on."""
    try:
        return max((int(n[5:]) for n in os.listdir(run / "checkpoints") if n[5:].isdecimal()), default=-1)
    except OSError:
        return -1


def last_step(run: Path) -> int:
    """The last step in ``metrics.jsonl``, -1 before any."""
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
    except OSError:
        return -1
    return int(json.loads(lines[-1])["step"]) if lines else -1


def stop_soon() -> None:
    """In a child: a SIGTERM with the next checkpoint."""
    prune = Checkpoints.prune

    def pruned(self: Checkpoints, keep_also: Any = ()) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        prune(self, keep_also)

    Checkpoints.prune = pruned  # type: ignore[method-assign]


# ---- all parts

WIDE = "dataset.resolution=32"
RICH = ("ema=0.9", "flip=true", "dequantize=true", "lr_decay=linear", "lr_decay_start=8")
TECHNIQUES: dict[str, tuple[str, ...]] = {
    "EMA": ("ema=0.9",),
    "accumulate": ("accumulate=3",),
    "g_first": ("order=g_first",),
    "joint_fakes": ("joint_fakes=true", "architecture=dcgan", WIDE),
    "decay, flips, dequantize": RICH[1:],
    "bf16": ("precision=bf16",),
    "passes apart": ("d_pass=apart", "normalization=[sn,gp]", "loss=wasserstein"),
    "memory map": ("data_memory_gb=0",),
    "warm-up of D": ("d_warmup_steps=4", "d_warmup_updates=2", "d_warmup_every=5"),
    "D's own optimizer": ("d_optimizer={lr: 4e-4, weight_decay: 1e-3}",),
    "sn per_update": ("normalization.sn.update=per_update",),
    "sn svd": ("normalization.sn.method=svd",),
    "sn gamma": ("normalization=[sn,gp]", "normalization.sn.gamma=learned", "normalization.sn.warmup=3"),
    "wn gamma": ("normalization=[wn]", "normalization.wn.gamma=learned"),
    "bn everywhere": ("normalization=[bn]", "normalization.bn.affine=full", "normalization.bn.place=all"),
}


def everything() -> dict[str, tuple[str, ...]]:
    """Name -> words beyond ``EPOCHS``: each loss, normalization, architecture, head, prior, setting once."""
    from ganlab.models.heads import Head

    def options(group: str) -> list[str]:
        return sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml"))

    parts: dict[str, tuple[str, ...]] = {
        f"loss={n}": (f"loss={n}",) for n in options("loss") if n not in ("began", "k_plus_1")
    }
    parts["loss=began"] = ("architecture=began", "loss=began", "normalization=none", WIDE)
    parts |= {f"normalization={n}": (f"normalization=[{n}]", "ema=0.9") for n in options("normalization")}
    parts |= {f"architecture={n}": (f"architecture={n}", WIDE, *RICH) for n in options("architecture")}
    for head in get_args(Head):
        losses = [n for n in options("class_loss") if n != "labelled"]
        for loss in losses if head == "ac" else [""] if head not in ("none", "k_plus_1") else []:
            words = ("architecture=resnet", f"architecture.head={head}", WIDE)
            labels = (f"class_loss={loss}", "fake_labels=uniform") if loss else ("fake_labels=data",)
            parts[f"head={head} {loss}".strip()] = (*words, *labels)
    parts |= {f"prior={n}": (f"prior={n}",) for n in options("prior")}
    parts |= {f"setting={n}": (f"setting={n}", "normalization=[gp]") for n in options("setting")}
    return parts | TECHNIQUES
