"""``ganlab report`` on run folders made up for it: what it counts, what it compares, what it withstands."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from report_runs import SMALL, SNGAN, TTUR, digest, make_run

from ganlab import text
from ganlab.errors import DataError, EnvError
from ganlab.metrics.protocol import Protocol
from ganlab.papers import labels, published
from ganlab.report import report
from ganlab.report.compare import compare, sidebyside
from ganlab.report.draw import mosaic
from ganlab.report.draw.curves import BINS, _binned
from ganlab.report.read import cells
from ganlab.report.read.collect import Run, collect
from ganlab.report.read.history import Curve
from ganlab.report.write import results_csv, tables

NASTY = "<script>alert(1)</script>=cmd|' /C calc'!A0\x1b[31mred\x1b[0m\u202e$x^2$ ](javascript:x) http://evil.example/"


def one_section(root: Path) -> cells.Section:
    (section,) = cells.sections(collect([root]))
    return section


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on all that can come: seeds, divergence, unfinished, broken, hostile, mixed protocols."""
    root = tmp_path_factory.mktemp("runs")
    make_run(root, "sn", "C", 0, fid=40.0)
    make_run(root, "sn", "C", 1, fid=44.0)
    make_run(root, "wgan-gp", "D", 0, fid=60.0, status="diverged")
    make_run(root, "none", "C", 0, fid=90.0, status="running")
    make_run(root, "wn", "C", 0, fid=50.0, protocol=SNGAN | {"protocol": "ttur50k", "fid_n_fake": 50_000})
    make_run(root, "bn", "A", 0, fid=9.0, suffix="_cifar", protocol=SMALL)
    hostile = {"name": NASTY * 50, "experiment": "@x", "error": NASTY}
    wild = make_run(root, "gp", "A", 0, folder="=HYPERLINK(1)", **hostile) / "result.json"
    wild.write_text(json.dumps(json.loads(wild.read_text()) | {"method": "gp" + NASTY}))
    broken = make_run(root, "ln", "A", 0)
    (broken / "result.json").write_text('{"status": "finis')
    killed = make_run(root, "ln", "B", 0)
    (killed / "result.json").unlink()
    out = tmp_path_factory.mktemp("report")
    assert report([root], out) == out / "report.html"
    return out


def test_runs_are_found_once_and_broken_ones_are_listed(tmp_path: Path) -> None:
    a = make_run(tmp_path / "sweep", "sn", "A")
    make_run(tmp_path / "sweep", "wn", "A")
    (make_run(tmp_path / "sweep", "ln", "A") / "result.json").write_text("[1]")
    (tmp_path / "sweep" / ".hydra").mkdir()
    (tmp_path / "sweep" / ".hydra" / "config.yaml").write_text("steps: 1")
    runs = collect([tmp_path, a, tmp_path / "sweep"])
    assert [r.label for r in runs] == ["ln/A-s0", "sn/A-s0", "wn/A-s0"]
    assert [bool(r.problem) for r in runs] == [True, False, False]
    assert "not a JSON object" in runs[0].problem


