"""Every component of the state is there for something: dropped at load, the resumed run ends elsewhere.

The components are read from the checkpoint itself: each tensor's place without its layer, each number of
``state.json``. A component that is dropped unnoticed must be named in ``IDLE`` with the reason.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .base import Case, Failed, Figure, Numbers
from .played import everything, play, seen, unlike, words_of

STOP = 11
IDLE = {  # component -> why a run goes on as if nothing had happened without it
    r".*/sn_v|.*\.v$|.*/_v$": "the power iteration makes v from u and the weight before it is used",
    r"state/identity|state/threads|state/num_classes": "says what the run is; for check, sample and warnings",
    r"progress/(wall_s|train_s|eval_s)": "clocks",
    r"progress/(evaluated|last)": "of the last look; the next look writes it anew",
    r"progress/changes": "the list of keys that a resume changed; for people",
    r"progress/warned.*|progress/told.*": "which warnings were said already",
    r"tally/start": "the step that the message of a divergence counts from",
    r"tally/names": "the next update names the same terms in the same order",
    r".*_optimizer/param_groups": "the config's own, built anew",
}
CONFIGS = {
    "sn, EMA": ["normalization=[sn]", "ema=0.9", "batch_size=6"],
    "bn": ["normalization=[bn]", "normalization.bn.place=all", "normalization.bn.affine=full", "ema=0.9"],
    "sn gamma, gp": everything()["sn gamma"],
    "snr": ["normalization=[snr]"],
    "projection, EMA": [*everything()["head=projection"], "ema=0.9", "normalization=[sn]"],
}


def kind(name: str) -> str:
    """A tensor's place without its layer: ``generator/running_mean``, ``d_optimizer/exp_avg``."""
    part, _, rest = name.partition("/")
    words = [w for w in re.split(r"[/.]", rest) if not w.isdecimal()]
    if part.endswith("_optimizer"):
        return f"{part}/{words[-1]}"
    inner = ".".join(w for w in words if w in ("parametrizations", "original"))
    return f"{part}/{inner + '.' if inner else ''}{words[-1]}"


Drop = Callable[[dict[str, Any], dict[str, Any], Mapping[str, Any]], None]  # tensors, state, fresh tensors


def tensors_of(chosen: str) -> Drop:
    """All tensors of a kind, as a new run has them; slots of an optimiser as zeros."""

    def drop(tensors: dict[str, Any], state: dict[str, Any], fresh: Mapping[str, Any]) -> None:
        for name in tensors:
            if kind(name) == chosen:
                tensors[name] = (
                    fresh[name].clone() if name in fresh else tensors[name].new_zeros(tensors[name].shape)
                )

    return drop


def value_of(path: str) -> Drop:
    """A number or list of ``state.json``, as a new run has it."""

    def drop(tensors: dict[str, Any], state: dict[str, Any], fresh: Mapping[str, Any]) -> None:
        place, _, key = path.rpartition("/")
        node: Any = state if place == "state" else state["progress"]
        if place == "tally":
            node = node["tally"]
        new: Any = {"evaluated": -1, "rows": [], "start": 0, "names": [], "threads": 1, "num_classes": 0}
        old = node[key]
        node[key] = new.get(key, {} if isinstance(old, dict) and key == "identity" else None)
        if isinstance(old, float):
            node[key] = 0.0
        if key == "tally":
            node[key] = {"start": 0, "names": [], "rows": []}

    return drop


def groups_of(part: str) -> Drop:
    """The hyperparameters in an optimiser's state."""

    def drop(tensors: dict[str, Any], state: dict[str, Any], fresh: Mapping[str, Any]) -> None:
        for group in state["game"][part]["param_groups"]:
            for key in [k for k in group if k != "params"]:
                del group[key]

    return drop


def step_of(tensors: dict[str, Any], state: dict[str, Any], fresh: Mapping[str, Any]) -> None:
    """Nothing here: the step itself is one less (see ``broken``)."""


