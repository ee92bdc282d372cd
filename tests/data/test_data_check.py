"""``ganlab data check``: every bad, odd, equal and changed file is named, whatever the set comes in."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sets import (  # noqa: F401
    as_folder,
    as_lmdb,
    as_tar,
    as_zip,
    encoded,
    kept_workers,
    own_cache,
    tar_of_tars,
)
from PIL import Image

from ganlab.cli import main
from ganlab.data.cifar10 import Cifar10
from ganlab.data.folder import Folder
from ganlab.data.imagenet import ImageNet
from ganlab.data.lsun import Lsun
from ganlab.data.packing.check import Report, check, read_manifest, write_manifest
from ganlab.errors import DataError, EnvError


def image(value: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (20, 20)) -> bytes:
    pixels = np.random.default_rng(value).integers(0, 256, (*size, 3), np.uint8)
    return encoded(Image.fromarray(pixels).convert(mode), kind)


FILES = {f"n{c:08d}/{i:02d}.JPEG": image(10 * c + i) for c in (1, 2) for i in range(6)}
BAD = FILES | {
    "n00000001/01.JPEG": b"",
    "n00000001/02.JPEG": FILES["n00000001/02.JPEG"][:300],
    "n00000002/03.JPEG": FILES["n00000002/02.JPEG"],
    "n00000002/04.JPEG": image(0, "PNG", "P"),
    "n00000002/05.JPEG": image(0, "JPEG", "CMYK"),
}


def _train_tar(root: Path, files: dict[str, bytes]) -> Path:
    return as_folder(root, {"ILSVRC2012_img_train.tar": tar_of_tars(files)}) / "ILSVRC2012_img_train.tar"


def source(kind: str, root: Path, files: dict[str, bytes]) -> Any:
    """A dataset of each kind of source with these images."""
    root.mkdir(exist_ok=True)
    if kind == "zip":
        return Folder(str(as_zip(root / "set.zip", files)))
    if kind == "tar":
        return Folder(str(as_tar(root / "set.tar", files)))
    if kind == "class folders":
        return ImageNet(
            str(as_folder(root / "set" / "train", files).parent), preprocess="plain", resolution=32
        )
    if kind == "tar of tars":
        return ImageNet(str(_train_tar(root, files)), preprocess="plain", resolution=32)
    return Lsun(str(as_lmdb(root / "bedroom_train_lmdb", files)))


def checked(dataset: Any, manifest: Path | None = None, write: bool = False) -> Report:
    originals = dataset.originals(dataset.split)
    assert originals is not None
    return check(originals, manifest, write)


@pytest.mark.parametrize("kind", ["tar", "class folders", "tar of tars", "lmdb"])
def test_what_is_bad_odd_or_equal_is_named(kind: str, tmp_path: Path) -> None:
    report = checked(source(kind, tmp_path / "in", BAD))
    assert report.files == 12
    assert sorted(name for name, _ in report.bad) == ["n00000001/01.JPEG", "n00000001/02.JPEG"]
    assert report.num_bad == 2
    assert report.same == [["n00000002/02.JPEG", "n00000002/03.JPEG"]]
    assert {k: report.kinds[k] for k in ("PNG P", "JPEG CMYK")} == {"PNG P": 1, "JPEG CMYK": 1}
    assert {k: report.notes[k] for k in ("palette", "cmyk")} == {"palette": 1, "cmyk": 1}
    assert report.classes == ({} if kind == "lmdb" else {"n00000001": 4, "n00000002": 6})


@pytest.mark.parametrize("kind", ["zip", "lmdb"])
def test_a_manifest_finds_what_decoding_does_not(kind: str, tmp_path: Path) -> None:
    manifest = tmp_path / "sums"
    dataset = source(kind, tmp_path / "in", FILES)
    assert checked(dataset, manifest, write=True).num_bad == 0
    assert len(read_manifest(manifest)) == 12
    assert checked(dataset, manifest).num_bad == 0
    rotten = dict(FILES)
    name = "n00000002/01.JPEG"
    flipped = bytearray(rotten[name])
    flipped[-40] ^= 4  # in the entropy-coded data: it decodes
    rotten[name] = bytes(flipped)
    del rotten["n00000001/05.JPEG"]
    rotten["n00000001/99.JPEG"] = image(99)
    shutil.rmtree(tmp_path / "in")
    report = checked(source(kind, tmp_path / "in", rotten), manifest)
    result = (report.bad, report.changed, report.missing, report.new)
    assert result == ([], [name], ["n00000001/05.JPEG"], ["n00000001/99.JPEG"])
    assert report.num_bad == 2


def test_a_cut_archive_is_told_with_what_came_before(tmp_path: Path) -> None:
    whole = as_tar(tmp_path / "set.tar", BAD).read_bytes()
    (tmp_path / "set.tar").write_bytes(whole[: len(whole) // 2])
    dataset = Folder(str(tmp_path / "set.tar"))
    with pytest.raises(DataError, match="damaged archive"):
        checked(dataset)  # already its names can't be read
    cut = as_lmdb(tmp_path / "bedroom_train_lmdb", FILES) / "data.mdb"
    data = bytearray(cut.read_bytes())
    data[3 * 4096 : 6 * 4096] = bytes(3 * 4096)
    cut.write_bytes(data)
    report = checked(Lsun(str(cut)))
    assert "damaged LMDB database" in report.damage or "ends after" in report.damage
    assert report.num_bad >= 1


def test_the_manifest_is_sha256sums(tmp_path: Path) -> None:
    names = {"plain.png": b"1", "a dir/with space.png": b"2", "new\nline.png": b"3", "back\\slash.png": b"4"}
    as_folder(tmp_path / "set", names)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in names.items()}
    odd = os.fsdecode(b"latin\xe9.png")
    (tmp_path / "set" / odd).write_bytes(b"5")
    sums[odd] = hashlib.sha256(b"5").hexdigest()
    write_manifest(tmp_path / "sums", sums)
    assert read_manifest(tmp_path / "sums") == sums
    command = ["sha256sum", "--check", "--strict", str(tmp_path / "sums")]
    if shutil.which("sha256sum"):
        assert subprocess.run(command, cwd=tmp_path / "set", capture_output=True, check=False).returncode == 0


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    for data, says in ((b"", "lists no files"), (b"hello\n", "line 1"), (b"0" * 64 + b" \n", "line 1")):
        (tmp_path / "sums").write_bytes(data)
        with pytest.raises(DataError, match=rf"sums: .*{says}.*hash=write"):
            read_manifest(tmp_path / "sums")
    with pytest.raises(DataError, match="does not exist; write one with hash=write"):
        read_manifest(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        read_manifest(tmp_path / "pipe")
    with pytest.raises(EnvError, match="manifest=FILE"):
        write_manifest(tmp_path / "no" / "such", {"a": "0" * 64})


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = as_folder(tmp_path / "photos", BAD)
    (root / "n00000001" / "loop.jpg").symlink_to(root)
    os.mkfifo(root / "n00000001" / "pipe.jpg")
    (root / "n00000003").mkdir()
    words = ["data", "check", "dataset=folder", f"path={root}"]
    assert main.main([*words, "hash=write", f"out={tmp_path / 'found.json'}"]) == 3
    out, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert f"{root}: 2 of 12 files are damaged; repair or remove them" in err
    for line in (
        "  classes: n00000001 4, n00000002 6",
        "  empty class: n00000003",
        "  broken: n00000001/01.JPEG: ",
        "  same content: n00000002/02.JPEG = n00000002/03.JPEG",
        "  ignored: 1 link back to a folder above it, such as n00000001/loop.jpg",
        "  ignored: 1 special file, such as n00000001/pipe.jpg",
        "  1 palette, expanded",
        f"  written: {tmp_path / 'photos-all.sha256'}",
    ):
        assert line in out
    result = json.loads((tmp_path / "found.json").read_text())["all"]
    assert (result["files"], len(result["bad"])) == (12, 2)
    assert main.main([*words, "hash=write"]) == 3  # rotten files would be declared sound
    assert "already exists; compare with hash=verify" in capsys.readouterr().err
    (root / "n00000002" / "00.JPEG").write_bytes(FILES["n00000002/00.JPEG"][:-30] + bytes(30))
    assert main.main([*words, "hash=verify"]) == 3
    assert "  changed: n00000002/00.JPEG" in capsys.readouterr().out
    for word, says in (("hash=yes", "hash: 'yes' is not"), ("manifest=x", "manifest: requires hash")):
        assert main.main([*words, word]) == 2
        assert says in capsys.readouterr().err
    assert main.main(["data", "check", "digits"]) == 0
    assert main.main(["data", "check"]) == 2


def test_a_sound_set_and_its_pack(tmp_path: Path, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    words = ["folder", f"path={as_folder(tmp_path / 'photos', FILES)}"]
    assert main.main(["data", "check", *words]) == 0
    assert not cache.exists()  # to look is not to prepare
    assert "prepared" not in capsys.readouterr().out
    assert main.main(["data", "prepare", *words]) == 0
    assert main.main(["data", "check", *words]) == 0
    assert ", verified" in capsys.readouterr().out
    (pixels,) = cache.glob("datasets/*/images.u8")
    data = bytearray(pixels.read_bytes())
    data[1000] ^= 1
    pixels.write_bytes(data)
    assert main.main(["data", "check", *words]) == 3
    assert "its sha256 does not match the manifest" in capsys.readouterr().err


def test_files_of_known_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"data_batch_{i}.bin": bytes([i]) * 3073 for i in range(1, 6)}
    root = as_folder(tmp_path / "cifar-10-batches-bin", files)
    monkeypatch.setattr(Cifar10, "sums", {n: hashlib.sha256(d).hexdigest() for n, d in files.items()})
    assert checked(Cifar10(str(root))).num_bad == 0
    (root / "data_batch_3.bin").write_bytes(bytes(3073))
    report = checked(Cifar10(str(root)))
    assert [name for name, _ in report.bad] == ["data_batch_3.bin"]
    assert checked(Cifar10(str(root), verify=False)).num_bad == 0
    with pytest.raises(DataError, match="nothing has been downloaded; 'ganlab data prepare cifar10'"):
        checked(Cifar10())
