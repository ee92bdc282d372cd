"""Random sets of a grid: the same members everywhere, overrides by method, mistakes in a line, a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from ganlab.cli import main
from ganlab.errors import ConfigError
from ganlab.sweeps import cost, grid, plan, process

FILE = """
title: Random nets
pairs: {axis: method, count: successes, paper: wgan_gp}
blocks:
  - overrides: [dataset=digits, steps=4, eval_every=2]
    axes:
      method: {gan: loss=standard, wgan-gp: loss=wasserstein}
    random:
      n: 3
      seed: 0
      choices:
        architecture.slope: [0.1, 0.2, 0.3]
        architecture.z_dim: [8, 16]
        d_norm:
          none: {gan: normalization=none, wgan-gp: normalization=gp}
          norm: {gan: normalization=bn, wgan-gp: 'normalization=[ln,gp]'}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "conf" / "grid").mkdir(parents=True)
    (tmp_path / "conf" / "grid" / "nets.yaml").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def made(place: Path, *words: str) -> list[grid.Cell]:
    chosen, rest = grid.restrict(grid.load("nets", [place / "conf"]), words)
    return grid.cells(chosen, rest)


def test_the_shipped_set_is_the_same_everywhere_and_a_prefix_of_a_longer_one() -> None:
    """Pinned: another Python, machine or library must draw these too."""
    (block,) = grid.load("wgan_gp_random_architectures").blocks
    assert block.random is not None
    assert (block.random.n, block.random.seed, block.random.size) == (200, 0, 9216)
    members = list(block.random.members())
    assert list(members[0].chosen.values()) == FIRST
    assert list(members[199].chosen.values()) == LAST
    assert len({tuple(m.chosen.values()) for m in members}) == 200
    assert list(block.random.with_setting("n", "12").members()) == members[:12]
    assert list(block.random.with_setting("seed", "1").members())[:12] != members[:12]
    one_sided = grid.load("wgan_gp_one_sided").blocks[0].random
    assert one_sided is not None
    assert [m.chosen for m in one_sided.members()] == [m.chosen for m in members]


FIRST = ["smooth_elu", "leaky_relu", "8", "4", "true", "none", "64", "64"]
LAST = ["smooth_elu", "leaky_relu", "20", "8", "true", "none", "128", "64"]


def test_cells_have_short_names_their_choices_and_the_overrides_of_their_method(place: Path) -> None:
    cells = made(place)
    assert [c.name for c in cells] == [
        "a000-gan",
        "a000-wgan-gp",
        "a001-gan",
        "a001-wgan-gp",
        *(f"a002-{m}" for m in ("gan", "wgan-gp")),
    ]
    assert made(place, "n=2") == cells[:4]
    assert [c.name for c in made(place, "method=gan")] == ["a000-gan", "a001-gan", "a002-gan"]
    for gan, wgan in zip(cells[::2], cells[1::2], strict=True):
        assert gan.chosen == wgan.chosen
        assert gan.axes == {"draw": gan.name[:4], "method": "gan"}
        norm = gan.chosen["d_norm"] == "norm"
        assert ("normalization=bn" if norm else "normalization=none") in gan.overrides
        assert ("normalization=[ln,gp]" if norm else "normalization=gp") in wgan.overrides
        assert f"seed={int(gan.name[1:4])}" in gan.overrides
        assert f"architecture.slope={gan.chosen['architecture.slope']}" in wgan.overrides
    assert {c.chosen["d_norm"] for c in made(place, "n=12")} == {"none", "norm"}


