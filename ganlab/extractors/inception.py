"""The 2015 Inception network as ported by torch-fidelity, used for published IS, FID and KID.

Network and weights file are torch-fidelity's. The features are the 2048 pooled ones, the logits the 1008
without bias, as in the original Inception Score code. The TF1 bilinear resize to 299x299 is bit-identical to
torch-fidelity's at an eighth of the work. A weights file is parsed only if its sha256 is the pinned one, and
only by torch's ``weights_only`` reader.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ganlab.errors import EnvError
from ganlab.extractors.base import NetworkExtractor, Precision, check_images, exact_fp32
from ganlab.schema import checked
from ganlab.system.download import NotFetched, fetch
from ganlab.system.files import open_regular
from ganlab.system.paths import cache_dir, expanded
from ganlab.types import Features

FILE = "weights-inception-2015-12-05-6726825d.pth"
SHA256 = (
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # the file name has its first digits
)
SIZE = 95_628_359  # bytes
SIZE_MB = 95.6
MAX_BYTES = 1 << 30  # of a user's file
LAYERS = ("2048", "logits_unbiased")
SIDE = 299  # pixels
ADVICE = "or use metric.extractor=cifar"


def places() -> list[Path]:
    """Where weights are searched for, in this order: torch hub's folder, then ganlab's cache."""
    return [Path(torch.hub.get_dir()) / "checkpoints" / FILE, cache_dir() / "weights" / FILE]


class Inception(NetworkExtractor):
    """torch-fidelity's ``inception-v3-compat``: layers ``2048`` and ``logits_unbiased``.

    weights: a file. None: the one in torch hub's folder or ganlab's cache, or a download into the latter.
    sha256: of ``weights``, 64 hexadecimal digits; required for other than the official ones. The record of
    the scores then has ``weights_official: false``.
    download: whether it may be downloaded; ``GANLAB_OFFLINE=1`` forbids it too.
    precision: ``bf16`` is faster if the processor supports it, but a different protocol: the names of its
    scores end in ``_bf16``, and they are not comparable with published ones.
    The constructor reads nothing; ``check`` does.
    """

    name = "inception"
    suffix = ""
    feature_dim = 2048
    num_classes = 1008

    @checked
    def __init__(
        self,
        weights: str | None = None,
        download: bool = True,
        precision: Precision = "fp32",
        sha256: str | None = None,
    ) -> None:
        super().__init__(precision)
        if sha256 is not None and not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ValueError(f"sha256: {sha256!r} is not 64 digits 0-9a-f, as sha256sum prints them")
        if sha256 is not None and weights is None:
            raise ValueError("sha256: has no effect without weights; leave it out, or set weights to a file")
        self.weights, self.download, self.expected = weights, download, sha256 or SHA256

    def identity(self) -> dict[str, str | int | float]:
        self._load()
        official = self._sha256 == SHA256
        return {
            "name": self.name,
            "weights": self._sha256,
            "weights_official": official,
            "layer": "+".join(LAYERS),
            "resize": "tf1-bilinear-299",
            **self.precision_record,
        }

    def __call__(self, images: Tensor) -> Features:
        check_images(images)
        net = self._load()
        with exact_fp32(self._device.type):
            x = resized(images.to(self._device, non_blocking=True)).sub_(128).div_(128)
            with self.conv_autocast(self._device):
                maps = net(x)
            pool = maps.float().mean((2, 3))
            return Features(pool, pool @ net.fc.weight.T)

    def _read(self) -> tuple[nn.Module, str]:
        path = self._find()
        content, sha256 = verified(path, self.expected, own=self.weights is not None)
        return build(content, path), sha256

    def _find(self) -> Path:
        """The weights file. Raises EnvError, one line."""
        if self.weights is not None:
            return expanded(self.weights)
        for path in places():
            if path.is_file():
                return path
        target, reason = places()[-1], "it may not be downloaded (metric.extractor.download=false)"
        if os.environ.get("GANLAB_OFFLINE", "0") not in ("", "0"):
            reason = "GANLAB_OFFLINE is set"
        elif self.download:
            try:
                log = logging.getLogger("ganlab")
                log.warning("downloading %s (%s MB) to %s", FILE, SIZE_MB, target.parent)
                fetch(url(), target, SHA256, size=SIZE)
                return target
            except NotFetched as e:
                log.warning("the download failed: %s", e)  # separately: the error has to fit one line
                reason = "its download failed"
        raise EnvError(
            "metric.weights",
            f"{FILE} ({SIZE_MB} MB, sha256 {SHA256[:8]}...) is not here, {reason}",
            f"put it into {target.parent} or give metric.weights=PATH, {ADVICE}",
        )


def url() -> str:
    """Where torch-fidelity publishes the file."""
    return str(port().URL_INCEPTION_V3)


def port() -> Any:
    """torch-fidelity's module, imported late: it takes seconds. Raises EnvError if that fails."""
    try:
        from torch_fidelity import feature_extractor_inceptionv3
    except (ImportError, RuntimeError) as e:  # RuntimeError: torchvision of another build than torch
        fix = f"install torch-fidelity and a torchvision that fits torch {torch.__version__}, {ADVICE}"
        raise EnvError("torch_fidelity", f"can't be imported ({e})", fix) from e
    return feature_extractor_inceptionv3


