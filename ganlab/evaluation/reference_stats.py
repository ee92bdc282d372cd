"""Statistics of the real images, of all and of each class, computed once and cached by content.

A cache file's name is the sha256 of what its numbers depend on: the images' fingerprint, how many were
drawn and by which seed, the extractor's identity. User-chosen names are never part of it. Content is
verified by a checksum; a cache that cannot be read or written costs time but never stops a run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ganlab import rng
from ganlab.errors import EnvError, RunInUse
from ganlab.metrics.base import ClassReference, Moments, Protocol, Reference, square_root
from ganlab.metrics.intra_fid import factored
from ganlab.system.files import write_atomic
from ganlab.system.lock import Lock

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ganlab.data.base import SampleSet

FORMAT = 1
TENSORS = ("cov", "mean", "pool", "root")
Extract = Callable[["npt.NDArray[np.uint8]"], Tensor]  # uint8 (B, C, H, W) to pooled features (B, D)


def cache_key(images: SampleSet, protocol: Protocol, identity: dict[str, Any]) -> dict[str, Any]:
    """Everything the statistics depend on, as plain values."""
    n = protocol.fid_n_real or len(images)
    kept = min(n, protocol.kid_n_real)
    drawn = n < len(images) or kept < n
    return {
        "format": FORMAT,
        "fingerprint": images.fingerprint,
        "n_real": n,
        "n_kept": kept,
        "seed": protocol.seed if drawn else None,
        "extractor": identity,
    }


def rows_of(n: int, total: int, seed: int, counter: int) -> Tensor:
    """Indices of ``n`` of ``total`` rows, drawn without replacement: int64 (n,), ascending."""
    if n >= total:
        return torch.arange(total)
    drawn = torch.randperm(total, generator=rng.generator("cpu", seed, "metric", counter))[:n]
    return drawn.sort().values


def compute(images: SampleSet, protocol: Protocol, extract: Extract) -> Reference:
    """Statistics of ``protocol.fid_n_real`` images; ``extract`` returns pooled features (B, D) of a batch.

    Moments are summed piece by piece, so only the kept features take memory. Raises MetricError.
    """
    key = cache_key(images, protocol, {})
    n = key["n_real"]
    rows = rows_of(n, len(images), protocol.seed, 0)
    kept = torch.zeros(n, dtype=torch.bool)
    kept[rows_of(key["n_kept"], n, protocol.seed, 1)] = True
    collected, pool, done, step = Moments(), torch.empty(0), 0, piece(protocol)
    for start in range(0, n, step):
        features = extract(images.images[rows[start : start + step].numpy()])
        collected.add(features)
        mask = kept[start : start + step]
        if not bool(mask.all()):
            features = features[mask.to(features.device)]
        if done == 0:
            pool = torch.empty(key["n_kept"], features.shape[1], dtype=features.dtype, device=features.device)
        pool[done : done + len(features)] = features
        done += len(features)
    mean, cov = collected.result()
    return Reference(n, mean.cpu(), cov.cpu(), square_root(cov).cpu(), pool.cpu())


def piece(protocol: Protocol) -> int:
    """Real images read and extracted at a time."""
    return max(protocol.batch_size or 0, 500)


def class_key(images: SampleSet, label: int, identity: dict[str, Any]) -> dict[str, Any]:
    """Everything a class's statistics depend on, as plain values; the fingerprint covers the labels."""
    return {"format": FORMAT, "fingerprint": images.fingerprint, "label": label, "extractor": identity}


def compute_class(images: SampleSet, rows: Tensor, step: int, extract: Extract) -> dict[str, Tensor]:
    """Statistics of the images ``rows`` (int64) of one class, for ``class_reference``. Raises MetricError.

    Read and extracted ``step`` at a time. For N images with D features each: the features ``pool`` (N, D) if
    N <= D; otherwise ``n``, ``mean`` (D,) and ``root`` (D, D), from summed moments. So a class takes at most
    D x D numbers, whatever its size.
    """
    collected, pools = Moments(), []
    for part in rows.split(step):
        pool = extract(images.images[part.numpy()])
        if len(rows) > pool.shape[1]:
            collected.add(pool)
        else:
            pools.append(pool.cpu())
    if pools:
        return {"pool": torch.cat(pools)}
    mean, cov = collected.result()
    return {"n": torch.tensor(len(rows)), "mean": mean.cpu(), "root": square_root(cov).cpu()}