def test_a_path_without_a_run_is_one_line_with_code_3(tmp_path: Path) -> None:
    make_run(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: contains no run \(no result\.json\); name run folders") as e:
        report([tmp_path / "good", tmp_path / "empty"], tmp_path / "out")
    assert e.value.code == 3
    with pytest.raises(DataError, match="nowhere: no such folder"):
        report([tmp_path / "nowhere"], tmp_path / "out")
    with pytest.raises(DataError, match="no run folder given"):
        report([], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unwritable_folder_is_one_line_with_code_5(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", samples=False)
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(EnvError, match="can't write the report") as e:
        report([tmp_path / "runs"], tmp_path / "out")
    assert e.value.code == 5


def test_seeds_are_averaged_with_the_sample_std(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, fid=40.0)
    make_run(tmp_path, seed=1, fid=44.0)
    section = one_section(tmp_path)
    (cell,) = section.cells.values()
    key = cells.Key("fid", "last", digest(SNGAN))
    assert cell.summary(key) == cells.Summary(42.0, pytest.approx(math.sqrt(8)), 2, "")
    assert section.score_keys("last") == [cells.Key("is", "last", digest(SNGAN)), key]


def test_unfinished_runs_never_enter_the_mean_of_finished_ones(tmp_path: Path) -> None:
    key = cells.Key("fid", "last", digest(SNGAN))
    make_run(tmp_path, "sn", "A", 0, fid=40.0)
    make_run(tmp_path, "sn", "A", 1, fid=400.0, status="diverged")
    make_run(tmp_path, "sn", "B", 0, fid=300.0, status="diverged", scores={})
    make_run(tmp_path, "sn", "C", 0, fid=80.0, status="stopped")
    marks = {s: cell.summary(key) for (_, s), cell in one_section(tmp_path).cells.items()}
    assert marks["A"] == cells.Summary(40.0, None, 1, "1/2 div.")
    assert marks["B"] == cells.Summary(None, None, 0, "div.")
    assert marks["C"] == cells.Summary(80.0, None, 1, "unf.")


def test_runs_that_differ_in_more_than_the_seed_are_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path, "sn", "D", 0)
    make_run(tmp_path, "sn", "D", 1)
    make_run(tmp_path, "sn", "D", 2, overrides={"d_steps": 10})
    make_run(tmp_path, "sn", "A", 0)
    make_run(tmp_path, "wn", "A", 0, steps=3000)
    section = one_section(tmp_path)
    places = {(g.label, s): len(c.runs) for (g, s), c in section.cells.items()}
    assert places == {
        ("SN, 1,000 updates, d_steps 5", "D"): 2,
        ("SN, 1,000 updates, d_steps 10", "D"): 1,
        ("SN, 1,000 updates, d_steps 5", "A"): 1,
        ("WN, 3,000 updates", "A"): 1,
    }


def test_losses_are_named_where_they_differ(tmp_path: Path) -> None:
    make_run(tmp_path, "sn", "C")
    make_run(tmp_path, "wgan-gp", "C")
    assert [g.label for g in one_section(tmp_path).groups] == ["WGAN-GP", "SN"]
    make_run(
        tmp_path, "none", "C", loss="hinge", overrides={"loss": {"_target_": "ganlab.methods.losses.Hinge"}}
    )
    assert [g.label for g in one_section(tmp_path).groups] == ["None, hinge", "WGAN-GP", "SN, standard"]


def test_protocols_are_never_mixed(tmp_path: Path) -> None:
    other = SNGAN | {"protocol": "ttur50k", "fid_n_fake": 50_000}
    make_run(tmp_path, "sn", "C", 0, fid=40.0)
    make_run(tmp_path, "sn", "C", 1, fid=20.0, protocol=other)
    section = one_section(tmp_path)
    fids = [k for k in section.score_keys("last") if k.score == "fid"]
    (cell,) = section.cells.values()
    assert sorted(cell.summary(k).mean for k in fids) == [20.0, 40.0]  # type: ignore[type-var]
    warning = tables.warnings(section)[0]
    assert "FID (last), FID (best): measured under 2 protocols" in warning
    assert "sngan_paper" in warning
    assert "ttur50k" in warning


def test_a_seed_run_twice_and_a_protocol_id_used_twice_are_said(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0, folder="a")
    twice = make_run(tmp_path, seed=0, folder="b")
    result = json.loads((twice / "result.json").read_text())
    result["scores"]["last"]["protocol"] = SNGAN | {"fid_n_fake": 7}
    (twice / "result.json").write_text(json.dumps(result))
    runs = collect([tmp_path])
    assert "SN, setting C: several runs with seed 0; the mean includes all of them." in tables.warnings(
        cells.sections(runs)[0]
    )
    assert "two different records" in tables.all_protocols(runs)[1][0]


JUDGED: list[tuple[str, str, dict[str, Any], str]] = [  # source, score, our protocol, what is unlike
    ("sngan", "fid", SNGAN, ""),
    ("sngan", "fid", SNGAN | {"real_split": "test", "fid_n_real": 0}, ""),  # all 10,000 of them
    ("sngan", "fid", SNGAN | {"fid_n_fake": 50_000}, "generated images: ours 50,000, published 5,000"),
    ("sngan", "fid", SNGAN | {"fid_n_real": 0, "real_split": "train"}, "ours 50,000, published 10,000"),
    ("sngan", "fid", SNGAN | {"quantize": "round"}, "rounding to 8 bits: ours round, published truncate"),
    ("sngan", "fid_cifar", SMALL, "features: ours from the cifar network"),
    (
        "sngan",
        "fid_bf16",
        SNGAN | {"extractor": {"name": "inception", "precision": "bf16"}},
        "(bf16) network",
    ),
    ("sngan", "fid", SNGAN | {"generator": "ema"}, "weights of G: ours ema, published raw"),
    ("sngan", "fid", SNGAN | {"extractor": {"name": "inception", "weights_official": False}}, "not the off"),
    ("sngan", "is", SNGAN | {"is_splits": 1}, "splits: ours 1, published 10"),
    ("sngan", "is", SNGAN | {"is_n_fake": None}, "ours not recorded, published 50,000"),
    ("chainer_gan_lib", "fid", SNGAN, "Chainer port of Inception"),
    ("mimicry", "fid", SNGAN | {"fid_n_fake": 50_000}, "stretched to their own minimum"),
    ("pytorch_gan_collections", "fid", TTUR, ""),
    ("studiogan", "fid", TTUR, "batch norm statistics of G: ours running, published batch"),
]


@pytest.mark.parametrize(("paper", "score", "record", "reason"), JUDGED)
def test_only_like_for_like_stands_beside(
    paper: str, score: str, record: dict[str, Any], reason: str
) -> None:
    kind = labels.split_score(score)[0]
    row = next(p for p in published.values() if (p.paper, p.score, p.method) == (paper, kind, "sn"))
    reasons = published.differences(row, score, record)
    assert (reasons == []) if not reason else (reason in "; ".join(reasons))
    best = next(p for p in published.values() if p.protocol == "studiogan_10k_test" and p.score == "fid")
    ours = SNGAN | {"fid_n_fake": 10_000, "bn": "batch"}
    assert published.differences(best, "fid", ours, "best") == []
    assert published.differences(best, "fid", ours, "last") == ["checkpoint: ours last, published best"]


def test_a_mean_over_label_seeds_stands_beside_the_published_test_error(tmp_path: Path) -> None:
    """Of semi-supervised runs with as many labels, tested on the test split; D's other loss is apart."""
    for folder, label_seed, weight, error, split in (
        ("a", 0, 1.0, 1.0, "test"),
        ("b", 1, 1.0, 2.0, "test"),
        ("c", 0, 0.0, 20.0, "test"),
        ("d", 1, 0.0, 22.0, "test"),
        ("e", 0, 2.0, 3.0, "rest"),
    ):
        record = {"protocol": "demo", "extractor": None, "options": {"test_error": {"split": split}}}
        scored = {"step": 1000, "values": {"test_error": error}, "protocol": record, "protocol_id": split}
        make_run(
            tmp_path,
            "feature_matching",
            folder=folder,
            dataset="mnist",
            samples=False,
            architecture="improved_mlp",
            loss="k_plus_1",
            scores={"last": scored},
            overrides={
                "labelled_per_class": 10,
                "label_seed": label_seed,
                "architecture": {"head": "k_plus_1", "classes": 10},
                "loss": {"_target_": "ganlab.methods.semi_supervised.KPlusOne", "weight": weight},
            },
        )
    (section,) = cells.sections(collect([tmp_path]))
    assert not [line for line in tables.warnings(section) if "several runs" in line]
    means = {
        g.variant: c.summary(cells.Key("test_error", "last", "test")).mean
        for (g, _), c in section.cells.items()
    }
    assert means == {"weight 1": 1.5, "weight 0": 21, "weight 2": None}
    (key,) = [k for k in section.score_keys() if k.protocol_id == "test"]
    match = compare.match_published(section, key)
    row = match.rows[cells.Group("feature_matching", "weight 1")]
    assert (row.value, row.std, row.labels, row.where) == (0.93, 0.065, 100, "Improved Techniques Table 1")
    (rest,) = [k for k in section.score_keys() if k.protocol_id == "rest"]
    assert compare.match_published(section, rest).rows == {}
    assert "split: ours rest, published test" in compare.match_published(section, rest).note
    others = {(p.value, p.labels) for p in sidebyside.rows_of(section, section.groups[0])}
    assert others == {(16.77, 20), (2.21, 50), (0.93, 100), (0.9, 200)}
    verdict = sidebyside.csv_of([section])
    assert "labels: ours 100, published 50" in verdict


def test_published_lookup_prefers_own_rows_and_equal_updates() -> None:
    for method, loss, value in (
        ("sn", "standard", 29.3),
        ("sn", "hinge", 25.5),
        ("wgan-gp", "wasserstein", 40.2),
    ):
        row = published.lookup("cifar10", "cnn", method, loss, "fid", 1000)[0]
        assert (row.value, row.where, row.recalled) == (value, "SNGAN Table 2", False)
    stl = [p.value for p in published.lookup("stl10", "cnn", "sn", "standard", "fid", 200_000)]
    assert stl == [47.5, 53.1]
    resnet = published.lookup("cifar10", "resnet", "wgan-gp", "wasserstein", "is", 100_000)
    assert [p.quoted for p in resnet] == sorted(p.quoted for p in resnet)
    assert published.lookup("cifar10", "cnn", "sn", "lsgan", "fid") == []
    assert published.lookup("digits", "cnn", "sn", "standard", "fid") == []


def test_published_file_is_whole() -> None:
    vocabulary, rows = published.table(), published.rows()
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) == 619
    numbers = ("value", "std", "resolution", "updates")
    for row in rows:
        assert row["protocol"] in vocabulary["protocols"], row
        assert row["source"] in vocabulary["sources"], row
        assert row["paper"] in vocabulary["papers"], row
        assert row["provenance"] in ("read", "recalled", "read, ± recalled"), row
        assert (row["source"] == "memory") == (row["provenance"] == "recalled"), row
        assert row["conditional"] in ("yes", "no", ""), row
        assert None not in row.values(), row
        assert None not in row, row
        for key in numbers if row["score"] != "status" else numbers[1:]:
            assert not row[key] or math.isfinite(float(row[key])), row
    used = {key: {row[key] for row in rows} for key in ("protocol", "source", "paper")}
    assert set(vocabulary["protocols"]) == used["protocol"]
    assert set(vocabulary["sources"]) == used["source"]
    assert set(vocabulary["papers"]) == used["paper"]
    assert sum(row["provenance"] == "recalled" for row in rows) == 29
    words = [row for row in rows if row["score"] == "status"]
    assert sorted(row["value"] for row in words) == ["collapsed"] * 3 + ["diverged"] * 2
    assert len(published.values()) == len(ids) - len(words)


def test_protocols_of_published_values_speak_of_keys_that_ganlab_records() -> None:
    recorded = {*Protocol(name="x", is_n_fake=10, fid_n_fake=10).record(), "generator", "real_split"}
    for name, protocol in published.table()["protocols"].items():
        assert {"label", "text"} <= set(protocol), name
        assert "unlike" in protocol or "extractor" in protocol, name
        for kind in ("is", "fid", "kid"):
            assert set(protocol.get(kind, {})) <= recorded, name


def test_other_implementations_are_no_papers_and_recalled_values_say_so() -> None:
    rows = published.of_method("cifar10", "resnet", "sn", 32)
    by = {p.paper: p.by_its_authors for p in rows}
    assert by["mimicry"] is by["studiogan"] is by["mmgeneration"] is False
    assert by["sngan"] is by["projection"] is True
    assert {p.paper for p in published.lookup("cifar10", "resnet", "sn", "hinge", "fid")} == {"sngan"}
    (projection,) = published.lookup("cifar10", "resnet", "sn", "hinge", "fid", head="projection")
    assert (projection.paper, projection.value) == ("projection", 17.5)
    recalled = published.lookup("cifar10", "resnet", "sn", "hinge", "fid", head="ac")[0]
    assert recalled.where == "Projection Table 3, recalled from memory: not verified"
    half = next(p for p in published.values() if p.provenance == "read, ± recalled")
    assert half.where.endswith("its ± recalled from memory")
    assert {p.resolution for p in published.of_method("imagenet", "resnet", "sn", 32)} == {32}


def test_a_folder_of_cifar_is_not_quite_cifar(tmp_path: Path) -> None:
    assert published.canonical_dataset("cifar10") == ("cifar10", "")
    assert published.canonical_dataset("digits") == ("digits", "")
    name, unlike = published.canonical_dataset("folder", "cifar10-jpeg.tar.xz")
    assert name == "cifar10"
    assert "not from the original CIFAR-10" in unlike
    folder = {"dataset": {"path": "../shared/data/cifar10-jpeg.tar.xz", "resolution": 32}}
    make_run(tmp_path, dataset="folder", overrides=folder, fid=29.0)
    section = one_section(tmp_path)
    matches = compare.match_published(section, cells.Key("fid", "last", digest(SNGAN)))
    assert matches.rows == {}
    assert "cifar10-jpeg.tar.xz" in matches.note
    assert section.title == "cifar10-jpeg.tar.xz 32×32, CNN"


def test_what_was_reduced_is_said() -> None:
    words = "1,000 of the paper's 100,000 updates, 0.25× its width"
    assert published.reduced_scale("cifar10", "cnn", [1000.0], [0.25]) == words
    assert published.reduced_scale("cifar10", "cnn", [100_000.0], [1.0]) == ""
    assert published.reduced_scale("cifar10", "cnn", [1000.0, 3000.0], [1.0]).startswith("1,000–3,000 of")
    assert published.reduced_scale("digits", "cnn", [1000.0], [0.25]) == ""


def test_paper_beside_ours(tmp_path: Path) -> None:
    make_run(tmp_path, "sn", "A", 0, fid=45.0)
    make_run(tmp_path, "sn", "C", 0, fid=40.0)
    make_run(tmp_path, "sn", "C", 1, fid=44.0)
    make_run(tmp_path, "sn", "D", 0, fid=30.0, status="diverged")
    section = one_section(tmp_path)
    key = cells.Key("fid", "last", digest(SNGAN))
    table = compare.table(section, {key: compare.match_published(section, key)})
    assert table is not None
    trained = "1,000 updates, width 0.25; A, C, D"
    assert [[f.text for f in row] for row in table.rows] == [
        ["SN", "29.30", "42.00 ± 2.83 (C, 2 seeds)", trained]
    ]
    assert "sngan_paper" in table.notes[0]
    note = compare.match_published(section, key).note
    assert note.startswith(
        "Published: SNGAN Table 2 (best of settings A-F, 100,000 updates). The source does not state"
    )


def test_html_is_self_contained_and_strict(written: Path) -> None:
    html = (written / "report.html").read_text()
    assert "<script" not in html
    assert "onerror" not in html
    assert not re.search(r"""(src|href|action)\s*=(?!"data:image/|"#)""", html)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    allowed = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'" in html
    assert "url(" not in style[1]
    assert "@import" not in style[1]
    assert not re.search(r"<[^>]* style=", html)


def test_hostile_text_is_only_text(written: Path) -> None:
    html, md = (written / "report.html").read_text(), (written / "report.md").read_text()
    assert "&lt;script&gt;alert(1)" in html
    for page_text in (html, md, (written / "results.csv").read_text()):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", page_text)
        assert max(map(len, re.findall(r"alert[^\n]{0,2000}", re.sub('base64,[^"]*', "", page_text)))) < 1500
    assert "<script" not in md
    assert "](javascript" not in md
    assert "http://evil" not in md
    for row in rows_of(written):
        assert not any(value[:1] in ("=", "+", "-", "@", "|", "%") for value in row.values() if value)


def test_broken_and_unfinished_runs_are_listed(written: Path) -> None:
    html = (written / "report.html").read_text()
    assert "ln/A-s0</code>: result.json can&#39;t be read" in html
    assert "ln/B-s0</code>: no result.json" in html
    assert "wgan-gp/D-s0</code>: diverged at 500 of 1,000 updates: step 500: d/loss is not finite" in html
    assert "none/C-s0</code>: running at 500 of 1,000" in html
    by_run = {row["run"]: row for row in rows_of(written)}
    assert by_run["ln/A-s0"]["status"] == "unreadable"


def test_csv_has_a_row_per_score_with_its_protocol(written: Path) -> None:
    rows = rows_of(written)
    mine = [r for r in rows if r["run"] == "sn/C-s1"]
    assert [(r["checkpoint"], r["score"]) for r in mine] == [
        *(("last", "is"), ("last", "fid")),
        *(("best", "is"), ("best", "fid")),
    ]
    fid = mine[1]
    assert (float(fid["value"]), fid["score_step"], fid["protocol"]) == (44.0, "1000", "sngan_paper")
    assert fid["protocol_id"] == digest(SNGAN)
    assert (fid["published"], fid["published_where"], fid["published_note"]) == ("29.3", "SNGAN Table 2", "")
    assert (fid["seed"], fid["width"], fid["it_per_s"], fid["eval_share"]) == ("1", "0.25", "14.2", "0.21")
    assert mine[0]["std"] == "0.08"
    unlike = next(r for r in rows if r["score"] == "fid_cifar")
    assert unlike["published"] == ""
    assert "2015 Inception" in unlike["published_note"]
    other = next(r for r in rows if r["protocol"] == "ttur50k" and r["score"] == "fid")
    assert other["published"] == ""
    assert "ours 50,000, published 5,000" in other["published_note"]


def test_markdown_links_lead_to_figures(written: Path) -> None:
    links = re.findall(r"\]\((figures/[^)]+)\)", (written / "report.md").read_text())
    assert len(links) == len(set(links)) >= 7
    assert all((written / link).is_file() for link in links)
    svg = sorted(p.name for p in (written / "figures").glob("*.svg"))
    assert "scores-cifar10-32-cnn-fid_cifar.svg" in svg
    assert "curves-cifar10-32-cnn.svg" in svg
    bars = [s for s in svg if re.fullmatch(r"scores-cifar10-32-cnn-fid-[0-9a-f]{12}\.svg", s)]
    assert len(bars) == 2  # one figure per protocol
    assert b"<dc:date>" not in (written / "figures" / svg[0]).read_bytes()


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "sn", "A")
    make_run(tmp_path / "runs", "wn", "D", status="diverged")
    (tmp_path / "two" / "figures").mkdir(parents=True)
    (tmp_path / "two" / "figures" / "scores-old.png").write_text("of an earlier report")
    (tmp_path / "two" / "figures" / "mine.png").write_text("not ours to delete")
    report([tmp_path / "runs"], tmp_path / "one")
    report([tmp_path / "runs"], tmp_path / "two")
    one = {p.relative_to(tmp_path / "one"): p.read_bytes() for p in (tmp_path / "one").rglob("*.*")}
    two = {p.relative_to(tmp_path / "two"): p.read_bytes() for p in (tmp_path / "two").rglob("*.*")}
    assert two.pop(Path("figures/mine.png"))
    assert one == two


