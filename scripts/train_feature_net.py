"""Train ganlab's built-in feature network on CIFAR-10 and write it into the package.

    python scripts/train_feature_net.py --data ../shared/data/cifar10-jpeg.tar.xz

--data is an archive or a folder with train/<class>/*.jpg and test/<class>/*.jpg (or .png). After each epoch,
the script prints the test accuracy and writes a state file, from which the same command resumes. The exported
network has batch norm folded into its weights and is rounded to fp16; its accuracy is measured in that form,
and below 90 % it is not written unless --force is given.

The recipe follows airbench94 (Jordan 2024, arXiv:2404.00498): patch-whitening stem, identity-initialized
convolutions, batch norm with scale 1 and fast biases, Nesterov SGD on a triangular schedule, label smoothing,
shifts, flips alternating between epochs, Lookahead averaging. Here it runs in bfloat16 on a CPU, and in
cycles: later cycles use half the previous peak rate, wider shifts and cutout. The exported network is the
mean of the networks at the ends of the cycles; predictions average an image and its mirror image.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from ganlab.extractors.cifar import MEAN, RESOLUTION, STD, WEIGHTS, WIDTHS, FeatureNet, both_views, normalized
from ganlab.rng import generator, seed_default
from ganlab.system.files import write_atomic

BATCH = 1024
MOMENTUM = 0.85
LR = 11.5 / (1024 * (1 + 1 / (1 - MOMENTUM)))  # for the summed loss, so independent of the batch size
DECAY = 0.0153 / (1024 * (1 + 1 / (1 - MOMENTUM)))  # weight decay per image, independent of the rate
BIAS_FACTOR = 64  # learning-rate factor of batch-norm biases
SMOOTHING = 0.2
SHIFTS = (2, 4)  # pixels, in the first cycle and after it
CUTOUTS = (0, 8)  # side of the gray square in pixels, likewise
STEM_BIAS_EPOCHS = 3
BN_BATCHES = 40  # batches of 500 images for the batch-norm statistics of the averaged network
LOGIT_SCALE = 1 / 3  # airbench94 uses 1/9 with max pooling over 3x3 positions, whose values are larger
MIN_ACCURACY = 0.90  # minimum test accuracy for writing the network
RECIPE = (
    "airbench94 (arXiv:2404.00498) with mean instead of max at the end: whitened 2x2 stem, identity init, "
    f"SGD Nesterov {MOMENTUM}, batch {BATCH}, peak rate {LR * BATCH:.3g} of the mean loss, "
    f"label smoothing {SMOOTHING}, alternating flip, Lookahead, bfloat16; cycles of "
    f"epochs, each with half the peak rate of the one before; shifts {SHIFTS} and cutout {CUTOUTS} pixels; "
    "the mean of the cycles' ends"
)
JPEG = "fe407b96fcdb6358a48b8079a7d7bec5f4a0f58299246b5461a103533589cfb3"
KNOWN_ARCHIVES = {JPEG: "JPEG-recompressed CIFAR-10 (quality 75, 4:2:0)"}  # by sha256
Split = tuple[Tensor, Tensor]


def files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every JPEG or PNG in a folder or tar archive (read as a stream)."""
    ends = (".jpg", ".jpeg", ".png")
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.suffix.lower() in ends):
            yield file.relative_to(path).as_posix(), file.read_bytes()
        return
    with tarfile.open(path, "r|*") as archive:
        for member in archive:
            if member.isfile() and member.name.lower().endswith(ends) and (f := archive.extractfile(member)):
                yield member.name, f.read()


def read(path: Path) -> dict[str, Split]:
    """Read splits "train" and "test": uint8 (N, 3, 32, 32), int64 labels (N,), classes sorted by name."""
    pairs_by_split: dict[str, list[tuple[str, np.ndarray[Any, Any]]]] = {"train": [], "test": []}
    for name, content in files(path):
        split, label = ["", "", *name.split("/")][-3:-1]
        if split in pairs_by_split:
            image = Image.open(io.BytesIO(content)).convert("RGB").resize((RESOLUTION, RESOLUTION))
            pairs_by_split[split].append((label, np.asarray(image)))
    if not all(pairs_by_split.values()):
        sys.exit(
            f"{path}: no images in train/<class>/ or test/<class>/; pass such a folder or tar with --data"
        )
    classes = sorted({label for label, _ in pairs_by_split["train"]})
    return {
        split: (
            torch.from_numpy(np.stack([x for _, x in pairs])).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([classes.index(label) for label, _ in pairs]),
        )
        for split, pairs in pairs_by_split.items()
    }


