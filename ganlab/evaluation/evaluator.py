"""All metrics of one generator under one protocol, from one feature pass.

Nothing here touches the default random generators, the networks' state or torch's flags, so evaluation never
changes training. Images are generated in chunks of ``CHUNK``, each with its own random stream, so that no
score depends on a batch size.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from ganlab.distributed import collectives
from ganlab.errors import DataError, Mistake
from ganlab.evaluation.generate import CHUNK, Generate, OfClass
from ganlab.evaluation.passes import FeaturePass, Poll, attempt, attempt_on_all_ranks, batch_size, score_fakes
from ganlab.evaluation.per_class import ClassPass, class_counts, details, mean_values, score_classes
from ganlab.evaluation.reference_stats import Cache, cache_key, compute
from ganlab.evaluation.scores import Scores as Scores
from ganlab.evaluation.scores import suspicions
from ganlab.extractors.base import Extractor, exact_fp32
from ganlab.metrics.base import Metric, MetricError, NotApplicable, Protocol, Real, Reference
from ganlab.metrics.protocol import OWN_SPLIT, digest
from ganlab.samples.base import sample_kind

if TYPE_CHECKING:
    import numpy.typing as npt

    from ganlab.data.base import Dataset, SampleSet


def require_split(protocol: Protocol, dataset: str, available: Sequence[str]) -> None:
    """Raise DataError unless the ``available`` splits of ``dataset`` include the protocol's real split."""
    if protocol.real_split not in (OWN_SPLIT, *available):
        raise DataError(
            "metric.protocol.real_split",
            f"{protocol.name} compares with split {protocol.real_split!r}, which {dataset} lacks",
            f"it has {', '.join(available)}; choose one, or another metric.protocol",
        )


