"""The pass over generated images: bounded memory, two host reads, the same numbers; bf16 kept apart."""

from __future__ import annotations

import gc
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluate import METRICS, Ignoring, Tiny, evaluator, generate, protocol
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ganlab import rng
from ganlab.evaluation import passes
from ganlab.evaluation.generate import CHUNK, SampleGenerator
from ganlab.evaluation.passes import FeaturePass
from ganlab.extractors.base import Extractor
from ganlab.extractors.cifar import CifarExtractor
from ganlab.metrics import base
from ganlab.metrics.base import BLOCK, Fakes, MetricError
from ganlab.metrics.fid import FID
from ganlab.metrics.inception_score import InceptionScore
from ganlab.metrics.protocol import digest
from ganlab.types import Features

COUNTS = {"is_n_fake": 2 * BLOCK + 1300, "fid_n_fake": BLOCK + 700, "is_splits": 7}


def images(n: int, **_: Any) -> Tensor:
    starts = range(0, n, CHUNK)
    return torch.cat([generate(CHUNK, s, rng.generator("cpu", 0, "evaluate", s)) for s in starts])[:n]


# --- the same numbers


@pytest.mark.parametrize("batch_size", [CHUNK, 333])
def test_streamed_scores_are_those_of_all_features_at_once(tmp_path: Path, batch_size: int) -> None:
    e = evaluator(tmp_path, **COUNTS, batch_size=batch_size)
    scores, real = e.score(generate), e.reference()
    parts = [Tiny()(part) for part in images(COUNTS["is_n_fake"]).split(batch_size)]
    whole = Fakes(torch.cat([f.pool for f in parts]), torch.cat([f.logits for f in parts]))
    mean, cov = base.moments(whole.pool[: COUNTS["fid_n_fake"]])
    for name, metric in METRICS.items():
        for value, number in metric(real, whole, e.protocol).items():
            rel = 0 if batch_size == CHUNK else 1e-9  # Tiny's matrix product rounds by the batch
            assert scores.values[f"{value}_tiny"] == pytest.approx(number, rel=rel, abs=0), (name, value)
    root = real.root @ cov @ real.root
    trace = real.cov.trace() + cov.trace() - 2 * torch.linalg.eigvalsh(root).clamp(min=0).sqrt().sum()
    by_hand = float((real.mean - mean).square().sum() + trace)
    assert scores.values["fid_tiny"] == pytest.approx(by_hand, rel=1e-9)


def test_a_split_of_the_score_may_span_blocks_and_blocks_splits() -> None:
    logits = torch.randn(2 * BLOCK + 11, 6, generator=torch.Generator().manual_seed(0)) * 3
    p = protocol(is_n_fake=len(logits), is_splits=3)
    log_p = [part.double().log_softmax(1) for part in logits.tensor_split([3337, 6674])]
    by_hand = [(part.exp() * (part - part.exp().mean(0).log())).sum(1).mean().exp() for part in log_p]
    scores = InceptionScore()(None, Fakes(logits=logits), p)
    assert scores["is"] == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-12)
    with pytest.raises(MetricError, match="needs at least 10011 generated images, there are 9999"):
        InceptionScore()(None, Fakes(logits=logits[:9999]), p)
    logits[7000, 2] = math.nan
    with pytest.raises(MetricError, match="features are not finite"):
        InceptionScore()(None, Fakes(logits=logits), p)


# --- bounded memory


class Watch(TorchDispatchMode):
    """The size of the largest result of any operation, in values, and how often the host read one."""

    largest = reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.reads += func is torch.ops.aten._local_scalar_dense.default
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes() // t.element_size())
        return out


