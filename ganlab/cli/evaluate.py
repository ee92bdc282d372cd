"""Score a checkpoint of a finished or running run again, under one or several protocols."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ganlab.config.saved_run import open_run, restore
from ganlab.data.formats.files import progress
from ganlab.errors import ConfigError, Mistake
from ganlab.evaluation.evaluator import Evaluator
from ganlab.evaluation.generate import generators
from ganlab.experiment import Experiment
from ganlab.metrics.protocol import apart, digest
from ganlab.runs.folder import RunFolder
from ganlab.runs.provenance import git_revision, now, versions
from ganlab.runs.result import format_scores, score_entry
from ganlab.system.environment import redact
from ganlab.system.files import write_json
from ganlab.system.hardware import device_name, find_device, set_precision
from ganlab.system.paths import cache_dir
from ganlab.training.gan import GAN


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
    game: GAN,
    evaluator: Evaluator,
    step: int,
    checkpoint: str,
) -> dict[str, Any]:
    """Score, print and keep."""
    with _Bars() as evaluator.progress:
        scores = evaluator.score(
            *generators(game.ema_or_generator, game.draw, evaluator.protocol, game.shape),
            step=step,
            generator="raw" if game.ema is None else "ema",
            strict=True,
        )
    for warning in scores.warnings:
        print(f"ganlab: warning: {warning}")
    told = {
        **score_entry(scores, every_class=True),
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
    write_json(target, redact(told))
    print(f"{run} step {step}: {format_scores(scores.values)}")
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