class Evaluator:
    """Scores generators on ``device`` with ``metrics``, by name, against ``dataset.reference``'s real images.

    The constructor reads nothing; ``check`` does, before training. ``cache_dir`` holds ``reference/``.
    ``progress(stage, done, of)`` is called during the stages "real", "fake" and "class".
    """

    def __init__(
        self,
        extractor: Extractor,
        metrics: Mapping[str, Metric[Any]],
        protocol: Protocol,
        dataset: Dataset,
        device: torch.device | str,
        cache_dir: Path,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.extractor, self.protocol = extractor.to(self.device), protocol
        self.metrics = dict(metrics)
        self.dataset, self.progress = dataset.reference, progress
        self._warnings: list[str] = []
        self._cache = Cache(cache_dir / "reference", self._warn)
        size = batch_size(protocol, self.device)
        self._features = FeaturePass(extractor, size, self.device, self._warn)
        self._reference: Reference | None = None
        self._among: dict[str, float] | None = None  # for metrics on the samples themselves

    @functools.cached_property
    def images(self) -> SampleSet:
        """The real images to compare with. Raises DataError if the dataset has no such split."""
        split = self.protocol.real_split
        require_split(self.protocol, self.dataset.name, self.dataset.splits())
        return self.dataset.load(split=None if split == OWN_SPLIT else split)

    def check(self) -> None:
        """Before training: raise DataError if the images are too few, EnvError without the weights."""
        mistakes, protocol, available = [], self.protocol, len(self.images)
        n_real = protocol.fid_n_real or available
        if problem := sample_kind(self.images.shape).unscorable():
            mistakes.append(Mistake("dataset", problem))
        if self._compares_with("features") and n_real > available:
            what = f"{protocol.name} compares with {n_real} images of split {self.images.split!r}"
            fix = f"set it to at most {available} or 0 (all), or choose another metric.protocol"
            what += f", {self.images.name} has {available}"
            mistakes.append(Mistake("metric.protocol.fid_n_real", what, fix))
            n_real = available
        for name, metric in list(self.metrics.items()):
            split = getattr(metric, "split", None)
            if split is not None and split not in self.dataset.splits():
                what = f"{self.dataset.name} has no split {split!r}"
                mistakes.append(Mistake(f"metric.scores.{name}", what, "leave this metric out"))
            try:
                metric.check(protocol, self._real_samples(metric)._replace(n=n_real))
            except MetricError as e:
                if isinstance(e, NotApplicable) and len(self.metrics) > 1:
                    del self.metrics[name]
                    self._warn(f"{name}: left out, {e}")
                    continue
                fix = "choose another metric.protocol, or leave this metric out"
                mistakes.append(Mistake(f"metric.scores.{name}", str(e), fix))
        if mistakes:
            raise DataError(mistakes)
        if any(metric.uses_extractor for metric in self.metrics.values()):
            self.extractor.check()

    def _real_samples(self, metric: Metric[Any]) -> Real:
        """The real samples as ``metric`` needs them. Raises MetricError without the labels it needs."""
        images, needs = self.images, metric.needs
        counts = class_counts(images, self.dataset, self.protocol) if "labels" in needs else {}
        samples = np.asarray(images.images) if needs >= {"samples", "real"} else None
        return Real(samples, images.manifest, len(images), images.shape, counts)

    def _compares_with(self, kind: Literal["features", "samples"]) -> dict[str, Metric[Any]]:
        """The metrics that compare with all real images' features, or with real samples themselves."""
        by_kind = {n: m for n, m in self.metrics.items() if m.uses_extractor == (kind == "features")}
        return {n: m for n, m in by_kind.items() if "real" in m.needs and not m.per_class}

    def among_real(self, reference: Reference | None = None) -> dict[str, float]:
        """Scores of other real samples, by full name, for metrics that estimate them. Call after ``check``.

        Without ``reference`` (statistics), only those of metrics on the samples themselves.
        """
        protocol = self.protocol
        if self._among is None:
            self._among = {}
            for metric in self._compares_with("samples").values():
                self._among |= metric.among_real(self._real_samples(metric), protocol)
        values = dict(self._among)
        for name, metric in self._compares_with("features").items() if reference else ():
            key = cache_key(self.images, protocol, self.extractor.identity())
            key |= {"among_real": name, "n_fake": metric.n_fake(protocol), "seed": protocol.seed}
            numbers = self._cache.numbers(key, functools.partial(metric.among_real, reference, protocol))
            values |= {self._full(metric, k): v for k, v in numbers.items()}
        return values

    def check_classes(self, num_classes: int) -> None:
        """Raise DataError unless the reference images have as many classes as the generator."""
        if (n_classes := len(self.images.classes)) != num_classes:
            what = f"{self.images.name} has {n_classes} classes, the run was made with {num_classes}"
            raise DataError("dataset", what, "use the run's own dataset, or leave out class scores")

    @property
    def better(self) -> dict[str, Literal["lower", "higher"]]:
        """The better direction of every score (standard deviations excluded), by full name."""
        return {
            self._full(metric, name): "lower" if name in metric.lower else metric.better
            for metric in self.metrics.values()
            for name in metric.names
            if not name.endswith("_std")
        }

    def _full(self, metric: Metric[Any], name: str) -> str:
        return name + self.extractor.suffix if metric.uses_extractor else name

    def record(self, generator: Literal["raw", "ema"] = "raw", own: str | None = None) -> dict[str, Any]:
        """Everything except G that can affect the scores, as plain values; ``digest`` turns it into the id.

        ``own``: the record of this metric, which has its own; otherwise that of all which have none. A record
        does not depend on which other scores are computed, except through the options of other metrics.
        """
        metrics = {name: m for name, m in self.metrics.items() if (name == own if own else not m.own_record)}
        options = {name: settings for name, metric in metrics.items() if (settings := metric.options())}
        fields = {field for metric in metrics.values() for field in metric.protocol_fields}
        uses_extractor = any(metric.uses_extractor for metric in metrics.values())
        return {
            **self.protocol.record(fields),
            "dataset": self.images.name,
            "dataset_fingerprint": self.images.fingerprint,
            "real_split": self.images.split,
            "fid_n_real": self.protocol.fid_n_real or len(self.images),
            "extractor": self.extractor.identity() if uses_extractor else None,
            "generator": generator,
            "chunk": CHUNK,
            **({"options": options} if options else {}),
        }

    def reference(self, poll: Poll = None) -> Reference:
        """Statistics of the real images: from memory, the cache or a feature pass. Raises MetricError."""
        if self._reference is None:
            images, done = self.images, 0
            key = cache_key(images, self.protocol, self.extractor.identity())

            def extract(pixels: npt.NDArray[np.uint8]) -> Tensor:
                nonlocal done
                pool = self._real_pool(pixels, poll)
                done += len(pool)
                self._report("real", done, key["n_real"])
                return pool

            with self._cache.turn(key, poll), exact_fp32(self.device.type):
                self._reference = self._cache.get(key)
                if self._reference is None:
                    self._reference = compute(images, self.protocol, extract)
                    self._cache.put(key, self._reference)
        return self._reference

    def score(
        self,
        generate: Generate,
        of_class: OfClass | None = None,
        *,
        step: int = 0,
        generator: Literal["raw", "ema"] = "raw",
        poll: Poll = None,
        strict: bool = False,
        classify: Callable[[Tensor], Tensor] | None = None,
    ) -> Scores:
        """All metrics of the images that ``generate(n, start, random)`` makes: uint8 (n, C, H, W).

        ``n`` is always ``CHUNK``, ``start`` a multiple of it, ``random`` a generator on the device seeded by
        (protocol.seed, start). ``of_class(c)`` is the same for images of class c, with ``random`` seeded by
        (protocol.seed, start, c); without it class scores have no value. ``generator``: which of G's weights
        are used. ``classify(x)``: D's class logits of model input x.

        ``poll`` is called before every batch and may raise to abort. A metric without a value
        gives None and a warning; with ``strict``, DataError lists all of them.
        """
        began, crashes = time.perf_counter(), not strict  # a crash costs the scores, not the run
        team, by_class = collectives.current(), self._classes
        by_class.poll, by_class.crashes = poll, crashes
        reference: Reference | Exception | None = None
        outcomes: dict[str, Any] = {}  # by metric: values, by label if per class, or an exception

        def real_for(metric: Metric[Any]) -> Any:
            if not metric.uses_extractor:
                return self._real_samples(metric)
            if isinstance(reference, Exception):
                raise reference
            return reference

        def score_all(metrics: Mapping[str, Metric[Any]]) -> Mapping[str, Any]:
            parts = (self.protocol, self._features, generate, poll, functools.partial(self._report, "fake"))
            return score_fakes(metrics, real_for, *parts, crashes=crashes)

        def score_by_class(metrics: Mapping[str, Metric[Any]]) -> Mapping[str, Any]:
            return score_classes(by_class, metrics, of_class, functools.partial(self._report, "class"))

        with exact_fp32(self.device.type):
            if self._compares_with("features"):
                get_reference = functools.partial(attempt, lambda: self.reference(poll), crashes)
                reference = team.only_on_rank_zero(get_reference)
            for name, metric in self.metrics.items():
                if "classifier" in metric.needs:
                    judge = functools.partial(self._classified, metric, classify)
                    outcomes[name] = team.only_on_rank_zero(functools.partial(attempt, judge, crashes))
            for per_class, score in ((False, score_all), (True, score_by_class)):
                rest = {name: m for name, m in self.metrics.items() if name not in outcomes}
                metrics = {name: m for name, m in rest.items() if m.per_class == per_class}
                if metrics:
                    result = attempt_on_all_ranks(functools.partial(score, metrics), crashes)
                    outcomes |= dict.fromkeys(metrics, result) if isinstance(result, Exception) else result
            known = reference if isinstance(reference, Reference) else None
            among = team.only_on_rank_zero(lambda: attempt(lambda: self.among_real(known), crashes))
            scores = team.only_on_rank_zero(
                lambda: self._collect(outcomes, among, generator, step, began, strict)
            )
        if team.size > 1:
            scores = Scores(**team.on_rank_zero(lambda: dataclasses.asdict(cast(Scores, scores))))
        return cast(Scores, scores)

    def _classified(self, metric: Any, classify: Callable[[Tensor], Tensor] | None) -> dict[str, float]:
        """The values of a metric of D's class logits. Raises MetricError."""
        images = self.dataset.load(split=metric.split)
        if classify is None or images.labels is None:
            raise MetricError("needs a D with class logits and labelled images")

        def logits(x: Tensor) -> Tensor:
            return classify(images.to_model_input(x.to(self.device)))

        pixels = torch.from_numpy(np.array(images.images))
        values: dict[str, float] = metric.of_classifier(logits, pixels, torch.from_numpy(images.labels))
        return values

    def _collect(
        self,
        outcomes: Mapping[str, Any],
        among: dict[str, float] | Exception | None,
        generator: Literal["raw", "ema"],
        step: int,
        began: float,
        strict: bool,
    ) -> Scores:
        """The result of an evaluation from the outcome of each metric. Raises DataError if ``strict``."""
        values: dict[str, float | None] = {}
        more: dict[str, dict[str, Any]] = {}
        missing: list[Mistake] = []
        for name, metric in self.metrics.items():
            outcome, entry = outcomes[name], dict[str, Any]()
            if metric.own_record:
                own = self.record(generator, name)
                entry = more[self._full(metric, metric.names[0])] = {
                    "protocol": own,
                    "protocol_id": digest(own),
                }
            if isinstance(outcome, Exception):
                missing.append(Mistake(f"metric.scores.{name}", str(outcome)))
                self._warn(f"{name}: no value, {outcome}")
                outcome = dict.fromkeys(metric.names)
            elif metric.per_class:
                by_name = {self.images.classes[c]: v[metric.names[0]] for c, v in outcome.items()}
                entry |= details(by_name, metric, self._classes.of_real.get(name))
                outcome = mean_values(outcome.values())
            values |= {self._full(metric, key): value for key, value in outcome.items()}
        among = among if isinstance(among, dict) else {}
        warnings = [*self._warnings, *suspicions(values, among, self.better)]
        self._warnings.clear()
        if strict and missing:
            raise DataError(missing)
        record, seconds = self.record(generator), time.perf_counter() - began
        return Scores(step, values, record, digest(record), seconds, warnings, more, among)

    @functools.cached_property
    def _classes(self) -> ClassPass:
        return ClassPass(self.images, self.protocol, self._cache, self._real_pool, self._features)

    def _real_pool(self, pixels: npt.NDArray[np.uint8], poll: Poll) -> Tensor:
        images = torch.from_numpy(pixels)
        if self.device.type == "cuda":
            images = images.pin_memory()  # overlap the copy with reading the next images
        return torch.cat([f.pool for f in self._features(images, poll)])

    def _warn(self, text: str) -> None:
        self._warnings.append(text)

    def _report(self, stage: str, done: int, of: int) -> None:
        if self.progress:
            self.progress(stage, done, of)
