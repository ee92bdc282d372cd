"""Files stream out of folders, zips and tars; damage is one DataError; nothing hostile is touched."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import image_sets
import pytest

from ganlab.data.formats import archive, tar
from ganlab.data.formats import source as sources
from ganlab.data.formats.archive import open_source
from ganlab.data.formats.images import BadImageError
from ganlab.errors import DataError

FILES = {f"train/{c}/{i}.jpg": os.urandom(900 + 100 * i) for c in ("cat", "dog") for i in range(6)}
COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def tar_bytes(files: Iterable[tuple[str, bytes]], extra: Iterable[tarfile.TarInfo] = ()) -> bytes:
    return image_sets.tar_bytes([*files, *extra])


def zip_bytes(files: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return out.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def contents(path: Path) -> dict[str, bytes]:
    return {member.name: member.read() for member in open_source(path).members()}


@pytest.mark.parametrize("ending", COMPRESSED)
def test_tars(tmp_path: Path, ending: str) -> None:
    path = put(tmp_path / f"set.tar{ending}", COMPRESSED[ending](tar_bytes(FILES.items())))
    assert contents(path) == FILES
    assert contents(path.rename(tmp_path / "without_ending")) == FILES  # the content decides, not the name


def test_zip_and_folder(tmp_path: Path) -> None:
    assert contents(put(tmp_path / "set.zip", zip_bytes(FILES.items()))) == FILES
    assert contents(put(tmp_path / "stored.zip", zip_bytes(FILES.items(), zipfile.ZIP_STORED))) == FILES
    for name, data in FILES.items():
        put(tmp_path / "folder" / name, data)
    assert contents(tmp_path / "folder") == FILES
    assert list(contents(tmp_path / "folder")) == sorted(FILES)
    backslashes = {name.replace("/", "\\"): data for name, data in FILES.items()}
    assert contents(put(tmp_path / "windows.zip", zip_bytes(backslashes.items()))) == FILES


@pytest.mark.parametrize("ending", COMPRESSED)
def test_a_cut_tar_is_damaged_at_every_length(tmp_path: Path, ending: str) -> None:
    """Plain ``tarfile`` passes over many of these cuts in silence."""
    whole = COMPRESSED[ending](tar_bytes(FILES.items()).rstrip(b"\0") + bytes(1024))
    path = tmp_path / f"cut.tar{ending}"
    plain = not ending
    lengths = [*range(512, len(whole) - 1024, 1024 if plain else 1999), len(whole) - 1030]
    for length in lengths:
        put(path, whole[:length])
        with pytest.raises(
            DataError, match=r"cut\.tar.*: damaged archive \(.+\); download or create it again"
        ):
            contents(path)


@pytest.mark.parametrize("ending", [".gz", ".xz", ".bz2"])
def test_flipped_bits_in_a_compressed_tar(tmp_path: Path, ending: str) -> None:
    whole = COMPRESSED[ending](tar_bytes(FILES.items()))
    damaged = 0
    for at in range(30, len(whole) - 8, len(whole) // 8):
        rotten = bytearray(whole)
        rotten[at] ^= 0x10
        try:
            assert contents(put(tmp_path / "r", bytes(rotten))) == FILES
        except DataError:
            damaged += 1
    assert damaged >= 7


def test_a_damaged_zip(tmp_path: Path) -> None:
    whole = zip_bytes(FILES.items(), zipfile.ZIP_STORED)
    for length in (40, len(whole) // 2, len(whole) - 30):
        with pytest.raises(DataError, match="damaged archive"):
            contents(put(tmp_path / "cut.zip", whole[:length]))
    rotten = bytearray(whole)
    rotten[whole.index(FILES["train/cat/3.jpg"]) + 50] ^= 1
    source = open_source(put(tmp_path / "rotten.zip", bytes(rotten)))
    good = 0
    for member in source.members():  # only the file itself is lost
        if member.name == "train/cat/3.jpg":
            with pytest.raises(BadImageError, match="CRC"):
                member.read()
        else:
            good += member.read() == FILES[member.name]
    assert good == len(FILES) - 1


def test_an_encrypted_zip(tmp_path: Path) -> None:
    whole = bytearray(zip_bytes([("a/1.png", b"secret")]))
    whole[6] |= 1  # the flag in the file's header
    whole[whole.index(b"PK\x01\x02") + 8] |= 1  # and in the directory
    (member,) = open_source(put(tmp_path / "e.zip", bytes(whole))).members()
    with pytest.raises(BadImageError, match="encrypted"):
        member.read()


def hostile_tar(path: Path) -> Path:
    def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode = kind, link, 0o6777
        return info

    extra = [
        entry("../../escape.jpg"),
        entry("/etc/absolute.jpg"),
        entry("cat/../../up.jpg"),
        entry("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        entry("hard.jpg", tarfile.LNKTYPE, "train/cat/0.jpg"),
        entry("fifo.jpg", tarfile.FIFOTYPE),
        entry("dev.jpg", tarfile.CHRTYPE),
        entry(".hidden/1.jpg"),
        entry("__MACOSX/._1.jpg"),
    ]
    return put(path, tar_bytes(FILES.items(), extra))


def test_hostile_entries_are_counted_and_never_touched(tmp_path: Path) -> None:
    hostile = open_source(hostile_tar(tmp_path / "in" / "hostile.tar"))
    before = sorted(p for p in tmp_path.rglob("*"))
    read = {m.name: m.content() if m.name == "link.jpg" else m.read() for m in hostile.members()}
    assert isinstance(outside := read.pop("link.jpg"), BadImageError)
    assert str(outside) == "broken link"
    assert read == FILES | {"hard.jpg": FILES["train/cat/0.jpg"]}
    assert hostile.ignored == {"unsafe name": 3, "special file": 2, "hidden": 2}
    assert sorted(p for p in tmp_path.rglob("*")) == before


def test_a_zip_with_links_and_climbing_names(tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
        file.writestr("../up.jpg", b"")
        file.writestr("..\\up.jpg", b"")
        file.writestr("ok/1.jpg", b"1")
    climbing = open_source(put(tmp_path / "h.zip", out.getvalue()))
    assert [(m.name, m.size) for m in climbing.members()] == [("link.jpg", 0), ("ok/1.jpg", 1)]
    assert climbing.ignored == {"unsafe name": 2}


def test_special_files_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put(root / "cat" / "1.jpg", b"1")
    (root / "cat" / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(root / "cat" / "fifo.jpg")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(root / "s.jpg"))
        source = open_source(root)
        assert [(m.name, m.size) for m in source.members()] == [("cat/1.jpg", 1), ("cat/zero.jpg", 0)]
    assert source.ignored == {"special file": 2}


LINKS = {  # link: what it leads to, and what is then seen through it
    "again.jpg": ("cat/1.jpg", {"": "cat/1.jpg"}),
    "hop.jpg": ("again.jpg", {"": "cat/1.jpg"}),
    "dog": ("cat", {"/1.jpg": "cat/1.jpg", "/in/2.jpg": "cat/in/2.jpg"}),
    "through": ("dog/in", {"/2.jpg": "cat/in/2.jpg"}),
    "store": (".store", {"/3.jpg": ".store/3.jpg"}),
    "cat/in/up": ("../..", {}),
    "cat/self": (".", {}),
}


def as_links(place: Path, kind: str, files: dict[str, bytes], links: dict[str, str]) -> Path:
    """A folder, zip or tar of files and symbolic links."""
    if kind == "folder":
        for name, data in files.items():
            put(place / name, data)
        for link, target in links.items():
            (place / link).symlink_to(target)
        return place
    if kind == "zip":
        with zipfile.ZipFile(place, "w") as file:
            for link, target in links.items():
                info = zipfile.ZipInfo(link)
                info.create_system, info.external_attr = 3, 0o120777 << 16
                file.writestr(info, target)
            for name, data in files.items():
                file.writestr(name, data)
        return place
    infos = [tarfile.TarInfo(f"./{link}") for link in links]
    for info in infos:
        info.type, info.linkname = tarfile.SYMTYPE, links[info.name[2:]]
    whole = tar_bytes([(f"./{name}", data) for name, data in files.items()], infos)
    return put(place, COMPRESSED[kind.removeprefix("tar")](whole))


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_links_are_followed(tmp_path: Path, kind: str) -> None:
    files = {"cat/1.jpg": b"1", "cat/in/2.jpg": b"22", ".store/3.jpg": b"333"}
    path = as_links(tmp_path / "set", kind, files, {link: target for link, (target, _) in LINKS.items()})
    seen = {link + end: files[name] for link, (_, ends) in LINKS.items() for end, name in ends.items()}
    source = open_source(path)
    own = {name: data for name, data in files.items() if not name.startswith(".")}
    assert {m.name: m.read() for m in source.members()} == seen | own
    assert source.ignored["link back to a folder above it"] >= 2
    assert {"cat", "cat/in", "dog", "dog/in", "store"} <= source.folders
    assert {m.name for m in source.members()} >= seen.keys()  # and again


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
@pytest.mark.parametrize("links", ["dog gone", "dog /nowhere/dog", "dog dog", "a b b a"])
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, kind: str, links: str) -> None:
    words = links.split()
    path = as_links(
        tmp_path / "set", kind, {"cat/1.jpg": b"1"}, dict(zip(words[::2], words[1::2], strict=True))
    )
    with pytest.raises(DataError, match=r"set/(dog|a|b): is a broken link; repair or rem") as error:
        contents(path)
    assert error.value.code == 3
    hidden = as_links(tmp_path / "hidden", kind, {"cat/1.jpg": b"1"}, {f".{words[0]}": words[1]})
    assert contents(hidden) == {"cat/1.jpg": b"1"}


def test_links_do_not_multiply_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each folder has two links to the next one: the last is seen under 2^20 names."""
    files = {f"{i}/x.jpg": b"1" for i in range(20)}
    links = {f"{i}/{which}": f"../{i + 1}" for i in range(19) for which in "ab"}
    monkeypatch.setattr(archive, "MAX_ZIP", 500)
    monkeypatch.setattr(sources, "MAX_ENTRIES", 500)
    for kind in ("tar", "zip", "folder"):
        with pytest.raises(DataError, match="more than 500 entries"):
            contents(as_links(tmp_path / kind, kind, files, links))
    words = {f"l{i}": f"l{i + 1}/l{i + 1}" for i in range(60)}  # to follow each anew would be 2^60 steps
    with pytest.raises(DataError, match="broken link"):
        contents(as_links(tmp_path / "words.tar", "tar", {"cat/1.jpg": b""}, words))


