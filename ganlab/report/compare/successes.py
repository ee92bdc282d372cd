"""Tables of pairs, published and ours: successes over thresholds (WGAN-GP Tables 2, 5), wins (appendix C)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ganlab.papers import labels, published
from ganlab.papers.published import Published
from ganlab.report.compare import pairs
from ganlab.report.compare.pairs import Study
from ganlab.report.write.table import Column, Field, Table
from ganlab.tables import to_csv

COLUMNS = (
    *("grid", "table", "score", "threshold", "outcome"),
    *("ours", "ours_n", "published", "published_n", "paper"),
)
PAIR_COLUMNS = ("grid", "pair", "chosen", "score", "protocol_id", "side", "value", "succeeds_at_no_threshold")


@dataclass(frozen=True)
class SuccessTables:
    """A study's heading, tables and CSV rows."""

    heading: str
    tables: list[Table]
    csv: list[list[object]]


def success_tables(study: Study, thresholds: Sequence[float] = ()) -> SuccessTables:
    """The tables of a study. ``thresholds``: the user's, instead of the paper's."""
    tables, csv = _wins(study) if study.grid.pairs.get("count") == "wins" else _successes(study, thresholds)
    return SuccessTables(study.grid.heading, tables, csv)


# ---- successes


def _successes(study: Study, thresholds: Sequence[float]) -> tuple[list[Table], list[list[object]]]:
    names = _outcomes(study)
    paper, n = _published(study, names)
    unlike = _unlike(study)
    tables, csv = list[Table](), list[list[object]]()
    own_scale = bool(thresholds) or study.score not in ("", "is")  # the paper's thresholds do not apply
    if own_scale:
        levels = sorted(set(thresholds)) or pairs.deciles(study.scores)
        note = (
            f"Thresholds: the deciles of our {len(study.scores)} scores, because the paper's thresholds are "
            "for another network's score. They separate the two sides but do not measure success in the "
            "paper's sense."
        )
        notes = [] if thresholds else [note]
        tables.append(_table(study, "", "Successes over thresholds", levels, {}, 0, notes, csv))
    for table, rows in paper.items():
        title = f"{_paper(study)} {table}, published{'' if own_scale else ' and ours'}"
        notes = [unlike] if unlike else []
        tables.append(_table(study, table, title, list(rows), rows, n, notes, csv, ours=not own_scale))
    if tables:
        tables[0] = replace(tables[0], notes=[*tables[0].notes, *_about(study)])
    return tables, csv


def _outcomes(study: Study) -> dict[str, str]:
    """The four outcomes: name in published.csv -> label."""
    first, second = (labels.method_label(label) for label in (study.first, study.second))
    keys = [f"only_{label.replace('-', '_')}" for label in (study.first, study.second)]
    captions = (f"only {first}", f"only {second}", "both", "neither")
    return dict(zip([*keys, "both", "neither"], captions, strict=True))


def _published(
    study: Study, names: Mapping[str, str]
) -> tuple[dict[str, dict[float, dict[str, float]]], int]:
    """Table -> threshold -> outcome -> published count, and the number of nets."""
    counts: dict[str, dict[float, dict[str, float]]] = {}
    n = 0
    for row in published.values():
        details = _details(row)
        if row.paper == study.grid.pairs.get("paper") and row.score in names and "min_score" in details:
            at = counts.setdefault(row.table, {}).setdefault(float(details["min_score"]), {})
            at[row.score] = row.value
            n = int(details.get("n", 0))
    return counts, n


def _table(
    study: Study,
    source: str,
    title: str,
    thresholds: Sequence[float],
    paper: Mapping[float, Mapping[str, float]],
    n: int,
    notes: Sequence[str],
    csv: list[list[object]],
    ours: bool = True,
) -> Table:
    """A row per threshold; its counts are added to ``csv``. source: the paper's table, of ``n`` networks."""
    names, of = _outcomes(study), len(study.pairs)
    score = (study.score or "is") if ours else "is"
    columns = [Column(f"{labels.score_label(score)} above", True)]
    for outcome in names.values():
        columns += [Column(outcome, True)] if ours else []
        columns += [Column("paper" if ours else outcome, True)] if paper else []
    rows = []
    for threshold in thresholds:
        row = [Field(f"{threshold:g}")]
        for key, count in zip(names, pairs.successes(study.pairs, threshold), strict=True):
            theirs = paper.get(threshold, {}).get(key)
            row += [Field(_share(count, of), "lead")] if ours else []
            row += [Field(_share(theirs, n), "paper")] if paper else []
            head = [pairs.folder_name(study), source, study.score if ours else "is", threshold, key]
            csv.append([*head, *((count, of) if ours else (None, None)), theirs, n or None, _paper(study)])
        rows.append(row)
    sizes = [f"ours: {_pairs(of)}"] if ours else []
    sizes += [f"the paper's: {n} architectures"] if paper else []
    return Table(f"{title} ({'; '.join(sizes)})", columns, rows, list(notes))


def _share(count: float | None, of: int) -> str:
    if count is None or not of:
        return "–"
    share = count / of
    return f"{count:g} ({share:.{int(0 < share < 0.01)}%})"


# ---- wins