def stem_bias(net: FeatureNet) -> Tensor:
    """The stem's bias, which always exists."""
    assert net.stem.bias is not None
    return net.stem.bias


def batch_norm(channels: int) -> nn.Module:
    """Batch norm with a fixed scale of 1, learned biases and high momentum."""
    norm = nn.BatchNorm2d(channels, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm


def whiten(net: FeatureNet, images: Tensor) -> None:
    """Set the stem to the whitening filters of 2x2 patches and their negatives; only its bias is trained."""
    x = normalized(images)
    patches = x.unfold(2, 2, 1).unfold(3, 2, 1).permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = (vectors / (values + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
    with torch.no_grad():
        net.stem.weight.copy_(torch.cat([filters, -filters]))
        stem_bias(net).zero_()
    net.stem.weight.requires_grad_(False)


def build(widths: tuple[int, ...], seed: int, images: Tensor) -> FeatureNet:
    """Build and initialize the network for training."""
    seed_default(torch.device("cpu"), seed, "init")
    net = FeatureNet(widths, batch_norm)
    for conv in net.convs:
        weight: Tensor = conv.weight  # type: ignore[assignment]
        nn.init.dirac_(weight.data[: weight.shape[1]])
    whiten(net, images)
    return net.to(memory_format=torch.channels_last)


def cut_out(x: Tensor, side: int, random: torch.Generator) -> Tensor:
    """Zero a random square, possibly partly outside, in each normalized image (B, 3, H, W)."""
    coordinates = torch.arange(RESOLUTION)
    centers = torch.randint(0, RESOLUTION, (2, len(x), 1), generator=random)
    rows, columns = (coordinates - centers).abs() * 2 < side
    return x.masked_fill((rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1), 0)


def batches(split: Split, seed: int, epoch: int, shift: int, cutout: int) -> Iterator[Split]:
    """Yield one epoch of augmented batches, determined by (seed, epoch)."""
    images, labels = split
    count = len(labels)
    padded = F.pad(images.float(), (shift,) * 4, mode="reflect").byte()
    order = torch.randperm(count, generator=generator("cpu", seed, "order", epoch))
    random = generator("cpu", seed, "train", epoch)
    shifts = torch.randint(0, 2 * shift + 1, (2, count), generator=random)
    # each image is flipped in every second epoch, so both views occur equally often
    flips = torch.rand(count, generator=generator("cpu", seed, "train")) < 0.5
    windows = padded.unfold(2, RESOLUTION, 1).unfold(3, RESOLUTION, 1)
    for start in range(0, count - BATCH + 1, BATCH):
        i = order[start : start + BATCH]
        x = windows[i, :, shifts[0, i], shifts[1, i]]
        flip = (flips[i] ^ bool(epoch % 2)).view(-1, 1, 1, 1)
        yield cut_out(normalized(torch.where(flip, x.flip(3), x)), cutout, random), labels[i]


def optimizer_of(net: FeatureNet) -> torch.optim.SGD:
    """SGD with two groups: batch-norm biases, and the rest. Weight decay is independent of the rate."""
    biases = [p for p in net.norms.parameters() if p.requires_grad]
    rest = [stem_bias(net), *net.convs.parameters(), *net.head.parameters()]
    groups = [
        {"params": parameters, "peak": rate, "weight_decay": DECAY * BATCH / rate}
        for parameters, rate in ((biases, LR * BIAS_FACTOR), (rest, LR))
    ]
    return torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, nesterov=True)


def train_epoch(
    net: FeatureNet,
    optimizer: torch.optim.SGD,
    average: dict[str, Tensor],
    data: Iterator[Split],
    progress: Iterator[float],
    peak: float,
) -> float:
    """Train one epoch in place; return the mean loss. progress: position in the cycle, 0 to 1, per step."""
    net.train()
    losses = []
    for step, ((x, y), done) in enumerate(zip(data, progress, strict=False), 1):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * peak * float(np.interp(done, [0, 0.23, 1], [0.2, 1.0, 0.07]))
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(x).logits
        loss = F.cross_entropy(logits.float() * LOGIT_SCALE, y, label_smoothing=SMOOTHING, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item() / len(y))
        if step % 5 == 0:
            look_ahead(net, average, 0.95**5 * done**3)
    return float(np.mean(losses))


@torch.no_grad()
def look_ahead(net: FeatureNet, average: dict[str, Tensor], decay: float) -> None:
    """Move the average towards the network, and set the network to the average (Lookahead)."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
            value.copy_(average[name])


@torch.no_grad()
def fold_batch_norm(net: FeatureNet) -> dict[str, Tensor]:
    """State of the network with batch norm folded into the convolutions, in fp16."""
    state = {"stem.weight": net.stem.weight, "head.weight": net.head.weight * LOGIT_SCALE}
    state["stem.bias"] = stem_bias(net)
    for i, (conv, norm) in enumerate(zip(net.convs, net.norms, strict=True)):
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        state[f"convs.{i}.weight"] = conv.weight * scale.view(-1, 1, 1, 1)
        state[f"convs.{i}.bias"] = norm.bias - norm.running_mean * scale
    return {name: value.half().contiguous() for name, value in state.items()}


@torch.no_grad()
def accuracy(state: dict[str, Tensor], widths: tuple[int, ...], split: Split) -> float:
    """Accuracy of the exported network, evaluated as in the extractor: fp32, both views."""
    net = FeatureNet(widths)
    net.load_state_dict({name: value.float() for name, value in state.items()})
    net.eval().to(memory_format=torch.channels_last)
    correct = 0
    for x, y in zip(split[0].split(1000), split[1].split(1000), strict=True):
        correct += int((both_views(net, normalized(x)).logits.argmax(1) == y).sum())
    return correct / len(split[1])


@torch.no_grad()
def mean_of(ends: list[dict[str, Tensor]], net: FeatureNet, images: Tensor) -> FeatureNet:
    """Load the mean of the cycle ends into ``net``; recompute batch-norm statistics from ``images``.

    Cycle ends of one run lie in one basin, and their mean generalizes better than each of them (Izmailov et
    al. 2018, arXiv:1803.05407).
    """
    state = {
        name: torch.stack([end[name] for end in ends]).mean(0) if value.is_floating_point() else value
        for name, value in ends[-1].items()
    }
    net.load_state_dict(state)
    for norm in net.norms:
        assert isinstance(norm, nn.BatchNorm2d)
        norm.reset_running_stats()
        norm.momentum = None  # None: cumulative mean over all batches
    net.train()
    for i, x in enumerate(images.split(500)):
        with torch.autocast("cpu", torch.bfloat16):
            net(normalized(x.flip(3) if i % 2 else x))
    return net.eval()


def train(args: argparse.Namespace, data: dict[str, Split], widths: tuple[int, ...]) -> FeatureNet:
    """Train all epochs not yet in the state file; return the mean of the cycle ends."""
    images, _ = data["train"]
    cycle_starts = [sum(args.epochs[:cycle]) for cycle in range(len(args.epochs))]
    mixed = images[torch.randperm(len(images), generator=generator("cpu", args.seed, "samples"))]
    net = build(widths, args.seed, mixed[:5000])  # shuffled, as archives are sorted by class
    optimizer = optimizer_of(net)
    average = {name: value.clone() for name, value in net.state_dict().items()}
    settings = {"widths": list(widths), "seed": args.seed, "epochs": args.epochs, "images": len(images)}
    first, ends = 0, []
    if args.state.is_file():
        saved = torch.load(args.state, weights_only=True)
        if saved["settings"] != settings:
            sys.exit(
                f"{args.state}: belongs to another run {saved['settings']}; delete it or use another --state"
            )
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        average, first, ends = saved["average"], saved["epoch"], saved["ends"]
    per_epoch = len(images) // BATCH
    for epoch in range(first, sum(args.epochs)):
        start = time.perf_counter()
        cycle, cycle_start = next((c, b) for c, b in enumerate(cycle_starts) if epoch < b + args.epochs[c])
        stem_bias(net).requires_grad_(epoch < STEM_BIAS_EPOCHS)
        steps = args.epochs[cycle] * per_epoch
        progress = (((epoch - cycle_start) * per_epoch + i) / steps for i in range(per_epoch))
        later = min(cycle, 1)
        batch = batches(data["train"], args.seed, epoch, SHIFTS[later], CUTOUTS[later])
        loss = train_epoch(net, optimizer, average, batch, progress, 0.5**cycle)
        if epoch + 1 == cycle_start + args.epochs[cycle]:
            look_ahead(net, average, 1.0)
            ends.append({name: value.clone() for name, value in net.state_dict().items()})
        status = f"epoch {epoch + 1}/{sum(args.epochs)}  loss {loss:.4f}  {time.perf_counter() - start:.0f} s"
        print(f"{status}  test {accuracy(fold_batch_norm(net), widths, data['test']):.4f}", flush=True)
        buffer = io.BytesIO()
        saved = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "average": average}
        torch.save({**saved, "ends": ends, "epoch": epoch + 1, "settings": settings}, buffer)
        write_atomic(args.state, buffer.getvalue())
    return mean_of(ends, net, mixed[: 500 * BN_BATCHES])


def write(path: Path, state: dict[str, Tensor], about: Mapping[str, Any], note: str) -> None:
    """Write a network and, beside it, what its extractor checks and a reader asks."""
    content = save(state)
    about = {
        **about,
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }
    write_atomic(path, content)
    write_atomic(path.with_suffix(".json"), (json.dumps(about, indent=2) + "\n").encode())
    print(f"{path}: {len(content)} bytes, {note}")


def main() -> None:
    """Train, test and export the network."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--data", type=Path, required=True, help="archive or folder with train/ and test/")
    parser.add_argument("--epochs", type=int, nargs="+", default=[10, 6], help="epochs of each cycle")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies the first two blocks' channels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's default")
    parser.add_argument(
        "--out", type=Path, default=WEIGHTS, help="safetensors file; a .json is written next to it"
    )
    parser.add_argument(
        "--state", type=Path, default=Path("outputs/feature_net.state"), help="state file to resume from"
    )
    parser.add_argument("--force", action="store_true", help=f"write even below {MIN_ACCURACY} test accuracy")
    args = parser.parse_args()
    torch.set_num_threads(args.threads or torch.get_num_threads())
    blocks = (max(16, round(w * args.width / 16) * 16) for w in WIDTHS[1:-1])
    widths = (WIDTHS[0], *blocks, WIDTHS[-1])  # stem and feature dimension are fixed
    for path in (args.out, args.state):
        path.parent.mkdir(parents=True, exist_ok=True)
    data = read(args.data)
    print({split: tuple(x.shape) for split, (x, _) in data.items()}, "widths", widths, flush=True)
    net = train(args, data, widths)
    state = fold_batch_norm(net)
    test_accuracy = accuracy(state, widths, data["test"])
    if test_accuracy < MIN_ACCURACY and not args.force:
        sys.exit(
            f"test accuracy {test_accuracy:.4f} is below {MIN_ACCURACY}: nothing written; "
            "train longer, or use --force"
        )
    sha256 = hashlib.sha256(args.data.read_bytes()).hexdigest() if args.data.is_file() else None
    metadata = {
        "test_accuracy": test_accuracy,
        "test_images": len(data["test"][1]),
        "views": "the mean over the image and its mirror image",
        "data": KNOWN_ARCHIVES.get(str(sha256), args.data.name),
        "data_sha256": sha256,
        "train_images": len(data["train"][1]),
        "recipe": RECIPE,
        "widths": list(widths),
        "mean": MEAN,
        "std": STD,
        "seed": args.seed,
        "epochs": args.epochs,
    }
    write(args.out, state, metadata, f"test accuracy {test_accuracy:.4f}")


if __name__ == "__main__":
    main()
