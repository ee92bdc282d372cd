"""Composition, checks and building: every mistake refused with the right words, nothing foreign executed."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from ganlab.config import compose, targets
from ganlab.config.files import read
from ganlab.errors import ConfigError, DataError, EnvError, Mistake
from ganlab.schema import Count, Positive, checked

SHIPPED = compose.compose([])


def refused(*overrides: str, dirs: list[str] | None = None) -> list[Mistake]:
    """The mistakes of a command line, which must have some."""
    with pytest.raises(ConfigError) as caught:
        compose.build(compose.compose(overrides, dirs or []))
    for mistake in caught.value.mistakes:
        assert mistake.where
        assert mistake.what
        assert "\n" not in str(mistake)
    return caught.value.mistakes


def only(*overrides: str, dirs: list[str] | None = None) -> str:
    (mistake,) = refused(*overrides, dirs=dirs)
    return str(mistake)


def mine(folder: Path, **files: str) -> list[str]:
    """A user's config folder; ``loss__mine`` is loss/mine.yaml."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return [str(folder)]


# ---- what composes


def test_the_demo_is_what_runs_without_an_experiment_or_a_dataset() -> None:
    assert SHIPPED.choices["experiment"] == "digits"
    assert compose.compose(["steps=5"]).choices["experiment"] == "digits"
    assert compose.compose(["dataset=cifar10"]).choices["experiment"] is None


@pytest.mark.parametrize(
    ("words", "nodes", "choice"),
    [
        ("normalization=gp", ["gp"], ["gp"]),
        ("normalization=[sn,gp]", ["sn", "gp"], ["sn", "gp"]),
        ("normalization=[none]", [], ["none"]),
        ("normalization=[]", [], ["none"]),
        ("+normalization='gp'", ["gp"], ["gp"]),
    ],
)
def test_the_list_group_takes_one_several_or_none(words: str, nodes: list[str], choice: list[str]) -> None:
    composed = compose.compose([words])
    assert list(composed.tree["normalization"]) == nodes
    assert composed.choices["normalization"] == choice


def test_one_meaning_has_one_spelling() -> None:
    words = [
        ["normalization=gp", "optimizer.lr=1e-4", "seed=3"],
        ["++seed=3", "+optimizer.lr=0.0001", "normalization=[gp]"],
        ["seed=1", "seed=3", "normalization=sn", "normalization='gp'", "optimizer.lr=1.0e-4"],
    ]
    spellings = [compose.compose(line).overrides for line in words]
    assert spellings[0] == spellings[1] == spellings[2]
    assert spellings[0] == ["experiment=digits", "normalization=[gp]", "optimizer.lr=0.0001", "seed=3"]


def test_the_command_line_wins_over_the_experiment() -> None:
    row = compose.compose(["+experiment=sngan_cifar", "setting=B", "loss=hinge", "normalization=wn"])
    assert row.tree["optimizer"]["betas"] == compose.compose(["setting=B"]).tree["optimizer"]["betas"]
    assert row.tree["setting"] == "B"
    assert (row.choices["experiment"], row.choices["loss"]) == ("sngan_cifar", "hinge")
    assert row.choices["normalization"] == ["wn"]
    assert compose.compose(["setting=B", "+experiment=sngan_cifar"]).tree["setting"] == "B"


ODD = ["a=b", "a b", "日本/語", "it's", 'say "hi"', "a,b"]
ODD += ["[x]", "{x}", "a\\b", "trailing\\", "-x", "#1 (y)"]


def test_paths_need_no_quoting_beyond_the_shells() -> None:
    for path, data, weights in zip(*[iter(ODD)] * 3, strict=True):
        tree = compose.compose([f"run_dir={path}", f"dataset.path={data}", f"metric.weights={weights}"]).tree
        assert (tree["run_dir"], tree["dataset"]["path"], tree["metric"]["weights"]) == (path, data, weights)


