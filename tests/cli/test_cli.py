"""The command line: help pages, arguments, exit codes, one-line errors, sweeps with a stand-in for a run."""

from __future__ import annotations

import csv
import errno
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ganlab.cli import arguments, commands, doctor, main
from ganlab.config.files import groups, read
from ganlab.errors import ConfigError, Diverged, GanlabError, Mistake, RunInUse, Stopped
from ganlab.sweeps import process
from ganlab.system import failures

ROOT = Path(__file__).parents[2]


@pytest.fixture
def say(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run ganlab with some words in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, list[str]]:
        capfd.readouterr()
        code = main.main(words)
        out, err = capfd.readouterr()
        return code, out, err.splitlines()

    return run


def one_error(result: tuple[int, str, list[str]], code: int) -> str:
    """The only line on stderr, of a call that must have ended with ``code``."""
    assert result[0] == code, result
    (line,) = result[2]
    assert line.startswith("ganlab: error: ")
    assert len(line) <= failures.MAX_LINE
    return line.removeprefix("ganlab: error: ")


# ---- help pages


def test_help_imports_neither_torch_nor_hydra() -> None:
    lines = [["--help"], ["train", "--help"], ["--version"], ["doctor", "--help"], ["train", "-h"]]
    code = textwrap.dedent(
        f"""
        import sys
        from ganlab.cli.main import main
        assert [main(words) for words in {lines!r}] == [0] * {len(lines)}
        heavy = {{"torch", "torchvision", "hydra", "omegaconf", "numpy", "matplotlib", "rich"}}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ganlab")


def test_train_help_lists_every_group_option_and_key(say: Any) -> None:
    code, out, _ = say("train", "--help", "all")
    assert code == 0
    for group, options in groups([]).items():
        if "/" not in group and group not in ("protocol", "extractor"):
            assert not [option for option in [group, *options] if option not in out]
            assert f"{options[0]} " in say("train", "--help", group)[1]
    root, _ = read(ROOT / "configs" / "train.yaml")
    for key in root.keys() - {"defaults", "_target_", "metric", "hydra"}:
        assert re.search(rf"^  {key}=\S+", out, re.MULTILINE), key
    assert max(map(len, out.splitlines())) <= 110
    assert "keep_every" not in say("train", "--help")[1], "the everyday keys alone"
    assert "did you mean 'dataset'?" in one_error(say("train", "--help", "datset"), 2)


def test_every_command_has_a_help_of_its_own(say: Any) -> None:
    for command in commands.COMMANDS:
        code, out, err = say(command, "--help")
        assert (code, err) == (0, []), command
        assert out.startswith(f"ganlab {command}: ")
        assert say("help", command)[1] == out


def test_the_documented_exit_codes_are_those_of_the_errors(say: Any) -> None:
    out = say("--help")[1]
    for error in GanlabError.__subclasses__():
        if error is not Stopped:
            assert re.search(rf"(?:^|\s){error.code}  \S", out), error
    assert Stopped(signal.SIGINT).code == 130


# ---- arguments


MISTAKES = [
    (["trian"], "did you mean 'train'?"),
    (["--hlep"], "did you mean '--help'?"),
    (["steps=3"], "write 'ganlab train steps=3'"),
    (["train", "--multirn"], "did you mean '--multirun'?"),
    (["train", "--experimental-rerun", "x"], "unknown option"),
    (["train", "--config-name", "x"], "unknown option"),
    (["train", "--cfg"], "--cfg: requires a value"),
    (["train", "--cfg", "jbo"], "none of job, hydra, all"),
    (["train", "--resolve"], "requires --cfg"),
    (["train", "--config-dir", "/no/such"], "there is no folder"),
    (["train", "sngan_cifar"], "+experiment=sngan_cifar"),
    (["evaluate"], "write ganlab evaluate RUN"),
    (["evaluate", "a", "b"], "requires one run folder, got 2"),
    (["evaluate", "a", "checkpont=best"], "did you mean 'checkpoint'?"),
    (["sample", "a", "n=x"], "n: 'x' is not an integer"),
    (["sample", "a", "n=0"], "n: 0 is not between 1 and 100,000"),
    (["sample", "a", "singles=maybe"], "is not true or false"),
    (["sample", "a", "colums=3"], "did you mean 'columns'?"),
    (["report"], "requires run folders"),
    (["report", "a", "oot=b"], "did you mean 'out'?"),
    (["sweep"], "grid: missing; write grid=NAME; 'ganlab sweep --help' lists them"),
    (["sweep", "sngan_fig11"], "sngan_fig11: expected key=value; write grid=sngan_fig11"),
    (["sweep", "grid=sngan_fig11", "setting"], "setting: expected key=value; write key=value"),
    (["sweep", "grid=unheard"], "'ganlab sweep --help' lists them"),
    (["train", "+experiment=unheard"], "'ganlab train --help experiment' lists them"),
    (["analyze", "analysis=unheard"], "'ganlab analyze --help' lists them"),
    (["data", "prepar"], "did you mean 'prepare'?"),
    (["data", "prepare"], "requires exactly one dataset"),
    (["data", "info", "digts"], "did you mean 'digits'?"),
    (["data", "info", "digits", "resolutoin=3"], "did you mean 'resolution'?"),
    (["data", "info", "digits", "verify=1"], "write verify=true"),
    (["doctor", "--jsn"], "did you mean '--json'?"),
    (["doctor", "x"], "unknown key of ganlab doctor"),
]


def test_a_wrong_word_is_one_line_and_exit_code_2(say: Any) -> None:
    for words, says in MISTAKES:
        assert says in one_error(say(*words), 2)
    code, out, err = say()
    assert (code, out) == (2, "")
    assert any("usage" in line for line in err)


def test_options_may_stand_anywhere() -> None:
    values = {"-cd": "--config-dir"}
    for line in ("a=1 --config-dir D +b=2 -m", "-m --config-dir=D a=1 +b=2", "a=1 -cd D -m +b=2"):
        parsed = arguments.parse(line.split(), {"-m": "--multirun"}, values)
        assert parsed.overrides == ["a=1", "+b=2"]
        assert parsed.all("--config-dir") == ["D"]
        assert parsed.on("--multirun")


def test_cfg_job_prints_the_config_and_checks_it(say: Any) -> None:
    import yaml

    code, out, err = say("train", "steps=7", "--cfg", "job")
    assert (code, err) == (0, [])
    assert yaml.safe_load(out)["steps"] == 7
    assert yaml.safe_load(out)["metric"]["protocol"] == "demo"
    out = say("train", "--cfg", "job", "--resolve", "-p", "metric.protocol")[1]
    assert yaml.safe_load(out)["name"] == "demo"
    code, out, err = say("train", "stepz=7", "--cfg", "job")
    assert code == 2
    assert "did you mean 'steps'?" in err[0]
    assert yaml.safe_load(out)["stepz"] == 7


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (
            ["metric.protocol.is_splits=20", "metric.protocol.is_n_fake=10"],
            "metric.protocol.is_splits: 20 splits of 10 images",
            2,
        ),
        (
            ["metric=[kid]", "metric.protocol.kid_subset_size=100000"],
            "metric.scores.kid: kid_subset_size=100000 needs at least 100000 generated images",
            2,
        ),
        (["metric.protocol.real_split=nope"], "metric.protocol.real_split: demo compares with split", 3),
        (["validation=true"], "validation: digits train has no test or validation split", 2),
    ],
)
def test_cfg_job_refuses_what_training_would(say: Any, words: list[str], message: str, code: int) -> None:
    """Whatever the machine and its data: training's own line, and the config is printed all the same."""
    result, out, err = say("train", *words, "--cfg", "job")
    assert (result, "metric:" in out) == (code, True)
    assert message in err[0]
    assert say("train", *words)[2] == err


def test_cfg_job_asks_for_no_data(say: Any) -> None:
    for choice in (["dataset=folder", "dataset.path=/nope"], ["dataset=lsun"]):
        assert say("train", *choice, "--cfg", "job")[::2] == (0, [])


def test_hydras_own_answers(say: Any) -> None:
    for words in (["--cfg", "hydra"], ["--info", "defaults"], ["--hydra-help"]):
        code, out, err = say("train", "setting=B", *words)
        assert code == 0
        assert out + "".join(err)
        assert "Traceback" not in out + "".join(err)


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m ganlab train --help | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert "Traceback" not in done.stderr
    assert done.stdout.splitlines()[-1] in ("0", "141")


# ---- errors


class OutOfMemoryError(RuntimeError):
    """Has the name of torch's."""


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (ConfigError([Mistake("a", "is wrong", "mend it")]), 2, "a: is wrong; mend it"),
        (RunInUse("outputs/x", "is in use by 7@host", "wait"), 7, "outputs/x: is in use by 7@host; wait"),
        (Diverged("loss", "is nan"), 6, "loss: is nan"),
        (Stopped(signal.SIGTERM), 143, "SIGTERM: stopped"),
        (KeyboardInterrupt(), 130, "SIGINT: stopped"),
        (OutOfMemoryError("CUDA out of memory. Tried 1 GB"), 5, "CUDA out of memory"),
        (MemoryError(), 5, "out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), 5, "f: can't write"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 5, "f: no access"),
        (ConfigError("x", "\x1b[31mred\x07\u202e\nline"), 2, "x: ?[31mred?? line"),
    ],
)
def test_every_kind_of_failure_has_its_code_and_one_line(
    say: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, says: str
) -> None:
    def fails(_: Sequence[str]) -> int:
        raise error

    monkeypatch.setitem(commands.COMMANDS, "doctor", fails)
    assert says in one_error(say("doctor"), code)
    assert not Path("crash.txt").exists()


