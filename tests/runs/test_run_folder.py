"""The run folder: one owner, one config, metrics that survive a kill at any byte."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_checkpoint import in_child

from ganlab.errors import ConfigError, DataError, EnvError, RunInUse
from ganlab.methods.penalties import GradientPenalty
from ganlab.runs.folder import RunFolder, differences
from ganlab.runs.log import Log
from ganlab.runs.metrics_file import Metrics, read_metrics
from ganlab.system import files
from ganlab.system import lock as lock_module
from ganlab.system.files import read_json, write_atomic, write_json
from ganlab.system.lock import Lock, owner_of

CONFIG: dict[str, Any] = {
    "_target_": "ganlab.experiment.Experiment",
    "dataset": {"_target_": "ganlab.data.digits.Digits", "resolution": 32, "path": None},
    "normalization": {"sn": {"_target_": "ganlab.methods.weight_norms.SpectralNorm", "iterations": 1}},
    "loss": {"_target_": "ganlab.methods.losses.Hinge", "margin": 1.0},
    "optimizer": {"_target_": "torch.optim.Adam", "lr": 2e-4, "betas": [0.5, 0.999]},
    "steps": 1000,
    "seed": 0,
    "ema": False,
    "device": "auto",
}


def changed(**values: Any) -> dict[str, Any]:
    return {**CONFIG, **values}


# ---- whole files or none -----------------------------------------------------------------------------


def test_write_atomic_replaces_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    write_atomic(path, b"old")
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd: int) -> None:
        fsync(fd)
        name = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        order.append("fsync file" if name.endswith(".tmp") else f"fsync {name}")

    def note_replace(old: Path, new: Path) -> None:
        assert old.parent == new.parent
        replace(old, new)
        order.append("rename")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", note_fsync)
        patch.setattr(os, "replace", note_replace)
        write_atomic(path, b"new")
    assert order == ["fsync file", "rename", f"fsync {tmp_path.name}"]
    assert path.read_bytes() == b"new"

    for call in ("write", "fsync", "replace"):

        def fail(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            with pytest.raises(EnvError, match=f"disk full writing {path}: needs 0.0 MB"):
                write_atomic(path, b"newer")
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["result.json"]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": math.nan, "b": [math.inf, (1, 0.1)], "c": "é\udcff", 3: Path("p")})
    assert read_json(path) == {"a": None, "b": [None, [1, 0.1]], "c": "é\udcff", "3": "p"}
    assert read_json(tmp_path / "none.json") is None
    for text in (b"{", b"\xff", b"[" * 100_000):
        path.write_bytes(text)
        with pytest.raises(DataError, match="not valid JSON"):
            read_json(path)


# ---- the folder --------------------------------------------------------------------------------------


def test_a_run_keeps_its_id(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    assert not (tmp_path / "deep").exists()
    with folder.lock():
        first = folder.run_id
    assert len(first) == 32
    with folder.lock():
        assert folder.run_id == first
    assert sorted(os.listdir(folder.path)) == [".lock", "run.json"]
    with pytest.raises(DataError, match=r"run\.json: holds no run id"):
        _ = RunFolder(tmp_path).run_id


def test_what_a_kill_left_half_written_is_removed_by_the_next_owner(tmp_path: Path) -> None:
    stale = [f".result.json.{'0' * 32}.tmp", f".x.{'f' * 32}.tmp"]
    kept = ["mine.tmp", ".config.yaml", ".x.tmp"]
    for name in stale + kept:
        (tmp_path / name).write_text("half")
    with RunFolder(tmp_path).lock():
        names = set(os.listdir(tmp_path))
    assert names.isdisjoint(stale)
    assert names.issuperset(kept)


def test_a_folder_that_cannot_be_written_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (
        tmp_path / "file" / "run",
        tmp_path / "file",
        Path("/proc/ganlab/run"),
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(EnvError) as caught:
            RunFolder(path).lock()
        assert caught.value.code == 5
        assert re.search(rf"{path}.*run_dir=", str(caught.value))


# ---- one owner ---------------------------------------------------------------------------------------


def contend(path: Path, count: int = 8) -> list[str]:
    """What each of ``count`` processes that start at once is told: "owner", or the error's line."""
    go_read, go_write = os.pipe()
    done_read, done_write = os.pipe()
    out_read, out_write = os.pipe()
    pids = []
    for _ in range(count):
        if (pid := os.fork()) == 0:
            os.close(go_write)
            os.close(done_write)
            os.read(go_read, 1)  # all are released at once, by the closing of the pipe
            try:
                RunFolder(path).lock()
                answer = f"owner {os.getpid()}"
            except RunInUse as error:
                answer = f"{error.code} {error}"
            except BaseException as error:
                answer = f"bad {error!r}"
            os.write(out_write, answer.encode() + b"\n")
            os.read(done_read, 1)  # nobody leaves before all have tried
            os._exit(0)
        pids.append(pid)
    os.close(go_write)
    os.close(out_write)
    text = b""
    while text.count(b"\n") < count:
        text += os.read(out_read, 65536)
    os.close(done_write)
    for pid in pids:
        os.waitpid(pid, 0)
    for fd in (go_read, done_read, out_read):
        os.close(fd)
    return text.decode().splitlines()


