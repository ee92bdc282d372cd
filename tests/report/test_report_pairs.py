"""Pairs of runs: counts by hand, the sign test, WGAN-GP's Tables 2 and 5 and appendix C beside ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from report_runs import SMALL, make_pairs

from ganlab.cli import main
from ganlab.papers import published
from ganlab.report.compare import pairs, successes
from ganlab.report.compare.pairs import FAILED, Pair
from ganlab.report.read import collect, grids

BY_HAND = {
    "a000": (4.0, 6.0),
    "a001": (None, 5.5),  # the GAN diverged
    "a002": (7.5, 3.5),
    "a003": (5.0, 5.0),  # not above 5
    "a004": (None, None),
    "a005": (8.0, 8.5),
}


def study_of(folder: Path) -> pairs.Study:
    runs = collect.collect([folder])
    (grid,) = grids.find(runs, [folder])
    study = pairs.study(grid, runs)
    assert study is not None
    return study


def of(*scores: tuple[float, float]) -> list[Pair]:
    return [Pair(f"a{i:03d}", a, b, {}) for i, (a, b) in enumerate(scores)]


def test_a_success_is_a_score_above_the_threshold() -> None:
    sample = of((4.0, 6.0), (FAILED, 5.5), (7.5, 3.5), (5.0, 5.0), (FAILED, FAILED))
    assert pairs.successes(sample, 5.0) == (1, 2, 0, 2)
    assert pairs.successes(sample, 3.0) == (0, 1, 3, 1)
    assert pairs.successes(sample, 9.0) == (0, 0, 0, 5)
    assert pairs.successes([], 1.0) == (0, 0, 0, 0)


def test_wins_leave_ties_and_two_failures_out() -> None:
    sample = of((4.0, 6.0), (FAILED, 5.5), (7.5, 3.5), (5.0, 5.0), (FAILED, FAILED), (2.0, FAILED))
    assert pairs.wins(sample) == (2, 2, 2)


def test_the_sign_test_is_exact() -> None:
    """By hand: 2 (1 + 5) / 2^5 for 1 of 5; 2 / 2^6 for 6 of 6; the paper's 100 of 177 is not significant."""
    assert pairs.sign_test(1, 4) == pytest.approx(12 / 32)
    assert pairs.sign_test(6, 0) == pytest.approx(2 / 64)
    assert pairs.sign_test(0, 0) == 1.0
    assert 0.05 < pairs.sign_test(100, 77) < 0.12


def test_deciles_lie_between_the_scores_found() -> None:
    assert pairs.deciles([float(v) for v in range(11)]) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert pairs.deciles([2.0]) == []
    assert pairs.deciles([1.23456] * 4) == [1.235]


def test_failures_count_and_what_is_not_over_waits(tmp_path: Path) -> None:
    make_pairs(tmp_path, BY_HAND | {"a006": (9.0, 9.0)}, missing=("a006-gan",))
    study = study_of(tmp_path)
    assert (study.first, study.second, study.score) == ("gan", "wgan-gp", "is")
    assert [p.name for p in study.pairs] == list(BY_HAND)
    assert [(p.first, p.second) for p in study.pairs] == [
        tuple(FAILED if v is None else v for v in values) for values in BY_HAND.values()
    ]
    assert study.unfinished == ["a006"]
    assert {k: n for k, n in study.failures.items() if n} == {
        ("gan", "diverged"): 2,
        ("wgan-gp", "diverged"): 1,
    }
    assert pairs.successes(study.pairs, 5.0) == (1, 2, 1, 2)


def test_a_run_without_the_score_or_still_running_leaves_its_pair_out(tmp_path: Path) -> None:
    make_pairs(tmp_path, {"a000": (4.0, 6.0), "a001": (5.0, 5.5), "a002": (5.0, 5.5)})
    for name, changes in (("a001-gan", {"scores": {}}), ("a002-wgan-gp", {"status": "running"})):
        path = tmp_path / name / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    study = study_of(tmp_path)
    assert [p.name for p in study.pairs] == ["a000"]
    assert (study.unscored, study.unfinished) == (["a001"], ["a002"])


def test_a_crash_counts_as_a_failure_and_is_told_apart(tmp_path: Path) -> None:
    make_pairs(tmp_path, {"a000": (4.0, 6.0)}, dataset="imagenet")
    path = tmp_path / "a000-gan" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "failed"}))
    study = study_of(tmp_path)
    assert study.pairs == [Pair("a000", FAILED, 6.0, study.pairs[0].choices)]
    notes = " ".join(successes.success_tables(study).tables[0].notes)
    assert "1 GAN failed. The sweep's command retries failed runs (out of memory, disk full)." in notes


