"""``ganlab analyze``: names, keys, errors, what is written, and that runs stay as they were."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from pathlib import Path
from typing import Any

import analysis_runs as maker
import pytest
import torch
from PIL import Image

from ganlab import analysis
from ganlab.analysis import subjects
from ganlab.cli import main
from ganlab.errors import DataError, GanlabError
from ganlab.report.draw import sheet
from ganlab.schema import parameters

pytestmark = pytest.mark.usefixtures("one_thread")
Runs = dict[str, Path]
OTHERS = ("ngram_js", "value_line")  # of samples that are not images; tested with them
QUICK = [
    *("n=12", "n_real=40", "rows=2", "side=2", "pairs=2", "columns=3"),
    *("rounds=1", "updates=1", "methods=none,sn"),
]
OWN_RUNS = {  # of other sets
    *("d_steps", "equilibrium", "feature_dim", "nearest", "overfitting", "reconstructions", "speed"),
    "value_surface",
}
DRAWS = ["interpolations", "samples", "scores"]  # on these two runs, again


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text("utf-8"))))


def content(folder: Path) -> dict[str, str]:
    """Every file under a folder and its hash."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def check(folder: Path, name: str) -> None:
    """The picture is drawn on, and the table has no empty line."""
    with Image.open(folder / f"{name}.png") as image:
        assert 300 < image.width < 4000
        assert 150 < image.height < 4000
        assert len(image.convert("L").getcolors(256) or []) > 20
    rows = table(folder / f"{name}.csv")
    assert rows
    assert all(value is not None for row in rows for value in row.values())


def test_every_analysis_is_found_and_documents_its_keys() -> None:
    entries = analysis.catalogue()
    assert set(entries) > {*OWN_RUNS, *OTHERS, *DRAWS}
    for name, entry in entries.items():
        kind = analysis.load(name)
        assert set(entry.keys) == set(parameters(kind)), name
        assert 20 < len(entry.title) < 120, name
        doc = "\n".join(line.strip() for line in entry.doc.splitlines())
        for key in entry.keys:
            assert f"\n{key}: " in doc, f"{name} does not say what {key} is"


