"""Datasets of encoded images: decode a stream of them, count, write, commit."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import closing
from typing import Annotated, Any, Literal

from ganlab.data.formats.files import progress
from ganlab.data.formats.images import Rule
from ganlab.data.packing.check import Originals
from ganlab.data.packing.decoding import decode_all
from ganlab.data.packing.pack import PackedDataset
from ganlab.data.packing.writer import Writer
from ganlab.errors import DataError
from ganlab.schema import Range

OnBad = Literal["fail", "skip"]
MaxBad = Annotated[float, Range(ge=0, le=1)]
MAX_BAD = 0.05  # largest acceptable share of broken images
LET_PASS = 10  # broken images that are always acceptable, even in a small set


class EncodedDataset(PackedDataset):
    """Base class of datasets of encoded images.

    rule: how images become pixels. on_bad: a broken image raises DataError with "fail"; with "skip" it is
    counted and left out, up to the share max_bad of all. Images left out are so permanently, so that the
    images of a run and their order never change. Each block is committed with its mark.
    """

    channels = 3
    rule: Rule
    on_bad: OnBad
    max_bad: float

    @abstractmethod
    def _images(self, split: str, source: Any, after: Any) -> Originals:
        """The images of ``split`` that follow the position ``after`` (``Encoded.mark``); None: all."""

    def originals(self, split: str) -> Originals:
        return self._images(split, self._find(split), None)

    def _pack(self, writer: Writer, split: str, source: Any) -> None:
        images = self._images(split, source, writer.position)
        writer.classes, writer.source = list(images.classes), {**writer.source, **images.facts}
        if images.empty:
            if self.on_bad == "fail":
                what = f"class folder {images.empty[0]!r} of {split!r} contains no images"
                raise DataError("dataset.path", what, "remove it, add images, or set dataset.on_bad=skip")
            if writer.position is None:
                writer.count("empty_classes", len(images.empty))
        total, counts = images.total, writer.counts
        most = max(LET_PASS, int(self.max_bad * total))
        writer.expect(total)
        done = writer.images + counts["skipped"] + counts["too_small"]
        with (
            progress(f"packing {self.name} {split}", total, done=done) as advance,
            closing(decode_all(images.files, self.rule)) as blocks,
        ):
            for block in blocks:
                for name, reason in block.bad:
                    if self.on_bad == "fail":
                        fix = "repair or remove it, or set dataset.on_bad=skip to skip such images"
                        raise DataError(name, reason, fix)
                    writer.count("skipped", example=f"{name}: {reason}")
                    if counts["skipped"] > most:
                        what = f"more than {most:,} of {total:,} images are broken, the last {name}: {reason}"
                        raise DataError("dataset.max_bad", what, "see 'ganlab data check', or raise it")
                counts.update(block.notes)
                writer.add(block.images)
                if writer.classes:
                    writer.add_labels(block.labels)
                writer.commit(block.mark)
                advance(block.files)
