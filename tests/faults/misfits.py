"""Whole checkpoints that do not fit: of another run, config or format, or with numbers that are none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .base import ROOT, Case, Figure, records
from .rewritten import first, ganlab, refused, sign, stopped, train, went_on, with_state, with_tensors

FIXTURES = ROOT / "tests" / "fixtures"

# ---- 30: does not fit

RESNET = ("architecture=resnet", "dataset.resolution=32")


def of_config(asked: Sequence[str], key: str, made: Sequence[str] = ()) -> Callable[[Path], None]:
    """A checkpoint of one config under another, which the user insists on: shapes and the key are told."""

    def check(place: Path) -> None:
        stopped(place, *made)
        group = key.partition(".")[0]
        allow = f"resume_allow=[{group},architecture,dataset,class_loss,d_steps,optimizer]"
        before = sorted(p.name for p in (place / "run" / "checkpoints").iterdir())
        said = train(place, *asked, allow)
        refused(said, 4, r"step-000000005: (tensor|holds) ", rf"it was made with {re.escape(key)} ")
        assert sorted(p.name for p in (place / "run" / "checkpoints").iterdir()) == before, (
            "nothing is touched"
        )

    return check


def of_tensors(change: Callable[[dict[str, Any]], object], *patterns: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        with_tensors(change)(stopped(place, "ema=0.9"))
        refused(train(place, "ema=0.9", "resume=5"), 4, *patterns)

    return check


def of_state(change: Callable[[dict[str, Any]], object], *patterns: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        with_state(change)(stopped(place, "ema=0.9"))
        refused(train(place, "ema=0.9", "resume=5"), 4, *patterns)

    return check


def reshaped(prefix: str) -> Callable[[dict[str, Any]], object]:
    return lambda t: t.update({first(t, prefix): t[first(t, prefix)].flatten()[:1].clone()})


def retyped(prefix: str) -> Callable[[dict[str, Any]], object]:
    return lambda t: t.update({first(t, prefix): t[first(t, prefix)].double()})


def without(prefix: str) -> Callable[[dict[str, Any]], object]:
    return lambda t: [t.pop(name) for name in list(t) if name.startswith(prefix)]


def of_another_run(change: Sequence[str], key: str) -> Callable[[Path], None]:
    """Its folder copied in, and named: told as another run's, with the key that differs; left where it is."""

    def check(place: Path) -> None:
        step = stopped(place)
        (place / "other").mkdir()
        theirs = stopped(place / "other", *change)
        shutil.rmtree(step)
        shutil.copytree(theirs, step)
        pattern = rf"belongs to another run, made with {re.escape(key)} " if key else "belongs to another run"
        refused(train(place, "resume=5"), 4, "step-000000005", pattern)
        code, said = train(place)  # of itself it takes its own, older one
        assert code == 0, said[-300:]
        assert "belongs to another run" in said
        assert step.is_dir()

    return check


def misfits() -> list[Case]:
    shapes = r"tensor {} is \[.*\] float\d\d, this config builds \[.*\] float32"
    cases = {
        "architecture.width": of_config(["architecture.width=0.06"], "architecture.width"),
        "another run's": of_another_run(["seed=1"], "seed"),
        "no slots of D's optimiser": of_tensors(without("d_optimizer/"), "d_optimizer/state/0/.* is nothing"),
        "a wrong dtype in generator": of_tensors(retyped("generator/"), shapes.format("generator/.*")),
    }
    configs = {
        "architecture.z_dim": ["architecture.z_dim=6"],
        "dataset.channels": ["dataset.channels=3"],
        "normalization.sn": ["normalization=[wn]"],
        "normalization.bn": ["normalization=[sn,bn]"],
        "normalization.sn.gamma": ["normalization.sn.gamma=learned"],
        "ema": ["ema=0.9"],
        "dataset.resolution": [*RESNET],  # the first of two
    }
    cases |= {f"config: {k}": of_config(words, k) for k, words in configs.items()}
    cases["config: head"] = of_config(
        [*RESNET, "architecture.head=projection"], "architecture.head", [*RESNET]
    )
    for name in ("generator", "discriminator", "average", "g_optimizer", "d_optimizer"):
        cases[f"a wrong shape in {name}"] = of_tensors(reshaped(f"{name}/"), shapes.format(f"{name}/.*"))
        cases[f"a wrong dtype in {name}"] = of_tensors(retyped(f"{name}/"), shapes.format(f"{name}/.*"))
        cases[f"nothing of {name}"] = of_tensors(without(f"{name}/"), f"tensor {name}/.* is nothing")
        cases[f"{name} is not told of"] = of_state(
            lambda s, n=name: s["game"].pop(n), f"this run has .*{name}"
        )
    cases["a tensor too many"] = of_tensors(
        lambda t: t.update({"generator/more": t[first(t, "generator/")].clone()}), "generator/more", "nothing"
    )
    cases["no networks at all"] = of_state(lambda s: s.pop("game"), "contains no networks")
    cases["no progress"] = of_state(lambda s: s.pop("progress"), "its state does not fit")
    cases["progress of the wrong kind"] = of_state(lambda s: s.update(progress=[1]), "its state does not fit")
    cases["no tally"] = of_state(lambda s: s["progress"].update(tally=3), "its state does not fit")
    cases["threads of the wrong kind"] = of_state(lambda s: s.update(threads="x"), "its state does not fit")
    cases["another run's, another width"] = of_another_run(["architecture.width=0.06"], "architecture.width")
    cases["another run's, the same config"] = of_another_run([], "")
    return [Case(name, check) for name, check in cases.items()]