def test_a_path_may_be_quoted_for_hydra_null_or_below_home() -> None:
    assert compose.compose(["run_dir=~/x"]).tree["run_dir"] == os.path.expanduser("~/x")
    assert compose.compose(["run_dir='q=r'"]).tree["run_dir"] == "q=r"
    assert compose.compose(["run_dir=null"]).tree["run_dir"] is None


def test_named_files_stand_in_the_tree_with_their_content() -> None:
    composed = compose.compose(["metric.protocol=smoke", "metric.extractor=cifar", "metric.weights=w.st"])
    metric = composed.tree["metric"]
    assert metric["protocol"]["name"] == "smoke"
    assert metric["extractor"]["weights"] == "w.st"
    assert "protocol: smoke" in composed.text


def test_a_key_of_a_constructor_can_be_set_although_no_file_lists_it(tmp_path: Path) -> None:
    dirs = mine(tmp_path, loss__bare="_target_: ganlab.methods.losses.Hinge\n")
    built = compose.build(compose.compose(["loss=bare", "loss.margin=0.5"], dirs))
    assert built.loss.margin == 0.5


def test_a_users_folder_joins_by_option_or_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "# @package _global_\ndefaults: [{override /loss: mine}]\nsteps: 7\n"
    dirs = mine(
        tmp_path, experiment__own=text, loss__mine="_target_: ganlab.methods.losses.Hinge\nmargin: 2\n"
    )
    composed = compose.compose(["+experiment=own"], dirs)
    assert (composed.tree["steps"], composed.tree["loss"]["margin"]) == (7, 2)
    assert [p.name for p in composed.files] == ["own.yaml", "mine.yaml"] or len(composed.files) == 2
    assert compose.compose(["+experiment=own", f"hydra.searchpath=[file://{tmp_path}]"]).tree["steps"] == 7
    monkeypatch.setenv("GANLAB_CONFIGS", str(tmp_path))
    assert compose.compose(["+experiment=own"]).tree["steps"] == 7


def test_environment_variables_are_read_for_the_run_and_not_for_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GANLAB_TEST_SECRET", "hunter2")
    words = ["run_dir=${oc.env:GANLAB_TEST_SECRET}/x", "dataset.path=${run_dir}/y"]
    composed = compose.compose(words)
    assert composed.tree["dataset"]["path"] == "hunter2/x/y"
    assert "hunter2" not in f"{composed.saved}{composed.text}{composed.overrides}"
    again = compose.reopen({**composed.saved, "dataset": SHIPPED.saved["dataset"]})
    assert again["run_dir"] == "hunter2/x"


def test_reopen_changes_how_a_run_is_scored_and_nothing_else() -> None:
    saved = SHIPPED.saved
    opened = compose.reopen(saved, ["metric.protocol=smoke", "device=cpu", "metric=[is]", "metric.weights=w"])
    assert opened["metric"]["protocol"]["name"] == "smoke"
    assert list(opened["metric"]["scores"]) == ["is"]
    assert opened["metric"]["extractor"]["weights"] == "w"
    assert opened["device"] == "cpu"
    assert saved["metric"]["protocol"]["name"] == "demo"
    assert compose.reopen(saved) == saved
    with pytest.raises(ConfigError) as caught:
        compose.reopen(saved, ["metric.protocl=smoke", "metric.protocol=smok", "steps=3", "devcie=cpu"])
    text = str(caught.value)
    for fix in ("'metric.protocol'", "'smoke'", "steps: cannot change after training", "mean 'device'?"):
        assert fix in text


def test_show_prints_the_config_or_a_part_of_it() -> None:
    import yaml

    assert yaml.safe_load(compose.show(SHIPPED, resolve=True)) == SHIPPED.saved
    assert compose.show(SHIPPED, package="setting") == "C\n"
    with pytest.raises(ConfigError, match=r"did you mean 'optimizer\.lr'"):
        compose.show(SHIPPED, package="optimizer.lrr")


# ---- mistakes