def test_of_8_contenders_one_owns_the_folder_and_the_others_name_it(tmp_path: Path) -> None:
    for number in range(2):
        answers = contend(tmp_path / f"run{number}")
        owners = [t.split()[1] for t in answers if t.startswith("owner")]
        assert len(owners) == 1, answers
        refused = [t for t in answers if not t.startswith("owner")]
        assert len(refused) == 7
        assert all(
            t.startswith("7 ") and f"in use by {owners[0]}@{socket.gethostname()};" in t for t in refused
        )
        with RunFolder(tmp_path / f"run{number}").lock():
            pass  # freed by their exits


def test_the_death_of_the_owner_frees_the_folder(tmp_path: Path) -> None:
    def work() -> None:
        RunFolder(tmp_path).lock()
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(work) == -signal.SIGKILL
    assert (tmp_path / ".lock").read_text()  # its name is still there
    with RunFolder(tmp_path).lock():
        assert re.fullmatch(rf"{os.getpid()}@{socket.gethostname()} \d+\n", (tmp_path / ".lock").read_text())
        with pytest.raises(RunInUse) as caught:
            Lock(tmp_path / ".lock")
        assert caught.value.code == 7
    assert (tmp_path / ".lock").read_text() == ""


def test_a_forked_child_neither_frees_nor_keeps_the_lock(tmp_path: Path) -> None:
    lock = RunFolder(tmp_path).lock()
    assert in_child(lock.release) == 0
    with pytest.raises(RunInUse):
        RunFolder(tmp_path).lock()
    ready, leave = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.write(ready[1], b"x")
        os.close(leave[1])
        os.read(leave[0], 1)
        os._exit(0)
    os.read(ready[0], 1)
    lock.release()
    lock.release()
    with RunFolder(tmp_path).lock():
        pass
    os.close(leave[1])
    os.waitpid(pid, 0)


@pytest.fixture
def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


def test_without_flock_there_is_never_more_than_one_owner(tmp_path: Path, no_flock: None) -> None:
    for number in range(2):
        answers = contend(tmp_path / f"run{number}")
        assert sum(t.startswith("owner") for t in answers) <= 1, answers
        assert not [t for t in answers if t.startswith("bad")]
        lock = RunFolder(tmp_path / f"run{number}").lock()  # the dead are passed over
        with pytest.raises(RunInUse, match=f"in use by {os.getpid()}@"):
            RunFolder(tmp_path / f"run{number}").lock()
        lock.release()
        RunFolder(tmp_path / f"run{number}").lock().release()
        assert sorted(os.listdir(tmp_path / f"run{number}")) == [".lock", "run.json"]


def test_an_owner_on_another_host_is_believed_while_it_touches_its_lock(tmp_path: Path) -> None:
    """flock may hold on one host alone; a clock that jumped back makes an owner young, never dead."""
    path = tmp_path / ".lock"
    for seconds, free in ((0, False), (290, False), (310, True), (-3600, False)):
        path.write_text("999999999@some-other-host\n")
        os.utime(path, (time.time() - seconds,) * 2)
        assert (owner_of(path) is None) == free
        if free:
            with RunFolder(tmp_path).lock():
                assert path.read_text().startswith(f"{os.getpid()}@{socket.gethostname()} ")
        else:
            with pytest.raises(RunInUse, match=r"in use by 999999999@some-other-host; it is freed 5 min "):
                RunFolder(tmp_path).lock()
            assert path.read_text() == "999999999@some-other-host\n"
    path.unlink()
    RunFolder(tmp_path).lock().release()


@pytest.mark.parametrize("flock", [True, False])
def test_an_owner_touches_its_lock_until_it_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool, request: pytest.FixtureRequest
) -> None:
    if not flock:
        request.getfixturevalue("no_flock")
    monkeypatch.setattr(lock_module, "BEAT_S", 0.01)
    path = tmp_path / (".lock" if flock else ".lock.0")
    lock = RunFolder(tmp_path).lock()
    os.utime(path, (0, 0))
    for _ in range(500):
        if path.stat().st_mtime > 0:
            break
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    lock.release()
    assert not [t for t in threading.enumerate() if t.name == "ganlab-lock"]


