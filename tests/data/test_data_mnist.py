"""MNIST in its true format, on small sets and on the real test files: IDX, gzipped or not, with limits."""

from __future__ import annotations

import gzip
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SHARED
from PIL import Image

from ganlab.cli import doctor, main
from ganlab.data.mnist import SUMS, Mnist
from ganlab.data.packing import download, pack
from ganlab.errors import DataError, EnvError

RNG = np.random.default_rng(0)
COUNTS = {"train": 40, "t10k": 23}
IMAGES = {part: RNG.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in COUNTS.items()}
LABELS = {part: RNG.integers(0, 10, n, dtype=np.uint8) for part, n in COUNTS.items()}
REAL = SHARED / "mnist-t10k"


def idx(magic: int, array: Any) -> bytes:
    """As the authors wrote them: the magic number and the sizes, big-endian, then bytes row by row."""
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()


def files(zipped: bool = True) -> dict[str, bytes]:
    plain = {f"{part}-images-idx3-ubyte": idx(0x803, IMAGES[part]) for part in COUNTS}
    plain |= {f"{part}-labels-idx1-ubyte": idx(0x801, LABELS[part]) for part in COUNTS}
    return {f"{n}.gz": gzip.compress(data) for n, data in plain.items()} if zipped else plain


def put(folder: Path, contents: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    return tmp_path / "cache"


def own(path: Path, **options: Any) -> Mnist:
    return Mnist(str(path), verify=False, **options)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", ["", "MNIST/raw", "archive", "a/b"])
def test_both_splits(zipped: bool, inside: str, tmp_path: Path) -> None:
    put(tmp_path / "in" / inside, files(zipped))
    for split, part in (("train", "train"), ("test", "t10k")):
        data = own(tmp_path / "in", resolution=28).load(split=split)
        assert np.array_equal(data.images, IMAGES[part][:, None])
        assert data.labels is not None
        assert np.array_equal(data.labels, LABELS[part])
        assert data.classes == list("0123456789")
        assert (data.name, data.split, data.shape) == ("mnist", split, (1, 28, 28))


@pytest.mark.parametrize("zipped", [True, False])
def test_kaggles_names(zipped: bool, tmp_path: Path) -> None:
    """With a dot, or each file in a folder of its name; links to them, in a tar and a zip too."""
    theirs = {name.replace("-idx", ".idx"): data for name, data in files(zipped).items()}
    places = [put(tmp_path / "dot", theirs), tmp_path / "nested", tmp_path / "links", tmp_path / "a.tar.gz"]
    for name, data in files(zipped).items():
        put(places[1] / name, {name: data})
        put(places[2], {})
        (places[2] / name).symlink_to(tmp_path / "nested" / name / name)
    with tarfile.open(places[3], "w:gz") as archive:
        archive.add(places[0], arcname=".")
    for place in places:
        data = own(place, resolution=28).load()
        assert np.array_equal(data.images[:, 0], IMAGES["train"])
    name = next(iter(theirs))
    with pytest.raises(DataError, match=rf"{name} is one of the files of mnist; give the folder .*/dot$"):
        own(places[0] / name).load()
    (places[0] / name).rename(tmp_path / "renamed")
    with pytest.raises(DataError, match=r"renamed is not a folder, zip or tar \(it is an IDX file"):
        own(tmp_path / "renamed").load()


def test_a_border_makes_32_and_pillow_the_rest(tmp_path: Path) -> None:
    path = put(tmp_path / "in", files())
    at_32 = own(path).load()
    assert np.array_equal(at_32.images[:, 0, 2:30, 2:30], IMAGES["train"])
    assert at_32.images.sum() == IMAGES["train"].sum(), "the border is black"
    at_16 = own(path, resolution=16, resample="bicubic").load()
    expected = Image.fromarray(IMAGES["train"][7]).resize((16, 16), Image.Resampling.BICUBIC)
    assert np.array_equal(at_16.images[7, 0], np.asarray(expected))
    assert own(path, resolution=64).load().manifest["counts"] == {"enlarged": 40}


def test_limit_and_rest_are_a_partition_by_the_seed(tmp_path: Path) -> None:
    path = put(tmp_path / "in", files())
    chosen = own(path, resolution=28, limit=15)
    assert chosen.splits() == ("train", "test", "rest")
    first, rest = chosen.load(), chosen.load(split="rest")
    assert (len(first), len(rest), len(chosen.load(split="test"))) == (15, 25, 23)
    together = np.concatenate([first.images, rest.images])[:, 0]
    as_rows = {image.tobytes() for image in together}
    assert as_rows == {image.tobytes() for image in IMAGES["train"]}
    by_label = {image.tobytes(): label for image, label in zip(IMAGES["train"], LABELS["train"], strict=True)}
    for part in (first, rest):
        assert part.labels is not None
        found = zip(part.images, part.labels, strict=True)
        assert all(by_label[image.tobytes()] == label for image, label in found)
    assert not np.array_equal(first.images[:, 0], IMAGES["train"][:15]), "after a shuffle"
    again = own(path, resolution=28, limit=15)
    assert again.load().fingerprint == first.fingerprint
    assert own(path, resolution=28, limit=15, limit_seed=1).load().fingerprint != first.fingerprint
    smaller = own(path, resolution=28, limit=10).load()
    assert np.array_equal(smaller.images, first.images[:10]), "the first of one order"
    tested = own(path, resolution=28, limit=10, split="test")
    assert (len(tested.load()), len(tested.load(split="rest")), len(tested.load(split="train"))) == (
        10,
        13,
        40,
    )


@pytest.mark.parametrize(
    ("options", "split", "line"),
    [
        ({"limit": 41}, None, r"dataset\.limit: 41 is more than the 40 images of train; lower it"),
        ({"limit": 40}, "rest", r"dataset\.limit: 40 leaves none of the 40 images of train; lower it"),
        ({}, "rest", r"dataset\.split: mnist has no split 'rest'.*it has train, test"),
        ({}, "tset", r"dataset\.split: mnist has no split 'tset'; did you mean 'test'"),
    ],
)
def test_splits_that_are_not_there(options: dict[str, Any], split: str, line: str, tmp_path: Path) -> None:
    path = put(tmp_path / "in", files())
    with pytest.raises(DataError, match=line):
        own(path, **options).load(split=split)


X, Y = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
PLAIN = files(zipped=False)
EMPTY = np.zeros((0, 28, 28), np.uint8)
HUGE = struct.pack(">4I", 0x803, *[2**32 - 1] * 3)
BROKEN: list[tuple[dict[str, bytes | None], str]] = [
    ({X: PLAIN[Y]}, f"{X}: begins with 0x00000801; an IDX file of images with 0x00000803"),
    ({Y: PLAIN[X]}, f"{Y}: begins with 0x00000803; an IDX file of labels with 0x00000801"),
    ({X: PLAIN[X][:-1]}, f"{X}: 31359 bytes after its header, which declares 40x28x28 = 31360"),
    ({X: PLAIN[X] + b"0"}, f"{X}: 31361 bytes after its header"),
    ({X: PLAIN[X][:9]}, f"{X}: ends within its header, after 9 of 16 bytes"),
    ({X: b""}, f"{X}: ends within its header, after 0 of 16 bytes"),
    ({X: HUGE}, f"{X}: 0 bytes after its header"),
    ({Y: idx(0x801, LABELS["train"][:39])}, f"{Y}: 39 labels for 40 images"),
    ({Y: idx(0x801, LABELS["train"] + 1)}, f"{Y}: label 10 in a set of 10 classes"),
    ({X: idx(0x803, np.zeros((40, 14, 28), np.uint8))}, f"{X}: images of 28x14 pixels, not 28x28"),
    ({X: idx(0x803, EMPTY), Y: idx(0x801, LABELS["train"][:0])}, f"{X}: contains no images"),
    ({Y: None}, f"contains no {Y}.gz; put it there, or set dataset.split=test: its files are there"),
    ({X: None, Y: None}, f"contains no {X}.gz and no {Y}.gz; put them there, or set dataset.split=test"),
]


@pytest.mark.parametrize(("changes", "line"), BROKEN, ids=[line for _, line in BROKEN])
def test_broken_files_are_a_line(changes: dict[str, bytes | None], line: str, tmp_path: Path) -> None:
    contents = {name: data for name, data in (PLAIN | changes).items() if data is not None}
    with pytest.raises(DataError) as caught:
        own(put(tmp_path / "in", contents)).load()
    (mistake,) = caught.value.mistakes
    assert line in str(mistake)


@pytest.mark.parametrize("at", [0, 5, 200, -4])
def test_a_damaged_or_cut_gzip_file_is_a_line(at: int, tmp_path: Path) -> None:
    contents = files()
    whole = contents[f"{X}.gz"]
    contents[f"{X}.gz"] = whole[:at] if at > 0 else b"no gzip" if at == 0 else whole[:at] + b"0000"
    with pytest.raises(DataError, match=rf"{X}\.gz: not a complete gzip file \("):
        own(put(tmp_path / "in", contents)).load()


def test_zeros_without_end_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ganlab.data.mnist.LIMIT", 100_000)
    contents = files() | {f"{X}.gz": gzip.compress(bytes(200_000))}
    with pytest.raises(DataError, match=rf"{X}\.gz: more than 100,000 bytes unpacked"):
        own(put(tmp_path / "in", contents)).load()


def test_another_set_of_this_format_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"checksum \w+, expected 6bbc9ace\w+; .*verify=false"):
        Mnist(str(put(tmp_path / "in", files()))).load()