def test_another_seed_has_another_folder_and_a_larger_n_the_same(place: Path) -> None:
    def out(*words: str) -> str:
        return str(plan.plan_grid("nets", words, grid.Scale(), None, ["conf"]).out)

    assert out("n=1") == out("n=2", "seed=0") == "outputs/nets"
    assert out("n=1", "seed=7") == "outputs/nets-seed7"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("n=0", "n: '0' is not an integer from 1 to 12, the number of combinations; write n=3"),
        ("seed=-1", "seed: '-1' is not an integer of at least 0; write seed=0, the seed of the draw"),
        ("m=3", "m: unknown key"),
    ],
)
def test_a_wrong_n_or_seed_is_a_line(
    place: Path, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert main.main(["sweep", "--config-dir", "conf", "grid=nets", word]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"ganlab: error: {message}"), err
    assert err.count("\n") == 1
    assert not (place / "outputs").exists()


def test_more_cells_than_allowed_are_counted_before_they_are_drawn(place: Path) -> None:
    shipped = grid.load("wgan_gp_random_architectures")
    chosen, _ = grid.restrict(shipped, ["n=501"])
    with pytest.raises(ConfigError, match="1002 cells; must be 1 to 1000"):
        grid.cells(chosen)
    assert len(grid.cells(shipped)) == 400


def test_a_random_set_s_mistakes_are_told_together(place: Path) -> None:
    (place / "conf" / "grid" / "bad.yaml").write_text(
        "title: x\npairs: {axis: method, count: failures}\nblocks:\n"
        "  - axes: {method: {gan: a=1, wgan: a=2}, seed: [0]}\n"
        "    random: {m: 3, choices: {x: [1, 1], y: 3, z: {big: {gan: a=1}}, w: {big: b}}}\n"
        "  - axes: {method: {gan: a=1, wgan: a=2}}\n    random: {n: 9, seed: q, choices: {x: [1, 2]}}\n"
    )
    with pytest.raises(ConfigError) as caught:
        grid.load("bad", [place / "conf"])
    messages = "\n".join(map(str, caught.value.mistakes))
    for part in (
        "random.m: unknown key",
        "random: conflicts with axis 'seed'",
        "choices.x: repeats a value",
        "choices.y: must be a list of values, or a mapping from labels",
        "choices.z.big: must have exactly the labels of one axis as keys; write {gan: ..., wgan: ...}",
        "choices.w.big: must be a list of key=value overrides",
        "random.n: '9' is not an integer from 1 to 2",
        "random.seed: 'q' is not an integer",
    ):
        assert part in messages, messages
    (place / "conf" / "grid" / "bad2.yaml").write_text(
        FILE.replace("successes", "failures").replace("axis: method", "axis: metod")
    )
    with pytest.raises(ConfigError, match="'metod' must be an axis with two labels"):
        grid.load("bad2", [place / "conf"])


def test_grid_json_says_what_was_drawn(place: Path) -> None:
    planned = plan.plan_grid("nets", ["n=2"], grid.Scale(), None, ["conf"])
    record = json.loads(json.dumps(planned.record()))
    assert record["random"] == {"n": 2, "seed": 0, "of": 12}
    assert record["pairs"] == {"axis": "method", "count": "successes", "paper": "wgan_gp"}
    assert [c["axes"]["draw"] for c in record["cells"]] == ["a000", "a000", "a001", "a001"]
    assert all(
        set(c["chosen"]) == {"architecture.slope", "architecture.z_dim", "d_norm"} for c in record["cells"]
    )
    assert record["cells"][0]["chosen"] != record["cells"][2]["chosen"]


def test_dry_run_times_some_kinds_and_takes_the_rest_for_their_mean(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every cell of a random set is a kind of its own. By hand: 1 and 3 s an update make a third cell 2 s."""
    seconds = iter([1.0, 3.0])
    monkeypatch.setattr(cost, "MAX_KINDS", 2)
    monkeypatch.setattr(cost, "measure", lambda *_: cost.Cost(next(seconds), 0.5))
    words = ["grid=nets", "method=gan", "dry_run=true", "setting=C", "device=cpu", "metric.extractor=cifar"]
    assert main.main(["sweep", "--config-dir", "conf", *words]) == 0
    output = capsys.readouterr()
    assert [line.split()[3] for line in output.out.splitlines() if line.startswith("a00")] == [
        "100",
        "300",
        "~200",
    ]
    assert "~: 1 cells estimated by the mean of 2 measured kinds, by d_steps" in output.out
    assert output.err.count("measuring") == 2


@pytest.mark.slow
def test_a_random_grid_runs_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Two members by two methods, two updates each; here a cell runs in this process."""

    def run(command: Sequence[str], *_: object, **__: object) -> process.ProcessResult:
        return process.ProcessResult(main.main(["train", *command[len(process.COMMAND) :]]), 1.0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(process, "run", run)
    small = "dataset=digits dataset.resolution=32 batch_size=4 steps=2 eval_every=0 log_every=1"
    scored = "metric.extractor=cifar metric.protocol=smoke metric.progress=null threads=1 device=cpu"
    words = ["grid=wgan_gp_random_architectures", "n=2", "scale=1,0.03", "out=o"]
    assert main.main(["sweep", *words, *small.split(), *scored.split()]) == 0
    names = ["a000-gan", "a000-wgan-gp", "a001-gan", "a001-wgan-gp"]
    results = [json.loads((tmp_path / "o" / name / "result.json").read_text()) for name in names]
    assert [(r["status"], r["step"], r["seed"]) for r in results] == [
        ("finished", 2, i // 2) for i in range(4)
    ]
    capfd.readouterr()
    assert main.main(["report", "o", "out=r", "thresholds=0.5,99"]) == 0
    lines = [line.strip() for line in capfd.readouterr().out.splitlines()]
    counts = lines[lines.index("Successes over thresholds (ours: 2 pairs)") + 2 :][:2]
    assert [line.split() for line in counts] == [
        ["0.5", "0", "(0%)", "0", "(0%)", "2", "(100%)", "0", "(0%)"],
        ["99", "0", "(0%)", "0", "(0%)", "0", "(0%)", "2", "(100%)"],
    ]
    assert len((tmp_path / "r" / "pairs.csv").read_text().splitlines()) == 5
