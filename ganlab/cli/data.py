"""``ganlab data``: prepare a dataset, check its files, or show what is prepared. Imports torch late."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ganlab.config.files import groups, user_dirs
from ganlab.data.base import Dataset
from ganlab.errors import ConfigError, DataError, Mistake, printable_name, suggest
from ganlab.system.files import write_json
from ganlab.system.paths import expanded

if TYPE_CHECKING:
    from ganlab.data.packing.check import Report
    from ganlab.samples.base import SampleKind

WARNED = ("skipped", "too_small", "enlarged", "empty_classes")  # reported by ``pack.warnings_of``
KEYS = {  # each command's own keys, besides the dataset's
    "prepare": (),
    "info": ("verify",),
    "check": ("hash", "manifest", "out"),
}
MAX_LINES = 20  # printed groups of identical files, or classes


def names(config_dirs: Sequence[str] = ()) -> list[str]:
    return groups(user_dirs(config_dirs)).get("dataset", [])


def prepare(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Download if needed, pack, and print where the packed data is and what happened to the images.

    ``split=all`` for every split. An interrupted preparation continues where it stopped.
    """
    dataset, splits, _ = _open(name, overrides, config_dirs, "prepare")
    from ganlab.data.packing import pack

    for manifest in pack.prepare(dataset, splits):
        if manifest.get("folder") is None:
            print(f"{dataset.name}: {dataset.origin}; nothing to prepare")
            _print_loaded(dataset, manifest)
        else:
            print(f"{dataset.name}: {_sentence(manifest)} -> {manifest['folder']}")
            for line in (*_counts(manifest, but=WARNED), *pack.warnings_of(manifest)):
                print(f"  {line}")
            if recipe := dataset.recipe(manifest["split"]):
                for old in pack.outdated(recipe):
                    print(f"  unused, packed from an earlier version of the source: {old}")