@pytest.mark.parametrize("sign", ["", "+"])
def test_a_misspelt_key_is_refused_with_and_without_a_plus(sign: str) -> None:
    meant = {"stepz": "steps", "loss.margn": "loss.margin", "lr": "optimizer.lr"}
    meant["widht"] = "architecture.width"
    fixes = {m.where: m.fix for m in refused("loss=hinge", *(f"{sign}{typo}=3" for typo in meant))}
    assert fixes == {typo: f"did you mean {key!r}?" for typo, key in meant.items()}
    assert "did you mean 'dataset'?" in only(f"{sign}datset=digits")


ALONE = (
    "optimizer._partial_",
    "hydra.searchpath",
    "device=gpu",
    "dataset.resolution",
)  # come later


def batches(cases: list[tuple[str, str]]) -> list[dict[str, str]]:
    """Command lines of several mistakes, each of another key: word -> what is said of it."""
    lines: list[tuple[set[str], dict[str, str]]] = []
    for word, says in cases:
        key = re.split("[.=@]", word.lstrip("+~"))[0]
        free = [] if word.startswith(ALONE) else [line for line in lines if key not in line[0] and line[0]]
        if not free:
            free = [(set(), {})]
            lines.append(free[0])
        if not word.startswith(ALONE):
            free[0][0].add(key)
        free[0][1][word] = says
    return [words for _, words in lines]


WORDS = batches(
    [
        ("setting=Z", "setting: there is no 'Z'; choose one of A, B, C"),
        ("loss=hing", "did you mean 'hinge'?"),
        ("+experiment=sngan_cifr", "did you mean 'sngan_cifar'?"),
        ("experiment=digits", "+experiment=digits"),
        ("normalization=[sn,qp]", "normalization: there is no 'qp'; did you mean 'gp'?"),
        ("normalization=[sn,none]", "'none' cannot be combined with others"),
        ("loss=[hinge,standard]", "a run has exactly one loss"),
        ("loss=../loss/hinge", "there is no"),
        ("setting=A,B", "add -m"),
        ("sngan_cifar", "write +experiment=sngan_cifar"),
        ("steps", "write steps=VALUE"),
        ("=3", "is not a valid key"),
        ("x=a(b", "cannot parse the value"),
        ("dataset@x=digits", "omit @"),
        ("~foo", "foo: cannot be removed"),
        ("~loss", "loss: missing"),
        ("protocol=demo", "write metric.protocol=demo"),
        ("metric.protocol=ttur5k", "did you mean 'ttur50k'?"),
        ("metric.extractor=incepton", "did you mean 'inception'?"),
        ("hydra.run.dir=x", "add -m"),
        ("hydra.searchpath=[pkg://os]", "--config-dir"),
        ("steps=${sed}", "Interpolation key 'sed' not found"),
        ("steps=${steps}", "refers to itself"),
        ("run_dir=${oc.env:GANLAB_NOT_SET}", "Environment variable 'GANLAB_NOT_SET' not found"),
        ("optimizer._partial_=false", "optimizer._partial_"),
        ("run_dir=\udcff", "not UTF-8"),
    ]
)
VALUES = batches(
    [
        ("steps=abc", "'abc' is not an integer >= 0"),
        ("steps=1e3", "1000.0 is not an integer"),
        ("steps=-1", "-1 is not an integer >= 0"),
        ("ema=1.0", "1.0 is not a number >= 0 and < 1"),
        ("flip=yes", "'yes' is not true or false"),
        ("precision=bf17", "did you mean 'bf16'?"),
        ("device=gpu", "device: 'gpu'"),
        ("optimizer.lr=-1", "optimizer.lr: -1 is not a number >= 0"),
        ("optimizer.betas=[0.5,1.5]", "optimizer.betas: 1.5 is not"),
        ("optimizer.betas=[0.5]", "optimizer.betas: [0.5] is not a list of 2"),
        ("optimizer.foo=1", "optimizer.foo: torch.optim.adam.Adam has no 'foo'"),
        ("normalization.sn=3", "normalization.sn: 3 is not a Method"),
        ("+normalization.gp.weight=3", "normalization.gp: {'weight': 3} has no _target_"),
        ("optimizer._target_=ganlab.methods.losses.Hinge", "ganlab.methods.losses.Hinge has no 'lr'"),
    ]
)


