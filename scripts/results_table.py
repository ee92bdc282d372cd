"""Write the tables of results from all ``benchmarks/*/results.csv``.

    python scripts/results_table.py            rewrite docs/results.md
    python scripts/results_table.py --check    exit 1 if it is out of date

A row is a method at a setting: mean and spread over seeds of the last checkpoint's scores, and the published
value if ``ganlab report`` has a comparable one. A grid of many settings has a row per method, a column per
setting, and one score.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results.md"
SCORES = ("w1", "is", "fid", "is_cifar", "fid_cifar")  # in columns, if the benchmark has them
CELL_KEYS = ("method", "dataset", "architecture", "width", "loss", "setting", "steps", "protocol")
MIN_GRID_SETTINGS = 4  # a benchmark with as many settings is a grid
Row = dict[str, str]


def mean_std(values: list[float]) -> str:
    """Mean, with the sample standard deviation over seeds if there are several."""
    mean = statistics.fmean(values)
    digits = 2 if abs(mean) < 100 else 1
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean:.{digits}f}{spread}"


def table(name: str, rows: list[Row]) -> list[str]:
    """A benchmark as Markdown lines: one row per method and setting."""
    last = [row for row in rows if row["checkpoint"] == "last" and row["value"]]
    scores = [s for s in SCORES if any(row["score"] == s for row in last)]
    about = {(row["dataset_path"] or row["dataset"], row["architecture"], row["loss"]) for row in last}
    what = "; ".join(sorted(" ".join((Path(d).name, a, f"{loss} loss")) for d, a, loss in about))
    title = f"**[{name}](../benchmarks/{name}/)** ({what})"
    if len({row["setting"] for row in last}) >= MIN_GRID_SETTINGS and scores:
        return [title, "", *grid(last, scores[-1]), ""]
    cells: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in last:
        cells[tuple(row[key] for key in CELL_KEYS)].append(row)
    head = ["method", "setting", "updates", "width", *scores, "paper", "protocol", "seeds"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for key in sorted(cells):
        cell = dict(zip(CELL_KEYS, key, strict=True))
        by_score = {s: [float(r["value"]) for r in cells[key] if r["score"] == s] for s in scores}
        seeds = len({row["seed"] for row in cells[key]})
        paper = {
            f"{r['score'].split('_')[0].upper()} {r['published']}"
            for r in cells[key]
            if r["published"] and r["score"].split("_")[0] in ("is", "fid")
        }
        values = [mean_std(v) if v else "" for v in by_score.values()]
        line = [
            *(cell[column] for column in ("method", "setting", "steps", "width")),
            *values,
            ", ".join(sorted(paper, reverse=True)) or "-",
            cell["protocol"],
            str(seeds),
        ]
        lines.append("| " + " | ".join(line) + " |")
    return [title, "", *lines, ""]


def grid(last: list[Row], score: str) -> list[str]:
    """One score of a grid: methods down, by their worst setting; settings across, the best of each bold."""
    cells: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in last:
        if row["score"] == score:
            cells[row["method"], row["setting"]].append(float(row["value"]))
    methods, settings = (sorted({key[i] for key in cells}) for i in (0, 1))
    higher = any(r["better"] == "higher" for r in last if r["score"] == score)
    means = {key: statistics.fmean(values) for key, values in cells.items()}
    best = {s: (max if higher else min)(m for (_, at), m in means.items() if at == s) for s in settings}
    worst = {m: (min if higher else max)(v for (of, _), v in means.items() if of == m) for m in methods}
    lines = ["| " + " | ".join([score, *settings, "worst"]) + " |", "|" + "---|" * (len(settings) + 2)]
    for method in sorted(methods, key=lambda m: worst[m], reverse=higher):
        entries = [mean_std(cells[method, s]) if (method, s) in cells else "-" for s in settings]
        bold = [
            f"**{v}**" if means.get((method, s)) == best[s] else v
            for v, s in zip(entries, settings, strict=True)
        ]
        lines.append("| " + " | ".join([method, *bold, mean_std([worst[method]])]) + " |")
    scale = {key: sorted({row[key] for row in last}) for key in ("steps", "width", "protocol")}
    training = f"{' and '.join(scale['steps'])} updates, width {' and '.join(scale['width'])}"
    return [
        *lines,
        "",
        f"{training}, protocol {' and '.join(scale['protocol'])}; the best of a setting bold.",
    ]


def results() -> str:
    """The page of all benchmarks."""
    parts: list[str] = []
    for file in sorted(ROOT.glob("benchmarks/*/results.csv")):
        with file.open(newline="") as source:
            parts += table(file.parent.name, list(csv.DictReader(source)))
    note = (
        "# Results\n\nMade by `scripts/results_table.py` from the runs' own records; do not edit.\n\n"
        "`paper` is the published value of the same method (best of its settings, full scale, Inception).\n"
        "Scores that end in `_cifar` come from the small built-in network and are not comparable\n"
        "with it; they compare these rows with each other."
    )
    return "\n".join([note, "", *parts]).rstrip() + "\n"


def main() -> int:
    """Rewrite or check the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if it is out of date")
    args = parser.parse_args()
    content = results()
    if RESULTS.exists() and RESULTS.read_text() == content:
        return 0
    if args.check:
        print(f"{RESULTS.name} is out of date; run scripts/results_table.py", file=sys.stderr)
        return 1
    RESULTS.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
