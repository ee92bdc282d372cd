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

from .base import Case, Failed, Figure, Numbers, tiny
from .runs import assert_identical, begin, composed, differences, epochs, everything, finish, stop_at

STOP = 11
IDLE = {  # component -> why a run goes on as if nothing had happened without it
    r".*/sn_v|.*\.v$|.*/_v$": "the power iteration makes v from u and the weight before it is used",
    r"state/identity|state/threads|state/num_classes": "says what the run is; for check, sample and warnings",
    r"progress/(wall_s|train_s|eval_s)": "clocks",
    r"progress/(evaluated|last)": "of the last evaluation; the next one writes it anew",
    r"progress/changes": "the list of keys that a resume changed; for people",
    r"progress/warned.*|progress/told.*": "which warnings were printed already",
    r"tally/start": "the step that the message of a divergence counts from",
    r"tally/names": "the next update names the same terms in the same order",
    r".*_optimizer/param_groups": "the config's own, built anew",
}
CONFIGS: dict[str, tuple[str, ...]] = {  # the idle components of the first are dropped too
    "sn, EMA": epochs("normalization=[sn]", "ema=0.9"),
    "bn": epochs(*everything()["bn everywhere"], "ema=0.9"),
    "sn gamma, gp": epochs(*everything()["sn gamma"]),
    "snr": epochs("normalization=[snr]"),
    "projection, EMA": epochs(*everything()["head=projection"], "ema=0.9"),
}
# a component's name -> how it is dropped, given tensors, state and the tensors of a new run
Drop = Callable[[dict[str, Any], dict[str, Any], Mapping[str, Any]], None]


def kind(name: str) -> str:
    """A tensor's place without its layer: ``generator/running_mean``, ``d_optimizer/exp_avg``."""
    part, _, rest = name.partition("/")
    words = [w for w in re.split(r"[/.]", rest) if not w.isdecimal()]
    if part.endswith("_optimizer"):
        return f"{part}/{words[-1]}"
    inner = ".".join(w for w in words if w in ("parametrizations", "original"))
    return f"{part}/{inner + '.' if inner else ''}{words[-1]}"


def tensors_of(chosen: str) -> Drop:
    """All tensors of a kind, as a new run has them; slots of an optimizer as zeros."""

    def drop(tensors: dict[str, Any], state: dict[str, Any], fresh: Mapping[str, Any]) -> None:
        for name in tensors:
            if kind(name) == chosen:
                tensors[name] = (fresh[name] if name in fresh else tensors[name] * 0).clone()

    return drop


def value_of(path: str) -> Drop:
    """A number or list of ``state.json``, as a new run has it."""

    def drop(tensors: dict[str, Any], state: dict[str, Any], fresh: Mapping[str, Any]) -> None:
        place, _, key = path.rpartition("/")
        nodes = {"state": state, "progress": state["progress"], "tally": state["progress"]["tally"]}
        new: dict[str, Any] = {"evaluated": -1, "rows": [], "start": 0, "names": [], "threads": 1}
        new |= {"num_classes": 0, "tally": {"start": 0, "names": [], "rows": []}, "identity": {}}
        old = nodes[place][key]
        nodes[place][key] = 0.0 if isinstance(old, float) else new.get(key)

    return drop


def groups_of(part: str) -> Drop:
    """The hyperparameters in an optimizer's state."""

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
    drops: dict[str, Drop] = {name: tensors_of(name) for name in sorted(set(map(kind, tensors)))}
    drops |= {f"{p}/param_groups": groups_of(p) for p in state["game"] if p.endswith("_optimizer")}
    values = [f"progress/{key}" for key in state["progress"]]
    values += [f"tally/{key}" for key in state["progress"]["tally"]]
    values += [f"state/{key}" for key in state if key not in ("game", "progress")]
    return drops | {path: value_of(path) for path in values} | {"state/step": step_of}


def fresh_tensors(words: Sequence[str]) -> dict[str, Any]:
    """The tensors of a new run of this config."""
    import torch

    from ganlab.config import compose
    from ganlab.training.build import build_gan, pack_gan

    e = compose.build(composed(tuple(tiny(*words)[1:])))
    return pack_gan(build_gan(e, torch.device("cpu"), 10))[0]


def broken(drop: Drop, fresh: Mapping[str, Any]) -> Callable[[], None]:
    """In a child: what is read from a checkpoint lacks a component."""

    def patch() -> None:
        from ganlab.runs import manifest

        real = manifest.read_checkpoint

        def read(*args: Any, **more: Any) -> Any:
            step, tensors, state = real(*args, **more)
            state = copy.deepcopy(state)
            drop(tensors, state, fresh)
            return step - (drop is step_of), tensors, state

        manifest.read_checkpoint = read  # type: ignore[assignment]

    return patch


def mutated(name: str, least: int, place: Path) -> Numbers:
    """Each component of this config's state dropped in turn; there are ``least`` at least."""
    words, kept, run = CONFIGS[name], place / "stopped", place / "run"
    stop_at(place, STOP, *words)
    shutil.copytree(run, kept)
    finish(place, *words)
    assert_identical(place, *words)
    best = json.loads((run / "result.json").read_text())["scores"]["best"]["step"]
    excuses = IDLE | ({"progress/best": "a later score was better"} if best > STOP else {})

    def is_idle(component: str) -> bool:
        return any(re.fullmatch(pattern, component) for pattern in excuses)

    run_id = json.loads((kept / "run.json").read_text())["run_id"]
    drops = components(kept / "checkpoints" / f"step-{STOP:09d}", run_id)
    if name != next(iter(CONFIGS)):
        drops = {component: drop for component, drop in drops.items() if not is_idle(component)}
    assert len(drops) >= least, f"only {len(drops)} components"
    fresh, missed, caught = fresh_tensors(words), list[str](), 0
    for component, drop in drops.items():
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        done = begin(place, *words, before=broken(drop, fresh)).wait(120)
        assert "Traceback" not in done.err or not is_idle(component), done.err[-300:]
        noticed = "Traceback" not in done.err if done.code else bool(differences(place, *words))
        caught += noticed
        if not noticed and not is_idle(component):
            missed.append(component)
    if missed:
        raise Failed(len(missed), f"dropped unnoticed: {', '.join(missed)}")
    return {"components": len(drops), "caught": caught}


def cases() -> list[Case]:
    least = dict(zip(CONFIGS, (37, 20, 18, 17, 20), strict=True))
    return [Case(name, functools.partial(mutated, name, least[name]), least[name]) for name in CONFIGS]


def summary(numbers: Sequence[Numbers]) -> str:
    total, caught = (int(sum(n[k] for n in numbers)) for k in ("components", "caught"))
    return f"{caught} of {total}, the rest named idle with the reason"


FIGURES = [Figure("mutations", "Any component of the state dropped: noticed", cases, summary)]
