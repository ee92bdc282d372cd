"""Writes a report: a self-contained HTML page, Markdown with linked figures, and CSV files of all numbers."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

import ganlab
from ganlab.errors import EnvError
from ganlab.papers import labels, published
from ganlab.report.compare import compare, full_table, ranking, rescored, sidebyside, significance
from ganlab.report.compare.successes import SuccessTables
from ganlab.report.draw import curves, dots, mosaic, text_samples
from ganlab.report.draw.style import Picture
from ganlab.report.read.cells import Key, Section
from ganlab.report.read.collect import Run
from ganlab.report.read.grids import Grid
from ganlab.report.write import results_csv, tables
from ganlab.report.write.table import Table
from ganlab.system.files import write_atomic

MAX_INLINE_SVG = 1_500_000  # bytes; a larger drawing is embedded as PNG
_GENERATED = re.compile(r"(bars|scores|curves|samples)-[a-z0-9_-]+\.(png|svg)")


def view(section: Section, number: int, stem: str) -> dict[str, Any]:
    """What the templates need of a section: its figures, of the last checkpoint of every run, and its tables.

    ``stem``: common part of its figures' file names.
    """
    keys = section.score_keys("last") or section.score_keys()
    drawn_keys = [] if section.crowded else keys[:24]
    ambiguous = {k.score for k in keys if sum(k.score == other.score for other in keys) > 1}
    scale = _scale(section)
    pictures: list[Picture] = []
    matches: dict[Key, compare.PublishedMatches] = {}
    for key in drawn_keys:
        match = matches[key] = compare.match_published(section, key)
        name = labels.slug("scores", stem, key.score, *([key.protocol_id] if key.score in ambiguous else []))
        title = f"{labels.score_label(key.score)}: {section.title}{scale}"
        texts = (title, _subtitle(section, key), match.note)
        pictures.append(dots.draw(section, key, texts, match.rows, name))
    dataset = labels.DATASETS.get(section.dataset, section.dataset) or "this dataset"
    unknown = f"ganlab knows no published scores of these methods on {dataset}."
    notes = list(dict.fromkeys(m.note for m in matches.values() if m.note)) or [unknown]
    fid = next((k for k in keys if _kind(k) == "fid"), keys[0] if keys else None)
    if section.crowded:
        notes = [
            f"{len(section.groups)} methods and variants are too many for figures and pairwise comparisons; "
            "the tables below list them all."
        ]
    else:
        more = (
            curves.draw(section, f"Learning curves: {section.title}{scale}", labels.slug("curves", stem)),
            mosaic.of_section(section, f"Samples: {section.title}{scale}", labels.slug("samples", stem), fid),
        )
        pictures += [p for p in more if p is not None]
    names = tables.score_names(section)
    return {
        "title": section.title,
        "anchor": f"section-{number}",
        "facts": tables.facts(section),
        "warnings": tables.warnings(section),
        "pictures": pictures,
        "notes": notes,
        "matrices": [tables.matrix(section, key) for key in section.score_keys()[:48]],
        "comparison": compare.table(section, matches),
        "side_by_side": None if section.crowded else sidebyside.table(section),
        "parts": [] if section.crowded else _parts(section),
        "score_names": [labels.score_label(n) for n in names],
        "runs": tables.run_rows(section, names),
        "text_samples": text_samples.read_samples(section),
    }


def _parts(section: Section) -> list[tuple[str, list[Table]]]:
    """Headings and tables of the other comparisons; those without tables are left out."""
    keys = [next((k for k in section.score_keys("last") if _kind(k) == d), None) for d in ("fid", "is")]
    main = [k for k in keys if k is not None]
    rankings = [t for k in main for t in ranking.tables(section, k, _reduced(section))]
    noise = [t for k in main if (t := significance.table(section, k)) is not None]
    protocols = [t for t in [rescored.table(section)] if t is not None]
    parts = [("Complete published tables", full_table.tables(section)), ("Ranking and robustness", rankings)]
    parts += [("Seed noise", noise), ("Comparison of protocols", protocols)]
    return [(heading, part) for heading, part in parts if part]


def _kind(key: Key) -> str:
    return labels.split_score(key.score)[0]


def _reduced(section: Section) -> str:
    steps, widths = section.scales()
    return published.reduced_scale(section.published_dataset[0], section.net, steps, widths)


def _scale(section: Section) -> str:
    """The scale of the runs for a title: " (1,000 of the paper's 100,000 updates)"."""
    steps, widths = section.scales()
    scale = _reduced(section)
    if not scale and steps:
        scale = labels.span(labels.count(steps[0]), labels.count(steps[-1])) + " updates"
        if any(w != 1 for w in widths):
            scale += f", width {labels.span(f'{widths[0]:g}', f'{widths[-1]:g}')}"
    return f" ({scale})" if scale else ""


def _subtitle(section: Section, key: Key) -> str:
    """The subtitle of a figure: checkpoint, protocol, seeds."""
    summaries = [cell.summary(key) for cell in section.cells.values()]
    counts = sorted({s.n for s in summaries if s.n})
    name = labels.protocol_name(section.protocol(key), key.protocol_id)
    runs = labels.span(str(counts[0]), str(counts[-1]))
    seeds = f"dashes: means over {runs} seeds per cell" if counts[-1] > 1 else "one seed per cell"
    return f"{key.checkpoint} checkpoint, protocol {name}, {seeds}"


def write(
    runs: Sequence[Run],
    sections: Sequence[Section],
    out: Path,
    grids: Sequence[Grid] = (),
    studies: Sequence[SuccessTables] = (),
    csv_files: Mapping[str, str] | None = None,
) -> Path:
    """Write the report into ``out`` and return the path of the HTML page. Raises EnvError if it can't.

    csv_files: name -> content of additional CSV files.
    """
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _unwritable(out, e.strerror or str(e)) from e
    if not os.access(out / "figures", os.W_OK | os.X_OK):  # before minutes of drawing
        raise _unwritable(out, "no permission")
    stems: dict[str, int] = {}
    views = []
    for number, section in enumerate(sections, 1):
        parts = (section.dataset or "unknown", section.dataset_path.split(".")[0], section.resolution)
        stem = labels.slug(*(part for part in (*parts, section.architecture) if part))
        stems[stem] = stems.get(stem, 0) + 1
        views.append(view(section, number, stem if stems[stem] == 1 else f"{stem}-{stems[stem]}"))
    protocols, clashes = tables.all_protocols(runs)
    context: dict[str, Any] = {
        "views": views,
        "title": "; ".join(g.heading for g in grids) or "ganlab report",
        "grids": grids,
        "studies": studies,
        "crossings": _crossings(grids, runs),
        "csv_names": sorted(csv_files or {}),
        "version": ganlab.__version__,
        "num_runs": len(runs),
        "warnings": clashes,
        "unreadable": [r for r in runs if r.problem],
        "unfinished": [r for r in runs if not r.problem and r.status != "finished"],
        "runs_with_notes": [r for r in runs if r.notes],
        "protocols": protocols,
        "sources": _sources(views),
    }
    pictures = {p.name: p for v in views for p in v["pictures"]} | {p.name: p for p in context["crossings"]}
    compared = [section for section in sections if not section.crowded]
    files = {
        f"figures/{p.name}.{kind}": data
        for p in pictures.values()
        for kind, data in (("png", p.png), ("svg", p.svg))
        if data
    }
    texts = {
        "results.csv": results_csv.to_csv(sections, runs),
        "published.csv": sidebyside.csv_of(sections),
        "ranking.csv": ranking.csv_of(compared),
        "differences.csv": significance.csv_of(compared),
        "report.md": _environment(html=False).get_template("page.md.j2").render(context),
        "report.html": to_html(context),
        **(csv_files or {}),
    }
    files |= {name: content.encode("utf-8", "replace") for name, content in texts.items()}
    try:
        for old in (out / "figures").iterdir():
            if _GENERATED.fullmatch(old.name) and f"figures/{old.name}" not in files and not old.is_symlink():
                old.unlink()
        for name in ("pairs.csv", "successes.csv"):  # of an earlier report
            if name not in files and not (out / name).is_symlink():
                (out / name).unlink(missing_ok=True)
        for name, data in files.items():
            write_atomic(out / name, data)
    except OSError as e:
        raise _unwritable(out, e.strerror or str(e)) from e
    except EnvError as e:
        raise EnvError(e.mistakes[0].where, e.mistakes[0].what, "choose another out=") from e
    return out / "report.html"


def _crossings(grids: Sequence[Grid], runs: Sequence[Run]) -> list[Picture]:
    """The grids' sample pictures, one axis down and one across."""
    names = [labels.slug("samples", "grid", grid.folder.name) for grid in grids]
    pictures = [mosaic.of_grid(grid, runs, name) for grid, name in zip(grids, names, strict=True)]
    return [picture for picture in pictures if picture is not None]


