"""What WGAN-GP's tables and figures need of reports: Table 3, cells down and across, the training's clock."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image
from report_runs import make_crossing, make_pairs, make_run

from ganlab.config import compose
from ganlab.report import report
from ganlab.report.compare import compare, full_table
from ganlab.report.draw import mosaic, sheet, style
from ganlab.report.read import cells, collect, grids, history

ROWS = ["dcgan", "constant", "mlp", "no_norm", "gated", "tanh", "resnet101"]
COLUMNS = ["dcgan", "lsgan", "wgan", "wgan-gp"]


def resnet(root: Path, head: str, seed: int, score: float, **changes: object) -> None:
    net = {"head": head, "width": 1.0}
    own = {"folder": f"{head}{seed}", "architecture": "resnet", "overrides": {"architecture": net}}
    make_run(root, "wgan-gp", "resnet", seed, inception=score, **(own | changes))  # type: ignore[arg-type]


def table_3(root: Path) -> list[list[str]]:
    (section,) = cells.sections(collect.collect([root]))
    (table,) = full_table.tables(section)
    assert table.title == "WGAN-GP Table 3, complete"
    return [[field.text for field in row] for row in table.rows]


def test_table_3_has_both_halves_with_ours_in_its_place(tmp_path: Path) -> None:
    for seed in (0, 1):
        resnet(tmp_path, "none", seed, 7.7 + seed / 10)
        resnet(tmp_path, "ac", seed, 8.2 + seed / 10)
    rows = table_3(tmp_path)
    assert len(rows) == 14
    assert [row[0] for row in rows] == ["unsupervised", *[""] * 6, "supervised", *[""] * 6]
    by_half = {(i < 7, row[1]): row[2:] for i, row in enumerate(rows)}
    assert by_half[True, "WGAN-GP ResNet"][:3] == [
        "7.86 ± 0.07",
        "7.75 ± 0.07 (resnet, 2 seeds)",
        "the authors' own",
    ]
    assert by_half[False, "WGAN-GP ResNet"][:3] == [
        "8.42 ± 0.10",
        "8.25 ± 0.07 (resnet, 2 seeds)",
        "the authors' own",
    ]
    assert by_half[True, "Improved GAN (-L+HA)"] == ["6.86 ± 0.06", "–", "quoted", ""]
    assert by_half[False, "SGAN"] == ["8.59 ± 0.12", "–", "quoted", ""]
    assert [row[4] for row in rows].count("quoted") == 12
    assert "batch norm statistics of G: ours running, published batch" in by_half[True, "WGAN-GP ResNet"][3]


def test_the_row_whose_protocol_is_ours_stands_beside(tmp_path: Path) -> None:
    """The paper's own IS by its own protocol, SNGAN's rerun of it by SNGAN's."""
    by_protocol = {}
    for name in ("wgan_gp_paper", "sngan_paper"):
        words = ["+experiment=wgan_gp_cifar_resnet", f"metric.protocol={name}"]
        protocol = compose.build(compose.compose(words)).metric.protocol.record()
        protocol |= {"extractor": "inception", "generator": "raw"}
        resnet(tmp_path / name, "none", 0, 7.7, protocol=protocol)
        (section,) = cells.sections(collect.collect([tmp_path / name]))
        for key in section.score_keys("last"):
            (row,) = compare.match_published(section, key).rows.values() or (None,)
            by_protocol[name, key.score] = row and (row.where, row.value)
    assert by_protocol["wgan_gp_paper", "is"] == ("WGAN-GP Table 3", 7.86)
    assert by_protocol["sngan_paper", "is"] == ("SNGAN Table 7", 7.8)
    assert by_protocol["sngan_paper", "fid"] == ("SNGAN Table 7", 24.5)
    assert by_protocol["wgan_gp_paper", "fid"] is None


def test_table_3_tells_variants_and_what_did_not_finish(tmp_path: Path) -> None:
    resnet(tmp_path, "none", 0, 7.7)
    resnet(tmp_path, "none", 1, 6.0, steps=500, status="stopped")
    rows = [row for row in table_3(tmp_path) if row[3] != "–"]
    assert [row[3] for row in rows] == ["7.70 (resnet, one seed)", "6.00 (resnet, one seed, unf.)"]
    assert [row[5].partition(":")[0] for row in rows] == ["1,000 updates", "500 updates"]
    assert table_3(tmp_path)[-2][3] == "–"  # supervised: none of ours


# ---- cells down and across


def grid_of(root: Path) -> tuple[grids.Grid, list[collect.Run]]:
    runs = collect.collect([root])
    (grid,) = grids.find(runs, [root])
    return grid, runs


