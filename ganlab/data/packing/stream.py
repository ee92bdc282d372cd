"""Datasets of encoded images: decode a stream of them, count, write, commit."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from contextlib import closing
from typing import Annotated, Any, Literal

from ganlab.data.base import Dataset, SampleSet
from ganlab.data.formats.files import progress
from ganlab.data.formats.images import Rule
from ganlab.data.packing.check import Originals
from ganlab.data.packing.decoding import Encoded, decode_all
from ganlab.data.packing.pack import pack
from ganlab.data.packing.writer import Recipe, Writer
from ganlab.errors import DataError
from ganlab.schema import Range

OnBad = Literal["fail", "skip"]
MaxBad = Annotated[float, Range(ge=0, le=1)]
MAX_BAD = 0.05  # largest acceptable share of broken images
LET_PASS = 10  # broken images that are always acceptable, even in a small set


class EncodedDataset(Dataset):
    """Base class of datasets of encoded images: where a split lies, what identifies it, its images.

    rule: how images become pixels. on_bad, max_bad: see ``pack_stream``.
    """

    channels = 3
    rule: Rule
    on_bad: OnBad
    max_bad: float

    @abstractmethod
    def _find(self, split: str) -> Any:
        """Where ``split`` lies. Raises DataError."""

    @abstractmethod
    def _recipe(self, split: str, source: Any) -> Recipe: ...

    @abstractmethod
    def _images(self, split: str, source: Any, after: Any) -> Originals:
        """The images of ``split`` that follow the position ``after`` (``Encoded.mark``); None: all."""

    def recipe(self, split: str) -> Recipe:
        return self._recipe(split, self._find(split))

    def originals(self, split: str) -> Originals:
        return self._images(split, self._find(split), None)

    def load(self, *, split: str | None = None) -> SampleSet:
        split = self.resolve_split(split)
        source = self._find(split)
        return pack(self._recipe(split, source), lambda writer: self._fill(writer, split, source))

    def _fill(self, writer: Writer, split: str, source: Any) -> None:
        images = self._images(split, source, writer.position)
        writer.classes, writer.source = list(images.classes), {**writer.source, **images.facts}
        if images.empty:
            if self.on_bad == "fail":
                what = f"class folder {images.empty[0]!r} of {split!r} contains no images"
                raise DataError("dataset.path", what, "remove it, add images, or set dataset.on_bad=skip")
            if writer.position is None:
                writer.count("empty_classes", len(images.empty))
        title, bad = f"packing {self.name} {split}", (self.on_bad, self.max_bad)
        pack_stream(writer, images.files, self.rule, title=title, total=images.total, bad=bad)


def pack_stream(
    writer: Writer,
    files: Iterable[Encoded],
    rule: Rule,
    *,
    title: str,
    total: int,
    bad: tuple[OnBad, float],
) -> None:
    """Decode ``files`` into ``writer``, with labels if it has classes; each block is committed with its mark.

    files: those after ``writer.position``. total: the number of all files, for the progress bar and the disk
    check. bad: ``on_bad`` and ``max_bad``. Raises DataError at a broken image if ``on_bad`` is "fail"; with
    "skip" such images are counted and left out, up to the share ``max_bad`` of ``total``. Images left out are
    so permanently, so that the images of a run and their order never change.
    """
    on_bad, max_bad = bad
    most = max(LET_PASS, int(max_bad * total))
    writer.expect(total)
    counts = writer.counts
    done = writer.images + counts["skipped"] + counts["too_small"]
    with progress(title, total, done=done) as advance, closing(decode_all(files, rule)) as blocks:
        for block in blocks:
            for name, reason in block.bad:
                if on_bad == "fail":
                    fix = "repair or remove it, or set dataset.on_bad=skip to skip such images"
                    raise DataError(name, reason, fix)
                writer.count("skipped", example=f"{name}: {reason}")
                if counts["skipped"] > most:
                    what = f"more than {most:,} of {total:,} images are broken, the last {name}: {reason}"
                    raise DataError("dataset.max_bad", what, "see 'ganlab data check', or raise it")
            writer.counts.update(block.notes)
            writer.add(block.images)
            if writer.classes:
                writer.add_labels(block.labels)
            writer.commit(block.mark)
            advance(block.files)
