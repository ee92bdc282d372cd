"""Figures 6 and 12 of the SNGAN paper (arXiv:1802.05957): samples of every method at every setting."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ganlab.analysis import sheet, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject, as_bytes, generate
from ganlab.errors import CheckpointError
from ganlab.report import text
from ganlab.schema import Count, Steps, checked


class Samples(Analysis):
    """samples from the same latents, rows = methods, columns = settings (SNGAN, Figures 6 and 12)

    Of several seeds the lowest is shown. Cells without a checkpoint stay empty; the table says which run a
    cell shows, and its scores.

    Args:
        checkpoint: last, best, or a step.
        side: images in a row and in a column of each cell.
        seed: of the latents; the same for all runs of one z length.
    """

    kinds = ("images",)

    @checked
    def __init__(self, checkpoint: str | int = "last", side: Count = 4, seed: Steps = 0) -> None:
        self.checkpoint, self.side, self.seed = str(checkpoint), side, seed

    def make(self, runs: Sequence[Subject]) -> Finding:
        groups = list(dict.fromkeys(row_of(s, runs) for s in runs))
        settings = list(dict.fromkeys(s.setting for s in sorted(runs, key=_rank)))
        cells: dict[tuple[int, int], tuple[Image.Image, str]] = {}
        rows: list[Row] = []
        says = []
        for subject in runs:
            place = (groups.index(row_of(subject, runs)), settings.index(subject.setting))
            if place in cells:
                continue
            try:
                game, step = subject.restore(self.checkpoint)
            except CheckpointError as error:
                says.append(f"  {subject.label}: left out, {error.mistakes[0].what}")
                continue
            z, y = subject.draw(game, self.side**2, self.seed)
            image = sheet.block(as_bytes(generate(game, z, y)), self.side)
            own = [s for s in subject.run.scores if s.step == step]
            shown = next((s for s in own if s.name.startswith("fid")), own[0] if own else None)
            words = [f"step {step:,}"]
            if shown:
                words.append(f"{text.score_label(shown.name)} {text.number(shown.value)}")
            cells[place] = (image, " · ".join(words))
            told = " ".join(f"{name}={value:.6g}" for name, value in {s.name: s.value for s in own}.items())
            rows.append({**subject.columns, "step": step, "latents": self.seed, "scores": told})
        if not cells:
            raise CheckpointError("samples", "no run has a checkpoint", "train first, or name other runs")
        title = f"Samples: {subjects.common(runs)}"
        names = [f"setting {s}" if s else "" for s in settings]
        note = f"{self.side}×{self.side} samples from the same latents in every cell, uncurated"
        return Finding(sheet.png(title, groups, names, cells, note), rows, says)


def row_of(subject: Subject, runs: Sequence[Subject]) -> str:
    """The label of a run without its setting and seed: what one row of the sheet shows."""
    peers = [
        s.run
        for s in runs
        if (s.setting, s.run.number("seed")) == (subject.setting, subject.run.number("seed"))
    ]
    return subjects.labels(peers)[peers.index(subject.run)]


def _rank(subject: Subject) -> tuple[int, str]:
    return text.setting_rank(subject.setting)
