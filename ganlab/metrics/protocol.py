"""What a score was measured with: everything beside the generator that can move the number."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from ganlab.schema import Count, Range, Steps, checked

OWN_SPLIT = "own"
OPTIONAL = ("intra_n_fake", "intra_classes")  # told only where a metric that heeds them is used
Quantize = Literal["round", "truncate", "bins"]
LABELS = ("protocol", "dataset", "batch_size")  # in the record for people; the numbers don't depend on them


class Protocol:
    """Counts, splits and conventions of one evaluation; one YAML file each under ``configs/protocol``.

    Args:
        name: the file's name, for tables.
        is_n_fake, is_splits: generated images for the Inception Score, and the splits it is averaged over.
        fid_n_fake: generated images for FID, KID and precision/recall.
        fid_n_real: reference images for the same; 0 = all. Fewer than there are: drawn once, by ``seed``.
        real_split: the dataset's split to compare with; ``own`` = the one the run trains on.
        kid_subsets, kid_subset_size: KID is the mean over so many subsets of so many images.
        intra_n_fake: generated images of each class for intra-FID.
        intra_classes: how many classes intra-class scores are averaged over, drawn by ``seed``; 0 = all.
        kid_n_real: the features of at most so many reference images are kept for KID and precision/recall.
        quantize: how [-1, 1] becomes 8 bits: 127.5 x + 127.5 with ``round``, or ``truncate`` as in SN-GAN's
            code; ``bins``: 256 of equal width, trunc((x + 1) * 255.99 / 2), as in WGAN-GP's.
        bn: batch normalisation in G: ``running`` averages, or the statistics of each ``batch`` of fakes.
        seed: of the generated images' noise and of every draw here; not the run's, so that runs compare.
        batch_size: images per forward pass of the extractor, no part of the identity; null: 500 on a GPU,
            100 on a CPU.

    Raises ValueError where a count can't be divided as asked.
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
            raise ValueError(f"name: {name[:40]!r} is no name, and it names files; use letters and digits")
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

    def record(self, told: Collection[str] = ()) -> dict[str, Any]:
        """The fields as plain values, ``batch_size`` left out; ``name`` is called ``protocol``.

        Of the fields in ``OPTIONAL`` only those in ``told``: a score's record names what moves it.
        """
        left_out = {"name", "batch_size", *OPTIONAL} - set(told)
        fields = {k: v for k, v in vars(self).items() if k not in left_out}
        return {"protocol": self.name, **fields}


def digest(record: Mapping[str, Any]) -> str:
    """12 hex characters of a record of plain values: equal when the scores may be compared.

    The keys in ``LABELS`` play no part: the fingerprint stands for the dataset, the counts for the protocol.
    """
    told = {k: v for k, v in record.items() if k not in LABELS}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def apart(records: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each record, for the keys that can move a number and are not the same in all.

    Nodes are compared by their parts (``extractor.name``); a record without the key has None there.
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
    found = {key: [record.get(key) for record in flat] for key in keys}
    return {key: values for key, values in found.items() if any(v != values[0] for v in values)}
