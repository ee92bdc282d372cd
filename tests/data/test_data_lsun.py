"""LSUN from its LMDB databases and from folders: in order, with limits, and one line for what is damaged."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from image_sets import Files, as_lmdb, encoded, kept_workers, own_cache  # noqa: F401
from PIL import Image

from ganlab.data.formats.images import Rule, decode
from ganlab.data.formats.lmdb_reader import count_entries, read_entries
from ganlab.data.lsun import Lsun
from ganlab.data.packing import pack
from ganlab.errors import DataError

RNG = np.random.default_rng(0)


def picture(value: int, kind: str = "WEBP", size: tuple[int, int] = (90, 64)) -> bytes:
    return encoded(Image.new("RGB", size, (value % 256, value % 7, value % 11)), kind)


def key(number: int) -> str:
    """As the authors': 40 hexadecimal digits."""
    return f"{number * 7919 % 100003:040x}"


def bedroom(n: int = 40, start: int = 0) -> Files:
    return {key(i): picture(i, "WEBP" if i % 3 else "JPEG") for i in range(start, start + n)}


def pixels(images: Files, resolution: int = 64) -> Any:
    return np.stack([decode(images[name], Rule(resolution)) for name in sorted(images)])


def test_a_database_in_the_order_of_its_keys(tmp_path: Path) -> None:
    images = bedroom()
    path = as_lmdb(tmp_path / "bedroom_train_lmdb", images)
    data = Lsun(str(tmp_path)).load()
    assert np.array_equal(data.images, pixels(images))
    assert (data.labels, data.classes, data.name) == (None, [], "lsun-bedroom")
    source = data.manifest["source"]["categories"]["bedroom"]
    assert (source["kind"], source["entries"]) == ("lmdb", 40)
    os.remove(path / "lock.mdb")  # a copy of somebody else's need not have it
    path.chmod(0o555)
    assert Lsun(str(path)).load().fingerprint == data.fingerprint
    assert Lsun(str(path / "data.mdb")).load().fingerprint == data.fingerprint
    path.chmod(0o755)
    assert sorted(os.listdir(path)) == ["data.mdb"], "nothing is written beside the data"
    big = Lsun(str(path), resolution=128).load()
    assert big.images.shape == (40, 3, 128, 128)
    assert big.manifest["counts"] == {"enlarged": 40}


def test_several_categories_are_classes(tmp_path: Path) -> None:
    rooms, churches = bedroom(10), bedroom(7, start=100)
    as_lmdb(tmp_path / "bedroom_val_lmdb", rooms)
    as_lmdb(tmp_path / "church_outdoor_val_lmdb", churches)
    as_lmdb(tmp_path / "cat", bedroom(5, start=200))  # objects: no split in the name
    data = Lsun(str(tmp_path), "bedroom+church_outdoor+cat", "val").load()
    assert data.classes == ["bedroom", "church_outdoor", "cat"]
    assert data.labels is not None
    assert data.labels.tolist() == [0] * 10 + [1] * 7 + [2] * 5
    assert np.array_equal(data.images[10:17], pixels(churches))
    few = Lsun(str(tmp_path), "bedroom+church_outdoor", "val", limit=8).load()
    assert few.labels is not None
    assert few.labels.tolist() == [0] * 8 + [1] * 7
    assert np.array_equal(few.images[:8], data.images[:8])
    for category in ("bedroom+", "bedroom+bedroom", ""):
        with pytest.raises(ValueError, match="category"):
            Lsun(category=category)


