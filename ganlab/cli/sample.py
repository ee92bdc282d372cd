"""``ganlab sample``: draw samples from a run's generator and write them to files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ganlab.config.saved_run import open_run, restore
from ganlab.errors import ConfigError, EnvError
from ganlab.evaluation.generate import stored_samples
from ganlab.runs.provenance import now
from ganlab.samples import latents
from ganlab.samples.base import Export, sample_kind
from ganlab.system.files import write_json
from ganlab.system.hardware import find_device, set_precision


def sample_run(
    run: str,
    out: str | None = None,
    n: int = 64,
    seed: int = 0,
    checkpoint: str = "last",
    columns: int = 8,
    classes: str | None = None,
    interpolations: int = 8,
    singles: bool = True,
    overrides: Sequence[str] = (),
    config_dirs: Sequence[str] = (),
) -> Path:
    """Write ``grid.png``, single PNGs and ``interpolation.png`` of a checkpoint's G; returns the folder.

    Text and points: see ``export`` in ``samples/``. ``out`` None: ``RUN/samples/step-N-seedS``. The
    interpolation has ``interpolations`` rows of ``columns`` images, spherically interpolated between two
    latents. In a conditional run each row has one class: ``classes`` ("0,3,7") in turn, or spread evenly over
    all of them. Raises ConfigError for classes that the run does not have.
    """
    folder, e = open_run(run, overrides, config_dirs)
    device = find_device(e.device)
    set_precision("fp32", device, False)
    gan, step = restore(folder, e, checkpoint, device, finite=False)
    if gan.fixed:
        what = "this run trains no G to sample from (fixed_generator or fixed_shift is set)"
        raise ConfigError("fixed_generator", what, "choose another run")
    rows = class_rows(classes, gan.num_classes, -(-n // columns))
    target = Path(out) if out else folder.samples / f"step-{step:09d}-seed{seed}"
    z = latents.latents(e.prior, gan.z_dim, n, device, seed, 1)
    y = latents.row_labels(rows, n, columns, device)
    path = path_y = None
    if interpolations:
        ends = latents.latents(e.prior, gan.z_dim, 2 * interpolations, device, seed, 2)
        path = latents.interpolate(ends[:interpolations], ends[interpolations:], columns)
        path_y = latents.row_labels(rows, len(path), columns, device)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvError(str(target), f"cannot be created ({error.strerror})", "choose another out=") from error
    kind = sample_kind(gan.shape)
    context = kind.saved_context(folder.path, e.dataset.load)
    samples, steps = (
        None if latent is None else stored_samples(gan.ema_or_generator, latent, label, kind.to_stored)
        for latent, label in ((z, y), (path, path_y))
    )
    assert samples is not None
    kind.export(target, Export(samples, steps, columns, singles), context)
    labels = None if y is None else y.tolist()
    meta = {"run": run, "step": step, "n": n, "seed": seed, "labels": labels, "when": now()}
    write_json(target / "samples.json", meta)
    print(f"{n} samples of {run} at step {step} -> {target}")
    return target


def class_rows(classes: str | None, num_classes: int, rows: int) -> list[int]:
    """Labels for the rows of a grid: of "0,3,7", or spread evenly if None; empty for an unconditional run.

    Raises ConfigError for a class that the run does not have.
    """
    if classes is None:
        return latents.some_classes(num_classes, rows)
    if not num_classes:
        raise ConfigError("classes", "this run is unconditional: its G takes no classes", "omit it")
    labels = [label.strip() for label in classes.strip("[]").split(",")]
    if unknown := [c for c in labels if not c.isdecimal() or int(c) >= num_classes]:
        fix = f"classes are 0 to {num_classes - 1}, as classes=0,{num_classes - 1}"
        raise ConfigError("classes", f"this run has no class {', '.join(map(repr, unknown))}", fix)
    return [int(c) for c in labels]
