"""Splits are no classes, labels in files are read, shards are one set: told by names, before decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import image_sets
import pytest
from image_sets import Files, as_folder, as_zip

from ganlab.data.folder import Folder
from ganlab.errors import DataError

TABLE = "dataset.json"
STORED = [f"{i // 4:05}/img{i:08}.png" for i in range(6)]


def as_tar(path: Path, files: Files) -> Path:
    return image_sets.as_tar(path, {f"./{name}": data for name, data in files.items()})


def classes_and_labels(path: Path, split: str = "all", labels: bool = True) -> tuple[list[str], list[int]]:
    """The classes, and each image's label."""
    originals = Folder(str(path), split=split, labels=labels).originals(split)
    return list(originals.classes), [file.label for file in originals.files]


def images(*folders: str) -> Files:
    return {f"{folder}/1.png": b"x" for folder in folders}


def table(labels: object) -> bytes:
    return json.dumps({"labels": labels}).encode()


def sample(number: int, **files: str) -> Files:
    return {f"{number:06}.{end}": text.encode() for end, text in {"jpg": "x", **files}.items()}


@pytest.mark.parametrize(
    ("folders", "classes"),
    [
        ("train/cat train/dog test/cat test/dog", "cat dog"),
        ("train/cat train/dog train/emu val/cat val/dog", "cat dog emu"),
        ("a/b/train/cat a/b/train/dog a/b/validation/cat", "cat dog"),
        ("seg_train/seg_train/cat seg_train/seg_train/dog seg_test/seg_test/cat", "cat dog"),
        ("training_set/training_set/cats training_set/training_set/dogs test_set/test_set/cats", "cats dogs"),
        ("photos/cat photos/dog", "cat dog"),  # one folder around everything
        ("train/a/images train/b/images", "a b"),
        ("fold1/cat fold1/dog fold2/cat fold2/dog", "cat dog"),  # same classes inside: splits by another name
        ("cats/lion cats/lynx dogs/wolf", "cats dogs"),
        ("train/猫 train/a=c,d", "a=c,d 猫"),
        ("train test", ""),
        ("bus car train", "bus car train"),
        ("freight_train steam_train", "freight_train steam_train"),
        ("train/cat train/dog test", None),
        ("w/train/cat w/train/dog w/test", None),
        ("train/n1/images train/n2/images val/images", None),
        ("train/cat train/dog test samples", None),
    ],
)
def test_splits_are_no_classes(tmp_path: Path, folders: str, classes: str | None) -> None:
    for make in (as_folder, as_zip, as_tar):
        path = make(tmp_path / make.__name__, images(*folders.split()))
        if classes is None:
            with pytest.raises(DataError, match=r"^dataset\.split: is not set, .*; set dataset\.split=train"):
                classes_and_labels(path)
            assert len(classes_and_labels(path, split="train")[0]) == 2
        else:
            assert classes_and_labels(path)[0] == classes.split()
        assert classes_and_labels(path, labels=False) == ([], [-1] * len(folders.split()))


LABELS = [[name, i % 3] for i, name in enumerate(STORED)]


@pytest.mark.parametrize(
    ("files", "labels"),
    [
        ({TABLE: table(LABELS)}, [0, 1, 2, 0, 1, 2]),
        ({TABLE: b"\xef\xbb\xbf" + table(dict(LABELS))}, [0, 1, 2, 0, 1, 2]),  # type: ignore[arg-type]
        ({TABLE: table([["./" + n.replace("/", "\\"), k] for n, k in LABELS])}, [0, 1, 2, 0, 1, 2]),
        ({TABLE: table([[n, [float(k == j) for j in range(3)]] for n, k in LABELS])}, [0, 1, 2, 0, 1, 2]),
        ({TABLE: table([[n, 10 * int(k) + 5] for n, k in LABELS])}, [0, 1, 2, 0, 1, 2]),
        ({TABLE: table(None)}, [-1] * 6),
        ({TABLE: table([[n, None] for n, _ in LABELS])}, [-1] * 6),
        ({TABLE: b'{"name": "of another tool"}'}, [0] * 4 + [1] * 2),
        ({TABLE: table([[n, None if n == STORED[0] else 1] for n, _ in LABELS])}, "1 images have no label"),
        ({TABLE: table(LABELS[:-1])}, r"img00000005\.png: has no label, but other images have one"),
        ({TABLE: table([["x/" + str(n), k] for n, k in LABELS])}, "its labels match none of the images"),
        ({TABLE: table([[n, [0.5, 0.5]] for n, _ in LABELS])}, "labels must be pairs of"),
    ],
)  # fmt: skip
def test_the_table_of_stylegan(tmp_path: Path, files: Files, labels: list[int] | str) -> None:
    stored = dict.fromkeys(STORED, b"x") | files
    wrapped = {f"set/{name}": data for name, data in stored.items()}
    for number, (make, content) in enumerate(((as_folder, stored), (as_zip, stored), (as_tar, wrapped))):
        path = make(tmp_path / str(number), content)
        if isinstance(labels, str):
            with pytest.raises(DataError, match=labels):
                classes_and_labels(path)
        else:
            assert classes_and_labels(path)[1] == labels
        assert classes_and_labels(path, labels=False)[1] == [-1] * 6


