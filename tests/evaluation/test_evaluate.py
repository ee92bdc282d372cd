"""The evaluator with a tiny extractor: one pass, no trace, references cached by content, failures told."""

from __future__ import annotations

import gc
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganlab import rng
from ganlab.data.base import Dataset, SampleSet
from ganlab.data.fingerprint import fingerprint
from ganlab.errors import DataError, EnvError, Stopped
from ganlab.evaluation.evaluator import Evaluator
from ganlab.evaluation.generate import CHUNK, Generate, SampleGenerator, evaluating
from ganlab.evaluation.reference_stats import IN_MEMORY, rows_of
from ganlab.experiment import Experiment, Scoring
from ganlab.extractors.base import Extractor, check_images
from ganlab.metrics.base import Accumulator, Collected, Fakes, Metric, moments
from ganlab.metrics.fid import FID
from ganlab.metrics.inception_score import InceptionScore
from ganlab.metrics.kid import KID
from ganlab.metrics.precision_recall import PrecisionRecall
from ganlab.metrics.protocol import Protocol, digest
from ganlab.samples.images import quantize
from ganlab.training.prepare import prepare
from ganlab.types import Features


class Tiny(Extractor):
    """A fixed random projection of the pixels; counts its images; has memory for ``room`` of them."""

    name, suffix, feature_dim, num_classes = "tiny", "_tiny", 8, 5

    def __init__(self, weights: str = "w0", room: int = 10**9) -> None:
        self.weights, self.room, self.seen = weights, room, 0
        g = torch.Generator().manual_seed(len(weights))
        self.matrix = torch.randn(3 * 16, 13, generator=g) / 7

    def identity(self) -> dict[str, str | int | float]:
        return {"name": self.name, "weights": self.weights, "layer": "all"}

    def check(self) -> None:
        if self.weights == "missing":
            raise EnvError("metric.weights", "missing")

    def to(self, device: torch.device | str) -> Self:
        return self

    def __call__(self, images: Tensor) -> Features:
        check_images(images)
        if len(images) > self.room:
            raise torch.OutOfMemoryError("no room")
        self.seen += len(images)
        out = (images.float() / 255).flatten(1) @ self.matrix
        return Features(out[:, :8].relu(), out[:, 8:] * 4)


class Noise(Dataset):
    """``n`` random 4x4 images in split "train", 120 in "test"."""

    name, split, resolution = "noise", "train", 4

    def __init__(self, n: int = 300, channels: int = 3, seed: int = 0) -> None:
        self.n, self.channels, self.seed = n, channels, seed

    def splits(self) -> tuple[str, ...]:
        return ("train", "test")

    def load(self, *, split: str | None = None) -> SampleSet:
        split = self.resolve_split(split)
        n = self.n if split == "train" else 120
        shape = (n, self.channels, 4, 4)
        images = np.random.default_rng([self.seed, n]).integers(0, 256, shape, dtype=np.uint8)
        return SampleSet(images, None, [], fingerprint(images, None), self.name, split)


def protocol(**changes: Any) -> Protocol:
    counts = {"is_n_fake": 700, "is_splits": 2, "fid_n_fake": 600, "kid_subsets": 3, "kid_subset_size": 50}
    return Protocol(**({"name": "t"} | counts | changes))


METRICS: dict[str, Metric[Any]] = {
    "is": InceptionScore(),
    "fid": FID(),
    "kid": KID(),
    "pr": PrecisionRecall(),
}


def evaluator(cache: Path, **changes: Any) -> Evaluator:
    parts: dict[str, Any] = {"extractor": Tiny(), "metrics": METRICS, "dataset": Noise(), "progress": None}
    parts |= {k: changes.pop(k) for k in parts if k in changes}
    return Evaluator(**parts, protocol=protocol(**changes), device="cpu", cache_dir=cache)


