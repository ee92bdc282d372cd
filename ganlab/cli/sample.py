"""Draw samples of a run and write them as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ganlab.config.saved_run import open_run, restore
from ganlab.errors import ConfigError, EnvError
from ganlab.runs.provenance import now
from ganlab.samples import export, images
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
    """``grid.png``, single PNGs and ``interpolation.png`` of a checkpoint's G, in the folder returned.

    Of text and points: the files of ``sampling.write``.
    ``out`` None: ``RUN/samples/step-N-seedS``. The interpolation has ``interpolations`` rows, each of
    ``columns`` images on the way from one latent to another, along the great circle. In a conditional run
    every row is of one class: of ``classes`` ("0,3,7") in turn, or spread evenly over all of them. Raises
    ConfigError for classes that the run does not have.
    """
    folder, e = open_run(run, overrides, config_dirs)
    device = find_device(e.device)
    set_precision("fp32", device, False)
    game, step = restore(folder, e, checkpoint, device, finite=False)
    rows = class_rows(classes, game.num_classes, -(-n // columns))
    place = Path(out) if out else folder.samples / f"step-{step:09d}-seed{seed}"
    z = images.latents(e.prior, game.z_dim, n, device, seed, 1)
    y = images.row_labels(rows, n, columns, device)
    way = way_y = None
    if interpolations:
        ends = images.latents(e.prior, game.z_dim, 2 * interpolations, device, seed, 2)
        way = images.interpolate(ends[:interpolations], ends[interpolations:], columns)
        way_y = images.row_labels(rows, len(way), columns, device)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvError(str(place), f"can't be made ({error.strerror})", "choose another out=") from error
    drawn = export.Drawn(z, y, way, way_y, columns, singles)
    export.write(place, folder, e.dataset, game, drawn)
    labels = None if y is None else y.tolist()
    meta = {"run": run, "step": step, "n": n, "seed": seed, "labels": labels, "when": now()}
    write_json(place / "samples.json", meta)
    print(f"{n} samples of {run} at step {step} -> {place}")
    return place


def class_rows(classes: str | None, num_classes: int, rows: int) -> list[int]:
    """Labels for the rows of a grid, of "0,3,7" or, by None, spread evenly; empty for an unconditional run.

    Raises ConfigError unless they are classes of the run.
    """
    if classes is None:
        return images.some_classes(num_classes, rows)
    if not num_classes:
        raise ConfigError("classes", "this run is unconditional: its G knows no classes", "leave it out")
    words = [word.strip() for word in classes.strip("[]").split(",")]
    if wrong := [w for w in words if not w.isdecimal() or int(w) >= num_classes]:
        fix = f"write classes=0,{num_classes - 1} or others of 0 to {num_classes - 1}"
        raise ConfigError("classes", f"this run has no class {', '.join(map(repr, wrong))}", fix)
    return [int(w) for w in words]
