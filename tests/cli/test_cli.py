"""The command line: help pages, arguments, exit codes, one-line errors, sweeps with a stand-in for a run."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ganlab.cli import arguments, commands, doctor, main
from ganlab.config.files import groups, read
from ganlab.errors import ConfigError, Diverged, GanlabError, Mistake, RunInUse, Stopped, SweepFailed
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


# ---- sweeps, with a stand-in for `ganlab train`

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
said = dict(w.lstrip("+").split("=", 1) for w in sys.argv[1:])
print("words", *sys.argv[1:], flush=True)
seed = int(said.get("seed", 0))
run = Path("outputs/x") / (said["setting"] + "-s" + str(seed))
run.mkdir(parents=True, exist_ok=True)
def stop(signum, frame):
    print("ganlab: error: SIGINT: saved at step 1", file=sys.stderr, flush=True)
    sys.exit(128 + signum)
for one in (signal.SIGINT, signal.SIGTERM):
    signal.signal(one, stop)
(run / "pid").write_text(str(os.getpid()))
(run / "env").write_text(os.environ.get("GANLAB_CONFIGS", ""))
if said.get("steps") == "77":
    time.sleep(600)
code = {5: 5, 6: 6}.get(seed, 0)
if code:
    print("ganlab: error: device: is not there; use another", file=sys.stderr)
if seed == 9:
    os.kill(os.getpid(), signal.SIGKILL)
state = {0: "finished", 6: "diverged"}.get(code, "failed")
scores = {"last": {"values": {"fid_cifar": 12.5 + seed}}}
saved = run / "checkpoints" / ("step-%09d" % 10**9)
saved.mkdir(parents=True, exist_ok=True)
(saved / "MANIFEST.json").touch()
(run / "result.json").write_text(json.dumps({"status": state, "step": 10**9, "scores": scores}))
sys.exit(code)
"""
RUN_DIR = "run_dir=outputs/x/${setting}-s${seed}"


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """``python -m ganlab train`` is a small script, for this test."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    monkeypatch.setattr(process, "COMMAND", [sys.executable, "-S", str(script)])
    return tmp_path


def rows(folder: Path) -> list[dict[str, str]]:
    import csv

    (path,) = (folder / "outputs" / ".sweeps").glob("*/cells.csv")
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.usefixtures("stand_in")
def test_a_sweep_runs_each_combination_in_its_own_process(say: Any, tmp_path: Path) -> None:
    code, out, err = say("train", "-m", "setting=A,B", "seed=range(0,2)", RUN_DIR)
    assert code == 0, err
    assert [r["overrides"] for r in rows(tmp_path)] == [
        "setting=A seed=0",
        "setting=A seed=1",
        "setting=B seed=0",
        "setting=B seed=1",
    ]
    assert {r["state"] for r in rows(tmp_path)} == {"finished"}
    assert rows(tmp_path)[1]["last scores"] == "fid_cifar 13.5"
    assert len({p.read_text() for p in tmp_path.glob("outputs/x/*/pid")}) == 4
    for word in ("setting=B", "finished", "outputs/x/B-s1", "13.5"):
        assert word in out
    words = Path(rows(tmp_path)[3]["log"]).read_text()
    assert f"++run_dir='{RUN_DIR.removeprefix('run_dir=')}'" in words
    left = {
        str(p.relative_to(tmp_path))
        for p in tmp_path.rglob("*")
        if "hydra" in p.name or p.name == "multirun.yaml"
    }
    assert all(name.startswith("outputs/.sweeps/") for name in left), left


@pytest.mark.usefixtures("stand_in")
def test_failures_stay_alone_and_are_listed_and_divergence_is_a_result(say: Any, tmp_path: Path) -> None:
    code, _, err = say("train", "-m", "setting=A", "seed=5,0,6,9,1", RUN_DIR)
    assert code == SweepFailed.code
    assert [(r["state"], r["exit"]) for r in rows(tmp_path)] == [
        ("failed", "5"),
        ("finished", "0"),
        ("diverged", "6"),
        ("failed", "137"),
        ("finished", "0"),
    ]
    assert rows(tmp_path)[0]["error"] == "device: is not there; use another"
    assert "2 of 5 cells failed: 000, 003" in err[-1]


@pytest.mark.usefixtures("stand_in")
def test_a_diverged_run_alone_does_not_fail_a_sweep(say: Any) -> None:
    code, _, err = say("train", "-m", "setting=A", "seed=0,6", RUN_DIR)
    assert code == 0
    assert "1 of 2 cells diverged (a result, not a failure)" in err[-1]


@pytest.mark.usefixtures("stand_in")
def test_nothing_starts_if_one_combination_has_a_mistake(say: Any, tmp_path: Path) -> None:
    code, _, err = say("train", "-m", "setting=A,B", "seed=0,-1", "stepz=3", RUN_DIR)
    assert code == 2
    assert any("seed: -1 is not" in line and "(with setting=A seed=-1)" in line for line in err)
    assert sum("stepz" in line for line in err) == 1
    assert not list(tmp_path.glob("outputs/**/pid"))
    assert not list(tmp_path.glob("outputs/.sweeps/*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["setting=A,Z"], "setting: there is no 'Z'"),
        (["optimizer.lr=interval(0,1)"], "sweep with a,b,c"),
        (["setting=A,B", "run_dir=outputs/one"], "would share outputs/one"),
        (["seed=range(0,5000)"], "5000 combinations; must be 1 to 1000"),
        (["setting=A,B", "hydra/sweeper=basic"], "cannot be set"),
        (["setting=A,B", "hydra/launcher=locla2"], "hydra/launcher"),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_a_sweep_that_can_not_be(say: Any, words: list[str], says: str) -> None:
    code, _, err = say("train", "-m", *words)
    assert code == 2
    assert says in "\n".join(err)


@pytest.mark.usefixtures("stand_in")
def test_a_users_folder_goes_along_behind_a_launcher(say: Any, tmp_path: Path) -> None:
    own = tmp_path / "own" / "setting"
    own.mkdir(parents=True)
    (own / "Z1.yaml").write_text((ROOT / "configs" / "setting" / "A.yaml").read_text())
    words = [
        "--config-dir",
        str(tmp_path / "own"),
        "setting=glob(Z*)",
        "seed=0,1",
        "run_dir=outputs/x/Z1-s${seed}",
    ]
    code, _, err = say("train", "-m", *words, "hydra/launcher=local2")
    assert code == 0, err
    assert [r["overrides"] for r in rows(tmp_path)] == ["setting=Z1 seed=0", "setting=Z1 seed=1"]
    (env,) = {p.read_text() for p in tmp_path.glob("outputs/x/Z1-*/env")}
    assert env == str(tmp_path / "own")


@pytest.mark.usefixtures("stand_in")
def test_a_signal_is_passed_on_by_a_launcher_and_the_rest_stays_pending(say: Any, tmp_path: Path) -> None:
    done = threading.Event()

    def interrupt() -> None:
        until = time.monotonic() + 300
        while not list(tmp_path.glob("outputs/x/*/pid")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        if not done.is_set():
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    before = signal.getsignal(signal.SIGINT)
    code, _, err = say("train", "-m", "setting=A,B,C,D", "steps=77", RUN_DIR, "hydra/launcher=local2")
    done.set()
    thread.join()
    assert code == 130, err
    assert signal.getsignal(signal.SIGINT) is before
    states = [r["state"] for r in rows(tmp_path)]
    assert states[0] == "stopped"
    assert states[3] == "pending"
    (place,) = tmp_path.glob("outputs/.sweeps/*")  # a reused worker of joblib's still prints where it did
    assert "SIGINT: saved at step 1" in (place / "000.log").read_text()
    assert "the same command continues" in err[-1]
    for path in tmp_path.glob("outputs/x/*/pid"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.read_text()), 0)


def test_hostile_hydra_settings_do_not_reach_a_sweep(say: Any, stand_in: Path) -> None:
    own = stand_in / "own" / "experiment"
    own.mkdir(parents=True)
    for text in (
        "hydra: {callbacks: {x: {_target_: os.system, command: touch canary}}}",
        "hydra: {launcher: {x: {_target_: os.system, command: touch canary}}}",
        "hydra: {job_logging: {handlers: {x: {'()': os.system, command: touch canary}}}}",
    ):
        (own / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
        code, _, err = say(
            "train", "-m", "--config-dir", str(stand_in / "own"), "+experiment=evil", "seed=0,1"
        )
        assert code == 2, text
        assert err
        assert not (stand_in / "canary").exists()
        assert not list(stand_in.glob("outputs/x/*"))


def test_the_arguments_of_sample_are_those_of_the_tool() -> None:
    import inspect

    from ganlab.cli import sample

    known = inspect.signature(sample.sample_run).parameters
    for key, (default, _) in commands.COMMANDS["sample"].keys.items():
        assert known[key].default == default


def test_data_info_tells_of_a_dataset_in_memory(say: Any) -> None:
    code, out, _ = say("data", "info", "digits", "resolution=16")
    assert code == 0
    assert out.startswith("digits: 16x16, 1 channel")


def test_what_the_stand_in_stands_for() -> None:
    assert [sys.executable, "-P", "-m", "ganlab", "train"] == process.COMMAND
