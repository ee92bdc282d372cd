"""Estimate the cost of a grid (``dry_run=true``): count updates, and time one of them on this machine."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from ganlab import rng
from ganlab.config import compose
from ganlab.data.base import SampleSet
from ganlab.data.fingerprint import fingerprint
from ganlab.errors import DataError, EnvError
from ganlab.evaluation.generate import CHUNK, generators
from ganlab.evaluation.passes import FeaturePass, batch_size, prefetch
from ganlab.experiment import Experiment
from ganlab.extractors.base import exact_fp32
from ganlab.samples.base import sample_kind
from ganlab.sweeps.placement import ONE_PROCESS, Placement
from ganlab.sweeps.plan import Plan
from ganlab.sweeps.process import print_status
from ganlab.system.hardware import device_name, find_device, set_precision
from ganlab.tables import print_table
from ganlab.training import engine
from ganlab.training.batches import Feed
from ganlab.training.build import build_gan
from ganlab.training.gan import GAN


def scoring_pass(e: Experiment, game: GAN, device: torch.device, images: int) -> Callable[[], None] | None:
    """A function to time: generate ``images`` images and extract features as an evaluation of ``e`` does.

    Uses its batch sizes, precision and prefetching; metrics are left out, and ``game`` is not changed. None
    if the extractor's weights are missing: they are not downloaded for a timing. Points and text need none.
    """
    extractor, protocol = e.metric.extractor, e.metric.protocol
    uses_features = any(metric.uses_extractor for metric in e.metric.scores.values())
    extractor.download = False
    try:
        if uses_features:
            extractor.check()
    except (DataError, EnvError):
        return None
    generate, _ = generators(game.ema_or_generator, game.draw, protocol, game.shape)
    features = FeaturePass(extractor, batch_size(protocol, device), device, lambda warning: None)

    def make(start: int) -> Tensor:
        random = rng.generator(device, protocol.seed, "evaluate", start)
        return generate(min(CHUNK, images - start), start, random)

    def once() -> None:
        with exact_fp32(device.type):
            for chunk in prefetch(make, range(0, images, CHUNK), device):
                if uses_features:
                    deque(features(chunk), maxlen=0)

    return once


MAX_KINDS = 24  # kinds of cells that are timed; in a random set, each cell may be a kind of its own
TIMES, WARM = 3, 1  # timed calls, and calls before them
ENOUGH = 2.0  # seconds of timing after which no further update is timed
KIND = (
    *("architecture", "normalization", "loss", "batch_size", "g_batch_size", "accumulate"),
    *("precision", "d_pass", "joint_fakes", "fold", "d_steps", "engine", "timetable"),
)


class Cost(NamedTuple):
    """Seconds of a G update with its D updates, a mean over phases, and of scoring one image (None: not
    measured)."""

    update: float
    score: float | None


def print_cost(plan: Plan, placement: Placement = ONE_PROCESS) -> None:
    """Print the updates and hours of each cell, and their sum. Raises EnvError if the device is missing."""
    costs: dict[str, Cost] = {}
    by_d_steps: dict[tuple[int, str], list[Cost]] = {}  # (d_steps, device) -> costs
    rows, training, scoring, unscored, num_estimated = list[dict[str, Any]](), 0.0, 0.0, False, 0
    device = torch.device("cpu")
    for job in plan.jobs:
        e: Experiment = compose.build(job.tree)
        device = find_device(e.device)
        optimizer = (job.tree.get("optimizer") or {}).get("_target_")  # learning rates do not matter
        stretches = e.timetable.stretches(job.steps)
        phases = stretches if len(stretches) > 1 else None
        kind = [*(job.tree.get(k) for k in KIND), optimizer, list(e.shape), str(device), phases]
        key = json.dumps(kind, default=str)
        is_timed = key in costs or len(costs) < MAX_KINDS
        if key not in costs and is_timed:
            print_status(f"measuring {job.name} on {device_name(device)}")
            costs[key] = measure(e, device, stretches)
            by_d_steps.setdefault((e.d_steps, str(device)), []).append(costs[key])
        similar = by_d_steps.get((e.d_steps, str(device))) or list(costs.values())
        cost = costs[key] if is_timed else _mean(similar)
        num_estimated += not is_timed
        images = scored_images(e)
        scored = images * cost.score if cost.score is not None else 0.0
        unscored |= cost.score is None and images > 0
        seconds = sum(updates for _, updates in stretches) * cost.update
        training, scoring = training + seconds, scoring + scored
        rows.append(
            {
                "cell": job.name,
                "updates": f"{job.steps:,}",
                "d_steps": e.d_steps,
                "s / 100 updates": f"{'' if is_timed else '~'}{100 * cost.update:.3g}",
                "training": format_duration(seconds),
                "scoring": format_duration(scored) if cost.score is not None else "?",
            }
        )
    print_table(f"{plan.title}: {plan.out}", list(rows[0]), (row.values() for row in rows))
    updates = sum(job.steps for job in plan.jobs)
    scale = "" if plan.scale.whole else f", {plan.scale}"
    total = f"about {format_duration(training + scoring)} one after another on {device_name(device)}"
    print(f"{len(rows)} cells, {updates:,} updates{scale}: {total}")
    if num_estimated:
        print(f"~: {num_estimated} cells estimated by the mean of {len(costs)} measured kinds, by d_steps")
    if placement.slots > 1:
        own_gpus = len(placement.gpus) >= placement.slots
        condition = "with one GPU each" if own_gpus else "at best: they will slow each other down"
        total = format_duration((training + scoring) / placement.slots)
        print(f"jobs={placement.slots}: {total} {condition}")
    if unscored:
        print("scoring is not included: the extractor's weights are missing (see 'ganlab doctor')")


def _mean(costs: Sequence[Cost]) -> Cost:
    """The estimate for a kind that was not measured."""
    scores = [cost.score for cost in costs if cost.score is not None]
    return Cost(statistics.fmean(c.update for c in costs), statistics.fmean(scores) if scores else None)


def measure(e: Experiment, device: torch.device, stretches: Sequence[tuple[int, float]]) -> Cost:
    """Time updates of a new GAN on random images: the mean over the ``stretches`` of a timetable.

    Raises EnvError or ConfigError as building it does.
    """
    timer, seconds = UpdateTimer(e, device), 0.0
    for step, updates in stretches:
        timer.start(step)
        timer.warm_up()
        seconds += updates * _median(timer.update, device)
    mean = seconds / sum(updates for _, updates in stretches)
    return Cost(mean, scoring_seconds(e, timer.game, device))


def scoring_seconds(e: Experiment, game: GAN, device: torch.device) -> float | None:
    """Seconds to generate an image and extract its features; None without the extractor's weights."""
    n = CHUNK if device.type == "cuda" else e.batch_size
    timed = scoring_pass(e, game, device, n)
    return _median(timed, device) / n if timed else None


