"""The Inception extractor with random weights in a file: against torch-fidelity, and how the file is had."""

from __future__ import annotations

import functools
import os
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_evaluate import Noise
from torch import Tensor

from ganlab.data.base import SampleSet
from ganlab.data.fingerprint import fingerprint
from ganlab.errors import EnvError, GanlabError
from ganlab.evaluation import evaluator, generate, passes
from ganlab.extractors import inception
from ganlab.extractors.inception import FILE, Inception
from ganlab.metrics.fid import FID
from ganlab.metrics.inception_score import InceptionScore
from ganlab.metrics.kid import KID
from ganlab.metrics.protocol import Protocol
from ganlab.system import download

N = 10


def pictures(seed: int, n: int = N, side: int = 32) -> Tensor:
    """Smooth random colour images, uint8 (n, 3, side, side)."""
    g = torch.Generator().manual_seed(seed)
    small = torch.rand(n, 3, 5, 5, generator=g) * (0.5 + 0.5 * torch.rand(n, 1, 1, 1, generator=g))
    return (
        (torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic") * 255).clamp(0, 255).byte()
    )


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of random weights whose batch norms suit them, so that features differ from image to image."""
    module = inception.port()
    kind = module.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_state_dict_from_url", lambda *a, **k: {})
        patch.setattr(kind, "load_state_dict", lambda self, state: None)
        net = kind("random", list(inception.LAYERS))
    g = torch.Generator().manual_seed(0)
    for m in net.modules():
        if isinstance(m, torch.nn.Conv2d):
            m.weight.normal_(0, (2 / m.weight[0].numel()) ** 0.5, generator=g)
        if isinstance(m, torch.nn.BatchNorm2d):
            m.momentum = 1.0
    net.fc.weight.normal_(0, 0.1, generator=g)
    net.train()(pictures(99, 8))
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(net.state_dict(), path)
    return path


@pytest.fixture
def official(weights: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The random file plays the official one; both places are empty folders."""
    checksum = download.sha256(weights)
    monkeypatch.setattr(inception, "SHA256", checksum)
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(inception, "build", lambda content, path: torch.nn.Identity())
    return checksum


def own(path: Path, **options: Any) -> Inception:
    """With a file that is trusted by its sum."""
    return Inception(weights=str(path), sha256=download.sha256(path), **options)


def line(error: pytest.ExceptionInfo[GanlabError]) -> str:
    (mistake,) = error.value.mistakes
    return str(mistake)


# --- the numbers


class Plain(torch.utils.data.Dataset[Tensor]):
    """Images as torch-fidelity wants them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[i]


class Fixed(Noise):
    """A dataset of given images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images.numpy()

    def load(self, *, split: str | None = None) -> SampleSet:
        return SampleSet(self.images, None, [], fingerprint(self.images, None), self.name, "train")


def off(mine: Tensor, wanted: Tensor) -> float:
    """Relative distance."""
    return float((mine - wanted).norm() / wanted.norm())


def test_features_equal_torch_fidelity_in_every_batch_size(weights: Path) -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    theirs = FeatureExtractorInceptionV3(
        "x", list(inception.LAYERS), feature_extractor_weights_path=str(weights)
    )
    before = torch.get_rng_state()
    ours = own(weights)
    x = torch.cat([pictures(1, 2), pictures(2, 1, 48)[:, :, :32, :32]])
    last: list[bool] = []  # whether convolutions see and make channels last

    def note(_: object, inputs: tuple[Tensor], out: Tensor) -> None:
        last.extend(t.is_contiguous(memory_format=torch.channels_last) for t in (inputs[0], out))

    convolutions = [m for m in ours._load().modules() if isinstance(m, torch.nn.Conv2d)]
    hooks = [m.register_forward_hook(note) for m in convolutions]
    pool, logits = ours(x)
    [hook.remove() for hook in hooks]
    assert last == [True] * 2 * 94
    assert torch.equal(torch.get_rng_state(), before)
    assert (pool.shape, logits.shape) == ((3, 2048), (3, 1008))
    assert pool.dtype == logits.dtype == torch.float32
    with torch.no_grad():
        want_pool, want_logits = theirs(x)
    assert float(want_pool.std(0).mean()) > 0.1  # the features do tell the images apart
    alone = torch.cat([ours(x[i : i + 1]).pool for i in range(2)])
    for mine, wanted in ((pool, want_pool), (logits, want_logits), (alone, pool[:2])):
        assert (
            off(mine, wanted) < 3e-5
        )  # random weights amplify rounding: channels last sums in another order
    assert ours.identity() == {
        "name": "inception",
        "weights": download.sha256(weights),
        "weights_official": False,
        "layer": "2048+logits_unbiased",
        "resize": "tf1-bilinear-299",
    }
    with pytest.raises(ValueError, match=r"takes uint8 images \(B, 3, H, W\)"):
        ours(x.float())


@pytest.mark.parametrize("size", [(32, 32), (48, 48), (1, 5), (299, 300), (333, 64)])
def test_the_resize_is_torch_fidelitys_bit_for_bit(size: tuple[int, int]) -> None:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    x = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = interpolate_bilinear_2d_like_tensorflow1x(x.float(), (299, 299), align_corners=False)
    ours = inception.resized(x)
    assert torch.equal(ours, theirs)
    assert ours.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_scores_equal_torch_fidelity_end_to_end(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch_fidelity

    real, fake = pictures(3), pictures(4)[:, [2, 0, 1]] // 2
    theirs = torch_fidelity.calculate_metrics(
        input1=Plain(fake), input2=Plain(real), isc=True, fid=True, kid=True, cuda=False, cache=False,
        verbose=False, isc_splits=2, kid_subsets=2, kid_subset_size=N, samples_shuffle=False,
        save_cpu_ram=True, batch_size=N, feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    for module in (evaluator, generate, passes):
        monkeypatch.setattr(module, "CHUNK", N)
    metrics = {"is": InceptionScore(), "fid": FID(), "kid": KID()}
    ours = []
    extractor = own(weights)
    for batch_size in (N, 3):  # KID subsets of all images: the order in them does not matter
        p = Protocol("t", N, N, is_splits=2, kid_subsets=2, kid_subset_size=N, batch_size=batch_size)
        e = evaluator.Evaluator(extractor, metrics, p, Fixed(real), "cpu", tmp_path)
        ours.append(e.score(lambda n, start, random: fake))
    for mine, name in {
        "is": "inception_score_mean",
        "is_std": "inception_score_std",
        "fid": "frechet_inception_distance",
        "kid": "kernel_inception_distance_mean",
    }.items():
        assert abs(theirs[name]) > 1e-3, name
        for scores in ours:
            # a spread of nearly equal splits: 1e-4 of the score itself
            near = {"abs": 1e-4 * theirs["inception_score_mean"]} if mine == "is_std" else {"rel": 1e-4}
            assert scores.values[mine] == pytest.approx(theirs[name], **near), name
    assert ours[0].values["fid"] == pytest.approx(ours[1].values["fid"], rel=1e-5)
    assert ours[0].protocol_id == ours[1].protocol_id
    assert ours[0].record["extractor"]["weights_official"] is False
    assert ours[0].warnings == ours[1].warnings == []


# --- the file: what is wrong with it


def test_a_wrong_file_is_refused_before_training(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvError) as e:
        Inception(weights=str(tmp_path / "none.pth")).check()
    assert line(e).startswith("metric.weights: ")
    assert "No such file" in line(e)
    assert "metric.extractor=cifar" in line(e)
    truncated = tmp_path / "half.pth"
    truncated.write_bytes(weights.read_bytes()[:1_000_000])
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(3)}, other)
    evil = tmp_path / "evil.pth"
    torch.save({"fc.weight": functools.partial(print, "unpickled")}, evil)
    for path in (truncated, other, evil):
        with pytest.raises(EnvError) as e:
            own(path).check()
        assert line(e).startswith(f"{path}: not weights of the 2015 Inception network (")
        assert f"give {FILE} (95.6 MB, sha256 6726825d...)" in line(e)
        assert "\n" not in line(e)


def test_torch_never_sees_a_file_whose_sum_is_another(
    weights: Path, official: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In torch hub's folder, in the cache, at a path of the user's: the sum is compared before anything."""
    seen: list[Path] = []
    monkeypatch.setattr(inception, "build", lambda content, path: seen.append(path) or torch.nn.Identity())
    damaged = tmp_path / "wrong.pth"
    damaged.write_bytes(weights.read_bytes()[:-1] + b"x")
    for place in inception.places():
        place.parent.mkdir(parents=True)
        shutil.copy(damaged, place)
        with pytest.raises(EnvError, match="damaged or another file") as e:
            Inception(download=False).check()
        assert (e.value.code, line(e).split(":")[0]) == (5, str(place))
        assert f"{download.sha256(damaged)[:16]}..., expected {official[:16]}..." in line(e)
        place.unlink()
    for extractor in (Inception(weights=str(damaged)), Inception(weights=str(damaged), sha256=official)):
        with pytest.raises(
            EnvError, match=r"expected .*; give .*, or set metric\.extractor\.sha256 to its sum"
        ):
            extractor.check()
    pipe = tmp_path / "pipe.pth"
    os.mkfifo(pipe)
    with pytest.raises(EnvError, match=r"metric\.weights: .*pipe\.pth: not a regular file"):
        Inception(weights=str(pipe)).check()
    assert seen == []
    own(damaged).check()
    Inception(weights=str(weights)).check()  # the official one needs no word
    assert seen == [damaged, weights]
    for text in ("abc", official.upper(), official + "0"):
        with pytest.raises(ValueError, match=r"sha256: .* is not 64 digits"):
            Inception(weights=str(damaged), sha256=text)
    with pytest.raises(ValueError, match="without weights"):
        Inception(sha256=official)


def test_compressed_weights_are_refused_before_torch_unpacks_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, packed = tmp_path / "plain.pth", tmp_path / "packed.pth"
    torch.save({"a": torch.zeros(1_000_000)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert torch.load(packed, weights_only=True)["a"].numel() == 1_000_000  # torch would
    seen: list[object] = []
    monkeypatch.setattr(torch, "load", lambda *a, **_: seen.append(a))
    with pytest.raises(EnvError, match=r"not weights of the 2015 Inception network .its entries are compr"):
        Inception(weights=str(packed), sha256=download.sha256(packed)).check()
    assert seen == []


def test_offline_says_what_to_fetch_and_where_to_put_it(
    official: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EnvError) as e:
        Inception(download=False).check()
    assert e.value.code == 5
    for part in (FILE, "95.6 MB", official[:8], str(tmp_path / "cache" / "weights"), "metric.weights=PATH"):
        assert part in line(e)
    assert "metric.extractor=cifar" in line(e)
    monkeypatch.setenv("GANLAB_OFFLINE", "1")
    with pytest.raises(EnvError, match="is not here, GANLAB_OFFLINE is set; put it into"):
        Inception().check()
    assert not (tmp_path / "cache").exists()