def test_a_folder_without_it_says_what_was_looked_for(tmp_path: Path) -> None:
    line = r"contains no mnist; looked for train-images-idx3-ubyte.gz, .*t10k-labels-idx1-ubyte.gz, MNIST/raw"
    with pytest.raises(DataError, match=line):
        Mnist(str(put(tmp_path / "in", {"other": b""}))).load()


# ---- download


def test_a_split_downloads_its_two_files(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def fetch(remote: download.Remote) -> Path:
        asked.append(remote.file)
        put(remote.path.parent, {remote.file: files()[remote.file]})
        return remote.path

    known = [
        download.Remote("mnist", n, f"https://x/{n}", len(data), "", "", part=True)
        for n, data in files().items()
    ]
    monkeypatch.setattr(download, "REMOTES", tuple(known))
    monkeypatch.setattr("ganlab.data.mnist.fetch", fetch)
    data = Mnist(verify=False, resolution=28)
    assert len(data.load(split="test")) == 23
    assert asked == ["t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"]
    (found,) = [f for f in doctor.datasets() if f.name == "mnist"]
    assert (found.state, found.text) == ("absent", f"not downloaded: {X}.gz, {Y}.gz")
    assert len(data.load()) == 40
    assert sorted(asked) == sorted(files())
    (found,) = [f for f in doctor.datasets() if f.name == "mnist"]
    assert found.state == "ok"
    data.load()
    assert len(asked) == 4, "and only once"


def test_without_a_network_it_says_what_to_do_by_hand(cache: Path) -> None:
    with pytest.raises(
        EnvError,
        match=rf"{X}.gz: not found, and GANLAB_OFFLINE forbids .*9,912,422 bytes.*dataset.path",
    ):
        Mnist().load()
    told = pack.info(Mnist())
    assert told["packs"] == {"train": None, "test": None}


def test_the_four_files_are_pinned() -> None:
    parts = download.remotes("mnist")
    assert {p.file.removesuffix(".gz") for p in parts} == set(SUMS)
    assert sum(p.size for p in parts) == 11_594_722
    assert all(
        p.part and len(p.md5) == 32 and len(p.sha256) == 64 and p.url.startswith("https://") for p in parts
    )


# ---- the real ones


@pytest.mark.data
@pytest.mark.skipif(
    not REAL.is_dir(), reason="needs MNIST's test files at shared/data/mnist-t10k beside the checkout"
)
def test_the_real_test_files(capsys: pytest.CaptureFixture[str]) -> None:
    data = Mnist(str(REAL), split="test", resolution=28).load()
    assert data.images.shape == (10_000, 1, 28, 28)
    assert data.labels is not None
    assert np.bincount(data.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert abs(data.images.mean() / 255 - 0.1325) < 1e-3, "the known mean of the test pixels"
    some = Mnist(str(REAL), split="test", limit=1000)
    assert (len(some.load()), len(some.load(split="rest"))) == (1000, 9000)
    assert main.main(["data", "prepare", "mnist", f"path={REAL}"]) == 3
    said = capsys.readouterr().err
    assert (
        "contains no train-images-idx3-ubyte.gz and no train-labels-idx1-ubyte.gz; put them there, or set"
        in said
    )
    assert "dataset.split=test" in said
    assert main.main(["data", "info", "mnist", f"path={REAL}", "split=test", "limit=1000"]) == 0
    assert "splits: train, test, rest (training: test)" in capsys.readouterr().out
