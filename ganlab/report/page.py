"""Writes a report: one self-contained HTML page, Markdown with linked figures, and one CSV of all scores."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

import ganlab
from ganlab.disk import write_atomic
from ganlab.errors import EnvError
from ganlab.report import bars, compare, curves, mosaic, published, tables, text
from ganlab.report.cells import Group, Key, Section
from ganlab.report.collect import Run, Score
from ganlab.report.figures import Picture

MAX_INLINE_SVG = 1_500_000  # bytes; a larger drawing goes into the page as PNG
_OURS = re.compile(r"(bars|curves|samples)-[a-z0-9_-]+\.(png|svg)")
COLUMNS = (
    *("run", "name", "experiment", "method", "variant", "dataset", "dataset_path", "resolution"),
    *(
        "architecture",
        "width",
        "loss",
        "normalization",
        "setting",
        "seed",
        "steps",
        "step",
        "status",
        "error",
    ),
    *("status", "error", "checkpoint", "score_step", "score", "value", "std", "better"),
    *("protocol", "protocol_id", "extractor"),
    *("published", "published_std", "published_where", "published_note"),
    *("it_per_s", "wall_s", "eval_share", "peak_memory_mb"),
    *("parameters_generator", "parameters_discriminator", "device", "torch", "git", "started", "updated"),
)


@dataclass(frozen=True)
class View:
    """What the templates show of a section."""

    title: str
    anchor: str
    facts: list[str]
    warnings: list[str]
    pictures: list[Picture]
    notes: list[str]
    matrices: list[tables.Matrix]
    comparison: compare.Comparison | None
    score_names: list[str]
    runs: list[tables.RunRow]


def view(section: Section, number: int, stem: str) -> View:
    """Draw a section's figures and fill its tables. Figures show the last checkpoint of every run.

    ``stem``: what the names of its figures have in common.
    """
    keys = section.measured("last") or section.measured()
    several = {k.score for k in keys if sum(k.score == other.score for other in keys) > 1}
    scale = _scale(section)
    pictures: list[Picture] = []
    beside: dict[Key, compare.Beside] = {}
    for key in keys[:24]:
        found = beside[key] = compare.beside(section, key)
        name = text.slug("bars", stem, key.score, *([key.protocol_id] if key.score in several else []))
        title = f"{text.score_label(key.score)}: {section.title}{scale}"
        across = {g: bars.Line(p.value, p.std) for g, p in found.rows.items()}
        words = bars.Words(title, _measured(section, key), found.note)
        pictures.append(bars.draw(section, key, words, across, name))
    notes = list(dict.fromkeys(b.note for b in beside.values() if b.note))
    if not notes:
        where = text.DATASETS.get(section.dataset, section.dataset) or "this dataset"
        notes = [f"ganlab's table has no published score for these methods on {where}."]
    fid = next((k for k in keys if text.split_score(k.score)[0] == "fid"), keys[0] if keys else None)
    drawn = (
        curves.draw(section, f"Learning curves: {section.title}{scale}", text.slug("curves", stem)),
        mosaic.draw(section, f"Samples: {section.title}{scale}", text.slug("samples", stem), fid),
    )
    pictures += [p for p in drawn if p is not None]
    names = tables.score_names(section)
    return View(
        section.title,
        f"section-{number}",
        tables.facts(section),
        tables.warnings(section),
        pictures,
        notes,
        [tables.matrix(section, key) for key in section.measured()[:48]],
        compare.comparison(section, beside),
        [text.score_label(n) for n in names],
        tables.run_rows(section, names),
    )


def _scale(section: Section) -> str:
    """What a title says of the size of the runs: " (1,000 of the paper's 100,000 updates)"."""
    steps, widths = section.scales()
    dataset = published.known_dataset(section.dataset, section.dataset_path)[0]
    words = published.reduced(dataset, section.architecture, steps, widths)
    if not words and steps:
        words = text.span(text.count(steps[0]), text.count(steps[-1])) + " updates"
        if any(w != 1 for w in widths):
            words += f", width {text.span(f'{widths[0]:g}', f'{widths[-1]:g}')}"
    return f" ({words})" if words else ""


def _measured(section: Section, key: Key) -> str:
    """The subtitle of a figure: checkpoint, protocol, seeds."""
    summaries = [cell.summary(key) for cell in section.cells.values()]
    counts = sorted({s.n for s in summaries if s.n})
    name = text.protocol_name(section.protocol(key), key.protocol_id)
    runs = text.span(str(counts[0]), str(counts[-1]))
    seeds = f"mean ± sample std over {runs} seeds a cell" if counts[-1] > 1 else "one seed a cell"
    return f"{key.checkpoint} checkpoint, protocol {name}, {seeds}"


def write(runs: Sequence[Run], sections: Sequence[Section], out: Path) -> Path:
    """Write everything into ``out``; returns the HTML page. Raises EnvError if that can't be written."""
    _prepare(out)
    stems: dict[str, int] = {}
    views = []
    for number, section in enumerate(sections, 1):
        where = (section.dataset or "unknown", section.dataset_path.split(".")[0], section.resolution)
        stem = text.slug(*(part for part in (*where, section.architecture) if part))
        stems[stem] = stems.get(stem, 0) + 1
        views.append(view(section, number, stem if stems[stem] == 1 else f"{stem}-{stems[stem]}"))
    shown, clashes = tables.all_protocols(runs)
    context: dict[str, Any] = {
        "views": views,
        "version": ganlab.__version__,
        "num_runs": len(runs),
        "warnings": clashes,
        "unread": [r for r in runs if r.problem],
        "unfinished": [r for r in runs if not r.problem and r.status != "finished"],
        "noted": [r for r in runs if r.notes],
        "protocols": shown,
        "sources": _sources(views),
    }
    pictures = {p.name: p for v in views for p in v.pictures}
    files = {f"figures/{p.name}.{kind}": data for p in pictures.values() for kind, data in _kinds(p) if data}
    files |= {
        "results.csv": to_csv(sections, runs).encode("utf-8", "replace"),
        "report.md": _environment(html=False).get_template("page.md.j2").render(context).encode(),
        "report.html": to_html(context).encode(),
    }
    try:
        for old in (out / "figures").iterdir():
            if _OURS.fullmatch(old.name) and f"figures/{old.name}" not in files and not old.is_symlink():
                old.unlink()
        for name, data in files.items():
            write_atomic(out / name, data)
    except OSError as e:
        raise _unwritable(out, e) from e
    except EnvError as e:
        raise EnvError(e.mistakes[0].where, e.mistakes[0].what, "choose another out=") from e
    return out / "report.html"