def test_no_value_of_result_json_can_break_it(tmp_path: Path) -> None:
    good = json.loads((make_run(tmp_path / "good", samples=False) / "result.json").read_text())
    values: list[Any] = [None, True, -1, 1e308, 10**400, "", NASTY, [], [[1]], {}, {"a": {"b": [None]}}]
    n = 0
    for key in good:
        for value in values:
            n += 1
            (tmp_path / "bad" / str(n)).mkdir(parents=True)
            (tmp_path / "bad" / str(n) / "result.json").write_text(json.dumps(good | {key: value}))
    for node in ([], "x", {"values": []}, {"values": {"fid": "x", "is": None, "kid": True, NASTY: 1.5}}):
        n += 1
        make_run(tmp_path, folder=f"bad/{n}", samples=False, scores={"last": node, NASTY: [node, node]})
    runs = collect([tmp_path])
    sections = cells.sections(runs)
    assert len(runs) == n + 1
    rows = results_csv.to_csv(sections, runs)
    assert rows.count("\n") > n
    for section in sections:
        assert tables.facts(section)
        tables.warnings(section)
        names = tables.score_names(section)
        assert len(tables.run_rows(section, names)) >= len(section.runs)
        for key in section.score_keys():
            tables.matrix(section, key)
            compare.table(section, {key: compare.match_published(section, key)})


