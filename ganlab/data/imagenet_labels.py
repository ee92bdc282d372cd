"""What lies beside ImageNet's images: the labels of the validation set, and the classes' names.

From Kaggle's ``LOC_val_solution.csv`` and ``LOC_synset_mapping.txt``, or from the development kit of 2012
(``ILSVRC2012_devkit_t12``, the folder or the .tar.gz), whose numbers are not those of the sorted class
folders.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from ganlab.data.formats.tar import headers, open_tar
from ganlab.errors import DataError, GanlabError, printable_name
from ganlab.system.files import read_regular

WNID = re.compile(r"n\d{8}")
VAL_NAME = "ILSVRC2012_val_{:08d}.JPEG"
DEVKIT = "ILSVRC2012_devkit_t12"
TRUTH, META = "data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat"
KAGGLE = "LOC_val_solution.csv"
SYNSETS = ("LOC_synset_mapping.txt", "synset_words.txt")  # "n01440764 tench, Tinca tinca" a line
MAX_FILE = 1 << 25  # bytes of a file that is read here
MAX_DEVKIT = 1 << 28  # bytes of the kit, unpacked


class Annotations(NamedTuple):
    """val: file name -> WordNet id of its class. names: WordNet id -> name of the class. Or empty."""

    val: dict[str, str]
    names: dict[str, str]


def read_annotations(folders: Iterable[Path], val: bool) -> Annotations:
    """What the first of ``folders`` that has it tells. Raises DataError if a file is damaged."""
    folders = list(folders)
    labels: dict[str, str] = {}
    names: dict[str, str] = {}
    for folder in folders:
        for file in SYNSETS:
            if not names and (folder / file).is_file():
                names = _synsets(folder / file)
        if val and not labels and (folder / KAGGLE).is_file():
            labels = _kaggle(folder / KAGGLE)
    for folder in folders:
        for kit in (folder / DEVKIT, folder / f"{DEVKIT}.tar.gz"):
            if (not labels or not names) and kit.exists():
                kit_labels, kit_names = _devkit(kit)
                labels, names = labels or kit_labels, names or kit_names
    return Annotations(labels if val else {}, names)


def _synsets(file: Path) -> dict[str, str]:
    words = (line.partition(" ") for line in _read(file).decode("utf-8-sig", "replace").splitlines())
    return {wnid: name.split(",")[0].strip() for wnid, _, name in words if WNID.fullmatch(wnid)}


def _kaggle(file: Path) -> dict[str, str]:
    """Lines such as ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``: a class and its boxes."""
    try:
        rows = list(csv.reader(io.StringIO(_read(file).decode("utf-8-sig", "replace"))))
    except csv.Error as error:
        raise DataError(file, f"is not a CSV table ({error})", "download it again") from None
    labels = {}
    for number, row in enumerate(rows):
        if len(row) == 2 and WNID.fullmatch(wnid := row[1].partition(" ")[0]):
            labels[f"{row[0]}.JPEG"] = wnid
        elif number:  # the first line is the head
            what = f"line {number + 1} is not an image and a class"
            raise DataError(file, what, "download it again")
    return labels


def _devkit(kit: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Labels by file name and names of classes, from the kit's numbers and its table in MATLAB's format."""
    from scipy.io import loadmat

    where = printable_name(kit)
    try:
        truth, meta = _kit_files(kit)
        synsets = loadmat(io.BytesIO(meta), squeeze_me=True, variable_names=["synsets"])["synsets"]
        wnids = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets}
        names = {str(row["WNID"]): str(row["words"]).split(",")[0].strip() for row in synsets}
        numbers = [int(word) for word in truth.split()]
        labels = {VAL_NAME.format(i + 1): wnids[number] for i, number in enumerate(numbers)}
    except GanlabError:
        raise
    except Exception as error:  # scipy meets a damaged file with every kind of exception
        what = f"not the development kit of 2012 ({error or type(error).__name__})"
        raise DataError(where, what, "download it again") from None
    return labels, names


def _kit_files(kit: Path) -> tuple[bytes, bytes]:
    if kit.is_dir():
        return _read(kit / TRUTH), _read(kit / META)
    files: dict[str, bytes] = {}
    with open_tar(kit, MAX_DEVKIT) as archive:
        for info in headers(archive):
            if (name := info.name.removeprefix("./").removeprefix(f"{DEVKIT}/")) in (TRUTH, META):
                file = archive.extractfile(info) if info.isreg() and info.size <= MAX_FILE else None
                files[name] = file.read() if file else b""
    if missing := {TRUTH, META}.difference(files):
        raise DataError(kit, f"contains no {min(missing)}", "download it again")
    return files[TRUTH], files[META]


def _read(file: Path) -> bytes:
    try:
        return read_regular(file, MAX_FILE)
    except OSError as error:
        raise DataError(file, f"cannot be read ({error.strerror})", "check the path") from None
