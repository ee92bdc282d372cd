"""The built-in feature network: the packaged file, its values, its errors, and the script that trains it."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ganlab.errors import EnvError
from ganlab.extractors import cifar
from ganlab.extractors.base import exact_fp32
from ganlab.extractors.cifar import CifarExtractor, FeatureNet, normalized
from ganlab.rng import generator

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT.parent / "shared" / "data" / "cifar10-jpeg.tar.xz"
real_data = pytest.mark.skipif(not ARCHIVE.is_file(), reason="no cifar10-jpeg.tar.xz in ../shared/data")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_feature_net", ROOT / "scripts/train_feature_net.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def extractor() -> CifarExtractor:
    return CifarExtractor()


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, generator=generator("cpu", seed, "samples")).byte()


def save_random(path: Path, widths: tuple[int, ...] = (4, 8, 8, 256)) -> Path:
    save_file({k: v.half() for k, v in FeatureNet(widths).state_dict().items()}, path)
    return path


def one_line(error: EnvError, file: Path) -> str:
    text = str(error)
    assert error.code == 5
    assert "\n" not in text
    assert text.startswith(str(file))
    assert ";" in text, "a fix is given"
    return text


# The packaged file


def test_packaged_file() -> None:
    about = json.loads(cifar.WEIGHTS.with_suffix(".json").read_text())
    content = cifar.WEIGHTS.read_bytes()
    assert len(content) == about["bytes"] <= 4_000_000
    assert hashlib.sha256(content).hexdigest() == about["sha256"]
    assert 0.90 <= about["test_accuracy"] <= 1
    assert about["test_images"] == 10_000
    assert about["data_sha256"] == "fe407b96fcdb6358a48b8079a7d7bec5f4a0f58299246b5461a103533589cfb3"
    assert {"data", "recipe", "seed", "epochs", "torch", "date"} <= about.keys()


def test_features_of_any_size(extractor: CifarExtractor) -> None:
    for shape in ((2, 3, 48, 48), (1, 3, 20, 90), (2, 1, 32, 32), (1, 3, 1, 1)):
        pool, logits = extractor(noise(*shape))
        assert pool.shape == (shape[0], extractor.feature_dim) == (shape[0], 256)
        assert logits.shape == (shape[0], extractor.num_classes) == (shape[0], 10)
        assert pool.dtype == logits.dtype == torch.float32
        assert not pool.requires_grad
        assert bool(pool.isfinite().all())


def test_batch_size_layout_mirroring_and_repeated_grey_do_not_matter(extractor: CifarExtractor) -> None:
    images = noise(9, 3, 32, 32)
    together = extractor(images)
    parts = [extractor(part) for part in images.split(4)]
    for whole, pieces in zip(together, zip(*parts, strict=True), strict=True):
        assert float((whole - torch.cat(pieces)).abs().max()) <= 1e-5
    for plain, mirrored in zip(together, extractor(images.flip(3)), strict=True):
        assert torch.allclose(plain, mirrored, rtol=0, atol=1e-5), "a mirror image is the same"
    assert torch.equal(extractor(images[:, :1]).pool, extractor(images[:, :1].expand(-1, 3, -1, -1)).pool)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.allclose(extractor(strided).pool, together.pool, rtol=0, atol=1e-5)


def test_other_images_are_refused(extractor: CifarExtractor) -> None:
    for images in (noise(2, 3, 32, 32).float(), noise(3, 32, 32), noise(2, 4, 32, 32), noise(2, 2, 32, 32)):
        with pytest.raises(ValueError, match="uint8 images"):
            extractor(images)


# Preparation and precision


def test_normalised_by_hand() -> None:
    x = normalized(torch.full((1, 3, 32, 32), 188, dtype=torch.uint8))
    wanted = torch.tensor([(188 - 125.3) / 63.0, (188 - 123.0) / 62.1, (188 - 113.9) / 66.7])
    assert torch.allclose(x[0, :, 5, 7], wanted, atol=1e-6)
    constant = torch.full((1, 3, 77, 50), 188, dtype=torch.uint8)
    assert torch.allclose(normalized(constant), x, atol=1e-4)


def test_shrinking_is_antialiased() -> None:
    # One-pixel stripes are finer than 32 pixels can show: their mean is left, not one of the two values.
    stripes = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    stripes[..., ::2] = 255
    mean, std = torch.tensor(cifar.MEAN), torch.tensor(cifar.STD)
    pixels = normalized(stripes)[0, :, 16, 16] * std + mean
    assert torch.allclose(pixels, torch.full((3,), 127.5), atol=1.0)


def test_autocast_grad_mode_and_flags_do_not_matter_and_stay(extractor: CifarExtractor) -> None:
    images = noise(4, 3, 32, 32)
    plain = extractor(images)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True  # conftest resets both
    with torch.enable_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = extractor(images)
        with exact_fp32():
            assert not torch.is_grad_enabled()
            assert not torch.backends.cudnn.benchmark
        with pytest.raises(ZeroDivisionError), exact_fp32():
            1 / 0  # noqa: B018
        assert torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cudnn.benchmark
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.equal(plain.pool, inside.pool)
    assert torch.equal(plain.logits, inside.logits)


# Identity and errors


def test_identity_is_plain_and_follows_the_weights(extractor: CifarExtractor, tmp_path: Path) -> None:
    identity = extractor.identity()
    assert all(isinstance(value, (str, int, float)) for value in identity.values())
    assert identity["weights"] == hashlib.sha256(cifar.WEIGHTS.read_bytes()).hexdigest()
    other = CifarExtractor(str(save_random(tmp_path / "other.safetensors"))).identity()
    assert {key for key in identity if identity[key] != other[key]} == {"weights"}


def test_construction_is_lazy_and_checked(tmp_path: Path) -> None:
    missing = tmp_path / "none.safetensors"
    extractor = CifarExtractor(str(missing))
    for use in (extractor.check, extractor.identity, lambda: extractor(noise(1, 3, 32, 32))):
        with pytest.raises(EnvError) as e:
            use()
        assert "metric.weights" in one_line(e.value, missing)
    with pytest.raises(ValueError, match="weights: 3"):
        CifarExtractor(3)  # type: ignore[arg-type]


def test_unsuitable_weights(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"\x00" * 100)
    other = tmp_path / "other.safetensors"
    save_file({"w": torch.zeros(3)}, other)
    narrow = save_random(tmp_path / "narrow.safetensors", (4, 8, 16))
    cut = save_random(tmp_path / "cut.safetensors")
    cut.write_bytes(cut.read_bytes()[:-10])
    reasons = {garbage: "not weights", other: "not weights", cut: "not weights", narrow: "16 features"}
    for path, what in reasons.items():
        with pytest.raises(EnvError) as e:
            CifarExtractor(str(path)).check()
        assert what in one_line(e.value, path)
    with pytest.raises(EnvError) as e:
        CifarExtractor(str(tmp_path)).check()
    one_line(e.value, tmp_path)


def test_damaged_packaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / cifar.WEIGHTS.name
    shutil.copy(cifar.WEIGHTS, copy)
    shutil.copy(cifar.WEIGHTS.with_suffix(".json"), tmp_path)
    monkeypatch.setattr(cifar.CifarExtractor, "packaged_weights", copy)
    CifarExtractor().check()
    content = bytearray(copy.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    with pytest.raises(EnvError) as e:
        CifarExtractor().check()
    assert "damaged" in one_line(e.value, copy)
    about = copy.with_suffix(".json")
    about.write_text("[]")
    with pytest.raises(EnvError) as e:
        CifarExtractor().check()
    assert "reinstall" in one_line(e.value, about)
    about.unlink()  # the packaged file is not used unverified
    with pytest.raises(EnvError) as e:
        CifarExtractor().check()
    one_line(e.value, about)


# Real images


@pytest.mark.data
@real_data
def test_names_real_images(extractor: CifarExtractor) -> None:
    """Every 20th test image: 500."""
    images, names = [], []
    with tarfile.open(ARCHIVE, "r|*") as archive:
        for member in archive:
            split, label, file = member.name.split("/")[-3:] if member.name.endswith(".jpg") else ("",) * 3
            if split == "test" and int(Path(file).stem) % 20 == 0:
                content = archive.extractfile(member)
                assert content is not None
                images.append(np.asarray(Image.open(io.BytesIO(content.read()))))
                names.append(label)
    classes = sorted(set(names))
    labels = torch.tensor([classes.index(name) for name in names])
    logits = extractor(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)).logits
    assert len(images) == 500
    assert 0.87 <= float((logits.argmax(1) == labels).float().mean()) <= 0.98


# The script


def write_images(folder: Path, train: int, test: int) -> None:
    for split, count in (("train", train), ("test", test)):
        for i, pixels in enumerate(noise(count, 32, 32, 3, seed=len(split))):
            path = folder / split / f"class{i % 10}" / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.numpy()).save(path)


def run(script: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, out: str, *more: str) -> Path:
    path = folder / out
    args = ["--data", str(folder), "--out", str(path), "--state", str(path.with_suffix(".state"))]
    args += ["--epochs", "1", "1", "--width", "0.1", *more]
    monkeypatch.setattr(sys, "argv", ["train_feature_net.py", *args])
    script.main()
    return path


def test_the_script_trains_and_exports(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path, 80, 20)
    monkeypatch.setattr(script, "BATCH", 16)
    with pytest.raises(SystemExit, match="nothing written"):
        run(script, monkeypatch, tmp_path, "whole.safetensors")
    assert not (tmp_path / "whole.safetensors").exists()
    assert "epoch 2/2" in capsys.readouterr().out
    whole = run(script, monkeypatch, tmp_path, "whole.safetensors", "--force")
    assert "epoch" not in capsys.readouterr().out, "all was trained before"
    about = json.loads(whole.with_suffix(".json").read_text())
    assert about["sha256"] == hashlib.sha256(whole.read_bytes()).hexdigest()
    extractor = CifarExtractor(str(whole))
    assert extractor(noise(2, 3, 32, 32)).pool.shape == (2, 256)


def test_folding_keeps_the_function(script: ModuleType) -> None:
    images = noise(64, 3, 32, 32)
    net = script.build((24, 16, 16, 256), 0, images)
    for at in range(3):  # running statistics and biases that are not the initial ones
        net(normalized(noise(32, 3, 32, 32, seed=at)))
    for i, norm in enumerate(net.norms):
        norm.bias.data.normal_(generator=generator("cpu", i, "samples"))
    net.eval()
    small = FeatureNet((24, 16, 16, 256))
    small.load_state_dict({name: value.float() for name, value in script.fold_batch_norm(net).items()})
    x = normalized(images)
    with torch.no_grad():
        wanted, got = net(x), small(x)
    assert torch.allclose(got.pool, wanted.pool, atol=0.02 * float(wanted.pool.abs().max()))
    assert torch.allclose(got.logits, wanted.logits * script.LOGIT_SCALE, atol=0.05)
