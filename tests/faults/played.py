"""Tiny runs of every part there is, whole or stopped at a step, each in a process of its own.

The parts are read from ``configs/`` and from signatures: a new loss or normalization is in the figures by
being there. Sixty images and batches of six make an epoch end within a run of fourteen updates.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

from ganlab.data.base import SampleSet
from ganlab.data.digits import Digits
from ganlab.data.fingerprint import fingerprint

from .base import ROOT, records, state_digest

STEPS, IMAGES = 14, 60
LOAD = Digits.load
POINTS = {
    "the first update": 1,
    "before a save": 3,
    "after a save": 5,
    "mid-epoch": 7,
    "a save, where the rate begins to fall": 8,
    "an epoch's end": 10,
    "the last but one": 13,
}
WORDS = {
    "dataset": "digits",
    "dataset.resolution": "16",
    "architecture.width": "0.03",
    "architecture.z_dim": "4",
    "normalization": "[sn]",
    "loss": "hinge",
    "steps": str(STEPS),
    "batch_size": "6",
    "g_batch_size": "null",
    "d_steps": "2",
    "accumulate": "1",
    "metric": "[is]",
    "metric.extractor": "cifar",
    "metric.protocol": "smoke",
    "metric.protocol.is_n_fake": "16",
    "metric.progress": "null",
    "eval_every": "6",
    "save_every": "4",
    "log_every": "3",
    "sample_every": "5",
    "spectral_every": "7",
    "keep_checkpoints": "9",
    "device": "cpu",
    "threads": "1",
    "run_dir": "run",
}
RICH = ["ema=0.9", "flip=true", "dequantize=true", "lr_decay=linear", "lr_decay_start=8"]
TECHNIQUES = {
    "EMA": ["ema=0.9"],
    "accumulate": ["accumulate=3"],
    "g_first": ["order=g_first"],
    "joint_fakes": ["joint_fakes=true", "architecture=dcgan", "dataset.resolution=32"],
    "decay, flips, dequantize": RICH[1:],
    "bf16": ["precision=bf16"],
    "passes apart": ["d_pass=apart", "normalization=[sn,gp]", "loss=wasserstein"],
    "memory map": ["data_memory_gb=0"],
    "warm-up of D": ["d_warmup_steps=4", "d_warmup_updates=2", "d_warmup_every=5"],
    "D's own optimizer": ["d_optimizer={lr: 4e-4, weight_decay: 1e-3}"],
    "sn per_update": ["normalization.sn.update=per_update"],
    "sn svd": ["normalization.sn.method=svd"],
    "sn gamma": ["normalization=[sn,gp]", "normalization.sn.gamma=learned", "normalization.sn.warmup=3"],
    "wn gamma": ["normalization=[wn]", "normalization.wn.gamma=learned"],
    "bn everywhere": ["normalization=[bn]", "normalization.bn.affine=full", "normalization.bn.place=all"],
}


def options(group: str) -> list[str]:
    """The options of a group under configs/, sorted."""
    return sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml"))


def everything() -> dict[str, list[str]]:
    """Name -> words beyond ``WORDS``: each loss, normalization, architecture, head, prior, setting once."""
    from ganlab.models.heads import Head

    found = {f"loss={name}": [f"loss={name}"] for name in options("loss")}
    found |= {f"normalization={n}": [f"normalization=[{n}]", "ema=0.9"] for n in options("normalization")}
    wide = "dataset.resolution=32"
    found |= {f"architecture={n}": [f"architecture={n}", wide, *RICH] for n in options("architecture")}
    for head in get_args(Head):
        losses = options("class_loss") if head == "ac" else [""]
        for loss in losses if head != "none" else ():
            words = ["architecture=resnet", f"architecture.head={head}", wide, "fake_labels=data"]
            words += [f"class_loss={loss}", "fake_labels=uniform"][: 2 if loss else 0]
            found[f"head={head} {loss}".strip()] = words
    found |= {f"prior={n}": [f"prior={n}"] for n in options("prior")}
    found |= {f"setting={n}": [f"setting={n}", "normalization=[gp]"] for n in options("setting")}
    return found | TECHNIQUES


def words_of(*more: str) -> list[str]:
    """``WORDS`` with others that win; a setting's own ``d_steps`` is not taken."""
    given = dict(WORDS)
    for word in more:
        key, _, value = word.partition("=")
        given.pop(key, None)
        given[key] = value
    return [f"{key}={value}" for key, value in given.items()]


