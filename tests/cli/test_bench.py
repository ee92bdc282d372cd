"""``ganlab bench``: validation, taking turns, stored records and reports; no assertion depends on time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ganlab.bench import KEYS, book, cases, estimate, measure, reference, run, scoring, turns
from ganlab.bench.cases import Case, Path_
from ganlab.bench.child import Server
from ganlab.cli import main
from ganlab.errors import ConfigError, EnvError, GanlabError
from ganlab.sweeps import cost

SMALL = {"cases": "cnn-sn", "d_steps": "2", "rounds": 2, "block": "0.01", "width": "0.05", "batch_size": 4}
pytestmark = pytest.mark.usefixtures("one_thread")


class InProcessChild:
    """A stand-in for ``Child`` that handles requests in this process."""

    begun: list[str] = []  # noqa: RUF012 - all requests, in order

    def __init__(self, name: str, threads: int, config_dirs: Any = ()) -> None:
        self.name, self.server = name, Server()

    def request(self, do: str, **fields: Any) -> dict[str, Any]:
        self.begun.append(f"{self.name}: {do}")
        answer: dict[str, Any] = getattr(self.server, do)({"do": do, "asked": 0.0, **fields})
        return json.loads(json.dumps(answer))  # type: ignore[no-any-return]  # as over a pipe

    def send(self, do: str, **fields: Any) -> None:
        self.answer = self.request(do, **fields)

    def receive(self) -> dict[str, Any]:
        return self.answer

    def __enter__(self) -> InProcessChild:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Runs ``ganlab bench`` with in-process children; returns the content of ``bench.json``."""
    monkeypatch.setattr(measure, "Child", InProcessChild)
    monkeypatch.setattr(reference, "SIDES", {"cpu": 32})
    monkeypatch.setattr(measure, "PEAK_S", 0.0)
    monkeypatch.setattr(InProcessChild, "begun", [])

    def run_bench(**own: Any) -> dict[str, Any]:
        defaults = {key: value for key, (value, _) in KEYS.items()}
        options = {**defaults, "device": "cpu", "threads": 1, "out": str(tmp_path / "out"), **SMALL, **own}
        assert run.bench(options) == 0
        measurements: dict[str, Any] = json.loads((tmp_path / "out" / "bench.json").read_text())
        return measurements

    return run_bench