def info(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Print what a dataset is and which splits are prepared; downloads nothing.

    Raises DataError if packed data is damaged (``verify=true`` reads all of it).
    """
    dataset, _, own = _open(name, overrides, config_dirs, "info")
    if (text := own.get("verify", "false")) not in ("true", "false"):
        raise ConfigError("verify", f"{text!r} is not true or false", "write verify=true")
    verify = text == "true"
    from ganlab.data.packing import pack

    summary = pack.info(dataset, verify=verify)
    print(f"{dataset.name}: {_kind(dataset).describe()}")
    print(f"splits: {', '.join(summary['splits'])} (training: {summary['split']})")
    damaged = []
    for split, manifest in summary["packs"].items():
        if manifest is None:
            missing = f"not prepared; 'ganlab data prepare {dataset.name} split={split}'"
            print(f"  {split}: {missing if dataset.pack_folder(split) else dataset.origin}")
        elif "absent" in manifest:
            print(f"  {split}: source not available ({manifest['absent']})")
        elif "begun" in manifest:
            done = f"{manifest['begun'] / 1e6:,.0f} MB"
            print(f"  {split}: incomplete, {done} done; 'ganlab data prepare {dataset.name}' continues")
        elif "error" in manifest:
            damaged.append(manifest)
            print(f"  {split}: damaged, {manifest['folder']}")
        else:
            print(f"  {split}: {_sentence(manifest)}{', verified' if verify else ''}")
            for line in (manifest["folder"], *_counts(manifest)):
                print(f"    {line}")
            if classes := manifest.get("classes"):
                counts = manifest.get("class_counts") or [""] * len(classes)
                labels = [f"{c} {n}".strip() for c, n in zip(classes, counts, strict=False)]
                print(f"    classes: {', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}")
    if damaged:
        where, _, rest = damaged[0]["error"].partition(": ")
        raise DataError(where, *rest.split("; ", 1))


def check(name: str, overrides: Sequence[str] = (), config_dirs: Sequence[str] = ()) -> None:
    """Check every file of a dataset's source and print problems and oddities; packs and downloads nothing.

    ``hash=write`` writes a manifest of sha256 sums, ``hash=verify`` compares with it; ``manifest=FILE`` is
    its path if not beside the source. ``out=FILE`` saves the report as JSON. Raises DataError if a file is
    broken, changed or missing.
    """
    dataset, splits, own = _open(name, overrides, config_dirs, "check")
    if (how := own.get("hash", "none")) not in ("write", "verify", "none"):
        raise ConfigError("hash", f"{how!r} is not write or verify", "write hash=write, later hash=verify")
    if how == "none" and "manifest" in own:
        raise ConfigError("manifest", "requires hash", "write hash=write or hash=verify")
    if splits and "manifest" in own:
        raise ConfigError("manifest", "is a single file, but split=all has several splits", "name the split")
    reports: dict[str, Any] = {}
    for split in splits or (dataset.split,):
        reports[split] = _check(dataset, split, how, own.get("manifest"))
    if "out" in own:
        write_json(expanded(own["out"]), {s: r.as_json() for s, r in reports.items() if r})
        print(f"-> {own['out']}")
    if damaged := [r for r in reports.values() if r and r.num_bad]:
        fix = "repair or remove them; dataset.on_bad=skip skips broken images"
        raise DataError(
            [Mistake(r.root, f"{r.num_bad:,} of {r.files:,} files are damaged", fix) for r in damaged]
        )


def _check(dataset: Dataset, split: str, how: str, manifest: str | None) -> Report | None:
    """Check one split, print its report and return it; None for a dataset without files to check."""
    from ganlab.data.packing import pack

    originals = dataset.originals(split)
    if originals is None:
        if how != "none":
            what = f"{dataset.name} {dataset.origin}, so it has no files to hash"
            raise ConfigError("hash", what, "omit it")
        loaded = dataset.load(split=split)
        print(f"{dataset.name} {split}: {dataset.origin}; loads correctly")
        _print_loaded(dataset, loaded.manifest)
        return None
    target = None
    if how != "none":
        beside = originals.root.with_name(f"{originals.root.name}-{split}.sha256")
        target = expanded(manifest) if manifest else beside
    from ganlab.data.packing.check import check as check_originals

    report = check_originals(originals, target, write=how == "write")
    for line in _report_lines(report, f"{dataset.name} {split}"):
        print(line)
    if target is not None:
        print(f"  {'written' if how == 'write' else 'compared with'}: {target}")
    if recipe := dataset.recipe(split):
        if recipe.folder.exists():
            pack.verify_pack(recipe.folder)
            print(f"  prepared: {recipe.folder}, verified")
        for old in pack.outdated(recipe):
            print(f"  outdated, packed from an earlier version of the files: {old}")
    return report


def _report_lines(report: Report, title: str) -> Iterator[str]:
    """Lines of a check's report: the counts, then each damaged file."""
    from ganlab.data.formats.images import NOTES

    kinds = ", ".join(f"{n:,} {kind}" for kind, n in report.kinds.most_common()) or "checksums compared"
    yield f"{title}: {report.files:,} files in {report.root} ({kinds})"
    if report.classes:
        yield f"  classes: {', '.join(f'{c} {n:,}' for c, n in list(report.classes.items())[:MAX_LINES])}" + (
            f", ... ({len(report.classes):,} in total)" if len(report.classes) > MAX_LINES else ""
        )
    yield from (f"  empty class: {name}" for name in report.empty)
    yield from (f"  {n:,} {NOTES.get(note, note)}" for note, n in sorted(report.notes.items()))
    for why, (n, example) in sorted(report.passed.items()):
        yield f"  ignored: {n:,} {why}" + (f", such as {example}" if example else "")
    yield from (
        f"  same content: {' = '.join(map(printable_name, names))}" for names in report.same[:MAX_LINES]
    )
    if more := len(report.same) - MAX_LINES > 0 and len(report.same) - MAX_LINES:
        yield f"  same content: {more:,} more groups"
    yield from (f"  broken: {printable_name(name)}: {reason}" for name, reason in report.bad)
    for what in ("changed", "missing", "new"):
        yield from (f"  {what}: {printable_name(name)}" for name in getattr(report, what))
    if report.damage:
        yield f"  damaged: {report.damage}"


def _kind(dataset: Dataset) -> SampleKind:
    from ganlab.samples.base import sample_kind

    return sample_kind(dataset.shape)


def _print_loaded(dataset: Dataset, manifest: Mapping[str, Any]) -> None:
    """Print what was loaded from a dataset that is not packed."""
    print(f"  {_sentence(manifest).replace('images', _kind(dataset).noun, 1)}")
    for line in _counts(manifest):
        print(f"  {line}")
    if vocabulary := manifest.get("vocabulary"):
        print(
            f"  {len(vocabulary)} characters, the unknown one first: {''.join(vocabulary[: MAX_LINES * 5])!r}"
        )


def _counts(manifest: Mapping[str, Any], but: Sequence[str] = ()) -> list[str]:
    """One line of what happened to images in packing, if anything did, without the counts ``but``."""
    from ganlab.data.formats.images import NOTES

    counts = {what: n for what, n in (manifest.get("counts") or {}).items() if what not in but}
    parts = [f"{n:,} {NOTES.get(what, what.replace('_', ' '))}" for what, n in counts.items()]
    return ["; ".join(parts)] if parts else []


def _sentence(manifest: Mapping[str, Any]) -> str:
    parts = [f"{manifest['count']:,} images" if "count" in manifest else ""]
    if "shape" in manifest:
        parts.append("x".join(map(str, manifest["shape"])))
    if (manifest.get("transform") or {}).get("stretch"):
        parts.append("contrast stretched")
    for key in ("fingerprint", "sha256"):
        if key in manifest:
            parts.append(f"sha256 {str(manifest[key])[:12]}")
            break
    return ", ".join(p for p in parts if p)


def _open(
    name: str, overrides: Sequence[str], config_dirs: Sequence[str], command: str
) -> tuple[Dataset, Sequence[str] | None, dict[str, str]]:
    """The dataset, its splits for ``split=all`` (None: the training split), and the command's own keys.

    ``verify`` is a key of ``info``; in other commands it is the dataset's, as ``dataset.verify`` always is.
    """
    options = names(config_dirs)
    if name not in options:
        raise ConfigError("dataset", f"there is no {name!r}", suggest(name, options))
    words, splits, own = [f"dataset={name}"], None, dict[str, str]()
    for word in overrides:
        full, equals, value = word.lstrip("+").partition("=")
        key = full.removeprefix("dataset.")
        if full in KEYS[command]:
            own[full] = value
        elif (key, value) == ("split", "all"):
            splits = ["all"]
        else:
            words.append(f"dataset.{key}{equals}{value}")
    from ganlab.config import compose

    composed = compose.compose(words, config_dirs)
    dataset: Dataset = compose.build(composed.tree["dataset"], where="dataset")
    return dataset, dataset.splits() if splits else None, own
