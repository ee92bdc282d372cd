"""Small parts that many tests play with: a tiny experiment, an extractor of eight numbers, real data."""

from __future__ import annotations

import functools
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Before torch starts a pool of threads: a test that forks would wait for threads its child does not have.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic runs on a GPU, read once

import sklearn.datasets  # noqa: F401 - a run in a fork of this process finds it here: 2.4 s of 3.3
import torch
import torch.utils.tensorboard  # likewise
from filelock import FileLock
from torch import Tensor

from ganlab.data.digits import Digits
from ganlab.experiment import Experiment, Scoring
from ganlab.extractors.base import Extractor, check_images
from ganlab.methods.losses import Hinge
from ganlab.methods.priors import Normal
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.metrics.fid import FID
from ganlab.metrics.inception_score import InceptionScore
from ganlab.metrics.protocol import Protocol
from ganlab.models.cnn import CNN
from ganlab.types import Features

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"


class MeanExtractor(Extractor):
    """Eight numbers of an image: means of its four quarters, and of their squares. Instant."""

    name, suffix, feature_dim, num_classes = "mean", "_mean", 8, 4

    def identity(self) -> dict[str, str | int | float]:
        return {"name": "mean"}

    def check(self) -> None:
        pass

    def to(self, device: torch.device | str) -> MeanExtractor:
        return self

    def __call__(self, images: Tensor) -> Features:
        check_images(images)
        quarters = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 255, 2)
        flat = quarters.flatten(1)
        return Features(torch.cat([flat, flat.square()], 1), flat * 4)


@pytest.fixture(autouse=True)
def default_signal_handlers() -> None:
    """Tests send signals that `nohup make test &` and a launcher's worker in this process leave ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def heard_loggers() -> None:
    """Hydra's logging set-up, met by the sweep tests in this process, silences the loggers there are."""
    logging.root.setLevel(logging.WARNING)
    for name in ("ganlab", "ganlab.data"):
        logging.getLogger(name).disabled = False


PRECISION = (torch.backends.cuda.matmul, torch.backends.cudnn)
SWITCHES = [place.allow_tf32 for place in PRECISION]  # as torch has them, before any run


@pytest.fixture(autouse=True)
def own_switches() -> Iterator[None]:
    """A run in this process sets torch's precision switches; each test finds them as torch has them.

    Set before the test too: a fixture of the session may have made a run, after this one had looked.
    """
    b: Any = torch.backends
    benchmark, deterministic = b.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    for place, value in zip(PRECISION, SWITCHES, strict=True):
        place.allow_tf32 = value
    yield
    for place, value in zip(PRECISION, SWITCHES, strict=True):
        place.allow_tf32 = value
    b.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Bit-identity holds for one thread count; one is the same on every machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pixel_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel means in the place of the packaged network's features: scores cost nothing."""
    from faults.base import pixel_means

    monkeypatch.setattr("ganlab.extractors.cifar.CifarExtractor.__call__", pixel_means)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """Makes tiny experiments on 16x16 digits: a fraction of a second for a dozen steps."""
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))

    def make(**changes: Any) -> Experiment:
        protocol = Protocol(name="tiny", is_n_fake=64, is_splits=1, fid_n_fake=64, batch_size=64)
        values: dict[str, Any] = {
            "dataset": Digits(resolution=16),
            "architecture": CNN(width=0.05, z_dim=8),
            "normalization": {"sn": SpectralNorm()},
            "loss": Hinge(),
            "prior": Normal(),
            "optimizer": functools.partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999)),
            "metric": Scoring(MeanExtractor(), protocol, {"is": InceptionScore(), "fid": FID()}),
            "steps": 12,
            "batch_size": 8,
            "device": "cpu",
            "log_every": 2,
            "save_every": 4,
            "eval_every": 6,
            "run_dir": str(tmp_path / "run"),
            "threads": 1,
        }
        return Experiment(**values | changes)

    return make


@pytest.fixture(scope="session")
def cifar_archive() -> Path:
    """The real CIFAR-10 images as JPEG; the test is skipped where they are absent."""
    path = SHARED / "cifar10-jpeg.tar.xz"
    if not path.is_file():
        pytest.skip(f"needs the CIFAR-10 images at {path.parent.name}/{path.name} beside the checkout")
    return path


class Shared(dict[str, Path]):
    """Run folders by name, each trained at its first use and once for all processes of the session."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __missing__(self, name: str) -> Path:
        import analysis_runs as maker

        run = self.root / name
        with FileLock(self.root / f"{name}.lock"), pytest.MonkeyPatch.context() as patch:
            patch.setenv("GANLAB_CACHE", str(self.root / "cache"))
            if not (run / "result.json").exists() or '"finished"' not in (run / "result.json").read_text():
                maker.train(self.root, name, (maker.RUNS | maker.POINT_RUNS)[name])
        self[name] = run
        return run


@pytest.fixture(scope="session")
def analysis_runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Trained run folders by name (``analysis_runs.RUNS``): only to be read."""
    base = tmp_path_factory.getbasetemp()  # a process of xdist has its own in the session's
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    root.mkdir(exist_ok=True)
    return Shared(root)
