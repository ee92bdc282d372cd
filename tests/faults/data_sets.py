"""Data sets with something wrong: no images, too few, muddled labels, equal files."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ganlab.data.folder import Folder

from .base import Figure, Forked, one_line, tiny
from .data_common import cache, cases, command, packs, photo, photos, refused, tar_bytes, tree, zip_bytes

Check = Callable[[Path], None]


def refuses(files: dict[str, bytes], where: str, fix: str = "", *words: str, code: int = 3,
            name: str = "folder") -> Check:  # fmt: skip
    """``data prepare NAME`` on these files ends in one line."""

    def check(place: Path) -> None:
        root = tree(place / "set", files)
        root.mkdir(exist_ok=True)
        words_ = [word.replace("{}", str(root)) for word in words]
        if not any(word.startswith("path=") for word in words_):
            words_.append(f"path={root}")
        refused(place, code, where, fix, "data", "prepare", name, *words_)

    return check


def trains(files: dict[str, bytes], where: str, fix: str, *words: str) -> Check:
    """A run on these files ends with code 2 before its folder is there."""

    def check(place: Path) -> None:
        root = tree(place / "set", files)
        given = (f"dataset.path={root}", "dataset.resolution=32", *words)
        done = Forked(*tiny("dataset=folder", *given), cwd=place).wait(120)
        one_line(done, 2, where, fix)
        assert not (place / "run").exists(), "a run folder was made"

    return check


# ---- 45: contents and labels


def cifar(**changes: Any) -> dict[str, bytes]:
    """A pickled CIFAR-10 of two images a batch, with other content in the first."""
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    files = {f"data_batch_{i}": pickle.dumps(batch, 2) for i in range(2, 6)}
    first = {k: v for k, v in (batch | changes).items() if v is not None}
    files["data_batch_1"] = pickle.dumps(first, 2)
    return {f"cifar-10-batches-py/{n}": d for n, d in files.items()}


def stl(labels: bytes | None, images: int = 3) -> dict[str, bytes]:
    files = {"train_X.bin": bytes(images * 27648)}
    return files | ({} if labels is None else {"train_y.bin": labels})


def imagenet_val(table: str | None) -> dict[str, bytes]:
    files = {f"val/ILSVRC2012_val_{i:08d}.JPEG": photo(i) for i in (1, 2)}
    return files | ({} if table is None else {"LOC_val_solution.csv": table.encode()})


def gap(place: Path) -> None:
    """A class that no image has is told, and is no mistake."""
    root = tree(place / "set", cifar(labels=[0, 9]))
    done = command(place, "data", "prepare", "cifar10", f"path={root}", "verify=false")
    assert (done.code, "no images of class 'automobile'" in done.out) == (0, False), done.out
    assert "no images of class" in done.out


def equal(place: Path) -> None:
    """Files with the same content are listed."""
    root = tree(place / "set", {"a/1.jpg": photo(1), "a/2.jpg": photo(2), "b/3.jpg": photo(1)})
    done = command(place, "data", "check", "folder", f"path={root}")
    assert done.code == 0, done.err
    assert "same content: a/1.jpg = b/3.jpg" in done.out


def tampered(labels: list[int]) -> Check:
    """Labels of a pack that are no classes of it, with a sum that fits: the pack is made again."""

    def check(place: Path) -> None:
        import hashlib
        import json

        root = tree(place / "set", photos(2))
        with cache(place):
            fine = Folder(str(root), resolution=8).load()
            (folder,) = packs(place)
            raw = np.array(labels, "<i8").tobytes()
            (folder / "labels.i64").write_bytes(raw)
            manifest = json.loads((folder / "manifest.json").read_text())
            manifest["labels_sha256"] = hashlib.sha256(raw).hexdigest()
            (folder / "manifest.json").write_text(json.dumps(manifest))
            again = Folder(str(root), resolution=8).load()
        assert again.labels is not None
        assert again.labels.tolist() == fine.labels.tolist()  # type: ignore[union-attr]

    return check


NO_VERIFY = ("verify=false",)
VAL = ("split=val", "preprocess=plain", "resolution=8")
WNID = "n01440764"
CONTENTS: dict[str, Check] = {
    "an empty folder": refuses({}, "is empty", "give a folder"),
    "a folder of text files": refuses({"a.txt": b"x", "b.csv": b"y"}, "contains no images .*2 other file"),
    "a zip of nothing": refuses({"set.zip": zip_bytes({})}, "is empty", "", "path={}/set.zip"),
    "a tar of nothing": refuses({"set.tar": tar_bytes({})}, "is empty", "", "path={}/set.tar"),
    "a class without a file": lambda place: (
        (place / "set" / "bird").mkdir(parents=True),
        refuses(photos(), "class folder 'bird' .*contains no images", "on_bad=skip")(place),
    )[1],
    "images beside class folders": refuses(
        photos() | {"x.jpg": photo(9)}, "1 images are outside", "labels=false"
    ),
    "nothing but broken images": refuses({"a.jpg": b"x"}, "no image was left", "", "on_bad=skip"),
    "a path that is not there": refuses({}, "dataset.path: .*does not exist", "check", "path={}/none"),
    "a split that is not there": refuses(
        {f"train/{k}": v for k, v in photos().items()}, "dataset.split: .*no folder 'tset'", "", "split=tset"
    ),
    "fewer images than a batch": trains(photos(2), "batch_size: 8 is more than the 4", "use at most 4"),
    "one class, and a conditional net": trains(
        photos(12, "cat"), "has one class", "head=none", "architecture=resnet", "architecture.head=projection"
    ),
    "no classes, and a conditional net": trains(
        {f"{i}.jpg": photo(i) for i in range(12)}, "no class labels", "labels", "architecture=resnet",
        "architecture.head=projection",
    ),
    "CIFAR: a label out of range": refuses(cifar(labels=[0, 10]), "label 10", "", *NO_VERIFY, name="cifar10"),
    "CIFAR: a negative label": refuses(cifar(labels=[0, -1]), "data_batch_1", "", *NO_VERIFY, name="cifar10"),
    "CIFAR: a label 0.5": refuses(cifar(labels=[0, 0.5]), "list of integers", "", *NO_VERIFY, name="cifar10"),
    "CIFAR: a label NaN": refuses(
        cifar(labels=[0, float("nan")]), "list of integers", "", *NO_VERIFY, name="cifar10"
    ),
    "CIFAR: fewer labels": refuses(cifar(labels=[0]), "1 labels for 2", "", *NO_VERIFY, name="cifar10"),
    "CIFAR: no labels": refuses(cifar(labels=None), "no data and labels", "", *NO_VERIFY, name="cifar10"),
    "CIFAR: a class without images": gap,
    "CIFAR: not the original": refuses(cifar(), "checksum", "dataset.verify=false", name="cifar10"),
    "STL: a label 0": refuses(stl(b"\1\0\2"), "labels from 0", "", "split=train", *NO_VERIFY, name="stl10"),
    "STL: no labels": refuses(stl(None), "contains no train_y", "", "split=train", *NO_VERIFY, name="stl10"),
    "STL: fewer labels": refuses(stl(b"\1\2"), "2 labels for 3", "", "split=train", *NO_VERIFY, name="stl10"),
    "STL: half an image": refuses(
        {"unlabeled_X.bin": bytes(30000)}, "not whole images", "", *NO_VERIFY, name="stl10"
    ),
    "ImageNet: no labels of val": refuses(
        imagenet_val(None), "labels .*missing", "LOC_val", *VAL, name="imagenet"
    ),
    "ImageNet: an image without a label": refuses(
        imagenet_val(f"ImageId,P\nILSVRC2012_val_00000001,{WNID} 1 2 3 4\n"), "has no label", "", *VAL,
        name="imagenet",
    ),
    "ImageNet: a table that is none": refuses(
        imagenet_val("ImageId,P\nILSVRC2012_val_00000001;cat\n"), "LOC_val_solution.csv: line 2", "", *VAL,
        name="imagenet",
    ),
    "ImageNet: a class that is not there": lambda place: refuses(
        {f"train/{WNID}/1.JPEG": photo(1), "some.txt": b"n01443537\n"}, "n01443537 .*is not in", "",
        "classes={}/some.txt", name="imagenet",
    )(place),
    "ImageNet: folders of other names": refuses(
        {f"train/{n}": d for n, d in photos().items()}, "class folders are named like", "dataset=folder",
        name="imagenet",
    ),
    "files of the same content": equal,
    "a pack's label out of range": tampered([0, 0, 1, 2]),
    "a pack's negative label": tampered([0, 0, 1, -1]),
}  # fmt: skip


FIGURES = [
    Figure(
        "bad-sets", "Bad data sets and labels -> right code, one line, the fix", (45,), 30, cases(CONTENTS)
    ),
]
