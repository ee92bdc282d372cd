"""``ganlab explain``: recipes that fit their experiments; differences, told with where values come from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ganlab.cli import main
from ganlab.config import compose
from ganlab.config.files import groups
from ganlab.errors import ConfigError, DataError
from ganlab.papers import explain, recipes

EXPERIMENTS = groups([])["experiment"]
KNOWN = list(recipes.table()["recipes"])
ROOT = Path(__file__).parents[2]


def of(*overrides: str) -> explain.Explanation:
    made = compose.compose(list(overrides))
    experiment = str(made.choices.get("experiment") or "")
    return explain.explain_tree("x", made.tree, recipes.match(made.tree, experiment))


def keys(lines: list[explain.Line]) -> dict[str, explain.Line]:
    return {line.key: line for line in lines}


def has(tree: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


# ---- the table


@pytest.mark.parametrize("name", KNOWN)
def test_a_recipe_is_its_experiments(name: str) -> None:
    """Its keys are there, its values (the first row is the file's) are the experiment's, nothing differs."""
    assert name in EXPERIMENTS
    recipe = recipes.load(name)
    assert recipe is not None
    trees = [recipes.composed((f"+experiment={name}", *words)) for words in recipe.rows.values()]
    alone = recipes.composed((f"+experiment={name}",))
    for key, origin in recipe.origins.items():
        assert any(has(tree, key) for tree in trees), f"no row has {key}"
        assert origin.source in recipes.SOURCES, key
        if origin.fixed and has(alone, key):
            value = recipes.value_at(alone, key)
            value = value.get("name", value.get("_target_")) if isinstance(value, dict) else value
            assert value == origin.value, key
        if origin.source in ("paper", "code"):
            assert origin.where, f"{key} names no place"
            assert getattr(origin, origin.source) is None, f"{key} differs from itself"
    for tree, row in zip(trees, recipe.rows, strict=True):
        explanation = explain.explain_tree("x", tree, recipes.match(tree, name))
        assert (explanation.match.row, explanation.differing) == (row, [])
    for setting in list(recipe.settings)[:2]:
        assert of(f"+experiment={name}", f"setting={setting}").differing == []


# ---- what it says


def test_what_is_printed_of_an_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["explain", "+experiment=sngan_cifar"]) == 0
    out = capsys.readouterr().out
    assert "recipe: sngan_cifar, " in out
    assert "nothing differs from the recipe" in out
    unknown = next(name for name in EXPERIMENTS if name not in KNOWN)
    assert main.main(["explain", f"+experiment={unknown}"]) == 0
    assert f"no recipe for experiment {unknown!r}; the closest" in capsys.readouterr().out


def test_differences_name_the_recipes_value_and_its_source() -> None:
    explanation = of("+experiment=sngan_cifar_resnet", "setting=C", "steps=1000", "architecture.width=0.5")
    lines = keys(explanation.differing)
    beta = lines["optimizer.betas[0]"]
    assert (beta.here, beta.recipe, beta.source, beta.where) == ("0.5", "0", "paper", "appendix B.3")
    assert (lines["optimizer.betas[1]"].here, lines["optimizer.betas[1]"].recipe) == ("0.999", "0.9")
    steps = lines["steps"]
    assert (steps.here, steps.recipe, steps.source, steps.code) == ("1000", "100000", "paper", "50000")
    assert lines["setting"].recipe == "resnet"
    assert lines["d_steps"].recipe == "5"
    assert lines["architecture.width"].where == "Tables 4 to 6"
    assert "optimizer.lr" not in lines
    assert [line.key for line in explanation.differing][:2] == ["architecture.width", "setting"]


def test_settings_and_rows_of_the_papers_table_are_no_differences() -> None:
    explanation = of("+experiment=sngan_cifar", "setting=D", "normalization=gp", "loss=wasserstein")
    assert explanation.match.row == "WGAN-GP"
    assert explanation.differing == []
    explanation = of("+experiment=sngan_cifar", "normalization=[sn,gp]", "loss=hinge")
    assert explanation.match.row == "SN, hinge (Eq. 17)"
    (line,) = explanation.differing
    assert (line.key, line.here, line.source) == ("normalization.gp", "GradientPenalty", "not in this row")
    explanation = of("+experiment=sngan_cifar", "normalization=none")
    assert [line.here for line in explanation.differing] == ["none"]


def test_open_points_say_what_paper_and_code_have() -> None:
    lines = keys(of("+experiment=sngan_cifar").open)
    assert (lines["architecture.d_widths"].here, lines["architecture.d_widths"].code) == ("table3", "chainer")
    assert lines["architecture.slope"].code == "0.2"
    assert (lines["batch_size"].source, lines["batch_size"].paper) == ("code", "not stated")
    assert lines["metric.protocol.real_split"].source == "ganlab"
    assert "Chainer" in lines["metric.extractor"].code
    assert "setting" in lines
    assert "normalization.orthonormal.weight" not in lines  # not in this row
    assert "setting" not in keys(of("+experiment=sngan_cifar", "setting=A").open)
    orthonormal = keys(of("+experiment=sngan_cifar", "normalization=orthonormal").open)
    assert orthonormal["normalization.orthonormal.weight"].paper == "not stated"


def test_parts_and_protocols_are_one_difference_each() -> None:
    words = ["dataset=folder", "dataset.path=/data/mine.zip", "metric.extractor=cifar"]
    lines = keys(of("+experiment=sngan_cifar", *words, "metric.protocol=smoke").differing)
    assert set(lines) == {"dataset", "metric.extractor", "metric.protocol"}
    assert lines["dataset"].here == "Folder (mine.zip)"  # no path of this machine
    assert (lines["metric.protocol"].here, lines["metric.protocol"].recipe) == ("smoke", "sngan_paper")


def test_what_moves_no_result_is_left_out() -> None:
    words = ["seed=7", "threads=2", "device=cpu", "eval_every=9", "metric=[fid]", "keep_checkpoints=9"]
    assert of("+experiment=sngan_cifar", *words, "g_batch_size=64").differing == []


def test_without_an_experiment_the_nearest_recipe_is_named() -> None:
    explanation = of("dataset=stl10", "architecture=cnn", "setting=B")
    assert explanation.match.recipe.experiment == "sngan_stl"
    assert explanation.match.reason.startswith("no experiment is recorded; the closest")
    assert recipes.nearest(of("+experiment=projection_cifar").match.tree).experiment == "projection_cifar"
    with pytest.raises(ConfigError, match="matches no shipped experiment"):
        recipes.nearest({"architecture": {"_target_": "mine.Net"}})


# ---- run folders


def write_run(folder: Path, *overrides: str, experiment: Any = "sngan_cifar", **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    saved = compose.compose(list(overrides)).saved | changes
    (folder / "config.yaml").write_text(yaml.safe_dump(saved))
    (folder / "result.json").write_text(json.dumps({"format": 1, "experiment": experiment}))
    return folder


def test_a_run_folder_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", "+experiment=sngan_cifar", "setting=A", "steps=1000")
    assert main.main(["explain", str(run)]) == 0
    out = capsys.readouterr().out
    assert "recipe: sngan_cifar, SNGAN (arXiv 1802.05957): Table 2" in out
    assert "differs from the recipe (1)" in out
    assert any(line.split()[:3] == ["steps", "1000", "100000"] for line in out.splitlines())
    assert main.main(["explain", str(run), "--json"]) == 0
    lines = json.loads(capsys.readouterr().out)
    assert lines["recipe"]["experiment"] == "sngan_cifar"
    assert [(x["key"], x["here"], x["recipe"]) for x in lines["differing"]] == [("steps", "1000", "100000")]
    assert {x["key"] for x in lines["open"]} >= {"architecture.d_widths", "batch_size"}


def test_a_run_without_a_result_or_from_before_a_key_is_explained(tmp_path: Path) -> None:
    run = write_run(tmp_path, "+experiment=sngan_cifar_resnet")
    (run / "result.json").unlink()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    del saved["order"], saved["architecture"]["head"]
    (run / "config.yaml").write_text(yaml.safe_dump(saved))
    explanation = explain.explain(str(run))
    assert explanation.match.recipe.experiment == "sngan_cifar_resnet"
    assert explanation.differing == []


def test_hostile_configs_are_only_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nasty = {"x\x1b[31m": 1, "${oc.env:HOME}": "${oc.env:HOME}", "steps": "\x1b]0;title\x07" + "x" * 500}
    run = write_run(tmp_path, "+experiment=sngan_cifar", **nasty)
    explanation = explain.explain(str(run))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert str(Path.home()) not in out
    assert len(keys(explanation.differing)["steps"].here) <= 60


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a run folder"):
        explain.explain(str(tmp_path))
    (tmp_path / "config.yaml").write_text("[1]")
    with pytest.raises(ConfigError, match="is damaged"):
        explain.explain(str(tmp_path))
    assert main.main(["explain", "a", "steps=5"]) == ConfigError.code
    assert main.main(["explain", "+experiment=sngan_cifra"]) == ConfigError.code
    with pytest.raises(ConfigError) as caught:
        explain.explain("", ["stepz=5", "batch_size=many"])
    assert {m.where for m in caught.value.mistakes} == {"stepz", "batch_size"}


def test_a_run_needs_no_torch_and_no_network(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "+experiment=sngan_cifar", "setting=D", "steps=1000")
    code = (
        "import sys, socket\n"
        "def never(*a, **k): raise AssertionError('network')\n"
        "socket.socket.connect = never\n"
        "from ganlab.cli import main\n"
        f"assert main.main(['explain', {str(tmp_path / 'run')!r}]) == 0\n"
        "assert 'torch' not in sys.modules, 'torch'\n"
        "assert 'matplotlib' not in sys.modules, 'matplotlib'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120, stdout=subprocess.DEVNULL)


def test_silent_keys_are_keys() -> None:
    trees = [recipes.composed((f"+experiment={name}",)) for name in ("sngan_cifar", "sngan_imagenet")]
    silent = recipes.table()["silent"]
    assert [key for key in silent if not any(has(tree, key) for tree in trees)] == []
