"""What a config reads of the environment is used, and neither printed nor saved; where a file may write."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest
from faults.base import pixel_means, tiny

from ganlab.cli import main
from ganlab.config import compose
from ganlab.errors import ConfigError
from ganlab.extractors.cifar import CifarExtractor
from ganlab.system import environment

SECRET = "hunter2-of-the-environment"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setattr(environment, "_placeholders", {})
    monkeypatch.setattr(CifarExtractor, "__call__", pixel_means)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work" / "conf" / "experiment").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def shared(place: Path, text: str) -> list[str]:
    """Arguments that use another user's config file."""
    (place / "conf" / "experiment" / "theirs.yaml").write_text(f"# @package _global_\n{text}\n")
    return ["--config-dir", "conf", "+experiment=theirs"]


def run_ganlab(*words: str) -> tuple[int, str]:
    """The exit code and all that is printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main.main(list(words))
    return code, out.getvalue()


def holds_it(place: Path) -> list[str]:
    """Files and folders in which the secret is found."""
    paths = list(place.rglob("*"))
    return [str(p) for p in paths if SECRET in p.name or (p.is_file() and SECRET.encode() in p.read_bytes())]


@pytest.mark.parametrize("reads", ["x${oc.env:SECRET,no}", "${oc.${architecture.head}:SECRET}"])
def test_a_secret_in_a_label_is_in_no_name_no_file_and_no_line(place: Path, reads: str) -> None:
    words = [w for w in tiny("steps=2", "metric=[is]") if not w.startswith("run_dir=")]
    code, text = run_ganlab(*words, *shared(place, f"setting: {reads}"))
    assert SECRET not in text
    if "head" in reads:  # a resolver of that name there is not; "${oc.${x}:NAME}" reads the environment too
        assert code == 2, text
        return
    assert code == 0, text
    (run,) = [p.parent for p in place.glob("outputs/*/*/result.json")]
    assert "${oc.env:SECRET" in run.name
    for more in (
        ["report", str(run), "out=page"],
        ["explain", str(run)],
        ["status", "outputs"],
        ["evaluate", str(run), "metric.protocol.seed=1"],
    ):
        code, text = run_ganlab(*more)
        assert code == 0, text
        assert SECRET not in text
    assert holds_it(place) == []


@pytest.mark.parametrize(
    "line",
    [
        "steps: ${oc.env:SECRET}",
        "device: ${oc.env:SECRET}",
        "dataset: {path: '${oc.env:SECRET}/x'}\ndefaults: [{override /dataset: folder}]",
        "nosuch: {key: '${oc.env:SECRET}'}",
        "threads: ${oc.decode:${oc.env:SECRET}}",
        "defaults: [{override /dataset: '${oc.env:SECRET}'}]",
    ],
)
def test_a_secret_in_any_key_is_in_no_error(place: Path, line: str) -> None:
    code, text = run_ganlab("train", *shared(place, line))
    assert code in (2, 3, 5), text
    assert SECRET not in text
    assert not (place / "outputs").exists()
    assert not (place / "runs").exists()


@pytest.mark.parametrize("what", [["job", "--resolve"], ["all"]])
def test_a_config_is_shown_unread(place: Path, what: list[str]) -> None:
    words = shared(place, "setting: ${oc.env:SECRET}")
    code, text = run_ganlab("train", *words, "--cfg", *what)
    assert code == 0, text
    assert SECRET not in text
    assert "${oc.env:SECRET" in text


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("run_dir: runs/mine", True),
        ("run_dir: ${oc.env:NOPE,runs}/mine", True),
        ("run_dir: ${oc.env:NOPE,/abs/path}", False),
        ("run_dir: ${oc.env:NOPE,..}/path", False),
        ("run_dir: ${setting}\nsetting: ${oc.env:NOPE,/abs/path}", False),
        ("run_dir: ${oc.env:SECRET}/mine", False),
    ],
)
def test_the_place_that_a_file_names_is_checked_as_it_resolves(place: Path, text: str, allowed: bool) -> None:
    words = [w for w in shared(place, text) if w.startswith("+")]
    if allowed:
        assert compose.compose(words, ["conf"]).tree["run_dir"] == "runs/mine"
        return
    with pytest.raises(ConfigError, match="run_dir"):
        compose.compose(words, ["conf"])
    assert compose.compose([*words, "run_dir=/mine"], ["conf"]).tree["run_dir"] == "/mine"


def test_what_was_read_is_found_however_a_message_spells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    value = 'tok"en\\with\nlines of its own, and as long as a key of a cloud'
    monkeypatch.setenv("LONG", value)
    environment.register("LONG")
    whole = [value, repr(value), json.dumps(value), " ".join(value.split())]
    for text in [*whole, f"{value[:30]!r}", value[:20] + "..."]:
        assert "of its own" not in environment.redact(f"steps: {text} is no number")
        assert "tok" not in environment.redact(f"steps: {text} is no number")
    monkeypatch.setenv("SHORT", "3")
    environment.register("SHORT")
    assert environment.redact("step 3 of 30") == "step 3 of 30"
    assert environment.redact({"a": [value, 3]}) == {"a": ["${oc.env:LONG}", 3]}
