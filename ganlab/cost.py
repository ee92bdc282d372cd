"""What a grid would cost: the updates counted, the seconds of one measured here, nothing trained.

A few updates of each different kind of cell (of the first 24 kinds) are timed on random images of the right
shape, as a run would do them: by the engine that its config asks for. With ``per_gpu`` the cells are timed
together too.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ganlab import config, engine, jobs
from ganlab.experiment import Experiment
from ganlab.facts import device_name, find_device
from ganlab.fakes import CHUNK
from ganlab.feature_pass import scoring_pass
from ganlab.game import Game
from ganlab.jobs import say
from ganlab.lanes import GAIN, Measured
from ganlab.lanes import measure as together
from ganlab.planned import ALONE, Places, Plan
from ganlab.trial import Trial

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


def show(planned: Plan, places: Places = ALONE) -> None:
    """Print the cells, their updates and hours, and the sum. Raises EnvError if the device is not there."""
    found: dict[str, Cost] = {}
    kinds: list[tuple[Experiment, float]] = []  # one of each, with the seconds of its update
    alike: dict[tuple[int, str], list[Cost]] = {}  # by D updates and device
    rows, training, scoring, unscored, guessed = list[dict[str, Any]](), 0.0, 0.0, False, 0
    here = torch.device("cpu")
    for job in planned.jobs:
        e: Experiment = config.build(job.tree)
        here = find_device(e.device)
        optimizer = (job.tree.get("optimizer") or {}).get("_target_")  # whatever its rates are
        kind = [*(job.tree.get(k) for k in KIND), optimizer, list(e.shape), str(here)]
        key = json.dumps(kind, default=str)
        known = key in found or len(found) < MOST_KINDS
        if key not in found and known:
            say(f"measuring {job.name} on {device_name(here)}")
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
                "training": told(seconds),
                "scoring": told(scored) if cost.score is not None else "?",
            }
        )
    jobs.print_table(f"{planned.title}: {planned.out}", list(rows[0]), rows)
    updates = sum(job.steps for job in planned.jobs)
    scale = "" if planned.scale.whole else f", {planned.scale}"
    total = f"about {told(training + scoring)} one after the other on {device_name(here)}"
    print(f"{len(rows)} cells, {updates:,} updates{scale}: {total}")
    if guessed:
        print(
            f"~: {guessed} cells taken for the mean of the {len(found)} kinds that were measured, by d_steps"
        )
    gain = 1.0
    if places.lanes != 1 and len(rows) > 1:
        lanes, gain = packing(kinds, here, places.lanes, len(rows))
        print(
            f"per_gpu={places.lanes}: about {told(training / gain + scoring)}, {lanes} at a time in a process"
        )
    if places.slots > 1:
        apart = len(places.gpus) >= places.slots
        slow = "each on a GPU of its own" if apart else "if they don't slow each other, which they will"
        print(f"jobs={places.slots}: {told((training / gain + scoring) / places.slots)} {slow}")
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
    trials, alone = list[Trial](), list[float]()
    for n in wanted:
        say(f"measuring {n} at a time")
        while len(trials) < n:
            e, seconds = kinds[len(trials) % len(kinds)]
            trials.append(Trial(e, device))
            alone.append(seconds)
        found = together([trial.update for trial in trials], alone, device)
        say(f"{found}")
        if lanes == "auto" and found.gain < GAIN * best.gain:
            break
        best = found
    return best.lanes, best.gain


def measure(e: Experiment, device: torch.device) -> Cost:
    """Time updates of a fresh game on random images. Raises EnvError or ConfigError as building it does."""
    trial = Trial(e, device)
    return Cost(_median(trial.update, device), _scoring(e, trial.game, device))


def _scoring(e: Experiment, game: Game, device: torch.device) -> float | None:
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


def told(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``, ``2.1 days``."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} h"
    return f"{seconds / 86400:.1f} days"