def test_folders_of_images(tmp_path: Path) -> None:
    for i in range(9):
        for name in (f"a/bedroom_train/{i % 3}/{i}.webp", f"b/train/bedroom/{i}.webp", f"c/bedroom/{i}.webp"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(picture(i))
    for root in "abc":
        data = Lsun(str(tmp_path / root)).load()
        assert len(data) == 9
        assert sorted(data.images[:, 0, 0, 0].tolist()) == sorted(
            decode(picture(i), Rule(64))[0, 0, 0].item() for i in range(9)
        )
    assert len(Lsun(str(tmp_path / "c"), limit=4).load()) == 4


def test_info_tells_of_a_split_without_a_source(tmp_path: Path) -> None:
    as_lmdb(tmp_path / "bedroom_train_lmdb", bedroom(3))
    summary = pack.info(Lsun(str(tmp_path)))
    assert summary["packs"]["train"] is None
    assert "bedroom_val_lmdb.zip" in summary["packs"]["val"]["absent"]
    with pytest.raises(DataError, match="no bedroom val"):
        pack.info(Lsun(str(tmp_path), split="val"))


def test_missing_and_misnamed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        Lsun().load()
    line = str(caught.value)
    assert line.startswith("dataset.path: no bedroom train in ")
    assert "get http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip and unzip it there" in line
    with pytest.raises(DataError, match="does not exist; check the path"):
        Lsun(str(tmp_path / "nowhere")).load()
    path = as_lmdb(tmp_path / "tower_train_lmdb", bedroom(3))
    with pytest.raises(
        DataError, match=r"^dataset\.category: 'bedroom', but .* is 'tower'; set dataset\.category=tower"
    ):
        Lsun(str(path)).load()
    with pytest.raises(DataError, match=r"^dataset\.split: 'val', but .* is 'train'"):
        Lsun(str(path), "tower", "val").load()
    with pytest.raises(DataError, match="is one database, for 2 categories"):
        Lsun(str(path), "tower+bedroom").load()
    os.remove(path / "data.mdb")
    with pytest.raises(DataError, match=r"tower_train_lmdb: contains no data\.mdb; unpack the whole archive"):
        Lsun(str(tmp_path), "tower").load()
    (tmp_path / "bedroom_train_lmdb.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"bedroom_train_lmdb\.zip: is not unpacked; unzip it in"):
        Lsun(str(tmp_path)).load()


def test_files_that_are_no_as_lmdb(tmp_path: Path) -> None:
    path = tmp_path / "bedroom_train_lmdb"
    path.mkdir()
    for data, says in (
        (b"", "is empty"),
        (b"x" * 100, "is not an LMDB database"),
        (RNG.bytes(20000), "is not an LMDB database"),
    ):
        (path / "data.mdb").write_bytes(data)
        with pytest.raises(DataError, match=rf"data\.mdb: {says}; download it again"):
            Lsun(str(tmp_path)).load()
    as_lmdb(tmp_path / "kitchen_train_lmdb", {})
    with pytest.raises(DataError, match=r"has no entries"):
        Lsun(str(tmp_path), "kitchen").load()


def test_a_cut_database_is_told_by_its_head(tmp_path: Path) -> None:
    file = as_lmdb(tmp_path / "bedroom_train_lmdb", bedroom()) / "data.mdb"
    whole = file.read_bytes()
    assert count_entries(file.parent) == 40
    with lmdb.open(str(file.parent), readonly=True, lock=False) as env:
        expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    assert expected <= len(whole)
    for size in (expected - 1, expected // 2, 8192):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match=rf"is truncated: {size:,} bytes, expected {expected:,}"):
            Lsun(str(tmp_path)).load()


def test_a_cut_database_whose_head_lies_ends_in_one_line(tmp_path: Path) -> None:
    """Reading beyond the end of a map is a SIGBUS: it ends a child, not the program."""
    file = as_lmdb(tmp_path / "bedroom_train_lmdb", bedroom(400)) / "data.mdb"
    raw = bytearray(file.read_bytes())
    size = len(raw) // 2 // 4096 * 4096
    for meta in (0, 4096):
        struct.pack_into("<Q", raw, meta + 136, size // 4096 - 1)
    file.write_bytes(raw[:size])
    with pytest.raises(DataError, match=r"bedroom_train_lmdb: damaged LMDB database \(.+\); download it"):
        list(read_entries(file.parent))
    with pytest.raises(DataError, match=r"bedroom_train_lmdb: damaged LMDB database \(.+\); download it"):
        Lsun(str(tmp_path)).load()


def test_fewer_entries_than_promised(tmp_path: Path) -> None:
    file = as_lmdb(tmp_path / "bedroom_train_lmdb", bedroom(10)) / "data.mdb"
    raw = bytearray(file.read_bytes())
    for meta in (0, 4096):
        struct.pack_into("<Q", raw, meta + 120, 13)
    file.write_bytes(raw)
    with pytest.raises(DataError, match="ends after 10 of 13 images"):
        Lsun(str(tmp_path)).load()


@pytest.mark.parametrize("engine", [0, 1])
def test_databases_of_both_lmdbs(tmp_path: Path, engine: int) -> None:
    """LMDB 0.9 writes data version 1, LMDB 1.0 version 3; 2 was never released."""
    images = bedroom(5)
    folder = tmp_path / "bedroom_train_lmdb"
    try:
        env = lmdb.open(str(folder), map_size=1 << 28, lib_version=engine)
    except (TypeError, lmdb.Error):
        pytest.skip("this lmdb has one engine")
    with env, env.begin(write=True) as transaction:
        for name, data in images.items():
            transaction.put(name.encode(), data)
    assert count_entries(folder) == 5
    assert {key.decode(): value for key, value in read_entries(folder)} == images
    file = folder / "data.mdb"
    whole = bytearray(file.read_bytes())
    for page in (0, 4096):
        whole[page + (24 if engine else 16) + 4] = 2
    file.write_bytes(whole)
    with pytest.raises(DataError, match=r"data\.mdb: cannot be opened \(.*\); copy it: mdb_dump"):
        Lsun(str(tmp_path)).load()
