"""kill -9 at every file operation of preparing and of downloading: the next try ends in the same bytes."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.base import Dataset
from ganlab.data.cifar10 import Cifar10
from ganlab.data.folder import Folder
from ganlab.data.imagenet import ImageNet
from ganlab.data.lsun import Lsun
from ganlab.data.packing import decoding, stream
from ganlab.data.stl10 import Stl10
from ganlab.system import download

from .base import Case, Failed, Figure
from .data_common import cache, photo, tar_bytes, tree
from .data_containers import database
from .data_servers import CONTENT, served

EVENTS = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
N = 30


def folder(place: Path) -> Dataset:
    files = {f"{'ab'[i % 2]}/{i:02d}.jpg": photo(i) for i in range(N)} | {"a/x.jpg": b"broken"}
    return Folder(str(tree(place / "set", files)), resolution=8, on_bad="skip")


def archive(place: Path) -> Dataset:
    tree(place / "set", {"set.tar.gz": tar_bytes({f"{i}.jpg": photo(i) for i in range(N)}, mode="w:gz")})
    return Folder(str(place / "set" / "set.tar.gz"), resolution=8)


def cifar(place: Path) -> Dataset:
    record = np.random.default_rng(0).integers(0, 256, (20, 3073), np.uint8)
    record[:, 0] %= 10
    files = {f"data_batch_{i}.bin": record.tobytes() for i in range(1, 6)}
    return Cifar10(str(tree(place / "cifar-10-batches-bin", files)), verify=False)


def stl(place: Path) -> Dataset:
    files = {"train_X.bin": bytes(range(256)) * 108 * 12, "train_y.bin": bytes([1, 2, 3] * 4)}
    return Stl10(str(tree(place / "set", files)), split="train", verify=False)


def imagenet(place: Path) -> Dataset:
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as tars:
        for wnid in ("n01440764", "n01443537"):
            part = tar_bytes({f"{wnid}_{i}.JPEG": photo(i) for i in range(N // 2)})
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = len(part)
            tars.addfile(info, io.BytesIO(part))
    root = tree(place / "set", {"ILSVRC2012_img_train.tar": outer.getvalue()})
    return ImageNet(str(root), resolution=8, preprocess="plain")


def lsun(place: Path) -> Dataset:
    database(place / "bedroom_train_lmdb", N)
    return Lsun(str(place), resolution=8)


SETS: dict[str, Callable[[Path], Dataset]] = {
    "folder": folder, "tar.gz": archive, "CIFAR-10": cifar, "STL-10": stl, "ImageNet tar": imagenet,
    "LSUN": lsun,
}  # fmt: skip


class Killer:
    """Counts file operations below ``root`` in this process; ends it by SIGKILL at the ``k``-th.

    Python's own events for opening, renaming and removing; writes and syncs, which have none, by wrappers.
    """

    def __init__(self, root: Path, k: int) -> None:
        self.root, self.k, self.count, self.busy = str(root), k, 0, False
        sys.addaudithook(self._hear)
        for name in ("write", "fsync"):
            inner = getattr(os, name)
            setattr(os, name, partial(self._around, inner))

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event not in EVENTS or not str(args[0]).startswith(self.root):
            return
        if event != "open" or (isinstance(args[2], int) and args[2] & WRITES):
            self.strike()

    def _around(self, inner: Callable[..., Any], fd: int, *args: Any) -> Any:
        if os.readlink(f"/proc/self/fd/{fd}").startswith(self.root):
            self.strike()
        return inner(fd, *args)

    def strike(self) -> None:
        self.count += 1
        if self.count == self.k:
            os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], object], root: Path, k: int) -> tuple[int, int]:
    """Run ``work`` in a child that is killed at operation ``k``: (its status, operations that it counted)."""
    told = root.parent / "count"
    told.unlink(missing_ok=True)
    if (pid := os.fork()) == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            killer = Killer(root, k)
            work()
            killer.k = 0
            told.write_text(str(killer.count))
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status, int(told.read_text()) if told.exists() else 0


@contextmanager
def here() -> Iterator[None]:
    """Decode in this process, few at a time: the operations are the same, and there are more of them."""
    inner, images = stream.decode_all, decoding.CHUNK_IMAGES
    stream.decode_all, decoding.CHUNK_IMAGES = partial(decoding.decode_all, workers=0), 10
    try:
        yield
    finally:
        stream.decode_all, decoding.CHUNK_IMAGES = inner, images


def everywhere(
    work: Callable[[], object], root: Path, content: Callable[[], Any], step: int
) -> dict[str, float]:
    """Kill ``work`` at each ``step``-th of its operations below ``root``, then let it finish."""
    status, total = forked(work, root, 0)
    assert (status, total > 5) == (0, True), f"ended with {status} after {total} operations"
    whole = content()
    bad: list[str] = []
    points = range(1, total + 1, step)
    for k in points:
        shutil.rmtree(root)
        if (status := forked(work, root, k)[0]) != -signal.SIGKILL:
            bad.append(f"at operation {k}: not killed ({status})")
        half = [p for p in content() if p not in whole or content()[p] != whole[p]] if root.exists() else []
        if half:
            bad.append(f"at operation {k}: {half[0]} is half there under its final name")
        if forked(work, root, 0)[0] != 0 or content() != whole:
            bad.append(f"at operation {k}: the next try does not end in the same bytes")
    if bad:
        raise Failed(len(bad), bad[0])
    return {"points": len(points)}


def prepared(kind: str, step: int) -> Callable[[Path], dict[str, float]]:
    def check(place: Path) -> dict[str, float]:
        root = place / "cache"
        dataset = SETS[kind](place)
        with cache(place), here():
            return everywhere(dataset.load, root, lambda: _packs(root), step)

    return check


def _packs(root: Path) -> dict[str, str]:
    """What lies under final names: sums by path. A pack counts once its folder has its name."""
    files = [p for p in root.glob("datasets/*/*") if p.is_file() and not p.parent.name.startswith(".")]
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def downloaded(step: int) -> Callable[[Path], dict[str, float]]:
    def check(place: Path) -> dict[str, float]:
        root = place / "cache"
        target = root / "downloads" / "toy.tar.gz"
        sum_ = hashlib.sha256(CONTENT).hexdigest()
        download.BLOCK = 1 << 16
        with served() as server:
            url = f"{server.url}/toy.tar.gz"

            def work() -> None:
                download.fetch(url, target, sum_, size=len(CONTENT), progress=lambda have, of: os.fsync(out))

            (place / "outside").touch()
            out = os.open(place / "outside", os.O_RDONLY)
            try:
                return everywhere(work, root, lambda: _fetched(target), step)
            finally:
                os.close(out)

    return check


def _fetched(target: Path) -> dict[str, str]:
    return {target.name: hashlib.sha256(target.read_bytes()).hexdigest()} if target.exists() else {}


# how many file operations there are; a few more or less with another version of Python
POINTS = {"folder": 30, "tar.gz": 26, "CIFAR-10": 24, "STL-10": 24, "ImageNet tar": 29, "LSUN": 26}
DOWNLOAD = 9


def at_least(n: int, check: Callable[[Path], dict[str, float]]) -> Callable[[Path], dict[str, float]]:
    def counted(place: Path) -> dict[str, float]:
        numbers = check(place)
        assert numbers["points"] >= n, f"{numbers['points']:.0f} operations, {n} are counted here: correct it"
        return numbers

    return counted


def cases() -> list[Case]:
    made = [
        Case(f"every operation of preparing: {kind}", at_least(POINTS[kind], prepared(kind, 1)), POINTS[kind])
        for kind in SETS
    ]
    return [*made, Case("every operation of a download", at_least(DOWNLOAD, downloaded(1)), DOWNLOAD)]


FIGURES = [
    Figure(
        "data-kills", "kill -9 at every file operation of data commands -> same bytes", (47, 48), 168,
        cases,
        lambda found: f"{sum(n.get('points', 0) for n in found):.0f} kills",
    ),
]  # fmt: skip
