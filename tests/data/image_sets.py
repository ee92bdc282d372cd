"""Folders, archives and databases of files for tests of datasets, a cache of their own, and their workers."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import pytest
from PIL import Image

from ganlab.data.packing import worker
from ganlab.data.packing.worker import Worker, WorkerPool

Files = dict[str, bytes]
IDLE: list[Worker] = []


class KeptPool(WorkerPool):
    """Its workers serve all tests: to start them takes most of the time."""

    def __init__(self) -> None:
        super().__init__()
        self._idle = IDLE

    def __exit__(self, *_: object) -> None:
        self.stop()


@pytest.fixture(autouse=True, name="cache")
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def kept_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For modules that import this: decoders outlive a test; readers of LMDB, with open files, do not."""
    monkeypatch.setattr(worker, "WorkerPool", KeptPool)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_folder(path: Path, files: Files) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def as_zip(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def as_tar(path: Path, files: Files) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files, path.suffix[1:]))
    return path


def tar_bytes(files: Files | Iterable[tuple[str, bytes] | tarfile.TarInfo], suffix: str = "") -> bytes:
    """A tar of files and other entries in order, compressed where ``suffix`` is gz, xz, bz2 or tgz."""
    out = io.BytesIO()
    packing = {"gz": "gz", "tgz": "gz", "xz": "xz", "bz2": "bz2"}.get(suffix, "")
    with tarfile.open(fileobj=out, mode=f"w:{packing}") as archive:  # type: ignore[call-overload]
        for file in files.items() if isinstance(files, dict) else files:
            info = file if isinstance(file, tarfile.TarInfo) else tarfile.TarInfo(file[0])
            data = b"" if isinstance(file, tarfile.TarInfo) else file[1]
            info.size = len(data) or info.size
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def tar_of_tars(train: Files) -> bytes:
    """ImageNet's: a tar per class, classes and images in an order of their own."""
    wnids = sorted({name.split("/")[0] for name in train}, reverse=True)
    inner = {w: {n.split("/")[1]: d for n, d in reversed(train.items()) if n.startswith(w)} for w in wnids}
    return tar_bytes({f"{wnid}.tar": tar_bytes(files) for wnid, files in inner.items()})


def as_lmdb(path: Path, files: Files) -> Path:
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=1 << 28) as env, env.begin(write=True) as transaction:
        for name, data in files.items():
            transaction.put(name.encode(), data)
    return path