def _unwritable(out: Path, why: str) -> EnvError:
    return EnvError(str(out), f"can't write the report ({why})", "choose another out=")


def _sources(views: Iterable[Mapping[str, Any]]) -> list[str]:
    """The papers whose values are shown."""
    texts = [note for v in views if v["comparison"] for note in v["notes"]]
    compared = [table for v in views if (table := v["side_by_side"])]
    texts += [field.text for table in compared for row in table.rows for field in row]
    sentences = " ".join(texts)
    papers = [p for p in published.table()["papers"].values() if "arxiv" in p]
    return [f"{p['name']}: arXiv {p['arxiv']}" for p in papers if f"{p['name']} " in sentences]


def _environment(html: bool) -> jinja2.Environment:
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    env.filters |= {name: getattr(labels, name) for name in ("md", "number", "count", "duration")}
    env.filters |= {"data_uri": data_uri, "percent": lambda v: "–" if v is None else f"{v:.0%}"}
    return env


def to_html(context: dict[str, Any]) -> str:
    """The self-contained page: its policy allows its own style by hash, images as data URIs, nothing else."""
    style = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = _environment(html=True).get_template("page.html.j2")
    return page.render(context, style=style, style_hash=digest)


def data_uri(picture: Picture) -> str:
    """An embedded image: SVG unless it is too large, else PNG."""
    if picture.svg and len(picture.svg) <= MAX_INLINE_SVG:
        return "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode()
    return "data:image/png;base64," + base64.b64encode(picture.png).decode()