def test_no_config_can_break_or_run_anything(tmp_path: Path) -> None:
    many = "a: &a {" + "".join(f"k{i}: 1, " for i in range(99)) + "}"
    many += "".join(f"\nb{i}: *a" for i in range(9))
    many += "".join(f"\nc{i}: {{x: *a, y: *a, z: *a}}" for i in range(40))
    for i, config in enumerate(
        (
            *("{", "- 1", "a: &a [*a]", "!!python/object/apply:os.system [true]", "a: 0x" + "f" * 9000, many),
            "a0: &a0 {x: 1}" + "".join(f"\na{i}: &a{i} {{x: *a{i - 1}, y: *a{i - 1}}}" for i in range(1, 60)),
            "l0: &l0 [1]" + "".join(f"\nl{i}: &l{i} [*l{i - 1}, *l{i - 1}, *l{i - 1}]" for i in range(1, 60)),
            "token: ${oc.env:HOME}\nsteps: 5",
        )
    ):
        run = make_run(tmp_path / f"{i}", samples=False)
        (run / "config.yaml").write_text(config)
        (read,) = collect([tmp_path / f"{i}"])
        assert read.status == "finished"
        assert len(read.config) <= 5000
        assert "${oc.env:HOME}" in read.config.values() or "token" not in config
        assert cells.sections([read])[0].cells


