"""Figures of the measurements: speed ratios by case, and cost curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from ganlab.analysis import drawing
from ganlab.report.draw import style

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
AXES = {"batch_size": "batch size", "width": "width", "resolution": "image side (pixels)"}


def pictures(measurements: Mapping[str, Any]) -> dict[str, bytes]:
    """PNGs by name: ``bench`` if cases were measured, ``scaling`` if curves were."""
    cases = [record["told"] for record in measurements.get("cases", {}).values()]
    images = {"bench": bars(cases, _machine(measurements))} if cases else {}
    curves = _curves(measurements)
    return images | ({"scaling": lines(curves, _machine(measurements))} if curves else {})


def _machine(measurements: Mapping[str, Any]) -> str:
    records = [r for name, part in measurements.items() if name != "format" for r in part.values()]
    last = records[-1]
    return f"{last['device']}, {last['threads']} threads, torch {last['torch']}, {last['when'][:10]}"


def bars(cases: Sequence[Mapping[str, Any]], machine: str) -> bytes:
    """Draw one group of bars per case: speed relative to the plain loop, labeled with updates per second.

    If no case has a plain-loop reference, bars show updates per second.
    """
    ratios = any("ratio" in row for c in cases for row in c["paths"].values())
    groups = [
        (
            case,
            [
                (name, row)
                for name, row in case["paths"].items()
                if "ratio" in row or (not ratios and "s" in row)
            ],
        )
        for case in cases
    ]
    groups = [(case, rows) for case, rows in groups if rows]
    spare = iter(COLORS * 4)
    colors: dict[str, str] = {}
    for name in (name for _, rows in groups for name, _ in rows):
        if name not in colors:
            colors[name] = style.METHOD_COLORS["none"] if name.startswith("plain") else next(spare)
    count = sum(len(rows) for _, rows in groups)
    with drawing.style():
        figure = Figure(figsize=(7.2, 0.2 * count + 0.2 * len(groups) + 1.5), layout="constrained")
        (ax,) = drawing.panels(figure, 1, 1)
        ax.grid(axis="y", visible=False)
        position, ticks, longest = 0.0, [], 0.0
        for case, rows in groups:
            ticks.append((position + (len(rows) - 1) / 2, _label(case)))
            for name, row in rows:
                longest = max(longest, _bar(ax, position, row, colors[name], ratios))
                position += 1
            position += 0.7
        ax.set_yticks([t for t, _ in ticks], [label for _, label in ticks])
        ax.invert_yaxis()
        ax.set_xlim(0, longest * 1.3)
        if ratios:
            ax.axvline(1, color=style.INK, lw=0.8)
        unit = "times as fast as the plain eager loop" if ratios else "generator updates per second"
        ax.set_xlabel(f"{unit}; medians and range of the rounds")
        handles = [_patch(color, name) for name, color in colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)))
        ax.set_title(style.wrap(machine, 95, 2), loc="left", fontsize=7.2, color=style.GREY)
        drawing.set_title(figure, "Speed of an update")
        return drawing.png(figure)


def _bar(ax: Any, position: float, row: Mapping[str, Any], color: str, ratios: bool) -> float:
    """Draw one; how far it reaches."""
    rate = row["updates_per_s"]
    value, low, high = rate, 1 / row["most_s"], 1 / row["least_s"]
    label = f"{rate:.3g}/s"
    if ratios:
        value, low, high = row["ratio"], row["ratio_least"], row["ratio_most"]
        label = label if row["kind"] == "plain" else f"{value:.2f}x   {label}"
    ax.barh(position, value, 0.86, color=color, alpha=0.85)
    if high > low:
        ax.errorbar(value, position, xerr=[[value - low], [high - value]], color=style.INK, lw=0.8, capsize=2)
    ax.annotate(label, (high, position), (5, 0), textcoords="offset points", va="center", fontsize=7)
    return float(high)


def _label(case: Mapping[str, Any]) -> str:
    size = (
        ""
        if case["width"] == 1 and case["batch_size"] == 64
        else f"\nwidth {case['width']:g}, b{case['batch_size']}"
    )
    return f"{case['net']} {case['method'].replace('_', ' ')}, {case['d_steps']} D{size}"


def _patch(color: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(color=color, label=name, alpha=0.85)


Curve = tuple[str, str, list[tuple[float, float, float, float]]]  # title, y label, (x, y, least, most)


def _curves(measurements: Mapping[str, Any]) -> list[Curve]:
    curves: list[Curve] = []
    scaling = [record["told"] for record in measurements.get("scaling", {}).values()]
    for axis, title in AXES.items():
        points = sorted((r["value"], r["s"], r["least_s"], r["most_s"]) for r in scaling if r["axis"] == axis)
        if len(points) > 1:
            curves.append((title, "seconds per update", points))
    for name, record in measurements.get("evaluation", {}).items():
        points = [(p["samples"], p["s"], p["s"], p["s"]) for p in record["told"]["points"]]
        if len(points) > 1:
            curves.append((f"images scored\n{name}", "seconds", points))
    packing = [record["told"] for record in measurements.get("packing", {}).values()]
    for mode in ("lanes", "processes"):
        points = sorted(
            (r["runs"], r["gain"], r["gain_least"], r["gain_most"])
            for r in packing
            if r["how"] == mode or r["runs"] == 1
        )
        if len(points) > 1:
            curves.append((f"concurrent runs ({mode})", "throughput relative to one run", points))
    return curves


def lines(curves: Sequence[Curve], machine: str) -> bytes:
    """Draw one small panel per curve."""
    across = min(3, len(curves))
    with drawing.style():
        figure = Figure(figsize=(2.6 * across, 2.1 * -(-len(curves) // across) + 0.8), layout="constrained")
        for ax, (title, label, points) in zip(
            drawing.panels(figure, len(curves), across), curves, strict=True
        ):
            x, y = [p[0] for p in points], [p[1] for p in points]
            spread = [[p[1] - p[2] for p in points], [p[3] - p[1] for p in points]]
            ax.errorbar(x, y, yerr=spread, color=COLORS[0], marker="o", ms=3.5, lw=1.2, capsize=2)
            ax.set_xscale("log", base=2)
            ax.set_xticks(x, [f"{v:g}" for v in x])
            ax.minorticks_off()
            ax.set_ylim(0)
            ax.set_xlabel(title, fontsize=8)
            ax.set_ylabel(label, fontsize=7.5)
        drawing.set_title(figure, "Cost against size", machine)
        return drawing.png(figure)
