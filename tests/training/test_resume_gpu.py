"""On a CUDA device: resume is bit-identical with deterministic=true; graphs or not, bf16 or not.

Skipped where there is none, but for one that shows on a CPU that the tests themselves are sound.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_loop import state

from ganlab.config import compose
from ganlab.errors import Stopped
from ganlab.training import trainer
from ganlab.training.engine import Engine, Graphed

CONFIGS = {
    "cnn sn": ["normalization=[sn]", "dataset.resolution=16"],
    "cnn wgan-gp": ["normalization=[gp]", "loss=wasserstein", "dataset.resolution=16"],
    "resnet projection": ["architecture=resnet", "architecture.head=projection", "dataset.resolution=32"],
    "dcgan EMA": ["architecture=dcgan", "ema=0.9", "dataset.resolution=32", "flip=true", "lr_decay=linear"],
    "wgan warm-up": [
        *("normalization=[wc_all]", "loss=wasserstein", "setting=wgan", "dataset.resolution=16", "d_steps=2"),
        *("d_warmup_steps=4", "d_warmup_updates=2", "d_warmup_every=5"),
    ],
    "text wgan-gp": [
        *("dataset=text", "architecture=charlm", "normalization=[gp]", "loss=wasserstein"),
        *("metric=[ngram_js]", "metric.scores.ngram_js.n=16"),
    ],
}
CORPUS = "".join(f"line {i} of a short text, {i * i} times\n" for i in range(60))
POINTS = (1, 3, 4, 5, 7, 10, 13)  # graphs are recorded in the fourth update of a process
WORDS = [
    *("dataset=digits", "architecture.width=0.1", "architecture.z_dim=8", "loss=hinge", "steps=14"),
    *("batch_size=8", "d_steps=2", "save_every=4", "log_every=3", "eval_every=0", "sample_every=0"),
    *("metric=[is]", "metric.extractor=cifar", "metric.protocol=smoke", "metric.protocol.is_n_fake=16"),
    *("metric.progress=null", "device=cuda", "keep_checkpoints=9"),
]


def train(run: Path, words: list[str], stop: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin or continue; a SIGTERM comes when ``stop`` updates are done."""
    keys = {w.partition("=")[0] for w in words}
    overrides = [*(w for w in WORDS if w.partition("=")[0] not in keys), *words, f"run_dir={run}"]
    composed = compose.compose(overrides)
    with monkeypatch.context() as patch:
        for kind in (Engine, Graphed) if stop is not None else ():
            if "update" in vars(kind):
                patch.setattr(kind, "update", _stopping(kind.update, stop))
        try:
            trainer.train(compose.build(composed), composed.saved, composed.choices, composed.overrides)
        except Stopped:
            assert stop is not None


def _stopping(real: Callable[[Engine, int], None], stop: int | None) -> Callable[[Engine, int], None]:
    def update(self: Engine, step: int) -> None:
        real(self, step)
        if step + 1 == stop and self.loss_buffer.count:
            os.kill(os.getpid(), signal.SIGTERM)

    return update


def resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    if "dataset=text" in words:
        (tmp_path / "corpus.txt").write_text(CORPUS)
        words = [*words, f"dataset.path={tmp_path / 'corpus.txt'}"]
    train(tmp_path / "whole", words, None, monkeypatch)
    for point in POINTS:
        run = tmp_path / f"stopped-{point}"
        train(run, words, point, monkeypatch)
        assert (run / "checkpoints" / f"step-{point:09d}").is_dir()
        train(run, words, None, monkeypatch)
        assert state(run, 14) == state(tmp_path / "whole", 14), point


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", ["eager", "graph"])
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_resume_on_a_gpu_is_bitwise(
    name: str, engine: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*CONFIGS[name], f"engine={engine}", f"precision={precision}", "deterministic=true"]
    resumes(tmp_path, monkeypatch, words)
    record = json.loads((tmp_path / "whole" / "result.json").read_text())["engine"]
    assert record["used"] == engine, record["why"]


def test_the_same_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """What the tests above do is sound: here they run without a GPU."""
    monkeypatch.setattr("test_resume_gpu.POINTS", (5,))
    resumes(tmp_path, monkeypatch, [*CONFIGS["text wgan-gp"], "device=cpu", "threads=1"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_without_deterministic_a_resume_is_no_further_off_than_a_second_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Largest relative difference of the losses: (b) uninterrupted and resumed, (a) twice uninterrupted."""
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    words = [
        *CONFIGS["cnn sn"],
        "engine=eager",
        "precision=fp32",
        "steps=200",
        "save_every=50",
        "log_every=1",
    ]

    def losses(name: str, stop: int | None = None) -> list[float]:
        if stop:
            train(tmp_path / name, words, stop, monkeypatch)
        train(tmp_path / name, words, None, monkeypatch)
        records = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        return [r["loss/d"] for r in records if r["kind"] == "train"]

    def apart(a: list[float], b: list[float]) -> float:
        return max(abs(x - y) / max(abs(x), 1e-6) for x, y in zip(a, b, strict=True))

    first = losses("first")
    twice, resumed = apart(first, losses("second")), apart(first, losses("resumed", 100))
    print(f"two runs {twice:.3g}, resumed {resumed:.3g}")
    assert resumed <= max(10 * twice, 1e-6)
