"""A stream of image files to blocks of pixels, in order, on every core and in bounded memory.

Decoding runs in processes. Two threads are as fast as two processes (``benchmarks/data_preparation``), but
all threads share one interpreter lock, held by the work around the decoder (of small images, most of it); and
an image that crashes a decoder would take the whole program with it.
"""

from __future__ import annotations

import errno
import itertools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ganlab.data.base import Labels, Pixels
from ganlab.data.child import Child, ChildCrashed
from ganlab.data.images import MAX_FILE, BadImageError, Rule, TooSmallError, decode, shown
from ganlab.errors import DataError

T = TypeVar("T")
U = TypeVar("U")

CHUNK_IMAGES, CHUNK_BYTES = 128, 1 << 22  # a chunk is full at either
ALONE = 2  # chunks decoded before processes are started: a small set is done by then


class Piece(NamedTuple):
    """``size`` bytes of a file from ``start`` on (-1: all of it), read by the process that decodes them."""

    path: Path
    start: int = 0
    size: int = -1

    def read(self) -> bytes:
        """Raises BadImageError if it is too large, cut or forbidden; OSError if the disk or network fails."""
        try:
            with open(self.path, "rb") as file:
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
            raise BadImageError(f"{len(data)} bytes where {size} are promised")
        return data


class Encoded(NamedTuple):
    """An image file: ``name`` for messages, ``label`` (-1: none), its bytes, or where they are, or why not.

    mark: JSON that tells its source to go on after it (``writer.Writer.position``).
    """

    name: str
    label: int
    data: bytes | Piece | BadImageError
    mark: Any = None


class Decoded(NamedTuple):
    """A block of images, uint8 (n, C, H, W), with int64 (n,) labels, counts by ``NOTES``, and the bad ones.

    bad: (name, reason) of each image that is left out of ``images`` and ``labels`` for damage. files: how
    many went in. mark: that of the last one.
    """

    images: Pixels
    labels: Labels
    notes: Counter[str]
    bad: list[tuple[str, str]]
    files: int
    mark: Any


def decode_all(
    files: Iterable[Encoded], rule: Rule, workers: int | None = None
) -> Generator[Decoded, None, None]:
    """Decode a stream of files in order, holding at most ``2 * workers`` chunks of 128 files or 4 MB.

    workers: processes; None is one per core, after a first few chunks that are decoded here. Raises DataError
    if a file cannot be read though it may be (a lost disk), EnvError if processes die.
    """
    try:
        yield from _decode_all(_chunks(files, rule), rule, workers)
    except OSError as error:
        if error.filename is None:
            raise
        what, fix = f"cannot be read ({error.strerror})", "mend it; the same command continues"
        raise DataError(shown(str(error.filename)), what, fix) from None


def _decode_all(
    chunks: Iterator[list[Encoded]], rule: Rule, workers: int | None
) -> Generator[Decoded, None, None]:
    if workers is None:
        yield from (decode_chunk(chunk, rule) for chunk in itertools.islice(chunks, ALONE))
        workers = num_cores() if num_cores() > 1 else 0
        if (following := next(chunks, None)) is None:
            return
        chunks = itertools.chain([following], chunks)
    if not workers:
        yield from (decode_chunk(chunk, rule) for chunk in chunks)
        return
    crew = _Crew(rule)
    try:
        yield from in_order(crew.decode, chunks, workers)
    finally:
        crew.close()


def decode_chunk(chunk: Sequence[Encoded], rule: Rule) -> Decoded:
    """Decode a few files here and now. Raises OSError if the disk or network fails."""
    images = np.empty((len(chunk), rule.channels, rule.resolution, rule.resolution), np.uint8)
    labels: list[int] = []
    notes: Counter[str] = Counter()
    bad: list[tuple[str, str]] = []
    with warnings.catch_warnings():
        # Pillow warns of large or odd files; each is judged here and counted instead.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for file in chunk:
            heard: list[str] = []
            try:
                images[len(labels)] = decode(_bytes(file), rule, heard.append)
            except TooSmallError:
                notes["too_small"] += 1
            except BadImageError as reason:
                bad.append((shown(file.name), shown(str(reason))))
            else:
                notes.update(heard)
                labels.append(file.label)
    kept = images[: len(labels)]
    return Decoded(kept, np.array(labels, np.int64), notes, bad, len(chunk), chunk[-1].mark)


def in_order(work: Callable[[T], U], items: Iterable[T], workers: int) -> Generator[U, None, None]:
    """``map`` on threads, in order, with at most ``2 * workers`` results waiting."""
    waiting: list[Future[U]] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="ganlab-decode") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:  # on a mistake or an interrupt, don't decode what nobody will read
            pool.shutdown(wait=True, cancel_futures=True)


def num_cores() -> int:
    """Cores that this process may use, at most 32."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 32)


def decoder_versions() -> dict[str, str | None]:
    """What the pixels of a decoded image may depend on."""
    import PIL
    from PIL import features

    found = {name: features.version(name) for name in ("jpg", "libjpeg_turbo", "webp", "zlib")}
    return {"pillow": PIL.__version__, **found}


class _Crew:
    """Child processes that decode, as many as threads ask at once."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._idle: list[Child] = []  # a list's append and pop are atomic

    def decode(self, chunk: Sequence[Encoded]) -> Decoded:
        try:
            child = self._idle.pop()
        except IndexError:
            child = Child()
        try:
            block = child.call(decode_chunk, chunk, self._rule)
        except ChildCrashed as crash:
            child.close()
            return self._one_by_one(chunk, str(crash))
        except BaseException:
            child.close()
            raise
        self._idle.append(child)
        return block

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _one_by_one(self, chunk: Sequence[Encoded], signal: str) -> Decoded:
        """A chunk that crashed its process: find the image that did, and leave it out."""
        if len(chunk) == 1:
            bad = (shown(chunk[0].name), f"crashes the decoder ({signal})")
            nothing = decode_chunk([chunk[0]._replace(data=BadImageError())], self._rule)
            return nothing._replace(bad=[bad])
        blocks = [self.decode([file]) for file in chunk]
        return Decoded(
            np.concatenate([b.images for b in blocks]),
            np.concatenate([b.labels for b in blocks]),
            sum((b.notes for b in blocks), Counter()),
            [bad for b in blocks for bad in b.bad],
            len(chunk),
            chunk[-1].mark,
        )


def _chunks(files: Iterable[Encoded], rule: Rule) -> Iterator[list[Encoded]]:
    most = max(1, min(CHUNK_IMAGES, CHUNK_BYTES // (rule.channels * rule.resolution**2)))
    chunk: list[Encoded] = []
    held = 0
    for file in files:
        chunk.append(file)
        held += len(file.data) if isinstance(file.data, bytes) else 0
        if len(chunk) >= most or held >= CHUNK_BYTES:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _bytes(file: Encoded) -> bytes:
    if isinstance(file.data, BadImageError):
        raise file.data
    if isinstance(file.data, bytes):
        return file.data
    return file.data.read()
