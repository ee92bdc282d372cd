"""One run of many ranks: equal to one process, exact over a resume, no rank left behind by another's end."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder

from .base import Case, Done, Figure, Forked, Numbers, nothing_lost, records, state_digest, tiny

CLOSE = 1e-6  # the largest difference between a tensor of many ranks and that of one process, in float64
Before = Callable[[int], None]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def launched(size: int, words: Sequence[str], cwd: Path, before: Before | None = None) -> list[Forked]:
    """``ganlab`` as ``size`` ranks here, in torchrun's environment; ``before(rank)`` runs first."""
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        Forked(
            *words,
            cwd=cwd,
            env=place | {"RANK": str(i), "LOCAL_RANK": str(i)},
            before=partial(before, i) if before else None,
        )
        for i in range(size)
    ]


def ranks(
    size: int, *words: str, cwd: Path, before: Before | None = None, code: int | None = 0, lines: int = 1
) -> list[Done]:
    """How they ended: all with ``code`` (None: whatever), and ``lines`` error lines among them."""
    ended = [process.wait(60) for process in launched(size, words, cwd, before)]
    if code is not None:
        ends = [d.err.strip()[-200:] for d in ended]
        assert [d.code for d in ended] == [code] * size, f"{[d.code for d in ended]}, not {code}: {ends}"
        printed = errors(ended)
        assert len(printed) == (lines if code else 0), printed
        assert not any("Traceback" in d.err for d in ended)
    return ended


def errors(ended: Sequence[Done]) -> list[str]:
    return [line for d in ended for line in d.err.splitlines() if line.startswith("ganlab: error: ")]


def at(step: int, rank: int, what: Callable[[], object]) -> Before:
    """On ``rank``, before its update number ``step``: ``what()``."""

    def patch(mine: int) -> None:
        from ganlab.training.engine import Engine

        update = Engine.update

        def patched(self: Engine, number: int) -> None:
            if (number, mine) == (step, rank):
                what()
            update(self, number)

        Engine.update = patched  # type: ignore[method-assign]

    return patch


def send(signum: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signum)


# ---- equal to one process

SAME: dict[str, list[str]] = {
    "cnn sn": ["normalization=[sn]"],
    "cnn gp": ["normalization=[gp]", "loss=wasserstein", "d_steps=2"],
    "resnet sn": ["architecture=resnet", "dataset.resolution=32", "normalization=[sn]"],
    "resnet gp": ["architecture=resnet", "dataset.resolution=32", "normalization=[gp]", "loss=wasserstein"],
}
MORE: dict[str, list[str]] = {
    "sn and gp, per update": ["normalization=[sn,gp]", "normalization.sn.update=per_update"],
    "batch norm in D": ["normalization=[bn]"],
    "batch norm in D under gp": ["normalization=[bn,gp]", "normalization.bn.affine=full"],
    "accumulate": ["accumulate=2", "normalization=[sn,gp]", "d_steps=2"],
    "joint fakes, ema, g first": ["joint_fakes=true", "d_steps=2", "ema=0.9", "order=g_first"],
    "warm-up of D": ["d_warmup_steps=4", "d_warmup_updates=2", "d_warmup_every=3", "d_steps=2"],
    "dequantize, flip": ["dequantize=true", "flip=true", "g_batch_size=16"],
    "dcgan, orthonormal": ["architecture=dcgan", "normalization=[orthonormal]", "loss=lsgan"],
    "snr, weight clip": ["normalization=[snr,wc]"],
    "projection, labels of the data": [
        "architecture=resnet",
        "architecture.head=projection",
        "dataset.resolution=32",
        "fake_labels=data",
        "steps=3",
    ],
    "ac-gan": [
        "architecture=resnet",
        "architecture.head=ac",
        "class_loss=acgan",
        "dataset.resolution=32",
        "steps=3",
    ],
}


def in_float64(_: int = 0) -> None:
    """All of training in float64: what is left of a difference is no rounding of float32."""
    import torch

    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]


def tensors_of(run: Path) -> dict[str, Any]:
    folder = RunFolder(run)
    return Checkpoints(folder.checkpoints, folder.run_id).load(quarantine=False)[1]


