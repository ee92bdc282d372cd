"""``results.csv``: every score of every run, its protocol, and the comparable published value."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ganlab import tables
from ganlab.papers import labels, published
from ganlab.report.compare import compare
from ganlab.report.read.cells import Group, Key, Section
from ganlab.report.read.collect import Run, Score

COLUMNS = (
    *("run", "name", "experiment", "method", "variant", "dataset", "dataset_path", "resolution"),
    *("architecture", "width", "loss", "normalization", "setting", "seed", "steps", "step"),
    *("status", "error", "checkpoint", "score_step", "score", "value", "std", "better"),
    *("protocol", "protocol_id", "extractor"),
    *("published", "published_std", "published_where", "published_note"),
    *("it_per_s", "wall_s", "eval_share", "peak_memory_mb"),
    *("parameters_generator", "parameters_discriminator", "device", "torch", "git", "started", "updated"),
)


def to_csv(sections: Sequence[Section], runs: Iterable[Run]) -> str:
    """One row per run, checkpoint and score; a run without scores has one row. Formulas are escaped."""
    rows: list[dict[str, object]] = []
    for section in sections:
        matches: dict[Key, compare.PublishedMatches] = {}
        for (group, _), cell in section.cells.items():
            for run in cell.runs:
                rows += [
                    _about(run) | {"variant": group.variant} | _scored(section, group, run, s, matches)
                    for s in run.scores
                ] or [_about(run) | {"variant": group.variant}]
    rows += [_about(run) for run in runs if run.problem]
    ordered = sorted(rows, key=lambda r: (str(r["run"]), r.get("checkpoint") != "last"))
    return tables.to_csv(COLUMNS, ordered)


def _about(run: Run) -> dict[str, object]:
    integers = ("seed", "steps", "step", "parameters_generator", "parameters_discriminator")
    row: dict[str, object] = {k: run.text(k) for k in COLUMNS if k in run.texts}
    row |= {k: v if v is None or k not in integers else int(v) for k, v in run.numbers.items()}
    return row | {
        "run": run.label,
        "status": run.status,
        "error": run.problem or run.text("error"),
        "resolution": run.config.get("dataset.resolution"),
        "width": run.scale[1],
    }


def _scored(
    section: Section, group: Group, run: Run, score: Score, cache: dict[Key, compare.PublishedMatches]
) -> dict[str, object]:
    key = Key(score.name, score.checkpoint, score.protocol_id)
    if key not in cache:
        cache[key] = compare.match_published(section, key)
    row = cache[key].rows.get(group)
    return {
        "checkpoint": score.checkpoint,
        "score_step": score.step,
        "score": score.name,
        "value": score.value,
        "std": score.std,
        "better": labels.better(score.name),
        "protocol": labels.protocol_name(score.protocol, "").removesuffix(" []"),
        "protocol_id": score.protocol_id,
        "extractor": published.extractor(score.protocol, score.name),
        "published": row and row.value,
        "published_std": row and row.std,
        "published_where": row and row.where,
        "published_note": "; ".join(cache[key].reasons.get(group, [])),
    }