@pytest.mark.parametrize("line", [*WORDS, *VALUES])
def test_a_mistake_is_one_line_that_names_the_key_and_what_it_may_be(line: dict[str, str]) -> None:
    lines = list(map(str, refused(*line)))
    assert not [word for word, says in line.items() if not any(says in text for text in lines)], lines
    assert len(lines) >= len(line)


def test_all_mistakes_come_at_once() -> None:
    words = ["setting=Z", "stepz=1", "seed=-1", "metric.protocol=dmo", "x=(", "~foo", "batch_size=${no}"]
    keys = {m.where for m in refused(*words)}
    assert keys == {"setting", "stepz", "seed", "metric.protocol", "x", "foo", "batch_size"}


def test_a_dropped_choice_brings_no_mistakes_of_its_keys() -> None:
    assert only("dataset=foldr", "dataset.path=x") == "dataset: there is no 'foldr'; did you mean 'folder'?"
    assert only("+experiment=no", "dataset.nonsense=1").startswith("experiment: there is no 'no'")


def test_missing_values_are_named(tmp_path: Path) -> None:
    dirs = mine(tmp_path, loss__todo="_target_: ganlab.methods.losses.Hinge\nmargin: ???\n")
    assert only("loss=todo", dirs=dirs).startswith("loss.margin: missing")
    assert "metric.protocol: missing" in only("~metric.protocol")


# ---- files


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\n\tb: 2\n", "mine.yaml:2:1: found a tab"),
        ("a: 1\na: 2\n", "mine.yaml:2:1: duplicate key 'a'"),
        ("- 1\n", "contains a list"),
        ("", "is empty"),
        ("a: 010\n", "YAML reads 010 as 8"),
        ("a: !!python/object/apply:os.system [ls]\n", "mine.yaml:1:4: could not determine a constructor"),
        ("a: &a [" + "0, " * 2000 + "]\nb: [*a, *a, *a, *a, *a]\n", "more than 10,000 values"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [" + "*b, " * 30 + "]\n", "too many aliases"),
        ("a: " + "[" * 1000 + "]" * 1000, "nests more than"),
        ("a: " + "x" * 1_100_000, "has more than 1,000,000 bytes"),
        ("# @package one two\na: 1\n", "cannot parse '# @package one two'"),
    ],
)
def test_a_broken_file_is_named_with_line_and_column(tmp_path: Path, text: str, says: str) -> None:
    dirs = mine(tmp_path, loss__mine=text)
    assert says in only("loss=mine", dirs=dirs)


@pytest.mark.parametrize("raw", [b"a: \xff\n", "a: 1\n".encode("utf-16")])
def test_a_file_must_be_utf8(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "loss" / "mine.yaml"
    path.parent.mkdir()
    path.write_bytes(raw)
    assert "is not UTF-8 text" in only("loss=mine", dirs=[str(tmp_path)])


def test_yaml_without_surprises(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("\ufeff# @package _global_\na: 1e-4\nb: 2024-01-01\nc: 1_000\nd: .5\n", "utf-8")
    assert read(path) == ({"a": 1e-4, "b": "2024-01-01", "c": 1000, "d": 0.5}, "_global_")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# @package _global_\nstepz: 3\n", "stepz: unknown key (own.yaml:2); did you mean 'steps'?"),
        ("stepz: 3\n", "does not start with '# @package _global_'"),
        ("# @package _global_\ndefaults: [{override /dataset: cifr10}]\n", "did you mean 'cifar10'?"),
        ("# @package _global_\ndefaults: [{override /datset: cifar10}]\n", "did you mean 'dataset'?"),
        ("# @package _global_\ndefaults: [{/dataset: cifar10}]\n", "write 'override /dataset: ...'"),
        ("# @package _global_\ndefaults: [/nothing/here]\n", "there is no config"),
        ("# @package _global_\nsteps: ${sed}\n", "steps: Interpolation key 'sed' not found"),
        ("# @package _global_\n1: 2\n", "the key '1' is not a string; put it in quotes"),
    ],
)
def test_mistakes_inside_an_experiment_file(tmp_path: Path, text: str, says: str) -> None:
    dirs = mine(tmp_path, experiment__own=text)
    assert says in "\n".join(map(str, refused("+experiment=own", dirs=dirs)))


