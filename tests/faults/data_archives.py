"""Hostile archives: nothing outside the cache is written, no memory is exhausted, what is sound is read."""

from __future__ import annotations

import gzip
import io
import os
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ganlab.data.formats import archive, source

from .base import Case, Done, Figure, Forked, one_line

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MEMORY = 300e6  # bytes that the command may grow by


def photo(seed: int) -> bytes:
    """A smooth random color image as a JPEG."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


def photos() -> dict[str, bytes]:
    """Six images of each of two classes by path."""
    return {f"{c}/{i}.jpg": photo(100 * k + i) for k, c in enumerate(("cat", "dog")) for i in range(6)}


def tar_bytes(files: Mapping[str, bytes], add: Callable[[tarfile.TarFile], None] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            entry(name, body=data)(tar)
        if add:
            add(tar)
    return out.getvalue()


def zip_bytes(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in files.items():
            file.writestr(name, data)
    return out.getvalue()


def entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o644, size: int = 0,
          body: bytes = b"") -> Callable[[tarfile.TarFile], None]:  # fmt: skip
    def add(file: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.mode, info.size = kind, link, mode, size or len(body)
        file.addfile(info, io.BytesIO(body) if body else None)

    return add


def every(*adds: Callable[[tarfile.TarFile], None]) -> Callable[[tarfile.TarFile], None]:
    def add(file: tarfile.TarFile) -> None:
        for one in adds:
            one(file)

    return add


def in_zip(name: str, body: bytes = b"", mode: int = 0) -> bytes:
    out = io.BytesIO(zip_bytes(photos()))
    with zipfile.ZipFile(out, "a") as file:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        file.writestr(info, body)
    return out.getvalue()


def with_tar(*adds: Callable[[tarfile.TarFile], None]) -> Callable[[], bytes]:
    return lambda: tar_bytes(photos(), every(*adds))


def many(n: int) -> bytes:
    """A zip whose directory has ``n`` entries, by hand: the module takes minutes."""
    name = b"x.jpg"
    local = struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0) + name
    one = (
        struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), 0, 0, 0, 0, 0, 0
        )
        + name
    )
    directory = one * n
    at = len(local)
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, n, n, len(directory), at)
    locator = struct.pack("<IIQI", 0x07064B50, 0, at + len(directory), 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return local + directory + end64 + locator + end


def overlapping() -> bytes:
    """A zip whose 2,000 entries are all the same 10 MB."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("0.jpg", bytes(10 << 20))
        first = file.infolist()[0]
        for i in range(1, 2000):
            info = zipfile.ZipInfo(f"{i}.jpg")
            for field in ("compress_type", "CRC", "compress_size", "file_size", "header_offset", "flag_bits"):
                setattr(info, field, getattr(first, field))
            file.filelist.append(info)
            file.NameToInfo[info.filename] = info
    return out.getvalue()


