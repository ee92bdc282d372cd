"""A killed preparation goes on where it stopped, decodes nothing twice, and ends in the same bytes."""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_sets
import lmdb
import numpy as np
import pytest
from image_sets import kept_workers  # noqa: F401
from PIL import Image

from ganlab.cli import doctor, main
from ganlab.data.base import Dataset
from ganlab.data.folder import Folder
from ganlab.data.formats.images import Rule
from ganlab.data.imagenet import ImageNet
from ganlab.data.lsun import Lsun
from ganlab.data.packing import decoding, pack, stream, worker, writer
from ganlab.data.packing.decoding import Encoded, Piece, decode_all
from ganlab.data.packing.pack import partial_folder
from ganlab.data.packing.worker import ChildCrashed, ChildLost, Worker, WorkerPool, timeout
from ganlab.errors import DataError, EnvError

N = 700  # images: a few blocks of 128, or of 32
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@functools.cache
def image(number: int) -> bytes:
    out = io.BytesIO()
    coarse = np.random.default_rng(number).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    mode = "L" if number % 50 == 7 else "RGB"
    picture = Image.fromarray(coarse).resize((20, 20), Image.Resampling.BICUBIC).convert(mode)
    picture.save(out, "JPEG")
    return out.getvalue() if number % 100 != 13 else out.getvalue()[:100]


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images as class folders, tar, tar of tars and LMDB."""
    root = tmp_path_factory.mktemp("sources")
    wnids = [f"n{i:08d}" for i in range(5)]
    files = {f"{wnids[i % 5]}/{i:04d}.JPEG": image(i) for i in range(N)}
    for name, data in files.items():
        (root / "tree" / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "tree" / "train" / name).write_bytes(data)
    with tarfile.open(root / "set.tar.xz", "w:xz") as archive:
        for name in files:
            archive.add(root / "tree" / "train" / name, f"train/{name}")
    (root / "tars").mkdir()
    with tarfile.open(root / "tars" / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in wnids:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as archive:
                for file in sorted((root / "tree" / "train" / wnid).iterdir()):
                    archive.add(file, file.name)
            info = tarfile.TarInfo(f"{wnid}.tar")
            info.size = len(inner.getvalue())
            outer.addfile(info, io.BytesIO(inner.getvalue()))
    for part, start in (("bedroom", 0), ("tower", 400)):
        (root / f"{part}_train_lmdb").mkdir()
        with lmdb.open(str(root / f"{part}_train_lmdb"), map_size=1 << 27) as env, env.begin(write=True) as t:
            for i in range(start, start + 400):
                t.put(f"{i * 7919 % 100003:040x}".encode(), image(i))
    return root


SETS: dict[str, tuple[type[Dataset], dict[str, Any]]] = {
    "folder": (Folder, {"path": "{}/tree", "on_bad": "skip"}),
    "tar": (Folder, {"path": "{}/set.tar.xz", "split": "train", "on_bad": "skip"}),
    "imagenet": (ImageNet, {"path": "{}/tree", "preprocess": "plain"}),
    "imagenet tar": (ImageNet, {"path": "{}/tars", "preprocess": "plain"}),
    "lsun": (Lsun, {"path": "{}", "category": "bedroom+tower", "limit": 350}),
}


def here(files: Any, rule: Rule) -> Any:
    """Decode without other processes."""
    return (decoding.decode_chunk(chunk, rule) for chunk in decoding.chunks(files, rule))


def child(kind: str, sources: Path, event: str, nth: int, out: Path) -> None:
    """Prepares a set; kills itself at the n-th time of an event, or reports how many files were decoded."""
    times = decoded = 0
    sys.stderr = open(out / "err", "w", buffering=1)  # noqa: SIM115

    def passing(name: str) -> None:
        nonlocal times
        times += name == event
        if name == event and times == nth:
            os.kill(os.getpid(), signal.SIGKILL)

    def before(owner: Any, attribute: str, name: str) -> None:
        inner = getattr(owner, attribute)
        setattr(owner, attribute, lambda *args, **more: passing(name) or inner(*args, **more))

    def counted(files: Any, rule: Rule) -> Any:
        def count() -> Any:
            nonlocal decoded
            for file in files:
                decoded += 1
                yield file

        return here(count(), rule)

    before(writer.Writer, "commit", "pixels written")
    before(writer.Writer, "add", "block decoded")
    before(writer, "sync_folder", "manifest written")
    before(pack, "sync_folder", "renamed")
    before(writer.Writer, "close", "journal removed")
    stream.decode_all = counted
    dataset, options = SETS[kind]
    dataset(**{**options, "path": options["path"].format(sources), "resolution": 24}).load()
    (out / "decoded").write_text(str(decoded))


def prepare(kind: str, sources: Path, event: str = "never", nth: int = 1) -> tuple[int | None, int, str]:
    """Exit code, files decoded, and the warnings, of a process that prepares a set."""
    out = Path(os.environ["GANLAB_CACHE"]).with_name("out")
    out.mkdir(exist_ok=True)
    (out / "decoded").write_text("0")
    process = multiprocessing.get_context("fork").Process(target=child, args=(kind, sources, event, nth, out))
    process.start()
    process.join(120)
    return process.exitcode, int((out / "decoded").read_text()), (out / "err").read_text()


def contents(cache: Path) -> dict[str, bytes]:
    """The one pack there is, and nothing else."""
    (folder,) = [p for p in (cache / "datasets").iterdir() if p.name != ".locks"]
    assert not folder.name.startswith(".tmp")
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# (event, its n-th time, blocks that the next try finds)
EVENTS = [
    ("block decoded", 1, 0), ("pixels written", 4, 3), ("block decoded", 5, 4), ("manifest written", 1, 99),
    ("journal removed", 1, 99), ("renamed", 1, 99),
]  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_killed_anywhere_it_ends_in_the_same_bytes(kind: str, sources: Path, cache: Path) -> None:
    code, decoded, err = prepare(kind, sources)
    assert (code, decoded) == (0, N), err
    whole = contents(cache)
    assert set(whole) == {"images.u8", "labels.i64", "manifest.json"}
    assert json.loads(whole["manifest.json"])["counts"] == {"enlarged": 693, "grey": 14, "skipped": 7}
    for event, nth, blocks in EVENTS if kind == "folder" else EVENTS[2:3]:
        shutil.rmtree(cache)
        assert prepare(kind, sources, event, nth)[0] == -signal.SIGKILL, event
        code, decoded, err = prepare(kind, sources)
        assert code == 0, (event, err)
        assert contents(cache) == whole, event
        assert decoded == max(0, N - 128 * blocks), event
        complete = event in ("journal removed", "renamed")
        assert ("resuming after the first" in err) == (blocks > 0 and not complete), event


def make(sources: Path, **options: Any) -> Folder:
    return Folder(str(sources / "tree"), resolution=24, **{"on_bad": "skip"} | options)


def interrupted(sources: Path, monkeypatch: pytest.MonkeyPatch, blocks: int = 3) -> Path:
    """A partial pack of some blocks; returns its folder."""

    def stops(files: Any, rule: Rule) -> Any:
        for number, block in enumerate(here(files, rule)):
            if number == blocks:
                raise KeyboardInterrupt
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(stream, "decode_all", stops)
        with pytest.raises(KeyboardInterrupt):
            make(sources).load()
    folder = make(sources).pack_folder("all")
    assert folder is not None
    return partial_folder(folder)


def cut_pixels(partial: Path) -> None:
    os.truncate(partial / "images.u8", 2 * 128 * 3 * 24 * 24 - 5)


def flip_pixel(partial: Path) -> None:
    raw = bytearray((partial / "images.u8").read_bytes())
    raw[128 * 3 * 24 * 24 + 100] ^= 1
    (partial / "images.u8").write_bytes(raw)


def tear_journal(partial: Path) -> None:
    file = partial / "journal.jsonl"
    os.truncate(file, file.stat().st_size - 9)


def other_decoder(partial: Path) -> None:
    file = partial / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"pillow"', b'"pollow"', 1))


@pytest.mark.parametrize(
    ("damage", "kept"),
    [(lambda _: None, 3), (cut_pixels, 1), (flip_pixel, 1), (tear_journal, 2), (other_decoder, 0)],
)  # fmt: skip
def test_what_a_power_cut_tears_is_made_again(
    damage: Callable[[Path], None],
    kept: int,
    sources: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    make(sources).load()
    whole = contents(cache)
    shutil.rmtree(cache)
    partial = interrupted(sources, monkeypatch)
    damage(partial)
    make(sources).load()
    assert contents(cache) == whole
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == (kept > 0)
    if kept:
        number = int(warnings[0].split("first ")[1].split()[0].replace(",", ""))
        assert kept * 128 - 7 <= number <= kept * 128  # some of them are broken


def test_what_was_begun_is_shown(
    sources: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pack.info(make(sources))["packs"] == {"all": None, "train": None}
    partial = interrupted(sources, monkeypatch)
    assert pack.info(make(sources))["packs"]["all"] == {"begun": (partial / "images.u8").stat().st_size}
    assert main.main(["data", "info", "folder", f"path={sources}/tree", "resolution=24", "on_bad=skip"]) == 0
    assert "all: incomplete, 1 MB done; 'ganlab data prepare folder' continues" in capsys.readouterr().out
    (finding,) = [f for f in doctor.prepared() if f.text.startswith("incomplete")]
    assert str(partial) in finding.fix


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs Linux's /proc")
def test_a_kill_from_outside_leaves_no_process(sources: Path, cache: Path) -> None:
    """The real thing: ``kill -9`` while processes decode."""
    load = "Lsun(sys.argv[1], 'bedroom+tower', resolution=256).load()"
    script = f"import sys; from ganlab.data.lsun import Lsun; {load}"
    command = [sys.executable, "-c", script, str(sources)]
    Lsun(str(sources), "bedroom+tower", resolution=256).load()
    whole = contents(cache)
    shutil.rmtree(cache)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(lines := list(cache.glob("datasets/.tmp-*/journal.jsonl"))) == 0 or (
        lines[0].read_bytes().count(b"\n") < 5
    ):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = children_of(process.pid)
    process.kill()
    process.wait()
    assert children, "it works in processes"
    while any(map(alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = subprocess.run(command, capture_output=True, timeout=120, text=True)
    assert again.returncode == 0
    assert "resuming after the first" in again.stderr
    assert contents(cache) == whole


def test_children_that_die() -> None:
    child = Worker()
    assert child.call(divmod, 7, 3) == (2, 1)
    with pytest.raises(ZeroDivisionError):
        child.call(divmod, 7, 0)
    with pytest.raises(ChildCrashed, match="SIGSEGV"):
        child.call(os.kill, child._process.pid, signal.SIGSEGV)
    child.close()
    other = Worker()
    with pytest.raises(EnvError, match=r"data worker: ended \(SIGKILL\); rerun the same command to resume"):
        other.call(os.kill, other._process.pid, signal.SIGKILL)
    other.close()


def test_a_child_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    child = Worker()
    child._timeout = 0.3
    with pytest.raises(EnvError, match=r"no response for 0\.3 seconds; .*GANLAB_DATA_TIMEOUT") as e:
        child.call(os.kill, child._process.pid, signal.SIGSTOP)
    assert (e.value.code, isinstance(e.value, ChildLost)) == (5, False)  # to start it again would hang again
    child.close()
    assert child._process.poll() is not None
    monkeypatch.setenv("GANLAB_DATA_TIMEOUT", "7.5")
    assert timeout() == 7.5
    for text in ("soon", "0", "nan"):
        monkeypatch.setenv("GANLAB_DATA_TIMEOUT", text)
        with pytest.raises(EnvError, match=r"GANLAB_DATA_TIMEOUT: .* is not a number of seconds"):
            timeout()


def test_a_pool_keeps_its_workers_and_replaces_a_killed_one_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    inner, deaths, seen = Worker.start, 0, list[Worker]()

    def start(self: Worker, *args: Any) -> None:
        nonlocal deaths
        seen.append(self)
        if deaths:
            deaths -= 1
            self._process.kill()
            self._process.wait()
        inner(self, *args)

    monkeypatch.setattr(Worker, "start", start)
    with WorkerPool() as pool:
        assert [pool.run(len, "abc") for _ in range(3)] == [3] * 3
        assert len(set(map(id, seen))) == 1
        with pytest.raises(ZeroDivisionError):  # it may still be at work
            pool.run(divmod, 7, 0)
        assert seen[0]._process.poll() is not None
        deaths = 1
        assert pool.run(len, "abc") == 3
        assert [r.getMessage() for r in caplog.records] == ["data worker: ended (SIGKILL); restarting it"]
        deaths = 2
        with pytest.raises(ChildLost):
            pool.run(len, "abc")
    assert all(worker._process.poll() is not None for worker in seen)


def test_the_others_do_not_keep_a_failed_preparation_waiting(sources: Path) -> None:
    """Two processes hang: the first that is given up ends both."""
    files = [Encoded(str(i), i, image(1)) for i in range(40)]
    inner, began = Worker.start, time.monotonic()

    def start(self: Worker, *args: Any) -> None:
        self._timeout = 0.5 if args[1][0].name == "0" else 60
        os.kill(self._process.pid, signal.SIGSTOP)
        inner(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_sets, "IDLE", [])
        patch.setattr(worker, "num_cores", lambda: 2)
        patch.setattr(decoding, "CHUNK_IMAGES", 10)
        patch.setattr(Worker, "start", start)
        with pytest.raises(EnvError, match=r"no response for 0\.5 seconds"):
            list(decode_all(files, Rule(8)))
    assert time.monotonic() - began < 50  # not the other's minute


def test_children_import_nothing_from_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "subprocess.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    child = Worker()
    assert child.call(len, "ab") == 2
    child.close()


@pytest.fixture
def bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """An image that crashes the process in which it is decoded, be it this one."""
    (tmp_path / "hook").mkdir()
    hook = tmp_path / "hook" / "sitecustomize.py"
    hook.write_text(
        "import os\n"
        "import ganlab.data.packing.decoding as d\n"
        "inner = d.decode\n"
        "def decode(data, *rest):\n"
        "    if data == b'bomb':\n"
        "        os.kill(os.getpid(), 11)\n"
        "    return inner(data, *rest)\n"
        "d.decode = decode\n"
    )
    monkeypatch.setattr(image_sets, "IDLE", [])  # those at work do not have it
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'hook'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    return b"bomb"


def test_an_image_that_crashes_its_decoder_is_left_out(bomb: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its process dies; the images beside it are decoded."""
    monkeypatch.setattr(decoding, "CHUNK_IMAGES", 10)
    files = [Encoded(str(i), i, bomb if i in (0, 17) else image(i)) for i in range(40)]
    others = list(here([f for f in files if f.data != bomb], Rule(8)))
    blocks = list(decode_all(files, Rule(8)))
    assert np.concatenate([b.labels for b in blocks]).tolist() == [
        i for i in range(40) if i not in (0, 13, 17)
    ]
    for field in ("labels", "images"):
        assert np.array_equal(
            *(np.concatenate([getattr(b, field) for b in some]) for some in (others, blocks))
        )
    bad = [bad for b in blocks for bad in b.bad]
    assert [name for name, _ in bad] == ["0", "13", "17"]
    assert bad[0][1] == bad[2][1] == "crashes the decoder (SIGSEGV)"
    assert [b.files for b in blocks] == [10] * 4


def test_chunks_are_full_at_a_number_of_images_or_bytes(tmp_path: Path) -> None:
    def sizes(data: Any, rule: Rule, count: int = 300) -> list[int]:
        return [len(chunk) for chunk in decoding.chunks((Encoded("", 0, data) for _ in range(count)), rule)]

    assert sizes(b"", Rule(8)) == [128, 128, 44]
    assert sizes(bytes(1 << 18), Rule(8), 9) == [4, 4, 1]
    assert sizes(Piece(tmp_path, 10, 1 << 17), Rule(8), 9) == [8, 1]
    assert sizes(Piece(tmp_path), Rule(8), 40) == [32, 8]  # of unknown size
    assert sizes(b"", Rule(512), 9) == [5, 4]  # 0.8 MB of pixels each


def test_a_lost_disk_is_no_broken_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(image(0))
    gone = [Encoded("a", 0, Piece(tmp_path / "a.jpg")), Encoded("b", 0, Piece(tmp_path / "b.jpg"))]
    with pytest.raises(DataError, match=r"b\.jpg: cannot be read \(No such file or \w+\); repair it"):
        list(decode_all(gone, Rule(8)))
