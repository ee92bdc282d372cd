"""STL-10 in its true format, on small sets: column by column, labels from 1, the documented resize."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganlab.data.packing.originals import md5
from ganlab.data.stl10 import CLASSES, SUMS, Stl10
from ganlab.errors import DataError, EnvError

RNG = np.random.default_rng(0)
COUNTS = {"train": 20, "test": 7, "unlabeled": 300}
IMAGES = {part: RNG.integers(0, 256, (n, 3, 96, 96), dtype=np.uint8) for part, n in COUNTS.items()}
LABELS = {part: np.arange(COUNTS[part]) % 10 for part in ("train", "test")}


def files() -> dict[str, bytes]:
    """As the authors' MATLAB wrote them: each plane column by column, labels 1 to 10."""
    x = {f"{part}_X.bin": images.transpose(0, 1, 3, 2).tobytes() for part, images in IMAGES.items()}
    y = {f"{part}_y.bin": (labels + 1).astype(np.uint8).tobytes() for part, labels in LABELS.items()}
    names = {"class_names.txt": "\n".join(CLASSES).encode() + b"\n", "fold_indices.txt": b"1 2 3\n"}
    return {f"stl10_binary/{name}": data for name, data in {**x, **y, **names}.items()}


def tar_gz(path: Path, contents: dict[str, bytes], backwards: bool = False) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, data in sorted(contents.items(), reverse=backwards):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpacked(path: Path, contents: dict[str, bytes]) -> Path:
    for name, data in contents.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    return tmp_path / "cache"


def own(path: Path, **options: Any) -> Stl10:
    return Stl10(str(path), verify=False, **options)


def test_defaults_are_the_unlabelled_images_at_48(tmp_path: Path) -> None:
    data = own(tar_gz(tmp_path / "stl10_binary.tar.gz", files())).load()
    assert data.images.shape == (300, 3, 48, 48)
    assert (data.labels, data.classes, data.split) == (None, [], "unlabeled")
    for i in (0, 299):
        picture = Image.fromarray(IMAGES["unlabeled"][i].transpose(1, 2, 0))
        expected = np.asarray(picture.resize((48, 48), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
        assert np.array_equal(data.images[i], expected)
    assert data.manifest["transform"] == {"resolution": 48, "verify": False, "resample": "bilinear"}


@pytest.mark.parametrize("backwards", [False, True])
def test_labelled_splits(tmp_path: Path, backwards: bool) -> None:
    path = tar_gz(tmp_path / "stl10_binary.tar.gz", files(), backwards)
    for split in ("train", "test"):
        data = own(path, resolution=96).load(split=split)
        assert np.array_equal(data.images, IMAGES[split])
        assert data.labels is not None
        assert np.array_equal(data.labels, LABELS[split])
        assert data.classes == CLASSES
    both = own(path, split="train+unlabeled", resolution=96).load()
    assert np.array_equal(both.images, np.concatenate([IMAGES["train"], IMAGES["unlabeled"]]))
    assert both.labels is None


def test_folders(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "in", files())
    first = own(root, split="test").load()
    assert own(root / "stl10_binary", split="test").load().fingerprint == first.fingerprint
    contents = files()
    del contents["stl10_binary/class_names.txt"]
    assert own(unpacked(tmp_path / "bare", contents), split="test").load().classes == CLASSES


def test_other_filters(tmp_path: Path) -> None:
    root = unpacked(tmp_path / "in", files())
    prints = {own(root, split="test", resample=r).load().fingerprint for r in ("box", "bilinear", "lanczos")}
    assert len(prints) == 3


def test_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = unpacked(tmp_path / "in", files())
    with pytest.raises(DataError, match=r"unlabeled_X\.bin: checksum .*, expected 5242ba1f"):
        Stl10(str(root)).load()
    assert not [p for p in (tmp_path / "cache" / "datasets").iterdir() if p.name != ".locks"]
    for name, data in files().items():
        if (base := Path(name).name) in SUMS:
            monkeypatch.setitem(SUMS, base, md5(data))
    assert len(Stl10(str(root)).load()) == 300
    assert len(Stl10(str(root)).load(split="train")) == 20


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("train_X.bin", b"", "0 bytes are not whole images of 27648"),
        ("train_X.bin", bytes(27648 * 2 + 1), "55297 bytes are not whole images of 27648"),
        ("train_y.bin", bytes(range(1, 8)), "7 labels for 20 images"),
        ("train_y.bin", bytes([11] * 20), "labels from 11 to 11, expected 1 to 10"),
        ("train_y.bin", bytes(20), "labels from 0 to 0, expected 1 to 10"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    root = unpacked(tmp_path / "in", files() | {f"stl10_binary/{name}": data})
    with pytest.raises(DataError, match=rf"{name}: {says}"):
        own(root, split="train").load()


def test_missing_and_cut(tmp_path: Path) -> None:
    contents = files()
    del contents["stl10_binary/train_y.bin"]
    path = tar_gz(tmp_path / "a.tar.gz", contents)
    with pytest.raises(DataError, match=r"a\.tar\.gz: contains no train_y\.bin; give the original"):
        own(path, split="train").load()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=r"a\.tar\.gz: damaged archive"):
        own(path).load()
    with pytest.raises(EnvError, match=r"^stl10_binary\.tar\.gz: not found.*2,640,397,119 bytes"):
        Stl10().load()
