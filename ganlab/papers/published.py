"""Published scores with their sources, and the reasons why one is not comparable with ours.

The values are in ``ganlab/assets/published.csv``; ``published.yaml`` next to it defines the vocabulary. Our
score is like for like only with the same feature network, images, counts and splits.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from ganlab import text
from ganlab.papers import labels
from ganlab.system.paths import ASSETS

# Images per split: 0 in a protocol record means all of them, for which a paper gives the number.
SPLITS = {
    ("cifar10", "train"): 50_000,
    ("cifar10", "test"): 10_000,
    ("stl10", "train"): 5_000,
    ("stl10", "test"): 8_000,
    ("stl10", "unlabeled"): 100_000,
}
_KEYS = {
    "is_n_fake": "generated images",
    "is_splits": "splits",
    "fid_n_fake": "generated images",
    "fid_n_real": "real images",
    "real_split": "split of the real images",
    "quantize": "rounding to 8 bits",
    "bn": "batch norm statistics of G",
    "generator": "weights of G",
    "options.test_error.split": "split",
}


@dataclass(frozen=True)
class Published:
    """One published score; published.yaml explains the fields."""

    id: str
    paper: str
    table: str
    dataset: str
    method: str
    architecture: str
    score: str
    value: float
    protocol: str
    provenance: str
    source: str
    subset: str = ""
    resolution: int | None = None
    conditional: bool = False
    head: str = ""
    loss: str = ""
    std: float | None = None
    std_over: str = ""
    checkpoint: str = ""
    updates: int | None = None
    hparams: str = ""
    details: str = ""
    quoted_from: str = ""
    confidence: str = ""
    approximate: bool = False
    flag: str = ""
    note: str = ""

    @property
    def quoted(self) -> bool:
        return bool(self.quoted_from)

    @property
    def recalled(self) -> bool:
        """Whether the value or its ± is from memory, which every report marks."""
        return "recalled" in self.provenance

    @property
    def by_its_authors(self) -> bool:
        return str(_paper(self.paper).get("kind")) == "paper"

    @property
    def wide(self) -> bool:
        """Whether D is 1.5 times as wide."""
        return "d_width 1.5" in self.details

    @property
    def labels(self) -> int | None:
        """Labelled images, of a semi-supervised run."""
        return int(self.details.removeprefix("labels ")) if self.details.startswith("labels ") else None

    @property
    def where(self) -> str:
        """``SNGAN Table 2``; marked if the value is quoted or from memory."""
        name = f"{_paper(self.paper).get('name', self.paper)} {self.table}"
        if self.quoted:
            name += f", quoting {self.quoted_from}"
        if self.provenance == "recalled":
            return f"{name}, recalled from memory: not verified"
        return f"{name}, its ± recalled from memory" if self.recalled else name

    @property
    def conditions(self) -> str:
        """``best of settings A-F, 100,000 updates``."""
        best = "best of settings A-F" if self.hparams == "best of A-F" else self.hparams
        updates = f"{self.updates:,} updates" if self.updates else ""
        return ", ".join(part for part in (best, updates) if part)

    @property
    def counts(self) -> dict[str, int]:
        """Image counts in the row's details, by the keys of ganlab's protocol records."""
        details = dict(part.split(" ", 1) for part in self.details.split("; ") if " " in part)
        keys = {"n_real": "fid_n_real", "n_fake": "fid_n_fake"}
        return {ours: int(details[theirs]) for theirs, ours in keys.items() if theirs in details}


def _paper(key: str) -> dict[str, str]:
    paper: dict[str, str] = table()["papers"].get(key, {})
    return paper


@functools.cache
def table() -> dict[str, Any]:
    """``published.yaml``: protocols, sources, papers, scales."""
    loaded: dict[str, Any] = yaml.safe_load((ASSETS / "published.yaml").read_text(encoding="utf-8"))
    return loaded


@functools.cache
def rows() -> tuple[dict[str, str], ...]:
    """``published.csv`` as text, one row per score; the value of a ``status`` is a word."""
    with (ASSETS / "published.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@functools.cache
def values() -> tuple[Published, ...]:
    """The numeric published scores, in file order."""
    parsers: dict[str, Callable[[str], Any]] = {
        "value": float,
        "std": float,
        "resolution": int,
        "updates": int,
    }
    parsers |= {"conditional": lambda word: word == "yes", "approximate": lambda word: word == "yes"}
    fields = Published.__dataclass_fields__
    return tuple(
        Published(**{k: parsers.get(k, str)(v) for k, v in row.items() if v and k in fields})
        for row in rows()
        if row["score"] != "status"
    )


def of_method(dataset: str, architecture: str, method: str, resolution: int | None = None) -> list[Published]:
    """All rows for a method, dataset and kind of net, from any source, in file order.

    Resolutions are compared only where both sides have one.
    """
    return [
        p
        for p in values()
        if (p.dataset, p.architecture, p.method) == (dataset, architecture, method)
        and (resolution is None or p.resolution in (None, resolution))
    ]


def canonical_method(method: str, loss: str, config: Mapping[str, Any]) -> str:
    """The method's name in published.csv; WGAN-GP with a learned gamma is SNGAN's ``wgan-gp+sn-reparam``."""
    parts, penalty = set(method.split("+")), {"gp", "wgan-gp"}  # older runs are called sn+gp
    norms = parts - penalty
    norm = next(iter(norms), "")
    if not parts & penalty or len(norms) != 1 or loss_name(loss) != "wasserstein":
        return method
    learned = config.get(f"normalization.{norm}.gamma") == "learned"
    return f"wgan-gp+{norm}-reparam" if learned else method


def lookup(
    dataset: str,
    architecture: str,
    method: str,
    loss: str,
    score: str,
    updates: float | None = None,
    *,
    resolution: int | None = None,
    head: str = "",
    wide: bool = False,
    labels: int | None = None,
) -> list[Published]:
    """The papers' values of a method's score (``is``, ``fid``), best match first.

    Sorted by: own values before quoted ones, read before recalled, equal ``updates`` first, file order.
    ``head``: D's conditional head, "" for none. ``wide``: D is 1.5 times as wide as the
    paper's (SNGAN's Tables 7 and 8). ``labels``: labelled images of a semi-supervised run.
    """
    matches = [
        p
        for p in of_method(dataset, architecture, method, resolution)
        if p.score == score
        and p.by_its_authors
        and (p.head == head if head else not p.conditional)
        and (not p.loss or not loss or p.loss == loss)
        and (p.wide, p.labels) == (wide, labels)
    ]
    return sorted(
        matches,
        key=lambda p: (
            *(p.quoted, p.provenance == "recalled", bool(p.flag), p.checkpoint != ""),
            *(p.updates != updates, "stat" in p.details),
        ),
    )


def canonical_dataset(dataset: str, path: str = "") -> tuple[str, str]:
    """The dataset's name in published.csv, and the reason why ours is not the same ("" if it is).

    A ``folder`` of CIFAR-10 images is looked up as CIFAR-10, but never counts as the same images.
    """
    word = "".join(c for c in (path if dataset == "folder" else dataset).lower() if c.isalnum())
    for name in ("cifar100", "cifar10", "stl10", "celeba"):
        if word == name and dataset != "folder":
            return name, ""
        if word.startswith(name):
            source, original = text.clean(path or dataset, 40), labels.DATASETS.get(name, name)
            return name, f"our images come from {source}, not from the original {original}"
    return dataset, ""


def loss_name(run_loss: str) -> str:
    """A loss's config group, from its class or group name; "" if unknown."""
    word = run_loss.rsplit(".", 1)[-1].lower().replace("-", "").replace("_", "")
    return "standard" if word == "nonsaturating" else word