def test_a_bug_is_one_line_and_its_traceback_a_file_without_environment(
    say: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fails(_: Sequence[str]) -> int:
        raise KeyError("surprise")

    monkeypatch.setitem(commands.COMMANDS, "doctor", fails)
    monkeypatch.setenv("GANLAB_TEST_TOKEN", "hunter2")
    line = one_error(say("doctor"), 1)
    assert line.endswith("a bug in ganlab, details in " + str(tmp_path / "crash.txt"))
    text = (tmp_path / "crash.txt").read_text()
    assert "Traceback" in text
    assert "surprise" in text
    assert "ganlab doctor" in text
    assert "hunter2" not in text

    error = RuntimeError("in a run")
    error.ganlab_run = tmp_path / "run"  # type: ignore[attr-defined]
    (tmp_path / "run").mkdir()
    monkeypatch.setitem(commands.COMMANDS, "doctor", lambda _: (_ for _ in ()).throw(error))
    assert str(tmp_path / "run" / "crash.txt") in one_error(say("doctor"), 1)

    monkeypatch.setenv("GANLAB_DEBUG", "1")
    assert "Traceback (most recent call last):" in say("doctor")[2]


def test_long_errors_are_cut_and_keep_their_ends(capsys: pytest.CaptureFixture[str]) -> None:
    failures.print_errors(ConfigError(Mistake(f"k{i}", "is wrong") for i in range(70)))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "ganlab: error: ganlab: 20 more mistakes; fix these first"
    assert len(lines) == 51
    failures.print_errors(ConfigError("/very/long" * 50 + "/name.yaml", "words " * 100, "fix " * 50 + "end"))
    line = capsys.readouterr().err.rstrip("\n")
    assert len(line) <= failures.MAX_LINE
    assert "name.yaml: words" in line
    assert line.endswith("end")


# ---- data and doctor


def test_data_prepare_packs_a_folder(say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    for name in ("a", "b"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (20, 20), (i * 40, 10, 200)).save(tmp_path / "images" / name / f"{i}.png")
    assert say("data", "info", "digits", "resolution=16")[1].startswith("digits: 16x16, 1 channel")
    words = ("folder", f"path={tmp_path / 'images'}", "resolution=16")
    assert "not prepared" in say("data", "info", *words)[1]
    code, out, _ = say("data", "prepare", *words)
    assert code == 0
    assert "6 images" in out
    assert str(tmp_path / "cache") in out
    code, out, _ = say("data", "info", *words, "verify=true")
    assert code == 0
    assert "verified" in out
    (pack,) = (tmp_path / "cache").rglob("images.u8")
    raw = bytearray(pack.read_bytes())
    raw[7] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(raw)
    assert say("data", "info", *words, "verify=true")[0] == 3
    assert "dataset.path" in one_error(say("data", "info", "folder", "path=/no/such/place"), 3)


def test_doctor_tells_what_is_here(say: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ganlab.system.hardware.fast_bf16", lambda device: False)
    code, out, _ = say("doctor", "--json")
    report = json.loads(out)
    assert code == (0 if report["ok"] else 5)
    findings = {(f["section"], f["name"]): f for f in report["findings"]}
    for key in (
        ("machine", "python"),
        ("packages", "hydra-core"),
        ("devices", "torch"),
        ("weights", "cifar"),
    ):
        assert key in findings
    assert findings["devices", "bf16"]["state"] == "absent"
    own = {name: findings["datasets", name]["text"] for name in ("folder", "text", "25gaussians", "digits")}
    assert own == {
        "folder": "is packed from your own images: dataset.path=FOLDER|ZIP|TAR",
        "text": "is read from your own text when a run starts: dataset.path=FILE|FOLDER",
        "25gaussians": "is sampled when a run starts",
        "digits": "comes with its package",
    }
    cifar = findings["datasets", "cifar10"]
    assert cifar["state"] == "absent"
    assert "sha256" in cifar["text"]
    assert str(tmp_path / "cache") in cifar["fix"]
    assert not (tmp_path / "cache").exists()
    for f in report["findings"]:
        assert f["state"] == "ok" or f["fix"] or f["section"] == "machine", f
    assert say("doctor")[1].startswith("ganlab ")


def test_doctor_survives_a_section_that_fails(say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def _torn() -> Any:
        raise RuntimeError("torn")
        yield

    monkeypatch.setattr(doctor, "SECTIONS", (_torn,))
    code, out, _ = say("doctor")
    assert code == 5
    assert "torn" in out


# ---- sweeps of a command line, with a stand-in for `ganlab train`; tests/sweeps has the rest

STAND_IN = """
import json, os, sys
from pathlib import Path
said = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
run = Path("outputs/x") / (said["setting"] + "-s" + said["seed"])
saved = run / "checkpoints" / ("step-%09d" % 10**9)
saved.mkdir(parents=True)
(saved / "MANIFEST.json").touch()
(run / "about").write_text(str(os.getpid()) + " " + os.environ["GANLAB_CONFIGS"])
scores = {"last": {"values": {"fid_cifar": 12.5 + int(said["seed"])}}}
(run / "result.json").write_text(json.dumps({"status": "finished", "step": 10**9, "scores": scores}))
"""


def test_a_sweep_runs_each_combination_in_its_own_process(
    say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a user's folder of configs, which goes along."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-S", str(tmp_path / "stand_in.py")])
    own = tmp_path / "own"
    (own / "setting").mkdir(parents=True)
    text = (ROOT / "configs" / "setting" / "A.yaml").read_text()
    (own / "setting" / "Z1.yaml").write_text(text.replace("setting: A", "setting: Z1"))
    words = ["--config-dir", str(own), "setting=A,Z1", "seed=range(0,2)"]
    code, out, err = say("train", "-m", *words, "run_dir=outputs/x/${setting}-s${seed}")
    assert code == 0, err
    (table,) = (tmp_path / "outputs" / ".sweeps").glob("*/cells.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    names = [f"setting={s} seed={n}" for s in ("A", "Z1") for n in (0, 1)]
    assert [(r["overrides"], r["state"]) for r in rows] == [(name, "finished") for name in names]
    assert rows[1]["last scores"] == "fid_cifar 13.5"
    about = [p.read_text().split() for p in tmp_path.glob("outputs/x/*/about")]
    assert len({pid for pid, _ in about}) == 4
    assert {configs for _, configs in about} == {str(own)}
    for word in ("setting=Z1", "finished", "outputs/x/Z1-s1", "13.5"):
        assert word in out
    assert not [p for p in tmp_path.rglob("*") if p.name == "multirun.yaml"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["setting=A,Z"], "setting: there is no 'Z'"),
        (["optimizer.lr=interval(0,1)"], "sweep with a,b,c"),
        (["setting=A,B", "run_dir=outputs/one"], "would share outputs/one"),
        (["seed=range(0,5000)"], "5000 combinations; must be 1 to 1000"),
        (["setting=A,B", "hydra/sweeper=basic"], "cannot be set"),
        (["setting=A,B", "hydra/launcher=locla2"], "hydra/launcher"),
        (["setting=A,B", "seed=0,-1", "stepz=3"], "(with setting=A seed=-1); the default is 0"),
    ],
)
def test_a_sweep_that_can_not_be(say: Any, words: list[str], says: str, tmp_path: Path) -> None:
    code, _, err = say("train", "-m", *words)
    assert code == 2
    assert says in "\n".join(err)
    assert not list(tmp_path.glob("outputs/**/*.json")), "nothing started"