@pytest.mark.slow
def test_all_makes_what_fits_and_says_why_the_rest_does_not(
    analysis_runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs and random numbers stay as they were; the same samples are drawn again."""
    pair = [analysis_runs["sn"], analysis_runs["wn"]]
    before = [content(run) for run in pair]
    random = torch.get_rng_state()
    pictures = analysis.analyze(pair, "all", tmp_path / "a", [*QUICK, "checkpoint=last"])
    assert torch.equal(torch.get_rng_state(), random)
    assert [content(run) for run in pair] == before
    skipped = {*OWN_RUNS, *OTHERS}
    assert {p.stem for p in pictures} == set(analysis.catalogue()) - skipped
    for picture in pictures:
        check(tmp_path / "a", picture.stem)
    lines = capsys.readouterr().out.splitlines()
    assert sum(" -> " in line and line.endswith(".csv") for line in lines) == len(pictures)
    reasons = {line.partition(":")[0]: line for line in lines if ": skipped: " in line}
    assert set(reasons) == skipped
    assert "have the same d_steps: 1" in reasons["d_steps"]
    assert "have the same architecture.last_factor: 1" in reasons["feature_dim"]
    assert "takes at most 1 run, got 2" in reasons["nearest"]
    assert "wn has no log of BEGAN's k" in reasons["equilibrium"]
    assert "wn has no auto-encoder for D" in reasons["reconstructions"]
    assert "no run has losses on held-out images" in reasons["overfitting"]
    assert "for runs on points only; wn has images" in reasons["value_surface"]
    analysis.analyze(
        pair, ",".join(DRAWS), tmp_path / "b", [w for w in QUICK if w[:2] in ("n=", "si", "pa", "co")]
    )
    again = content(tmp_path / "b")
    assert again.items() <= content(tmp_path / "a").items()
    assert {f"{name}.png" for name in DRAWS} <= again.keys()


def test_one_run_gets_a_folder_of_its_own_and_nothing_else(analysis_runs: Runs, tmp_path: Path) -> None:
    run = Path(shutil.copytree(analysis_runs["sn"], tmp_path / "run"))
    before = content(run)
    assert main.main(["analyze", str(run), "analysis=singular_values,admissible"]) == 0
    after = content(run)
    assert {k: v for k, v in after.items() if not k.startswith("analysis/")} == before
    expected = {"singular_values.png", "singular_values.csv", "singular_values_layers.csv"}
    expected |= {"admissible.png", "admissible.csv"}
    assert {Path(k).name for k in after.keys() - before.keys()} == expected


def fails(code: int, capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    capfd.readouterr()
    assert main.main(["analyze", *arguments]) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("ganlab: error: ")
    return line.removeprefix("ganlab: error: ")


def test_mistakes_are_one_line_with_the_fix(
    analysis_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sn = str(analysis_runs["sn"])
    assert "'ganlab analyze --help' lists them" in fails(2, capfd, sn)
    assert "did you mean 'singular_values'?" in fails(2, capfd, sn, "analysis=singular_value")
    assert "did you mean 'checkpoint'?" in fails(2, capfd, sn, "analysis=scores", "chekpoint=last")
    assert "n: 'none' is not an integer >= 1 and <= 1e+09; the default is 1000" in fails(
        2, capfd, sn, "analysis=scores", "n=none"
    )
    assert "steps: cannot change after training" in fails(2, capfd, sn, "analysis=scores", "steps=9")
    assert "unheard: unknown key; change metric" in fails(2, capfd, sn, "analysis=scores", "unheard=9")
    assert "needs at least 1 run, got 0" in fails(3, capfd, "analysis=scores")
    assert "no such folder" in fails(3, capfd, "nowhere", "analysis=scores")
    assert "has no checkpoint at step 9" in fails(4, capfd, sn, "analysis=scores", "checkpoint=9")
    assert "has no split 'test'" in fails(3, capfd, sn, "analysis=scores", "split=test", "n=4")
    assert "have the same d_steps" in fails(3, capfd, sn, str(analysis_runs["wn"]), "analysis=d_steps")
    both = (sn, str(analysis_runs["sn-d2"]), "analysis=d_steps")
    assert "available steps: 1, 2, 3" in fails(3, capfd, *both, "updates=77")
    assert "available scores: is_cifar, fid_cifar" in fails(3, capfd, *both, "score=fid")
    assert "did you mean 'sn'?" in fails(2, capfd, sn, "analysis=speed", "methods=none,ns")
    assert "steps" in fails(2, capfd, "analysis=admissible", "steps=3")
    assert list(tmp_path.iterdir()) == []  # a failure leaves nothing behind


def test_damaged_runs_and_missing_data_are_told(
    analysis_runs: Runs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(analysis_runs["sn"], tmp_path / "run"))
    text = (run / "config.yaml").read_text()
    old = "_target_: ganlab.data.digits.Digits\n  resolution: 16\n  channels: 1\n"
    assert old in text
    missing = "_target_: ganlab.data.folder.Folder\n  path: gone.zip\n  resolution: 16\n  channels: 1\n"
    (run / "config.yaml").write_text(text.replace(old, missing))
    assert "gone.zip" in fails(3, capfd, str(run), "analysis=gradient_norm", "n=4")
    shutil.rmtree(run / "checkpoints")
    assert "holds no checkpoint" in fails(4, capfd, str(run), "analysis=singular_values")


def test_a_folder_that_can_not_be_written_is_told(analysis_runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GanlabError, match="file"):
        analysis.analyze([], "admissible", tmp_path / "file")


def test_labels_tell_runs_apart_and_no_more(analysis_runs: Runs) -> None:
    def labels(*names: str) -> list[str]:
        return [s.label for s in subjects.open_runs([analysis_runs[n] for n in names])]

    assert labels("sn") == ["SN"]
    assert labels("wn", "sn") == ["WN", "SN"]
    assert labels("sn", "sn-s1", "wn") == ["WN, seed 0", "SN, seed 0", "SN, seed 1"]
    assert labels("none-A", "sn") == ["None, setting A", "SN, setting C"]  # not their d_steps, 5 and 1
    assert labels("sn", "sn-d2") == ["SN, 1 D steps", "SN, 2 D steps"]
    assert subjects.common(subjects.open_runs([analysis_runs["sn"], analysis_runs["wn"]])) == (
        "Digits 16×16, CNN, setting C, 3 updates, width 0.05"
    )


def test_conditional_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """G and D with labels: everything that looks at networks."""
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    run = maker.train(tmp_path, "cond", maker.CONDITIONAL)
    names = "gradient_norm,scores,samples,interpolations,nearest,operator_norms"
    options = [w for w in QUICK if not w.startswith(("rounds", "updates", "methods"))]
    pictures = analysis.analyze([run], names, tmp_path / "out", options)
    assert len(pictures) == 6
    gan, _ = subjects.open_runs([run])[0].restore()
    assert gan.num_classes == 10


def crossed(runs: Runs, root: Path, **changes: dict[str, object]) -> Path:
    """Runs copied into a grid of the axes ``pair`` and ``method``, one cell of it never begun."""
    cells = []
    for name, source, axes in (
        ("a-wn", "wn", {"pair": "a", "method": "wn"}),
        ("a-sn", "sn", {"pair": "a", "method": "sn"}),
        ("b-wn", "wn", {"pair": "b", "method": "wn"}),
        ("b-sn", "", {"pair": "b", "method": "sn"}),
    ):
        cells.append({"name": name, "run": name, "axes": {**axes, "seed": "s0"}})
        if source:
            run = Path(shutil.copytree(runs[source], root / name))
            path = run / "result.json"
            path.write_text(
                json.dumps(json.loads(path.read_text()) | changes.get(name.replace("-", "_"), {}))
            )
    (root / "grid.json").write_text(json.dumps({"title": "Two pairs", "cells": cells}))
    return root


def test_samples_down_and_across_any_axis_or_key(
    analysis_runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid's own labels in its own order; a run that diverged and one that has no checkpoint say so."""
    root = crossed(analysis_runs, tmp_path / "g", b_wn={"status": "diverged", "error": "step 2: d/loss"})
    shutil.rmtree(root / "a-sn" / "checkpoints")
    drawn = []

    def record(
        title: str, rows: list[str], columns: list[str], cells: dict[Any, Any], note: str = ""
    ) -> bytes:
        drawn.append(
            (rows, columns, {place: (tile[0] is not None, *tile[1:]) for place, tile in cells.items()})
        )
        return draw(title, rows, columns, cells, note)

    draw = sheet.png
    monkeypatch.setattr(sheet, "png", record)
    analysis.analyze([root], "samples", tmp_path / "o", ["side=2", "down=pair", "across=method"])
    rows, columns, cells = drawn.pop()
    assert (rows, columns) == (["a", "b"], ["WN", "SN"])
    assert {place: (present, alarm) for place, (present, _, alarm) in cells.items()} == {
        (0, 0): (True, False),
        (0, 1): (False, False),
        (1, 0): (True, True),
        (1, 1): (False, False),
    }
    assert cells[0, 1][1] == "no checkpoint"
    assert cells[1, 0][1].startswith("diverged · step 3")
    assert cells[1, 1][1] == "not started"
    options = ["side=2", "down=optimizer", "across=seed"]
    analysis.analyze([root], "samples", tmp_path / "o", options)
    rows, columns, _ = drawn.pop()
    assert (rows, columns) == (["Adam"], ["s0"])
    with pytest.raises(DataError, match="no run has 'par'; the grid has pair, method, seed; or use a key"):
        analysis.analyze([root], "samples", tmp_path / "o", ["down=par"])