@pytest.mark.parametrize(
    ("samples", "classes", "labels"),
    [
        ([{"cls": "10"}, {"cls": "9\n"}], ["9", "10"], [1, 0]),
        ([{"cls": "dog", "txt": "a dog"}, {"cls": "cat", "txt": "a cat"}], ["cat", "dog"], [1, 0]),
        ([{"json": '{"label": 1}'}, {"json": '{"label": 0}'}], ["0", "1"], [1, 0]),
        ([{"cls": "1", "json": '{"label": 7}'}, {"cls": "0", "json": '{"label": 7}'}], ["0", "1"], [1, 0]),
        ([{"txt": "1", "json": '{"caption": "x"}'}, {"txt": "0", "json": "{"}], [], [-1, -1]),
    ],
)
def test_samples_of_webdataset(
    tmp_path: Path, samples: list[dict[str, str]], classes: list[str], labels: list[int]
) -> None:
    files = {name: data for i, files in enumerate(samples) for name, data in sample(i, **files).items()}
    makes: list[Callable[[Path, Files], Path]] = [as_folder, as_zip, as_tar]
    for make in makes:
        assert classes_and_labels(make(tmp_path / make.__name__, files)) == (classes, labels)
    shards = tmp_path / "shards"
    for name in ("a-000.tar", "a-001.tar", "a-002.tar.gz"):
        as_tar(shards / name, files)
    assert classes_and_labels(shards) == (classes, labels * 3)
    as_tar(tmp_path / "splits" / "train" / "0.tar", files)
    as_tar(tmp_path / "splits" / "val" / "0.tar", files)
    assert classes_and_labels(tmp_path / "splits", split="val") == (classes, labels)


def test_a_sample_without_a_label(tmp_path: Path) -> None:
    path = as_tar(tmp_path / "a.tar", sample(0, cls="1") | sample(1))
    with pytest.raises(DataError, match=r"a\.tar/000001\.jpg: has no label, .*dataset\.labels=false"):
        classes_and_labels(path)


def test_shards_hold_class_folders_too(tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        as_tar(tmp_path / "set" / name, images("cat", "dog"))
    assert classes_and_labels(tmp_path / "set") == (["cat", "dog"], [0, 1, 0, 1])
    as_folder(tmp_path / "set", images("emu"))  # beside images a tar is some other file
    assert classes_and_labels(tmp_path / "set") == (["emu"], [0])


def test_what_systems_leave_behind(tmp_path: Path) -> None:
    junk = [
        "__MACOSX/cat/._1.png", "cat/._1.png", "cat/.DS_Store", "dog/Thumbs.db",
        "cat/.ipynb_checkpoints/1.png", "cat/@eaDir/1.png/SYNO.jpg", "lost+found/1.png", "#recycle/1.png",
    ]  # fmt: skip
    files = images("cat", "dog") | {"cat/UPPER.JPEG": b"x"} | dict.fromkeys(junk, b"x")
    for make in (as_folder, as_zip, as_tar):
        classes, labels = classes_and_labels(make(tmp_path / make.__name__, files))
        assert (classes, sorted(labels)) == (["cat", "dog"], [0, 0, 1])