def test_a_case_is_measured_kept_and_shown(
    bench: Callable[..., dict[str, Any]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    measurements = bench()
    (record,) = measurements["cases"].values()
    rows = record["told"]["paths"]
    assert list(rows) == ["plain fp32", "eager fp32", "eager bf16"]
    assert all(row["s"] > 0 and row["rounds"] == 2 and row["rss_mb"] > 0 for row in rows.values())
    assert rows["plain fp32"]["ratio"] == 1
    assert rows["eager fp32"]["operations"] < rows["plain fp32"]["operations"] / 2
    assert rows["eager fp32"]["flops"] < rows["plain fp32"]["flops"], "no gradients of D in G's update"
    assert record["told"]["flops"] == min(row["flops"] for row in rows.values())
    names = [
        b.partition(": ")[0].removeprefix("cnn-sn-d2 ")
        for b in InProcessChild.begun
        if b.endswith((": run", "peak"))
    ]
    assert names[-8:] == [*rows, "peak"] * 2, "A B A B"
    markdown = (tmp_path / "out" / "bench.md").read_text()
    assert "| cnn sn 0.05x b4 | 2 | plain fp32 |" in markdown
    assert f"torch {torch.__version__}" in markdown
    assert (tmp_path / "out" / "bench.png").read_bytes().startswith(b"\x89PNG")
    out = capfd.readouterr().out
    assert "operations" in out
    assert "Figure 1" not in out, "nothing of full width was measured"

    InProcessChild.begun.clear()
    assert bench() == measurements, "the same command does not measure again"
    assert not InProcessChild.begun


def test_packing_scaling_and_scoring(
    bench: Callable[..., dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pixel_features: None,
) -> None:
    monkeypatch.setattr(run, "RUNS", (1, 2))
    monkeypatch.setattr(run, "SAMPLES", (60,))
    monkeypatch.setattr(scoring, "REAL", 60)
    monkeypatch.setattr(run, "SCALES", {"batch_size": (4,), "resolution": (32, 48)})
    options = {"packing": True, "scaling": True, "evaluation": True, "quick": True, "precision": "fp32"}
    measurements = bench(**options, plain=False, rounds=1)
    runs = {(r["told"]["how"], r["told"]["runs"]) for r in measurements["packing"].values()}
    assert runs == {("lanes", 1), *((how, n) for how in ("lanes", "processes") for n in (2,))}
    assert all(r["told"]["gain"] > 0 for r in measurements["packing"].values())
    axes = {(r["told"]["axis"], r["told"]["value"]) for r in measurements["scaling"].values()}
    assert {axis for axis, _ in axes} == set(run.SCALES)
    assert ("resolution", 48) in axes
    scored = [r["told"] for r in measurements["evaluation"].values() if r["told"]["extractor"] == "cifar"]
    assert scored
    assert scored[0]["images_per_s"] > 0
    assert (tmp_path / "out" / "scaling.png").is_file()
    assert "Concurrent runs" in (tmp_path / "out" / "bench.md").read_text()


def test_minutes_are_heeded_and_the_rest_is_left_for_later(
    bench: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clock = iter(range(0, 10_000, 45))  # seconds
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    options = {"cases": "cnn-sn,cnn-none", "plain": False, "precision": "fp32", "rounds": 1}
    measurements = bench(**options, minutes=1)
    assert len(measurements["cases"]) == 1
    assert "1 not started" in capfd.readouterr().out
    assert len(bench(**options)["cases"]) == 2


def test_a_path_that_fails_does_not_take_the_others_with_it(
    bench: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Server.start

    def refuse(self: Server, spec: dict[str, Any]) -> dict[str, Any]:
        if spec["precision"] == "bf16":
            raise EnvError("batch_size", "the device has no memory")
        return start(self, spec)

    monkeypatch.setattr(Server, "start", refuse)
    (record,) = bench()["cases"].values()
    assert "no memory" in record["told"]["paths"]["eager bf16"]["error"]
    assert record["told"]["paths"]["eager fp32"]["ratio"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["case=cnn-sn"], "did you mean 'cases'?"),
        (["cases=cnn-ns"], "did you mean 'sn'?"),
        (["cases=cn-sn"], "unknown case 'cn-sn'"),
        (["cases=foo"], "use NET-METHOD"),
        (["threads=9999"], "threads: 9999 exceeds the"),
        (["d_steps=0"], "not a positive integer"),
        (["width=big"], "not a positive number"),
        (["precision=fp16"], "unknown precision 'fp16'"),
        (["engine=grpah"], "did you mean 'graph'?"),
        (["device=gpu"], "use auto, cpu, cuda"),
        (["rounds=0", "minutes=-1"], "rounds: 0 is below the minimum of 1"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", *arguments]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert any(message in line for line in lines)
    assert all(line.startswith("ganlab: error: ") for line in lines)
    assert len(lines) == len(arguments), "all at once"


def test_a_folder_that_cannot_be_written_is_told_first(capfd: pytest.CaptureFixture[str]) -> None:
    assert main.main(["bench", "quick=true", "out=/dev/null/x"]) == 5
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("ganlab: error: out: cannot write to /dev/null/x")


def test_blocks_take_turns_and_warm_rounds_do_not_count() -> None:
    calls: list[str] = []

    def block(name: str) -> Callable[[], int]:
        return lambda: calls.append(name) or len(calls)  # type: ignore[func-returns-value]

    results = cost.in_turn({n: block(n) for n in "ab"}, 2)
    assert calls == ["a", "b"] * 3
    assert results == {"a": [3, 5], "b": [4, 6]}


def test_a_child_answers_refuses_and_ends() -> None:
    with turns.Child("peak", 1) as child:
        answer = child.request("peak", device="cpu", precisions=["fp32"], threads=1, seconds=0)
        assert answer["fp32"] > 0
        with pytest.raises(EnvError, match="no CUDA device"):
            child.request("peak", device="cuda:63", precisions=["fp32"], threads=1, seconds=0)
        child.process.kill()
        with pytest.raises(EnvError, match="killed by signal 9"):
            child.request("memory")


def test_a_record_counts_for_its_machine_versions_and_settings(tmp_path: Path) -> None:
    cpu, settings = torch.device("cpu"), {"rounds": 5, "paths": ["eager fp32"]}
    first = book.BenchFile(tmp_path, cpu, 2, ["rounds=5"])
    first.add("cases", "a", {"x": 1}, settings)
    again = book.BenchFile(tmp_path, cpu, 2, [])
    assert again.done("cases", "a", settings)
    assert not again.done("cases", "b", settings)
    assert not again.done("cases", "a", {**settings, "rounds": 3})
    assert not book.BenchFile(tmp_path, cpu, 1, []).done("cases", "a", settings)
    again.stamp["git"] = "another"
    assert not again.done("cases", "a", settings)
    (tmp_path / "bench.json").write_text('{"format": 2}')
    with pytest.raises(GanlabError, match="was not written by this ganlab bench"):
        book.BenchFile(tmp_path, cpu, 2, [])


def row(s: float, kind: str = "ganlab") -> dict[str, Any]:
    seconds = {"s": s, "least_s": s, "most_s": 2 * s, "cpu_s": s, "updates_per_s": 1 / s}
    ratio = {"ratio": 1 / s, "ratio_least": 1 / s, "ratio_most": 2 / s, "ratio_cpu": 1.0}
    more = {"flops": 1e12, "operations": 10, "share_of_floor": 0.5, "rss_mb": 1.0, "first_s": 1.0}
    return {"kind": kind, "engine": "eager", "used": "eager", **seconds, **ratio, **more}


def measured(width: float = 1.0) -> dict[str, Any]:
    """A made-up ``bench.json``: SN and WGAN-GP at one and at five D updates."""
    records: dict[str, Any] = {}
    for method, factor in (("sn", 1.0), ("gp", 2.0)):
        for d in (1, 5):
            case = Case("cnn", method, d, width)
            paths = {"plain fp32": row(8.0 * d, "plain"), "eager fp32": row(factor * d)}
            records[case.key] = {"told": {**case.as_dict(), "paths": paths}}
    stamp = {"device": "a chip", "cores": 2, "threads": 2, "torch": "2", "git": "abc", "load": 0.1}
    stamp |= {"when": "2026-01-01T00:00:00Z", "command": "ganlab bench", "versions": {"torch": "2"}}
    return {"format": 1, "cases": {key: {**stamp, **record} for key, record in records.items()}}


def test_the_grids_cells_are_counted_by_method_and_d_updates() -> None:
    cells = list(estimate._cells("method=wc,gan-gp,wgan-gp", "setting=A,B"))
    assert sorted(cell[:3] for cell in cells) == sorted(
        (m, d, 100_000) for m in ("wc", "gp", "gp") for d in (5, 1)
    )
    assert all(images > 50_000 for *_, images in cells)


def test_hours_of_a_grid_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six methods cost as much as SN, GAN-GP and WGAN-GP twice that; four settings have d_steps=5, two 1."""
    methods = ("wc", "gp", "gp", "bn", "ln", "wn", "orthonormal", "sn")
    cells = [(m, d, 100_000, 0) for m in methods for d in (5, 5, 5, 5, 1, 1)]
    monkeypatch.setattr(estimate, "_cells", lambda: cells)
    (line,) = [line for line in estimate.conclusions(measured()) if "eager" in line]
    seconds = 100_000 * (6 + 2 * 2) * (4 * 5 + 2 * 1)
    assert f"{seconds / 86400:.1f} days" in line
    assert "48 cells" in line
    assert "6 wc" in line
    assert "gp" not in line.partition("assuming the cost")[2], "it was measured"
    assert estimate.conclusions(measured(width=0.5)) == []


def test_paths_and_words_of_a_case() -> None:
    setup = measure.Setup("cpu", False, 1, 1, 1.0, ["fp32", "bf16"], ["eager"], True)
    assert [p.name for p in setup.paths(Case("cnn", "sn", 1))] == ["plain fp32", "eager fp32", "eager bf16"]
    assert [p.name for p in setup.paths(Case("cnn", "bn", 1))] == ["eager fp32", "eager bf16"]
    overrides = Case("resnet", "gp", 5).overrides(Path_("ganlab", "bf16"), "cpu", 2)
    assert {"loss=wasserstein", "architecture.g_channels=128", "precision=bf16", "d_steps=5"} <= set(
        overrides
    )
    overrides = Case("cnn", "sn_per_update", 5).overrides(Path_("ganlab", "fp32"), "cpu", 2)
    assert {"normalization=sn", "normalization.sn.update=per_update"} <= set(overrides)
    own = {key: value for key, (value, _) in KEYS.items()}
    request = cases.parse_request(own, cuda=True)
    assert len(request.cases) == 20
    assert (request.precisions, request.engines) == (["tf32", "bf16"], ["eager", "graph"])
    with pytest.raises(ConfigError):
        cases.parse_request({**own, "cases": "cnn-sn-extra"}, cuda=False)
