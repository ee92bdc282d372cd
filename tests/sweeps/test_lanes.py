"""Several runs in one process: each is what it is alone, to the byte; how they end; how many are chosen."""

from __future__ import annotations

import copy
import json
import logging
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ganlab.errors import Diverged, EnvError, Stopped
from ganlab.experiment import Experiment
from ganlab.methods.constraints import WeightClip
from ganlab.methods.feature_norms import BatchNorm
from ganlab.methods.losses import Hinge, Wasserstein
from ganlab.methods.penalties import GradientPenalty
from ganlab.methods.weight_norms import WeightNorm
from ganlab.runs.checkpoint import Checkpoints, digest
from ganlab.runs.folder import RunFolder
from ganlab.sweeps import lanes
from ganlab.sweeps.lanes import Lane, Lanes, Throughput
from ganlab.system import hardware
from ganlab.system.signals import StopFlag
from ganlab.training import engine, trainer
from ganlab.training.resources import Resources

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")

# Different norms, seeds, rules and rhythms: batch norm, penalties, a schedule, an average of G.
CELLS: dict[str, Callable[[], dict[str, Any]]] = {
    "sn": lambda: {"seed": 0, "ema": 0.9, "eval_every": 6, "save_every": 4},
    "bn": lambda: {"seed": 1, "normalization": {"bn": BatchNorm()}, "eval_every": 4, "save_every": 5},
    "wgan-gp": lambda: {
        "seed": 2,
        "normalization": {"gp": GradientPenalty()},
        "loss": Wasserstein(),
        "d_steps": 3,
        "eval_every": 5,
        "save_every": 0,
        "steps": 9,
    },
    "wc": lambda: {"seed": 3, "normalization": {"wc": WeightClip()}, "lr_decay": "linear", "flip": True},
    "wn+gp": lambda: {
        "seed": 1,
        "normalization": {"wn": WeightNorm(), "gp": GradientPenalty()},
        "dequantize": True,
        "eval_start": True,
        "sample_every": 3,
        "spectral_every": 5,
        "order": "g_first",
    },
}


def begun(e: Experiment, stop: StopFlag, shared: Resources) -> Generator[Any, None, None]:
    tree = {"dataset": {"resolution": e.dataset.resolution}, "metric": {}}
    shared.adopt(e, tree)
    return trainer.turns(e, {"steps": e.steps, "seed": e.seed}, {"dataset": "digits"}, [], stop, shared)


def alone(e: Experiment) -> None:
    trainer.train(e, {"steps": e.steps, "seed": e.seed}, {"dataset": "digits"}, [])


def together(
    makers: dict[str, Callable[[], Experiment]], stop_at: int | None = None, device: torch.device = CPU
) -> dict[str, BaseException | None]:
    """Play all in one process; at round ``stop_at`` a SIGTERM comes. How each ended."""
    ended: dict[str, BaseException | None] = {}
    with StopFlag() as stop:
        shared, rounds = Resources(), 0
        pack = Lanes(device, lambda lane, error: ended.update({lane.name: error}))
        for name, make in makers.items():
            pack.add(Lane(name, begun(make(), stop, shared), device, None))
        while pack.active:
            rounds += 1
            if rounds == stop_at:
                signal.raise_signal(signal.SIGTERM)
            pack.round()
    return ended


def state(run: Path, step: int) -> str:
    folder = RunFolder(run)
    _, tensors, rest = Checkpoints(folder.checkpoints, folder.run_id).load(step)
    return digest(tensors, rest["game"])