def equal(more: Sequence[str], size: int, here: Path, before: Before = in_float64) -> Numbers:
    """Every tensor of the last checkpoint, and every logged mean, of ``size`` ranks and of one process."""
    words = tiny(
        "steps=4", "save_every=0", "prior=normal", "batch_size=12" if size == 3 else "batch_size=8", *more
    )
    alone = Forked(*words, "run_dir=alone", cwd=here, before=partial(before, 0))
    ranks(size, *words, cwd=here, before=before)
    assert alone.wait(60).code == 0, alone.wait().err[-300:]
    one, many = tensors_of(here / "alone"), tensors_of(here / "run")
    assert one.keys() == many.keys()
    off = max(float((one[k].double() - many[k].double()).abs().max()) for k in one if one[k].numel())
    assert 0 < off <= CLOSE, off  # 0 would say that nothing was shared
    for a, b in zip(records(here / "alone"), records(here / "run"), strict=True):
        means = [k for k in a if k.startswith("loss/")]
        assert all(abs(a[k] - b[k]) <= CLOSE * max(1, abs(a[k])) for k in means), (a, b)
    return {"difference": off}


def same() -> list[Case]:
    chosen = [(name, more, 2) for name, more in (SAME | MORE).items()]
    chosen += [(name, more, 3) for name, more in SAME.items()]
    return [Case(f"{name}, {size} ranks", partial(equal, more, size)) for name, more, size in chosen]


SCORES: dict[str, list[str]] = {
    "is, fid, kid": ["metric=[is,fid,kid,precision_recall]", "metric.protocol.fid_n_fake=1700"],
    "of classes": [
        "metric=[fid,intra_fid,ms_ssim,intra_ms_ssim]",
        "metric.protocol.fid_n_fake=700",
        "metric.protocol.intra_n_fake=1100",
        "metric.protocol.intra_classes=2",
        "architecture=resnet",
        "architecture.head=projection",
        "dataset.resolution=32",
    ],
}


def scored_alike(more: Sequence[str], size: int, here: Path) -> None:
    """The scores of one and the same G, to the last bit."""
    words = tiny("steps=1", "eval_start=true", "batch_size=12", *more)
    alone = Forked(*words, "run_dir=alone", cwd=here)
    ranks(size, *words, cwd=here)
    assert alone.wait(60).code == 0, alone.wait().err[-300:]
    one, many = (records(here / name)[0] for name in ("alone", "run"))
    assert one["kind"] == "eval"
    assert one["step"] == 0
    assert all(value is not None for value in one["scores"].values()), one
    assert one == many


def scores() -> list[Case]:
    chosen = [(name, more, size) for name, more in SCORES.items() for size in (2, 3)]
    return [Case(f"{name}, {size} ranks", partial(scored_alike, more, size)) for name, more, size in chosen]


# ---- exact over a resume


WHOLE: dict[tuple[int, tuple[str, ...]], str] = {}  # one run of a kind is enough for many cases


def uninterrupted(here: Path, *words: str, size: int = 2, prepare: Before | None = None) -> str:
    if (size, words) not in WHOLE:
        ranks(size, *tiny(*words), "run_dir=whole", cwd=here, before=prepare)
        WHOLE[size, words] = state_digest(here / "whole")
    return WHOLE[size, words]


def resumed(
    words: Sequence[str],
    before: Before,
    code: int | None,
    here: Path,
    size: int = 2,
    prepare: Before | None = None,
) -> None:
    """Ends by ``before``, goes on by the same command, and is then as if nothing had happened.

    ``prepare`` runs first in the other runs.
    """
    wanted = uninterrupted(here, *words, size=size, prepare=prepare)
    ended = ranks(size, *tiny(*words), cwd=here, before=before, code=code)
    if code is None:
        assert len(errors(ended)) <= 1, errors(ended)
        assert all(d.code for d in ended)
    nothing_lost(here / "run")
    ranks(size, *tiny(*words), cwd=here, before=prepare)
    nothing_lost(here / "run")
    assert state_digest(here / "run") == wanted


RESUMED: dict[str, list[str]] = {
    "cnn sn": ["eval_every=6"],
    "apart, gp, ema": [
        "sync_bn=false",
        "normalization=[bn,gp]",
        "ema=0.9",
        "dequantize=true",
        "lr_decay=linear",
    ],
    "projection": ["architecture=resnet", "architecture.head=projection", "dataset.resolution=32", "steps=8"],
}


def exact() -> list[Case]:
    return [
        Case(f"{name}, stopped at {step}", partial(resumed, RESUMED[name], at(step, 0, send(15)), 143))
        for name in RESUMED
        for step in (1, 4, 7)
    ]


# ---- one rank ends


def failing(kind: str) -> None:
    if kind == "memory":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    raise ValueError("a bug")


