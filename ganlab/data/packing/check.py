"""Look at every file of a source as it lies, before it is packed or years later. Writes a manifest at most.

A file that is broken is seen by decoding it. One whose bits have rotted often is not: 295 of 300 JPEGs with a
flipped bit decode to other pixels. For these there is a manifest: the sha256 of each file, in the format of
``sha256sum``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.data.formats.files import open_file, progress
from ganlab.data.formats.images import (
    FORMATS,
    BadImageError,
    Rule,
    TooSmallError,
    bare,
    decode,
    printable_name,
)
from ganlab.data.formats.source import Member
from ganlab.data.packing.decoding import Encoded, chunks, content
from ganlab.data.packing.pool import WorkerPool, in_order, num_cores
from ganlab.data.packing.worker import ChildCrashed, Worker
from ganlab.errors import DataError, EnvError
from ganlab.system.files import write_atomic

LARGEST = 1 << 32  # bytes of a manifest: 30 million lines
LINE = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
BLOCK = 1 << 24


class Originals(NamedTuple):
    """Encoded images as they lie. root: what the manifest's names begin after. empty: classes without a file.

    classes: their names by label, or none. passed: what is not looked at, reason -> (how many, such as).
    """

    root: Path
    files: Iterable[Encoded]
    total: int
    rule: Rule
    classes: Sequence[str] = ()
    empty: Sequence[str] = ()
    passed: Mapping[str, tuple[int, str]] = {}


class PublishedFiles(NamedTuple):
    """Files of their authors, whose sums (md5 or sha256, hex) are known, or none if the set is another's."""

    root: Path
    files: Iterable[tuple[str, Member]]
    sums: Mapping[str, str]


