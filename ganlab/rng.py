"""Randomness as a pure function of (seed, rank, step), so that no random state has to be saved.

``fold`` hashes its arguments into the seed of a generator. Training seeds torch's default generators at each
step; evaluation, sampling and the data order have separate generators, so that they never change a run. No
other code may call ``manual_seed``.
"""

from __future__ import annotations

import hashlib

import torch

STREAMS = ("train", "init", "order", "evaluate", "samples", "metric", "labels", "analysis", "validation")


def fold(seed: int, stream: str, *counters: int) -> int:
    """One seed in [0, 2**63) from a run's seed, the name of a stream and any counters (rank, step, ...).

    Stable over Python versions and machines (BLAKE2b of the decimal text). Raises ValueError on a stream
    that is not in ``STREAMS``.
    """
    if stream not in STREAMS:
        raise ValueError(f"unknown random stream {stream!r}; one of {', '.join(STREAMS)}")
    text = ":".join([str(seed), stream, *map(str, counters)]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator(device: torch.device | str, seed: int, stream: str, *counters: int) -> torch.Generator:
    """A new generator on ``device``, seeded by ``fold``."""
    g = torch.Generator(device=device)
    g.manual_seed(fold(seed, stream, *counters))
    return g


def seed_default(device: torch.device, seed: int, stream: str, *counters: int) -> None:
    """Seed torch's default generators (CPU, and ``device`` if it is a CUDA one)."""
    value = fold(seed, stream, *counters)
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        default_of(device).manual_seed(value)


def default_of(device: torch.device) -> torch.Generator:
    """torch's default generator of a CUDA device."""
    torch.cuda.init()  # creates the default generators
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