def generate(n: int, start: int, random: torch.Generator) -> Tensor:
    """Darker noise."""
    return torch.randint(0, 200, (n, 3, 4, 4), generator=random, dtype=torch.uint8)


# --- the numbers


def test_values_are_those_of_the_metrics_on_the_first_fakes(tmp_path: Path) -> None:
    calls = []

    def noted(n: int, start: int, random: torch.Generator) -> Tensor:
        calls.append((n, start))
        return generate(n, start, random)

    e = evaluator(tmp_path)
    e.check()
    scores = e.score(noted, step=7)
    assert calls == [(CHUNK, 0), (CHUNK, CHUNK)]
    assert (scores.step, scores.warnings) == (7, [])
    assert set(scores.values) == {
        f"{k}_tiny" for k in ("is", "is_std", "fid", "kid", "kid_std", "precision", "recall")
    }
    images = torch.cat([generate(n, s, rng.generator("cpu", 0, "evaluate", s)) for n, s in calls])
    assert isinstance(e.extractor, Tiny)
    assert e.extractor.seen == 700 + 300
    features = e.extractor(images)
    score = InceptionScore()(None, Fakes(logits=features.logits), e.protocol)
    assert scores.values["is_tiny"] == pytest.approx(score["is"], rel=1e-6)
    real, fake = e.reference(), moments(features.pool[:600])
    cross = float(np.sqrt(np.linalg.eigvals(real.cov.numpy() @ fake[1].numpy()).clip(0)).real.sum())
    fid = float((real.mean - fake[0]).square().sum() + real.cov.trace() + fake[1].trace()) - 2 * cross
    assert scores.values["fid_tiny"] == pytest.approx(fid, rel=1e-6)
    assert e.better == {
        "is_tiny": "higher", "fid_tiny": "lower", "kid_tiny": "lower", "precision_tiny": "higher",
        "recall_tiny": "higher",
    }  # fmt: skip


def test_the_record_holds_what_moves_the_numbers(tmp_path: Path) -> None:
    e = evaluator(tmp_path)
    record = e.record()
    images = e.images
    assert record["dataset_fingerprint"] == images.fingerprint
    assert (record["dataset"], record["real_split"], record["fid_n_real"]) == ("noise", "train", 300)
    assert record["extractor"] == {"name": "tiny", "weights": "w0", "layer": "all"}
    assert record["options"] == {"pr": {"neighbours": 3, "n": 10_000}}
    kept = {"generator": "raw", "quantize": "round", "bn": "running", "seed": 0}
    assert record | kept == record
    others = [
        e.record("ema"),
        evaluator(tmp_path, extractor=Tiny("w1")).record(),
        evaluator(tmp_path, dataset=Noise(seed=1)).record(),
        evaluator(tmp_path, real_split="test").record(),
        evaluator(tmp_path, fid_n_real=299).record(),
    ]
    assert len({digest(r) for r in [record, *others]}) == 6
    assert digest(evaluator(tmp_path, fid_n_real=300, real_split="train").record()) == digest(record)


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    before = torch.get_rng_state()
    e = evaluator(tmp_path)
    first = e.score(generate)
    assert torch.equal(torch.get_rng_state(), before)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == flags
    assert torch.is_grad_enabled()
    assert e.score(generate).values == first.values
    seen: list[tuple[str, int, int]] = []
    evaluator(tmp_path / "new", progress=lambda *told: seen.append(told)).score(generate)
    assert ("real", 300, 300) in seen
    assert seen[-1] == ("fake", 700, 700)


# --- reference statistics


def extracted(cache: Path, **changes: Any) -> tuple[int, list[str], dict[str, float | None]]:
    """Real images that an evaluation extracts in a process of its own, its warnings and its values."""
    IN_MEMORY.clear()
    e = evaluator(cache, **changes)
    scores = e.score(generate)
    assert isinstance(e.extractor, Tiny)
    return e.extractor.seen - 700, scores.warnings, scores.values


