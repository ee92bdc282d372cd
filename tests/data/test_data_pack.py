"""A pack is whole or absent: kills, damage, full disks, several processes at once."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganlab.data.fingerprint import fingerprint
from ganlab.data.formats.files import progress
from ganlab.data.packing import pack as packs
from ganlab.data.packing.pack import open_pack, pack, verify_pack
from ganlab.data.packing.writer import Recipe, Writer
from ganlab.errors import DataError, EnvError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(20) % 2


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def recipe(**changes: Any) -> Recipe:
    facts = {"name": "toy", "split": "train", "shape": (3, 4, 4), "source": {"path": "x"}, "transform": {}}
    return Recipe(**facts | changes)  # type: ignore[arg-type]


def fill(writer: Writer) -> None:
    writer.classes = ["a", "b"]
    for start in range(0, 20, 7):
        writer.add(IMAGES[start : start + 7])
    writer.add_labels(LABELS)


def never(writer: Writer) -> None:
    raise AssertionError("a good pack is not made twice")


def leftovers(cache: Path) -> list[str]:
    return sorted(p.name for p in (cache / "datasets").iterdir() if p.name != ".locks")


def test_what_goes_in_comes_out(cache: Path) -> None:
    made = pack(recipe(), fill)
    assert np.array_equal(made.images, IMAGES)
    assert made.labels is not None
    assert np.array_equal(made.labels, LABELS)
    assert made.fingerprint == fingerprint(IMAGES, LABELS)
    assert (made.name, made.split, made.classes) == ("toy", "train", ["a", "b"])
    folder = recipe().folder
    assert folder.parent == cache / "datasets"
    assert folder.name.startswith("toy-train-4-")
    assert leftovers(cache) == [folder.name]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["shape"] == [20, 3, 4, 4]
    assert manifest["bytes"] == IMAGES.nbytes == (folder / "images.u8").stat().st_size
    assert manifest["class_counts"] == [10, 10]
    assert manifest["source"] == {"path": "x"}
    again = pack(recipe(), never)
    assert again.fingerprint == made.fingerprint
    verify_pack(folder)


def test_the_key_follows_source_and_transform() -> None:
    changes: list[dict[str, Any]] = [{}, {"source": {"path": "y"}}, {"transform": {"fit": "crop"}}]
    assert len({recipe(**change).key for change in changes}) == 3
    odd = recipe(name="a/b ../\n", split="train+unlabeled").folder
    assert odd.parent == recipe().folder.parent
    assert odd.name.startswith("a-b-..--train+unlabeled-4-") or "/" not in odd.name


def test_a_failure_leaves_nothing(cache: Path) -> None:
    def fails(writer: Writer) -> None:
        writer.add(IMAGES)
        raise DataError("x", "broken")

    with pytest.raises(DataError):
        pack(recipe(), fails)
    with pytest.raises(ValueError, match="expected uint8"):
        pack(recipe(), lambda writer: writer.add(IMAGES[:, :1]))
    assert leftovers(cache) == []
    pack(recipe(), fill)


def shorten(folder: Path) -> None:
    os.truncate(folder / "images.u8", 100)


def rewrite(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def edit(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "manifest.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))

    return change


DAMAGE: dict[str, Callable[[Path], None]] = {
    "images cut": shorten,
    "images gone": lambda folder: (folder / "images.u8").unlink(),
    "labels changed": rewrite("labels.i64", bytes(160)),
    "manifest not JSON": rewrite("manifest.json", b"{"),
    "manifest a list": rewrite("manifest.json", b"[]"),
    "manifest of the future": edit("format", 99),
    "shape of another": edit("shape", [21, 3, 4, 4]),
    "shape negative": edit("shape", [-20, -3, 4, 4]),
    "shape a word": edit("shape", "many"),
    "classes missing": edit("classes", None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_pack_is_made_again_with_one_warning(
    kind: str, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pack(recipe(), fill)
    folder = recipe().folder
    DAMAGE[kind](folder)
    with pytest.raises(DataError, match="remove its folder to pack the dataset again"):
        open_pack(folder)
    made = pack(recipe(), fill)
    assert np.array_equal(made.images, IMAGES)
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder}: the packed dataset is damaged; packing it again"
    ]
    assert leftovers(cache) == [folder.name]


def test_flipped_pixels_are_found_by_verify() -> None:
    pack(recipe(), fill)
    folder = recipe().folder
    raw = bytearray((folder / "images.u8").read_bytes())
    raw[500] ^= 1
    (folder / "images.u8").write_bytes(raw)
    open_pack(folder)  # sizes are right
    with pytest.raises(DataError, match="its sha256 does not match the manifest"):
        verify_pack(folder)


CHILD = """
import os, sys, time
import numpy as np
from ganlab.data.packing.pack import pack
from ganlab.data.packing.writer import Recipe
mode, log = sys.argv[1:]
assert "torch" not in sys.modules

