"""On a CUDA device that computes nothing (``fake_gpu``): what is recorded, launched, allocated, and where.

torch's own host code runs, so what a real device refuses in a capture is refused here. Numbers are not
looked at: there are none. Skipped with the reason where the runtime can't be built.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import fake_gpu
import pytest
from fake_gpu.count_nodes import budgets

CONFIGS = fake_gpu.ROOT / "configs"
SMALL = ["batch_size=4", "g_batch_size=null", "d_steps=1", "lr_decay=none", "metric.extractor=cifar"]
NARROW = [*SMALL, "architecture.width=0.05"]
CNN = ["+experiment=sngan_cifar", *NARROW]
TEXT = ["dataset=text", "architecture=charlm", "metric=[ngram_js]", "dataset.path={corpus}", *NARROW]
NETS = {
    "charlm": TEXT,
    "mlp": ["+experiment=wgan_gp_toy_released", "dataset=25gaussians", *NARROW],
    "bedrooms": [
        "dataset=digits",
        "dataset.resolution=64",
        "dataset.channels=3",
        "architecture=bedrooms",
        *NARROW,
    ],
}
HOST = {"normalization=sn, svd": "normalization.sn reads values on the host"}


def options(group: str) -> list[str]:
    return sorted(f.stem for f in (CONFIGS / group).glob("*.yaml"))


def recorded() -> dict[str, list[str]]:
    """Configs whose updates are to be recorded, by name: every normalization, loss, architecture, head."""
    found = {f"normalization={n}": [*CNN, f"normalization=[{n}]"] for n in options("normalization")}
    found |= {f"loss={n}": [*CNN, f"loss={n}"] for n in options("loss")}
    for name in options("architecture"):
        size = [
            "dataset=digits",
            "dataset.resolution=32",
            "dataset.channels=3",
            f"architecture={name}",
            *NARROW,
        ]
        found[f"architecture={name}"] = NETS.get(name, size)
    resnet = ["+experiment=sngan_cifar_resnet", *NARROW]
    found |= {f"head={head}": [*resnet, f"architecture.head={head}"] for head in ("concat", "projection")}
    ac = [*resnet, "architecture.head=ac"]
    found |= {f"class_loss={n}": [*ac, f"class_loss={n}"] for n in options("class_loss")}
    found["normalization=sn, svd"] = [*CNN, "normalization=[sn]", "normalization.sn.method=svd"]
    found["everything"] = [
        *("+experiment=sngan_cifar", "normalization=[sn,gp,orthonormal]", "loss=wasserstein", *NARROW),
        *("ema=0.9", "accumulate=2", "flip=true", "dequantize=true", "precision=bf16", "joint_fakes=true"),
    ]
    deterministic = "deterministic=true"
    return found | {
        deterministic: [*CNN, deterministic],
        "deterministic=false": [*CNN, "deterministic=false"],
    }


RECORDED, BUDGETS = recorded(), budgets([])
RUN = [
    *("dataset=digits", "dataset.resolution=32", "metric.extractor=cifar", "metric.protocol=smoke"),
    *("metric.progress=null", "architecture.width=0.05", "batch_size=8", "save_every=4", "log_every=4"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reason := fake_gpu.missing():
        pytest.skip(f"no fake CUDA device: {reason}")
    return tmp_path_factory.mktemp("fake")


def environment(place: Path, **more: Any) -> dict[str, str]:
    env = fake_gpu.environment(**more)
    path = [str(fake_gpu.HERE.parent), str(fake_gpu.ROOT)]
    own = {"GANLAB_CACHE": str(place / "cache"), "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    return env | own


@pytest.fixture(scope="module")
def results(place: Path) -> dict[str, Any]:
    """What one process saw of all configs: it pays for its imports once."""
    corpus = place / "corpus.txt"
    corpus.write_text("".join(f"line {i} of a short text, {i * i} times\n" for i in range(60)))
    asked = [[name, "counted", words] for name, words in RECORDED.items()]
    asked += [[name, "counted", words] for name, (_, words) in BUDGETS.items()]
    checks = ["reserved", "out_of_memory", "refusals"]
    asked += [[check, check, [*CNN, "metric.protocol=smoke"]] for check in checks]
    text = json.dumps(asked).replace("{corpus}", str(corpus))
    command = [sys.executable, "-m", "fake_gpu.checks"]
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, env=environment(place), cwd=place, timeout=580
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


def of(results: dict[str, Any], name: str) -> dict[str, Any]:
    assert "error" not in results[name], results[name]["error"]
    told: dict[str, Any] = results[name]
    return told


@pytest.mark.parametrize("name", RECORDED)
def test_an_update_is_recorded_whole(name: str, results: dict[str, Any]) -> None:
    told = of(results, name)
    assert told["engine"]["why"] == HOST.get(name, "")
    assert told["engine"]["used"] == ("eager" if name in HOST else "graph")
    assert bool(told["nodes"]) == (name not in HOST)
    assert told["complaints"] == []


@pytest.mark.parametrize("name", BUDGETS)
def test_an_update_takes_no_more_kernels_than_its_budget(name: str, results: dict[str, Any]) -> None:
    """Counts are exact: a budget that is no longer reached is lowered (``count_nodes.py`` prints them)."""
    told = of(results, name)
    count = sum(told["nodes"].values())
    print(f"{name}: {count} nodes")
    assert told["complaints"] == []
    assert count <= BUDGETS[name][0]


def test_determinism_fills_no_memory(results: dict[str, Any]) -> None:
    """torch would fill all that it allocates: 38 to 60 % more kernels."""
    counts = [sum(of(results, f"deterministic={word}")["nodes"].values()) for word in ("true", "false")]
    assert counts[0] <= 1.1 * counts[1]


def test_evaluations_take_no_more_memory_each_time(results: dict[str, Any]) -> None:
    told = of(results, "reserved")
    assert told["reserved"][0] == told["reserved"][1]
    assert told["complaints"] == []


def test_a_capture_without_memory_is_told_by_its_cause(results: dict[str, Any]) -> None:
    told = of(results, "out_of_memory")["engine"]
    assert told["used"] == "eager"
    assert told["why"].startswith("an update can't be recorded: OutOfMemoryError: CUDA out of memory")


def test_the_fake_device_refuses_what_a_real_one_refuses(results: dict[str, Any]) -> None:
    told = of(results, "refusals")
    for name, word in (("read", "cudaStreamSynchronize"), ("beside", "NOT CAPTURED"), ("unjoined", "ERROR")):
        assert any(word in line for line in told[name][1:]), told
    assert told["read"][0]
    assert told["unjoined"][0]


# ---- commands, each in processes of its own


class Done(NamedTuple):
    code: int
    said: str
    reports: list[dict[str, Any]]


def ganlab(place: Path, *words: str, report: str, **devices: Any) -> Done:
    env = environment(place, **devices) | {"FAKE_REPORT": str(place / report)}
    command = [sys.executable, "-m", "fake_gpu", *words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=place, timeout=580)
    path = place / report
    reports = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return Done(done.returncode, done.stdout + done.stderr, reports)


@pytest.fixture(scope="module")
def run(place: Path) -> Done:
    """A run of all that a run does, on the second of two devices; its folder is ``place / "run"``."""
    words = [*RUN, "steps=8", "eval_every=4", "sample_every=4", "spectral_every=4", "ema=0.9"]
    return ganlab(place, "train", *words, "run_dir=run", "device=cuda:1", report="run.jsonl", gpus=2)


def test_a_run_keeps_to_its_device(run: Done, place: Path) -> None:
    assert run.code == 0, run.said
    assert run.reports == [{"command": "train", "devices": [1], "complaints": []}]
    result = json.loads((place / "run" / "result.json").read_text())
    assert result["engine"]["used"] == "graph"
    assert result["status"] == "finished"


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "run", "n=4", "out=samples"],
        ["evaluate", "run", "metric.protocol=smoke"],
        ["analyze", "run", "analysis=singular_values", "out=analysis"],
    ],
    ids=lambda words: str(words[0]),
)
def test_a_stored_run_is_looked_at_by_a_fresh_process(words: list[str], run: Done, place: Path) -> None:
    """Nothing there has initialised CUDA before."""
    assert run.code == 0, run.said
    done = ganlab(place, *words, "device=cuda", report=f"{words[0]}.jsonl")
    assert done.code == 0, done.said
    assert done.reports == [{"command": words[0], "devices": [0], "complaints": []}]


def test_a_sweep_packs_three_cells_into_a_process(place: Path) -> None:
    words = ["grid=sngan_fig1_cifar", "method=sn", "setting=A,B,C", "seed=0", "per_gpu=3", "device=cuda"]
    done = ganlab(place, "sweep", *words, *RUN, "steps=6", "out=sweep", report="sweep.jsonl")
    assert done.code == 0, done.said
    assert [r["command"] for r in done.reports] == ["pack", "sweep"]
    assert [r["complaints"] for r in done.reports] == [[], []]
    results = [json.loads(path.read_text()) for path in (place / "sweep").glob("*/result.json")]
    assert [r["engine"]["used"] for r in results] == ["graph"] * 3
    assert "in pack 0" in done.said


def test_a_device_that_is_too_small_ends_in_one_line(place: Path) -> None:
    done = ganlab(
        place, "train", *RUN, "steps=4", "run_dir=tiny", "device=cuda", report="tiny.jsonl", memory_gb=0.01
    )
    assert done.code == 5, done.said
    assert "Traceback" not in done.said
    assert "ganlab: error: batch_size: out of device memory with 8" in done.said


def test_sigterm_under_a_graph_saves(place: Path) -> None:
    env = environment(place) | {"FAKE_REPORT": str(place / "stopped.jsonl")}
    words = [*RUN, "steps=1000000", "save_every=0", "log_every=20", "run_dir=stopped", "device=cuda"]
    command = [sys.executable, "-m", "fake_gpu", "train", *words]
    metrics = place / "stopped" / "metrics.jsonl"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=place
    ) as p:
        deadline = time.monotonic() + 450
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            assert p.poll() is None, p.communicate()[0]
            time.sleep(0.1)
        p.send_signal(signal.SIGTERM)
        said, _ = p.communicate(timeout=100)
    assert p.returncode == 128 + signal.SIGTERM, said
    assert "saved at step" in said
    assert json.loads((place / "stopped" / "result.json").read_text())["engine"]["used"] == "graph"
    (report,) = map(json.loads, (place / "stopped.jsonl").read_text().splitlines())
    assert report["complaints"] == []