def written(run: Path) -> dict[str, Any]:
    """Everything that a run leaves and that has no time in it."""
    result = json.loads((run / "result.json").read_text())
    timed = ("wall_s", "it_per_s", "seconds")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    folder = RunFolder(run)
    saved = Checkpoints(folder.checkpoints, folder.run_id).steps()
    return {
        "metrics": [json.dumps({k: v for k, v in line.items() if k not in timed}) for line in lines],
        "scores": {k: {n: v for n, v in s.items() if n not in timed} for k, s in result["scores"].items()},
        "status": (result["status"], result["step"], result["error"]),
        "weights": {step: state(run, step) for step in saved},
        "samples": {p.name: p.read_bytes() for p in sorted((run / "samples").iterdir())},
    }


SOLO: dict[str, dict[str, Any]] = {}  # made once: only to be read


@pytest.fixture
def solo(tiny: Make, tmp_path: Path) -> dict[str, dict[str, Any]]:
    for name, changes in CELLS.items():
        if name not in SOLO:
            alone(tiny(run_dir=str(tmp_path / "solo" / name), **changes()))
            assert "packed" not in json.loads((tmp_path / "solo" / name / "result.json").read_text())
            SOLO[name] = written(tmp_path / "solo" / name)
    return copy.deepcopy(SOLO)


def makers(tiny: Make, root: Path, names: list[str]) -> dict[str, Callable[[], Experiment]]:
    return {n: lambda n=n: tiny(run_dir=str(root / n), **CELLS[n]()) for n in names}  # type: ignore[misc]


def test_lanes_are_what_their_runs_are_alone(
    solo: dict[str, dict[str, Any]], tiny: Make, tmp_path: Path
) -> None:
    assert len({json.dumps(s["weights"]) for s in solo.values()}) == len(CELLS)
    root = tmp_path / "packed"
    assert together(makers(tiny, root, list(CELLS))) == dict.fromkeys(CELLS)
    for name, wanted in solo.items():
        assert written(root / name) == wanted, name
    told = json.loads((root / "sn" / "result.json").read_text())["packed"]
    assert told == {"runs": 5, "how": "packed with 4 others"}