def test_every_published_count_is_there() -> None:
    rows = [p for p in published.values() if p.paper == "wgan_gp"]
    tables = {
        t: [p for p in rows if p.table == t and "min_score" in p.details] for t in ("Table 2", "Table 5")
    }
    assert (len(tables["Table 2"]), len(tables["Table 5"])) == (5 * 4, 17 * 4)
    sums: dict[tuple[str, str], float] = {}
    for table, published_rows in tables.items():
        for p in published_rows:
            sums[table, p.details] = sums.get((table, p.details), 0) + p.value
    assert set(sums.values()) == {200}


def test_tables_2_and_5_stand_beside_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_pairs(tmp_path, BY_HAND, dataset="imagenet")
    assert main.main(["report", str(tmp_path), f"out={tmp_path / 'r'}"]) == 0
    output = capsys.readouterr().out
    assert "WGAN-GP Table 2, published and ours (ours: 6 pairs; the paper's: 200 architectures)" in output
    assert "WGAN-GP Table 5, published and ours" in output
    five = next(line for line in output.splitlines() if line.strip().startswith("5 "))
    assert five.split() == [
        *("5", "1", "(17%)", "0", "(0%)", "2", "(33%)", "147", "(74%)"),
        *("1", "(17%)", "42", "(21%)", "2", "(33%)", "11", "(6%)"),
    ]
    page = (tmp_path / "r" / "report.html").read_text()
    markdown = (tmp_path / "r" / "report.md").read_text()
    for words in (
        "only GAN",
        "only WGAN-GP",
        "The standard DCGAN scores 7.24 in the paper",
        "No score, so below every threshold: 2 GAN diverged, 1 WGAN-GP diverged.",
        "6 of 9,216 drawn with seed 0",
        "147 (74%)",
    ):
        assert words in page, words
        assert words in markdown, words
    assert "Not like for like" not in page
    with open(tmp_path / "r" / "successes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == (5 + 17) * 4
    (row,) = (
        r for r in rows if (r["table"], r["threshold"], r["outcome"]) == ("Table 5", "5.0", "only_wgan_gp")
    )
    assert (row["ours"], row["ours_n"], row["published"], row["published_n"]) == ("2", "6", "147.0", "200")
    with open(tmp_path / "r" / "pairs.csv", newline="") as file:
        listed = list(csv.DictReader(file))
    assert len(listed) == 12
    assert (listed[2]["pair"], listed[2]["value"], listed[2]["succeeds_at_no_threshold"]) == (
        "a001",
        "",
        "yes",
    )
    assert listed[0]["chosen"] == "architecture.g_depth 12; d_norm norm"


def test_a_score_of_another_network_has_thresholds_of_its_own(tmp_path: Path) -> None:
    make_pairs(tmp_path, BY_HAND, suffix="_cifar", protocol=SMALL, dataset="digits")
    ours, *theirs = successes.success_tables(study_of(tmp_path)).tables
    assert ours.title == "Successes over thresholds (ours: 6 pairs)"
    assert [c.label for c in ours.columns][:2] == ["is_cifar above", "only GAN"]
    assert "deciles of our 9 scores" in ours.notes[0]
    assert [t.title for t in theirs] == [
        f"WGAN-GP Table {k}, published (the paper's: 200 architectures)" for k in (2, 5)
    ]
    assert "Not like for like: our score is is_cifar, from another network" in theirs[0].notes[0]
    assert "our images are Digits at 32 pixels, the paper's are ImageNet at 32" in theirs[0].notes[0]
    (mine, *_) = successes.success_tables(study_of(tmp_path), [5.0, 4.0]).tables
    assert [row[0].text for row in mine.rows] == ["4", "5"]
    assert [f.text for f in mine.rows[1]] == ["5", "1 (17%)", "2 (33%)", "1 (17%)", "2 (33%)"]
    assert not any("deciles" in note for note in mine.notes)


def test_the_wins_of_both_penalties_stand_beside_the_paper_s(tmp_path: Path) -> None:
    labels = ("two-sided", "one-sided")
    make_pairs(tmp_path, BY_HAND, labels, "penalty", "wins", dataset="imagenet")
    result = successes.success_tables(study_of(tmp_path))
    (table,) = result.tables
    assert [[f.text for f in row] for row in table.rows] == [
        ["two-sided better", "1", "100"],
        ["one-sided better", "3", "77"],
        ["equal, or both without a score", "2", "–"],
        ["p of the sign test", "0.62", "0.098"],
    ]
    assert any("174 architectures" in note and "177 of 174" in note for note in table.notes)
    assert [line[4:8] for line in result.csv] == [
        ["two-sided wins", 1, 6, 100.0],
        ["one-sided wins", 3, 6, 77.0],
        ["p of the sign test", 0.625, 6, pairs.sign_test(100, 77)],
    ]


def test_thresholds_are_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("a", "1,,2", "nan", "inf,1", "1;2"):
        assert main.main(["report", str(tmp_path), f"thresholds={text}"]) == 2
        message = f"thresholds: '{text}' is not a list of numbers; write thresholds=1,2.5,3"
        assert capsys.readouterr().err == f"ganlab: error: {message}\n"