def fill(writer):
    with open(log, "a") as file:
        file.write("filled\\n")
    for i in range(20):
        writer.add(np.full((1, 3, 4, 4), i, np.uint8))
        time.sleep(0.02 if mode == "slow" else 0)
    if mode == "hang":
        writer._file.flush()
        print("ready", flush=True)
        time.sleep(60)
    if mode == "killed in finish":
        os.fsync = lambda fd: os.kill(os.getpid(), 9)

made = pack(Recipe("toy", "train", (3, 4, 4), {"path": "x"}, {}), fill)
print(made.fingerprint)
"""


def child(mode: str, log: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, mode, str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_several_processes_one_works(tmp_path: Path, cache: Path) -> None:
    children = [child("slow", tmp_path / "log") for _ in range(3)]
    outputs = [c.communicate(timeout=60) for c in children]
    assert [c.returncode for c in children] == [0] * 3, outputs
    assert len({out for out, _ in outputs}) == 1
    assert (tmp_path / "log").read_text() == "filled\n"
    assert len(leftovers(cache)) == 1


def test_a_kill_leaves_no_pack_and_the_next_run_cleans_up(tmp_path: Path, cache: Path) -> None:
    hung = child("hang", tmp_path / "log")
    assert hung.stdout is not None
    assert hung.stdout.readline() == "ready\n"
    hung.send_signal(signal.SIGKILL)
    hung.communicate()
    killed = child("killed in finish", tmp_path / "log")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    assert not recipe().folder.exists()
    (rest,) = leftovers(cache)  # the second swept away what the first left
    assert rest.startswith(".tmp-toy-train-4-")
    started = time.monotonic()
    pack(recipe(), fill)  # the lock died with its holder
    assert time.monotonic() - started < 5
    assert leftovers(cache) == [recipe().folder.name]


def test_a_full_disk(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(writer: Writer) -> None:
        writer.add(IMAGES)
        raise OSError(28, "No space left on device")

    with pytest.raises(EnvError, match=r"the disk is full \(.* free\); free some space or set GANLAB_CACHE"):
        pack(recipe(), full)
    assert leftovers(cache) == []
    monkeypatch.setattr("ganlab.data.formats.files.free_bytes", lambda folder: 10)
    with pytest.raises(EnvError, match="needed"):
        pack(recipe(), lambda writer: writer.expect(20))


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(EnvError, match=r"cannot be written \(Not a directory\); set GANLAB_CACHE"):
        pack(recipe(), fill)


def test_a_prepared_cache_may_be_read_only(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(recipe(), fill)
    monkeypatch.setattr(packs, "locked", never)  # nothing is locked, so nothing is written
    monkeypatch.setattr(packs, "writing", never)
    pack(recipe(), never)


def test_permissions_follow_the_umask() -> None:
    before = os.umask(0o027)
    try:
        pack(recipe(), fill)
    finally:
        os.umask(before)
    folder = recipe().folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {0o640}


def test_progress_in_a_pipe_is_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("ganlab.data.formats.files.time.monotonic", lambda: now[0])
    with progress("packing toy", 5000, done=1000) as advance:
        for _ in range(5):
            now[0] += 25
            advance(500)
    assert capsys.readouterr().err == "packing toy: 2,500 of 5,000 images, 20/s\n"
