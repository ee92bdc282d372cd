"""Tables of pairs: successes over thresholds (WGAN-GP's Tables 2, 5), wins (appendix C), ours, published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ganlab.papers import labels, published
from ganlab.papers.published import Published
from ganlab.report.compare import pairs
from ganlab.report.compare.pairs import Study
from ganlab.report.write.table import Column, Field, Table, to_csv

COLUMNS = (
    *(
        "grid",
        "table",
        "score",
        "threshold",
        "outcome",
        "ours",
        "ours_n",
        "published",
        "published_n",
        "paper",
    ),
)
PAIR_COLUMNS = ("grid", "pair", "chosen", "score", "protocol_id", "side", "value", "succeeds_at_no_threshold")


@dataclass(frozen=True)
class SuccessTables:
    """What a report says of a study: heading, tables, and the lines of its CSV."""

    heading: str
    tables: list[Table]
    csv: list[list[object]]


def success_tables(study: Study, thresholds: Sequence[float] = ()) -> SuccessTables:
    """The tables of a study. ``thresholds``: the user's, in the place of the paper's."""
    made = _wins(study) if study.grid.pairs.get("count") == "wins" else _successes(study, thresholds)
    return SuccessTables(study.grid.heading, *made)


# ---- successes


def _successes(study: Study, thresholds: Sequence[float]) -> tuple[list[Table], list[list[object]]]:
    names = _outcomes(study)
    paper, n = _published(study, names)
    why = _unlike(study)
    made, csv = [], list[list[object]]()
    if thresholds or (study.score and study.score != "is"):
        found = sorted(set(thresholds)) or pairs.deciles(study.scores)
        note = (
            f"Thresholds: the deciles of the {len(study.scores)} scores found here, since the paper's are of "
            "another network's score. They tell the two sides apart, and say nothing of success as the paper "
            "means it."
        )
        made.append(_table(study, "Successes over thresholds", found, {}, 0, [] if thresholds else [note]))
        csv += _lines(study, "", found, {}, 0)
        for table, rows in paper.items():
            title = f"{_paper(study)} {table}, published"
            made.append(_table(study, title, list(rows), rows, n, [why] if why else [], ours=False))
            csv += _lines(study, table, list(rows), rows, n, ours=False)
    else:
        for table, rows in paper.items():
            title = f"{_paper(study)} {table}, published and ours"
            made.append(_table(study, title, list(rows), rows, n, [why] if why else []))
            csv += _lines(study, table, list(rows), rows, n)
    if made:
        made[0] = Table(made[0].title, made[0].columns, made[0].rows, [*made[0].notes, *_about(study)])
    return made, csv


def _outcomes(study: Study) -> dict[str, str]:
    """published.csv's words for the four outcomes, and ours."""
    first, second = (labels.method_label(label) for label in (study.first, study.second))
    keys = [f"only_{label.replace('-', '_')}" for label in (study.first, study.second)]
    words = (f"only {first}", f"only {second}", "both", "neither")
    return dict(zip([*keys, "both", "neither"], words, strict=True))


def _published(
    study: Study, names: Mapping[str, str]
) -> tuple[dict[str, dict[float, dict[str, float]]], int]:
    """Table -> threshold -> outcome -> count, and of how many nets."""
    found: dict[str, dict[float, dict[str, float]]] = {}
    n = 0
    for row in published.values():
        details = _details(row)
        if row.paper == study.grid.pairs.get("paper") and row.score in names and "min_score" in details:
            at = found.setdefault(row.table, {}).setdefault(float(details["min_score"]), {})
            at[row.score] = row.value
            n = int(details.get("n", 0))
    return found, n


def _table(
    study: Study,
    title: str,
    thresholds: Sequence[float],
    paper: Mapping[float, Mapping[str, float]],
    n: int,
    notes: Sequence[str],
    ours: bool = True,
) -> Table:
    names = _outcomes(study)
    label = labels.score_label(study.score or "is") if ours else "IS"
    columns = [Column(f"{label} above", True)]
    for outcome in names.values():
        columns += [Column(outcome, True)] if ours else []
        columns += [Column("paper" if ours else outcome, True)] if paper else []
    rows = []
    for threshold in thresholds:
        counts = pairs.successes(study.pairs, threshold)
        row = [Field(f"{threshold:g}")]
        for key, count in zip(names, counts, strict=True):
            row += [Field(_share(count, len(study.pairs)), "lead")] if ours else []
            row += [Field(_share(paper[threshold].get(key), n), "paper")] if paper else []
        rows.append(row)
    sizes = [f"ours: {_pairs(len(study.pairs))}"] if ours else []
    sizes += [f"the paper's: {n} architectures"] if paper else []
    return Table(f"{title} ({'; '.join(sizes)})", columns, rows, list(notes))


def _share(count: float | None, of: int) -> str:
    if count is None or not of:
        return "–"
    share = count / of
    return f"{count:g} ({share:.{int(0 < share < 0.01)}%})"


def _lines(
    study: Study,
    table: str,
    thresholds: Sequence[float],
    paper: Mapping[float, Mapping[str, float]],
    n: int,
    ours: bool = True,
) -> list[list[object]]:
    lines: list[list[object]] = []
    for threshold in thresholds:
        counts = pairs.successes(study.pairs, threshold)
        for key, count in zip(_outcomes(study), counts, strict=True):
            there = paper.get(threshold, {}).get(key)
            own = (count, len(study.pairs)) if ours else (None, None)
            head = [pairs.folder_name(study), table, study.score if ours else "is", threshold, key]
            lines.append([*head, *own, there, n or None, _paper(study)])
    return lines


# ---- wins