# ---- 31: numbers that are none


def poisoned(prefix: str, value: float) -> Callable[[Path], None]:
    """Signed, and with a NaN in it: refused by name, fallen back from without one; sample draws, warned."""

    def check(place: Path) -> None:
        step = stopped(place, "ema=0.9")

        def poison(tensors: dict[str, Any]) -> None:
            tensors[first(tensors, prefix)].view(-1)[0] = value

        with_tensors(poison)(step)
        refused(train(place, "ema=0.9", "resume=5"), 4, f"tensor {prefix}.* is not finite")
        code, said = ganlab(
            place, "sample", "run", "n=2", "checkpoint=5", "interpolations=0", "singles=false"
        )
        assert code == 0, said[-300:]
        assert re.search(rf"ganlab: warning: .*{prefix}.* is not finite", said), said[-300:]
        went_on(train(place, "ema=0.9"), "is not finite; set aside as step-000000005.corrupt")

    return check


def not_finite() -> list[Case]:
    found = {"generator": "nan", "d_optimizer": "inf", "discriminator": "-inf", "average": "nan"}
    found["g_optimizer"] = "nan"
    return [Case(f"{v} in {name}/", poisoned(f"{name}/", float(v))) for name, v in found.items()]


# ---- 32: formats


def released(fixture: Path) -> Callable[[Path], None]:
    """A run of an older ganlab: what it saved is what is loaded, and what it went on to comes again.

    Losses within 1e-3; on the machine and with the versions that it was made with, the same bits.
    """

    def check(place: Path) -> None:
        from ganlab.runs.checkpoint import Checkpoints, digest
        from ganlab.runs.folder import RunFolder
        from ganlab.runs.provenance import versions

        expected = json.loads((fixture / "expected.json").read_text())
        run = RunFolder(shutil.copytree(fixture, place / "run"))

        def state(step: int) -> str:
            _, tensors, found = Checkpoints(run.checkpoints, run.run_id).load(step)
            return digest(tensors, found["game"])

        assert state(expected["step"]) == expected["digest"], "what was saved is what is loaded"
        words = [w for w in expected["words"] if not w.startswith("run_dir=")]
        code, said = ganlab(place, "check", "run")
        assert code == 0, said
        code, said = ganlab(place, "train", *words, "run_dir=run", few_images=False)
        assert code == 0, said[-300:]

        made = expected["made_on"]
        same = made["versions"]["torch"] == versions()["torch"] and made["device"] in said_device()
        told = {(r["step"], r["kind"]): r for r in records(place / "run")}
        for record in expected["continued"]["records"]:
            mine = told[record["step"], record["kind"]]
            for key, value in record.items():
                if key.startswith("loss/") and isinstance(value, float):
                    assert abs(mine[key] - value) <= 1e-3 * max(1, abs(value)), (key, value, mine[key])
        if same:
            assert state(expected["continued"]["step"]) == expected["continued"]["digest"], "bit for bit"

    return check


def said_device() -> str:
    import torch

    from ganlab.system.hardware import device_name

    return device_name(torch.device("cpu"))


def of_format(number: Any, needs: Any, pattern: str, code: int = 4) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        sign(stopped(place), format=number, needs=needs)
        refused(train(place, "resume=5"), code, pattern)

    return check


def formats() -> list[Case]:
    cases = [Case(f.name, released(f)) for f in sorted(FIXTURES.glob("format-*"))]
    cases.append(Case("a newer one", of_format(2, "3.1", r"needs ganlab >= 3\.1; upgrade it")))
    cases.append(Case("much newer, no version told", of_format(99, None, "needs ganlab >=")))
    none = "none that a ganlab ever wrote"
    return cases + [Case(f"format {n!r}", of_format(n, "0.1", none)) for n in (0, -1, "1")]


FIGURES = [
    Figure("misfits", "Checkpoints that do not fit -> told by tensor, shapes and key", (30,), 30, misfits),
    Figure("not-finite", "Stored weights that are not finite -> refused by name", (31,), 5, not_finite),
    Figure("formats", "Released formats that load and go on; newer ones refused", (32,), 6, formats),
]
