"""What a grid would cost: updates counted, the seconds of one measured here, nothing trained."""

from __future__ import annotations

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
from ganlab.sweeps import process
from ganlab.sweeps.lanes import GAIN, Measured
from ganlab.sweeps.lanes import measure as together
from ganlab.sweeps.plan import ALONE, Places, Plan
from ganlab.sweeps.process import print_status
from ganlab.system.hardware import device_name, find_device, set_precision
from ganlab.training import engine
from ganlab.training.batches import Feed
from ganlab.training.build import build_gan
from ganlab.training.gan import GAN


def scoring_pass(e: Experiment, game: GAN, device: torch.device, images: int) -> Callable[[], None] | None:
    """What makes ``images`` images of G and looks at them as an evaluation of ``e`` does, to be timed.

    Its batch sizes and precision, chunks made ahead on a GPU; metrics left out. None without the extractor's
    weights: nothing is fetched to learn a speed. Points and text want none. ``game`` stays as it is.
    """
    extractor, protocol = e.metric.extractor, e.metric.protocol
    seen = game.shape.kind == "images"
    extractor.download = False
    try:
        if seen:
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
                if seen:
                    deque(features(chunk), maxlen=0)

    return once


MOST_KINDS = 24  # that are timed; a random set has a kind for each of its cells
TIMES, WARM = 3, 1  # updates timed, and those before them on a CPU
ENOUGH = 2.0  # seconds of timing after which one timed update will do
KIND = (
    *("architecture", "normalization", "loss", "batch_size", "g_batch_size", "accumulate"),
    *("precision", "d_pass", "joint_fakes", "fold", "d_steps", "engine"),
)


class Cost(NamedTuple):
    """Seconds of one generator update with its D updates, and of scoring one image (None: not measured)."""

    update: float
    score: float | None


def print_cost(planned: Plan, places: Places = ALONE) -> None:
    """Print the cells, their updates and hours, and the sum. Raises EnvError if the device is not there."""
    found: dict[str, Cost] = {}
    kinds: list[tuple[Experiment, float]] = []  # one of each, with the seconds of its update
    alike: dict[tuple[int, str], list[Cost]] = {}  # by D updates and device
    rows, training, scoring, unscored, guessed = list[dict[str, Any]](), 0.0, 0.0, False, 0
    here = torch.device("cpu")
    for job in planned.jobs:
        e: Experiment = compose.build(job.tree)
        here = find_device(e.device)
        optimizer = (job.tree.get("optimizer") or {}).get("_target_")  # whatever its rates are
        kind = [*(job.tree.get(k) for k in KIND), optimizer, list(e.shape), str(here)]
        key = json.dumps(kind, default=str)
        known = key in found or len(found) < MOST_KINDS
        if key not in found and known:
            print_status(f"measuring {job.name} on {device_name(here)}")
            found[key] = measure(e, here)
            kinds.append((e, found[key].update))
            alike.setdefault((e.d_steps, str(here)), []).append(found[key])
        cost = found[key] if known else _mean(alike.get((e.d_steps, str(here))) or list(found.values()))
        guessed += not known
        images = scored_images(e)
        scored = images * cost.score if cost.score is not None else 0.0
        unscored |= cost.score is None and images > 0
        warming = e.extra_d_steps(job.steps) / (e.d_steps + 1)  # in usual updates, G's taken for one of D's
        seconds = (job.steps + warming) * cost.update
        training, scoring = training + seconds, scoring + scored
        rows.append(
            {
                "cell": job.name,
                "updates": f"{job.steps:,}",
                "d_steps": e.d_steps,
                "s / 100 updates": f"{'' if known else '~'}{100 * cost.update:.3g}",
                "training": format_duration(seconds),
                "scoring": format_duration(scored) if cost.score is not None else "?",
            }
        )
    process.print_table(f"{planned.title}: {planned.out}", list(rows[0]), rows)
    updates = sum(job.steps for job in planned.jobs)
    scale = "" if planned.scale.whole else f", {planned.scale}"
    total = f"about {format_duration(training + scoring)} one after the other on {device_name(here)}"
    print(f"{len(rows)} cells, {updates:,} updates{scale}: {total}")
    if guessed:
        print(
            f"~: {guessed} cells taken for the mean of the {len(found)} kinds that were measured, by d_steps"
        )
    gain = 1.0
    if places.lanes != 1 and len(rows) > 1:
        lanes, gain = packing(kinds, here, places.lanes, len(rows))
        total = format_duration(training / gain + scoring)
        print(f"per_gpu={places.lanes}: about {total}, {lanes} at a time in a process")
    if places.slots > 1:
        apart = len(places.gpus) >= places.slots
        slow = "each on a GPU of its own" if apart else "if they don't slow each other, which they will"
        print(f"jobs={places.slots}: {format_duration((training / gain + scoring) / places.slots)} {slow}")
    if unscored:
        print("scoring is not in it: the extractor's weights are not here ('ganlab doctor' tells where)")


