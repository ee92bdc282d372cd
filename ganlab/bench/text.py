"""Tables of the measurements: for the console, and as Markdown for ``benchmarks/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ganlab.tables import print_table

Row = dict[str, str]


def summarize(section: str, record: Mapping[str, Any]) -> str:
    """Summarize a record in one line."""
    if section == "cases":
        rows = [(name, row) for name, row in record["paths"].items() if "s" in row]
        return ", ".join(f"{name} {row['updates_per_s']:.3g}/s{_times(row)}" for name, row in rows)
    if section == "evaluation":
        return f"{record['images_per_s']:.4g} images/s"
    if section == "packing":
        return f"{1 / record['s']:.3g} updates/s in total ({record['gain']:.2f}x one)"
    return f"{record['s']:.3g} s per update"


def _times(row: Mapping[str, Any]) -> str:
    return f" ({row['ratio']:.2f}x)" if "ratio" in row and row["kind"] != "plain" else ""


def sections(measurements: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of each non-empty table."""
    cases = [record["told"] for record in measurements.get("cases", {}).values()]
    rows = [_case_row(case, name, row) for case in cases for name, row in case["paths"].items()]
    if rows:
        yield "Updates", rows
    evaluations = [record["told"] for record in measurements.get("evaluation", {}).values()]
    if evaluations:
        yield "Scoring", [_scored_row(record) for record in evaluations]
    packing = [record["told"] for record in measurements.get("packing", {}).values()]
    if packing:
        yield "Concurrent runs", [_packed_row(record) for record in packing]
    scaling = [record["told"] for record in measurements.get("scaling", {}).values()]
    if scaling:
        yield "Cost against size", [_scaled_row(record) for record in scaling]


def _case_row(case: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> Row:
    size = (
        ""
        if case["width"] == 1 and case["batch_size"] == 64
        else f" {case['width']:g}x b{case['batch_size']}"
    )
    head = {"case": f"{case['net']} {case['method']}{size}", "d_steps": str(case["d_steps"]), "path": name}
    if "s" not in row:
        return head | {"updates/s": row.get("error", "-")}
    engine_note = f" ({row['used']})" if row["kind"] == "ganlab" and row["used"] != row["engine"] else ""
    memory = f"{row['rss_mb']:,.0f}" + (f" + {row['cuda_mb']:,.0f} GPU" if "cuda_mb" in row else "")
    return {
        **head,
        "path": name + engine_note,
        "updates/s": f"{row['updates_per_s']:.4g}",
        "s": f"{row['s']:.4g}",
        "range": f"{row['least_s']:.3g}-{row['most_s']:.3g}",
        "x plain": f"{row['ratio']:.2f} ({row['ratio_least']:.2f}-{row['ratio_most']:.2f})"
        if "ratio" in row
        else "",
        "x CPU": f"{row['ratio_cpu']:.2f}" if "ratio_cpu" in row else "",
        "GFLOP": f"{row['flops'] / 1e9:,.0f}" if row["flops"] > 1e10 else f"{row['flops'] / 1e9:.2g}",
        "of floor": f"{row['share_of_floor']:.0%}",
        "operations": f"{row['operations']:,}",
        "MB": memory,
        "first s": f"{row['first_s']:.1f}",
    }


def _scored_row(record: Mapping[str, Any]) -> Row:
    points = ", ".join(f"{p['samples']}: {p['s']:.3g} s" for p in record["points"])
    return {
        "net": f"{record['net']} {record['width']:g}x",
        "extractor": record["extractor"],
        "images/s": f"{record['images_per_s']:.4g}",
        "generated/s": f"{record['make_images_per_s']:.4g}",
        "images: seconds": points,
    }


def _packed_row(record: Mapping[str, Any]) -> Row:
    return {
        "runs": str(record["runs"]),
        "in": record["how"],
        "path": record["path"],
        "threads each": str(record["threads"]),
        "updates/s in total": f"{1 / record['s']:.4g}",
        "x one": f"{record['gain']:.2f} ({record['gain_least']:.2f}-{record['gain_most']:.2f})",
        "MB": f"{record['rss_mb']:,.0f}",
    }


def _scaled_row(record: Mapping[str, Any]) -> Row:
    return {
        "axis": record["axis"],
        "value": f"{record['value']:g}",
        "path": record["path"],
        "s": f"{record['s']:.4g}",
        "images/s": f"{record['batch_size'] / record['s']:.4g}",
        "GFLOP": f"{record['flops'] / 1e9:.4g}",
        "of floor": f"{record['share_of_floor']:.0%}",
    }


def _heads(rows: Sequence[Row]) -> list[str]:
    """The columns of the row with the most columns."""
    return list(max(rows, key=lambda row: len(list(row))))


def show(measurements: Mapping[str, Any], conclusions: Sequence[str]) -> None:
    """Print all tables, then the conclusions."""
    for title, rows in sections(measurements):
        heads = _heads(rows)
        print_table(title, heads, [[row.get(head) for head in heads] for row in rows])
    print("\n".join(conclusions), end="\n" if conclusions else "")


def markdown(measurements: Mapping[str, Any], conclusions: Sequence[str]) -> str:
    """``bench.md``: machine, versions, commands and dates, then the tables."""
    records = [r for name, part in measurements.items() if name != "format" for r in part.values()]
    lines = ["# Speed", "", *_about(records), ""]
    for title, rows in sections(measurements):
        heads = _heads(rows)
        lines += [f"## {title}", "", _line(heads), _line(["---"] * len(heads))]
        lines += [_line([row.get(head, "") for head in heads]) for row in rows] + [""]
    if conclusions:
        lines += ["## Conclusions", "", *(f"- {line}" for line in conclusions), ""]
    return "\n".join([*lines, HOW])


def _about(records: Sequence[Mapping[str, Any]]) -> list[str]:
    def distinct(key: str) -> str:
        return ", ".join(dict.fromkeys(str(r[key]) for r in records))

    versions = records[-1]["versions"]
    dates = sorted(r["when"] for r in records)
    loads = [r["load"] for r in records if r["load"] is not None]
    lines = [
        f"- machine: {distinct('device')}, {distinct('cores')} cores, {distinct('threads')} threads per path",
        f"- versions: {', '.join(f'{k} {v}' for k, v in versions.items() if v)}; commit {distinct('git')}",
        f"- measured: {dates[0]} to {dates[-1]}",
    ]
    if loads:
        lines.append(f"- load average at the end of a measurement: {min(loads):.1f} to {max(loads):.1f}")
    return [*lines, *(f"- `{command}`" for command in dict.fromkeys(r["command"] for r in records))]


HOW = """\
Each path ran in its own process; paths took turns (A B A B ...). Values are medians and ranges over rounds.
x plain: speed relative to `scripts/plain_loop.py` at the same image size, round by round. x CPU: the same by
CPU time. of floor: the fewest FLOPs of any path, at the best rate of a large matrix product or convolution
measured between the turns, as a share of the measured time. operations: dispatched per update, without views
and allocations. first s: from process start to the end of the first update. MB: peak memory of the process.
"""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
