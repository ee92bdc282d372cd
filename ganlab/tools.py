"""What is done with a finished or running run: scoring a checkpoint again, and drawing samples from it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ganlab import config, samples, sampling
from ganlab.checkpoint import Checkpoints
from ganlab.data.files import progress
from ganlab.disk import read_json, write_json
from ganlab.environment import unread
from ganlab.errors import CheckpointError, ConfigError, DataError, EnvError, Mistake
from ganlab.evaluate import Evaluator
from ganlab.experiment import Experiment
from ganlab.facts import device_name, find_device, git_revision, now, set_precision, versions
from ganlab.fakes import generators
from ganlab.game import Game
from ganlab.metrics.protocol import apart, digest
from ganlab.packages import RUNS, require
from ganlab.paths import cache_dir
from ganlab.record import brief, entry
from ganlab.resume import whole
from ganlab.run_folder import RunFolder
from ganlab.setup import build_game, told_shape, unpack_game
from ganlab.state_tree import non_finite


def open_run(
    run: str, overrides: Sequence[str], config_dirs: Sequence[str] = ()
) -> tuple[RunFolder, Experiment]:
    """A run folder and its experiment, with other ways to score it where ``overrides`` say so.

    Raises DataError if the folder is no run's, ConfigError with every mistake.
    """
    require(*RUNS)
    folder = RunFolder(run)
    saved = folder.read_config()
    folder.require_own()
    if saved is None:
        raise DataError(run, "is not a run folder: it has no config.yaml", "name a folder under outputs/")
    return folder, config.build(config.reopen(saved, overrides, config_dirs))


def restore(
    folder: RunFolder, e: Experiment, checkpoint: str, device: torch.device, finite: bool = True
) -> tuple[Game, int]:
    """The players as a checkpoint has them, and its step. ``checkpoint``: ``last``, ``best`` or a step.

    Reads only: the run may still be training. ``finite=False``: a named one with NaNs in it is only warned
    of. Raises CheckpointError, ConfigError.
    """
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
    step: int | None = None
    if checkpoint == "best":
        best = ((read_json(folder.result) or {}).get("scores") or {}).get("best")
        if not best:
            raise CheckpointError(
                str(folder.path), "has no scores yet, so no best checkpoint", "use checkpoint=last"
            )
        step = int(best["step"])
    elif checkpoint.isdecimal():
        step = int(checkpoint)
    elif checkpoint != "last":
        raise ConfigError("checkpoint", f"{checkpoint!r} is not last, best or a step", "use checkpoint=last")
    there = checkpoints.steps()
    if step is not None and step not in there:
        kept = ", ".join(map(str, there)) or "none"
        raise CheckpointError(str(folder.path), f"has no checkpoint of step {step}", f"it has {kept}")
    step, tensors, state = checkpoints.load(step, quarantine=False, finite=finite)
    if bad := non_finite(tensors):
        print(f"ganlab: warning: {checkpoints.path(step)}: {bad} is not finite", file=sys.stderr)
    with whole(str(checkpoints.path(step))):
        classes, shape, rest = int(state.get("num_classes", 0)), told_shape(e, state), dict(state["game"])
    game = build_game(e, device, classes, shape)
    unpack_game(game, tensors, rest, str(checkpoints.path(step)))
    return game, step


def evaluate_run(
    run: str, overrides: Sequence[str], checkpoint: str = "last", config_dirs: Sequence[str] = ()
) -> dict[str, Any]:
    """Score a checkpoint under the protocol and extractor asked for; print it and keep it in the run folder.

    Written to ``evaluations/step-N-PROTOCOL.json``; returns the same. Raises DataError naming the smallest
    number of images where a metric can't be computed.
    """
    return _evaluate(run, [open_run(run, overrides, config_dirs)], checkpoint)[0]


def evaluate_protocols(
    run: str,
    protocols: Sequence[str],
    overrides: Sequence[str] = (),
    checkpoint: str = "last",
    config_dirs: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Score one checkpoint under several protocols, and print the scores side by side with what differs.

    Each is kept as by ``evaluate_run``. All protocols are checked before the first one is scored. Raises
    ConfigError with every mistake, DataError where the images do not suffice.
    """
    opened, wrong = [], list[Mistake]()
    for name in protocols:
        try:
            opened.append(open_run(run, [*overrides, f"metric.protocol={name}"], config_dirs))
        except ConfigError as error:
            wrong += error.mistakes
    if wrong:
        raise ConfigError(dict.fromkeys(wrong))
    told = _evaluate(run, opened, checkpoint)
    if len(told) > 1:
        print("\n".join(side_by_side(told)))
    return told