def components(step: Path, run_id: str) -> dict[str, Drop]:
    """All components of a checkpoint, by name."""
    from ganlab.runs.manifest import read_checkpoint

    _, tensors, state = read_checkpoint(step, run_id)
    found: dict[str, Drop] = {name: tensors_of(name) for name in sorted(set(map(kind, tensors)))}
    found |= {
        f"{part}/param_groups": groups_of(part) for part in state["game"] if part.endswith("_optimizer")
    }
    found |= {f"progress/{key}": value_of(f"progress/{key}") for key in state["progress"]}
    found |= {f"tally/{key}": value_of(f"tally/{key}") for key in state["progress"]["tally"]}
    found |= {f"state/{key}": value_of(f"state/{key}") for key in state if key not in ("game", "progress")}
    return found | {"state/step": step_of}


@functools.cache
def fresh_of(name: str) -> dict[str, Any]:
    """The tensors of a new run of this config."""
    import torch

    from ganlab.config import compose
    from ganlab.training.build import build_gan, pack_gan

    e = compose.build(compose.compose(words_of(*CONFIGS[name])))
    return pack_gan(build_gan(e, torch.device("cpu"), 10))[0]


def broken(drop: Drop, fresh: Mapping[str, Any], undone: bool) -> Callable[[], None]:
    """In a child: what is read from a checkpoint lacks a component."""

    def patch() -> None:
        from ganlab.runs import manifest

        real = manifest.read_checkpoint

        def read(*args: Any, **more: Any) -> Any:
            step, tensors, state = real(*args, **more)
            state = copy.deepcopy(state)
            drop(tensors, state, fresh)
            return step - undone, tensors, state

        manifest.read_checkpoint = read  # type: ignore[assignment]

    return patch


def mutated(name: str, least: int, idle_too: bool) -> Callable[[Path], Numbers]:
    """Each component of this config's state dropped in turn; there are ``least`` at least."""

    def check(place: Path) -> Numbers:
        words = CONFIGS[name]
        whole, parts = place / "whole", place / "parts"
        whole.mkdir()
        parts.mkdir()
        play(whole, *words)
        play(parts, *words, stop=STOP)
        run, kept = parts / "run", place / "stopped"
        shutil.copytree(run, kept)
        sound, missed, caught, idle = seen(whole / "run"), list[str](), 0, 0
        play(parts, *words)
        assert not (different := unlike(sound, seen(run))), f"nothing dropped, and {different} differ"
        run_id = json.loads((kept / "run.json").read_text())["run_id"]
        found = components(kept / "checkpoints" / f"step-{STOP:09d}", run_id)
        best = json.loads((whole / "run" / "result.json").read_text())["scores"]["best"]["step"]
        excuses = IDLE | ({"progress/best": "a later look was better"} if best > STOP else {})
        if not idle_too:
            found = {k: v for k, v in found.items() if not any(re.fullmatch(e, k) for e in excuses)}
        assert len(found) >= least, f"only {len(found)} components"
        for component, drop in found.items():
            excused = [why for pattern, why in excuses.items() if re.fullmatch(pattern, component)]
            shutil.rmtree(run)
            shutil.copytree(kept, run)
            try:
                play(parts, *words, patch=broken(drop, fresh_of(name), drop is step_of))
                noticed = bool(unlike(sound, seen(run)))
            except AssertionError as error:
                noticed = "Traceback" not in str(error)  # refused in a line
            caught, idle = caught + noticed, idle + (not noticed and bool(excused))
            if not noticed and not excused:
                missed.append(component)
        if missed:
            raise Failed(len(missed), f"dropped unnoticed: {', '.join(missed)}")
        return {"components": len(found), "caught": caught, "idle": idle}

    return check


LEAST = {"bn": 20, "sn gamma, gp": 18, "snr": 17, "projection, EMA": 20}


def cases() -> list[Case]:
    """All components of the first config, the idle ones too; of the others what is not idle."""
    every, *others = CONFIGS
    return [Case(every, mutated(every, 37, idle_too=True), 37)] + [
        Case(name, mutated(name, LEAST[name], idle_too=False), LEAST[name]) for name in others
    ]


def told(numbers: Sequence[Numbers]) -> str:
    total, caught, idle = (int(sum(n[k] for n in numbers)) for k in ("components", "caught", "idle"))
    return (
        f"{total} components in {len(numbers)} configs: {caught} detected, {idle} named idle in "
        "tests/faults/mutations.py with the reason, 0 unnoticed"
    )


FIGURES = [Figure("mutations", "State components dropped -> detected", (32,), 100, cases, told)]
