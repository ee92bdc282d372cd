"""SVHN: a small set in its on-disk format, MATLAB 5 files with compressed X and y."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from ganlab.data.packing.download import remotes
from ganlab.data.svhn import CLASSES, Svhn, arrays
from ganlab.errors import DataError

RANDOM = np.random.default_rng(0)
IMAGES = {
    part: RANDOM.integers(0, 256, (n, 3, 32, 32), np.uint8) for part, n in (("train", 30), ("extra", 20))
}
DIGITS = {part: np.arange(len(images)) % 10 for part, images in IMAGES.items()}


def mat(**content: Any) -> bytes:
    file = io.BytesIO()
    savemat(file, content, do_compression=True)
    return file.getvalue()


def file_of(part: str) -> bytes:
    """X (32, 32, 3, n): rows, columns, colors, images; the digit 0 is 10."""
    digits = np.where(DIGITS[part] == 0, 10, DIGITS[part])
    return mat(X=IMAGES[part].transpose(2, 3, 1, 0), y=digits[:, None].astype(np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for part in IMAGES:
        (tmp_path / f"{part}_32x32.mat").write_bytes(file_of(part))
    return tmp_path


def test_the_files_give_images_and_digits(folder: Path) -> None:
    for split, parts in (("train", ["train"]), ("train+extra", ["train", "extra"])):
        data = Svhn(str(folder), verify=False).load(split=split)
        assert np.array_equal(data.images, np.concatenate([IMAGES[p] for p in parts]))
        assert data.labels is not None
        assert np.array_equal(data.labels, np.concatenate([DIGITS[p] for p in parts]))
        assert data.classes == CLASSES
    small = Svhn(str(folder), verify=False, resolution=16).load()
    assert small.images.shape == (30, 3, 16, 16)


def test_other_files_are_refused(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"train_32x32\.mat: checksum .*, expected e26dedcc434d2e4c54c9b2d4a06d8373"
    ):
        Svhn(str(folder)).load()
    with pytest.raises(DataError, match=r"contains no test_32x32\.mat; give the original"):
        Svhn(str(folder), verify=False).load(split="test")


X, Y = np.zeros((32, 32, 3, 4), np.uint8), np.ones((4, 1), np.uint8)
BROKEN = {
    "cut": (file_of("train")[:-100], ""),
    "not MATLAB": (b"PK" * 200, ""),
    "empty": (b"", ""),
    "no X": (mat(y=Y), "no X, only y"),
    "floats": (mat(X=X.astype(float), y=Y), "X is double, not uint8"),
    "other images": (mat(X=X[:28], y=Y), r"X is (28, 32, 3, 4), not (32, 32, 3, n)"),
    "labels of others": (mat(X=X, y=Y[:3]), "y is (3, 1) for 4 images"),
    "labels from 0": (mat(X=X, y=Y * 0), "labels from 0 to 0, expected 1 to 10"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_file_is_named_on_one_line(kind: str, tmp_path: Path) -> None:
    raw, message = BROKEN[kind]
    (tmp_path / "train_32x32.mat").write_bytes(raw)
    with pytest.raises(DataError) as error:
        Svhn(str(tmp_path), verify=False).load()
    (mistake,) = error.value.mistakes
    assert "train_32x32.mat: not a file of SVHN's digits (" in str(mistake)
    assert message in str(mistake)
    assert "\n" not in str(mistake)


def test_sizes_are_read_before_the_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scipy.io.loadmat", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match="not uint8"):
        arrays(mat(X=X.astype(float), y=Y))


def test_downloads_are_those_of_the_split() -> None:
    assert [r.file for r in Svhn(split="train+extra")._remotes("train+extra")] == [
        "train_32x32.mat",
        "extra_32x32.mat",
    ]
    assert all(r.part for r in remotes("svhn"))