def test_evaluators_share_the_statistics_that_one_of_them_holds(tmp_path: Path) -> None:
    one, other = evaluator(tmp_path), evaluator(tmp_path, is_n_fake=600, seed=3)
    assert one.reference() is other.reference()
    assert evaluator(tmp_path, fid_n_real=200).reference() is not one.reference()
    again = evaluator(tmp_path, extractor=Tiny())
    del one, other
    gc.collect()
    assert again.reference().n == 300  # read from the file
    assert isinstance(again.extractor, Tiny)
    assert again.extractor.seen == 0


def test_references_are_cached_by_content(tmp_path: Path) -> None:
    assert extracted(tmp_path)[0] == 300
    files = sorted(p.suffix for p in (tmp_path / "reference").iterdir())
    assert files == [".json"] * 2 + [".lock"] + [".safetensors"] * 2  # statistics, and the bound of FID
    assert extracted(tmp_path)[0] == 0
    assert extracted(tmp_path, batch_size=3, is_n_fake=700, kid_subsets=2)[0] == 0
    assert extracted(tmp_path, extractor=Tiny("w1"))[0] == 300  # other weights
    assert extracted(tmp_path, dataset=Noise(seed=1))[0] == 300  # other images of the same name
    assert extracted(tmp_path, fid_n_real=200)[0] == 200
    assert extracted(tmp_path, fid_n_real=200, seed=1)[0] == 200  # another draw
    assert extracted(tmp_path, fid_n_real=200, seed=1)[0] == 0
    assert extracted(tmp_path, seed=5)[0] == 0  # all images: nothing is drawn
    assert extracted(tmp_path, real_split="test")[0] == 120


