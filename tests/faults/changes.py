"""A run continued on another machine, with other keys, other images, to another end."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .base import Case, Figure
from .played import child, few, play, seen, take_few, unlike, words_of
from .rewritten import END, QUIET, refused, stopped, train, trained, went_on, with_state

# ---- 33: another machine


def elsewhere(change: Callable[[dict[str, Any]], object], *told: str) -> Callable[[Path], None]:
    """Allowed, with one warning that lists what is not as it was."""

    def check(place: Path) -> None:
        with_state(change)(stopped(place))
        pattern = "resume is exact only with what step 5 was made with: " + ".*".join(told)
        went_on(train(place), *([pattern] if told else []))

    return check


def identity(**changes: Any) -> Callable[[dict[str, Any]], object]:
    def change(state: dict[str, Any]) -> None:
        for key, value in changes.items():
            place = (
                state["identity"]["versions"] if key in state["identity"]["versions"] else state["identity"]
            )
            place[key] = value
            if key == "threads":
                state["threads"] = value

    return change


def machines() -> list[Case]:
    cases = {
        "torch and threads": elsewhere(
            identity(torch="2.7.0", threads=2), "torch 2.7.0, now ", "threads 2, now 1"
        ),
        "nothing": elsewhere(identity()),
        "python": elsewhere(identity(python="3.10.1"), "python 3.10.1, now 3"),
        "numpy": elsewhere(identity(numpy="1.0"), "numpy 1.0, now"),
        "ganlab": elsewhere(identity(ganlab="0.0.1"), "ganlab 0.0.1, now"),
        "device": elsewhere(identity(device="NVIDIA H100"), "device NVIDIA H100, now cpu"),
        "world size": elsewhere(identity(world_size=8), "world_size 8, now 1"),
        "deterministic": elsewhere(identity(deterministic=True), "deterministic True, now False"),
        "precision": elsewhere(identity(bf16=True), "bf16 True, now False"),
        "another engine": elsewhere(identity(engine="graph"), "engine graph, now auto"),
        "a checkpoint that tells nothing": elsewhere(lambda s: s.pop("identity")),
    }
    return [Case(name, check) for name, check in cases.items()]


# ---- 34, 35, 40: finished runs, changed keys, impossible schedules


def finished(place: Path) -> None:
    play(place, *QUIET)
    before = seen(place / "run")
    code, said = train(place)
    assert code == 0, said[-300:]
    assert f"finished at step {END}" in said
    assert not unlike(before, seen(place / "run")), "no step more"
    refused(train(place, "steps=6"), 2, f"steps: 6 is less than the {END} already done")
    for name in ("longer", "whole"):
        (place / name).mkdir()
    shutil.move(place / "run", place / "longer" / "run")
    play(place / "longer", *QUIET, "steps=12")
    play(place / "whole", *QUIET, "steps=12")
    a, b = (trained(place / name / "run") for name in ("longer", "whole"))
    assert a == b


def fewer_steps(place: Path) -> None:
    stopped(place)
    refused(train(place, "steps=4"), 2, "steps: 4 is less than the 5 already done")
    (place / "run" / "result.json").unlink()
    refused(train(place, "steps=4"), 2, "steps: 4 is less than the 5 already done")
    went_on(train(place, "steps=5"))


def decaying(place: Path) -> None:
    play(place, *QUIET, "lr_decay=linear")
    refused(
        train(place, "lr_decay=linear", "steps=12"),
        2,
        "steps: made with 8, requested 12, and lr_decay depends",
    )


def finished_cases() -> list[Case]:
    return [
        Case("told, longer, shorter", finished),
        Case("fewer steps than done", fewer_steps),
        Case("more steps under a decay", decaying),
    ]


SAFE = {  # may change at any time: nothing of the training is another for it
    "log_every": "1",
    "eval_every": "4",
    "eval_start": "true",
    "sample_every": "2",
    "spectral_every": "2",
    "save_every": "3",
    "keep_checkpoints": "2",
    "keep_every": "4",
    "data_memory_gb": "1.5",
    "engine": "eager",
    "device": "auto",
}
OTHERS = {  # another run: refused, unless resume_allow names it
    "optimizer.lr": "0.01",
    "optimizer.betas": "[0.1,0.9]",
    "batch_size": "4",
    "g_batch_size": "8",
    "d_steps": "1",
    "seed": "7",
    "flip": "true",
    "dequantize": "true",
    "order": "g_first",
    "accumulate": "2",
    "loss": "standard",
    "loss.margin": "2.0",
    "normalization.sn.iterations": "2",
    "lr_decay": "linear",
    "precision": "bf16",
    "prior": "uniform",
    "fold": "false",
    "d_pass": "apart",
}


def free_to_change(key: str, value: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        (place / "whole").mkdir()
        play(place / "whole", *QUIET)
        stopped(place)
        code, said = train(place, f"{key}={value}")
        assert code == 0, said[-300:]
        assert trained(place / "run") == trained(place / "whole" / "run")

    return check


def another_run(key: str, value: str) -> Callable[[Path], None]:
    """Refused with the key and resume_allow; allowed by it, told in log.txt and the result."""

    def check(place: Path) -> None:
        stopped(place)
        word = f"{key}={value}"
        refused(
            train(place, word),
            2,
            rf"{re.escape(key)}: this run folder was made with .*, requested ",
            r"resume_allow=\[",
        )
        allowed = f"resume_allow=[{key.partition('.')[0]}]"
        code, said = train(place, word, allowed)
        assert code == 0, said[-300:]
        told = json.loads((place / "run" / "result.json").read_text())["changes"]
        assert [c["key"] for c in told] == [key]
        assert "from step 5 on, by resume_allow" in (place / "run" / "log.txt").read_text()
        (place / "run" / "log.txt").unlink()
        went_on(train(place, word))  # it is the run's own now

    return check


def changed() -> list[Case]:
    found = [(f"{k} may change", free_to_change(k, v)) for k, v in SAFE.items()]
    found += [(f"{k} is another run", another_run(k, v)) for k, v in OTHERS.items()]
    return [Case(name, check) for name, check in found]


IMPOSSIBLE = {
    "steps=-1": "steps",
    "steps=1e30": "steps",
    "d_steps=10000000000000000000000": "d_steps",
    "steps=10000000000000000000000": "steps",
    "optimizer.lr=-0.001": "optimizer.lr",
    "optimizer.lr=.nan": "optimizer.lr",
    "optimizer.lr=.inf": "optimizer.lr",
    "optimizer.betas=[1.5,0.9]": "optimizer.betas",
    "optimizer.betas=[0.5,1.0]": "optimizer.betas",
    "optimizer.eps=-1": "optimizer.eps",
    "ema=1.5": "ema",
    "ema=1.0": "ema",
    "ema=-0.1": "ema",
    "ema=.nan": "ema",
    "lr_decay_start=-1": "lr_decay_start",
    "lr_decay=linear lr_decay_start=8": "lr_decay_start",
    "d_steps=0": "d_steps",
    "batch_size=1": "batch_size",
    "batch_size=1000000000000": "batch_size",
    "accumulate=0": "accumulate",
    "accumulate=4": "accumulate",
    "save_every=-1": "save_every",
    "keep_checkpoints=1": "keep_checkpoints",
    "keep_every=3 save_every=2": "keep_every",
    "seed=-1": "seed",
    "threads=0": "threads",
    "normalization.sn.iterations=0": "normalization.sn",
}


def impossible(words: str, key: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        refused(train(place, *words.split()), 2, rf"ganlab: error: {re.escape(key)}")
        assert not (place / "run").exists(), "refused before anything is written"

    return check


def schedules() -> list[Case]:
    return [Case(words, impossible(words, key)) for words, key in IMPOSSIBLE.items()]


def other_data(place: Path) -> None:
    """The same words, other images behind them."""
    from ganlab.cli import main

    stopped(place)

    def other() -> int:
        take_few()
        from ganlab.data.digits import Digits

        Digits.load = lambda self, *, split=None: few(self.resolution, 59)  # type: ignore[method-assign]
        return main.main(["train", *words_of(*QUIET)])

    refused(child(other, place), 3, "dataset: this run was trained on other images: 60 images", "now 59")
    went_on(train(place))


def lost_config(place: Path) -> None:
    stopped(place)
    (place / "run" / "config.yaml").unlink()
    refused(train(place, "seed=3"), 2, "seed: this run folder was made with 0, requested 3")
    code, said = train(place)
    assert code == 0, said[-300:]


def lost() -> list[Case]:
    return [Case("other images", other_data), Case("config.yaml lost", lost_config)]


FIGURES = [
    Figure("machines", "Resumed with another machine or version -> one warning", (33,), 6, machines),
    Figure("finished", "Finished runs: told, lengthened, not shortened", (34,), 3, finished_cases),
    Figure("changed", "Keys changed on resume: safe ones go, others are named", (35,), 25, changed),
    Figure("schedules", "Impossible counters and schedules -> code 2 at the start", (40,), 20, schedules),
    Figure("lost", "Another data set, or a lost config, behind a run", (30, 35), 2, lost),
]
