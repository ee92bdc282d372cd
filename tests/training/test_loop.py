"""The trainer: exact resume, divergence, identity of a run folder, and what a run tells of itself."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ganlab.errors import ConfigError, Diverged, EnvError, Stopped
from ganlab.experiment import Experiment, method_name
from ganlab.methods.constraints import WeightClip
from ganlab.methods.feature_norms import BatchNorm, LayerNorm
from ganlab.methods.losses import Hinge, Wasserstein
from ganlab.methods.penalties import GradientPenalty, SpectralNormRegularization
from ganlab.methods.weight_norms import SpectralNorm, WeightNorm
from ganlab.runs.checkpoint import Checkpoints, digest
from ganlab.runs.folder import RunFolder
from ganlab.runs.naming import run_path
from ganlab.runs.result import improves, ranking_score
from ganlab.system.signals import StopFlag
from ganlab.training import engine, trainer
from ganlab.types import Verdict

Make = Callable[..., Experiment]
CHOICES = {
    "experiment": None,
    "dataset": "digits",
    "architecture": "cnn",
    "normalization": ["sn"],
    "loss": "hinge",
}
NORMALIZATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "sn-per-update": lambda: {"sn": SpectralNorm(update="per_update")},
    "sn-gamma": lambda: {"sn": SpectralNorm(gamma="learned", warmup=3), "gp": GradientPenalty()},
    "wn-gamma": lambda: {"wn": WeightNorm(gamma="learned")},
    "bn-full": lambda: {"bn": BatchNorm(affine="full", place="all", order="after_activation")},
    "snr": lambda: {"snr": SpectralNormRegularization()},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def go(e: Experiment, config: dict[str, Any] | None = None) -> None:
    trainer.train(e, config or {"steps": e.steps, "seed": e.seed}, CHOICES, [])


def state(run: str | Path, step: int) -> str:
    """Digest of everything that training goes on from."""
    folder = RunFolder(run)
    _, tensors, rest = Checkpoints(folder.checkpoints, folder.run_id).load(step)
    return digest(tensors, rest["game"])


def result(run: str | Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RunFolder(run).result.read_text())
    return record


def lines(run: str | Path) -> list[dict[str, Any]]:
    timed = ("wall_s", "it_per_s")
    records = [json.loads(line) for line in RunFolder(run).metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in timed} for line in records]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, polls: int) -> None:
    """A SIGTERM that is noticed at the ``polls``-th look, in training or in an evaluation."""
    seen = 0

    def poll(self: StopFlag, *_: object) -> None:
        nonlocal seen
        seen += 1
        if seen == polls:
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(StopFlag, "poll", poll)


def interrupted(make: Make, monkeypatch: pytest.MonkeyPatch, run: Path, polls: int, **changes: Any) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, polls)
        with pytest.raises(Stopped, match="saved at step"):
            go(make(run_dir=str(run), **changes))
    assert result(run)["status"] == "stopped"
    go(make(run_dir=str(run), **changes))


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_resume_is_bitwise(name: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changes() -> dict[str, Any]:
        return {
            "normalization": NORMALIZATIONS[name](),
            "d_steps": 2,
            "dequantize": True,
            "flip": True,
            "ema": 0.9,
            "lr_decay": "linear",
            "eval_every": 0,
        }

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go(tiny(run_dir=str(whole), **changes()))
    interrupted(lambda **c: tiny(**c | changes()), monkeypatch, parts, 6)
    assert state(whole, 12) == state(parts, 12)
    assert lines(whole) == lines(parts)
    assert state(whole, 8) != state(whole, 12)


def test_resume_from_any_point(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls 7 and later fall after the first evaluation, some inside one; 14 inside the last."""
    whole = tmp_path / "whole"
    go(tiny(run_dir=str(whole), eval_start=True))
    for polls in (1, 8, 14):
        parts = tmp_path / f"parts{polls}"
        interrupted(tiny, monkeypatch, parts, polls, eval_start=True)
        assert state(whole, 12) == state(parts, 12)
        assert lines(whole) == lines(parts)
        assert result(whole)["scores"]["last"]["values"] == result(parts)["scores"]["last"]["values"]
        for name in ("step-000000000.png", "step-000000012.png"):
            assert (whole / "samples" / name).read_bytes() == (parts / "samples" / name).read_bytes()


