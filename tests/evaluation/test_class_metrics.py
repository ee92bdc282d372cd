"""Scores of classes: intra-FID and MS-SSIM by hand, against libraries, and through the evaluator."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MeanExtractor
from scipy import ndimage, signal
from test_evaluate import Ignoring, Tiny, protocol
from torch import Tensor, nn

from ganlab import rng
from ganlab.cli import evaluate
from ganlab.data.base import Dataset, SampleSet
from ganlab.data.digits import Digits
from ganlab.data.fingerprint import fingerprint
from ganlab.errors import DataError, Stopped
from ganlab.evaluation.evaluator import Evaluator, Scores
from ganlab.evaluation.generate import CHUNK, SampleGenerator, generators
from ganlab.evaluation.per_class import labels_of
from ganlab.experiment import Experiment, Scoring
from ganlab.metrics.base import Fakes, Metric, MetricError, Moments, Real, moments, square_root
from ganlab.metrics.fid import FID, frechet_distance
from ganlab.metrics.intra_fid import IntraFID, factored, factored_distance
from ganlab.metrics.ms_ssim import MSSSIM, IntraMSSSIM, halved, ms_ssim
from ganlab.metrics.protocol import Protocol, digest
from ganlab.models.resnet import ResNet
from ganlab.report.read import collect
from ganlab.runs.folder import RunFolder
from ganlab.runs.result import score_entry
from ganlab.training import trainer
from ganlab.types import ImageShape

NAMES = ["apple", "bear", "cat"]
FEW = 200
SMALL = ImageShape(3, 4, 4)
COUNTS = [90, 5, 40]  # more and fewer than the 8 features of ``Tiny``


def draw(n: int, d: int, seed: int, scale: float = 1.0) -> Tensor:
    """Correlated non-negative features (n, d), float32."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(1)) / d**0.5
    return (torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mix * scale + 0.5).relu()


# --- intra-FID


@pytest.mark.parametrize(
    ("n_real", "n_fake", "d"), [(40, 300, 100), (40, 30, 100), (300, 30, 100), (2, 9, 5)]
)
def test_the_factored_distance_is_the_dense_one(n_real: int, n_fake: int, d: int) -> None:
    real, fake = draw(n_real, d, 2), draw(n_fake, d, 3, 1.5)
    mean, cov = moments(real)
    dense = frechet_distance(mean, cov, square_root(cov), *moments(fake))
    factors = factored(real)
    torch.testing.assert_close(factors.factor.T @ factors.factor, cov, rtol=1e-10, atol=1e-14)
    assert factors.factor.shape == (min(n_real, d), d)
    assert factored_distance(factors, *moments(fake)) == pytest.approx(dense, rel=1e-6)


def test_intra_fid_needs_two_images_and_finite_features() -> None:
    with pytest.raises(MetricError, match="at least 2 images, there are 1"):
        factored(torch.zeros(1, 3))
    with pytest.raises(MetricError, match="not finite"):
        factored(torch.full((2, 3), torch.nan))
    few = {"a": 1, "b": 9, "c": 0, "d": 1, "e": 1}
    with pytest.raises(MetricError, match=r"'a' has 1, 'c' has 0, 'd' has 1 and 1 more$"):
        IntraFID().check(protocol(), Real(class_counts=few))


# --- MS-SSIM


