"""Text samples: the newest of one run per cell."""

from __future__ import annotations

from typing import NamedTuple

from ganlab import text
from ganlab.report.draw import mosaic
from ganlab.report.read.cells import Section
from ganlab.report.read.collect import Run
from ganlab.system.files import open_regular

MAX_BYTES, MAX_LINES = 1 << 16, 12  # read from a file; listed of it


class TextSamples(NamedTuple):
    """The first lines of a run's newest samples, cleaned; ``label``: method, setting and step."""

    label: str
    lines: list[str]


def read_samples(section: Section) -> list[TextSamples]:
    """Text samples of each cell's run with the lowest seed, finished runs first; empty for image runs."""
    samples = []
    for (group, setting), cell in section.cells.items():
        for run in mosaic.lowest_first(cell.runs):
            if (newest := _newest(run)) is not None:
                step, lines = newest
                label = f"{group.label}, setting {setting}, step {step:,}"
                samples.append(TextSamples(text.clean(label, 120), lines))
                break
    return samples


def _newest(run: Run) -> tuple[int, list[str]] | None:
    """Step and lines of the newest readable file; unreadable ones are noted."""
    for step, path in reversed(run.samples("txt").items()):
        try:
            with open(path, "rb", opener=open_regular) as file:
                content = file.read(MAX_BYTES).decode("utf-8", "replace")
        except OSError as e:
            run.note_unreadable(path, e)
        else:
            return step, [text.clean(line, 160) for line in content.split("\n")[:MAX_LINES]]
    return None