def _evaluate(
    run: str, opened: Sequence[tuple[RunFolder, Experiment]], checkpoint: str
) -> list[dict[str, Any]]:
    """Score a checkpoint as each of the experiments, which differ in their protocols alone, says."""
    folder, first = opened[0]
    if first.fixed_generator or first.fixed_shift:
        what = "is set, or fixed_shift: this run trains no G to score"
        raise ConfigError("fixed_generator", what, "name another run")
    device = find_device(first.device)
    set_precision("fp32", device, False)
    if first.threads:
        torch.set_num_threads(first.threads)
    evaluators = []
    for _, e in opened:
        metric, extractor = e.metric, first.metric.extractor  # one network for all
        evaluators.append(
            Evaluator(extractor, metric.scores, metric.protocol, e.dataset, device, cache_dir())
        )
        evaluators[-1].check()
    game, step = restore(folder, first, checkpoint, device)
    for evaluator in evaluators:
        if game.num_classes and any(m.needs_labels for m in evaluator.measures.values()):
            evaluator.check_classes(game.num_classes)
    return [_score(run, folder, game, evaluator, step, checkpoint) for evaluator in evaluators]


def _score(
    run: str,
    folder: RunFolder,
    game: Game,
    evaluator: Evaluator,
    step: int,
    checkpoint: str,
) -> dict[str, Any]:
    """Score, print and keep."""
    with _Bars() as evaluator.progress:
        scores = evaluator.score(
            *generators(game.live, game.draw, evaluator.protocol, game.shape),
            step=step,
            generator="raw" if game.average is None else "ema",
            strict=True,
        )
    for warning in scores.warnings:
        print(f"ganlab: warning: {warning}")
    told = {
        **entry(scores, every_class=True),
        "checkpoint": checkpoint,
        "device": device_name(evaluator.device),
        "versions": versions(),
        "git": git_revision(),
        "when": now(),
    }
    ids = sorted({scores.protocol_id, *scores.own_ids.values()})
    ident = ids[0] if len(ids) == 1 else digest({"ids": ids})
    name = f"step-{step:09d}-{scores.record['protocol']}-{ident}.json"
    target = folder.path / "evaluations" / name
    target.parent.mkdir(exist_ok=True)
    write_json(target, unread(told))
    print(f"{run} step {step}: {brief(scores.values)}")
    print(f"protocol {scores.record['protocol']} {scores.protocol_id}, {scores.seconds:.1f} s -> {target}")
    return told


def _whole(one: Mapping[str, Any]) -> dict[str, Any]:
    """The record of an evaluation with those that single scores have of their own."""
    own = [about["protocol"] for about in one.get("details", {}).values() if "protocol" in about]
    return {k: v for record in [*own, one["protocol"]] for k, v in record.items()}


