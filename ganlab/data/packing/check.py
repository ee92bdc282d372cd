"""Check every source file of a dataset: decode it, and optionally compare its sha256 with a manifest.

Decoding finds broken files but rarely bit rot: 295 of 300 JPEGs with a flipped bit decode without error, to
other pixels. Hence the manifest: the sha256 of each file, in the format of ``sha256sum``.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.data.formats.files import progress
from ganlab.data.formats.images import FORMATS, BadImageError, Rule, TooSmallError, bare, decode
from ganlab.data.formats.source import Member
from ganlab.data.packing.decoding import Encoded, chunks, content
from ganlab.data.packing.worker import run_chunks
from ganlab.errors import DataError, EnvError, printable_name
from ganlab.system.files import read_regular, write_atomic

MAX_MANIFEST = 1 << 32  # bytes of a manifest: 30 million lines
LINE = re.compile(rb"(\\?)([0-9a-f]{64}) [ *](.+)", re.DOTALL)
BLOCK = 1 << 24


class Originals(NamedTuple):
    """Encoded source images. root: folder that manifest names are relative to. empty: classes without files.

    classes: names by label, or none. passed: ignored files, reason -> (count, example). facts: entries of a
    pack's manifest.
    """

    root: Path
    files: Iterable[Encoded]
    total: int
    rule: Rule
    classes: Sequence[str] = ()
    empty: Sequence[str] = ()
    passed: Mapping[str, tuple[int, str]] = {}
    facts: Mapping[str, Any] = {}


class PublishedFiles(NamedTuple):
    """A dataset's original files with their published checksums (md5 or sha256, hex), if any."""

    root: Path
    files: Iterable[tuple[str, Member]]
    sums: Mapping[str, str]


class FileReport(NamedTuple):
    """Result for one file. sha256: "" if unreadable. kind: such as "JPEG RGB". reason: "" unless bad."""

    name: str
    label: int
    sha256: str
    kind: str = ""
    notes: tuple[str, ...] = ()
    reason: str = ""


@dataclass
class Report:
    """Result for a dataset; file names are relative to ``root``.

    notes: conversions that packing would make. same: groups of identical files. changed, missing, new:
    differences from the manifest.
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
    damage: str = ""  # of the whole archive or database; ends the check

    @property
    def num_bad(self) -> int:
        """Number of files that are broken, changed or missing; a damaged archive counts as one."""
        return len({name for name, _ in self.bad} | {*self.changed, *self.missing}) + bool(self.damage)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check(source: Originals | PublishedFiles, manifest: Path | None = None, write: bool = False) -> Report:
    """Check every file; compare with ``manifest``, or ``write`` it. Bad files do not raise.

    Raises DataError if the manifest is invalid or would be overwritten; EnvError if it cannot be written.
    """
    expected_sums = None
    if manifest is not None and write and os.path.lexists(manifest):
        fix = "compare with hash=verify, or remove it to start over"
        raise DataError(manifest, "already exists", fix)
    if manifest is not None and not write:
        expected_sums = read_manifest(manifest)
    report, sums = Report(str(source.root)), dict[str, str]()
    first: dict[str, str] = {}
    groups: dict[str, list[str]] = {}
    names = list(source.classes) if isinstance(source, Originals) else []
    report.classes = dict.fromkeys(names, 0)
    files = _check_images(source) if isinstance(source, Originals) else _check_published(source)
    try:
        with closing(files):
            for file in files:
                name = file.name.removeprefix(f"{source.root}/")
                report.files += 1
                report.kinds.update([file.kind] if file.kind else [])
                report.notes.update(file.notes)
                if file.reason:
                    report.bad.append((name, file.reason))
                elif 0 <= file.label < len(names):
                    report.classes[names[file.label]] += 1
                if not file.sha256:
                    continue
                if manifest is not None:
                    sums[name] = file.sha256
                if (other := first.setdefault(file.sha256, name)) != name:
                    groups.setdefault(file.sha256, [other]).append(name)
    except DataError as error:
        report.damage = str(error)
    report.same = list(groups.values())
    if isinstance(source, Originals):
        report.empty, report.passed = list(source.empty), dict(source.passed)
    if expected_sums is not None:
        report.changed = [
            name for name in sums if name in expected_sums and expected_sums[name] != sums[name]
        ]
        report.new = [name for name in sums if name not in expected_sums]
        present = {*sums, *(name for name, _ in report.bad)}
        report.missing = [name for name in expected_sums if name not in present]
    elif manifest is not None and not report.damage:
        write_manifest(manifest, sums)
    return report


def _check_images(source: Originals) -> Generator[FileReport, None, None]:
    with (
        progress("checking", source.total) as advance,
        closing(run_chunks(check_chunk, chunks(source.files, source.rule), source.rule)) as parts,
    ):
        for reports in itertools.chain.from_iterable(parts):
            advance(len(reports))
            yield from reports


def _check_published(source: PublishedFiles) -> Generator[FileReport, None, None]:
    """Read in blocks: one of STL-10's files has 2.7 GB."""
    for name, member in source.files:
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
        expected = source.sums.get(name, "")
        actual = md5.hexdigest() if len(expected) == 32 else sha.hexdigest()
        reason = f"checksum {actual}, expected {expected}" if expected not in ("", actual) else ""
        yield FileReport(name, -1, sha.hexdigest(), reason=reason)


def check_chunk(chunk: Sequence[Encoded], rule: Rule) -> list[FileReport]:
    """Check a chunk of files; runs in a worker process."""
    return [_check_file(file, rule) for file in chunk]


def _check_file(file: Encoded, rule: Rule) -> FileReport:
    import warnings

    try:
        data = content(file)
    except BadImageError as reason:
        return FileReport(file.name, file.label, "", reason=printable_name(reason))
    except OSError as error:
        return FileReport(file.name, file.label, "", reason=f"cannot be read ({error.strerror or error})")
    report = FileReport(file.name, file.label, hashlib.sha256(data).hexdigest(), _kind(data))
    notes: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about large or odd files
        try:
            decode(data, rule, notes.append)
        except TooSmallError:
            notes.append("too_small")
        except BadImageError as reason:
            return report._replace(reason=printable_name(reason))
    return report._replace(notes=tuple(notes))


def _kind(data: bytes) -> str:
    """Format and mode from the header, such as "PNG P"."""
    from PIL import Image

    with suppress(Exception), Image.open(io.BytesIO(bare(data)), formats=FORMATS) as image:
        return f"{image.format} {image.mode}"
    return ""


# ---- the manifest, in the format of sha256sum including its escapes


def write_manifest(path: Path, sums: Mapping[str, str]) -> None:
    """Write one line per file, sorted by name. Raises EnvError."""
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
    """Read a manifest as name -> sha256. Raises DataError if it is missing or invalid."""
    where = printable_name(path)
    try:
        data = read_regular(path, MAX_MANIFEST)
    except FileNotFoundError:
        raise DataError(where, "does not exist", "write one with hash=write") from None
    except OSError as error:
        raise DataError(where, f"cannot be read ({error.strerror})", "check the path") from None
    sums = dict(_parsed(data.split(b"\n"), where))
    if not sums:
        raise DataError(where, "lists no files", "write it with hash=write, or as sha256sum does")
    return sums


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
