"""``ganlab check``, ``resume=`` and ``resume_allow=``: what they tell, refuse, set aside and never touch."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_loop import state

from ganlab.cli import main
from ganlab.config import compose
from ganlab.errors import CheckpointError, ConfigError, DataError, EnvError, GanlabError, Stopped
from ganlab.runs import folder as folder_module
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.runs.manifest import MANIFEST, STATE, TENSORS, seal
from ganlab.training import trainer

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = [
    *("dataset=digits", "dataset.resolution=16", "architecture.width=0.03", "architecture.z_dim=4"),
    *("loss=hinge", "steps=6", "batch_size=4", "save_every=2", "log_every=1", "eval_every=0"),
    *("sample_every=0", "device=cpu", "threads=1", "metric=[is]", "metric.extractor=cifar"),
    *("metric.protocol=smoke", "metric.protocol.is_n_fake=8", "metric.progress=null"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six steps with checkpoints at 4 and 6: only to be copied."""
    run = tmp_path_factory.mktemp("check") / "run"
    train(run)
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def train(run: Path, *words: str) -> None:
    keys = {w.partition("=")[0] for w in words}
    kept = [w for w in WORDS if w.partition("=")[0] not in keys]
    composed = compose.compose([*kept, *words, f"run_dir={run}"])
    trainer.train(compose.build(composed), composed.saved, composed.choices, composed.overrides)


def steps(run: Path) -> list[str]:
    return sorted(os.listdir(run / "checkpoints"))