def test_broken_metrics_lines_are_counted_and_skipped(tmp_path: Path) -> None:
    run = make_run(tmp_path, samples=False)
    lines = [
        '{"step": 1, "kind": "train", "loss/d": 1.0}',
        "torn",
        '{"step": 2, "kind": "train", "loss/d": NaN}',
        '{"step": "x", "kind": "train", "loss/d": 1.0}',
        '{"step": 2, "kind": "train", "loss/d": 9.0}',
        "[]",
        '{"step": 3, "kind": "eval", "scores": {"fid": 5.0, "is_std": 1}, "protocol_id": "p"}',
        '{"step": 4, "kind": "eval", "scores": []}',
    ]
    (run / "metrics.jsonl").write_text("\n".join(lines))
    (read,) = collect([tmp_path])
    assert "skipped 4 broken lines of metrics.jsonl" in read.notes
    assert list(read.curves[("loss/d", "")].steps) == [1, 2]
    assert list(read.curves[("fid", "p")].values) == [5.0]
    assert ("is_std", "p") not in read.curves


def test_long_curves_are_drawn_as_means() -> None:
    curve = Curve()
    for step in range(1, 1001):
        curve.add(step, float("nan") if step == 500 else float(step))
    curve.add(1000, 7.0)  # not later than the last: ignored
    points = list(_binned(curve))
    assert len(points) == BINS
    assert all(step == pytest.approx(value) for step, value in points)
    assert list(_binned(Curve())) == []


