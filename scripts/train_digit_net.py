"""Train ganlab's classifier of digits on MNIST and write it into the package, for metric.extractor=mnist.

    python scripts/train_digit_net.py --data ../shared/data/mnist-t10k --split test --limit 8000

--data is a folder with MNIST's files. With --limit so many digits of --split are trained on, the rest tested;
without, all of the training digits, and the test digits. Adam, at a rate that falls to 0; shifts up to 2 px;
half of the batches as at dataset.resolution=28, enlarged, the others with a border. Batch norm is folded into
the weights, which are rounded to fp16, and the accuracy measured in that form.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from train_feature_net import LOGIT_SCALE, batch_norm, fold_batch_norm, write

from ganlab.data.mnist import Mnist
from ganlab.extractors.cifar import FeatureNet, normalized
from ganlab.extractors.mnist import WIDTHS, MnistExtractor
from ganlab.rng import generator, seed_default

BATCH, RATE, SHIFT = 100, 3e-3, 2


def read(data: Mnist, split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) uint8 and labels (N,)."""
    loaded = data.load(split=split)
    assert loaded.labels is not None
    return torch.from_numpy(np.array(loaded.images)), torch.from_numpy(loaded.labels)


def shifted(x: Tensor, random: torch.Generator) -> Tensor:
    """A batch moved by up to ``SHIFT`` pixels; every second one without its border, enlarged."""
    if torch.rand((), generator=random) < 0.5:
        x = F.interpolate(x[:, :, 2:-2, 2:-2].float(), size=32, mode="bilinear")
    down, right = torch.randint(0, 2 * SHIFT + 1, (2,), generator=random).tolist()
    return F.pad(x, (SHIFT,) * 4)[:, :, down : down + 32, right : right + 32]


def train(images: Tensor, labels: Tensor, epochs: int, seed: int) -> FeatureNet:
    seed_default(torch.device("cpu"), seed, "init")
    net = FeatureNet(WIDTHS, batch_norm).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], RATE)
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, epochs * steps)
    for epoch in range(epochs):
        began, total = time.perf_counter(), 0.0
        random = generator("cpu", seed, "train", epoch)
        for rows in torch.randperm(len(images), generator=random)[: steps * BATCH].split(BATCH):
            logits = net(normalized(shifted(images[rows], random))).logits
            loss = F.cross_entropy(logits * LOGIT_SCALE, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(
            f"epoch {epoch + 1}/{epochs}  loss {total / steps:.4f}  {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    return net.eval()


@torch.no_grad()
def accuracy(state: dict[str, Tensor], images: Tensor, labels: Tensor) -> float:
    net = FeatureNet(WIDTHS)
    net.load_state_dict({name: value.float() for name, value in state.items()})
    pairs = zip(images.split(500), labels.split(500), strict=True)
    right = sum(int((net(normalized(x)).logits.argmax(1) == y).sum()) for x, y in pairs)
    return right / len(labels)


def main() -> None:
    """Train, test and export the network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder with MNIST's files")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--limit", type=int, help="digits to train on; null: all of the split")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=MnistExtractor.packaged_weights)
    args = parser.parse_args()
    held_out = "rest" if args.limit else "test"
    sets = {side: Mnist(args.data, args.split, side, limit=args.limit) for side in (32, 28)}
    images, labels = read(sets[32], args.split)
    state = fold_batch_norm(train(images, labels, args.epochs, args.seed))
    accuracies = {
        f"test_accuracy_{side}": accuracy(state, *read(data, held_out)) for side, data in sets.items()
    }
    about = {
        **accuracies,
        "test_images": len(read(sets[32], held_out)[1]),
        "train_images": len(images),
        "data": f"MNIST, {args.split}"
        + (f", {args.limit} digits; the rest of it to test" if args.limit else ""),
        "epochs": args.epochs,
        "seed": args.seed,
    }
    write(args.out, state, about, str(accuracies))


if __name__ == "__main__":
    main()
