"""Decode a stream of image files to blocks of pixels, in order, on all cores and in bounded memory.

Images are decoded in worker processes (``worker.py``), so one that crashes the decoder is only left out.
"""

from __future__ import annotations

import errno
import math
import os
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ganlab.data.fingerprint import Labels, Pixels
from ganlab.data.formats.images import MAX_FILE, BadImageError, Rule, TooSmallError, decode
from ganlab.data.packing.worker import run_chunks
from ganlab.errors import DataError, printable_name
from ganlab.system.files import open_regular

CHUNK_IMAGES, CHUNK_BYTES = 128, 1 << 22  # a chunk is full at either, of pixels,
CHUNK_READ = 1 << 20  # or with so many bytes of files: small ones, for all processes to end at one time
UNKNOWN = 1 << 15  # taken for the bytes of a file whose size nobody looked up


class Piece(NamedTuple):
    """``size`` bytes of a file from ``start`` on (-1: the whole file), read by the decoding process."""

    path: Path
    start: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Read the bytes. Raises BadImageError if too large, truncated or forbidden; OSError from disk."""
        try:
            with open(self.path, "rb", opener=open_regular) as file:
                size = os.fstat(file.fileno()).st_size if self.size < 0 else self.size
                if size > MAX_FILE:
                    raise BadImageError(f"{size} bytes, more than {MAX_FILE}")
                file.seek(self.start)
                data = file.read(size)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):  # a lost disk is not a broken image
                raise
            raise BadImageError(f"cannot be read ({error.strerror})") from None
        if len(data) != size:
            raise BadImageError(f"{len(data)} bytes, expected {size}")
        return data


class Encoded(NamedTuple):
    """An image file: ``name`` for messages, ``label`` (-1: none), ``data`` (bytes, location or error).

    mark: JSON position in the source from which to resume (``writer.Writer.position``).
    """

    name: str
    label: int
    data: bytes | Piece | BadImageError
    mark: Any = None


class Decoded(NamedTuple):
    """A block of images, uint8 (n, C, H, W), with int64 (n,) labels and counts by ``NOTES``.

    bad: (name, reason) of each broken image, absent from ``images`` and ``labels``. files: number of input
    files. mark: that of the last file.
    """

    images: Pixels
    labels: Labels
    notes: Counter[str]
    bad: list[tuple[str, str]]
    files: int
    mark: Any


def decode_all(files: Iterable[Encoded], rule: Rule) -> Generator[Decoded, None, None]:
    """Decode a stream of files in order, a process per core, two chunks each of some 128 files or 1 MB held.

    Raises DataError if a file cannot be read (a disk failure), EnvError if workers die.
    """
    try:
        with closing(run_chunks(decode_chunk, chunks(files, rule), rule)) as parts:
            for blocks in parts:  # several, of a file each, where one crashed the decoder
                images, labels, notes, bad, number, _ = zip(*blocks, strict=True)
                yield Decoded(
                    np.concatenate(images),
                    np.concatenate(labels),
                    sum(notes, Counter()),
                    [one for some in bad for one in some],
                    sum(number),
                    blocks[-1].mark,
                )
    except OSError as error:
        if error.filename is None:
            raise
        what, fix = f"cannot be read ({error.strerror})", "repair it; rerun the same command to resume"
        raise DataError(Path(error.filename), what, fix) from None


def decode_chunk(chunk: Sequence[Encoded], rule: Rule) -> Decoded:
    """Decode a few files in this process. Raises OSError from the disk or network."""
    images = np.empty((len(chunk), *rule.shape), np.uint8)
    labels: list[int] = []
    notes: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    with warnings.catch_warnings():
        # Pillow warns of large or odd files; each is judged here and counted instead.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for file in chunk:
            image_notes: list[str] = []
            try:
                images[len(labels)] = decode(content(file), rule, image_notes.append)
            except TooSmallError:
                notes["too_small"] += 1
            except BadImageError as reason:
                bad.append((printable_name(file.name), printable_name(reason)))
            else:
                notes.update(image_notes)
                labels.append(file.label)
    kept = images[: len(labels)]
    return Decoded(kept, np.array(labels, np.int64), notes, bad, len(chunk), chunk[-1].mark)


def decoder_versions() -> dict[str, str | None]:
    """Versions of the libraries that decoded pixels may depend on."""
    import PIL
    from PIL import features

    versions = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "zlib")}
    return {"pillow": PIL.__version__, **versions}


def chunks(files: Iterable[Encoded], rule: Rule) -> Iterator[list[Encoded]]:
    """Split the stream into chunks of work for one process."""
    limit = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // math.prod(rule.shape)))
    chunk: list[Encoded] = []
    held = 0
    for file in files:
        chunk.append(file)
        held += _size(file)
        if len(chunk) >= limit or held >= CHUNK_READ:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _size(file: Encoded) -> int:
    if isinstance(file.data, Piece):
        return UNKNOWN if file.data.size < 0 else file.data.size
    return len(file.data) if isinstance(file.data, bytes) else 0


def content(file: Encoded) -> bytes:
    """Read the bytes of a file. Raises BadImageError, or OSError on a disk or network error."""
    if isinstance(file.data, BadImageError):
        raise file.data
    if isinstance(file.data, bytes):
        return file.data
    return file.data.read()
