"""From a stream of encoded images to a pack: decode, count, write, commit."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from typing import Literal

from ganlab.data.decoding import Encoded, decode_all
from ganlab.data.files import progress
from ganlab.data.images import Rule
from ganlab.data.writer import Writer
from ganlab.errors import DataError

OnBad = Literal["fail", "skip"]


def pack_stream(
    writer: Writer, files: Iterable[Encoded], rule: Rule, *, title: str, total: int, on_bad: OnBad
) -> None:
    """Decode ``files`` into ``writer``, with labels if it has classes; each block is committed with its mark.

    files: those after ``writer.position``. total: how many there are with those before, for the bar and the
    room on the disk. Raises DataError at a broken image unless ``on_bad`` is "skip", which counts it.
    """
    writer.expect(total)
    counts = writer.counts
    done = writer.images + counts["skipped"] + counts["too_small"]
    with progress(title, total, done=done) as advance, closing(decode_all(files, rule)) as blocks:
        for block in blocks:
            for name, reason in block.bad:
                if on_bad == "fail":
                    fix = "repair or remove it, or dataset.on_bad=skip leaves such images out"
                    raise DataError(name, reason, fix)
                writer.count("skipped", example=f"{name}: {reason}")
            writer.counts.update(block.notes)
            writer.add(block.images)
            if writer.classes:
                writer.add_labels(block.labels)
            writer.commit(block.mark)
            advance(block.files)
