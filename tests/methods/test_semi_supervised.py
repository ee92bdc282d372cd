"""K + 1 classes of Improved Techniques (arXiv:1606.03498): losses, networks, labels, refusals."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from ganlab.config import compose
from ganlab.data.digits import Digits
from ganlab.errors import ConfigError
from ganlab.methods.semi_supervised import KPlusOne
from ganlab.metrics.test_error import TestError as ErrorOnTest
from ganlab.models.heads import k_plus_1
from ganlab.models.improved import ImprovedConv, ImprovedMLP
from ganlab.models.weight_normed import WNConv, WNDeconv, WNLinear
from ganlab.training.batches import Feed, require_labels, stratified
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import ImageShape

CPU = torch.device("cpu")
SEMI = [
    *("dataset=digits", "dataset.resolution=16", "architecture=improved_mlp", "architecture.width=0.05"),
    "architecture.head=k_plus_1",
    *("batch_size=20", "loss=k_plus_1", "class_loss=labelled", "normalization=none", "setting=C"),
    *("prior=uniform", "technique=feature_matching", "metric=[test_error]", "device=cpu"),
]


def test_the_score_is_the_probability_of_k_plus_one_classes() -> None:
    real, fake = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    p = [torch.cat([x, torch.zeros(len(x), 1, dtype=x.dtype)], 1).softmax(1)[:, 3] for x in (real, fake)]
    verdicts = [k_plus_1(x, x) for x in (real, fake)]
    d = KPlusOne().discriminator(*verdicts)
    want = -((1 - p[0]).log().mean() + p[1].log().mean()) / 2
    assert float(d) == pytest.approx(float(want), rel=1e-6)
    g = KPlusOne().generator(None, verdicts[1])
    assert float(g) == pytest.approx(float(p[1].log().mean()), rel=1e-6)  # log(1 - D): saturating
    g = KPlusOne(generator="non_saturating").generator(None, verdicts[1])
    assert float(g) == pytest.approx(float(-(1 - p[1]).log().mean()), rel=1e-6)
    moved = KPlusOne().moved_target("d", verdicts[0].score, 1.0, 0.9)
    assert float(moved) == pytest.approx(0.05 * float(verdicts[0].score.mean()))  # type: ignore[arg-type]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_of_the_code() -> None:
    shape = ImageShape(3, 32, 32)
    net = ImprovedConv(head="k_plus_1")
    assert count(net.generator(shape, 0)) == 4_933_382
    assert count(net.discriminator(shape, 0, None)) == 1_406_804
    e = compose.build(compose.compose(["+experiment=improved_cifar", "architecture.head=k_plus_1"]))
    d = net.discriminator(shape, 0, None)
    e.technique["minibatch_discrimination"].change_networks(nn.Identity(), d)
    assert count(d) == 1_504_404


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (WNLinear(5, 4, start_std=0.1, trained=True), torch.randn(30, 5) + 2),
        (WNConv(2, 4, 3, 2, 1), torch.randn(6, 2, 8, 8)),
        (WNDeconv(3, 2, 0.3), torch.randn(6, 3, 4, 4)),
    ],
    ids=["dense", "conv", "deconv"],
)
def test_a_layer_starts_from_data(layer: WNLinear | WNConv | WNDeconv, x: torch.Tensor) -> None:
    v = layer.weight.detach().movedim(layer.axis, 0).flatten(1)
    with torch.no_grad():
        norms = layer.normed().movedim(layer.axis, 0).flatten(1).norm(dim=1)
        assert torch.allclose(norms, v.norm(dim=1) / (v.square().sum(1) + 1e-6).sqrt())  # g = 1
        layer.start(x)
        y = layer(x).movedim(1, 0).flatten(1)
    assert torch.allclose(y.mean(1), torch.zeros(len(y)), atol=1e-5)
    assert torch.allclose(y.std(1, correction=0), torch.full((len(y),), layer.start_std), rtol=1e-4)


def test_gains_are_frozen_but_in_the_last_layers_and_noise_is_off_in_evaluation() -> None:
    d = ImprovedMLP(width=0.05).discriminator(ImageShape(1, 8, 8), 0, None)
    assert [name for name, _ in d.named_parameters() if name.endswith(".g")] == ["dense.g"]
    assert len([name for name, _ in d.named_buffers() if name.endswith(".g")]) == 5
    x = torch.rand(3, 1, 8, 8)
    assert not torch.equal(d(x).score, d(x).score)
    d.eval()
    assert torch.equal(d(x).score, d(x).score)


def test_labels_are_stratified_and_seeded() -> None:
    labels = np.array([0, 1, 2] * 10)
    rows = stratified(labels, 3, 4, 7)
    assert Counter(labels[rows].tolist()) == {0: 4, 1: 4, 2: 4}
    assert np.array_equal(rows, stratified(labels, 3, 4, 7))
    assert not np.array_equal(rows, stratified(labels, 3, 4, 8))
    with pytest.raises(
        ConfigError, match="labelled_per_class: 11, but one class has only 10 samples; use at most 10"
    ):
        stratified(labels, 3, 11, 7)


def test_d_sees_the_labels_of_the_chosen_samples_alone() -> None:
    """5 labels a class, batches of 20: a batch goes through the 50 of them in shuffled epochs."""
    e = compose.build(compose.compose([*SEMI, "labelled_per_class=5", "label_seed=3"]))
    data = Digits(resolution=16).load()
    gan = build_gan(e, CPU, 10, data.shape, data)
    feed = Feed(data.batches(CPU, e.seed), e)
    rows = require_labels(data, e)
    assert rows is not None
    chosen = {data.images[r].tobytes(): int(data.labels[r]) for r in rows}  # type: ignore[index]
    seen: Counter[bytes] = Counter()
    assert feed.labelled is not None
    for step in range(5):
        feed.place(step)
        x, y = feed.labelled()
        pixels = ((x + 1) * 127.5).round().to(torch.uint8).contiguous().numpy()
        for image, label in zip(pixels, y, strict=True):
            assert chosen[image.tobytes()] == int(label)
            seen[image.tobytes()] += 1
    assert sum(seen.values()) == 100
    feed.place(5)
    torch.manual_seed(0)
    before = [p.detach().clone() for p in gan.discriminator.parameters()]
    log = update(gan, feed, feed.labelled)
    assert {"d", "d_class", "g"} <= set(log)
    assert float(log["d_class"]) == pytest.approx(math.log(10), abs=0.3)  # the last layer starts small
    assert all(not torch.equal(a, b) for a, b in zip(before, gan.discriminator.parameters(), strict=True))
    logits = gan.class_logits(torch.rand(7, 1, 16, 16))
    assert logits.shape == (7, 10)
    assert gan.discriminator.training


def test_test_error_by_hand() -> None:
    x = torch.arange(1200, dtype=torch.uint8).view(-1, 1, 1, 1)
    y = torch.arange(1200) % 4
    y[:30] = (y[:30] + 1) % 4
    error = ErrorOnTest().of_classifier(lambda images: torch.eye(4)[images.flatten().long() % 4], x, y)
    assert error == {"test_error": pytest.approx(100 * 30 / 1200)}


REFUSED = [
    (["~class_loss"], "head=k_plus_1 has a classifier, but no loss is set; set class_loss=labelled"),
    (["architecture=cnn", "~class_loss"], "loss: D has no head of K + 1 classes"),
    (["architecture=cnn", "~class_loss"], "metric.scores.test_error: needs a D that classifies"),
    (
        ["architecture=cnn", "loss=standard", "~class_loss", "labelled_per_class=5"],
        "nothing learns from labels",
    ),
    (
        ["dataset=stl10", "dataset.resolution=32"],
        "which stl10 unlabeled has not",
    ),
    (["normalization=bn"], "this D has no place for a feature norm"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    line = [w for w in SEMI if w.partition("=")[0] not in {v.partition("=")[0].lstrip("~") for v in words}]
    words = [w for w in words if w != "~class_loss"]  # its default is none
    if "architecture=cnn" in words:
        line = [w for w in line if not w.startswith("architecture")]
    if "dataset=stl10" in words:
        line = [w for w in line if w != "dataset=digits"]
    with pytest.raises(ConfigError) as error:
        build_gan(compose.build(compose.compose([*line, *words])), CPU, 10)
    assert message in str(error.value)
