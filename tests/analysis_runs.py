"""Tiny trained runs for the tests of ``ganlab analyze``: digits of 16 pixels, three updates each."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np

from ganlab.config import compose
from ganlab.system.files import write_atomic
from ganlab.training import trainer

PROTOCOL = """\
_target_: ganlab.metrics.protocol.Protocol
name: tiny
is_n_fake: 64
is_splits: 1
fid_n_fake: 64
fid_n_real: 64
batch_size: 64
"""
COMMON = [
    *("dataset=digits", "dataset.resolution=16", "architecture.width=0.05", "architecture.z_dim=8"),
    *("steps=3", "batch_size=8", "metric=[is,fid]", "metric.extractor=cifar"),
    *("metric.protocol=tiny", "metric.progress=null"),
    *("device=cpu", "threads=1", "eval_every=1", "save_every=1", "log_every=1", "sample_every=0"),
]
RUNS = {
    "sn": ["normalization=sn", "spectral_every=1"],
    "sn-s1": ["normalization=sn", "seed=1"],
    "wn": ["normalization=wn"],
    "sn-d2": ["normalization=sn", "d_steps=2"],
    "sn-f2": ["normalization=sn", "architecture.last_factor=2"],
    "none-A": ["normalization=none", "setting=A"],
    "began": ["architecture=began", "architecture.width=0.04", "loss=began", "normalization=none"],
    "gp-held": ["normalization=gp", "loss=wasserstein", "validation=true", "dataset=mnist"],
}
POINTS = [  # for runs on points, instead of COMMON
    *("+experiment=wgan_gp_toy", "architecture.width=0.05", "steps=3", "batch_size=16"),
    *("dataset.n=60", "metric.scores.wasserstein1.n=50", "device=cpu", "threads=1"),
    *("eval_every=0", "save_every=1", "keep_every=1", "log_every=1", "sample_every=0"),
]
POINT_RUNS = {
    "points-gp": ["dataset=8gaussians", "fixed_generator=1"],
    "points-wc": [
        *("dataset=8gaussians", "fixed_generator=1"),
        *("normalization=wc", "normalization.wc.scope=all", "setting=wgan"),
    ],
    "points-trained": ["dataset=swissroll"],
}
CONDITIONAL = [
    *("architecture=resnet", "architecture.head=projection", "dataset.resolution=32", "normalization=sn"),
    *("loss=hinge", "steps=1", "eval_every=0"),
]


def digits(folder: Path) -> Path:
    """Noise in MNIST's format: a data set with a split that is held out."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for part, n in (("train", 90), ("t10k", 40)):
        x, y = (random.integers(0, top, size, np.uint8) for top, size in ((256, (n, 28, 28)), (10, n)))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, *x.shape) + x.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, n) + y.tobytes())
    return folder


def train(root: Path, name: str, overrides: list[str]) -> Path:
    """One run in ``root/name``."""
    protocols = root / "configs" / "protocol"
    protocols.mkdir(parents=True, exist_ok=True)
    write_atomic(protocols / "tiny.yaml", PROTOCOL.encode())  # another process may be reading it
    keys = {w.partition("=")[0] for w in overrides}
    common = POINTS if name in POINT_RUNS else COMMON
    arguments = [
        *(w for w in common if w.partition("=")[0] not in keys),
        *overrides,
        f"run_dir={root / name}",
    ]
    if "dataset=mnist" in overrides:
        arguments += [f"dataset.path={digits(root / 'mnist')}", "dataset.verify=false"]
    composed = compose.compose(arguments, [str(protocols.parent)])
    trainer.train(compose.build(composed), composed.saved, composed.choices, composed.overrides)
    return root / name
