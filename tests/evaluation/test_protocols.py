"""``ganlab evaluate RUN protocols=A,B``: one checkpoint scored several times, side by side."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ganlab.cli import evaluate, main
from ganlab.errors import ConfigError
from ganlab.metrics.protocol import apart
from ganlab.report.compare import rescored
from ganlab.report.read import cells, collect

PROTOCOL = """\
_target_: ganlab.metrics.protocol.Protocol
name: {name}
is_n_fake: {n}
is_splits: 1
fid_n_fake: {n}
fid_n_real: {n_real}
kid_subsets: 2
kid_subset_size: 8
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one update on the digits, and two tiny protocols of the user's own."""
    root = tmp_path_factory.mktemp("protocols")
    (root / "mine" / "protocol").mkdir(parents=True)
    for name, n, n_real in (("few", 16, 32), ("more", 48, 0)):
        text = PROTOCOL.format(name=name, n=n, n_real=n_real)
        (root / "mine" / "protocol" / f"{name}.yaml").write_text(text)
    words = ["steps=1", "batch_size=4", "architecture.width=0.02", "metric.protocol=few", "device=cpu"]
    words += ["metric=[fid,is]", "eval_start=false", "threads=1", f"run_dir={root / 'run'}"]
    assert main.main(["train", *words, "--config-dir", str(root / "mine")]) == 0
    return root


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run")
    return tmp_path / "run"


def dirs(trained: Path) -> list[str]:
    return ["--config-dir", str(trained / "mine")]


def test_two_protocols_side_by_side(trained: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["evaluate", str(run), "protocols=few,more", *dirs(trained)]) == 0
    out = capsys.readouterr().out
    kept = {p["protocol"]["protocol"]: p for p in map(read, sorted((run / "evaluations").glob("*.json")))}
    assert set(kept) == {"few", "more"}
    few, more = kept["few"], kept["more"]
    assert (few["step"], few["checkpoint"]) == (more["step"], more["checkpoint"]) == (1, "last")
    assert few["protocol"]["fid_n_real"] == 32
    assert more["protocol"]["fid_n_real"] == 1797
    table = out[out.index("same checkpoint") :].splitlines()
    assert table[0].split() == ["same", "checkpoint", "few", "more", "more", "-", "few"]
    (fid,) = [line.split() for line in table if line.startswith("fid_cifar")]
    values = [few["values"]["fid_cifar"], more["values"]["fid_cifar"]]
    assert fid[1:] == [f"{values[0]:.4g}", f"{values[1]:.4g}", f"{values[1] - values[0]:+.4g}"]
    assert values[0] != values[1]
    assert "  fid_n_fake       16" in out or any(line.split() == ["fid_n_fake", "16", "48"] for line in table)
    assert not any(line.split()[:1] == ["quantize"] for line in table)  # the same in both
    (section,) = cells.sections(collect.collect([run]))  # and a report shows them beside each other
    rows = rescored.table(section)
    assert rows is not None
    assert [c.label.split(" [")[0] for c in rows.columns[5:]] == ["few", "more", "range"]
    row = next(row for row in rows.rows if row[4].text == "fid_cifar")
    assert row[5].text != row[6].text
    assert "fid_n_fake 16 | 48" in rows.notes[0]


def test_the_same_number_as_one_by_one(trained: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = evaluate.evaluate_protocols(str(run), ["few", "more"], config_dirs=[str(trained / "mine")])
    alone = evaluate.evaluate_run(str(run), ["metric.protocol=more"], config_dirs=[str(trained / "mine")])
    assert both[1]["values"] == alone["values"]
    assert both[1]["protocol_id"] == alone["protocol_id"]
    last = read(run / "result.json")["scores"]["last"]
    assert (both[0]["values"], both[0]["protocol_id"]) == (last["values"], last["protocol_id"])
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["protocols=few,nothing"], "there is no 'nothing'"),
        (["protocols=few,few"], "contains a duplicate"),
        (["protocols=few,more", "metric.protocol=smoke"], "cannot be combined with protocols="),
        (["protocols="], "requires a value"),
        (["protocol=few"], "did you mean 'protocols'?"),
    ],
)
def test_wrong_words_are_told_before_anything_is_scored(
    trained: Path, run: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["evaluate", str(run), *words, *dirs(trained)]) == ConfigError.code
    assert says in capsys.readouterr().err
    assert not (run / "evaluations").exists()


def test_what_lies_apart() -> None:
    a: dict[str, Any] = {"protocol": "x", "n": 5, "same": 1, "extractor": {"name": "cifar", "views": 2}}
    b: dict[str, Any] = {"protocol": "y", "n": 6, "same": 1, "extractor": {"name": "inception", "views": 2}}
    assert apart([a, b]) == {"n": [5, 6], "extractor.name": ["cifar", "inception"]}
    assert apart([a, a]) == {}
    assert apart([a, a | {"more": 3}]) == {"more": [None, 3]}
    assert apart([]) == {}


def read(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record