def test_a_grid_of_two_axes_is_a_picture_with_every_cell_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"samples": False, "error": "out of memory"}
    changes = {
        "mlp_lsgan": {"status": "diverged"},
        "gated_dcgan": {"status": "diverged", "samples": False},
        "resnet101_dcgan": {"status": "failed", **error},
        "no_norm_lsgan": {"samples": False},
        "tanh_wgan": {},
    }
    make_crossing(tmp_path, ROWS, COLUMNS, **changes)
    drawn = []
    real = sheet.png

    def record(title: str, *rest: object) -> bytes:
        drawn.append((title, *rest))
        return real(title, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sheet, "png", record)
    picture = mosaic.of_grid(*grid_of(tmp_path), "x")
    assert isinstance(picture, style.Picture)
    ((title, rows, columns, tiles),) = drawn
    assert title == "Samples: Pairs of nets"
    assert rows == ["DCGAN", *ROWS[1:]]
    assert columns == ["DCGAN", "LSGAN", "WGAN", "WGAN-GP"]
    assert len(tiles) == 28
    assert sum(tile.image is not None for tile in tiles.values()) == 24
    marked = {
        place: (tile.caption, tile.alarm) for place, tile in tiles.items() if tile.image is None or tile.alarm
    }
    assert marked == {
        (2, 1): ("div. · step 500 · FID 40.00", True),
        (3, 1): ("no samples", False),
        (4, 0): ("diverged: step 500: d/loss is not finite", True),
        (5, 2): ("not started", False),
        (6, 0): ("failed: out of memory", True),
    }
    with Image.open(io.BytesIO(picture.png)) as image:
        assert image.height > image.width


@pytest.mark.parametrize(
    "axes", [{"method": "x"}, {"method": "xy", "setting": "AB"}, {"a": "xy", "b": "xy", "c": "xy"}]
)
def test_other_grids_have_no_such_picture(axes: dict[str, str]) -> None:
    grid_cells = [
        grids.GridCell(
            f"{i}", Path(str(i)), {axis: labels[i % len(labels)] for axis, labels in axes.items()}, {}
        )
        for i in range(4)
    ]
    assert mosaic.axes(grids.Grid("t", cells=grid_cells)) is None


def test_a_large_random_set_is_counted_and_not_drawn(tmp_path: Path) -> None:
    """A group for each of its runs: no bars, no curves, no comparison of each with each; all are listed."""
    make_pairs(tmp_path, {f"a{i:03d}": (4.0, 6.0) for i in range(26)}, samples=False, dataset="imagenet")
    page = report([tmp_path], tmp_path / "r").read_text()
    assert "52 methods and variants are too many for figures" in page
    assert list((tmp_path / "r" / "figures").iterdir()) == []
    assert page.count("<code>a") >= 52
    assert len((tmp_path / "r" / "differences.csv").read_text().splitlines()) == 1


# ---- the training's clock


def test_the_seconds_of_the_updates_leave_evaluations_out(tmp_path: Path) -> None:
    """By hand: 10 updates at 5/s, 10 at 2/s, 20 at 4/s are 2, 7 and 12 s, whatever wall_s says."""
    lines = [
        {"step": 10, "kind": "train", "loss/d": 1.0, "it_per_s": 5.0, "wall_s": 2.1},
        {"step": 10, "kind": "eval", "scores": {"is": 2.0}, "protocol_id": "p", "wall_s": 60.0},
        {"step": 20, "kind": "train", "loss/d": 1.0, "it_per_s": 2.0, "wall_s": 66.0},
        {"step": 40, "kind": "train", "loss/d": 1.0, "it_per_s": 4.0, "wall_s": 99.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = history.read(path, notes := [])
    assert not notes
    seconds = {0: 0, 5: 1, 10: 2, 15: 4.5, 20: 7, 30: 9.5, 40: 12, 41: None}
    assert {step: summary.seconds(step) for step in seconds} == seconds
    path.write_text(json.dumps(lines[1]) + "\n")
    assert [history.read(path, []).seconds(step) for step in (0, 10)] == [None, None]


@pytest.mark.parametrize("rate", [0, "fast", float("inf"), float("nan")])
def test_a_strange_speed_is_left_out(tmp_path: Path, rate: object) -> None:
    line = {"step": 10, "kind": "train", "loss/d": 1.0, "it_per_s": rate}
    (tmp_path / "m").write_text(
        json.dumps(line) + "\n" + json.dumps(line | {"step": 20, "it_per_s": 4}) + "\n"
    )
    assert history.read(tmp_path / "m", []).seconds(20) == 5.0
