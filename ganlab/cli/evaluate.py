"""``ganlab evaluate``: score a checkpoint of a run again, under one or several protocols."""

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
    """Score a checkpoint with ``overrides``; print the scores and save them in the run folder.

    Returns the content of ``evaluations/step-N-PROTOCOL-ID.json``. Raises DataError with the required number
    of images if a metric cannot be computed.
    """
    return _evaluate(run, [open_run(run, overrides, config_dirs)], checkpoint)[0]


def evaluate_protocols(
    run: str,
    protocols: Sequence[str],
    overrides: Sequence[str] = (),
    checkpoint: str = "last",
    config_dirs: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Score one checkpoint under several protocols, and print the scores side by side with the differences.

    Saves each as ``evaluate_run`` does. All protocols are checked before the first one is scored. Raises
    ConfigError with every mistake, DataError if there are too few images.
    """
    opened, mistakes = [], list[Mistake]()
    for name in protocols:
        try:
            opened.append(open_run(run, [*overrides, f"metric.protocol={name}"], config_dirs))
        except ConfigError as error:
            mistakes += error.mistakes
    if mistakes:
        raise ConfigError(dict.fromkeys(mistakes))
    evaluations = _evaluate(run, opened, checkpoint)
    if len(evaluations) > 1:
        print("\n".join(side_by_side(evaluations)))
    return evaluations


def _evaluate(
    run: str, opened: Sequence[tuple[RunFolder, Experiment]], checkpoint: str
) -> list[dict[str, Any]]:
    """Score a checkpoint for each of the experiments, which differ in their protocols only."""
    folder, first = opened[0]
    if first.fixed_generator or first.fixed_shift:
        what = "this run trains no G to score (fixed_generator or fixed_shift is set)"
        raise ConfigError("fixed_generator", what, "choose another run")
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
    gan, step = restore(folder, first, checkpoint, device)
    for evaluator in evaluators:
        if gan.num_classes and any(m.per_class for m in evaluator.metrics.values()):
            evaluator.check_classes(gan.num_classes)
    return [_score(run, folder, gan, evaluator, step, checkpoint) for evaluator in evaluators]


def _score(
    run: str,
    folder: RunFolder,
    gan: GAN,
    evaluator: Evaluator,
    step: int,
    checkpoint: str,
) -> dict[str, Any]:
    """Score, print and save."""
    with _ProgressBars() as evaluator.progress:
        scores = evaluator.score(
            *generators(gan.ema_or_generator, gan.draw, evaluator.protocol, gan.shape),
            step=step,
            generator="raw" if gan.ema is None else "ema",
            strict=True,
            classify=gan.classifier,
        )
    for warning in scores.warnings:
        print(f"ganlab: warning: {warning}")
    record = {
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
    write_json(target, redact(record))
    print(f"{run} step {step}: {format_scores(scores.values)}")
    print(f"protocol {scores.record['protocol']} {scores.protocol_id}, {scores.seconds:.1f} s -> {target}")
    return record


def _protocol_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol of an evaluation, including those that single scores have of their own."""
    own = [about["protocol"] for about in evaluation.get("details", {}).values() if "protocol" in about]
    return {k: v for record in [*own, evaluation["protocol"]] for k, v in record.items()}


def side_by_side(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a table: a score per row, a protocol per column, last minus first; then the differences."""
    names = [str(e["protocol"]["protocol"]) for e in evaluations]
    rows = [["same checkpoint", *names, f"{names[-1]} - {names[0]}"]]
    for score in dict.fromkeys(key for e in evaluations for key in e["values"] if "_std" not in key):
        values = [e["values"].get(score) for e in evaluations]
        ends = [values[-1], values[0]]
        change = "-" if None in ends else f"{ends[0] - ends[1]:+.4g}"
        rows.append([score, *("-" if v is None else f"{v:.4g}" for v in values), change])
    differences = apart([_protocol_of(e) for e in evaluations])
    rows += [[f"  {key}", *map(str, values), ""] for key, values in differences.items()]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(f"{w:<{n}}" for w, n in zip(row, widths, strict=True)).rstrip() for row in rows]
    if not differences:
        return [*lines, "the protocols do not differ in anything that affects a score"]
    lines.insert(len(lines) - len(differences), "differences")
    return lines


class _ProgressBars:
    """A progress bar for each phase of an evaluation: real images, generated images, classes."""

    def __init__(self) -> None:
        self._phase, self._done, self._open = "", 0, contextlib.ExitStack()

    def __enter__(self) -> _ProgressBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, phase: str, done: int, total: int) -> None:
        if phase != self._phase:
            self._open.close()
            unit = "classes" if phase == "class" else "images"
            title = "scores" if phase == "class" else f"{phase} images"
            self._phase, self._done = phase, 0
            self._advance = self._open.enter_context(progress(title, total, unit))
        self._advance(done - self._done)
        self._done = done