def content(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def flip(run: Path, step: int, name: str = TENSORS) -> None:
    path = run / "checkpoints" / f"step-{step:09d}" / name
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def reseal(run: Path, step: int, **changes: Any) -> None:
    path = run / "checkpoints" / f"step-{step:09d}" / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["seal"]
    path.write_bytes(seal(manifest | changes))


# ---- ganlab check


def test_a_sound_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    assert main.main(["check", str(run)]) == 0
    out, err = capsys.readouterr()
    assert not err
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [
        ["step", "4", "good,"],
        ["step", "6", "good,"],
    ]
    assert out.startswith(f"{run}: OK\n")
    assert content(run) == before, "nothing is written"


def test_damage_quarantine_leftovers_and_torn_metrics(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = run / "checkpoints"
    flip(run, 6)
    shutil.copytree(kept / "step-000000004", kept / "step-000000002.corrupt")
    shutil.copytree(kept / "step-000000004", kept / "step-000000003.aside")
    (kept / f".tmp-8-{'a' * 32}").mkdir()
    (run / f".run.json.{'b' * 32}.tmp").touch()
    (run / "before-1").mkdir()
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 7, "kin')
    assert main.main(["check", str(run), "--json"]) == 4
    out, err = capsys.readouterr()
    assert err == (
        f"ganlab: error: {run}: step 6: state.safetensors: damaged (sha256 mismatch); "
        "the newest good checkpoint is step 4\n"
    )
    (report,) = json.loads(out)["runs"]
    assert [(row["step"], row["state"]) for row in report["checkpoints"]] == [(4, "good"), (6, "damaged")]
    notes = " | ".join(report["notes"])
    for word in (
        "002.corrupt: damaged, quarantined",
        "003.aside: set aside",
        ".tmp-8",
        ".run.json",
        "before-1",
        "the last line is incomplete",
    ):
        assert word in notes, word
    assert main.main(["check", str(run)]) == 4
    assert "step 6  damaged: state.safetensors" in capsys.readouterr().out


def test_lost_files_other_runs_and_other_configs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def expect(*problems: str) -> None:
        assert main.main(["check", str(run), "--json"]) == 4
        reported = json.loads(capsys.readouterr().out)["runs"][0]["problems"]
        assert len(reported) == len(problems), reported
        assert all(p in r for p, r in zip(problems, reported, strict=True)), reported

    whole = content(run)
    (run / "run.json").unlink()
    expect("run.json: holds no run id")
    (run / "run.json").write_bytes(whole["run.json"])
    (run / "config.yaml").write_bytes(whole["config.yaml"].replace(b"margin: 1.0", b"margin: 2.0"))
    assert b"margin: 2.0" in (run / "config.yaml").read_bytes()
    expect("config.yaml: loss.margin: step 6 was made with 1.0, requested 2.0")
    (run / "config.yaml").write_bytes(b"\xff{")
    expect("config.yaml: is damaged")
    (run / "config.yaml").write_bytes(whole["config.yaml"])
    lines = whole["metrics.jsonl"].splitlines(keepends=True)
    (run / "metrics.jsonl").write_bytes(b"".join([lines[1], lines[0]]))
    expect("metrics.jsonl: step 1 of train is out of order")
    (run / "metrics.jsonl").write_bytes(whole["metrics.jsonl"])
    for step in (4, 6):
        reseal(run, step, run_id="b" * 32)
    expect("no checkpoint to resume from")
    shutil.rmtree(run / "checkpoints")
    expect("no checkpoint to resume from")


def test_a_result_edited_to_finished_is_not_believed(
    run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run / "checkpoints" / "step-000000006")
    assert main.main(["check", str(run)]) == 4
    assert "says finished at step 6, but there is no checkpoint at that step" in capsys.readouterr().out
    train(run)  # from step 4 on
    assert "finished at" not in capsys.readouterr().out
    assert state(run, 6) == state(trained, 6)
    assert main.main(["check", str(run)]) == 0


def test_a_folder_of_runs_and_places_without_any(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "sweep" / "a")
    shutil.copytree(run, tmp_path / "sweep" / "b")
    flip(tmp_path / "sweep" / "b", 4, STATE)
    assert main.main(["check", str(tmp_path / "sweep")]) == 4
    out, err = capsys.readouterr()
    assert "a: OK" in out
    assert "b: damaged" in out
    assert err.count("\n") == 1
    (tmp_path / "empty").mkdir()
    assert main.main(["check", str(tmp_path / "empty")]) == 3
    assert "contains no run" in capsys.readouterr().err
    assert main.main(["check", str(tmp_path / "nowhere")]) == 3
    assert "is not a folder" in capsys.readouterr().err
    assert main.main(["check"]) == 2
    assert main.main(["check", "run", "--jsn"]) == 2


# ---- resume=


def test_a_named_step_goes_on_from_there_and_sets_later_ones_aside(run: Path, trained: Path) -> None:
    train(run, "resume=4")
    assert "step-000000006.aside" in steps(run)
    assert state(run, 6) == state(trained, 6)
    train(run, f"resume={run}/checkpoints/step-000000006.aside")
    assert state(run, 6) == state(trained, 6)
    assert "resume" not in (RunFolder(run).read_config() or {})


def test_a_checkpoint_from_elsewhere_must_be_this_runs(run: Path, trained: Path, tmp_path: Path) -> None:
    backup = Path(shutil.copytree(run / "checkpoints" / "step-000000004", tmp_path / "step-000000004"))
    shutil.rmtree(run / "checkpoints")
    train(run, f"resume={backup}")
    assert state(run, 6) == state(trained, 6)
    train(tmp_path / "other", "seed=1", "steps=2")
    theirs = tmp_path / "other" / "checkpoints" / "step-000000002"
    with pytest.raises(CheckpointError, match=r"another run, made with seed 1, requested 0"):
        train(run, f"resume={theirs}")


@pytest.mark.parametrize("word", ["resume=5", "resume={}/checkpoints/step-000000006"])
def test_a_named_one_never_falls_back(run: Path, word: str) -> None:
    flip(run, 6)
    before = content(run)
    with pytest.raises(CheckpointError):
        train(run, word.format(run))
    after = content(run)
    assert {k: v for k, v in after.items() if not k.startswith(".lock")} == {
        k: v for k, v in before.items() if not k.startswith(".lock")
    }


def test_a_named_one_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no run, but resume=4"):
        train(tmp_path / "new", "resume=4")
    assert not (tmp_path / "new").exists()
    with pytest.raises(
        ConfigError, match="resume: must be auto, never, a step or a step's folder, got 'nevr'"
    ):
        train(tmp_path / "new", "resume=nevr")


def test_never_begins_anew_and_loses_nothing(run: Path, trained: Path) -> None:
    old, ident = content(run), RunFolder(run).run_id
    train(run, "resume=never", "seed=3")
    assert {k: v for k, v in content(run / "before-1").items() if not k.startswith(".lock")} == {
        k: v for k, v in old.items() if not k.startswith(".lock")
    }
    assert RunFolder(run).run_id != ident
    assert state(run, 6) != state(trained, 6)
    train(run, "resume=never")
    assert state(run, 6) == state(trained, 6)
    assert (run / "before-2").is_dir()


def test_setting_aside_can_be_cut_short_at_every_rename(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, real = {k: v for k, v in content(run).items() if not k.startswith(".lock")}, os.rename
    for cut in range(8):
        left = cut

        def rename(source: Any, target: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            try:
                folder_module.set_aside(run)
            except KeyboardInterrupt:
                assert (run / folder_module.NOTE).exists()
        with RunFolder(run).lock():  # the next owner
            assert not (run / folder_module.NOTE).exists()
        (place,) = run.glob("before-*")
        assert {k: v for k, v in content(place).items() if not k.startswith(".lock")} == old, cut
        for path in run.iterdir():
            if path != place:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in place.iterdir():
            real(path, run / path.name)
        place.rmdir()


def test_setting_aside_never_follows_a_link(run: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "config.yaml").write_text("theirs")
    (run / "before-1").symlink_to(victim)
    (run / folder_module.NOTE).write_text('{"into": "before-1"}')
    before = content(victim)
    with pytest.raises(EnvError, match="before-1: is a link"):
        train(run)
    assert content(victim) == before
    assert len(steps(run)) == 2


# ---- what is not the checkpoint's fault, and what must not keep a run from its end


@pytest.mark.parametrize("error", [Stopped(15), MemoryError()])
def test_a_signal_or_no_memory_while_a_checkpoint_is_parsed_is_not_its_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    import safetensors.torch

    def load(_: bytes) -> None:
        raise error

    monkeypatch.setattr(safetensors.torch, "load", load)
    with pytest.raises(GanlabError, match=r"SIGTERM|out of host memory") as caught:
        train(run, "steps=8")
    assert caught.value.code == (143 if isinstance(error, Stopped) else 5)
    assert steps(run) == ["step-000000004", "step-000000006"]


def test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_silently(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    before = content(run)
    for words in ((), ("steps=8",)):  # its result may say that it has finished: anybody can write that
        with pytest.raises(CheckpointError, match=r"contains no checkpoint, but the run had reached step 6"):
            train(run, *words)
    assert content(run) == before
    train(run, "steps=8", "resume=never")
    assert "step-000000008" in steps(run)


@pytest.mark.parametrize("text", ["{", '{"scores": {"last": {"step": 6}}}'])
def test_a_damaged_record_is_written_anew(
    run: Path, trained: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "result.json").write_text(text)
    train(run)
    assert f"ganlab: warning: {run / 'result.json'}: was damaged" in capsys.readouterr().err
    result, expected = (json.loads((r / "result.json").read_text()) for r in (run, trained))
    assert (result["status"], result["step"]) == ("finished", 6)
    assert result["scores"]["last"]["values"] == expected["scores"]["last"]["values"]


def test_a_damaged_best_checkpoint_does_not_keep_a_run_from_its_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, words = tmp_path / "run", ("eval_every=2", "metric.progress=smoke", "metric.progress.is_n_fake=16")
    monkeypatch.setattr(  # the first is the best, on the way and at the end
        "ganlab.training.trainer.improves",
        lambda new, old, better: old is None or sys._getframe(1).f_code.co_name == "_finish",
    )
    train(run, *words)
    assert json.loads((run / "result.json").read_text())["scores"]["best"]["step"] == 2
    flip(run, 2)
    (run / "result.json").unlink()  # as killed at the end
    train(run, *words)
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["scores"]["best"]["step"] == 6
    assert "the last step counts as the best" in capsys.readouterr().err


# ---- what may change


def test_changed_keys_are_refused_or_allowed_by_name(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        train(run, "steps=8", "optimizer.lr=0.5", "seed=1")
    assert [m.where for m in caught.value.mistakes] == ["optimizer.lr", "seed"]
    assert caught.value.mistakes[0].fix.endswith("or resume_allow=[optimizer.lr]")
    with pytest.raises(ConfigError, match="seed: this run folder"):
        train(run, "steps=8", "optimizer.lr=0.5", "seed=1", "resume_allow=[optimizer.lr]")
    with pytest.raises(ConfigError, match="resume_allow: 'optimzer' is not a key"):
        train(run, "steps=8", "resume_allow=[optimzer]")
    train(run, "steps=8", "optimizer.lr=0.5", "resume_allow=[optimizer]")
    result = json.loads((run / "result.json").read_text())
    assert result["changes"] == [{"step": 6, "key": "optimizer.lr", "was": "0.0002", "now": "0.5"}]
    assert (RunFolder(run).read_config() or {})["optimizer"]["lr"] == 0.5
    assert "optimizer.lr: 0.0002, requested 0.5 from step 6 on" in (run / "log.txt").read_text()
    assert main.main(["check", str(run)]) == 0


def test_an_allowed_rate_is_really_taken(run: Path) -> None:
    again = Path(shutil.copytree(run, run.parent / "again"))
    train(run, "steps=8")
    train(again, "steps=8", "optimizer.lr=0.0", "resume_allow=[optimizer.lr]")
    before, same, still = state(run, 6), state(run, 8), state(again, 8)
    assert len({before, same, still}) == 3

    def weights(at: Path, step: int) -> torch.Tensor:
        folder = RunFolder(at)
        _, tensors, _ = Checkpoints(folder.checkpoints, folder.run_id).load(step)
        named = sorted((k, v) for k, v in tensors.items() if k.startswith("generator/") and "weight" in k)
        return torch.cat([v.flatten() for _, v in named])

    assert torch.equal(weights(again, 6), weights(again, 8)), "a rate of 0 moves nothing"
    assert not torch.equal(weights(run, 6), weights(run, 8))


def test_a_misfit_names_shapes_and_the_key(run: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        train(run, "steps=8", "architecture.width=0.06", "resume_allow=[architecture.width]")
    text = str(caught.value)
    assert "tensor generator/" in text
    assert "more); it was made with architecture.width 0.03, requested 0.06" in text
    assert (RunFolder(run).read_config() or {})["architecture"]["width"] == 0.03


def test_other_images_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ganlab.data.digits import Digits

    load = Digits.load

    def other(self: Digits, *, split: str | None = None) -> Any:
        images = load(self, split=split)
        return type(images)(**{**vars(images), "fingerprint": "0" * 64})

    monkeypatch.setattr(Digits, "load", other)
    with pytest.raises(DataError, match=r"dataset: this run was trained on other images: 1797 images"):
        train(run, "steps=8")
    train(run, "steps=8", "resume_allow=[dataset]")


def test_a_lost_config_comes_back_from_the_checkpoint(run: Path, trained: Path) -> None:
    (run / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="seed: this run folder was made with 0, requested 1"):
        train(run, "seed=1")
    train(run, "resume=4")
    assert state(run, 6) == state(trained, 6)


def test_another_machine_is_told_once(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run / "checkpoints" / "step-000000006"
    state = json.loads((path / STATE).read_text())
    state["identity"]["versions"]["torch"] = "1.2.3"
    state["identity"]["device"] = "cpu (abacus)"
    state["identity"]["world_size"] = 4
    state["identity"]["threads"] = state["threads"] = 2
    raw = json.dumps(state).encode()
    (path / STATE).write_bytes(raw)
    about = json.loads((path / MANIFEST).read_text())["files"]
    import hashlib

    about[STATE] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    reseal(run, 6, files=about)
    train(run, "steps=8")
    (line,) = [s for s in capsys.readouterr().err.splitlines() if "resume is exact only" in s]
    assert line.startswith(
        "ganlab: warning: resume is exact only with what step 6 was made with: torch 1.2.3, now"
    )
    for word in ("device cpu (abacus), now", "threads 2, now 1", "world_size 4, now 1"):
        assert word in line


def test_every_so_manieth_checkpoint_stays(run: Path) -> None:
    train(run, "steps=12", "keep_every=4")
    best = (json.loads((run / "result.json").read_text())["scores"].get("best") or {}).get("step", 12)
    assert steps(run) == [f"step-{n:09d}" for n in sorted({4, 8, 10, 12, best})]
    with pytest.raises(ConfigError, match="keep_every: 3 is not a multiple of save_every=2"):
        train(run, "steps=12", "keep_every=3")
