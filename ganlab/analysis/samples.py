"""Sample sheets: SNGAN (arXiv:1802.05957), Figures 6 and 12; WGAN-GP (arXiv:1704.00028), Figure 2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ganlab import text
from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject, as_bytes, generate
from ganlab.errors import CheckpointError, DataError
from ganlab.papers import labels
from ganlab.report.draw import sheet
from ganlab.report.draw.sheet import Tile
from ganlab.report.read import grids
from ganlab.report.read.collect import Run
from ganlab.schema import Count, Steps

UNFINISHED = {"finished": "", "running": "unfinished", "stopped": "unfinished"}


class Layout(NamedTuple):
    """Row and column labels of the sheet, and a function that gives a run's (row, column)."""

    rows: list[str]
    columns: list[str]
    place: Callable[[Run], tuple[int, int]]


class Samples(Analysis):
    """samples from the same latents, by method and setting or by any axis (SNGAN, 6 and 12; WGAN-GP, 2)

    Of several seeds, the lowest is shown. Runs that diverged or failed are marked. A cell without a
    checkpoint, or a grid cell that has not started, is an empty box with the reason. The table lists the run
    shown in each cell and its scores.

    Args:
        checkpoint: last, best, or a step.
        side: images per row and per column of each cell.
        seed: random seed of the latents; runs with equal z_dim share them.
        down: rows: an axis of the runs' grid, such as pair, or a config key; null: methods.
        across: columns: likewise; null: settings.
    """

    kinds = ("images",)
    checkpoint: str | int = "last"
    side: Count = 4
    seed: Steps = 0
    down: str | None = None
    across: str | None = None

    def make(self, runs: Sequence[Subject]) -> Finding:
        places = [place for grid in grids.find([s.run for s in runs], []) for place in grid.cells]
        layout = self._layout(runs, places)
        cells = self._not_started(runs, places)
        result = Finding()
        for subject in runs:
            place = layout.place(subject.run)
            if place in cells and cells[place].image is not None:
                continue
            try:
                gan, step = subject.restore(self.checkpoint)
            except CheckpointError as error:
                result.report.append(f"  {subject.label}: skipped: {error.mistakes[0].what}")
                cells[place] = _empty(subject.run)
                continue
            image = drawing.block(
                as_bytes(generate(gan, *subject.draw(gan, self.side**2, self.seed))), self.side
            )
            own = {s.name: s for s in subject.run.scores if s.step == step}
            score = next(
                (s for name, s in own.items() if name.startswith("fid")), next(iter(own.values()), None)
            )
            caption = sheet.caption(_state(subject.run), step, score)
            cells[place] = Tile(image, caption, subject.run.status != "finished")
            scores = " ".join(f"{name}={s.value:.6g}" for name, s in own.items())
            result.rows.append({**subject.columns, "step": step, "latents": self.seed, "scores": scores})
        if not result.rows:
            raise CheckpointError("samples", "no run has a checkpoint", "train first, or choose other runs")
        note = f"{self.side}×{self.side} samples from the same latents in every cell, uncurated"
        title = f"Samples: {subjects.common(runs)}"
        result.png = sheet.png(title, layout.rows, layout.columns, cells, note)
        return result

    def _layout(self, runs: Sequence[Subject], places: Sequence[grids.GridCell]) -> Layout:
        """Assign runs to rows and columns. Raises DataError for a key that no run has."""
        by_run = {id(s.run): s for s in runs}
        down = _labels("down", self.down, runs, places) if self.down else None
        across = _labels("across", self.across, runs, places) if self.across else None
        groups = down or list(dict.fromkeys(row_of(s, runs) for s in runs))
        settings = sorted({s.setting for s in runs}, key=labels.setting_rank)

        def place(run: Run) -> tuple[int, int]:
            row = _label(run, self.down, places) if self.down else row_of(by_run[id(run)], runs)
            column = _label(run, self.across, places) if self.across else run.text("setting")
            return groups.index(row), (across or settings).index(column)

        names = [labels.method_label(g) for g in groups] if down else groups
        titles = (
            map(labels.method_label, across) if across else (f"setting {s}" if s else "" for s in settings)
        )
        return Layout(names, [*titles], place)

    def _not_started(
        self, runs: Sequence[Subject], places: Sequence[grids.GridCell]
    ) -> dict[tuple[int, int], Tile]:
        """Empty tiles for grid cells without a result, if both axes belong to the grid."""
        if not (self.down and self.across):
            return {}
        down, across = (_labels("", key, runs, places) for key in (self.down, self.across))
        tiles = {}
        for place in places:
            if {self.down, self.across} <= {*place.axes} and not (place.folder / "result.json").exists():
                started = place.folder.exists()
                reason = "ended without a result" if started else "not started"
                at = down.index(place.axes[self.down]), across.index(place.axes[self.across])
                tiles[at] = Tile(None, reason, alarm=started)
        return tiles


def _label(run: Run, key: str, places: Sequence[grids.GridCell]) -> str:
    """A run's label on a grid axis, else the value of a config key, else a field of its report."""
    cell = next((cell for cell in places if cell.folder == run.folder), None)
    for values in (cell.axes, cell.choices) if cell else ():
        if key in values:
            return values[key]
    value = run.config.get(key, run.config.get(f"{key}._target_"))
    if value is None:
        return run.text(key)
    return text.clean(str(value).rpartition(".")[2] if key not in run.config else value, 40)


def _labels(option: str, key: str, runs: Sequence[Subject], places: Sequence[grids.GridCell]) -> list[str]:
    """All labels of a key, an axis's in its grid's order. Raises DataError if no run has any."""
    own = {_label(s.run, key, places) for s in runs}
    if own <= {""}:
        axes = dict.fromkeys(axis for place in places for axis in place.axes)
        has = f"the grid has {', '.join(axes)}" if axes else "the runs belong to no grid"
        raise DataError(option, f"no run has {key!r}", f"{has}; or use a key of config.yaml")
    listed = dict.fromkeys(place.axes[key] for place in places if key in place.axes)
    return [*listed, *sorted(own - {*listed}, key=labels.natural)]


def _state(run: Run) -> str:
    return UNFINISHED.get(run.status, run.status)


def _empty(run: Run) -> Tile:
    """An empty tile with the reason why a run has no samples."""
    reason = ": ".join(part for part in (_state(run), run.text("error")) if part)
    caption = "; ".join(part for part in (reason, "no checkpoint") if part)
    return Tile(None, caption, alarm=run.status != "finished")


def row_of(subject: Subject, runs: Sequence[Subject]) -> str:
    """Row label of a run: its label without setting and seed."""
    place = (subject.setting, subject.run.number("seed"))
    peers = [s.run for s in runs if (s.setting, s.run.number("seed")) == place]
    return subjects.labels(peers)[peers.index(subject.run)]
