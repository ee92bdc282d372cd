"""Stacked MNIST: its images, the classifier of digits, and the modes it sees."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ganlab.data.mnist import Mnist
from ganlab.data.stacked_mnist import StackedMnist
from ganlab.errors import EnvError
from ganlab.extractors.mnist import MnistExtractor
from ganlab.metrics.base import Fakes, MetricError
from ganlab.metrics.class_modes import ClassModes
from ganlab.metrics.protocol import Protocol

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "mnist-t10k"
real_data = pytest.mark.skipif(not FOLDER.is_dir(), reason="no mnist-t10k in ../shared/data")
PROTOCOL = Protocol("t", 10, 10)


def test_modes_and_reverse_kl_by_hand() -> None:
    """Of the first 4 images three are of class 1, one of class 2, of 5: KL = sum p log(5 p)."""
    logits = torch.zeros(6, 5)
    logits[range(6), [1, 2, 1, 1, 3, 4]] = 1
    metric = ClassModes(n=4)
    scores = metric(None, Fakes(logits=logits), PROTOCOL)
    kl = 0.75 * math.log(5 * 0.75) + 0.25 * math.log(5 * 0.25)
    assert scores == {"modes": 2, "kl": pytest.approx(kl, abs=1e-12)}
    even = metric(None, Fakes(logits=torch.eye(4)), PROTOCOL)
    assert even == {"modes": 4, "kl": pytest.approx(0, abs=1e-12)}
    with pytest.raises(MetricError, match="needs at least 4 generated images, there are 3"):
        metric(None, Fakes(logits=logits[:3]), PROTOCOL)
    with pytest.raises(MetricError, match="not finite"):
        metric(None, Fakes(logits=logits / 0), PROTOCOL)


def test_packaged_file() -> None:
    about = json.loads(MnistExtractor.packaged_weights.with_suffix(".json").read_text())
    content = MnistExtractor.packaged_weights.read_bytes()
    assert len(content) == about["bytes"] < 300_000
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    assert min(about["test_accuracy_32"], about["test_accuracy_28"]) > 0.99


def test_numbers_are_those_of_the_three_channels(tmp_path: Path) -> None:
    extractor = MnistExtractor()
    images = torch.randint(0, 256, (3, 3, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
    pool, logits = extractor(images)
    assert (pool.shape, logits.shape) == ((3, 192), (3, 1000))
    assert torch.allclose(logits.exp().sum(1), torch.ones(3), atol=1e-4)
    marginals = [logits.exp().view(3, 10, 10, 10).sum(dims) for dims in ((2, 3), (1, 3), (1, 2))]
    for channel, marginal in enumerate(marginals):
        alone = extractor(images[:, channel : channel + 1])  # grey: the same digit thrice
        assert torch.allclose(pool.view(3, 3, 64)[:, channel], alone.pool[:, :64], atol=1e-5)
        cubed = torch.stack([alone.logits[:, 111 * digit] for digit in range(10)], 1)
        assert torch.allclose((cubed / 3).softmax(1), marginal, atol=1e-4)
    assert extractor.identity()["views"] == "plain"
    with pytest.raises(EnvError, match=r"scripts/train_digit_net\.py"):
        MnistExtractor(str(tmp_path / "none")).check()


@real_data
def test_real_stacked_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path))
    stacked = StackedMnist(str(FOLDER), "test", n=600).load()
    assert (stacked.images.shape, len(stacked.classes), stacked.classes[70]) == (
        (600, 3, 32, 32),
        1000,
        "070",
    )
    again, other = (StackedMnist(str(FOLDER), "test", n=600, data_seed=seed).load() for seed in (0, 1))
    assert stacked.fingerprint == again.fingerprint != other.fingerprint
    digits = Mnist(str(FOLDER), "test").load()
    assert digits.labels is not None
    assert stacked.labels is not None
    for image, label in zip(stacked.images[:5], stacked.labels[:5], strict=True):
        rows = [int((digits.images[:, 0] == channel).all((1, 2)).argmax()) for channel in image]
        assert all((digits.images[row, 0] == channel).all() for row, channel in zip(rows, image, strict=True))
        assert int("".join(str(digits.labels[row]) for row in rows)) == label
    logits = MnistExtractor()(torch.from_numpy(stacked.images)).logits
    right = logits.argmax(1).numpy() == stacked.labels
    assert np.mean(right) > 0.97  # three digits of more than 99 % each