def _wins(study: Study) -> tuple[list[Table], list[list[object]]]:
    first, second, ties = pairs.wins(study.pairs)
    ours = {study.first: first, study.second: second}
    paper = study.grid.pairs.get("paper")
    there: dict[str, float] = {}
    notes = []
    for row in published.values():
        label = row.score.removesuffix("_wins").replace("_sided", "-sided")
        if row.paper == paper and row.score.endswith("_wins") and label in ours:
            there[label] = row.value
            notes = [f"{row.where}, of {_details(row).get('architectures', '?')} architectures: {row.note}."]
    rows = [
        [Field(f"{label} better"), Field(str(count), "lead"), _count(there.get(label))]
        for label, count in ours.items()
    ]
    rows.append([Field("equal, or both without a score"), Field(str(ties)), Field("–", "paper")])
    p = pairs.sign_test(first, second)
    theirs = pairs.sign_test(*(int(there[label]) for label in ours)) if len(there) == 2 else None
    rows.append(
        [
            Field("p of the sign test"),
            Field(f"{p:.2g}", "lead"),
            Field("–" if theirs is None else f"{theirs:.2g}", "paper"),
        ]
    )
    title = f"Wins by {labels.score_label(study.score or 'is')} (ours: {_pairs(len(study.pairs))})"
    columns = [Column("outcome"), Column("ours", True), Column("paper", True)]
    said = [
        "The sign test is two-sided and leaves ties out; the paper's p is computed here from its two counts."
    ]
    said += notes + ([why] if (why := _unlike(study)) else [])
    csv: list[list[object]] = []
    for label, count in ours.items():
        head = [pairs.folder_name(study), "Appendix C" if there else "", study.score, None, f"{label} wins"]
        csv.append([*head, count, len(study.pairs), there.get(label), None, _paper(study)])
    head = [pairs.folder_name(study), "Appendix C" if there else "", study.score, None, "p of the sign test"]
    csv.append([*head, p, len(study.pairs), theirs, None, _paper(study)])
    return [Table(title, columns, rows, [*said, *_about(study)])], csv


def _count(value: float | None) -> Field:
    return Field("–" if value is None else f"{value:g}", "paper")


# ---- both


def _details(row: Published) -> dict[str, str]:
    """``min_score 1.0; n 200`` of published.csv by word."""
    return dict(part.split(" ", 1) for part in row.details.split("; ") if " " in part)


def _paper(study: Study) -> str:
    key = study.grid.pairs.get("paper", "")
    return str(published.table()["papers"].get(key, {}).get("name", key))


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)}"


def _unlike(study: Study) -> str:
    """Why the paper's counts are not those of the same experiment; "" if they may be."""
    run = next(iter(study.runs), None)
    if run is None:
        return ""
    reasons = []
    if study.score != "is":
        reasons.append(f"ours is {study.score}, of another network, whose values are on another scale")
    dataset, pixels = run.text("dataset"), run.config.get("dataset.resolution")
    if (dataset, pixels) != ("imagenet", 32):
        name = labels.DATASETS.get(dataset, dataset)
        reasons.append(f"the images are {name} at {pixels} pixels, the paper's ImageNet at 32")
    if study.grid.scale:
        reasons.append(study.grid.scale)
    return f"Not like for like: {'; '.join(reasons)}." if reasons else ""


def _about(study: Study) -> list[str]:
    """What a reader must know of the pairs themselves."""
    lines = []
    record = study.protocol
    if study.score:
        name = labels.protocol_name(record, study.protocol_id)
        lines.append(
            f"Score: {study.score} of the last checkpoint, protocol {name}; success is a score above."
        )
    else:
        lines.append("No run has an Inception score: add is to metric=.")
    drawn = study.grid.random
    if len(drawn) == 3:
        lines.append(
            f"Random set: {drawn['n']} of {drawn['of']:,} drawn by seed {drawn['seed']}, each choice uniform "
            "and independent (an assumption: the paper says random), all different."
        )
    fell = [f"{n} {labels.method_label(at[0])} {at[1]}" for at, n in sorted(study.ended.items()) if n]
    if fell:
        crashed = any(n and status == "failed" for (_, status), n in study.ended.items())
        again = "; what failed (memory, disk) the sweep's command tries again" if crashed else ""
        lines.append(f"Without a score, below every threshold: {', '.join(fell)}{again}.")
    for names, why in (
        (study.waiting, "left out until both runs are over"),
        (study.unscored, f"left out for want of a {study.score} under this protocol"),
    ):
        if names:
            listed = f"{', '.join(names[:12])}{', …' if len(names) > 12 else ''}"
            lines.append(f"{_pairs(len(names))} {why}: {listed}.")
    wanted = (study.grid.pairs.get("paper"), "imagenet", "dcgan", "is")
    lines += [
        f"The standard DCGAN scores {row.value:g} in the paper ({row.where})."
        for row in published.values()
        if (row.paper, row.dataset, row.method, row.score) == wanted
    ]
    return lines


def csv_of(found: Sequence[SuccessTables]) -> str:
    """``successes.csv``: every count of the tables."""
    return to_csv(COLUMNS, [line for one in found for line in one.csv])


def pairs_csv(studies: Sequence[Study]) -> str:
    """``pairs.csv``: both scores of every pair, and what its architecture was drawn to be."""
    rows: list[list[object]] = []
    for study in studies:
        for pair in study.pairs:
            drawn = "; ".join(f"{key} {value}" for key, value in pair.chosen.items())
            for side, value in ((study.first, pair.first), (study.second, pair.second)):
                failed = value == pairs.FAILED
                scored = None if failed else value
                head = [pairs.folder_name(study), pair.name, drawn, study.score, study.protocol_id]
                rows.append([*head, side, scored, "yes" if failed else "no"])
    return to_csv(PAIR_COLUMNS, rows)
