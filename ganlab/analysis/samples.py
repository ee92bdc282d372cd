"""Samples of many runs: Figures 6, 12 of SNGAN (arXiv:1802.05957), 2 of WGAN-GP (arXiv:1704.00028)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ganlab import text
from ganlab.analysis import sheet, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject, as_bytes, generate
from ganlab.errors import CheckpointError, DataError
from ganlab.papers import labels
from ganlab.report.draw.mosaic import Tile
from ganlab.report.read import grids
from ganlab.report.read.collect import Run
from ganlab.schema import Count, Steps, checked

UNFINISHED = {"running": "unfinished", "stopped": "unfinished"}


class Layout(NamedTuple):
    """Labels down and across, and where a run stands: (row, column), or None outside."""

    rows: list[str]
    columns: list[str]
    place: Callable[[Run], tuple[int, int]]


class Samples(Analysis):
    """samples from the same latents, by method and setting or by any axis (SNGAN, 6 and 12; WGAN-GP, 2)

    Of several seeds the lowest is shown. A run that diverged or failed says so; a cell without a checkpoint
    is an empty box with the reason, a grid's cell that has not begun too. The table says which run a cell
    shows, and its scores.

    Args:
        checkpoint: last, best, or a step.
        side: images in a row and in a column of each cell.
        seed: of the latents; the same for all runs of one z length.
        down: an axis of the runs' grid, as pair, or a config key, as architecture.pair; null: methods.
        across: the same; null: settings.
    """

    kinds = ("images",)

    @checked
    def __init__(
        self,
        checkpoint: str | int = "last",
        side: Count = 4,
        seed: Steps = 0,
        down: str | None = None,
        across: str | None = None,
    ) -> None:
        self.checkpoint, self.side, self.seed = str(checkpoint), side, seed
        self.down, self.across = down, across

    def make(self, runs: Sequence[Subject]) -> Finding:
        places = _places(runs)
        layout = self._layout(runs, places)
        cells = self._not_begun(runs, places)
        rows: list[Row] = []
        says = []
        for subject in runs:
            place = layout.place(subject.run)
            if place in cells and cells[place].image is not None:
                continue
            try:
                game, step = subject.restore(self.checkpoint)
            except CheckpointError as error:
                says.append(f"  {subject.label}: left out, {error.mistakes[0].what}")
                cells[place] = _empty(subject.run)
                continue
            z, y = subject.draw(game, self.side**2, self.seed)
            image = sheet.block(as_bytes(generate(game, z, y)), self.side)
            own = [s for s in subject.run.scores if s.step == step]
            shown = next((s for s in own if s.name.startswith("fid")), own[0] if own else None)
            words = [w for w in [_state(subject.run)] if w] + [f"step {step:,}"]
            if shown:
                words.append(f"{labels.score_label(shown.name)} {labels.number(shown.value)}")
            cells[place] = Tile(image, " · ".join(words), subject.run.status != "finished")
            told = " ".join(f"{name}={value:.6g}" for name, value in {s.name: s.value for s in own}.items())
            rows.append({**subject.columns, "step": step, "latents": self.seed, "scores": told})
        if not rows:
            raise CheckpointError("samples", "no run has a checkpoint", "train first, or name other runs")
        title = f"Samples: {subjects.common(runs)}"
        note = f"{self.side}×{self.side} samples from the same latents in every cell, uncurated"
        return Finding(sheet.png(title, layout.rows, layout.columns, cells, note), rows, says)

    def _layout(self, runs: Sequence[Subject], places: Sequence[grids.GridCell]) -> Layout:
        """Who stands where. Raises DataError for a key that no run has."""
        by_run = {id(s.run): s for s in runs}
        down = _labels("down", self.down, runs, places) if self.down else None
        across = _labels("across", self.across, runs, places) if self.across else None
        groups = down or list(dict.fromkeys(row_of(s, runs) for s in runs))
        settings = list(dict.fromkeys(s.setting for s in sorted(runs, key=_rank)))

        def place(run: Run) -> tuple[int, int]:
            row = _label(run, self.down, places) if self.down else row_of(by_run[id(run)], runs)
            column = _label(run, self.across, places) if self.across else run.text("setting")
            return groups.index(row), (across or settings).index(column)

        shown = [f"setting {s}" if s else "" for s in settings]
        names = [labels.method_label(g) for g in groups] if down else groups
        return Layout(names, [labels.method_label(c) for c in across] if across else shown, place)

    def _not_begun(
        self, runs: Sequence[Subject], places: Sequence[grids.GridCell]
    ) -> dict[tuple[int, int], Tile]:
        """The cells of the grid that have no result, where both axes are the grid's."""
        if not (self.down and self.across):
            return {}
        down, across = (_labels("", key, runs, places) for key in (self.down, self.across))
        found = {}
        for place in places:
            if {self.down, self.across} <= {*place.axes} and not (place.folder / "result.json").exists():
                began = place.folder.exists()
                why = "ended before it wrote a result" if began else "not begun"
                at = down.index(place.axes[self.down]), across.index(place.axes[self.across])
                found[at] = Tile(None, why, alarm=began)
        return found


def _places(runs: Sequence[Subject]) -> list[grids.GridCell]:
    """The cells of the runs' grids."""
    return [place for grid in grids.find([s.run for s in runs], []) for place in grid.cells]


def _label(run: Run, key: str, places: Sequence[grids.GridCell]) -> str:
    """A run's label on an axis of its grid, else the value of a config key, else what it says of itself."""
    own = next((place for place in places if place.folder == run.folder), None)
    for found in (own.axes, own.choices) if own else ():
        if key in found:
            return found[key]
    value = run.config.get(key, run.config.get(f"{key}._target_"))
    if value is None:
        return run.text(key)
    return text.clean(str(value).rpartition(".")[2] if key not in run.config else value, 40)


def _labels(option: str, key: str, runs: Sequence[Subject], places: Sequence[grids.GridCell]) -> list[str]:
    """All labels of a key, an axis's in its grid's order. Raises DataError if no run has any."""
    own = {_label(s.run, key, places) for s in runs}
    if own <= {""}:
        axes = dict.fromkeys(axis for place in places for axis in place.axes)
        has = f"the grid has {', '.join(axes)}" if axes else "they are in no grid"
        raise DataError(option, f"no run has {key!r}", f"{has}; or name a key of config.yaml")
    listed = dict.fromkeys(place.axes[key] for place in places if key in place.axes)
    return [*listed, *sorted(own - {*listed}, key=labels.natural)]


def _state(run: Run) -> str:
    return "" if run.status == "finished" else UNFINISHED.get(run.status, run.status)


def _empty(run: Run) -> Tile:
    """Why a run has nothing to show."""
    why = f"{_state(run)}: {run.text('error')}" if run.text("error") else _state(run)
    return Tile(None, f"{why}; no checkpoint" if why else "no checkpoint", alarm=run.status != "finished")


def row_of(subject: Subject, runs: Sequence[Subject]) -> str:
    """The label of a run without its setting and seed: what one row of the sheet shows."""
    peers = [
        s.run
        for s in runs
        if (s.setting, s.run.number("seed")) == (subject.setting, subject.run.number("seed"))
    ]
    return subjects.labels(peers)[peers.index(subject.run)]


def _rank(subject: Subject) -> tuple[int, str]:
    return labels.setting_rank(subject.setting)
