"""Numbers that leave the finite ones, scores that have no value, and memory that runs out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .base import Case, Figure, Forked, nothing_lost, one_line, records, tiny

STEPS = 12
SOURCES = ("d", "g", "penalty", "gradient")
HUGE = 1e12


def result(run: Path) -> dict[str, Any]:
    """``result.json``."""
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


# ---- losses


def poisoned(source: str, step: int, value: float) -> Callable[[], None]:
    """Runs in the child: ``value`` is added to a loss, or to a gradient of D, in update number ``step``."""

    def patch() -> None:
        from ganlab.training import engine
        from ganlab.training import step as steps

        at, update = {"step": -1}, engine.Engine.update

        def counted(self: Any, number: int) -> None:
            at["step"] = number + 1
            update(self, number)

        def worse(terms: Any, key: str) -> Any:
            def changed(*args: Any) -> Any:
                output = terms(*args)
                losses = output[0] if isinstance(output, tuple) else output
                if at["step"] == step:
                    losses[key] = losses[key] + value
                return output

            return changed

        laid = steps.with_strides_of

        def gradient(grad: Tensor | None, parameter: Tensor) -> Tensor | None:
            grad = laid(grad, parameter)
            return grad + value if grad is not None and at["step"] == step else grad

        engine.Engine.update = counted  # type: ignore[method-assign]
        if source == "gradient":
            steps.with_strides_of = gradient  # type: ignore[assignment]
        elif source == "g":
            steps.g_terms = worse(steps.g_terms, "g")
        else:
            steps.d_terms = worse(steps.d_terms, {"d": "d", "penalty": "gp"}[source])

    return patch


def diverges(source: str, step: int, value: float) -> Callable[[Path], None]:
    """Exit code 6 with the term and the update; the checkpoints there are finite, and stay."""

    def check(place: Path) -> None:
        words = tiny(f"steps={STEPS}", "save_every=2", "normalization=gp", "engine=eager")  # as it is patched
        done = Forked(*words, cwd=place, before=poisoned(source, step, value)).wait()
        term = {"d": "loss d", "g": "loss g", "penalty": "loss gp", "gradient": "loss|/"}[source]
        one_line(done, 6, term, "step")
        last = step + (source == "gradient")  # a gradient shows in the next update's losses
        named = [n for n in (step, last) if f"step {n}" in done.err]
        assert named, done.err
        run = place / "run"
        nothing_lost(run)
        kept = [int(p.name[5:]) for p in (run / "checkpoints").iterdir()]
        assert max(kept) == (step - 1) // 2 * 2, f"checkpoints of {kept}, poisoned at {step}"
        assert result(run)["status"] == "diverged"
        one_line(Forked(*words, cwd=place).wait(), 6, "diverged", "run_dir=")
        assert {int(p.name[5:]) for p in (run / "checkpoints").iterdir()} == set(kept)

    return check


def runs_away(key: str) -> Callable[[Path], None]:
    """A loss without bounds, or images that are all the same: a warning with the step, no crash."""

    def check(place: Path) -> None:
        words = {
            "loss": [f"steps={STEPS}", "loss=wasserstein", "normalization=none", "engine=eager"],
            "lr": [f"steps={STEPS}", "loss=wasserstein", "normalization=none", "optimizer.lr=1e4"],
            "images": [f"steps={STEPS}", "sample_every=2"],
        }[key]

        def same() -> None:
            from ganlab.models.cnn import Generator
            from ganlab.training import monitor

            monitor.SETTLED = 2

            forward = Generator.forward

            def black(self: Any, *args: Any) -> Any:
                return forward(self, *args) * 0 - 1

            Generator.forward = black  # type: ignore[method-assign]

        before = {"loss": poisoned("d", 3, HUGE), "images": same}.get(key)
        done = Forked(*tiny(*words), cwd=place, before=before).wait()
        assert done.code in ((0,) if key != "lr" else (0, 6)), done.err
        assert "Traceback" not in done.err
        causes = {"loss": "seems to diverge", "lr": "seems to diverge|not finite", "images": "are identical"}
        lines = [line for line in done.err.splitlines() if any(w in line for w in causes[key].split("|"))]
        assert len(lines) == 1 or (key == "lr" and lines), done.err
        assert "step" in lines[0]
        nothing_lost(place / "run")

    return check


# ---- scores


def scored(patch: Callable[[], None], lost: set[str], why: str) -> Callable[[Path], None]:
    """A run whose scores ``lost`` have no value: it ends, they are null, a warning says ``why``."""

    def check(place: Path) -> None:
        words = tiny(
            "engine=eager", f"steps={STEPS}", "eval_every=4", "metric=[is,fid,kid]", "sample_every=4"
        )
        done = Forked(*words, cwd=place, before=patch).wait()
        assert done.code == 0, done.err
        assert "Traceback" not in done.err
        assert why in done.err, done.err
        values = result(place / "run")["scores"]["last"]["values"]
        assert {name for name, value in values.items() if value is None and "_std" not in name} == lost
        best = result(place / "run")["scores"]["best"]
        assert ("fid_cifar" in lost) == (best["values"]["fid_cifar"] is None)
        for line in (place / "run" / "metrics.jsonl").read_text().splitlines():
            json.loads(line, parse_constant=lambda text: 1 / 0)  # NaN is no JSON

    return check


def value_is(value: float, calls: tuple[int, ...] = ()) -> Callable[[], None]:
    """FID comes out as ``value``, always or at these calls."""

    def patch() -> None:
        from ganlab.metrics.fid import RunningFID

        count, real = [0], RunningFID.value

        def changed(self: Any, *args: Any) -> dict[str, float]:
            count[0] += 1
            score = real(self, *args)
            return {"fid": value} if not calls or count[0] in calls else score

        RunningFID.value = changed  # type: ignore[method-assign]

    return patch


def features(change: Callable[[Tensor, int], Tensor]) -> Callable[[], None]:
    """The feature network answers with ``change(pool, call)``."""

    def patch() -> None:
        from ganlab.extractors.cifar import CifarExtractor

        calls, real = [0], CifarExtractor.__call__

        def changed(self: Any, images: Tensor) -> Any:
            calls[0] += 1
            output = real(self, images)
            return output._replace(pool=change(output.pool, calls[0]))

        CifarExtractor.__call__ = changed  # type: ignore[method-assign]

    return patch


def crash(pool: Tensor, call: int) -> Tensor:
    """An extractor that breaks."""
    raise ValueError(f"broken at call {call} of {tuple(pool.shape)}")


def linalg(pool: Tensor, call: int) -> Tensor:
    """One that runs into a singular matrix."""
    return torch.linalg.inv(torch.zeros(2, 2)) if call else pool


def never_best(place: Path) -> None:
    """A NaN in the middle neither becomes the best nor hides a later one."""
    words = tiny(f"steps={STEPS}", "eval_every=3", "metric=[fid]")
    done = Forked(*words, cwd=place, before=value_is(math.nan, (2,))).wait()
    assert done.code == 0, done.err
    values = {r["step"]: r["scores"]["fid_cifar"] for r in records(place / "run") if r["kind"] == "eval"}
    assert values[6] is None
    assert result(place / "run")["scores"]["best"]["step"] == min(
        (s for s in values if values[s] is not None), key=lambda s: values[s]
    )


# ---- memory


def out_of_memory(where: str, calls: int) -> Callable[[], None]:
    """The device runs out of memory at the ``calls``-th call of a phase, once."""

    def patch() -> None:
        from ganlab.extractors.cifar import CifarExtractor
        from ganlab.samples import images as images_module
        from ganlab.training import monitor
        from ganlab.training import step as steps

        count = [0]

        def failing(real: Any) -> Any:
            def limited(*args: Any, **more: Any) -> Any:
                count[0] += 1
                if count[0] == calls:
                    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
                return real(*args, **more)

            return limited

        if where == "step":
            steps.d_terms = failing(steps.d_terms)
        elif where == "features":
            CifarExtractor.__call__ = failing(CifarExtractor.__call__)  # type: ignore[method-assign]
        elif where == "images":
            images_module.quantize = failing(images_module.quantize)
        else:
            previews, quantize = monitor.stored_samples, failing(images_module.quantize)
            monitor.stored_samples = lambda net, z, y, _: previews(net, z, y, quantize)

    return patch


def memory(where: str, calls: int) -> Callable[[Path], None]:
    """Scoring goes on in smaller batches with the same numbers; training says which key to lower."""

    def check(place: Path) -> None:
        words = tiny(
            "engine=eager", f"steps={STEPS}", "eval_every=4", "sample_every=4", "metric=[fid]", "save_every=2"
        )
        done = Forked(*words, cwd=place, before=out_of_memory(where, calls)).wait()
        run = place / "run"
        nothing_lost(run)
        if where == "step":
            one_line(done, 5, "batch_size|ulimit -v", "lower|raise")
            assert result(run)["status"] == "failed"
            done = Forked(*words, cwd=place).wait()
        elif where != "samples":
            assert done.err.count("out of memory while scoring") == 1 or where == "images", done.err
        assert done.code == 0, done.err
        whole = Forked(*words[:-1], "save_every=2", "run_dir=whole", cwd=place).wait()
        assert whole.code == 0, whole.err
        scores = [result(place / name)["scores"]["last"]["values"] for name in ("run", "whole")]
        assert scores[0] == scores[1], scores
        for grid in (place / "whole" / "samples").iterdir():
            assert grid.read_bytes() == (run / "samples" / grid.name).read_bytes(), grid.name

    return check


def cases() -> list[Case]:
    collected = [
        Case(f"{value} in {source} at update {step}", diverges(source, step, value))
        for source in SOURCES
        for step, value in ((2, math.nan), (5, math.nan), (6, math.inf), (11, math.inf))
    ]
    collected += [Case(f"{key} runs away", runs_away(key)) for key in ("loss", "lr", "images")]
    every = {"is_cifar", "fid_cifar", "kid_cifar"}
    changes: dict[str, tuple[Callable[[], None], set[str], str]] = {
        "nan": (value_is(math.nan), {"fid_cifar"}, "fid"),
        "-inf": (value_is(-math.inf), {"fid_cifar"}, "fid"),
        "crash": (features(crash), every, "crashed"),
        "linalg": (features(linalg), every, "no value"),
    }
    for name, (patch, lost, why) in changes.items():
        collected.append(Case(f"score {name}", scored(patch, lost, why)))
    collected.append(Case("a NaN is never best", never_best))
    for where in ("step", "features", "images", "samples"):
        collected += [Case(f"memory ends in {where}, call {k}", memory(where, k)) for k in (1, 2, 5)]
    return collected


FIGURES = [
    Figure(
        "numerics", "NaN, infinity or no memory: the right end, finite checkpoints, the same scores", cases
    )
]