def side_by_side(told: Sequence[Mapping[str, Any]]) -> list[str]:
    """A score per row, a protocol per column, the last less the first; then what differs between them."""
    names = [str(one["protocol"]["protocol"]) for one in told]
    rows = [["same checkpoint", *names, f"{names[-1]} - {names[0]}"]]
    for score in dict.fromkeys(key for one in told for key in one["values"] if "_std" not in key):
        values = [one["values"].get(score) for one in told]
        ends = [values[-1], values[0]]
        by = "-" if None in ends else f"{ends[0] - ends[1]:+.4g}"
        rows.append([score, *("-" if v is None else f"{v:.4g}" for v in values), by])
    different = apart([_whole(one) for one in told])
    rows += [[f"  {key}", *map(str, values), ""] for key, values in different.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{w:<{n}}" for w, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not different:
        return [*lines, "the protocols agree in all that can move a score"]
    lines.insert(len(lines) - len(different), "differing in")
    return lines


class _Bars:
    """A bar for each phase of an evaluation: the real images, the generated ones, the classes."""

    def __init__(self) -> None:
        self._what, self._done, self._open = "", 0, contextlib.ExitStack()

    def __enter__(self) -> _Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, what: str, done: int, of: int) -> None:
        if what != self._what:
            self._open.close()
            unit = "classes" if what == "class" else "images"
            title = "scores" if what == "class" else f"{what} images"
            self._what, self._done = what, 0
            self._advance = self._open.enter_context(progress(title, of, unit))
        self._advance(done - self._done)
        self._done = done


def sample_run(
    run: str,
    out: str | None = None,
    n: int = 64,
    seed: int = 0,
    checkpoint: str = "last",
    columns: int = 8,
    classes: str | None = None,
    interpolations: int = 8,
    singles: bool = True,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
) -> Path:
    """``grid.png``, single PNGs and ``interpolation.png`` of a checkpoint's G, in the folder returned.

    Of text and points: the files of ``sampling.write``.
    ``out`` None: ``RUN/samples/step-N-seedS``. The interpolation has ``interpolations`` rows, each of
    ``columns`` images on the way from one latent to another, along the great circle. In a conditional run
    every row is of one class: of ``classes`` ("0,3,7") in turn, or spread evenly over all of them. Raises
    ConfigError for classes that the run does not have.
    """
    folder, e = open_run(run, overrides, config_dirs)
    device = find_device(e.device)
    set_precision("fp32", device, False)
    game, step = restore(folder, e, checkpoint, device, finite=False)
    rows = class_rows(classes, game.num_classes, -(-n // columns))
    place = Path(out) if out else folder.samples / f"step-{step:09d}-seed{seed}"
    z = samples.latents(e.prior, game.z_dim, n, device, seed, 1)
    y = samples.row_labels(rows, n, columns, device)
    way = way_y = None
    if interpolations:
        ends = samples.latents(e.prior, game.z_dim, 2 * interpolations, device, seed, 2)
        way = samples.interpolate(ends[:interpolations], ends[interpolations:], columns)
        way_y = samples.row_labels(rows, len(way), columns, device)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvError(str(place), f"can't be made ({error.strerror})", "choose another out=") from error
    drawn = sampling.Drawn(z, y, way, way_y, columns, singles)
    sampling.write(place, folder, e.dataset, game, drawn)
    labels = None if y is None else y.tolist()
    meta = {"run": run, "step": step, "n": n, "seed": seed, "labels": labels, "when": now()}
    write_json(place / "samples.json", meta)
    print(f"{n} samples of {run} at step {step} -> {place}")
    return place


def class_rows(classes: str | None, num_classes: int, rows: int) -> list[int]:
    """Labels for the rows of a grid, of "0,3,7" or, by None, spread evenly; empty for an unconditional run.

    Raises ConfigError unless they are classes of the run.
    """
    if classes is None:
        return samples.some_classes(num_classes, rows)
    if not num_classes:
        raise ConfigError("classes", "this run is unconditional: its G knows no classes", "leave it out")
    words = [word.strip() for word in classes.strip("[]").split(",")]
    if wrong := [w for w in words if not w.isdecimal() or int(w) >= num_classes]:
        fix = f"write classes=0,{num_classes - 1} or others of 0 to {num_classes - 1}"
        raise ConfigError("classes", f"this run has no class {', '.join(map(repr, wrong))}", fix)
    return [int(w) for w in words]
