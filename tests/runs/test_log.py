"""The log: a strict record, a convenience that never stops training, and no zig-zag after a resume."""

from __future__ import annotations

import errno
import io
import json
import logging
import math
import os
import re
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_checkpoint import in_child

from ganlab.errors import EnvError, Stopped
from ganlab.runs.log import Log


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave TensorBoard out, whose import is slow."""
    monkeypatch.setattr(Log, "_board", lambda self, action: None)


@pytest.fixture(autouse=True)
def _nothing_stays_behind() -> Iterator[None]:
    handlers, hook = list(logging.getLogger("ganlab").handlers), threading.excepthook
    yield
    assert logging.getLogger("ganlab").handlers == handlers
    assert threading.excepthook == hook


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def points(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return [(p.step, round(p.value, 4)) for p in events.Scalars(tag)]


def test_the_record_and_the_plain_lines(
    tmp_path: Path, no_board: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with Log(tmp_path, 1000, wall_s=100.0, phases=[50, 200]) as log:
        log.train(100, {"loss/d": 1.25, "loss/g": math.nan}, 12.5)
        log.scores(100, {"fid_cifar": 33.333333, "is_cifar": None}, "abc123")
        log.say("saved step 100")
        logging.getLogger("ganlab").warning("something\n%s", "odd")
        log.flush()
        assert 100 <= log.wall_s < 160
    train, scores = records(tmp_path)
    assert 100 <= train.pop("wall_s") < 160
    assert train == {"step": 100, "kind": "train", "loss/d": 1.25, "loss/g": None, "it_per_s": 12.5}
    del scores["wall_s"]
    values = {"fid_cifar": 33.333333, "is_cifar": None}
    assert scores == {"step": 100, "kind": "eval", "scores": values, "protocol_id": "abc123"}
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "step 100/1000  loss/d 1.25  loss/g nan  12.5 it/s  ETA 0:00:08 to step 200",
        "step 100/1000  fid_cifar 33.33  is_cifar -",
        "saved step 100",
    ]
    assert err == "ganlab: warning: something odd\n"
    text = (tmp_path / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ  ", line) for line in text)
    assert [line[22:] for line in text] == [*out.splitlines(), *err.splitlines()]


@pytest.mark.parametrize("stdout_too", [True, False])
def test_on_a_terminal_there_is_one_progress_line(
    tmp_path: Path, no_board: None, monkeypatch: pytest.MonkeyPatch, stdout_too: bool
) -> None:
    screen, piped = Terminal(), io.StringIO()
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen if stdout_too else piped)
    threads = threading.active_count()
    with Log(tmp_path, 200) as log:
        assert threading.active_count() == threads
        log.train(100, {"loss/d": 1.5}, 50.0)
        log.scores(100, {"fid_cifar": 12.3}, "abc")
        log.say("[bold]a\x1b[31mb")  # neither markup nor escapes get through
        log.warn("careful")
        log.set_progress(150)
    seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "150/200" in seen
    assert "50 it/s  ETA 0:00:01" in seen
    assert "loss/d 1.5  fid_cifar 12.3" in seen
    assert "ganlab: warning: careful" in seen
    assert "\x1b[31m" not in screen.getvalue()
    assert screen.getvalue().count("\x1b[?25h") == 1  # the cursor is back
    if stdout_too:
        assert "[bold]a [31mb" in seen
        assert "step 100/200  loss/d" not in seen  # the progress line says it
    else:
        assert piped.getvalue().splitlines() == [
            "step 100/200  loss/d 1.5  50 it/s  ETA 0:00:02",
            "step 100/200  fid_cifar 12.3",
            "[bold]a [31mb",
        ]


@pytest.mark.parametrize(("start", "kept"), [(0, []), (2, [0, 1, 2]), (9, [0, 1, 2, 3, 4])])
def test_a_resume_drops_what_lies_beyond_it(
    tmp_path: Path, no_board: None, start: int, kept: list[int]
) -> None:
    with Log(tmp_path, 10) as log:
        for step in range(5):
            log.train(step, {"loss/d": 1.0}, 1.0)
    with Log(tmp_path, 10, start) as log:
        assert [r["step"] for r in records(tmp_path)] == kept
        log.train(start, {"loss/d": 2.0}, 1.0)  # told again: kept once
    steps = [r["step"] for r in records(tmp_path)]
    assert steps == sorted(set(steps))


def test_tensorboard_shows_each_step_once_after_a_kill_and_a_resume(tmp_path: Path) -> None:
    grid = np.zeros((8, 8, 3), dtype=np.uint8)
    with Log(tmp_path, 20) as log:
        for step in range(1, 13):  # dies at 12, its last checkpoint at 8
            log.train(step, {"loss/d": step / 2, "loss/g": math.nan if step == 3 else 0.0}, 10.0)
            log.scores(step, {"fid_cifar": 100.0 - step}, "abc")
        log.image(12, grid)
    time.sleep(1.1)  # event files are named by the second
    with Log(tmp_path, 20, 8) as log:
        for step in range(9, 21):
            log.train(step, {"loss/d": step / 2 + 0.25, "loss/g": 0.0}, 10.0)
        log.image(20, grid)
        log.flush()
    wanted = [(s, s / 2) for s in range(1, 9)] + [(s, s / 2 + 0.25) for s in range(9, 21)]
    assert points(tmp_path, "loss/d") == wanted
    assert [s for s, _ in points(tmp_path, "loss/g")] == [s for s in range(1, 21) if s != 3]
    assert [s for s, _ in points(tmp_path, "metric/fid_cifar")] == list(range(1, 9))
    assert len(points(tmp_path, "time/it_per_s")) == 20
    assert [r["step"] for r in records(tmp_path) if r["kind"] == "train"] == list(range(1, 21))


@pytest.mark.parametrize("missing", [True, False])
def test_a_tensorboard_that_fails_warns_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], missing: bool
) -> None:
    import torch.utils.tensorboard

    error: Exception = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object, **__: object) -> None:
        raise error

    if missing:
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    else:
        monkeypatch.setattr(torch.utils.tensorboard.SummaryWriter, "add_scalar", fail)
    with Log(tmp_path, 10) as log:
        for step in range(3):
            log.train(step, {"loss/d": 1.0}, 1.0)
        log.flush()
    log.close()
    log.say("nobody listens")
    assert len(records(tmp_path)) == 3
    assert capsys.readouterr().err.count("ganlab: warning: TensorBoard failed (") == 1
    if not missing:
        error = Stopped(15)
        with Log(tmp_path, 10) as log, pytest.raises(Stopped):  # a signal is no failure
            log.train(1, {"loss/d": 1.0}, 1.0)


def test_a_disk_that_fills_up_kills_tensorboards_thread_but_not_the_run(tmp_path: Path) -> None:
    import torch.utils.tensorboard  # noqa: F401  before the fork

    stderr, run = tmp_path / "stderr", tmp_path / "run"
    run.mkdir()

    def work() -> None:
        os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT), 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        grid = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)  # 12 kB as PNG
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with Log(run, 10) as log:
            for step in range(1, 6):
                log.image(step, grid)
                log.train(step, {"loss/d": 1.0}, 1.0)
                log.flush()
        sys.stderr.flush()

    sys.stdout.flush()
    code, output = in_child(work), stderr.read_text()
    assert code == 0, output
    assert "Traceback" not in output
    assert output.count("TensorBoard failed") == 1
    assert len(output.splitlines()) == 1
    assert [r["step"] for r in records(run)] == [1, 2, 3, 4, 5]


def test_log_txt_that_fails_warns_once_and_metrics_that_fail_are_an_error(
    tmp_path: Path, no_board: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.txt").mkdir()
    with Log(tmp_path, 10) as log:
        log.say("a")
        log.say("b")
    assert capsys.readouterr().err.count("log.txt failed") == 1
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "metrics.jsonl").symlink_to(tmp_path / "victim")
    with pytest.raises(EnvError, match=r"metrics\.jsonl"):
        Log(tmp_path / "other", 10)
    assert not (tmp_path / "victim").exists()
    with Log(tmp_path / "none", 10, silent=True) as log:  # of a rank that is not the first
        log.train(1, {"loss/d": 1.0}, 1.0)
        log.warn("nothing")
        log.flush()
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "none").exists()


def test_the_small_modules_need_no_torch() -> None:
    names = "ganlab.runs.log, ganlab.runs.folder, ganlab.system.signals, ganlab.system.files"
    code = f"import sys, {names}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_odd_streams_stop_nothing(tmp_path: Path, no_board: None, monkeypatch: pytest.MonkeyPatch) -> None:
    ascii_stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    closed = io.StringIO()
    closed.close()
    with Log(tmp_path, 10) as log:
        for stream in (ascii_stream, closed, None):
            monkeypatch.setattr(sys, "stdout", stream)
            log.say("é 数 \udcff")
            log.train(1, {}, 0.0)

        class BrokenPipe(io.StringIO):
            def write(self, text: str) -> int:
                raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", BrokenPipe())
        log.say("goes on")
    ascii_stream.flush()
    assert ascii_stream.buffer.getvalue().startswith(b"\\xe9 \\u6570")  # type: ignore[attr-defined]
    assert "goes on" in (tmp_path / "log.txt").read_text()