def verified(path: Path, expected: str, own: bool = False) -> tuple[bytes, str]:
    """The content of a weights file and its sha256, which must be ``expected``.

    The bytes that are verified are those used: the file cannot be replaced in between. ``own``: named by
    the user. Raises EnvError.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as e:
        fix = f"give the path of {FILE} ({SIZE_MB} MB, sha256 {SHA256[:8]}...), {ADVICE}"
        raise EnvError("metric.weights" if own else str(path), f"{path}: {e.strerror or e}", fix) from e
    digest = hashlib.sha256(content).hexdigest()
    if digest == expected:
        return content, digest
    what = f"damaged or another file: sha256 {digest[:16]}..., expected {expected[:16]}..."
    fix = f"delete it and it is fetched again, {ADVICE}"
    if own:
        fix = f"give {FILE}, or set metric.extractor.sha256 to its sum if you trust it"
    raise EnvError(str(path), what, fix)


def build(content: bytes, path: Path) -> nn.Module:
    """The frozen network with the weights in a file's ``content``; torch's generators are not changed.

    Raises EnvError, naming ``path``, if the weights are of another network.
    """
    module = port()
    try:
        _require_unpacked(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        # torch-fidelity unpickles its file, so write one that has only these tensors
        clean = io.BytesIO()
        torch.save({str(k): v for k, v in state.items() if isinstance(v, Tensor)}, clean)
        clean.seek(0)
        with torch.random.fork_rng(devices=[]):  # building the layers draws random weights
            net = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", list(LAYERS), feature_extractor_weights_path=clean
            )
    except (
        OSError,
        RuntimeError,
        ValueError,
        AttributeError,
        EOFError,
        pickle.UnpicklingError,
        zipfile.BadZipFile,
    ) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        what = f"not weights of the 2015 Inception network ({why:.100})"
        fix = f"give {FILE} ({SIZE_MB} MB, sha256 {SHA256[:8]}...), {ADVICE}"
        raise EnvError(str(path), what, fix) from e
    return Trunk(net)


def _require_unpacked(content: bytes) -> None:
    """Raise ValueError for a compressed file: torch writes none, and 1 GB could expand to 1 TB."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > len(content):
                raise ValueError("its entries are compressed or overlap")


class Trunk(nn.Module):
    """torch-fidelity's network from its first convolution to its last maps, and ``fc`` separately.

    Float images (B, 3, 299, 299) in [-1, 1] to maps (B, 2048, 8, 8).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        parts = [part for name, part in net.named_children() if name not in ("AvgPool", "fc")]
        self.layers, self.fc = nn.Sequential(*parts), net.fc  # children are in order of use

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)  # type: ignore[no-any-return]


def resized(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to float32 (B, 3, 299, 299) in [0, 255], channels last, as TensorFlow 1 does it.

    Bit-identical to torch-fidelity's ``interpolate_bilinear_2d_like_tensorflow1x``: the same products and
    sums in the same order, but rows are interpolated before they are repeated.
    """
    x = images.permute(0, 2, 3, 1).float().contiguous()  # (B, H, W, 3)
    for axis, shape in ((2, (-1, 1)), (1, (-1, 1, 1))):
        length = x.shape[axis]
        at = torch.arange(SIDE, dtype=x.dtype, device=x.device) * torch.tensor(length / SIDE, dtype=x.dtype)
        low = at.long()
        high = (low + 1).clamp_max(length - 1)
        start = x.index_select(axis, low)
        x = x.index_select(axis, high).sub_(start).mul_((at - low).view(shape)).add_(start)
    return x.permute(0, 3, 1, 2)