def class_reference(tensors: dict[str, Tensor]) -> ClassReference:
    """The Gaussian of one class from the result of ``compute_class``. Raises MetricError."""
    if "pool" in tensors:
        return factored(tensors["pool"])
    return ClassReference(int(tensors["n"]), tensors["mean"], tensors["root"])


IN_MEMORY: weakref.WeakValueDictionary[Path, Reference] = weakref.WeakValueDictionary()  # by cache file


class Cache:
    """Reference statistics cached in ``folder``; ``warn`` is called with any problem."""

    def __init__(self, folder: Path, warn: Callable[[str], None]) -> None:
        self.folder, self.warn = folder, warn
        self.writable = True

    def get(self, key: dict[str, Any]) -> Reference | None:
        """The statistics stored under ``key``, or None if missing or damaged.

        All users in this process share one object: the protocols during and after training use the same
        410 MB of Inception features.
        """
        reference = IN_MEMORY.get(self._path(key))
        if reference is None and (tensors := self.read(key)) is not None:
            reference = IN_MEMORY[self._path(key)] = Reference(n=key["n_real"], **tensors)
        return reference

    def put(self, key: dict[str, Any], reference: Reference) -> None:
        """Store the statistics of all images."""
        IN_MEMORY[self._path(key)] = reference
        self.write(key, {name: getattr(reference, name) for name in TENSORS})

    def read(self, key: dict[str, Any]) -> dict[str, Tensor] | None:
        """The tensors stored under ``key``, or None if missing or damaged."""
        from safetensors import safe_open

        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("sha256") != checksum(tensors) or json.loads(metadata["key"]) != key:
                raise ValueError("checksum or key mismatch")
            return tensors
        except Exception as e:  # whatever a damaged file provokes: it is only a cache
            self.warn(f"{path}: unusable cached reference statistics ({e}); computing them again")
            return None

    def write(self, key: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Store atomically as safetensors, with a readable JSON description beside it."""
        from safetensors.torch import save

        if not self.writable:
            return
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {"key": json.dumps(key, sort_keys=True), "sha256": checksum(tensors)}
        path = self._path(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(path, save(tensors, metadata=metadata))
            page = {"file": path.name, "sha256_of_tensors": metadata["sha256"], **key}
            write_atomic(
                path.with_suffix(".json"), json.dumps(page, indent=1, sort_keys=True).encode() + b"\n"
            )
        except (OSError, EnvError) as e:
            why = f"({e.__cause__ or e}); GANLAB_CACHE chooses another folder"
            self.writable = False
            self.warn(f"{self.folder}: reference statistics are not cached {why}")

    def numbers(self, key: dict[str, Any], compute: Callable[[], dict[str, float]]) -> dict[str, float]:
        """The numbers stored under ``key``; otherwise the result of ``compute``, stored unless empty."""
        if (tensors := self.read(key)) is not None:
            return {name: float(value) for name, value in tensors.items()}
        if values := compute():
            self.write(key, {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()})
        return values

    @contextlib.contextmanager
    def turn(self, key: dict[str, Any], poll: Callable[[], None] | None = None) -> Iterator[None]:
        """Wait, calling ``poll``, while another process computes the same: a grid of runs does it once.

        Without a working lock every process computes: that is only slower.
        """
        lock = None
        while lock is None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                lock = Lock(self._path(key).with_suffix(".lock"))
            except RunInUse:
                if poll:
                    poll()
                time.sleep(0.2)
            except (OSError, EnvError):
                break
        try:
            yield
        finally:
            if lock:
                lock.release()

    def _path(self, key: dict[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True, separators=(",", ":"))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"


def checksum(tensors: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