@pytest.mark.parametrize("metrics", [("is", "fid"), ("is", "fid", "kid", "pr")])
def test_memory_does_not_grow_with_the_images(
    tmp_path: Path, metrics: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels of two chunks at most, features of one block; only what KID compares is kept."""
    for module in (base, passes):
        monkeypatch.setattr(module, "BLOCK", 1000)
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = 0

    class Counting(Tiny):
        def __call__(self, images: Tensor) -> Features:
            nonlocal most
            features = super().__call__(images)
            alive.update(features)
            most = max(most, len(alive))
            return features

    def noted(n: int, start: int, random: torch.Generator) -> Tensor:
        nonlocal most
        made = generate(n, start, random)
        alive.add(made)
        most = max(most, len(alive))
        return made

    largest = []
    for n in (4000, 8000):
        most = 0
        chosen = {name: METRICS[name] for name in metrics}
        counts = {"is_n_fake": n, "fid_n_fake": n if metrics == ("is", "fid") else 2000}
        e = evaluator(tmp_path, extractor=Counting(), metrics=chosen, **counts)
        e.reference()
        gc.collect()
        with Watch() as watch:
            assert e.score(noted).warnings == []
        largest.append(watch.largest)
        assert most <= 6, "chunks of pixels, and pieces of pool and logits"
    assert largest[0] == largest[1]
    block, pixels = 1000 * Tiny.feature_dim, CHUNK * 48
    distances = 0 if metrics == ("is", "fid") else 1000 * 2000
    assert largest[0] <= max(block, pixels, distances)


def test_only_what_is_asked_for_is_kept() -> None:
    """A pass yields as many rows of each field as the metrics need, and extracts no other features."""
    for n, n_samples in ((2500, 0), (1200, 700), (0, 2200)):
        extractor = Tiny()
        features = FeaturePass(extractor, 100, torch.device("cpu"), print)
        rows = [
            [len(field) for field in fakes] for fakes in features.blocks(generate, n, 0, n_samples=n_samples)
        ]
        assert [sum(field) for field in zip(*rows, strict=True)] == [n, n, n_samples]
        assert extractor.seen == n
    (fakes,) = features.blocks(generate, 600, 0, n_samples=1300)
    assert torch.equal(fakes.samples, images(1300))
    assert torch.allclose(fakes.pool, extractor(fakes.samples[:600]).pool)


# --- what the host waits for


def constant(value: float) -> Ignoring:
    net = nn.Sequential(nn.Linear(2, 48), nn.Unflatten(1, (3, 4, 4)))
    nn.init.constant_(net[0].weight, value)
    return Ignoring(net)


def made_by(g: nn.Module) -> SampleGenerator:
    return SampleGenerator(g, lambda n, r: (torch.randn(n, 2, generator=r), None), protocol(), 100)


def test_the_host_reads_twice_however_many_images(tmp_path: Path) -> None:
    features = FeaturePass(Tiny(), 100, torch.device("cpu"), print)
    for n in (1000, 3000):
        with Watch() as watch:
            assert sum(len(block.pool) for block in features.blocks(made_by(constant(0.1)), n, 0)) == n
        assert watch.reads == 2


@pytest.mark.parametrize("late", [False, True])
def test_images_that_are_not_finite_end_the_pass(late: bool) -> None:
    g, calls = constant(0.1 if late else math.nan), 0

    class Breaks(nn.Module):
        def forward(self, z: Tensor, y: None) -> Tensor:
            nonlocal calls
            calls += 1
            x: Tensor = g(z, y)
            return x / 0 if calls > 7 else x

    features = FeaturePass(Tiny(), 100, torch.device("cpu"), print)
    made = made_by(Breaks())
    with pytest.raises(MetricError, match="the generator's images are not finite"):
        for _ in features.blocks(made, 2000, 0):
            pass
    assert calls == (20 if late else 5)  # of 100 images each: the whole pass, or its first chunk
    made.settle()  # told once


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_chunks_are_made_ahead_and_the_scores_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    g = constant(0.1).to(device)
    extractor = CifarExtractor()

    def scores() -> dict[str, float | None]:
        e = evaluator(tmp_path, extractor=extractor)
        e.device, e._features = device, FeaturePass(extractor, 250, device, print)
        draw = lambda n, r: (torch.randn(n, 2, generator=r, device=device), None)  # noqa: E731
        return e.score(SampleGenerator(g, draw, protocol(), 100)).values

    overlapped = scores()
    monkeypatch.setattr(passes, "prefetch", lambda make, starts, device: map(make, starts))
    assert overlapped == scores()
    assert None not in overlapped.values()


# --- bfloat16 features


@pytest.fixture(scope="module")
def both() -> tuple[Extractor, Extractor]:
    return CifarExtractor(), CifarExtractor(precision="bf16")


def test_bf16_features_are_near_and_never_called_the_same(
    both: tuple[Extractor, Extractor], tmp_path: Path
) -> None:
    x = torch.nn.functional.interpolate(images(16).float(), size=(32, 32), mode="bicubic")
    x = x.clamp(0, 255).to(torch.uint8)
    exact, rough = (extractor(x) for extractor in both)
    for one, other in zip(exact, rough, strict=True):
        assert other.dtype == torch.float32
        assert 1e-5 < float((one - other).norm() / one.norm()) < 0.05
    assert [e.suffix for e in both] == ["_cifar", "_cifar_bf16"]
    assert both[1].identity() == both[0].identity() | {"precision": "bf16"}
    assert not torch.is_autocast_enabled("cpu")
    counts = {"fid_n_real": 40, "fid_n_fake": 40}
    runs = [evaluator(tmp_path, extractor=e, metrics={"fid": FID()}, **counts) for e in both]
    scores = [e.score(generate) for e in runs]
    assert "fid_cifar_bf16" in scores[1].values
    assert scores[0].values.keys().isdisjoint(scores[1].values)
    assert len({s.protocol_id for s in scores}) == 2
    assert len(list((tmp_path / "reference").glob("*.safetensors"))) == 4  # statistics and a bound each
    assert digest(scores[0].record) == scores[0].protocol_id
    near = scores[0].values["fid_cifar"]
    assert near is not None
    assert scores[1].values["fid_cifar_bf16"] == pytest.approx(near, rel=0.05)