def pairs(side: int, n: int = 3, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Images that share their large structures and not their small ones, uint8 (n, C, side, side)."""
    g = torch.Generator().manual_seed(side)
    base = nn.functional.interpolate(
        torch.rand(n, channels, 8, 8, generator=g) * 255, size=side, mode="bicubic"
    )
    noise = torch.randn(2, n, channels, side, side, generator=g) * torch.tensor([5.0, 40.0]).view(
        2, 1, 1, 1, 1
    )
    x, y = (base + noise).clamp(0, 255).to(torch.uint8)
    return x, y


def test_ms_ssim_of_large_grey_images_is_the_librarys() -> None:
    import pytorch_msssim

    x, y = pairs(176, channels=1)
    theirs = pytorch_msssim.ms_ssim(x.double(), y.double(), data_range=255, size_average=False)
    assert 0.3 < float(theirs.min()) < float(theirs.max()) < 0.95
    torch.testing.assert_close(ms_ssim(x, y), theirs, rtol=1e-5, atol=0)  # its window is float32


def by_the_script(x: Tensor, y: Tensor) -> float:
    """MS-SSIM of one pair as the TensorFlow authors' script does it, in numpy and scipy."""
    a, b = (z.permute(1, 2, 0).double().numpy()[None] for z in (x, y))
    value = 1.0
    for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        size = min(11, *a.shape[1:3])
        at = np.arange(size) - (size - 1) / 2
        line = np.exp(-(at**2) / (2 * (1.5 * size / 11) ** 2))
        window = (np.outer(line, line) / np.outer(line, line).sum()).reshape(1, size, size, 1)

        def mean(z: Any, window: Any = window) -> Any:
            return signal.fftconvolve(z, window, mode="valid")

        m, k = mean(a), mean(b)
        v = mean(a * a) - m * m + mean(b * b) - k * k
        contrast = (2 * (mean(a * b) - m * k) + 7.65**2) / (v + 7.65**2)
        luminance = (2 * m * k + 2.55**2) / (m * m + k * k + 2.55**2)
        term = (luminance * contrast).mean() if level == 4 else contrast.mean()
        value *= max(term, 0) ** weight
        box = np.ones((1, 2, 2, 1)) / 4
        a, b = (ndimage.convolve(z, box, mode="reflect")[:, ::2, ::2] for z in (a, b))
    return float(value)


@pytest.mark.parametrize("side", [16, 97])
def test_ms_ssim_of_small_images_is_the_scripts_whose_window_shrinks(side: int) -> None:
    x, y = pairs(side)
    assert ms_ssim(x, y).tolist() == pytest.approx(
        [by_the_script(*p) for p in zip(x, y, strict=True)], rel=1e-7
    )


def test_ms_ssim_knows_copies_opposites_and_its_smallest_image() -> None:
    x, y = pairs(32)
    assert ms_ssim(x, x).tolist() == pytest.approx([1, 1, 1], abs=1e-12)
    torch.testing.assert_close(ms_ssim(x, y), ms_ssim(y, x))
    assert ms_ssim(x, 255 - x).tolist() == [0, 0, 0]  # every contrast term is negative
    flat = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert float(ms_ssim(flat, flat)) == 1
    with pytest.raises(MetricError, match="at least 16 pixels"):
        ms_ssim(x[:, :, :15], y[:, :, :15])
    with pytest.raises(MetricError, match="at least 16 pixels"):
        MSSSIM().check(protocol(), Real(shape=Animals(side=8).shape))
    assert halved(torch.tensor([[[[1.0, 3.0, 5.0]]]])).flatten().tolist() == [2, 5]


def test_ms_ssim_pairs_neighbours_and_uses_the_first_images() -> None:
    x, y = pairs(16, n=250)
    mixed = torch.stack([x, y], 1).flatten(0, 1)
    values = MSSSIM(pairs=150)(None, Fakes(samples=mixed), protocol())
    assert values["ms_ssim"] == pytest.approx(float(ms_ssim(x[:150], y[:150]).mean()), rel=1e-12)
    assert MSSSIM(pairs=150).n_fake(protocol()) == 300


# --- through the evaluator


class Animals(Dataset):
    """Three classes of images, each of a colour of its own, in an order that mixes them."""

    name, split, channels = "animals", "train", 3

    def __init__(
        self, seed: int = 0, side: int = 4, order: tuple[int, ...] = (0, 1, 2), labels: bool = True
    ) -> None:
        self.seed, self.resolution, self.order, self.labels = seed, side, order, labels

    @property
    def shape(self) -> Any:
        return self.load().shape

    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def load(self, *, split: str | None = None) -> SampleSet:
        labels = np.repeat(np.arange(3), COUNTS)
        random = np.random.default_rng(self.seed + (split == "test"))
        images = random.integers(0, 100, (sum(COUNTS), 3, self.resolution, self.resolution), dtype=np.uint8)
        images[np.arange(len(images)), labels] += 100
        mixed = random.permutation(len(images))
        images, labels = images[mixed], np.array(self.order)[labels[mixed]]
        names = [NAMES[self.order.index(i)] for i in range(3)] if split != "test" else ["x", "y", "z"]
        shuffled = labels if self.labels else None
        return SampleSet(
            images, shuffled, names, fingerprint(images, shuffled), self.name, split or self.split
        )


class Painter(nn.Module):
    """A conditional G: noise, brighter in the channel of its class; ``obeys``: of the class asked for."""

    def __init__(self, obeys: bool = True, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__()
        self.obeys, self.order = obeys, order

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        assert y is not None
        classes = torch.tensor([self.order.index(int(c)) for c in y])
        if not self.obeys:
            classes = (z[:, 0] * 1000).long() % 3
        x = z.view(-1, 3, 4, 4) * 100
        x[torch.arange(len(x)), classes] += 100
        return x / 127.5 - 1


class Tall(Painter):
    """The same four times as large."""

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        return super().forward(z, y).repeat_interleave(4, 2).repeat_interleave(4, 3)


def draw_labelled(n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 48, generator=random), torch.randint(0, 3, (n,), generator=random)


def scored(
    cache: Path,
    g: nn.Module | None = None,
    metrics: dict[str, Metric[Any]] | None = None,
    dataset: Dataset | None = None,
    extractor: Tiny | None = None,
    poll: Any = None,
    strict: bool = True,
    **changes: Any,
) -> Scores:
    p = protocol(**({"intra_n_fake": 300} | changes))
    e = Evaluator(
        extractor or Tiny(), metrics or {"intra_fid": IntraFID()}, p, dataset or Animals(), "cpu", cache
    )
    e.check()
    g = g or Painter()
    return e.score(*generators(g, draw_labelled, p, SMALL), strict=strict, poll=poll)


def test_intra_fid_is_the_mean_of_the_plain_fid_of_each_class(tmp_path: Path) -> None:
    scores = scored(tmp_path, intra_n_fake=600)
    images = Animals().load()
    plain = {}
    for c, name in enumerate(NAMES):

        class One(Animals):
            """The images of one class, as if there were no others."""

            def load(self, *, split: str | None = None, c: int = c) -> SampleSet:
                few = images.images[images.labels == c]
                return SampleSet(few, None, [], fingerprint(few, None), "one", "train")

        p = protocol(fid_n_fake=600)
        e = Evaluator(Tiny(), {"fid": FID()}, p, One(), "cpu", tmp_path)

        def generate(n: int, start: int, random: torch.Generator, c: int = c) -> Tensor:
            z, y = draw_labelled(n, rng.generator("cpu", 0, "evaluate", start, c))
            return ((Painter()(z, torch.full_like(y, c)) * 127.5 + 127.5).round()).to(torch.uint8)

        plain[name] = e.score(generate, strict=True).values["fid_tiny"]
    details = scores.details["intra_fid_tiny"]
    assert details["per_class"] == pytest.approx(plain, rel=1e-6)
    assert scores.values == {"intra_fid_tiny": pytest.approx(sum(plain.values()) / 3, rel=1e-6)}
    assert details["classes"] == 3
    ordered = pytest.approx(sorted(plain.values()), rel=1e-6)
    assert [details["min"], details["median"], details["max"]] == ordered
    assert [name for name, _ in details["worst"]] == sorted(plain, key=lambda n: -plain[n])
    kept = score_entry(scores)["details"]["intra_fid_tiny"]
    assert set(kept) == {"protocol", "protocol_id", "classes", "min", "median", "max", "worst"}
    assert (
        score_entry(scores, every_class=True)["details"]["intra_fid_tiny"]["per_class"]
        == details["per_class"]
    )


def test_scores_of_classes_are_determined_and_alone_or_together_the_same(tmp_path: Path) -> None:
    dataset = Animals(side=16)

    class Shrunk(Tiny):
        def __call__(self, images: Tensor) -> Any:
            return super().__call__(images[:, :, ::4, ::4])

    metrics: dict[str, Metric[Any]] = {
        "fid": FID(),
        "intra_ms_ssim": IntraMSSSIM(pairs=20),
        "ms_ssim": MSSSIM(pairs=30),
        "intra_fid": IntraFID(),
    }
    before = torch.get_rng_state()
    together = scored(tmp_path, Tall(), metrics, dataset, Shrunk())
    assert torch.equal(torch.get_rng_state(), before)
    assert list(together.values) == ["fid_tiny", "intra_ms_ssim", "ms_ssim", "intra_fid_tiny"]
    for name, metric in metrics.items():
        alone = scored(tmp_path, Tall(), {name: metric}, dataset, Shrunk())
        assert alone.values.items() <= together.values.items()
        assert alone.details.items() <= together.details.items()
    assert set(together.details) == {"intra_fid_tiny", "intra_ms_ssim", "ms_ssim"}
    assert set(together.details["ms_ssim"]) == {"protocol", "protocol_id"}
    # beside it the real images': as many pairs, or what there are, of every class
    images = dataset.load()
    of = [torch.from_numpy(images.images[images.labels == c]) for c in range(3)]
    counts = [20, 2, 20]
    seeds = [rng.generator("cpu", 0, "metric", 5, c) for c in range(3)]
    mixed = [
        x[torch.randperm(len(x), generator=g)[: 2 * n]] for x, g, n in zip(of, seeds, counts, strict=True)
    ]
    wanted = sum(float(ms_ssim(x[0::2], x[1::2]).mean()) for x in mixed) / 3
    assert together.details["intra_ms_ssim"]["real"] == pytest.approx(wanted, rel=1e-12)
    assert "real" not in together.details["intra_fid_tiny"]
    # the pairs of the class are those of its stream
    z, y = draw_labelled(CHUNK, rng.generator("cpu", 0, "evaluate", 0, 1))
    made = SampleGenerator(Tall(), lambda n, r: (z, y), protocol(), label=1)(CHUNK, 0, torch.Generator())[:40]
    value = together.details["intra_ms_ssim"]["per_class"]["bear"]
    assert value == pytest.approx(float(ms_ssim(made[0::2], made[1::2]).mean()), rel=1e-12)


def test_scores_of_classes_have_a_protocol_of_their_own(tmp_path: Path) -> None:
    """So that FID stays comparable whatever is computed beside it."""
    metrics: dict[str, Metric[Any]] = {"fid": FID(), "intra_fid": IntraFID()}
    plain = scored(tmp_path, metrics={"fid": FID()})
    for changes in ({}, {"intra_classes": 2}, {"intra_n_fake": 40}):
        both = scored(tmp_path, metrics=metrics, **changes)
        assert both.record == plain.record
        assert both.protocol_id == plain.protocol_id
        own = both.details["intra_fid_tiny"]
        wanted = {"intra_n_fake": 300, "intra_classes": 0} | changes
        assert own["protocol"] == plain.record | wanted
        assert both.own_ids == {"intra_fid_tiny": digest(own["protocol"])}
    e = Evaluator(Tiny(), {"p": IntraMSSSIM(), "fid": FID()}, protocol(), Animals(), "cpu", tmp_path)
    record = e.record(own="p")
    assert "intra_n_fake" not in record
    assert record["extractor"] is None, "pixels alone"
    assert record["options"]["p"]["pairs"] == 100
    assert e.better == {"intra_ms_ssim": "lower", "fid_tiny": "lower"}


def test_some_classes_are_drawn_by_the_seed() -> None:
    drawn = labels_of(protocol(intra_classes=10), 1000)
    assert len(set(drawn)) == 10
    assert drawn == labels_of(protocol(intra_classes=10), 1000)
    assert drawn != labels_of(protocol(intra_classes=10, seed=1), 1000)
    assert labels_of(protocol(), 3) == labels_of(protocol(intra_classes=99), 3) == [0, 1, 2]


# --- statistics of the real classes


def real_seen(cache: Path, **changes: Any) -> tuple[int, Scores]:
    """How many real images an evaluation extracts."""
    extractor = changes.pop("extractor", Tiny())
    scores = scored(cache, extractor=extractor, **changes)
    return extractor.seen - 900, scores


def test_class_statistics_are_cached_by_content_and_piece_by_piece(tmp_path: Path) -> None:
    n, scores = real_seen(tmp_path)
    assert n == sum(COUNTS)
    assert real_seen(tmp_path)[0] == 0
    assert real_seen(tmp_path, batch_size=3, seed=4)[0] == 0  # all images of a class: nothing is drawn
    assert real_seen(tmp_path, dataset=Animals(seed=1))[0] == sum(COUNTS)
    assert real_seen(tmp_path, extractor=Tiny("w1"))[0] == sum(COUNTS)
    assert real_seen(tmp_path, dataset=Animals(order=(1, 0, 2)))[0] == sum(COUNTS)  # other labels
    # a damaged file costs its class alone
    folders = sorted((tmp_path / "reference").glob("classes-*"), key=lambda p: p.stat().st_ctime)
    (path,) = (p for p in folders[0].glob("*.safetensors") if p.stat().st_size == min(
        q.stat().st_size for q in folders[0].glob("*.safetensors")))  # fmt: skip
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    n, again = real_seen(tmp_path)
    assert n == COUNTS[1]
    assert again.values == scores.values
    assert len(again.warnings) == 1
    assert real_seen(tmp_path)[0] == 0


def test_a_stop_keeps_the_classes_that_are_done(tmp_path: Path) -> None:
    left = iter(range(4))  # batches: the first class's real images and fakes, then into the second

    def poll() -> None:
        if next(left, None) is None:
            raise Stopped(15)

    with pytest.raises(Stopped):
        scored(tmp_path, poll=poll, batch_size=100)
    assert real_seen(tmp_path)[0] == COUNTS[1] + COUNTS[2]


def test_no_more_than_one_class_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of many images is summed, never held; of few images no covariance is made."""
    held: list[int] = []
    add = Moments.add

    def noted(self: Moments, rows: Tensor) -> None:
        held.append(len(rows))
        add(self, rows)

    monkeypatch.setattr(Moments, "add", noted)
    scored(tmp_path, intra_n_fake=300)
    assert max(held) == 300  # the fakes of one class
    files = sorted(os.path.getsize(p) for p in tmp_path.rglob("*.safetensors"))
    assert len(files) == 3
    assert files[0] < 5 * 8 * 4 + 1000  # the bear: five rows of eight features, float32
    assert files[2] < (8 * 8 + 8 + 1) * 8 + 1000


# --- what goes wrong


def test_labels_that_are_missing_or_others_are_told_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^metric.scores.intra_fid: animals has no class labels in split 'train'"
    ):
        scored(tmp_path, dataset=Animals(labels=False))
    with pytest.raises(DataError, match="split 'test' has other classes than the training images"):
        scored(tmp_path, real_split="test")


def test_an_unconditional_generator_has_no_value(tmp_path: Path) -> None:
    p = protocol()
    net = Ignoring(nn.Sequential(nn.Linear(4, 48), nn.Unflatten(1, (3, 4, 4)), nn.Tanh()))

    def unlabelled(n: int, random: torch.Generator) -> tuple[Tensor, None]:
        return torch.randn(n, 4, generator=random), None

    metrics: dict[str, Metric[Any]] = {"intra_fid": IntraFID(), "fid": FID()}
    e = Evaluator(Tiny(), metrics, p, Animals(), "cpu", tmp_path)
    scores = e.score(*generators(net, unlabelled, p, SMALL))
    assert scores.values["intra_fid_tiny"] is None
    assert scores.values["fid_tiny"] is not None
    assert "max" not in scores.details["intra_fid_tiny"]
    assert scores.warnings == [
        "intra_fid: no value, class 'apple': needs class labels, and this generator is unconditional"
    ]


def test_one_class_without_a_value_leaves_no_mean(tmp_path: Path) -> None:
    class Broken(Painter):
        def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
            assert y is not None
            return super().forward(z, y) / (y != 1)[:, None, None, None]

    scores = scored(tmp_path, Broken(), strict=False)
    assert scores.values == {"intra_fid_tiny": None}
    assert scores.warnings == ["intra_fid: no value, class 'bear': the generator's images are not finite"]
    with pytest.raises(DataError, match=r"^metric.scores.intra_fid: class 'bear': the generator's"):
        scored(tmp_path, Broken())


def test_large_images_are_made_a_few_at_a_time() -> None:
    sizes: list[int] = []

    class Noted(Painter):
        def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
            sizes.append(len(z))
            return super().forward(z, y)

    for side, most, bn in ((64, CHUNK, "running"), (128, 125, "running"), (128, CHUNK, "batch")):
        every, of_class = generators(Noted(), draw_labelled, protocol(bn=bn), ImageShape(3, side, side))
        for generate in (every, of_class(2)):
            sizes.clear()
            assert len(generate(CHUNK, 0, torch.Generator())) == CHUNK
            assert max(sizes) == most


# --- in a run


def test_a_conditional_run_is_scored_by_class_evaluated_again_and_reported(
    tiny: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = Protocol(
        "p", is_n_fake=64, is_splits=1, fid_n_fake=64, batch_size=64, intra_n_fake=20, intra_classes=2
    )
    scores: dict[str, Metric[Any]] = {"fid": FID(), "intra_fid": IntraFID(), "intra_ms_ssim": IntraMSSSIM(10)}

    def make(**changes: Any) -> Experiment:
        net = ResNet(width=0.03, z_dim=4, head="projection")
        parts = {"architecture": net, "dataset": Digits(), "steps": 2, "batch_size": 4, "eval_every": 1}
        return tiny(**parts | {"metric": Scoring(MeanExtractor(), p, scores)} | changes)

    e = make()
    trainer.train(e, {"steps": 2, "seed": 0}, {"dataset": "digits", "architecture": "resnet"}, [])
    last = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]["last"]
    assert set(last["values"]) == {"fid_mean", "intra_fid_mean", "intra_ms_ssim"}
    assert None not in last["values"].values()
    assert last["details"]["intra_fid_mean"]["classes"] == 2
    own = {name: d["protocol_id"] for name, d in last["details"].items()}
    ids = {"fid_mean": last["protocol_id"], **own}
    assert len({*ids.values()}) == 3

    monkeypatch.setattr(evaluate, "open_run", lambda run, *_: (RunFolder(run), make()))
    again = evaluate.evaluate_run(str(tmp_path / "run"), [])
    assert again["values"] == pytest.approx(last["values"])
    assert len(again["details"]["intra_ms_ssim"]["per_class"]) == 2
    read = collect.read(tmp_path / "run", "run")
    by_name = {s.name: s for s in read.scores if s.checkpoint == "last"}
    assert {name: s.protocol_id for name, s in by_name.items()} == ids
    assert {key for key in read.curves if "loss/" not in key[0]} == set(ids.items())
    assert by_name["intra_fid_mean"].protocol["intra_classes"] == 2

    class Fewer(Digits):
        def load(self, *, split: str | None = None) -> SampleSet:
            images = super().load(split=split)
            return dataclasses.replace(images, classes=images.classes[:9], labels=images.labels % 9)

    monkeypatch.setattr(evaluate, "open_run", lambda run, *_: (RunFolder(run), make(dataset=Fewer())))
    with pytest.raises(DataError, match=r"^dataset: digits has 9 classes, the run was made with 10; use"):
        evaluate.evaluate_run(str(tmp_path / "run"), [])