def test_samples_are_cut_between_tiles(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    path = run / "samples" / "step-000001000.png"
    image = mosaic.corner(Run(run, "r"), path, 32, 3)
    assert image is not None
    assert image.size == (3 * 34 + 2,) * 2
    with Image.open(path) as whole:
        assert image.tobytes() == whole.crop((0, 0, 104, 104)).convert("RGB").tobytes()
    assert mosaic.corner(Run(run, "r"), path, 0, 3).size == (274, 274)  # type: ignore[union-attr]


def test_unreadable_samples_fall_back_to_older_ones(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "samples" / "step-000002000.png").write_bytes(b"\x89PNG broken")
    Image.new("1", (20_000, 20_000)).save(run / "samples" / "step-000003000.png")  # a bomb, 50 kB packed
    (run / "samples" / "step-000004000.png").symlink_to("/etc/hostname")
    (read,) = collect([run])
    tile = mosaic._samples(read, 3, None)
    assert tile is not None
    assert tile.caption == "step 1,000"
    assert len(read.notes) == 2


def test_text_is_made_safe() -> None:
    assert text.clean("a\x1b[31mb\x1b]0;title\x07c\x00\nd\u202ee\ud800") == "abc de"
    assert text.clean("x" * 100, 10) == "x" * 9 + "…"
    assert text.csv_cell("=1+1") == "'=1+1"
    assert text.csv_cell("\t=1+1") == "'=1+1"
    assert text.csv_cell("＝1") == "'＝1"
    assert [text.csv_cell(v) for v in (None, -1.5, -2, "a,b")] == ["", "-1.5", -2, "a,b"]
    assert labels.md("a|b_c *d* <e> _f_") == r"a\|b_c \*d\* &lt;e&gt; \_f\_"
    assert labels.slug("scores", "cifar10", "fid_cifar") == "scores-cifar10-fid_cifar"
    assert labels.slug("../a") != labels.slug("..-a")
    assert re.fullmatch(r"[a-z0-9_-]+", labels.slug("../../etc/passwd\x00", "x" * 500))
    assert len(labels.slug("x" * 500)) < 60


def test_numbers_for_reading() -> None:
    assert labels.spread(29.3, 0.21) == "29.30 ± 0.21"
    assert labels.spread(123.45, 1.0) == "123.5 ± 1.0"
    assert [labels.number(v) for v in (0.01234, 1.2e-7, 0.0)] == ["0.0123", "1.2e-07", "0.0000"]
    assert labels.number(None) == labels.number(float("nan")) == "–"
    near = {1.0: "1.00", 100.0: "100.0", 1000.0: "1,000", 1e-3: "0.0010"}
    for size, printed in near.items():  # the last bits, which processors disagree in, choose no digits
        for value in (size * (1 - 1e-9), size, size * (1 + 1e-9)):
            assert labels.number(value) == printed
            assert labels.spread(value, 0.0).startswith(f"{printed} ± ")
            assert len(labels.spread(value, 0.0)) == len(labels.spread(size, 0.0))
    assert labels.number(0.9999) == "0.9999"
    assert {labels.signed(v, like=5) for v in (-1e-17, -0.0, 0.0, 1e-17)} == {"+0.00"}
    assert labels.signed(-0.3, like=5) == "-0.30"
    assert [labels.duration(s) for s in (41, 720, 11520)] == ["41 s", "12 min", "3.2 h"]
    assert sorted(["d_steps 10", "d_steps 2"], key=labels.natural) == ["d_steps 2", "d_steps 10"]
    assert labels.method_label("sn+gp") == "SN + GP"
    assert labels.better("fid_cifar") == labels.better("kid") == "lower"
    assert labels.better("is") == "higher"


def test_scores_of_ganlab_evaluate_are_read_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, samples=False, fid=40.0)
    other = SNGAN | {"protocol": "ttur50k", "fid_n_fake": 50_000, "fid_n_real": 50_000}
    record = {"checkpoint": "last", "step": 1000, "values": {"fid": 33.0}, "protocol": other}
    record["protocol_id"] = digest(other)
    (run / "evaluations").mkdir()
    (run / "evaluations" / "a.json").write_text(json.dumps(record))
    (run / "evaluations" / "b.json").write_text(json.dumps(record | {"step": 500}))  # before the run went on
    (run / "evaluations" / "c.json").write_text(json.dumps(record | {"protocol_id": digest(SNGAN)}))  # known
    (run / "evaluations" / "d.json").write_text("{")
    (read,) = collect([tmp_path])
    fids = [(s.checkpoint, s.step, s.value) for s in read.scores if s.name == "fid"]
    assert fids == [("last", 1000, 40.0), ("best", 900, 38.8), ("last", 1000, 33.0), ("step 500", 500, 33.0)]
    assert "evaluations/d.json can't be read" in read.notes[0]
    assert "2 protocols" in tables.warnings(one_section(tmp_path))[0]


def test_a_report_of_runs_without_scores_has_tables(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", samples=False, status="failed", scores=None)
    (tmp_path / "runs" / "sn" / "C-s0" / "metrics.jsonl").unlink()
    html = report([tmp_path / "runs" / "sn" / "C-s0"], tmp_path / "out").read_text()
    assert "<img" not in html
    assert "failed at 500 of 1,000" in html
    assert "C-s0" in html


def test_nothing_of_torch_is_imported(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", samples=False)
    code = (
        "import sys; from ganlab.report import report; early = set(sys.modules);"
        f"report([{str(tmp_path / 'runs')!r}], {str(tmp_path / 'out')!r});"
        "assert not {'matplotlib', 'jinja2', 'scipy'} & early, early; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], timeout=120)