@pytest.mark.parametrize("kind", ["", ".gz", "zip"])
def test_of_equal_names_the_last_counts(tmp_path: Path, kind: str) -> None:
    twice = [("cat/1.jpg", b"old"), ("cat/2.jpg", b"2"), ("./cat/1.jpg", b"newer"), ("cat//1.jpg", b"last")]
    whole = zip_bytes(twice) if kind == "zip" else COMPRESSED[kind](tar_bytes(twice))
    source = open_source(put(tmp_path / "twice", whole))
    for _ in range(2):
        assert {m.name: m.read() for m in source.members()} == {"cat/1.jpg": b"last", "cat/2.jpg": b"2"}
    assert source.ignored == {"older file of the same name": 2}


def test_names_of_zips(tmp_path: Path) -> None:
    """UTF-8 that is not marked as such (macOS), code page 437 (DOS), and a false mark."""
    marked = zip_bytes([("caf\u00e9.jpg", b"1")])
    for info in (0, 1):
        at = marked.index((b"PK\x03\x04", b"PK\x01\x02")[info]) + (6, 8)[info]
        marked = marked[: at + 1] + bytes([marked[at + 1] & ~8]) + marked[at + 2 :]
    assert contents(put(tmp_path / "mac.zip", marked)) == {"caf\u00e9.jpg": b"1"}
    dos = marked.replace("\u00e9".encode(), b"\x82\xa0")
    assert contents(put(tmp_path / "dos.zip", dos)) == {"caf\u00e9\u00e1.jpg": b"1"}
    false = zip_bytes([("caf\u00e9.jpg", b"1")]).replace("\u00e9".encode(), b"\x82\xa0")
    with pytest.raises(DataError, match=r"f\.zip: .*marked as UTF-8 but is not: caf"):
        contents(put(tmp_path / "f.zip", false))


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FREE_BYTES", 1 << 16)
    zeros = [(f"{i}.jpg", bytes(1 << 18)) for i in range(8)]
    bomb = gzip.compress(tar_bytes(zeros), 9)
    with pytest.raises(DataError, match=r"damaged archive .* beyond"):
        contents(put(tmp_path / "bomb.tar.gz", bomb))
    with pytest.raises(DataError, match=r"damaged archive .* beyond"):
        contents(put(tmp_path / "bomb.zip", zip_bytes(zeros)))
    header = tarfile.TarInfo("a.jpg")
    header.size = 1 << 40
    source = open_source(put(tmp_path / "huge.tar", header.tobuf() + bytes(2048)))
    with pytest.raises((DataError, BadImageError)):
        [member.read() for member in source.members()]
    pax = tarfile.TarInfo("p")
    pax.type, pax.size = tarfile.XHDTYPE, 1 << 34
    with pytest.raises(DataError, match="damaged archive"):
        contents(put(tmp_path / "pax.tar", pax.tobuf() + bytes(2048)))
    monkeypatch.setattr(sources, "MAX_ENTRIES", 5)
    with pytest.raises(DataError, match="more than 5 entries"):
        contents(put(tmp_path / "many.tar", tar_bytes(FILES.items())))


