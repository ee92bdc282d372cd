"""What a report says of published values, order, seed noise, grids and protocols."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from report_runs import PAPER, SMALL, SNGAN, TTUR, digest, make_run

from ganlab.papers import published
from ganlab.report import report
from ganlab.report.compare import compare, ranking, rescored, sidebyside, significance
from ganlab.report.read import cells, collect, grids
from ganlab.report.write.table import Table

NASTY = "<script>alert(1)</script>|`x`](javascript:x)=1+1\x1b[31m"
FID = cells.Key("fid", "last", digest(SNGAN))


def one_section(root: Path) -> cells.Section:
    (section,) = cells.sections(collect.collect([root]))
    return section


def words(table: Table | None) -> list[list[str]]:
    assert table is not None
    return [[field.text for field in row] for row in table.rows]


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(text.splitlines()))


def seeds(root: Path, method: str, values: list[float], setting: str = "C", **changes: Any) -> None:
    for seed, value in enumerate(values):
        make_run(root, method, setting, seed, fid=value, samples=False, **changes)


# ---- side by side


def test_side_by_side_marks_only_matching_protocols(tmp_path: Path) -> None:
    make_run(tmp_path, "sn", "C", fid=40.0, steps=1000, width=0.25, samples=False)
    lines = words(sidebyside.table(one_section(tmp_path)))
    by_who = {(line[1], line[3]): line[-1] for line in lines}
    assert lines[0][:4] == ["SN", "ours", "6.00 (C, one seed)", "40.00 (C, one seed)"]
    paper = by_who["SNGAN Table 2", "29.30"]
    assert "IS: yes, under sngan_paper (ours: 0.01× its updates; ours: 0.25× the width)" in paper
    assert "not stated: the split of FID's real images" in paper
    assert "no: loss: ours standard, published hinge" in by_who["SNGAN Table 2", "25.50"]
    assert "Chainer port" in by_who["chainer-gan-lib README", "23.60"]
    collections = by_who["pytorch-gan-collections README", "17.81"]
    assert "generated images: ours 5,000, published 50,000" in collections
    assert not any(
        "yes" in answer for (who, _), answer in by_who.items() if "SNGAN" not in who and who != "ours"
    )


def test_scores_of_another_network_and_other_images_are_never_like_for_like(tmp_path: Path) -> None:
    folder = {"dataset": {"path": "../shared/data/cifar10-jpeg.tar.xz", "resolution": 32}}
    shared: dict[str, Any] = {"dataset": "folder", "overrides": folder, "samples": False}
    make_run(tmp_path / "a", "sn", "C", suffix="_cifar", protocol=SMALL, **shared)
    table = sidebyside.table(one_section(tmp_path / "a"))
    lines = words(table)
    assert lines[0][2].startswith("is_cifar 6.00")  # never under a bare IS
    assert all("no: " in line[-1] and "yes" not in line[-1] for line in lines if line[1] != "ours")
    assert table is not None
    assert any("No row is like for like with ours: our images come from" in n for n in table.notes)
    make_run(tmp_path / "b", "sn", "C", **shared)
    lines = words(sidebyside.table(one_section(tmp_path / "b")))
    assert any("different images" in line[-1] for line in lines)
    assert not any("yes" in line[-1] for line in lines)


def test_conditional_runs_meet_conditional_rows_alone(tmp_path: Path) -> None:
    net = {"architecture": {"width": 1.0, "head": "projection"}}
    change: dict[str, Any] = {"architecture": "resnet", "loss": "hinge", "overrides": net, "samples": False}
    make_run(tmp_path, "sn", "resnet", **change)
    section = one_section(tmp_path)
    who = {p.paper for p in sidebyside.rows_of(section, section.groups[0])}
    assert {"projection", "mimicry", "mmgeneration"} <= who
    assert "sngan" not in who
    lines = words(sidebyside.table(section))
    assert any(line[1] == "Projection Table 3" and line[3] == "17.50" for line in lines)


@pytest.mark.parametrize("method", ["sn+wgan-gp", "sn+gp"])
def test_appendix_e_meets_its_own_rows(method: str, tmp_path: Path) -> None:
    wasserstein = {"_target_": "ganlab.methods.losses.Wasserstein"}
    learned = {"sn": {"gamma": "learned"}, "gp": {"weight": 10.0}}
    change: dict[str, Any] = {"architecture": "resnet", "loss": "wasserstein", "samples": False}
    for channels, name in ((128, "plain"), (192, "wide")):
        net = {"width": 1.0, "d_channels": channels}
        config = {"loss": wasserstein, "normalization": learned, "architecture": net}
        make_run(tmp_path, method, "resnet", folder=name, overrides=config, **change)
    section = one_section(tmp_path)
    rows = compare.match_published(section, FID).rows
    assert {g.variant: (row.table, row.value) for g, row in rows.items()} == {
        "d_channels 128": ("Table 7", 23.6),
        "d_channels 192": ("Table 7", 22.5),
    }
    fixed = published.canonical_method(method, "wasserstein", {"normalization.sn.gamma": "fixed"})
    assert fixed == method
    narrow = next(g for g in section.groups if g.variant == "d_channels 128")
    (row,) = [p for p in sidebyside.rows_of(section, narrow) if p.wide and p.score == "fid"]
    assert "the published D is 1.5 times as wide" in sidebyside.verdict(section, narrow, row, FID).reasons


def test_recalled_values_are_marked_everywhere(tmp_path: Path) -> None:
    net = {"architecture": {"width": 1.0, "head": "ac"}}
    change: dict[str, Any] = {"architecture": "resnet", "loss": "hinge", "overrides": net, "samples": False}
    make_run(tmp_path, "sn", "resnet", fid=20.0, **change)
    section = one_section(tmp_path)
    table = sidebyside.table(section)
    assert "Projection Table 3, recalled from memory: not verified" in [line[1] for line in words(table)]
    assert table is not None
    assert "Values recalled from memory are not verified." in table.notes
    listed = rows_of(sidebyside.csv_of([section]))
    assert {r["recalled"] for r in listed if r["source"] == "recalled, not read"} == {"True"}


def test_variants_of_a_method_share_its_published_lines(tmp_path: Path) -> None:
    make_run(tmp_path, "sn", "C", steps=1000, samples=False)
    make_run(tmp_path, "sn", "A", steps=3000, samples=False)
    lines = words(sidebyside.table(one_section(tmp_path)))
    assert [line[1] for line in lines[:2]] == ["ours, 1,000 updates", "ours, 3,000 updates"]
    assert sum(line[1] == "chainer-gan-lib README" for line in lines) == 1


def test_every_published_line_can_be_judged(tmp_path: Path) -> None:
    """No row of the shipped table breaks the verdict, whatever its protocol."""
    make_run(tmp_path, "sn", "C", samples=False)
    section = one_section(tmp_path)
    for row in published.values():
        if row.score in ("is", "fid", "kid"):
            assert sidebyside.verdict(section, section.groups[0], row, FID._replace(score=row.score)).ours
            assert sidebyside.training(row)


# ---- seed noise


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([40.0, 44.0], [50.0, 51.0]),
        ([1.0, 1.0], [2.0, 2.5]),
    ],
)
def test_noise_is_welchs_interval(a: list[float], b: list[float]) -> None:
    difference = significance.compare("C", ("SN", a), ("WN", b))
    theirs = scipy.stats.ttest_ind_from_stats(
        *(statistics.fmean(a), statistics.stdev(a), len(a)),
        *(statistics.fmean(b), statistics.stdev(b), len(b)),
        equal_var=False,
    )
    assert difference.p == pytest.approx(theirs.pvalue)
    assert difference.interval is not None
    # by Welch's formulas, with scipy's t quantile
    va, vb = statistics.variance(a) / len(a), statistics.variance(b) / len(b)
    df = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    half = scipy.stats.t.ppf(0.975, df) * (va + vb) ** 0.5
    assert difference.interval == pytest.approx((difference.value - half, difference.value + half))
    assert ("within" in difference.statement) == (theirs.pvalue > 0.05)
    assert f"(n {len(a)} and {len(b)})" in difference.statement


@pytest.mark.parametrize(
    ("a", "b", "statement"),
    [
        ([40.0], [50.0], "one seed each: no statement"),
        ([40.0], [50.0, 51.0], "one seed of SN: no statement"),
        ([40.0, 40.0], [50.0, 50.0], "no spread between the seeds: no statement"),
    ],
)
def test_noise_makes_no_statement_where_none_is_possible(
    a: list[float], b: list[float], statement: str
) -> None:
    difference = significance.compare("C", ("SN", a), ("WN", b))
    assert (difference.statement, difference.interval, difference.p) == (statement, None, None)


def test_noise_table_counts_seeds_once_and_finished_runs_only(tmp_path: Path) -> None:
    seeds(tmp_path, "sn", [40.0, 44.0])
    seeds(tmp_path, "wn", [60.0, 61.0])
    make_run(tmp_path, "sn", "C", 0, fid=40.0, samples=False, folder="again")
    make_run(tmp_path, "wn", "C", 2, fid=900.0, samples=False, status="diverged")
    section = one_section(tmp_path)
    (difference,) = significance.differences(section, FID)
    assert difference.seeds == (2, 2)
    assert difference.means == (60.5, 42.0)
    table = significance.table(section, FID)
    half = (difference.interval[1] - difference.interval[0]) / 2 if difference.interval else 0.0
    assert words(table) == [["WN", f"+18.50 ± {half:.2f} (n 2, 2)"], ["SN", "best"]]


def test_noise_of_one_seed_each_is_no_statement(tmp_path: Path) -> None:
    for method, value in (("sn", 40.0), ("wn", 50.0), ("ln", 45.0)):
        make_run(tmp_path, method, "C", fid=value, samples=False)
    table = significance.table(one_section(tmp_path), FID)
    assert table is not None
    assert table.rows == []
    assert "All 2 comparisons of FID have one seed" in table.notes[0]
    assert "they allow no statement about seed noise" in table.notes[0]


def test_noise_and_ranks_go_into_csv(tmp_path: Path) -> None:
    seeds(tmp_path, "sn", [40.0, 44.0])
    seeds(tmp_path, "wn", [60.0, 61.0])
    make_run(tmp_path, "bn", "C", fid=70.0, status="diverged", samples=False)
    sections = [one_section(tmp_path)]
    pairs = [r for r in rows_of(significance.csv_of(sections)) if r["score"] == "fid"]
    assert [(r["method_a"], r["method_b"], r["seeds_a"]) for r in pairs] == [("WN", "SN", "2")]
    assert float(pairs[0]["difference"]) == 18.5
    assert float(pairs[0]["low"]) < 18.5 < float(pairs[0]["high"])
    places = {r["method"]: r for r in rows_of(ranking.csv_of(sections)) if r["score"] == "fid"}
    assert (places["SN"]["rank"], places["WN"]["rank"], places["SN"]["of"]) == ("1", "2", "2")
    assert (places["BN"]["rank"], places["BN"]["status"]) == ("", "div.")


# ---- order and robustness


def paper_grid(root: Path, bad: float = 3.0) -> None:
    """Every method of Table 2 at A and F with its published FID; SN alone is as good at F."""
    for method, fid in PAPER.items():
        make_run(root, method, "A", fid=fid, inception=10 - fid / 20, samples=False)
        worse = fid * (1.05 if method == "sn" else bad)
        make_run(root, method, "F", fid=worse, inception=max(1.0, 10 - worse / 20), samples=False)


def test_order_of_methods_beside_the_papers(tmp_path: Path) -> None:
    paper_grid(tmp_path)
    orders, robust = ranking.tables(one_section(tmp_path), FID, "1,000 of the paper's 100,000 updates")
    assert [c.label for c in orders.columns] == ["", "A", "F", "best setting", "paper, best of A-F"]
    lines = words(orders)
    assert lines[0] == [*("1", "Orthonormal 29.00", "SN 30.77"), "Orthonormal 29.00 (A)", "Orthonormal 29.00"]
    assert [line[4].rsplit(" ", 1)[0] for line in lines] == [
        *("Orthonormal", "SN", "LN", "WN", "GAN-GP", "WGAN-GP", "Weight clip", "BN")
    ]
    notes = " ".join(orders.notes)
    assert "Our runs are at reduced scale: 1,000 of the paper's 100,000 updates." in notes
    assert "(reduced scale), 8 methods" in notes
    assert "Kendall tau +1.00" in notes
    assert "Spearman rho +1.00" in notes
    assert words(robust)[0] == ["SN", "29.30 (A)", "30.03", "30.77 (F)", "1.05", "1", "2 / 2", "2 of 2", ""]


def test_agreement_is_scipys(tmp_path: Path) -> None:
    ours = {"sn": 33.0, "wn": 30.0, "ln": 50.0, "bn": 20.0, "wc": 41.0}
    for method, fid in ours.items():
        make_run(tmp_path, method, "A", fid=fid, samples=False)
    (orders,) = ranking.tables(one_section(tmp_path), FID)
    theirs = [PAPER[m] for m in ours]
    tau = scipy.stats.kendalltau(list(ours.values()), theirs)
    rho = scipy.stats.spearmanr(list(ours.values()), theirs)
    notes = " ".join(orders.notes)
    assert (
        f"5 methods, each at its best setting: Kendall tau {tau.statistic:+.2f} (p {tau.pvalue:.2g})" in notes
    )
    assert f"Spearman rho {rho.statistic:+.2f} (p {rho.pvalue:.2g})" in notes
    assert "reduced" not in notes


def test_two_methods_have_no_rank_correlation_and_one_has_no_order(tmp_path: Path) -> None:
    make_run(tmp_path, "sn", "A", fid=30.0, samples=False)
    assert ranking.tables(one_section(tmp_path), FID) == []
    make_run(tmp_path, "wn", "A", fid=40.0, samples=False)
    (orders,) = ranking.tables(one_section(tmp_path), FID)
    assert "2 methods in common with the paper; a rank correlation needs at least 3." in orders.notes


def test_an_order_of_another_networks_score_says_so(tmp_path: Path) -> None:
    for method, fid in PAPER.items():
        make_run(tmp_path, method, "A", fid=fid, suffix="_cifar", protocol=SMALL, samples=False)
    key = cells.Key("fid_cifar", "last", digest(SMALL))
    (orders,) = ranking.tables(one_section(tmp_path), key)
    assert (
        "Our fid_cifar uses another network's features, so only rankings can be compared." in orders.notes[0]
    )


def test_diverged_cells_are_last_and_count_against_robustness(tmp_path: Path) -> None:
    paper_grid(tmp_path / "a")
    result = tmp_path / "a" / "bn" / "F-s0" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"status": "diverged"}))
    orders, robust = ranking.tables(one_section(tmp_path / "a"), FID)
    column = [line[2] for line in words(orders)]
    assert column[-1] == "BN div."
    lines = words(robust)
    assert lines[-1][0] == "BN"
    assert lines[-1][-2:] == ["1 of 2", "F div."]


def test_an_inception_score_is_ranked_from_above(tmp_path: Path) -> None:
    paper_grid(tmp_path)
    key = cells.Key("is", "last", digest(SNGAN))
    orders, robust = ranking.tables(one_section(tmp_path), key)
    assert words(orders)[0][1].startswith("Orthonormal 8.55")
    assert words(orders)[0][4].startswith("SN 7.42")
    assert words(robust)[0][0] == "SN"


# ---- grids


def write_grid(root: Path, **changes: Any) -> None:
    cell = {"name": "sn-C", "overrides": [], "run": "sn-C", "axes": {"method": "sn"}}
    record = {"format": 1, "grid": "sngan_fig1_cifar", "title": "SNGAN Figures 1 and 2", "cells": [cell]}
    record["scale"] = {"updates": 0.01, "width": 0.125}
    (root / "grid.json").write_text(json.dumps(record | changes))


def test_a_grid_gives_the_report_its_title_and_what_is_missing(tmp_path: Path) -> None:
    root = tmp_path / "grid"
    make_run(root, "sn", "C", folder="sn-C", samples=False)
    make_run(root, "wn", "C", folder="wn-C", status="diverged", samples=False)
    names = ("sn-C", "wn-C", "ln-C")
    write_grid(root, cells=[{"name": n, "run": n} for n in names])
    report([root], tmp_path / "out")
    html, md = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    heading = "SNGAN Figures 1 and 2 (reduced scale: 0.01× the paper&#39;s updates, 0.125× its width)"
    assert f"<h1>{heading}</h1>" in html
    assert f"<title>{heading}: 2 runs</title>" in html
    assert md.startswith("# SNGAN Figures 1 and 2 (reduced scale: 0.01× the paper's updates")
    for page in (html, md):
        assert "3 cells: 1 diverged, 1 finished, 1 not started. Not started: ln-C." in page
    report([root / "sn-C"], tmp_path / "one")  # a cell alone still knows its grid
    assert "<h1>SNGAN Figures 1 and 2" in (tmp_path / "one" / "report.html").read_text()


def test_the_record_of_a_command_line_is_a_grid(tmp_path: Path) -> None:
    """``ganlab train -m`` records its cells apart from their folders, by numbers, without a grid's name."""
    record = tmp_path / "outputs" / ".sweeps" / "0123abcd"
    record.mkdir(parents=True)
    listed = []
    for number, (norm, loss) in enumerate(itertools.product(("sn", "wn"), ("hinge", "standard"))):
        run = tmp_path / "outputs" / "digits" / f"C-s0-{number}"
        if number < 3:
            change = {"loss": {"_target_": f"ganlab.methods.losses.{loss.title()}"}}
            make_run(run.parent, norm, folder=run.name, dataset="digits", loss=loss, overrides=change)
        axes = {"normalization": norm, "loss": loss}
        listed.append({"name": f"{number:03d}", "run": os.path.relpath(run, record), "axes": axes})
    write_grid(record, grid="", title="train -m dataset=digits", cells=listed, scale={})
    report([record], tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<h1>Sweep over normalization, loss</h1>" in html
    assert "4 cells: 3 finished, 1 not started (train -m dataset=digits). Not started: " in html
    assert "Not started: normalization=wn loss=standard." in html
    assert "down: normalization; across: loss" in html
    assert (tmp_path / "out" / "figures" / "samples-grid-0123abcd.png").is_file()
    assert len({r["run"] for r in rows_of((tmp_path / "out" / "results.csv").read_text())}) == 3
    assert len(collect.collect([record, tmp_path / "outputs"])) == 3  # each run once


def test_no_grid_file_can_break_a_report(tmp_path: Path) -> None:
    contents = (
        *("", "{", "[1]", "null", '{"cells": 5, "scale": []}', '{"scale": {"updates": "x", "width": NaN}}'),
        *('{"cells": [1, {"run": 5}, {"run": "../../etc"}, {"name": null}]}', '{"title": 7, "grid": [1]}'),
        json.dumps({"title": NASTY, "cells": [{"name": NASTY, "run": NASTY}], "scale": {"width": 1e400}}),
        *('{"pairs": 3, "random": "x"}', '{"pairs": {"axis": "nothing"}}'),
        json.dumps({"cells": [{"axes": [1], "name": "x", "chosen": 7}], "random": {"n": "<script>"}}),
        "[" * 100_000,
        json.dumps({"title": "x" * collect.MAX_FILE}),
    )
    roots = [tmp_path / f"grid{i}" for i in range(len(contents))]
    for root, content in zip(roots, contents, strict=True):
        make_run(root, "sn", "C", folder="sn-C", samples=False)
        (root / "grid.json").write_text(content)
        (grid,) = grids.find(collect.collect([root]), [root])
        assert grid.title
    report(roots, tmp_path / "out")
    for name in ("report.html", "report.md"):
        page = (tmp_path / "out" / name).read_text()
        assert "<script" not in page
        assert "\x1b" not in page
        assert not re.search(r"(?<!\\)\]\(javascript", page) or name == "report.html"


# ---- several protocols


def evaluated(run: Path, protocol: dict[str, Any], values: dict[str, float], step: int = 1000) -> None:
    record = {"checkpoint": "last", "step": step, "values": values, "protocol": protocol}
    (run / "evaluations").mkdir(exist_ok=True)
    name = f"step-{step:09d}-{digest(protocol)}.json"
    (run / "evaluations" / name).write_text(json.dumps(record | {"protocol_id": digest(protocol)}))


def test_one_checkpoint_under_several_protocols(tmp_path: Path) -> None:
    run = make_run(tmp_path, "sn", "C", fid=40.0, samples=False)
    make_run(tmp_path, "wn", "C", fid=50.0, samples=False)
    evaluated(run, TTUR, {"fid": 33.5, "is": 6.1})
    evaluated(run, SNGAN | {"fid_n_fake": 777}, {"fid": 70.0}, step=500)  # another step: alone there
    table = rescored.table(one_section(tmp_path))
    assert table is not None
    labels = [c.label for c in table.columns]
    assert labels[5:] == [f"sngan_paper [{digest(SNGAN)[:8]}]", f"ttur50k [{digest(TTUR)[:8]}]", "range"]
    assert words(table) == [
        ["SN", "C", "0", "1,000", "IS", "6.00 ± 0.08", "6.10", "0.10"],
        ["SN", "C", "0", "1,000", "FID", "40.00", "33.50", "6.50"],
    ]
    (note,) = table.notes
    assert "fid_n_fake 5000 | 50000; fid_n_real 10000 | 50000; real_split test | train" in note


def test_a_report_shows_every_part(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    paper_grid(root)
    evaluated(root / "sn" / "A-s0", TTUR, {"fid": 25.0})
    report([root], tmp_path / "out")
    html, md = ((tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md"))
    for title in (
        *(
            "Papers, other implementations and ours",
            "Ranking and robustness",
            "Robustness over settings: FID",
        ),
        *("Seed noise", "One checkpoint, several protocols"),
    ):
        assert title in html
        assert title in md
    tables = re.findall(r"^\|(?:---:?\|)+$", md, re.MULTILINE)
    assert len(tables) >= 8
    for head, line in re.findall(r"^(\|.*\|)\n\|(?:---:?\|)+\n(\|.*\|)$", md, re.MULTILINE):
        assert len(re.findall(r"(?<!\\)\|", head)) == len(re.findall(r"(?<!\\)\|", line))


def test_a_part_that_only_some_runs_have_is_named_by_its_place() -> None:
    keys = {"class_loss", "class_loss._target_"}
    assert (
        cells._variant_name({"class_loss._target_": "ganlab.methods.losses.ClassLoss"}, keys)
        == "class_loss ClassLoss"
    )
    assert cells._variant_name({"class_loss": None}, keys) == "class_loss none"