@pytest.mark.parametrize("harm", ["flip", "cut", "swap"])
def test_a_damaged_cache_is_noticed_and_repaired(tmp_path: Path, harm: str) -> None:
    def largest(cache: Path) -> Path:
        return max((cache / "reference").glob("*.safetensors"), key=lambda p: p.stat().st_size)

    _, _, values = extracted(tmp_path)
    extracted(tmp_path / "b", dataset=Noise(seed=1))
    path, other = largest(tmp_path), largest(tmp_path / "b").read_bytes()
    data = path.read_bytes()
    flipped = data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
    path.write_bytes({"flip": flipped, "cut": data[: len(data) // 2], "swap": other}[harm])
    n, (warning,), again = extracted(tmp_path)
    assert (n, again) == (300, values)
    assert str(path) in warning
    assert extracted(tmp_path)[:2] == (0, [])


def test_a_cache_that_can_not_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    n, warnings, values = extracted(tmp_path / "file")
    assert n == 300
    assert len(warnings) == 1
    assert "reference statistics are not cached" in warnings[0]
    assert None not in values.values()


def test_many_runs_compute_a_reference_once(tmp_path: Path) -> None:
    extractor = Tiny()
    parts = [evaluator(tmp_path, extractor=extractor) for _ in range(4)]
    threads = [threading.Thread(target=e.reference, args=(lambda: None,)) for e in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert extractor.seen == 300
    assert all(torch.equal(e.reference().root, parts[0].reference().root) for e in parts)


def test_the_reference_holds_the_drawn_images(tmp_path: Path) -> None:
    e = evaluator(tmp_path, fid_n_real=100, kid_n_real=60, batch_size=7)
    real, images = e.reference(), e.images
    rows = rows_of(100, 300, 0, 0)
    assert rows.tolist() == sorted(set(rows.tolist())) == rows_of(100, 300, 0, 0).tolist()
    assert rows.tolist() != rows_of(100, 300, 4, 0).tolist(), "of another seed"
    assert rows_of(300, 300, 3, 0).tolist() == list(range(300))
    pool = e.extractor(torch.from_numpy(images.images[rows.numpy()])).pool
    torch.testing.assert_close(real.mean, pool.double().mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(real.cov, torch.cov(pool.double().T), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(real.root @ real.root, real.cov, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(real.pool, pool[rows_of(60, 100, 0, 1)])
    assert real.n == 100


# --- what goes wrong


def test_all_impossible_counts_are_told_at_once_before_training(tmp_path: Path) -> None:
    e = evaluator(tmp_path, dataset=Noise(n=30), fid_n_real=10_000)
    with pytest.raises(DataError) as error:
        e.check()
    assert error.value.code == 3
    assert [str(m) for m in error.value.mistakes] == [
        "metric.protocol.fid_n_real: t compares with 10000 images of split 'train', noise has 30; "
        "set it to at most 30 or 0 (all), or choose another metric.protocol",
        "metric.scores.kid: kid_subset_size=50 needs at least 50 reference images, not 30; "
        "choose another metric.protocol, or leave this metric out",
    ]
    evaluator(tmp_path, dataset=Noise(n=30), fid_n_real=10_000, metrics={"is": InceptionScore()}).check()


def test_what_both_protocols_of_a_run_ask_is_told_at_once(tiny: Callable[..., Experiment]) -> None:
    few = [protocol(name=n, fid_n_real=r) for n, r in (("end", 10_000), ("way", 9000))]
    scoring = Scoring(Tiny(), few[0], {"fid": FID()}, progress=few[1])
    with pytest.raises(DataError) as error:
        prepare(tiny(metric=scoring))
    messages = [str(m) for m in error.value.mistakes]
    assert len(messages) == 2
    assert "way compares with 9000" in messages[0]
    assert "end compares" in messages[1]


def test_a_metric_that_needs_what_the_extractor_lacks_is_refused_by_name() -> None:
    class NoLogits(Tiny):
        num_classes = 0

    with pytest.raises(
        ValueError, match=r"^scores\.is: needs class logits, which .* tiny does not have; .*$"
    ):
        Scoring(NoLogits(), protocol(), {"is": InceptionScore(), "fid": FID()})
    assert Scoring(NoLogits(), protocol(), {"fid": FID(), "kid": KID()}).scores


def test_a_split_that_is_not_there_and_odd_channels(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"^metric.protocol.real_split: t compares with split 'val', which noise lacks; "
    ):
        evaluator(tmp_path, real_split="val").check()
    with pytest.raises(DataError, match="need grayscale or RGB images"):
        evaluator(tmp_path, dataset=Noise(channels=2)).check()
    with pytest.raises(EnvError):
        evaluator(tmp_path, extractor=Tiny("missing")).check()


def test_no_value_is_null_with_a_reason_and_an_error_if_asked(tmp_path: Path) -> None:
    class Odd(Metric[None]):
        names, better, needs = ("odd", "odd_std"), "lower", frozenset({"features"})

        def n_fake(self, protocol: Protocol) -> int:
            return 10

        def start(self, real: None, protocol: Protocol) -> Accumulator:
            return Collected("pool", 10, lambda pool: {"odd": math.inf, "odd_std": 0.0})

    e = evaluator(tmp_path, metrics={"odd": Odd(), "fid": FID()})
    scores = e.score(generate)
    assert scores.values["odd_tiny"] is scores.values["odd_std_tiny"] is None
    assert scores.values["fid_tiny"] is not None
    assert scores.warnings == ["odd: no value, not finite: {'odd': inf, 'odd_std': 0.0}"]
    e.metrics["odder"] = Odd()
    with pytest.raises(DataError, match=r"^metric.scores.odd: not finite: .*\n.*odder: not finite: .*$"):
        e.score(generate, strict=True)
    del e.metrics["odder"]
    assert e.score(generate).warnings == scores.warnings  # not heaped up


def test_a_signal_aborts_between_batches_and_leaves_nothing(tmp_path: Path) -> None:
    def after(n: int) -> Callable[[], None]:
        left = iter(range(n))

        def poll() -> None:
            if next(left, None) is None:
                raise Stopped(15)

        return poll

    for n in (1, 4):  # among the real images, among the fakes
        e = evaluator(tmp_path, batch_size=100)
        with pytest.raises(Stopped):
            e.score(generate, poll=after(n))
        assert isinstance(e.extractor, Tiny)
        assert e.extractor.seen == 100 * n
        assert len(list((tmp_path / "reference").glob("*.safetensors"))) == (n > 3)
        assert torch.is_grad_enabled()


# --- generated images


class Ignoring(nn.Module):
    """A network called as G is: ``g(z, y)``."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, z: Tensor, y: Tensor | None) -> Tensor:
        out = self.net(z)
        assert isinstance(out, Tensor)
        return out


def test_bytes_by_hand() -> None:
    x = torch.tensor([-2.0, -1.0, -0.996, 0.0, 0.5, 0.999, 1.0, 3.0])
    assert quantize(x, "round").tolist() == [0, 0, 1, 128, 191, 255, 255, 255]
    assert quantize(x, "truncate").tolist() == [0, 0, 0, 127, 191, 254, 255, 255]
    assert quantize(x, "bins").tolist() == [0, 0, 0, 127, 191, 255, 255, 255]


def test_bins_undo_the_dequantisation_and_truncation_loses_half_a_level() -> None:
    """WGAN-GP's code trains on pixel k as k / 128 - 1 + U(0, 1/128), and its scores decode that as k."""
    k = torch.arange(256)
    middle = (k + 0.5) / 128 - 1  # of what the pixel becomes
    assert torch.equal(quantize(middle, "bins").long(), k)
    lost = k - quantize(middle, "truncate").long()
    assert torch.equal(lost, (k > 127).long()), "(k + 0.5) * 255 / 256 < k from 128 on"


def make(seed: int = 0) -> Ignoring:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(4, 48), nn.BatchNorm1d(48), nn.Unflatten(1, (3, 4, 4)), nn.Tanh())
    g = Ignoring(net)
    g(torch.randn(64, 4) * 2 + 1, None)
    return g


def drawn(g: nn.Module, bn: str, batch_size: int = CHUNK) -> Tensor:
    def draw(n: int, random: torch.Generator) -> tuple[Tensor, None]:
        return torch.randn(n, 4, generator=random), None

    made: Generate = SampleGenerator(g, draw, protocol(bn=bn), batch_size)
    return made(CHUNK, 0, torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("bn", "training"), [("running", True), ("batch", False)])
def test_fakes_leave_g_as_it_was(bn: str, training: bool) -> None:
    g = make().train(training)
    g.net[0].eval()  # type: ignore[index]
    before = {k: v.clone() for k, v in g.state_dict().items()}
    images = drawn(g, bn)
    assert images.shape == (CHUNK, 3, 4, 4)
    assert images.dtype == torch.uint8
    assert g.state_dict().keys() == before.keys()
    assert all(torch.equal(v, before[k]) for k, v in g.state_dict().items())
    assert [m.training for m in g.modules()] == [training, training, False, training, training, training]
    with torch.no_grad():
        z = torch.randn(CHUNK, 4, generator=torch.Generator().manual_seed(1))
        want = quantize((g.train() if bn == "batch" else g.eval())(z, None))
    assert int((images.int() - want.int()).abs().max()) <= 1


def test_fakes_do_not_depend_on_the_batch_size_and_bn_modes_differ() -> None:
    g = make()
    assert int((drawn(g, "running").int() - drawn(g, "running", 33).int()).abs().max()) <= 1
    assert torch.equal(drawn(g, "batch"), drawn(g, "batch", 33))
    assert not torch.equal(drawn(g, "batch"), drawn(g, "running"))


def test_modes_come_back_after_an_error() -> None:
    g = make().train()
    with pytest.raises(KeyError), evaluating(g, "batch"):
        raise KeyError
    assert all(m.training for m in g.modules())
    assert g.net[1].running_mean is not None  # type: ignore[index]