def extractor(record: Mapping[str, Any], score: str) -> str:
    """The feature network in a protocol record, else the one in the score's suffix."""
    network = record.get("extractor", record.get("name"))
    if isinstance(network, Mapping):
        bf16 = network.get("precision") == "bf16"
        network = f"{network.get('name')} (bf16)" if bf16 else network.get("name")
    return text.clean(network or labels.split_score(score)[1].strip("_") or "inception", 40)


def differences(row: Published, score: str, record: Mapping[str, Any], checkpoint: str = "last") -> list[str]:
    """The reasons why our ``score``, under protocol ``record``, is not like for like with ``row``."""
    protocol = table()["protocols"].get(row.protocol, {})
    kind, suffix = labels.split_score(score)
    network = extractor(record, score)
    if unlike := protocol.get("unlike"):
        return [f"published: {unlike}"]
    if suffix or not network.startswith(protocol.get("extractor", "no network")):
        return [f"features: ours from the {network} network, published from the 2015 Inception network"]
    ours = record.get("extractor")
    if isinstance(ours, Mapping) and ours.get("weights_official") is False:
        return ["our Inception weights are not the official ones"]
    if kind not in protocol:
        return [f"the source describes no protocol for {score}"]
    reasons = []
    for key, want in {**protocol[kind], **(row.counts if kind == "fid" else {})}.items():
        have: Any = record
        for part in key.split("."):
            have = have.get(part) if isinstance(have, Mapping) else None
        if key == "fid_n_real" and have == 0:
            have = SPLITS.get((row.dataset, str(record.get("real_split"))), "all")
        if have != want:
            reasons.append(f"{_KEYS.get(key, key)}: ours {_format(have)}, published {_format(want)}")
    published = row.checkpoint or protocol.get("checkpoint")
    if published and published != checkpoint:
        reasons.append(f"checkpoint: ours {text.clean(checkpoint, 20)}, published {published}")
    return reasons


def unstated(row: Published) -> str:
    """What affects this score but is not stated by its source; "" if nothing."""
    return str(table()["protocols"].get(row.protocol, {}).get("unstated", {}).get(row.score, ""))


def _format(value: object) -> str:
    if value is None:
        return "not recorded"
    return f"{value:,}" if isinstance(value, int) else text.clean(value, 20)


def reduced_scale(dataset: str, architecture: str, steps: list[float], widths: list[float]) -> str:
    """How runs are smaller than the paper's: ``1,000 of the paper's 100,000 updates, 0.25× its width``."""
    scales = [s for s in table()["scales"] if (s["dataset"], s["architecture"]) == (dataset, architecture)]
    if not scales:
        return ""
    parts = []
    if steps and steps[0] < scales[0]["updates"]:
        span = labels.span(labels.count(steps[0]), labels.count(steps[-1]))
        parts.append(f"{span} of the paper's {scales[0]['updates']:,} updates")
    if widths and widths[0] < scales[0]["width"]:
        low, high = (f"{w / scales[0]['width']:g}" for w in (widths[0], widths[-1]))
        parts.append(f"{labels.span(low, high)}× its width")
    return ", ".join(parts)
