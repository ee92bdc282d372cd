"""A folder, zip or tar of images in any usual layout becomes a packed set, or one line says why not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sets import Files, as_folder, as_tar, as_zip, encoded, kept_workers, own_cache  # noqa: F401
from PIL import Image

from ganlab.data.cifar10 import CLASSES as CIFAR10
from ganlab.data.fingerprint import fingerprint
from ganlab.data.folder import Folder
from ganlab.data.formats import archive
from ganlab.data.packing import pack
from ganlab.errors import DataError


def png(value: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> bytes:
    return encoded(Image.new("RGB", size, (value, value, value)).convert(mode))


def tree(*splits: str, classes: str = "cat dog", each: int = 3) -> dict[str, bytes]:
    """``split/class/i.png``, each image of its own grey."""
    folders = [f"{s}{'/' if s else ''}{c}" for s in splits or ("",) for c in classes.split()]
    return {f"{f}/{i}.png": png(10 * n + i) for n, f in enumerate(folders) for i in range(each)}


def as_xz(path: Path, files: Files) -> Path:
    as_tar(path.with_suffix(".xz"), files).rename(path)
    return path


SHAPES: list[Callable[[Path, Files], Path]] = [as_folder, as_zip, as_xz]


def folder(path: Path, **options: Any) -> Folder:
    return Folder(str(path), **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_classes_are_sub_folders(tmp_path: Path, shape: Callable[..., Path]) -> None:
    data = folder(shape(tmp_path / "set", tree())).load()
    assert data.images.shape == (6, 3, 32, 32)
    assert data.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.labels.dtype == np.int64
    assert data.classes == ["cat", "dog"]
    assert (data.name, data.split, data.warnings) == ("folder-set", "all", ())
    assert data.fingerprint == fingerprint(data.images, data.labels)
    assert isinstance(data.images, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.images[0] = 0


@pytest.mark.parametrize("shape", SHAPES)
def test_splits_are_top_folders(tmp_path: Path, shape: Callable[..., Path]) -> None:
    path = shape(tmp_path / "set", tree("test", "train"))
    data = folder(path, split="train")
    assert data.splits() == ("test", "train")
    assert data.load().images[:, 0, 0, 0].tolist() == [20, 21, 22, 30, 31, 32]
    test = data.load(split="test")
    assert test.images[:, 0, 0, 0].tolist() == [0, 1, 2, 10, 11, 12]
    assert test.classes == ["cat", "dog"]
    everything = folder(path).load()
    assert len(everything) == 12
    assert everything.classes == ["cat", "dog"]
    for name, hint in (
        ("trian", "did you mean 'train'"),
        ("Test", "did you mean 'test'"),
        ("x", "it has test, train"),
    ):
        with pytest.raises(DataError, match=rf"^dataset\.split: .* has no folder '{name}'; .*{hint}"):
            folder(path, split=name).load()


def test_labels_can_be_left_out(tmp_path: Path) -> None:
    files = tree() | {"loose.png": png(1)}
    with pytest.raises(
        DataError, match=r"^dataset\.path: 1 images are outside the class folders; .*labels=false"
    ):
        folder(as_folder(tmp_path / "set", files)).load()
    data = folder(tmp_path / "set", labels=False).load()
    assert (len(data), data.labels, data.classes) == (7, None, [])


def test_a_source_without_images(tmp_path: Path) -> None:
    for shape in SHAPES:
        path = shape(tmp_path / shape.__name__, {"a/1.txt": b"x", "b/2.npy": b"y"})
        with pytest.raises(
            DataError, match=r"^dataset\.path: .* contains no images \(ignored: 2 other file\); give a"
        ):
            folder(path).load()
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"is empty; give a"):
        folder(tmp_path / "nothing").load()
    with pytest.raises(DataError, match=r"^dataset\.path: is not set; give a folder, zip or tar"):
        Folder().load()
    with pytest.raises(DataError, match=r"does not exist"):
        folder(tmp_path / "nowhere").load()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_broken_image_is_named(tmp_path: Path, shape: Callable[..., Path], cache: Path) -> None:
    files = tree() | {"dog/9.png": png(9)[:60], "dog/text.jpg": b"I am text"}
    path = shape(tmp_path / "set", files)
    with pytest.raises(DataError) as caught:
        folder(path).load()
    line = str(caught.value)
    assert line.startswith(f"{path}/dog/9.png: broken image (")
    assert line.endswith("; repair or remove it, or set dataset.on_bad=skip to skip such images")
    assert [p for p in (cache / "datasets").iterdir() if p.name != ".locks"] == []  # nothing half-written
    data = folder(path, on_bad="skip").load()
    assert len(data) == 6
    assert data.manifest["counts"] == {"skipped": 2}
    assert data.manifest["examples"][1].startswith(f"{path}/dog/text.jpg: not an image in a format")
    assert data.warnings[0].startswith(f"2 broken images were skipped, such as {path}/dog/9.png")


def test_nothing_but_broken_images(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "set", {"a/1.png": b"", "b/2.png": b"x"})
    with pytest.raises(DataError, match="no images are left"):
        folder(path, on_bad="skip").load()


def test_an_empty_class_folder(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "set", tree("train", "test"))
    (path / "train" / "emu").mkdir()
    with pytest.raises(
        DataError, match=r"^dataset\.path: class folder 'emu' of 'train' contains no images; remove"
    ):
        folder(path, split="train").load()
    folder(path, split="test").load()
    data = folder(path, split="train", on_bad="skip").load()
    assert data.classes == ["cat", "dog"]
    assert data.manifest["counts"] == {"empty_classes": 1}


def test_options_and_sources_have_packs_of_their_own(tmp_path: Path) -> None:
    path = as_folder(tmp_path / "set", tree())
    base = folder(path).pack_folder("all")
    others: list[dict[str, Any]] = [
        {"resolution": 16}, {"channels": 1}, {"fit": "resize"}, {"resample": "lanczos"}, {"labels": False},
        {"on_bad": "skip"}, {"max_pixels": 5000},
    ]  # fmt: skip
    packs = {folder(path, **o).pack_folder("all") for o in others}
    assert len(packs | {base}) == len(others) + 1
    first = folder(path).load()
    (path / "dog" / "2.png").write_bytes(png(99))
    second = folder(path).load()
    assert first.fingerprint != second.fingerprint
    assert second.images[-1, 0, 0, 0] == 99


def test_only_the_cache_is_written(tmp_path: Path, cache: Path) -> None:
    path = as_tar(tmp_path / "set.tar.xz", tree("train", "test"))
    before = {p for p in tmp_path.rglob("*") if cache not in p.parents and p != cache}
    folder(path, split="train").load()
    assert {p for p in tmp_path.rglob("*") if cache not in p.parents and p != cache} == before
    (made,) = [p for p in (cache / "datasets").iterdir() if p.name != ".locks"]
    assert sorted(p.name for p in made.iterdir()) == ["images.u8", "labels.i64", "manifest.json"]


def test_prepare_and_info(tmp_path: Path) -> None:
    data = folder(as_zip(tmp_path / "set.zip", tree("train", "test")), split="train")
    summary = pack.info(data)
    assert summary["splits"] == ["test", "train"]
    assert summary["packs"] == {"train": None, "test": None}
    (manifest,) = pack.prepare(data)
    assert manifest["split"] == "train"
    assert manifest["count"] == 6
    assert manifest["folder"] == str(data.pack_folder("train"))
    assert manifest["source"]["kind"] == "zip"
    assert len(pack.prepare(data, ["train", "test"])) == 2
    summary = pack.info(data, verify=True)
    assert summary["packs"]["test"]["class_counts"] == [3, 3]
    assert "error" not in summary["packs"]["train"]


@pytest.mark.slow
@pytest.mark.data
def test_real_cifar10(cifar_archive: Path) -> None:
    """The 10,000 test images of the shared archive; 50,000 more pass by as a stream."""
    data = Folder(str(cifar_archive), split="test").load()
    assert data.images.shape == (10000, 3, 32, 32)
    assert data.classes == CIFAR10
    assert data.manifest["class_counts"] == [1000] * 10
    assert data.manifest["counts"] == {}
    assert data.warnings == ()
    assert data.images.mean() == pytest.approx(121.5, abs=2)


def test_splits_of_a_pack_are_told_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_tar(tmp_path / "set", tree("train", "test"))
    fresh = folder(path, split="train")
    fresh.load()
    with monkeypatch.context() as patch:
        patch.setattr(archive, "open_tar", None)
        assert folder(path, split="train").splits() == ("test", "train")
        with pytest.raises(TypeError):  # of this one there is no pack
            folder(path, split="test").splits()
    manifest = (fresh.pack_folder("train") or Path()) / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"splits"', '"others"'))  # as it was made until 2026-11
    assert folder(path, split="train").splits() == ("test", "train")


def test_skipping_has_a_limit(tmp_path: Path) -> None:
    """A few broken images may be left out; a disk that lost half of them is no data set."""
    for i in range(400):
        (tmp_path / "set" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / "a" / f"{i:03d}.png").write_bytes(png(i) if i >= 15 else b"")
    few: Any = {"resolution": 8, "on_bad": "skip", "labels": False}
    with pytest.raises(
        DataError, match=r"dataset\.max_bad: more than 10 of 400 .*the last .*010\.png: "
    ) as e:
        Folder(str(tmp_path / "set"), max_bad=0.0, **few).load()
    assert e.value.code == 3
    data = Folder(str(tmp_path / "set"), max_bad=0.04, **few).load()
    assert (len(data), data.manifest["counts"]["skipped"]) == (385, 15)
    assert Folder(str(tmp_path / "set"), max_bad=0.5, **few).load().fingerprint == data.fingerprint
