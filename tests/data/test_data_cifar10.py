"""CIFAR-10 in both of its true formats, on small sets: read, verified, refused when wrong, never executed."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ganlab.data import cifar10
from ganlab.data.cifar10 import CLASSES, SUMS, TRAIN, Cifar10
from ganlab.data.formats.unpickle import unpickle
from ganlab.data.packing import download
from ganlab.data.packing.originals import md5
from ganlab.errors import DataError, EnvError

EACH = 12  # images in a batch; the original has 10,000
RNG = np.random.default_rng(0)
PIXELS = {name: RNG.integers(0, 256, (EACH, 3072), dtype=np.uint8) for name in [*TRAIN, "test_batch"]}
LABELS = {name: RNG.integers(0, 10, EACH).tolist() for name in PIXELS}


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2's cPickle did: as byte strings, protocol 2."""

    dispatch = pickle._Pickler.dispatch.copy()

    def save_text(self, value: str | bytes) -> None:
        data = value.encode("latin1") if isinstance(value, str) else value
        short = len(data) < 256
        self.write(b"U" + bytes([len(data)]) + data if short else b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2(value: Any) -> bytes:
    out = io.BytesIO()
    Python2Pickler(out, 2).dump(value)
    return out.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def batch(name: str, **changes: Any) -> dict[str, Any]:
    files = [f"{i}.png" for i in range(EACH)]
    facts = {
        "batch_label": f"training {name}",
        "labels": LABELS[name],
        "data": PIXELS[name],
        "filenames": files,
    }
    return facts | changes


def pickled_files() -> dict[str, bytes]:
    meta = {"num_cases_per_batch": EACH, "label_names": CLASSES, "num_vis": 3072}
    batches = {name: python2(batch(name)) for name in PIXELS}
    return {
        f"cifar-10-batches-py/{n}": d
        for n, d in {"batches.meta": python2(meta), "readme.html": b"<FONT>", **batches}.items()
    }


def binary_files() -> dict[str, bytes]:
    batches = {
        f"{name}.bin": b"".join(
            bytes([label]) + row.tobytes() for label, row in zip(LABELS[name], PIXELS[name], strict=True)
        )
        for name in PIXELS
    }
    meta = {"batches.meta.txt": "\n".join(CLASSES).encode() + b"\n\n"}
    return {f"cifar-10-batches-bin/{n}": d for n, d in {**meta, **batches}.items()}


def tar_gz(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in reversed(files.items()):  # the original's order is no order either
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def unpacked(path: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    return tmp_path / "cache"


def own(path: Path, **options: Any) -> Cifar10:
    return Cifar10(str(path), verify=False, **options)


WAYS: dict[str, Callable[[Path], Path]] = {
    "python archive": lambda p: tar_gz(p / "cifar-10-python.tar.gz", pickled_files()),
    "binary archive": lambda p: tar_gz(p / "cifar-10-binary.tar.gz", binary_files()),
    "archive by another name": lambda p: tar_gz(p / "data.tgz", pickled_files()),
    "python folder": lambda p: unpacked(p, pickled_files()) / "cifar-10-batches-py",
    "binary folder": lambda p: unpacked(p, binary_files()) / "cifar-10-batches-bin",
    "folder around a folder": lambda p: unpacked(p, pickled_files()),
    "folder with an archive": lambda p: tar_gz(p / "cifar-10-binary.tar.gz", binary_files()).parent,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_same_set(tmp_path: Path, way: str) -> None:
    (tmp_path / "in").mkdir()
    data = own(WAYS[way](tmp_path / "in")).load()
    assert data.images.shape == (5 * EACH, 3, 32, 32)
    for i, name in enumerate(TRAIN):
        mine = slice(i * EACH, (i + 1) * EACH)
        assert np.array_equal(
            data.images[mine], PIXELS[name].reshape(-1, 3, 32, 32)
        )  # red, green, blue planes
        assert data.labels is not None
        assert data.labels[mine].tolist() == LABELS[name]
    assert data.classes == CLASSES
    assert data.manifest["source"]["read_from"].startswith(str(tmp_path / "in"))
    test = own(WAYS[way](tmp_path / "in")).load(split="test")
    assert np.array_equal(test.images, PIXELS["test_batch"].reshape(-1, 3, 32, 32))
    assert len(own(WAYS[way](tmp_path / "in"), split="train+test").load()) == 6 * EACH


def test_the_test_pickles_are_python_2s() -> None:
    names = {op.name for op, _, _ in pickletools.genops(pickled_files()["cifar-10-batches-py/data_batch_1"])}
    assert {"BINSTRING", "SHORT_BINSTRING", "GLOBAL"} <= names
    assert not {"BINUNICODE", "STACK_GLOBAL", "SHORT_BINBYTES"} & names


def test_newer_pickles_are_read_too(tmp_path: Path) -> None:
    files = pickled_files()
    for protocol in (2, 4):
        files["cifar-10-batches-py/data_batch_2"] = pickle.dumps(batch("data_batch_2"), protocol)
        data = own(unpacked(tmp_path / str(protocol), files)).load()
        assert np.array_equal(data.images[EACH : 2 * EACH], PIXELS["data_batch_2"].reshape(-1, 3, 32, 32))


def test_other_resolutions_are_resampled(tmp_path: Path) -> None:
    path = unpacked(tmp_path / "in", binary_files())
    data = own(path, resolution=48, split="test").load()
    first = PIXELS["test_batch"][0].reshape(3, 32, 32).transpose(1, 2, 0)
    expected = Image.fromarray(first).resize((48, 48), Image.Resampling.BILINEAR)
    assert np.array_equal(data.images[0], np.asarray(expected).transpose(2, 0, 1))
    assert data.manifest["counts"] == {"enlarged": EACH}


def test_verification(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = pickled_files()
    path = tar_gz(tmp_path / "cifar-10-python.tar.gz", files)
    with pytest.raises(DataError) as caught:
        Cifar10(str(path)).load()
    name, found = "data_batch_5", md5(files["cifar-10-batches-py/data_batch_5"])
    assert str(caught.value) == (
        f"{path}/{name}: checksum {found}, expected {SUMS[name]}; download it again, "
        "or set dataset.verify=false for your own data in this format"
    )
    with pytest.raises(DataError, match=r"data_batch_1\.bin: checksum [0-9a-f]{64}, expected cee916"):
        Cifar10(str(unpacked(tmp_path / "in", binary_files()))).load()
    for name, data in files.items():
        monkeypatch.setitem(SUMS, Path(name).name, md5(data))
    assert len(Cifar10(str(path)).load()) == 5 * EACH


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^dataset\.path: .*nowhere does not exist"):
        Cifar10(str(tmp_path / "nowhere")).load()
    (tmp_path / "in").mkdir()
    with pytest.raises(
        DataError, match=r"in contains no cifar10; looked for cifar-10-python\.tar\.gz, cifar-10-binary"
    ):
        Cifar10(str(tmp_path / "in")).load()
    files = pickled_files()
    del files["cifar-10-batches-py/data_batch_3"]
    path = tar_gz(tmp_path / "a.tar.gz", files)
    with pytest.raises(DataError, match=r"a\.tar\.gz: contains no data_batch_3; give the original archive"):
        own(path).load()
    assert len(own(path, split="test").load()) == EACH


def test_a_cut_archive(tmp_path: Path) -> None:
    path = tar_gz(tmp_path / "cifar-10-python.tar.gz", pickled_files())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz: damaged archive"):
        own(path).load()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a valid pickle"),
        (b"hello", "not a valid pickle"),
        (python2(batch("data_batch_1"))[:-200], "not a valid pickle"),
        (python2([1, 2]), "it has no data and labels, only list"),
        (
            python2({"data": PIXELS["data_batch_1"], "fine_labels": [1]}),
            "no data and labels, only data, fine_labels",
        ),
        (python2(batch("data_batch_1", labels=[1, 2])), "2 labels for 12 images"),
        (python2(batch("data_batch_1", labels=[10] * EACH)), "label 10 in a set of 10 classes"),
        (python2(batch("data_batch_1", labels=[-1] * EACH)), "in a set of 10 classes"),
        (python2(batch("data_batch_1", labels=[0.5] * EACH)), "labels are not a list of integers"),
        (
            python2(batch("data_batch_1", data=PIXELS["data_batch_1"].astype("f4"))),
            r"data is not uint8 \(n, 3072\)",
        ),
        (
            python2(batch("data_batch_1", data=PIXELS["data_batch_1"][:, :100])),
            r"data is not uint8 \(n, 3072\)",
        ),
        (python2(batch("data_batch_1", data="x" * 3072)), r"data is not uint8 \(n, 3072\)"),
    ],
)
def test_a_pickle_that_is_no_batch(tmp_path: Path, content: bytes, says: str) -> None:
    files = pickled_files() | {"cifar-10-batches-py/data_batch_1": content}
    path = unpacked(tmp_path / "in", files)
    with pytest.raises(
        DataError, match=rf"data_batch_1: not a batch of CIFAR-10 \(.*{says}.*\); download it again$"
    ):
        own(path).load()


@pytest.mark.parametrize("content", [b"", bytes(3072), bytes([10]) + bytes(3072), bytes(3073 * 2 + 1)])
def test_binary_records_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = unpacked(tmp_path / "in", binary_files() | {"cifar-10-batches-bin/data_batch_1.bin": content})
    with pytest.raises(DataError, match=r"data_batch_1\.bin: not a batch of CIFAR-10"):
        own(path).load()


class Evil:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def payloads(canary: Path) -> list[bytes]:
    command = f"touch {canary}"
    calls: list[tuple[Any, ...]] = [
        (os.system, command),
        (eval, f"open({str(canary)!r}, 'w')"),
        (exec, f"open({str(canary)!r}, 'w')"),
        (open, str(canary), "w"),
        (getattr, "text", "upper"),
        (np.save, str(canary), np.zeros(1)),
        (np.ndarray, (10**9,)),
        (__import__, "os"),
    ]
    built = [pickle.dumps(Evil(*call), protocol) for call in calls for protocol in (0, 2, 4)]
    globals_ = [
        f"cos\nsystem\n(S'{command}'\ntR.".encode(),
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(J\xff\xff\xff\x7ftS'b'\ntR.",
    ]
    strange = [
        b"c_codecs\nencode\n(S'x'\nS'zlib_codec'\ntR.",
        b"cnumpy\ndtype\n(S'V99'\nI0\nI1\ntR.",
        b"Pid\n.",
    ]
    return built + globals_ + strange


def test_pickles_never_run_code(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for payload in payloads(canary):
        with pytest.raises(
            ValueError, match=r"references|without data|not a valid|codec|an array of type|external"
        ):
            unpickle(payload)
        assert not canary.exists()
    files = pickled_files() | {"cifar-10-batches-py/batches.meta": payloads(canary)[0]}
    with pytest.raises(
        DataError, match=r"batches\.meta: not the names of CIFAR-10's classes \(it references posix"
    ):
        own(unpacked(tmp_path / "in", files)).load()
    assert not canary.exists()


def test_offline_says_what_to_put_where(cache: Path) -> None:
    with pytest.raises(EnvError) as caught:
        Cifar10().load()
    line = str(caught.value)
    assert "\n" not in line
    assert line == (
        "cifar-10-python.tar.gz: not found, and GANLAB_OFFLINE forbids "
        f"https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz; put it in {cache}/downloads "
        "(170,498,071 bytes, md5 c58f30108f718f92721af3b95e74349a) or set dataset.path"
    )
    assert not (cache / "downloads").exists()


def test_a_file_put_in_the_cache_is_used(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "downloads").mkdir(parents=True)
    path = tar_gz(cache / "downloads" / "cifar-10-binary.tar.gz", binary_files())
    small = [
        download.Remote(r.dataset, r.file, r.url, path.stat().st_size, r.md5, r.sha256)
        for r in download.REMOTES
    ]
    monkeypatch.setattr(download, "REMOTES", tuple(small))
    for name, data in binary_files().items():
        if name.endswith(".bin"):
            monkeypatch.setitem(cifar10.SUMS, Path(name).name, hashlib.sha256(data).hexdigest())
    data = Cifar10().load()
    assert len(data) == 5 * EACH
    path.unlink()
    assert Cifar10().load().fingerprint == data.fingerprint  # packed: the archive is not needed any more


def test_splits() -> None:
    assert Cifar10().splits() == ("train", "test", "train+test")
    with pytest.raises(ValueError, match="split: 'trian' is not one of train, test, train"):
        Cifar10(split="trian")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"dataset\.split: cifar10 has no split 'tset'; did you mean 'test'"):
        Cifar10().load(split="tset")