@functools.cache
def warm() -> None:
    """Import here, once, what every child would import anew."""
    import safetensors.torch  # noqa: F401
    import sklearn.datasets  # noqa: F401
    import torch
    import torch.utils.tensorboard
    import torchvision.utils  # noqa: F401

    from ganlab.config import compose
    from ganlab.training import trainer  # noqa: F401

    torch.set_num_threads(1)
    compose.compose([])
    torch.nn.Linear(2, 2)(torch.zeros(1, 2)).sum().backward()  # type: ignore[no-untyped-call]
    for resolution in (16, 32):
        few(resolution)


@functools.cache
def few(resolution: int, count: int = IMAGES) -> SampleSet:
    """The first digits, all classes among them."""
    whole = LOAD(Digits(resolution=resolution))
    images, labels = whole.images[:count], whole.labels[:count]  # type: ignore[index]
    return dataclasses.replace(whole, images=images, labels=labels, fingerprint=fingerprint(images, labels))


def take_few() -> None:
    """In a child: its digits are ``few``."""
    Digits.load = lambda self, *, split=None: few(self.resolution)  # type: ignore[method-assign]


def stop_after(step: int) -> None:
    """In a child: a SIGTERM comes as that many updates are done."""
    from ganlab.training.engine import Engine, Graphed

    for kind in (Engine, Graphed):
        real = kind.update

        def update(self: Any, number: int, real: Callable[[Any, int], None] = real) -> None:
            real(self, number)
            if number + 1 == step:
                os.kill(os.getpid(), signal.SIGTERM)

        if "update" in vars(kind):
            kind.update = update  # type: ignore[method-assign]


def child(work: Callable[[], object], cwd: Path) -> tuple[int, str]:
    """Do it in a forked process in ``cwd``: its exit code (of ganlab's errors too), and what it said."""
    warm()
    said = cwd.parent / f".{cwd.name}.said"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            fd = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(fd, 1)
            os.dup2(fd, 2)
            sys.stdout = open(1, "w", closefd=False, buffering=1)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115
            os.chdir(cwd)
            code = _code(work)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code & 255)
    _, status = os.waitpid(pid, 0)
    text = said.read_text("utf-8", "replace")
    said.unlink()
    return os.waitstatus_to_exitcode(status), text


def _code(work: Callable[[], object]) -> int:
    from ganlab.errors import GanlabError

    try:
        return int(work() or 0)  # type: ignore[call-overload]
    except GanlabError as error:
        for mistake in error.mistakes:
            print(f"ganlab: error: {mistake}", file=sys.stderr)
        return error.code
    except BaseException:
        traceback.print_exc()
        return 1


@functools.cache
def composed_of(*more: str) -> Any:
    """The config of these words; nobody changes it."""
    from ganlab.config import compose

    return compose.compose(words_of(*more))


def play(cwd: Path, *more: str, stop: int | None = None, patch: Callable[[], object] = lambda: None) -> str:
    """Begin or continue the run in ``cwd/run`` in a process of its own; what it said.

    Raises AssertionError unless it finishes, or saves at ``stop``.
    """
    from ganlab.config import compose
    from ganlab.training import trainer

    warm()
    composed = composed_of(*more)

    def work() -> int:
        take_few()
        patch()
        if stop is not None:
            stop_after(stop)
        e = compose.build(composed)
        return trainer.train(e, composed.saved, composed.choices, composed.overrides)

    code, said = child(work, cwd)
    wanted = 0 if stop is None else 128 + signal.SIGTERM
    assert code == wanted, f"exit code {code}, not {wanted}: {said[-500:]}"
    return said


def seen(run: Path) -> dict[str, Any]:
    """All that a finished run leaves, without clocks: last state, metrics, grids, scores."""
    import json

    told = json.loads((run / "result.json").read_text())["scores"]
    scores = {k: {n: v for n, v in one.items() if n != "seconds"} for k, one in told.items()}
    return {
        "state": state_digest(run),
        "metrics.jsonl": [json.dumps(record) for record in records(run)],
        "samples": {p.name: p.read_bytes() for p in sorted((run / "samples").glob("*.png"))},
        "scores": json.dumps(scores, sort_keys=True),
    }


def unlike(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Which of ``seen`` differ."""
    return ", ".join(key for key in a if a[key] != b[key])