def test_a_users_file_may_not_hide_behind_a_shipped_one(tmp_path: Path) -> None:
    dirs = mine(tmp_path, loss__hinge="_target_: ganlab.methods.losses.Hinge\nmargin: 9\n")
    assert "has the name of" in only("loss=hinge", dirs=dirs)
    mine(tmp_path, protocol__smoke="name: other\n")
    assert "has the name of" in only("metric.protocol=smoke", dirs=dirs)


def test_a_folder_that_is_not_there_is_refused() -> None:
    assert only("steps=1", dirs=["/no/such/folder"]).startswith("--config-dir: there is no folder")


# ---- hostile input


class Canary:
    """Notes that it was built."""

    built: list[str] = []  # noqa: RUF012

    def __init__(self, name: str = "canary") -> None:
        Canary.built.append(name)


HOSTILE = [
    *("os.system", "builtins.exec", "subprocess.Popen", "torch.load", "torch.optim.sys.exit"),
    *("torch.optim.lr_scheduler.LambdaLR", "torch.optim.Adam.__init__", "ganlab.cli.main.os.system"),
    *("ganlab.cli.main.os", "ganlab.cli.main.Path", "ganlab.config.compose.build"),
    *("ganlab.schema.Range.__init__.__globals__", "ganlab.__main__", "ganlab..os.system", "ganlab", ""),
    *("ganlabx.losses.Hinge", " ganlab.methods.losses.Hinge", "ganlab.methods.losses.nn.Module"),
    *("ganlab.config.hydra_compose.OmegaConf", "test_config.Canary", "tests.test_config.Canary"),
]


