"""Damaged and odd containers: LMDB, npz, HDF5, zip, tar."""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np

from ganlab.data.lsun import Lsun

from .base import Figure
from .data_common import cache, cases, photo, photos, refused, tar_bytes, tree, zip_bytes

Check = Callable[[Path], None]


def database(folder: Path, n: int = 30, size: int = 24) -> Path:
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 28) as env, env.begin(write=True) as transaction:
        for i in range(n):
            transaction.put(f"{i:040x}".encode(), photo(i, side=size))
    return folder


def lsun(place: Path, path: Path, where: str, fix: str = "download it again") -> None:
    refused(place, 3, where, fix, "data", "prepare", "lsun", f"path={path}", "resolution=8")


def cut_lmdb(share: float) -> Check:
    def check(place: Path) -> None:
        file = database(place / "bedroom_train_lmdb") / "data.mdb"
        os.truncate(file, int(share * file.stat().st_size))
        lsun(place, file.parent, "data.mdb: is (truncated|empty|not an LMDB database)")

    return check


def lying_head(place: Path) -> None:
    """Cut, with a head that promises no more than there is: LMDB itself would end with SIGBUS."""
    file = database(place / "bedroom_train_lmdb") / "data.mdb"
    data = bytearray(file.read_bytes())[: 8 * 4096]
    for page in (0, 1):
        struct.pack_into("<Q", data, page * 4096 + 136, 7)
    file.write_bytes(data)
    lsun(place, file.parent, "bedroom_train_lmdb: (damaged|ends after)")


def no_lmdb(content: bytes) -> Check:
    def check(place: Path) -> None:
        tree(place / "bedroom_train_lmdb", {"data.mdb": content})
        lsun(place, place / "bedroom_train_lmdb", "data.mdb: is (not an LMDB database|empty)")

    return check


def empty_folder(place: Path) -> None:
    (place / "bedroom_train_lmdb").mkdir()
    lsun(place, place, "contains no data.mdb", "unpack the whole archive")


def reads(change: Callable[[Path], object], n: int = 30, size: int = 24) -> Check:
    """It is read as before, and nothing is written beside it."""

    def check(place: Path) -> None:
        path = database(place / "bedroom_train_lmdb", n, size)
        with cache(place):
            fine = Lsun(str(path), resolution=8).load()
        assert len(fine) == n
        shutil.rmtree(place / "cache")
        (path / "lock.mdb").unlink()
        kept = change(path)
        before = sorted(p.name for p in path.iterdir())
        with cache(place):
            assert Lsun(str(path), resolution=8).load().fingerprint == fine.fingerprint
        assert sorted(p.name for p in path.iterdir()) == before
        path.chmod(0o755)
        del kept

    return check


def many_readers(path: Path) -> object:
    """130 readers at once fill the table of readers of an LMDB that is locked."""
    envs = [lmdb.open(str(path), readonly=True, lock=False) for _ in range(1)]
    return [envs, [envs[0].begin() for _ in range(130)]]


def locked_readers(path: Path) -> object:
    """126 readers hold all places of the lock file that another program made."""
    env = lmdb.open(str(path), map_size=1 << 28, max_readers=126)
    return [env, [env.begin() for _ in range(126)]]


def forked_after(path: Path) -> object:
    """The database is open in this process while others are started."""
    return lmdb.open(str(path), readonly=True, lock=False)


def npz(share: float) -> Check:
    def check(place: Path) -> None:
        out = io.BytesIO()
        np.savez(out, images=np.zeros((4, 8, 8, 3), np.uint8))
        whole = out.getvalue()
        tree(place / "set", {"set.npz": whole[: int(share * len(whole))]})
        words = ("data", "prepare", "folder", f"path={place / 'set' / 'set.npz'}")
        refused(place, 3, "set.npz", "", *words)

    return check


def container(name: str, content: Callable[[], bytes], where: str) -> Check:
    def check(place: Path) -> None:
        tree(place / "set", {name: content()})
        refused(place, 3, where, "", "data", "prepare", "folder", f"path={place / 'set' / name}")

    return check


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


CONTAINERS: dict[str, Check] = {
    **{f"LMDB cut to {share:.0%}": cut_lmdb(share) for share in (0, 0.01, 0.3, 0.9)},
    "LMDB cut under a lying head": lying_head,
    "LMDB of text": no_lmdb(b"not a database\n" * 1000),
    "LMDB of zeros": no_lmdb(bytes(1 << 16)),
    "LMDB without its data": empty_folder,
    "LMDB in a read-only folder": reads(lambda path: path.chmod(0o555)),
    "LMDB larger than the default map": reads(lambda path: None, n=12, size=1500),
    "LMDB of 130 readers": reads(many_readers),
    "LMDB whose table of readers is full": reads(locked_readers),
    "LMDB open before others start": reads(forked_after),
    "npz, whole": npz(1.0),
    "npz, cut": npz(0.5),
    "HDF5": container("set.h5", lambda: b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
    "zip, cut": container("set.zip", lambda: half(zip_bytes(photos())), "damaged archive"),
    "tar, cut": container("set.tar", lambda: half(tar_bytes(photos())), "damaged archive"),
    "tar.gz, cut": container("set.tar.gz", lambda: half(tar_bytes(photos(), mode="w:gz")), "damaged archive"),
    "tar.xz, cut": container("set.tar.xz", lambda: half(tar_bytes(photos(), mode="w:xz")), "damaged archive"),
}


FIGURES = [
    Figure(
        "containers", "Damaged and odd LMDB, npz, HDF5, zip, tar -> one line, or read anyway", (46,), 20,
        cases(CONTAINERS),
    ),
]  # fmt: skip