def _prepare(out: Path) -> None:
    """Make the folder, and find out before the drawing whether it can be written."""
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(out, e) from e
    if not os.access(out / "figures", os.W_OK | os.X_OK):
        raise EnvError(str(out), "can't write the report (no permission)", "choose another out=")


def _unwritable(out: Path, error: OSError) -> EnvError:
    return EnvError(str(out), f"can't write the report ({error.strerror or error})", "choose another out=")


def _kinds(picture: Picture) -> tuple[tuple[str, bytes], tuple[str, bytes]]:
    return (("png", picture.png), ("svg", picture.svg))


def _sources(views: Iterable[View]) -> list[str]:
    """The papers whose values are shown."""
    said = " ".join(note for v in views if v.comparison for note in v.notes)
    papers = published.table()["papers"].values()
    return [f"{p['name']}: arXiv {p['arxiv']}" for p in papers if f"{p['name']} " in said]


def _environment(html: bool) -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {"md": text.md, "number": text.number, "count": text.count, "duration": text.duration}
    env.filters |= {"data_uri": data_uri, "percent": lambda v: "–" if v is None else f"{v:.0%}"}
    return env


def to_html(context: dict[str, Any]) -> str:
    """The page, self-contained: its style is allowed by hash, images by data URI, nothing else at all."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _environment(html=True).get_template("page.html.j2")
    return page.render(context, style=style, style_hash=digest)


def data_uri(picture: Picture) -> str:
    """An image inside the page: as a drawing where it is not too large, else as pixels."""
    if picture.svg and len(picture.svg) <= MAX_INLINE_SVG:
        return "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode()
    return "data:image/png;base64," + base64.b64encode(picture.png).decode()


def to_csv(sections: Sequence[Section], runs: Iterable[Run]) -> str:
    """One row per run, checkpoint and score; a run without scores has one row. No text is a formula."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    rows: list[dict[str, object]] = []
    for section in sections:
        beside: dict[Key, compare.Beside] = {}
        for (group, _), cell in section.cells.items():
            for run in cell.runs:
                rows += [
                    _about(run) | {"variant": group.variant} | _scored(section, group, run, s, beside)
                    for s in run.scores
                ] or [_about(run) | {"variant": group.variant}]
    rows += [_about(run) for run in runs if run.problem]
    for row in sorted(rows, key=lambda r: (str(r["run"]), r.get("checkpoint") != "last")):
        writer.writerow({k: text.csv_cell(v) for k, v in row.items()})
    return out.getvalue()


def _about(run: Run) -> dict[str, object]:
    whole = ("seed", "steps", "step", "parameters_generator", "parameters_discriminator")
    row: dict[str, object] = {k: run.text(k) for k in COLUMNS if k in run.texts}
    row |= {k: v if v is None or k not in whole else int(v) for k, v in run.numbers.items()}
    return row | {
        "run": run.shown,
        "status": run.status,
        "error": run.problem or run.text("error"),
        "resolution": run.config.get("dataset.resolution"),
        "width": run.scale[1],
    }


def _scored(
    section: Section, group: Group, run: Run, score: Score, cache: dict[Key, compare.Beside]
) -> dict[str, object]:
    key = Key(score.name, score.checkpoint, score.protocol_id)
    if key not in cache:
        cache[key] = compare.beside(section, key)
    row = cache[key].rows.get(group)
    return {
        "checkpoint": score.checkpoint,
        "score_step": score.step,
        "score": score.name,
        "value": score.value,
        "std": score.std,
        "better": text.better(score.name),
        "protocol": text.protocol_name(score.protocol, "").removesuffix(" []"),
        "protocol_id": score.protocol_id,
        "extractor": published.extractor(score.protocol, score.name),
        "published": row and row.value,
        "published_std": row and row.std,
        "published_where": row and row.where,
        "published_note": "; ".join(cache[key].reasons.get(group, [])),
    }