class FileReport(NamedTuple):
    """One file. sha256: of its bytes, or empty if unreadable. kind: such as "JPEG RGB". reason: if bad."""

    name: str
    label: int
    sha256: str
    kind: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Report:
    """What was found. Names are relative to the root.

    notes: conversions that preparing would make. same: groups of files with the same bytes. changed, missing,
    new: against the manifest.
    """

    root: str
    files: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    classes: dict[str, int] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    passed: dict[str, tuple[int, str]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    same: list[list[str]] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    damage: str = ""  # of the archive or database as a whole, which ended the look

    @property
    def num_bad(self) -> int:
        """How many files are not what they should be."""
        return len({name for name, _ in self.bad} | {*self.changed, *self.missing}) + bool(self.damage)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(found: Originals | PublishedFiles, manifest: Path | None = None, write: bool = False) -> Report:
    """Look at every file; compare with ``manifest``, or ``write`` it. Never raises for a bad file.

    Raises DataError if the manifest is none, or one is there that would be overwritten; EnvError if it can't
    be written.
    """
    known = None
    if manifest is not None and write and os.path.lexists(manifest):
        fix = "compare with hash=verify, or remove it to start over"
        raise DataError(printable_name(str(manifest)), "already exists", fix)
    if manifest is not None and not write:
        known = read_manifest(manifest)
    report, sums = Report(str(found.root)), dict[str, str]()
    first: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    names = list(found.classes) if isinstance(found, Originals) else []
    report.classes = dict.fromkeys(names, 0)
    looks = _check_images(found) if isinstance(found, Originals) else _check_published(found)
    try:
        with closing(looks):
            for look in looks:
                name = look.name.removeprefix(f"{found.root}/")
                report.files += 1
                report.kinds.update([look.kind] if look.kind else [])
                report.notes.update(look.notes)
                if look.reason:
                    report.bad.append((name, look.reason))
                elif 0 <= look.label < len(names):
                    report.classes[names[look.label]] += 1
                if not look.sha256:
                    continue
                if manifest is not None:
                    sums[name] = look.sha256
                if (other := first.setdefault(look.sha256, name)) != name:
                    groups.setdefault(look.sha256, [other]).append(name)
    except DataError as error:
        report.damage = str(error)
    report.same = list(groups.values())
    if isinstance(found, Originals):
        report.empty, report.passed = list(found.empty), dict(found.passed)
    if known is not None:
        report.changed = [name for name in sums if name in known and known[name] != sums[name]]
        report.new = [name for name in sums if name not in known]
        there = {*sums, *(name for name, _ in report.bad)}
        report.missing = [name for name in known if name not in there]
    elif manifest is not None and not report.damage:
        write_manifest(manifest, sums)
    return report


def _check_images(found: Originals) -> Generator[FileReport, None, None]:
    lookers = _Lookers(found.rule)
    try:
        with progress("checking", found.total) as advance:
            for looks in in_order(
                lookers.look, chunks(found.files, found.rule), num_cores(), lookers.crew.stop
            ):
                advance(len(looks))
                yield from looks
    finally:
        lookers.crew.close()


def _check_published(found: PublishedFiles) -> Generator[FileReport, None, None]:
    """Read in blocks: one of STL-10's files has 2.7 GB."""
    for name, member in found.files:
        sha, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        try:
            with progress(f"checking {name}", member.size, "bytes") as advance, member.open() as file:
                while block := file.read(BLOCK):
                    sha.update(block)
                    md5.update(block)
                    advance(len(block))
        except OSError as error:
            yield FileReport(name, -1, "", reason=f"cannot be read ({error.strerror or error})")
            continue
        expected = found.sums.get(name, "")
        mine = md5.hexdigest() if len(expected) == 32 else sha.hexdigest()
        reason = f"checksum {mine}, expected {expected}" if expected not in ("", mine) else ""
        yield FileReport(name, -1, sha.hexdigest(), reason=reason)


class _Lookers:
    """Child processes that look: a file that crashes its decoder is found and costs itself only."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.crew = rule, WorkerPool(shared=1)

    def look(self, chunk: Sequence[Encoded]) -> list[FileReport]:
        def work(child: Worker) -> list[FileReport]:
            return child.call(look_at, chunk, self.rule)

        try:
            return self.crew.run(work)
        except ChildCrashed as crash:
            if len(chunk) > 1:
                return [look for file in chunk for look in self.look([file])]
            return [FileReport(chunk[0].name, chunk[0].label, "", reason=f"crashes the decoder ({crash})")]


def look_at(chunk: Sequence[Encoded], rule: Rule) -> list[FileReport]:
    """In a child."""
    return [_look(file, rule) for file in chunk]


def _look(file: Encoded, rule: Rule) -> FileReport:
    import warnings

    try:
        data = content(file)
    except BadImageError as reason:
        return FileReport(file.name, file.label, "", reason=printable_name(str(reason)))
    except OSError as error:
        return FileReport(file.name, file.label, "", reason=f"cannot be read ({error.strerror or error})")
    look = FileReport(file.name, file.label, hashlib.sha256(data).hexdigest(), _kind(data))
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of large or odd files: each is judged here
        try:
            decode(data, rule, notes.append)
        except TooSmallError:
            notes.append("too_small")
        except BadImageError as reason:
            return look._replace(reason=printable_name(str(reason)))
    return look._replace(notes=tuple(notes))


def _kind(data: bytes) -> str:
    """Format and mode by the header, such as "PNG P"."""
    from PIL import Image

    with suppress(Exception), Image.open(io.BytesIO(bare(data)), formats=FORMATS) as image:
        return f"{image.format} {image.mode}"
    return ""


# ---- the manifest: lines of sha256sum, with its escapes for odd names


def write_manifest(path: Path, sums: Mapping[str, str]) -> None:
    """One line per file, sorted by name. Raises EnvError."""
    lines = []
    for name, digest in sorted(sums.items()):
        raw = os.fsencode(name)
        safe = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
        lines.append((b"\\" if safe != raw else b"") + digest.encode() + b"  " + safe + b"\n")
    try:
        write_atomic(path, b"".join(lines))
    except EnvError as error:
        raise EnvError(*error.mistakes[0][:2], "choose another path with manifest=FILE") from None


def read_manifest(path: Path) -> dict[str, str]:
    """Name -> sha256. Raises DataError if it is missing or is none."""
    where = printable_name(str(path))
    try:
        with open_file(path) as file:
            data = file.read(LARGEST)
    except FileNotFoundError:
        raise DataError(where, "does not exist", "write one with hash=write") from None
    except OSError as error:
        raise DataError(where, f"cannot be read ({error.strerror})", "check the path") from None
    found = dict(_parsed(data.split(b"\n"), where))
    if not found:
        raise DataError(where, "lists no files", "write it with hash=write, or as sha256sum does")
    return found


def _parsed(lines: Iterable[bytes], where: str) -> Iterator[tuple[str, str]]:
    back = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if not (match := LINE.fullmatch(line)):
            what = f"line {number} is not a sha256 and a name"
            raise DataError(where, what, "write it with hash=write, or as sha256sum does")
        name = match[3]
        if match[1]:
            name = re.sub(rb"\\\\|\\n|\\r", lambda m: back[m[0]], name)
        yield os.fsdecode(name), match[2].decode()