def no_data(rank: int) -> None:
    """The images are missing on the second rank's machine alone."""
    from ganlab.data.digits import Digits
    from ganlab.errors import DataError

    def load(*_: Any, **__: Any) -> None:
        raise DataError("/data/digits", "is missing", "copy it there")

    if rank == 1:
        Digits.load = load  # type: ignore[method-assign]


def fails_alike(words: Sequence[str], before: Before | None, code: int, where: str, here: Path) -> None:
    ended = ranks(2, *tiny(*words), cwd=here, before=before, code=code)
    assert re.search(where, errors(ended)[0]), errors(ended)


def other_size(here: Path) -> None:
    """Made with two ranks, gone on with by one, then by two again: allowed, with one warning."""
    ranks(2, *tiny("steps=4"), cwd=here)
    alone = Forked(*tiny("steps=8"), cwd=here).wait()
    assert alone.code == 0
    assert alone.err.count("world_size 2, now 1") == 1, alone.err
    ended = ranks(2, *tiny("steps=12"), cwd=here)
    assert sum(d.err.count("world_size 1, now 2") for d in ended) == 1
    nothing_lost(here / "run")


def signalled(phase: str, rank: int, signum: int) -> Before:
    """``rank`` gets a signal in a phase of the run."""

    def patch(mine: int) -> None:
        if mine != rank:
            return
        from ganlab.extractors.cifar import CifarExtractor
        from ganlab.training import prepare
        from ganlab.training.monitor import Monitor

        owner: Any
        owner, name = {
            "start-up": (prepare, "_prepare_locally"),
            "evaluation": (CifarExtractor, "__call__"),
            "samples": (Monitor, "samples"),
            "save": (Checkpoints, "_commit"),
        }[phase]
        method, calls = getattr(owner, name), []

        def patched(*args: Any, **more: Any) -> Any:
            calls.append(1)
            if len(calls) == (1 if phase in ("start-up", "evaluation") else 2):
                os.kill(os.getpid(), signum)
            return method(*args, **more)

        setattr(owner, name, patched)

    return patch


PHASED = ["eval_every=6", "sample_every=3", "metric.protocol.is_n_fake=1000"]


def ends() -> Iterator[Case]:
    kill = signal.SIGKILL
    for rank, step in [(0, 5), (1, 5), (1, 0)]:
        yield Case(
            f"kill -9 of rank {rank} at {step}", partial(resumed, [], at(step, rank, send(kill)), None)
        )
    three = partial(resumed, ["batch_size=12"], at(5, 2, send(kill)), None, size=3)
    yield Case("kill -9 of rank 2 of 3", three)
    signals = [(p, r, s) for p in ("start-up", "evaluation") for r in (0, 1) for s in (2, 10)]
    signals += [("evaluation", 1, 15), ("samples", 0, 15), ("save", 0, 15), ("samples", 1, 2)]
    for phase, rank, signum in signals:
        hit = partial(resumed, PHASED, signalled(phase, rank, signum), 128 + signum)
        if phase == "start-up":
            hit = partial(fails_alike, [], signalled(phase, rank, signum), 128 + signum, "before training")
        yield Case(f"{signal.Signals(signum).name} to rank {rank} in {phase}", hit)
    mistakes: Mapping[str, tuple[list[str], Before | None, int, str]] = {
        "a batch that can't be shared": (["batch_size=9"], None, 2, "batch_size"),
        "a misspelt key": (["batch_sise=8"], None, 2, "batch_size"),
        "data missing for one rank": ([], no_data, 3, "/data/digits"),
        "memory out on one rank": ([], at(5, 1, partial(failing, "memory")), 5, "batch_size"),
        "a bug on one rank": ([], at(5, 1, partial(failing, "bug")), 1, "a bug"),
        "divergence": (["optimizer.lr=1e30"], None, 6, "not finite"),
    }
    for name, expected in mistakes.items():
        yield Case(name, partial(fails_alike, *expected))
    yield Case("another number of ranks", other_size)


def summary(numbers: Sequence[Numbers]) -> str:
    return f"{max(n['difference'] for n in numbers):.0e}, in float64"


FIGURES = [
    Figure("ranks_same", "2 or 3 ranks equal one process to 1e-6", same, summary),
    Figure("ranks_scores", "Scores of 2 or 3 ranks are the same to the last bit", scores),
    Figure("ranks_exact", "Runs of 2 ranks, stopped: resume bit-identical", exact),
    Figure("ranks_end", "One rank killed or failing: all end, nothing lost", lambda: [*ends()]),
]