# ---- config ------------------------------------------------------------------------------------------


def test_config_is_plain_yaml_in_order_and_comes_back_equal(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_config() is None
    odd = changed(a="${oc.env:TOKEN}", b="1e5", c=1e-5, d="no", e="0123", f="é: #\n", g=[], h={}, i=(1, 2))
    folder.write_config(odd)
    assert folder.read_config() == odd | {"i": [1, 2]}
    assert list(folder.read_config() or {}) == list(odd)
    assert "!!" not in folder.config.read_text()
    assert folder.check_config(odd) == []


def test_every_difference_is_listed_at_once_by_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(CONFIG)
    request = changed(
        loss={"_target_": "ganlab.methods.losses.Wasserstein"},
        normalization={"gp": {"_target_": "ganlab.methods.penalties.GradientPenalty", "weight": 10.0}},
        optimizer={**CONFIG["optimizer"], "lr": 1e-4, "betas": [0, 0.9]},
        seed=1,
        extra="x",
    )
    with pytest.raises(ConfigError) as caught:
        folder.check_config(request)
    lines = str(caught.value).splitlines()
    made = "this run folder was made with"
    methods = "ganlab.methods"
    fix = "; use another run_dir=, the old value, or resume_allow="
    assert [line.rpartition("[")[0] for line in lines] == [
        f"normalization.sn: {made} {methods}.weight_norms.SpectralNorm, requested nothing" + fix,
        f"normalization.gp: {made} nothing, requested {methods}.penalties.GradientPenalty" + fix,
        f"loss: {made} {methods}.losses.Hinge, requested {methods}.losses.Wasserstein" + fix,
        "optimizer.lr: this run folder was made with 0.0002, requested 0.0001" + fix,
        "optimizer.betas: this run folder was made with [0.5, 0.999], requested [0, 0.9]" + fix,
        "seed: this run folder was made with 0, requested 1" + fix,
        'extra: this run folder was made with nothing, requested "x"' + fix,
    ]
    assert caught.value.code == 2


def test_free_keys_may_change_and_are_told(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config(CONFIG)
    data = {**CONFIG["dataset"], "path": "/elsewhere"}
    changes = folder.check_config(changed(steps=2000, dataset=data), {"steps", "dataset.path", "never"})
    assert [(d.key, d.stored, d.requested) for d in changes] == [
        ("dataset.path", None, "/elsewhere"),
        ("steps", 1000, 2000),
    ]
    assert folder.check_config(changed(dataset=data), {"dataset"})
    with pytest.raises(ConfigError, match=r"^stepsize: "):
        folder.check_config(changed(stepsize=1), {"steps"})  # not a key below it


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (1, 1.0, True),
        ([0, 0.9], [0.0, 0.9], True),
        (math.nan, math.nan, True),
        ((1, 2), [1, 2], True),
        (1, True, False),
        (0, False, False),
        (None, "null", False),
        ("1", 1, False),
        ({}, None, False),
        ([1], [1, 1], False),
        (0.1, 0.1 + 1e-18, True),
        (0.1, 0.10000000000000002, False),
    ],
)
def test_what_counts_as_the_same_value(tmp_path: Path, old: Any, new: Any, same: bool) -> None:
    folder = RunFolder(tmp_path)
    folder.write_config({"k": old})
    assert (folder.check_config({"k": new}, {"k"}) == []) == same