def _mean(costs: Sequence[Cost]) -> Cost:
    """What a cell of an unmeasured kind is taken for."""
    scores = [cost.score for cost in costs if cost.score is not None]
    return Cost(statistics.fmean(c.update for c in costs), statistics.fmean(scores) if scores else None)


def packing(
    kinds: Sequence[tuple[Experiment, float]], device: torch.device, lanes: int | str, cells: int
) -> tuple[int, float]:
    """(how many at a time, how many times the updates of one after the other), measured and told.

    ``kinds``: experiments and the seconds of an update alone; ``lanes``: as ``per_gpu``.
    """
    wanted = [min(int(lanes), cells)] if lanes != "auto" else [n for n in (2, 4, 8) if n <= cells]
    best = Measured(1, 1 / kinds[0][1], 1.0)
    trials, alone = list[UpdateTimer](), list[float]()
    for n in wanted:
        print_status(f"measuring {n} at a time")
        while len(trials) < n:
            e, seconds = kinds[len(trials) % len(kinds)]
            trials.append(UpdateTimer(e, device))
            alone.append(seconds)
        found = together([trial.update for trial in trials], alone, device)
        print_status(f"{found}")
        if lanes == "auto" and found.gain < GAIN * best.gain:
            break
        best = found
    return best.lanes, best.gain


def measure(e: Experiment, device: torch.device) -> Cost:
    """Time updates of a fresh game on random images. Raises EnvError or ConfigError as building it does."""
    trial = UpdateTimer(e, device)
    return Cost(_median(trial.update, device), _scoring(e, trial.game, device))


def _scoring(e: Experiment, game: GAN, device: torch.device) -> float | None:
    """Seconds to generate and look at one image, or None without the extractor's weights."""
    n = CHUNK if device.type == "cuda" else e.batch_size
    one = scoring_pass(e, game, device, n)
    return _median(one, device) / n if one else None


def scored_images(e: Experiment) -> int:
    """Generated images over all evaluations of a run."""

    def most(protocol: Any) -> int:
        return max((m.n_fake(protocol) for m in e.metric.scores.values()), default=0)

    during = e.steps // e.eval_every if e.eval_every else 0
    final = 1 if e.metric.progress is e.metric.protocol else 2  # the last and the best
    return during * most(e.metric.progress) + final * most(e.metric.protocol)


def _median(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``work``: the median of a few, after a first one (or, on a GPU, a recording)."""
    seconds: list[float] = []
    warm = engine.WARM + 2 if device.type == "cuda" else WARM
    for turn in range(warm + TIMES):
        if sum(seconds) > ENOUGH:
            break
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn >= warm:
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
    """A game of an experiment on random images, played by the engine that a run would have.

    ``images``: to share, of the experiment's shape; None: made here, four batches of them.
    """

    def __init__(self, e: Experiment, device: torch.device, images: SampleSet | None = None) -> None:
        set_precision(e.precision, device, e.deterministic)
        if e.threads:
            torch.set_num_threads(e.threads)
        self.e, self.device = e, device
        every = e.d_warmup_every  # the usual updates are timed: those after a warm-up of D
        self.step = -(-e.d_warmup_updates // every) * every + 1 if every else e.d_warmup_updates
        if images is None:  # points and text are small: they are loaded
            images = random_images(e) if e.shape.kind == "images" else e.dataset.load()
        self.game = build_gan(e, device, CLASSES, images.shape)
        if self.game.num_classes and images.labels is not None:
            self.game.labels = torch.from_numpy(images.labels).to(device)
        batches = images.batches(device, e.seed, e.data_memory_gb)
        feed = Feed(batches, e, e.d_steps + self.game.loss.generator_needs_real)
        self.engine = engine.make(e, self.game, feed)

    def update(self) -> None:
        """One update. On a GPU it is only begun."""
        self.engine.update(self.step)
        self.step += 1


def random_images(e: Experiment) -> SampleSet:
    """Four batches of uniform noise with random labels, the same ones each time."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (4 * e.batch_size, *e.shape), dtype=np.uint8)
    labels = random.integers(0, CLASSES, len(pixels))
    names = [str(label) for label in range(CLASSES)]
    return SampleSet(pixels, labels, names, fingerprint(pixels, labels), "random", "train")


def in_turn(blocks: Mapping[str, Callable[[], T]], rounds: int, warm: int = 1) -> dict[str, list[T]]:
    """What each block returns, ``rounds`` times in turn, after ``warm`` rounds that do not count."""
    found: dict[str, list[T]] = {name: [] for name in blocks}
    for i in range(-warm, rounds):
        for name, block in blocks.items():
            told = block()
            if i >= 0:
                found[name].append(told)
    return found
