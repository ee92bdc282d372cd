"""``scripts/benchmark.py``: taking turns, stored records and tables; no assertion depends on time."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import benchmark
import pytest

pytestmark = pytest.mark.usefixtures("one_thread")


class InThread(threading.Thread):
    """Stands for a process, which would import torch anew."""

    exitcode = 1

    def kill(self) -> None:
        pass


class Open(Connection):
    def close(self) -> None:
        """The thread goes on using it."""


class Context:
    Process = InThread

    @staticmethod
    def Pipe() -> tuple[Connection, Connection]:  # noqa: N802
        ours, theirs = multiprocessing.Pipe()
        return ours, Open(os.dup(theirs.fileno()))


def test_paths_are_compared_and_a_case_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: Context)
    turns: list[str] = []
    updates = benchmark.Child.updates

    def recorded(self: benchmark.Child, n: int) -> dict[str, Any]:
        turns.append(self.process._args[2].name)
        return updates(self, n)

    monkeypatch.setattr(benchmark.Child, "updates", recorded)
    words = "--cases cnn-sn --d-steps 2 --rounds 2 --block 0.001 --width 0.05 --batch-size 4 --threads 1"
    arguments = [*words.split(), "--device", "cpu", "--out", str(tmp_path)]
    assert benchmark.main(arguments) == 0
    rows = json.loads((tmp_path / "bench.json").read_text())["cnn-sn-d2-w0.05-b4"]["paths"]
    assert list(rows) == ["plain fp32", "eager fp32", "eager bf16"]
    assert turns[-6:] == [*rows, *rows], "A B A B"
    assert rows["plain fp32"]["ratio"] == 1
    assert rows["eager fp32"]["operations"] < rows["plain fp32"]["operations"] / 2
    assert rows["eager fp32"]["flops"] < rows["plain fp32"]["flops"], "no gradients of D in G's update"
    assert "| cnn-sn-d2-w0.05-b4 | plain fp32 |" in (tmp_path / "bench.md").read_text()
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert "operations" in capsys.readouterr().out
    turns.clear()
    assert benchmark.main(arguments) == 0
    assert not turns, "the same command measures nothing again"


@pytest.mark.parametrize("words", ["--cases cnn-sx", "--rounds 0", "--precision fp8", "--width=-1"])
def test_bad_options(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(words.split())
    assert words.partition(" ")[0].partition("=")[0] in capsys.readouterr().err