@pytest.mark.parametrize("place", ["loss", "metric.scores.x", "root", "list"])
def test_foreign_targets_are_refused_and_nothing_runs(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touched: list[Any] = []
    monkeypatch.setattr(os, "system", lambda *a: touched.append(a))
    for target in [*HOSTILE, 5, None, ["os.system"], {"_target_": "os.system"}]:
        node = {"_target_": target, "command": f"touch {tmp_path}/canary", "name": "x"}
        if place == "root":
            hostile: dict[str, Any] = {**SHIPPED.tree, "_target_": target}
        elif place == "list":
            hostile = {**SHIPPED.tree, "loss": {**SHIPPED.tree["loss"], "margin": [node]}}
        else:
            head, _, rest = place.partition(".")
            hostile = {**SHIPPED.tree, head: _put(SHIPPED.tree[head], rest, node) if rest else node}
        with pytest.raises(ConfigError) as caught:
            compose.build(hostile)
        assert any("_target_" in m.where or m.where == "loss.margin" for m in caught.value.mistakes), target
        assert not touched, target
        assert not Canary.built, target
        assert not list(tmp_path.iterdir()), target


def _put(node: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    return {**node, head: _put(node[head], rest, value) if rest else value}


def test_nesting_without_end_is_refused() -> None:
    deep: Any = 1
    for _ in range(500):
        deep = {"_target_": "ganlab.methods.losses.Hinge", "margin": deep}
    with pytest.raises(ConfigError, match="nested more than"):
        compose.build(deep)


# ---- building, with classes of this page


class Part:
    @checked
    def __init__(self, size: Count, name: str = "part") -> None:
        if name == "bad":
            raise ValueError("name: 'bad' is taken; choose another\nsize: is odd")
        if name == "free":
            raise ValueError("free text, no key")
        if name == "data":
            raise DataError("part.path", "is missing", "look elsewhere")
        self.size, self.name = size, name


class Whole:
    @checked
    def __init__(
        self,
        part: Part,
        parts: dict[str, Part],
        row: list[Part] | None = None,
        pair: tuple[float, float] = (0.0, 1.0),
        rate: Positive = 1.0,
    ) -> None:
        self.part, self.parts, self.row, self.pair, self.rate = part, parts, row, pair, rate


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of this page may be named."""
    monkeypatch.setattr(targets, "TRUSTED", ("ganlab.", "torch.optim.", f"{__name__}."))
    assert sys.modules[__name__]


def part(**more: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Part", "size": 1, **more}


def whole(**more: Any) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Whole", "part": part(), "parts": {"a": part(size=2)}, **more}


@pytest.mark.usefixtures("here")
def test_objects_are_built_from_the_leaves_up() -> None:
    built = compose.build(whole(row=[part(), part(size=3)], pair=[0.25, 1]))
    assert isinstance(built, Whole)
    assert (built.part.size, built.parts["a"].size, built.row[1].size) == (1, 2, 3)
    assert built.pair == (0.25, 1)


@pytest.mark.usefixtures("here")
def test_constructors_complaints_get_the_key_of_their_node() -> None:
    with pytest.raises(ConfigError) as caught:
        compose.build(whole(part=part(name="bad"), parts={"x": part(name="free")}))
    assert [str(m) for m in caught.value.mistakes] == [
        "part.name: 'bad' is taken; choose another",
        "part.size: is odd",
        "parts.x: free text, no key",
    ]


@pytest.mark.usefixtures("here")
def test_an_error_with_its_own_exit_code_comes_through_unless_the_config_is_wrong_too() -> None:
    with pytest.raises(DataError):
        compose.build(whole(part=part(name="data")))
    with pytest.raises(ConfigError):
        compose.build(whole(part=part(name="data"), parts={"x": part(name="bad")}))


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"part": 3}, "part: 3 is not a Part"),
        ({"part": whole()}, "part: Whole is not a Part"),
        ({"part": {"size": 1}}, "part: {'size': 1} has no _target_"),
        ({"parts": part()}, "parts: Part is not"),
        ({"row": [3]}, "row.0: 3 is not a Part"),
        ({"row": [part(sise=3)]}, "did you mean 'row.0.size'?"),
        ({"part": {"_target_": f"{__name__}.Part"}}, "part.size: missing"),
        ({"part": part(_partial_=True)}, "part: functools.partial"),
        ({"part": part(_partial_="yes")}, "part._partial_"),
        ({"part": part(_args_=[1])}, "part._args_"),
    ],
)
def test_what_does_not_fit_its_place(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose.build(whole(**changes))
    assert says in str(caught.value)


@pytest.mark.usefixtures("here")
def test_a_class_whose_imports_fail_is_the_environments_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        targets.importlib,
        "import_module",
        lambda _: (_ for _ in ()).throw(ModuleNotFoundError("no", name="lmdb")),
    )
    with pytest.raises(EnvError, match="pip install lmdb"):
        targets.resolve("ganlab.data.lsun.LSUN")


def test_an_optimizer_stays_partial() -> None:
    import torch

    built = compose.build(SHIPPED)
    assert isinstance(built.optimizer, functools.partial)
    optimizer = built.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.Adam)
    assert optimizer.defaults["lr"] == SHIPPED.tree["optimizer"]["lr"]


def test_composing_leaves_hydras_global_state_alone() -> None:
    from hydra.core.global_hydra import GlobalHydra

    compose.compose([])
    with pytest.raises(ConfigError):
        compose.compose(["setting=Z"])
    assert not GlobalHydra.instance().is_initialized()