@pytest.mark.parametrize("text", [b"", b"- 1", b"\xff\xfe", b"x: !!python/object/apply:os.getcwd []"])
def test_a_damaged_config_is_one_line(tmp_path: Path, text: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.config.write_bytes(text)
    with pytest.raises(ConfigError, match=r"config\.yaml[:\d]*: is damaged"):
        folder.check_config(CONFIG)


# ---- metrics -----------------------------------------------------------------------------------------


def line(step: int, kind: str = "train", **values: Any) -> dict[str, Any]:
    return {"step": step, "kind": kind, **values}


def test_metrics_are_strict_json_lines_with_increasing_steps(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.append(line(0, "eval", scores={"fid": math.nan}))
    assert metrics.append(line(10, loss=0.1, gone=math.inf))
    assert not metrics.append(line(10, loss=0.2))
    assert not metrics.append(line(9, loss=0.2))
    assert metrics.append(line(10, "eval", scores={}))
    metrics.sync()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text.splitlines()[0] == '{"step": 0, "kind": "eval", "scores": {"fid": null}}'
    assert read_metrics(metrics.path) == [
        line(0, "eval", scores={"fid": None}),
        line(10, loss=0.1, gone=None),
        line(10, "eval", scores={}),
    ]
    metrics.close()
    metrics.close()
    again = Metrics(tmp_path / "metrics.jsonl")
    assert not again.append(line(10, loss=0.2))  # it remembers
    again.close()
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_truncation_keeps_earlier_lines_byte_for_byte_and_in_order(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in range(1, 7):
        metrics.append(line(step, loss=step / 3))
        if step % 2 == 0:
            metrics.append(line(step, "eval", scores={"fid": 1 / step}))
    before = path.read_bytes().splitlines(keepends=True)
    assert metrics.truncate_after(6) == 0
    assert metrics.truncate_after(4) == 3
    assert path.read_bytes() == b"".join(before[:6])
    assert metrics.append(line(5, loss=0.5))
    assert [r["step"] for r in read_metrics(metrics.path)] == [1, 2, 2, 3, 4, 4, 5]
    assert metrics.truncate_after(-1) == 7
    assert path.read_bytes() == b""
    metrics.append(line(1))
    metrics.close()
    assert os.listdir(tmp_path) == ["metrics.jsonl"]


def test_nul_bytes_cost_no_record_and_a_lost_one_is_told(tmp_path: Path) -> None:
    """A power cut leaves zeros where a file system had not written; the next record follows in their line."""
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2, 3):
        metrics.append(line(step, loss=0.25))
    metrics.close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + bytes(512) + lines[1] + lines[2])
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    metrics = Metrics(path)
    metrics.close()
    assert (metrics.lost, path.read_bytes()) == (0, b"".join(lines))
    for junk in (b"\0" * 40 + b"\n", b"[1]\n", b'{"step": "x", "kind": "train"}\n', b"\n"):
        path.write_bytes(lines[0] + junk + lines[1])
        Metrics(path).close()
        assert path.read_bytes() == lines[0] + lines[1]
    path.write_bytes(lines[0] + lines[1][:9] + bytes(8) + lines[1][17:] + lines[2][:-3])
    with Log(tmp_path, 4, 3):
        assert [r["step"] for r in read_metrics(path)] == [1]
    assert "metrics.jsonl: 1 damaged line dropped" in (tmp_path / "log.txt").read_text()


def test_a_line_torn_at_any_byte_is_dropped_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    for step in (1, 2):
        metrics.append(line(step, loss=0.25))
    good = path.read_bytes()
    metrics.append(line(3, loss=0.125, text="é"))
    metrics.close()
    whole = path.read_bytes()
    for cut in range(len(good), len(whole)):
        path.write_bytes(whole[:cut])
        assert [r["step"] for r in read_metrics(path)] == [1, 2]
        torn = Metrics(path)
        assert path.read_bytes() == good
        torn.append(line(3, loss=0.125, text="é"))
        torn.close()
        assert path.read_bytes() == whole


def test_room_is_taken_at_its_word_only_where_it_cannot_be_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.ensure_room(tmp_path, 100_000, 3)
    sizes: list[int] = []

    def quota(fd: int, start: int, size: int) -> None:
        sizes.append(size)
        if len(sizes) > 2:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(os, "posix_fallocate", quota)
    with pytest.raises(EnvError) as caught:
        files.ensure_room(tmp_path, 100_000, 4)
    assert str(caught.value).startswith(f"disk full writing {tmp_path}: 4 more checkpoints need 0.4 MB, ")
    assert "keep_checkpoints" in str(caught.value)
    assert sizes == [100_000] * 3

    def cannot(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", cannot)
    files.ensure_room(tmp_path, 1000, 2)
    with pytest.raises(EnvError, match="disk full"):
        files.ensure_room(tmp_path, 1 << 50, 1 << 10)
    assert os.listdir(tmp_path) == []


def test_an_option_newer_than_the_run_is_no_difference_at_its_default() -> None:
    old = {"_target_": f"{GradientPenalty.__module__}.{GradientPenalty.__name__}", "weight": 10.0}
    for same in ({**old, "sides": "two"}, {"_target_": old["_target_"]}):
        assert list(differences({"gp": old}, {"gp": same})) == []
        assert list(differences({"gp": same}, {"gp": old})) == []
    (difference,) = differences({"gp": old}, {"gp": {**old, "sides": "one"}})
    assert difference == ("gp.sides", "two", "one")
    (difference,) = differences({"gp": old}, {"gp": {**old, "no_such_option": 1}})
    assert difference.key == "gp.no_such_option"
    assert len(list(differences({"a": 1}, {"a": 1, "b": None}))) == 1, "a plain mapping has no defaults"
    assert list(differences(CONFIG, {**CONFIG, "accumulate": 1})) == [], "nor at the top"