PHOTO = photo(5)
READ = "read"  # what is sound is packed; else a pattern of the one line
NOWHERE = "broken link"
ATTACKS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "tar: ../": ("a.tar", with_tar(entry("../../escape.jpg", body=PHOTO)), READ),
    "tar: absolute": ("a.tar", with_tar(entry("/{}/escape.jpg", body=PHOTO)), READ),
    "tar: ../ in the middle": ("a.tar", with_tar(entry("cat/../../../escape.jpg", body=PHOTO)), READ),
    "tar: backslashes": ("a.tar", with_tar(entry("..\\..\\escape.jpg", body=PHOTO)), READ),
    "tar: link, then through it": (
        "a.tar",
        with_tar(entry("cat/o", tarfile.SYMTYPE, "../.."), entry("cat/o/escape.jpg", body=PHOTO)),
        READ,
    ),
    "tar: link to a secret": ("a.tar", with_tar(entry("cat/s.jpg", tarfile.SYMTYPE, "/etc/passwd")), NOWHERE),
    "tar: hard link": ("a.tar", with_tar(entry("cat/h.jpg", tarfile.LNKTYPE, "/etc/passwd")), NOWHERE),
    "tar: device": ("a.tar", with_tar(entry("cat/d.jpg", tarfile.CHRTYPE)), READ),
    "tar: pipe": ("a.tar", with_tar(entry("cat/p.jpg", tarfile.FIFOTYPE)), READ),
    "tar: setuid": ("a.tar", with_tar(entry("cat/u.jpg", mode=0o6777, body=PHOTO)), READ),
    "tar: case clash": ("a.tar", with_tar(entry("CAT/0.JPG", body=PHOTO)), READ),
    "tar: the same name twice": ("a.tar", with_tar(entry("cat/0.jpg", body=PHOTO)), READ),
    "tar: control characters": ("a.tar", with_tar(entry("cat/\x1b[2J\n.jpg", body=PHOTO)), READ),
    "tar: a size of 2^40": ("a.tar", with_tar(entry("cat/x.jpg", size=1 << 40)), "damaged|beyond|bytes"),
    "tar: a pax header of 2^34": (
        "a.tar", with_tar(entry("p", tarfile.XHDTYPE, size=1 << 34)), "damaged archive"
    ),
    "tar.gz: a bomb": (
        "a.tar.gz",
        lambda: gzip.compress(tar_bytes({f"{i}.jpg": bytes(1 << 20) for i in range(64)})),
        "beyond",
    ),
    "tar: too many entries": (
        "a.tar", lambda: tar_bytes({f"{i}.jpg": b"" for i in range(3000)}), "more than 2000 entries"
    ),
    "zip: ../": ("a.zip", lambda: in_zip("../../escape.jpg", PHOTO), READ),
    "zip: absolute": ("a.zip", lambda: in_zip("/tmp/escape.jpg", PHOTO), READ),
    "zip: backslashes": ("a.zip", lambda: in_zip("..\\..\\escape.jpg", PHOTO), READ),
    "zip: link": ("a.zip", lambda: in_zip("cat/l.jpg", b"/etc/passwd", 0o120777), NOWHERE),
    "zip: device": ("a.zip", lambda: in_zip("cat/d.jpg", b"", 0o020666), READ),
    "zip: setuid": ("a.zip", lambda: in_zip("cat/u.jpg", PHOTO, 0o106777), READ),
    "zip: case clash": ("a.zip", lambda: in_zip("CAT/0.JPG", PHOTO), READ),
    "zip: a bomb by its ratio": (
        "a.zip", lambda: zip_bytes({f"{i}.jpg": bytes(1 << 20) for i in range(64)}), "beyond"
    ),
    "zip: overlapping entries": ("a.zip", overlapping, "beyond"),
    "zip: 10^6 entries": ("a.zip", lambda: many(1_000_000), "more than 2000 entries"),
}  # fmt: skip


def attack(which: str) -> Callable[[Path], None]:
    def check(place: Path) -> None:
        name, make, wanted = ATTACKS[which]
        box = place / "deep" / "box"
        box.mkdir(parents=True)
        (box / name).write_bytes(make())
        before = _files(place)
        written = place / "written"

        def watched() -> None:
            import resource

            archive.FREE_BYTES = 1 << 24  # a bomb of some MB is as good as one of some TB
            source.MAX_ENTRIES = archive.MAX_ZIP = 2000
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + int(MEMORY), used + int(MEMORY)))
            fd = os.open(written, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

            def audit(event: str, args: tuple[Any, ...]) -> None:
                if event == "open" and isinstance(args[2], int) and args[2] & WRITES and args[0]:
                    os.write(fd, f"{args[0]!s}\n".encode())
                elif event in ("os.rename", "os.link", "os.symlink", "os.mkdir", "os.chmod", "os.chown"):
                    os.write(
                        fd, f"{args[1] if 'os.re' in event or 'link' in event else args[0]!s}\n".encode()
                    )

            sys.addaudithook(audit)

        env = {"GANLAB_CACHE": str(place / "cache"), "GANLAB_OFFLINE": "1"}
        words = ("data", "prepare", "folder", f"path={box / name}", "resolution=8")
        done = Forked(*words, cwd=place, env=env, before=watched).wait(90)
        _judge(done, wanted)
        touched = [line for line in written.read_text().splitlines() if not _allowed(line, place)]
        written.unlink()
        assert not touched, f"wrote {touched[:3]}"
        grown = {p for p in _files(place) if not p.startswith("cache")} - before
        assert not grown, f"escaped: {sorted(grown)[:3]}"
        assert not Path("/tmp/escape.jpg").exists()

    return check


def _judge(done: Done, wanted: str) -> None:
    if wanted == READ:
        assert done.code == 0, done.err
        assert "images" in done.out, done.out
    else:
        one_line(done, 3, wanted)


def _allowed(path: str, place: Path) -> bool:
    return path.startswith(str(place / "cache")) or path in (os.devnull, "None") or path.isdecimal()


def _files(place: Path) -> set[str]:
    return {str(p.relative_to(place)) for p in place.rglob("*")}


def cases() -> list[Case]:
    return [Case(name, attack(name)) for name in ATTACKS]


FIGURES = [Figure("archives", "Hostile archives: nothing outside the cache is written", cases)]
