"""The protocol of a score: everything except the generator that can affect it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from ganlab.schema import Count, Quantize, Range, Steps, checked

OWN_SPLIT = "own"
OPTIONAL = ("intra_n_fake", "intra_classes")  # recorded only with a metric that uses them
LABELS = ("protocol", "dataset", "batch_size")  # recorded for readers; scores do not depend on them


class Protocol:
    """Counts, splits and conventions of one evaluation; one YAML file each under ``configs/protocol``.

    Args:
        name: the file's name, for tables.
        is_n_fake, is_splits: generated images for the Inception Score, and the splits it is averaged over.
        fid_n_fake: generated images for FID, KID and precision/recall.
        fid_n_real: reference images for the same, drawn once by ``seed``; 0 = all.
        real_split: the dataset's split to compare with; ``own`` = the one the run trains on.
        kid_subsets, kid_subset_size: KID is the mean over this many subsets of this many images.
        intra_n_fake: generated images of each class for intra-FID.
        intra_classes: how many classes intra-class scores are averaged over, drawn by ``seed``; 0 = all.
        kid_n_real: at most this many reference images are kept for KID and precision/recall.
        quantize: conversion of [-1, 1] to bytes: 127.5 x + 127.5, ``round`` or ``truncate`` as in SN-GAN's
            code; ``bins``: 256 of equal width, trunc((x + 1) * 255.99 / 2), as in WGAN-GP's.
        bn: batch norm in G: ``running`` averages, or the statistics of each ``batch`` of fakes.
        seed: of the generated images' noise and of every draw here; not the run's: runs are comparable.
        batch_size: images per forward pass of the extractor, not part of the identity; null: 500 on a GPU,
            100 on a CPU.

    Raises ValueError for counts that do not fit together.
    """

    @checked
    def __init__(
        self,
        name: str,
        is_n_fake: Count,
        fid_n_fake: Annotated[int, Range(ge=2)],
        is_splits: Count = 10,
        fid_n_real: Steps = 0,
        real_split: str = OWN_SPLIT,
        kid_subsets: Count = 100,
        kid_subset_size: Annotated[int, Range(ge=2)] = 1000,
        kid_n_real: Annotated[int, Range(ge=2)] = 50_000,
        quantize: Quantize = "round",
        bn: Literal["running", "batch"] = "running",
        seed: Steps = 0,
        batch_size: Count | None = None,
        intra_n_fake: Annotated[int, Range(ge=2)] = 5000,
        intra_classes: Steps = 0,
    ) -> None:
        if not re.fullmatch(r"[\w.+ -]{1,64}", name):
            raise ValueError(f"name: {name[:40]!r} is not a valid file name; use letters and digits")
        if is_splits > is_n_fake:
            raise ValueError(
                f"is_splits: {is_splits} splits of {is_n_fake} images leave some empty; use at most is_n_fake"
            )
        if fid_n_real == 1:
            raise ValueError("fid_n_real: one image has no covariance; use 0 (all) or at least 2")
        self.name, self.real_split = name, real_split
        self.is_n_fake, self.is_splits = is_n_fake, is_splits
        self.fid_n_fake, self.fid_n_real = fid_n_fake, fid_n_real
        self.kid_subsets, self.kid_subset_size, self.kid_n_real = kid_subsets, kid_subset_size, kid_n_real
        self.quantize, self.bn = quantize, bn
        self.intra_n_fake, self.intra_classes = intra_n_fake, intra_classes
        self.seed, self.batch_size = seed, batch_size

    def record(self, optional: Collection[str] = ()) -> dict[str, Any]:
        """The fields as plain values without ``batch_size``; ``name`` is called ``protocol``.

        Of the fields in ``OPTIONAL`` only those in ``optional``: a record has only what affects the score.
        """
        omitted = {"name", "batch_size", *OPTIONAL} - set(optional)
        fields = {k: v for k, v in vars(self).items() if k not in omitted}
        return {"protocol": self.name, **fields}


def digest(record: Mapping[str, Any]) -> str:
    """12 hex characters of a record of plain values; equal for comparable scores.

    The keys in ``LABELS`` are ignored: the fingerprint identifies the dataset, the counts the protocol.
    """
    fields = {k: v for k, v in record.items() if k not in LABELS}
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def apart(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each record, for the keys that affect scores and whose values differ.

    Nodes are compared by their parts (``extractor.name``); the value of a missing key is None.
    """
    flat = [
        {
            f"{key}.{part}" if part else key: value
            for key, node in record.items()
            if key not in LABELS
            for part, value in (node.items() if isinstance(node, Mapping) else [("", node)])
        }
        for record in records
    ]
    keys = dict.fromkeys(key for record in flat for key in record)
    by_key = {key: [record.get(key) for record in flat] for key in keys}
    return {key: values for key, values in by_key.items() if any(v != values[0] for v in values)}