@pytest.mark.parametrize("stop_at", [10])
def test_a_signal_saves_every_lane_and_they_continue_packed_or_alone(
    stop_at: int, solo: dict[str, dict[str, Any]], tiny: Make, tmp_path: Path
) -> None:
    root = tmp_path / "packed"
    ended = together(makers(tiny, root, list(CELLS)), stop_at)
    assert {n for n, e in ended.items() if isinstance(e, Stopped)} == set(CELLS) - (
        {"wgan-gp"} if stop_at == 10 else set()
    )
    for name in ("sn", "bn"):
        assert json.loads((root / name / "result.json").read_text())["status"] == "stopped"
        assert json.loads((root / name / "result.json").read_text())["step"] == stop_at
    alone(makers(tiny, root, ["bn"])["bn"]())
    together(makers(tiny, root, ["wc", "wn+gp"]))
    together(makers(tiny, root, ["wgan-gp", "sn", "bn"]))
    for name, wanted in solo.items():
        found = written(root / name)
        found["weights"] = {k: v for k, v in found["weights"].items() if k in wanted["weights"]}
        wanted["weights"] = {k: v for k, v in wanted["weights"].items() if k in found["weights"]}
        assert max(wanted["weights"]) == CELLS[name]().get("steps", 12)
        assert found == wanted, name


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_lanes_on_a_gpu_are_what_their_runs_are_alone(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on its stream and its graph; bit for bit, the kernels being deterministic."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    on_gpu = {"device": "cuda", "deterministic": True, "precision": "fp32"}
    for name, changes in CELLS.items():
        alone(tiny(run_dir=str(tmp_path / "solo" / name), **changes() | on_gpu))
    cells = {
        n: lambda n=n: tiny(run_dir=str(tmp_path / "packed" / n), **CELLS[n]() | on_gpu)  # type: ignore[misc]
        for n in CELLS
    }
    assert together(cells, device=torch.device("cuda:0")) == dict.fromkeys(CELLS)
    for name in CELLS:
        assert written(tmp_path / "packed" / name)["weights"] == written(tmp_path / "solo" / name)["weights"]


class Exploding(Hinge):
    def __init__(self, after: int, error: BaseException | None = None) -> None:
        super().__init__()
        self.left, self.error = after, error

    def discriminator(self, real: Any, fake: Any) -> Any:
        self.left -= 1
        if self.left < 0 and self.error is not None:
            raise self.error
        return super().discriminator(real, fake) * (float("nan") if self.left < 0 else 1.0)


def test_a_lane_that_diverges_or_fails_ends_alone(tiny: Make, tmp_path: Path) -> None:
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More text.")
    alone(tiny(run_dir=str(tmp_path / "solo")))
    losses = {"nan": Exploding(3), "full": Exploding(4, full), "bug": Exploding(5, KeyError("x"))}
    cells = {n: lambda n=n: tiny(run_dir=str(tmp_path / n), loss=losses[n]) for n in losses}  # type: ignore[misc]
    ended = together({**cells, "good": lambda: tiny(run_dir=str(tmp_path / "good"))})
    assert ended["good"] is None
    assert isinstance(ended["nan"], Diverged)
    assert isinstance(ended["full"], EnvError)
    assert "batch_size: out of device memory with 8" in str(ended["full"])
    assert isinstance(ended["bug"], KeyError)
    assert all(error is None or error.__traceback__ is None for error in ended.values())
    status = {n: json.loads((tmp_path / n / "result.json").read_text())["status"] for n in ended}
    assert status == {"nan": "diverged", "full": "failed", "bug": "failed", "good": "finished"}
    assert state(tmp_path / "good", 12) == state(tmp_path / "solo", 12)


def test_a_warning_is_told_by_the_lane_whose_turn_it_is(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, logger = engine.update, logging.getLogger("ganlab")

    def warns(game: Any, *rest: Any) -> Any:
        logger.warning("of seed %d", game.d_steps)
        return plain(game, *rest)

    monkeypatch.setattr(engine, "update", warns)
    together({str(n): lambda n=n: tiny(run_dir=str(tmp_path / str(n)), d_steps=n, steps=2) for n in (1, 2)})  # type: ignore[misc]
    for n in (1, 2):
        said = (tmp_path / str(n) / "log.txt").read_text()
        assert said.count(f"of seed {n}") == 2
        assert f"of seed {3 - n}" not in said


def test_what_is_equal_is_shared_and_what_differs_is_not(tiny: Make, tmp_path: Path) -> None:
    from ganlab.data.digits import Digits

    shared, stop = Resources(), StopFlag()
    runs = []
    for n, resolution in enumerate((16, 16, 32)):
        e = tiny(run_dir=str(tmp_path / str(n)), seed=n, dataset=Digits(resolution=resolution))
        turns = begun(e, stop, shared)
        runs.append((next(turns), turns))
    a, b, c = (run for run, _ in runs)
    assert a.batches.image_set is b.batches.image_set is not c.batches.image_set
    assert a.evaluators[a.e.metric.protocol] is b.evaluators[b.e.metric.protocol]
    assert a.evaluators[a.e.metric.protocol] is not c.evaluators[c.e.metric.protocol]
    for _, turns in runs:
        turns.close()


# ---- how many


def counted(costs: list[float], seconds: Callable[[int], float]) -> tuple[Lanes, Callable[[int], None], Any]:
    """Lanes without runs on a clock of their own: an update of lane i costs costs[i] alone; k together,
    ``seconds(k)`` times the sum."""
    clock = SimpleNamespace(now=0.0)
    pack = Lanes(CPU, lambda *_: None)
    left = list(enumerate(costs))

    def turns(cost: float) -> Generator[Any, None, None]:
        record = SimpleNamespace(packed=1)
        run = SimpleNamespace(progress={"evaluated": -1}, record=record, idle_s=0.0)
        while True:
            yield run
            clock.now += cost

    def fill(n: int) -> None:
        while len(pack.active) < n and left:
            number, cost = left.pop(0)
            pack.add(Lane(str(number), turns(cost), CPU, None))

    def measure(updates: Any, alone_s: Any, device: Any) -> Throughput:
        together_s = sum(alone_s) * seconds(len(updates))
        return Throughput(len(updates), len(updates) / together_s, sum(alone_s) / together_s)

    return pack, fill, (clock, measure)


@pytest.mark.parametrize(
    ("factor", "cells", "chosen", "tried", "why"),
    [
        (lambda k: 1.0, 8, 1, [1, 2], "2 lanes give 1.00x"),  # no gain: one after the other
        (lambda k: 1 / min(k, 4), 20, 4, [1, 2, 4, 8], "8 lanes give 4.00x"),
        (lambda k: 1 / k, 20, 8, [1, 2, 4, 8], "8 is the maximum"),
        (lambda k: 1 / k, 3, 3, [1, 2, 3], "no more runs"),
    ],
)
def test_auto_stops_where_more_lanes_gain_little(
    factor: Any, cells: int, chosen: int, tried: list[int], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, fill, (clock, measure) = counted([1.0, 3.0, 0.5, 2.0] * 5, factor)
    if cells < 20:
        pack, fill, (clock, measure) = counted([1.0, 3.0, 0.5, 2.0, 1.0, 1.0, 1.0, 1.0][:cells], factor)
    monkeypatch.setattr(lanes, "measure", measure)
    monkeypatch.setattr(lanes.time, "perf_counter", lambda: clock.now)
    found = lanes.choose(pack, fill, lambda: None)
    assert found.lanes == chosen
    assert [m.lanes for m in found.measured] == tried
    assert why in found.reason
    assert len(pack.active) == chosen
    assert len(pack) == max(tried)  # those over the choice wait, begun
    pack.active.clear()
    pack.resume(chosen)
    assert len(pack.active) == min(chosen, max(tried) - chosen)


def test_auto_heeds_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pack, fill, (clock, measure) = counted([1.0] * 8, lambda k: 1 / k)
    monkeypatch.setattr(lanes, "measure", measure)
    monkeypatch.setattr(lanes.time, "perf_counter", lambda: clock.now)
    found = lanes.choose(pack, fill, lambda: 8.5 - 2.0 * len(pack))  # two units a lane, of 8.5
    assert found.lanes == 2
    assert "4 lanes would not fit" in found.reason


def test_measuring_is_interrupted_by_the_end_of_a_lane(tiny: Make, tmp_path: Path) -> None:
    ended: list[str] = []
    with StopFlag() as stop:
        shared, waiting = (
            Resources(),
            [tiny(run_dir=str(tmp_path / str(n)), steps=2, seed=n) for n in range(2)],
        )
        pack = Lanes(CPU, lambda lane, error: ended.append(lane.name))

        def fill(n: int) -> None:
            while len(pack.active) < n and waiting:
                e = waiting.pop(0)
                pack.add(Lane(str(e.seed), begun(e, stop, shared), CPU, None))

        found = lanes.choose(pack, fill)
        assert (found.lanes, found.reason) == (1, "a run ended during the measurement")
        fill(1)
        while pack.active:
            pack.round()
    assert ended == ["0", "1"]


# ---- side by side


@pytest.mark.parametrize(
    ("load", "threads", "given", "told"),
    [(3.0, 4, None, True), (0.5, 4, None, False), (3.0, 1, None, False), (3.0, 4, "4", False)],
)
def test_a_run_beside_others_hints_at_threads(
    load: float, threads: int, given: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(hardware.os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    hint = hardware.oversubscription_hint(CPU)
    assert bool(hint) == told
    assert ("the machine is busy (load 3.0, 4 cores); threads=1 is likely faster" in hint) == told
    assert hardware.oversubscription_hint(torch.device("cuda")) == ""
