"""Sampled lines of text: the newest of one run per cell, as the run wrote them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ganlab import text
from ganlab.report.draw import mosaic
from ganlab.report.read.cells import Section
from ganlab.report.read.collect import Run
from ganlab.system.files import open_regular

MOST, SHOWN = 1 << 16, 12  # bytes read of a file; lines shown of it


class Sampled(NamedTuple):
    """The first lines of a run's newest samples, made safe; ``label`` tells the method, setting and step."""

    label: str
    lines: list[str]


def sampled(section: Section) -> list[Sampled]:
    """Of the run with the lowest seed in each cell, finished ones first; nothing for runs on images."""
    found = []
    for (group, setting), cell in section.cells.items():
        for run in mosaic.lowest_first(cell.runs):
            if (newest := _newest(run)) is not None:
                step, lines = newest
                label = f"{group.label}, setting {setting}, step {step:,}"
                found.append(Sampled(text.clean(label, 120), lines))
                break
    return found


def _newest(run: Run) -> tuple[int, list[str]] | None:
    """Step and lines. Unreadable files are noted."""
    named = ((re.fullmatch(r"step-(\d{1,18})\.txt", p.name), p) for p in run.folder.glob("samples/*.txt"))
    files = sorted((int(m[1]), p) for m, p in named if m and not p.is_symlink())
    for step, path in reversed(files):
        try:
            return step, _read(path)
        except OSError as e:
            run.notes.append(f"samples/{text.clean(path.name, 40)} can't be read: {text.clean(e, 80)}")
    return None


def _read(path: Path) -> list[str]:
    with open(path, "rb", opener=open_regular) as file:
        told = file.read(MOST).decode("utf-8", "replace")
    return [text.clean(line, 160) for line in told.split("\n")[:SHOWN]]
