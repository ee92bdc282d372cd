"""Tiny trained runs for the tests of ``ganlab analyze``: digits of 16 pixels, three updates each."""

from __future__ import annotations

from pathlib import Path

from ganlab import config, loop

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
    *(
        "dataset=digits",
        "dataset.resolution=16",
        "architecture.width=0.05",
        "architecture.z_dim=8",
        "steps=3",
    ),
    *(
        "batch_size=8",
        "metric=[is,fid]",
        "metric.extractor=cifar",
        "metric.protocol=tiny",
        "metric.progress=null",
    ),
    *("device=cpu", "threads=1", "eval_every=1", "save_every=1", "log_every=1", "sample_every=0"),
]
RUNS = {
    "sn": ["normalization=sn", "spectral_every=1"],
    "sn-s1": ["normalization=sn", "seed=1"],
    "wn": ["normalization=wn"],
    "wn-s1": ["normalization=wn", "seed=1"],
    "sn-d2": ["normalization=sn", "d_steps=2"],
    "wn-d2": ["normalization=wn", "d_steps=2"],
    "sn-f2": ["normalization=sn", "architecture.last_factor=2"],
    "none-A": ["normalization=none", "setting=A"],
}
POINTS = [  # for runs on points, in the place of COMMON
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
    "points-roll": ["dataset=swissroll", "fixed_generator=1"],
    "points-trained": ["dataset=8gaussians"],
}
CONDITIONAL = [
    *("architecture=resnet", "architecture.head=projection", "dataset.resolution=32", "normalization=sn"),
    *("loss=hinge", "steps=1", "eval_every=0"),
]


def train(root: Path, name: str, words: list[str]) -> Path:
    """One run in ``root/name``."""
    protocols = root / "configs" / "protocol"
    protocols.mkdir(parents=True, exist_ok=True)
    (protocols / "tiny.yaml").write_text(PROTOCOL)
    keys = {w.partition("=")[0] for w in words}
    common = POINTS if name in POINT_RUNS else COMMON
    given = [*(w for w in common if w.partition("=")[0] not in keys), *words, f"run_dir={root / name}"]
    composed = config.compose(given, [str(protocols.parent)])
    loop.train(config.build(composed), composed.saved, composed.choices, composed.overrides)
    return root / name
