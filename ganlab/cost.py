"""What a grid would cost: the updates counted, the seconds of one measured here, nothing trained.

A few updates of each different kind of cell are timed on random images of the right shape. A D update and a
G update are timed apart, so that cells differing only in ``d_steps`` share a measurement.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ganlab import config, jobs
from ganlab.data.base import to_float
from ganlab.errors import DataError, EnvError
from ganlab.experiment import Experiment
from ganlab.facts import device_name, find_device, set_precision
from ganlab.fakes import to_bytes
from ganlab.game import Game
from ganlab.jobs import say
from ganlab.planned import ALONE, Places, Plan
from ganlab.setup import build_game
from ganlab.step import update_discriminator, update_generator
from ganlab.types import Batch

TIMES, WARM = 3, 1  # updates timed, and those before them
ENOUGH = 2.0  # seconds of timing after which one timed update will do
KIND = (
    *("architecture", "normalization", "loss", "batch_size", "g_batch_size", "accumulate"),
    *("precision", "d_pass", "joint_fakes", "fold"),
)
CLASSES = 10  # of a conditional net, whose labels are not read here


class Cost(NamedTuple):
    """Seconds of one D update, of one G update, and of scoring one generated image (None: not measured)."""

    d: float
    g: float
    score: float | None


def show(planned: Plan, places: Places = ALONE) -> None:
    """Print the cells, their updates and hours, and the sum. Raises EnvError if the device is not there."""
    found: dict[str, Cost] = {}
    rows, total, unscored = list[dict[str, Any]](), 0.0, False
    device = ""
    for job in planned.jobs:
        e: Experiment = config.build(job.tree)
        here = find_device(e.device)
        device = device_name(here)
        key = json.dumps([job.tree.get(k) for k in KIND] + [list(e.shape), str(here)], default=str)
        if key not in found:
            say(f"measuring {job.name} on {device}")
            found[key] = measure(e, here)
        cost = found[key]
        each = e.d_steps * cost.d + cost.g
        images = scored_images(e)
        scoring = images * cost.score if cost.score is not None else 0.0
        unscored |= cost.score is None and images > 0
        total += job.steps * each + scoring
        rows.append(
            {
                "cell": job.name,
                "updates": f"{job.steps:,}",
                "d_steps": e.d_steps,
                "s / 100 updates": f"{100 * each:.3g}",
                "training": told(job.steps * each),
                "scoring": told(scoring) if cost.score is not None else "?",
            }
        )
    jobs.print_table(f"{planned.title}: {planned.out}", list(rows[0]), rows)
    updates = sum(job.steps for job in planned.jobs)
    scale = "" if planned.scale.whole else f", {planned.scale}"
    print(
        f"{len(rows)} cells, {updates:,} updates{scale}: about {told(total)} one after the other on {device}"
    )
    at_once = places.slots
    if at_once > 1:
        print(f"{at_once} at a time: {told(total / at_once)} if they don't slow each other, which they will")
    if unscored:
        print("scoring is not in it: the extractor's weights are not here ('ganlab doctor' tells where)")


def measure(e: Experiment, device: torch.device) -> Cost:
    """Time updates of a fresh game on random images. Raises EnvError or ConfigError as building it does."""
    set_precision(e.precision, device, e.deterministic)
    if e.threads:
        torch.set_num_threads(e.threads)
    game = build_game(e, device, CLASSES)
    y = torch.randint(CLASSES, (e.batch_size,), device=device) if game.num_classes else None
    game.labels = y
    real = torch.randint(0, 256, (e.batch_size, *e.shape), dtype=torch.uint8, device=device)

    def batch() -> Batch:
        x = to_float(real, e.dequantize, e.flip).contiguous(memory_format=torch.channels_last)
        return Batch(x, y)

    d = _median(lambda: update_discriminator(game, batch()), device)
    g = _median(lambda: update_generator(game, batch), device)
    return Cost(d, g, _scoring(e, game, device))


def _scoring(e: Experiment, game: Game, device: torch.device) -> float | None:
    """Seconds to generate and look at one image, or None without the extractor's weights."""
    extractor, n = e.metric.extractor, e.batch_size
    extractor.download = False  # to learn what a grid costs, nothing is fetched
    try:
        extractor.check()
        extractor.to(device)
    except (DataError, EnvError):
        return None

    @torch.no_grad()
    def one() -> None:
        extractor(to_bytes(game.fakes(n).x).expand(-1, 3, -1, -1).contiguous())

    return _median(one, device) / n


def scored_images(e: Experiment) -> int:
    """Generated images over all evaluations of a run."""

    def most(protocol: Any) -> int:
        return max((m.n_fake(protocol) for m in e.metric.scores.values()), default=0)

    during = e.steps // e.eval_every if e.eval_every else 0
    final = 1 if e.metric.progress is e.metric.protocol else 2  # the last and the best
    return during * most(e.metric.progress) + final * most(e.metric.protocol)


def _median(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call of ``work``: the median of a few, after a first one."""
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


def told(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86400:.1f} days"