def test_looking_does_not_change_training(tiny: Make, tmp_path: Path) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")
    go(tiny(run_dir=a, eval_every=2, sample_every=3, log_every=1, steps=6))
    go(tiny(run_dir=b, eval_every=0, sample_every=0, log_every=0, steps=6))
    go(tiny(run_dir=c, eval_every=0, seed=1, steps=6))
    assert state(a, 6) == state(b, 6) != state(c, 6)


def test_damaged_newest_checkpoint_falls_back(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    go(tiny(run_dir=str(whole)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 11)
        with pytest.raises(Stopped):
            go(tiny(run_dir=str(parts)))
    newest = sorted((parts / "checkpoints").glob("step-*"))[-1] / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1
    newest.write_bytes(content)
    go(tiny(run_dir=str(parts)))
    assert list((parts / "checkpoints").glob("*.corrupt"))
    assert state(whole, 12) == state(parts, 12)


class Exploding(Hinge):
    """D's loss becomes NaN once it has been asked for often enough."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def discriminator(self, real: Verdict, fake: Verdict) -> Tensor:
        self.left -= 1
        value = super().discriminator(real, fake)
        return value if self.left >= 0 else value * float("nan")


def test_divergence_is_a_result(tiny: Make, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Diverged, match=r"loss d: not finite at step 10") as caught:
        go(tiny(loss=Exploding(9), engine="eager"))  # it counts on the host
    assert caught.value.code == 6
    record = result(run)
    assert record["status"] == "diverged"
    assert "loss d" in record["error"]
    assert record["scores"]["last"]["step"] == 6, "its scores stay"
    folder = RunFolder(run)
    step, tensors, _ = Checkpoints(folder.checkpoints, folder.run_id).load()
    assert step == 8, "and its last good checkpoint"
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())
    with pytest.raises(Diverged, match="this run diverged"):
        go(tiny())


def test_a_finished_run_its_result_and_the_same_command_again(
    tiny: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"loss": {"margin": 1.0}, "batch_size": 8, "log_every": 2}
    go(tiny(), config)
    record = result(tmp_path / "run")
    last, best = record["scores"]["last"], record["scores"]["best"]
    assert record["status"] == "finished"
    assert (record["step"], record["steps"], record["method"], record["seed"]) == (12, 12, "sn", 0)
    assert set(last["values"]) == {"is_mean", "is_std_mean", "fid_mean"}
    assert (last["protocol"]["fid_n_fake"], len(last["protocol_id"])) == (64, 12)
    assert 0 < record["eval_share"] < 1
    assert record["peak_memory_mb"] > 50
    assert record["versions"]["torch"] == torch.__version__
    fids = [line["scores"]["fid_mean"] for line in lines(tmp_path / "run") if line["kind"] == "eval"]
    assert best["values"]["fid_mean"] == min(fids)
    assert (
        best["step"]
        in Checkpoints(tmp_path / "run" / "checkpoints", RunFolder(tmp_path / "run").run_id).steps()
    )

    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(engine, "update", lambda *_: pytest.fail("trained again"))
    capsys.readouterr()
    go(tiny(), config)
    assert "finished at step 12" in capsys.readouterr().out
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(ConfigError) as caught:
        go(tiny(), {"loss": {"margin": 2.0}, "batch_size": 9, "log_every": 5})
    assert [m.where for m in caught.value.mistakes] == ["loss.margin", "batch_size"]


def test_more_steps_continue_and_fewer_are_refused(tiny: Make, tmp_path: Path) -> None:
    go(tiny(steps=8))
    go(tiny(steps=12))
    go(tiny(run_dir=str(tmp_path / "whole")))
    assert state(tmp_path / "run", 12) == state(tmp_path / "whole", 12)
    with pytest.raises(ConfigError, match="steps: 4 is less than the 12 already done"):
        go(tiny(steps=4))
    go(tiny(run_dir=str(tmp_path / "decay"), lr_decay="linear", steps=8))
    with pytest.raises(ConfigError, match="lr_decay depends on it"):
        go(tiny(run_dir=str(tmp_path / "decay"), lr_decay="linear", steps=12))


def test_nothing_is_written_before_the_data_is_there(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size: 2000 is more than the 1797 images of digits"):
        go(tiny(batch_size=2000))
    with pytest.raises(EnvError, match="cuda:99 does not exist"):
        go(tiny(device="cuda:99"))
    assert not (tmp_path / "run").exists()


def test_out_of_memory_is_one_line(tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. More text.")

    monkeypatch.setattr(engine, "update", full)
    with pytest.raises(EnvError, match="batch_size: out of device memory with 8"):
        go(tiny())
    assert result(tmp_path / "run")["status"] == "failed"


def test_the_end_is_a_candidate_for_the_best_whatever_looked_at_the_way(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With eval_every=0 eval_start=true the one evaluation on the way is of the untrained G."""
    from ganlab.metrics.protocol import Protocol
    from ganlab.training.monitor import Monitor

    final, score = Protocol(name="final", is_n_fake=128, is_splits=2, fid_n_fake=128), Monitor.score

    def rated(fids: dict[tuple[str, int], float], run: str) -> tuple[int, float]:
        def scored(self: Monitor, protocol: Protocol, step: int, gan: Any = None) -> Any:
            scores = score(self, protocol, step, gan)
            scores.values["fid_mean"] = fids[protocol.name, step]
            return scores

        monkeypatch.setattr(Monitor, "score", scored)
        e = tiny(eval_every=0, eval_start=True, steps=2, run_dir=str(tmp_path / run))
        e.metric.protocol = final
        go(e)
        best = result(tmp_path / run)["scores"]["best"]
        assert best["protocol"]["protocol"] == "final"
        assert [line["kind"] for line in lines(tmp_path / run)].count("final") == 1
        return best["step"], best["values"]["fid_mean"]

    assert rated({("tiny", 0): 40.0, ("final", 0): 90.0, ("final", 2): 60.0}, "a") == (2, 60.0)
    assert rated({("tiny", 0): 90.0, ("final", 0): 50.0, ("final", 2): 60.0}, "b") == (0, 50.0)


def test_a_best_of_another_protocol_is_not_compared_with(
    tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ganlab.training.monitor import Monitor

    score, fids, ids = Monitor.score, iter([1.0, 5.0, 4.0]), iter(["old", "new", "new"])

    def scored(*args: Any) -> Any:
        scores = score(*args)
        scores.values["fid_mean"] = next(fids)
        return dataclasses.replace(scores, protocol_id=next(ids))

    monkeypatch.setattr(Monitor, "score", scored)
    go(tiny(steps=6, eval_every=2))
    best = result(tmp_path / "run")["scores"]["best"]
    assert (best["protocol_id"], best["values"]["fid_mean"]) == ("new", 4.0)


PINNED = {
    2: {"loss/d": 0.001715163, "loss/gp": 9.876928, "loss/g": 0.0003689225},
    6: {"loss/d": 0.002737975, "loss/gp": 9.621328, "loss/g": 0.002384519},
    12: {"loss/d": 0.02612577, "loss/gp": 8.412014, "loss/g": 0.002813451},
}


def test_pinned_losses(tiny: Make, tmp_path: Path) -> None:
    """A change that moves these says so, with before and after. Processors round a little differently."""
    go(tiny(loss=Wasserstein(), normalization={"sn": SpectralNorm(), "gp": GradientPenalty()}, d_steps=2))
    logged = {line["step"]: line for line in lines(tmp_path / "run") if line["kind"] == "train"}
    for step, losses in PINNED.items():
        for name, value in losses.items():
            assert logged[step][name] == pytest.approx(value, rel=1e-3), (step, name)


def test_learning_rate_factor(tiny: Make) -> None:
    e = tiny(lr_decay="linear", steps=10)
    assert [e.schedules["optimizer.lr"](s) for s in (0, 5, 9)] == pytest.approx([1.0, 0.5, 0.1])
    late = tiny(lr_decay="linear", lr_decay_start=8, steps=10)
    assert [late.schedules["optimizer.lr"](s) for s in (0, 8, 9)] == pytest.approx([1.0, 1.0, 0.5])


def test_bf16_keeps_weights_norms_and_losses_in_fp32(tiny: Make, tmp_path: Path) -> None:
    norms = {"sn": SpectralNorm(), "gp": GradientPenalty()}
    go(tiny(precision="bf16", normalization=norms, loss=Wasserstein(), steps=4))
    folder = RunFolder(tmp_path / "run")
    _, tensors, _ = Checkpoints(folder.checkpoints, folder.run_id).load()
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float32}
    fp32 = tmp_path / "fp32"
    go(tiny(precision="fp32", normalization=norms, loss=Wasserstein(), steps=4, run_dir=str(fp32)))
    a, b = (next(line for line in lines(r) if line["kind"] == "train") for r in (tmp_path / "run", fp32))
    assert a["loss/gp"] == pytest.approx(b["loss/gp"], rel=0.05)
    assert a["loss/d"] != b["loss/d"]


def test_frozen_d_gets_no_gradients_in_gs_turn(tiny: Make) -> None:
    from ganlab.training.build import build_gan
    from ganlab.training.step import update_generator

    gan = build_gan(tiny(), torch.device("cpu"))
    before = {k: v.clone() for k, v in gan.discriminator.state_dict().items() if "parametrizations" not in k}
    update_generator(gan, lambda: pytest.fail("hinge needs no real images for G"))
    assert all(p.grad is None and p.requires_grad for p in gan.discriminator.parameters())
    assert all(torch.equal(before[k], gan.discriminator.state_dict()[k]) for k in before)


def test_run_path_is_a_function_of_the_config() -> None:
    parts = {**CHOICES, "normalization": ["sn", "gp"]}
    assert run_path(parts, ["seed=3", "device=cpu", "loss=hinge"], "C", 3) == Path(
        "outputs/digits-cnn-sn+gp-hinge/C-s3"
    )
    named = {**CHOICES, "experiment": "sngan_cifar"}
    plain = run_path(named, ["+experiment=sngan_cifar", "setting=B"], "B", 0)
    assert plain == Path("outputs/sngan_cifar/B-s0")
    a = run_path(named, ["steps=10", "loss=hinge"], "B", 0)
    assert a == run_path(named, ["loss=hinge", "steps=10"], "B", 0) != plain
    assert a.name.startswith("B-s0-")


def test_method_names() -> None:
    for names, loss, method in (
        ([], "Hinge", "none"),
        (["gp"], "Wasserstein", "wgan-gp"),
        (["gp"], "standard", "gan-gp"),
        (["sn", "gp"], "", "sn+gp"),
        (["sn", "gp"], "Wasserstein", "sn+wgan-gp"),
        (["fn"], "wasserstein", "fn"),
    ):
        assert method_name(names, loss) == method


def test_best_is_by_fid_and_never_by_nothing() -> None:
    better = {"is_cifar": "higher", "fid_cifar": "lower"}
    assert ranking_score(better) == ("fid_cifar", "lower")
    assert improves({"fid_cifar": 3.0}, {"fid_cifar": 4.0}, better)
    assert not improves({"fid_cifar": None, "is_cifar": 9.0}, {"fid_cifar": 4.0}, better)
    assert improves({"fid_cifar": 4.0}, {"fid_cifar": None}, better)
    assert improves({"is": 2.0}, {"is": 1.0}, {"is": "higher"})


def test_a_parameterless_stabiliser_needs_no_state(tiny: Make) -> None:
    from ganlab.training.build import build_gan, stateful_parts

    class Stateful(SpectralNorm, nn.Module):
        def __init__(self) -> None:
            nn.Module.__init__(self)
            SpectralNorm.__init__(self)
            self.register_buffer("k", torch.zeros(()))

    gan = build_gan(tiny(normalization={"a": Stateful(), "wc": WeightClip()}), torch.device("cpu"))
    assert "normalization.a" in stateful_parts(gan)
    assert "normalization.wc" not in stateful_parts(gan)


def test_mistakes_across_fields_come_together(tiny: Make) -> None:
    with pytest.raises(ValueError, match="normalization: sn and wn both normalize D's weights; choose one"):
        tiny(normalization={"sn": SpectralNorm(), "wn": WeightNorm()})
    norms = {"bn": BatchNorm(), "ln": LayerNorm()}
    with pytest.raises(ValueError, match="both normalize") as caught:
        tiny(normalization=norms, device="tpu", lr_decay="linear", lr_decay_start=99)
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "device",
        "lr_decay_start",
        "normalization",
    ]
