"""The measurements as tables: on the screen, and as Markdown for ``benchmarks/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ganlab.sweeps import process

Row = dict[str, str]


def in_short(section: str, record: Mapping[str, Any]) -> str:
    """A record on one line."""
    if section == "cases":
        rows = [(name, row) for name, row in record["paths"].items() if "s" in row]
        return ", ".join(f"{name} {row['updates_per_s']:.3g}/s{_times(row)}" for name, row in rows)
    if section == "evaluation":
        return f"{record['images_per_s']:.4g} images/s"
    if section == "packing":
        return f"{1 / record['s']:.3g} updates/s together ({record['gain']:.2f}x one)"
    return f"{record['s']:.3g} s an update"


def _times(row: Mapping[str, Any]) -> str:
    return f" ({row['ratio']:.2f}x)" if "ratio" in row and row["kind"] != "plain" else ""


def sections(told: Mapping[str, Any]) -> Iterator[tuple[str, list[Row]]]:
    """Title and rows of every table there is something for."""
    cases = [record["told"] for record in told.get("cases", {}).values()]
    rows = [_case_row(case, name, row) for case in cases for name, row in case["paths"].items()]
    if rows:
        yield "Updates", rows
    scored = [record["told"] for record in told.get("evaluation", {}).values()]
    if scored:
        yield "Scoring", [_scored_row(one) for one in scored]
    packed = [record["told"] for record in told.get("packing", {}).values()]
    if packed:
        yield "Runs at once", [_packed_row(one) for one in packed]
    scaled = [record["told"] for record in told.get("scaling", {}).values()]
    if scaled:
        yield "Cost against size", [_scaled_row(one) for one in scaled]


def _case_row(case: Mapping[str, Any], name: str, row: Mapping[str, Any]) -> Row:
    size = (
        ""
        if case["width"] == 1 and case["batch_size"] == 64
        else f" {case['width']:g}x b{case['batch_size']}"
    )
    head = {"case": f"{case['net']} {case['method']}{size}", "d_steps": str(case["d_steps"]), "path": name}
    if "s" not in row:
        return head | {"updates/s": row.get("error", "-")}
    used = f" ({row['used']})" if row["kind"] == "ganlab" and row["used"] != row["engine"] else ""
    memory = f"{row['rss_mb']:,.0f}" + (f" + {row['cuda_mb']:,.0f} GPU" if "cuda_mb" in row else "")
    return {
        **head,
        "path": name + used,
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


def _scored_row(one: Mapping[str, Any]) -> Row:
    points = ", ".join(f"{p['samples']}: {p['s']:.3g} s" for p in one["points"])
    return {
        "net": f"{one['net']} {one['width']:g}x",
        "extractor": one["extractor"],
        "images/s": f"{one['images_per_s']:.4g}",
        "made/s": f"{one['make_images_per_s']:.4g}",
        "images: seconds": points,
    }


def _packed_row(one: Mapping[str, Any]) -> Row:
    return {
        "runs": str(one["runs"]),
        "in": one["how"],
        "path": one["path"],
        "threads each": str(one["threads"]),
        "updates/s together": f"{1 / one['s']:.4g}",
        "x one": f"{one['gain']:.2f} ({one['gain_least']:.2f}-{one['gain_most']:.2f})",
        "MB": f"{one['rss_mb']:,.0f}",
    }


def _scaled_row(one: Mapping[str, Any]) -> Row:
    return {
        "axis": one["axis"],
        "value": f"{one['value']:g}",
        "path": one["path"],
        "s": f"{one['s']:.4g}",
        "images/s": f"{one['batch_size'] / one['s']:.4g}",
        "GFLOP": f"{one['flops'] / 1e9:.4g}",
        "of floor": f"{one['share_of_floor']:.0%}",
    }


def _heads(rows: Sequence[Row]) -> list[str]:
    """The columns of the fullest row."""
    return list(max(rows, key=lambda row: len(list(row))))


def show(told: Mapping[str, Any], conclusions: Sequence[str]) -> None:
    """Every table on the screen, then the conclusions."""
    for title, rows in sections(told):
        heads = _heads(rows)
        process.print_table(title, heads, [{head: row.get(head, "") for head in heads} for row in rows])
    print("\n".join(conclusions), end="\n" if conclusions else "")


def markdown(told: Mapping[str, Any], conclusions: Sequence[str]) -> str:
    """``bench.md``: machine, versions, commands and dates, then the tables."""
    records = [r for name, part in told.items() if name != "format" for r in part.values()]
    lines = ["# Speed", "", *_about(records), ""]
    for title, rows in sections(told):
        heads = _heads(rows)
        lines += [f"## {title}", "", _line(heads), _line(["---"] * len(heads))]
        lines += [_line([row.get(head, "") for head in heads]) for row in rows] + [""]
    if conclusions:
        lines += ["## What follows", "", *(f"- {line}" for line in conclusions), ""]
    return "\n".join([*lines, HOW])


def _about(records: Sequence[Mapping[str, Any]]) -> list[str]:
    def each(key: str) -> str:
        return ", ".join(dict.fromkeys(str(r[key]) for r in records))

    versions = records[-1]["versions"]
    dates = sorted(r["when"] for r in records)
    loads = [r["load"] for r in records if r["load"] is not None]
    lines = [
        f"- machine: {each('device')}, {each('cores')} cores, {each('threads')} threads a path",
        f"- versions: {', '.join(f'{k} {v}' for k, v in versions.items() if v)}; commit {each('git')}",
        f"- measured: {dates[0]} to {dates[-1]}",
    ]
    if loads:
        lines.append(f"- load average when a part was done: {min(loads):.1f} to {max(loads):.1f}")
    return [*lines, *(f"- `{command}`" for command in dict.fromkeys(r["command"] for r in records))]


HOW = """\
Every path ran in a process of its own; some updates of each in turn, A B A B ...; medians and ranges of the
rounds. x plain: times as fast as `scripts/plain_loop.py` on images of the same size, round by round; x CPU:
the same by processor time. of floor: the fewest floating-point operations of any path, at the best rate of a
large matrix product or convolution measured between the turns, as a share of the time taken. operations:
dispatched in an update, views and allocations left out. first s: from the start of the process to the end of
the first update. MB: peak of the process.
"""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"