def scored_images(e: Experiment) -> int:
    """Number of generated images over all evaluations of a run."""

    def per_evaluation(protocol: Any) -> int:
        return max((m.n_fake(protocol) for m in e.metric.scores.values()), default=0)

    during = e.steps // e.eval_every if e.eval_every else 0
    final = 1 if e.metric.progress is e.metric.protocol else 2  # the last and the best checkpoint
    return during * per_evaluation(e.metric.progress) + final * per_evaluation(e.metric.protocol)


def _median(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``work``: the median of a few, after a warm-up."""
    seconds: list[float] = []
    for turn in range(WARM + TIMES):
        if sum(seconds) > ENOUGH:
            break
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= WARM:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def format_duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86400:.1f} days"


CLASSES = 10  # of a conditional net, whose labels are not read here
T = TypeVar("T")


class UpdateTimer:
    """Times updates of an experiment on random images, with the engine that a run would use.

    ``images``: of the experiment's shape, to share between timers; None: four batches are made here.
    """

    def __init__(self, e: Experiment, device: torch.device, images: SampleSet | None = None) -> None:
        set_precision(e.precision, device, e.deterministic)
        if e.threads:
            torch.set_num_threads(e.threads)
        self.e, self.device = e, device
        images = images or random_samples(e)
        self.game = build_gan(e, device, CLASSES, images.shape)
        if self.game.num_classes and images.labels is not None:
            self.game.labels = torch.from_numpy(images.labels).to(device)
        batches = images.batches(device, e.seed, e.data_memory_gb)
        feed = Feed(batches, e)
        self.engine = engine.make(e, self.game, feed)
        self.start(0)

    def start(self, step: int) -> None:
        """Go on from ``step``, but for steps that warm D up."""
        e = self.e
        self.engine.begin_phase()
        self.steps = (s for s in itertools.count(step) if e.timetable.round(s).d_steps == e.d_steps)

    def warm_up(self) -> None:
        """Do the updates before the engine has recorded or compiled one."""
        while not self.engine.is_warm:
            self.update()

    def update(self) -> None:
        """Do one update; on a GPU, only launch it."""
        self.engine.update(next(self.steps))


def random_samples(e: Experiment) -> SampleSet:
    """Four batches of noise with random labels, from a fixed seed; the data where they load at once."""
    random = np.random.default_rng(0)
    pixels = sample_kind(e.shape).random(4 * e.batch_size, random)
    if pixels is None:
        return e.dataset.load()
    labels = random.integers(0, CLASSES, len(pixels))
    names = [str(label) for label in range(CLASSES)]
    return SampleSet(pixels, labels, names, fingerprint(pixels, labels), "random", "train")


def in_turn(blocks: Mapping[str, Callable[[], T]], rounds: int, warm: int = 1) -> dict[str, list[T]]:
    """Call all blocks in turn, ``rounds`` times after ``warm`` warm-up rounds; name -> returned values."""
    results: dict[str, list[T]] = {name: [] for name in blocks}
    for i in range(-warm, rounds):
        for name, block in blocks.items():
            value = block()
            if i >= 0:
                results[name].append(value)
    return results