def test_a_zip_of_too_many_entries_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = zip_bytes((f"{i}.jpg", b"") for i in range(300))
    before = put(tmp_path / "sfx.zip", plain)  # a self-extracting archive begins with a program
    before.write_bytes(plain[:4] + bytes(1000) + plain)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 100)  # beyond, the directory's end is the 64-bit one
    large = put(tmp_path / "64.zip", zip_bytes((f"{i}.jpg", b"") for i in range(300)))
    assert b"PK\x06\x06" in large.read_bytes()
    for path in (before, large):
        assert len(contents(path)) == 300
        with monkeypatch.context() as patch:
            patch.setattr(archive, "MAX_ZIP", 200)
            with pytest.raises(DataError, match=r"\.zip: more than 200 entries"):
                contents(path)
            patch.setattr(archive, "MAX_DIRECTORY", 10_000)  # before any entry is kept
            with pytest.raises(DataError, match=r"damaged archive \(a directory of \d+ bytes\)"):
                contents(path)


def test_memory_does_not_grow_with_the_entries(tmp_path: Path) -> None:
    path = put(tmp_path / "many.tar", tar_bytes((f"{i}.jpg", b"") for i in range(500)))
    with tar.open_tar(path, 1 << 30) as file:
        assert sum(1 for _ in tar.headers(file)) == 500
        assert len(file.members) <= 1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "empty"),
        (b"\x89HDF\r\n\x1a\n" + bytes(600), "an HDF5 file"),
        (b"  <!DOCTYPE html><html>", "an HTML or XML page"),
    ],
)
def test_what_is_no_archive_is_named(tmp_path: Path, data: bytes, kind: str) -> None:
    path = put(tmp_path / "x.tar.gz", data)
    with pytest.raises(
        DataError, match=rf"^dataset\.path: .*x\.tar\.gz is not a folder, zip or tar \(it is {kind}"
    ):
        open_source(path)


@pytest.mark.parametrize("room", [1 << 27, 20_000])
def test_a_small_tar_is_unpacked_once(tmp_path: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "KEPT_BYTES", room)
    opened = []
    inner = archive.open_tar
    monkeypatch.setattr(archive, "open_tar", lambda *words: opened.append(words) or inner(*words))
    link = tarfile.TarInfo("hard.jpg")
    link.type, link.linkname = tarfile.LNKTYPE, "train/cat/0.jpg"
    whole = tar_bytes([*FILES.items(), (".hidden", b"")], [link])
    source = open_source(put(tmp_path / "set.tar.xz", lzma.compress(whole)))
    walks = [({m.name: m.read() for m in source.members()}, dict(source.ignored)) for _ in range(2)]
    assert walks[0] == walks[1] == (FILES | {"hard.jpg": FILES["train/cat/0.jpg"]}, {"hidden": 1})
    assert len(opened) == (1 if room > 20_000 else 3)  # its names, and two walks