def _wins(study: Study) -> tuple[list[Table], list[list[object]]]:
    first, second, ties = pairs.wins(study.pairs)
    ours = {study.first: first, study.second: second}
    paper = study.grid.pairs.get("paper")
    published_wins: dict[str, float] = {}
    notes = []
    for row in published.values():
        label = row.score.removesuffix("_wins").replace("_sided", "-sided")
        if row.paper == paper and row.score.endswith("_wins") and label in ours:
            published_wins[label] = row.value
            notes = [f"{row.where}, of {_details(row).get('architectures', '?')} architectures: {row.note}."]
    rows = [
        [Field(f"{label} better"), Field(str(count), "lead"), _count(published_wins.get(label))]
        for label, count in ours.items()
    ]
    rows.append([Field("equal, or both without a score"), Field(str(ties)), Field("–", "paper")])
    p = pairs.sign_test(first, second)
    theirs = (
        pairs.sign_test(*(int(published_wins[label]) for label in ours)) if len(published_wins) == 2 else None
    )
    rows.append(
        [
            Field("p of the sign test"),
            Field(f"{p:.2g}", "lead"),
            Field("–" if theirs is None else f"{theirs:.2g}", "paper"),
        ]
    )
    title = f"Wins by {labels.score_label(study.score or 'is')} (ours: {_pairs(len(study.pairs))})"
    columns = [Column("outcome"), Column("ours", True), Column("paper", True)]
    test = "The sign test is two-sided and ignores ties; the paper's p is computed from its published counts."
    notes = [test, *notes, *filter(None, [_unlike(study)]), *_about(study)]
    head = [pairs.folder_name(study), "Appendix C" if published_wins else "", study.score, None]
    csv: list[list[object]] = []
    for label, count in ours.items():
        csv.append(
            [*head, f"{label} wins", count, len(study.pairs), published_wins.get(label), None, _paper(study)]
        )
    csv.append([*head, "p of the sign test", p, len(study.pairs), theirs, None, _paper(study)])
    return [Table(title, columns, rows, notes)], csv


def _count(value: float | None) -> Field:
    return Field("–" if value is None else f"{value:g}", "paper")


# ---- both


def _details(row: Published) -> dict[str, str]:
    """``min_score 1.0; n 200`` of published.csv as a dict."""
    return dict(part.split(" ", 1) for part in row.details.split("; ") if " " in part)


def _paper(study: Study) -> str:
    key = study.grid.pairs.get("paper", "")
    return str(published.table()["papers"].get(key, {}).get("name", key))


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)}"


def _unlike(study: Study) -> str:
    """Why the paper's counts are not comparable with ours; "" if they are."""
    run = next(iter(study.runs), None)
    if run is None:
        return ""
    reasons = []
    if study.score != "is":
        reasons.append(f"our score is {study.score}, from another network and on another scale")
    dataset, pixels = run.text("dataset"), run.config.get("dataset.resolution")
    if (dataset, pixels) != ("imagenet", 32):
        name = labels.DATASETS.get(dataset, dataset)
        reasons.append(f"our images are {name} at {pixels} pixels, the paper's are ImageNet at 32")
    if study.grid.scale:
        reasons.append(f"our runs are at reduced scale ({study.grid.scale})")
    return f"Not like for like: {'; '.join(reasons)}." if reasons else ""


def _about(study: Study) -> list[str]:
    """Notes on the pairs: score, random set, failures, pairs left out."""
    lines = []
    record = study.protocol
    if study.score:
        name = labels.protocol_name(record, study.protocol_id)
        lines.append(
            f"Score: {study.score} of the last checkpoint, protocol {name}; a run succeeds if its score "
            "is above the threshold."
        )
    else:
        lines.append("No run has an Inception score; add is to metric=.")
    random_set = study.grid.random
    if len(random_set) == 3:
        lines.append(
            f"Random set: {random_set['n']} of {random_set['of']:,} drawn with seed {random_set['seed']}, "
            "without repeats; each choice is uniform and independent (our assumption: the paper only says "
            "random)."
        )
    failures = [f"{n} {labels.method_label(at[0])} {at[1]}" for at, n in sorted(study.failures.items()) if n]
    if failures:
        crashed = any(n and status == "failed" for (_, status), n in study.failures.items())
        retry = " The sweep's command retries failed runs (out of memory, disk full)." if crashed else ""
        lines.append(f"No score, so below every threshold: {', '.join(failures)}.{retry}")
    for names, reason in (
        (study.unfinished, "left out until both runs have ended"),
        (study.unscored, f"left out because a run has no {study.score} under this protocol"),
    ):
        if names:
            first = f"{', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
            lines.append(f"{_pairs(len(names))} {reason}: {first}.")
    dcgan = (study.grid.pairs.get("paper"), "imagenet", "dcgan", "is")
    lines += [
        f"The standard DCGAN scores {row.value:g} in the paper ({row.where})."
        for row in published.values()
        if (row.paper, row.dataset, row.method, row.score) == dcgan
    ]
    return lines


def csv_of(results: Sequence[SuccessTables]) -> str:
    """``successes.csv``: every count of the tables."""
    return to_csv(COLUMNS, [line for result in results for line in result.csv])


def pairs_csv(studies: Sequence[Study]) -> str:
    """``pairs.csv``: both scores of every pair, and its random choices."""
    rows: list[list[object]] = []
    for study in studies:
        for pair in study.pairs:
            choices = "; ".join(f"{key} {value}" for key, value in pair.choices.items())
            for side, value in ((study.first, pair.first), (study.second, pair.second)):
                failed = value == pairs.FAILED
                head = [pairs.folder_name(study), pair.name, choices, study.score, study.protocol_id]
                rows.append([*head, side, None if failed else value, "yes" if failed else "no"])
    return to_csv(PAIR_COLUMNS, rows)
