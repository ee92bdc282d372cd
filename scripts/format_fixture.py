"""Makes ``tests/fixtures/format-N``: a run stopped half-way, in the checkpoint format of this ganlab.

    python scripts/format_fixture.py tests/fixtures/format-1

Run it once when a format is released, commit the folder, and never make it again: the tests load it and
continue it with every later ganlab. ``expected.json`` holds what the ganlab that made it went on to: losses,
and the digest of its last state, which is the same bits only on the kind of machine that is named there.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from ganlab.config import compose
from ganlab.errors import Stopped
from ganlab.runs.checkpoint import Checkpoints, digest
from ganlab.runs.folder import RunFolder
from ganlab.runs.manifest import FORMAT
from ganlab.runs.provenance import versions
from ganlab.system.hardware import device_name
from ganlab.training import engine, trainer

# As small as a run can be that has a bit of everything: power iterations, batch norm, labels, an average of
# G, several updates of D, Adam's slots, random flips, a learning rate that falls, means not told yet.
WORDS = [
    *("dataset=digits", "dataset.resolution=32", "architecture=resnet", "architecture.head=projection"),
    *("architecture.width=0.008", "architecture.z_dim=4", "normalization=[sn,gp]", "loss=hinge"),
    *("steps=8", "batch_size=4", "d_steps=2", "ema=0.9", "flip=true", "dequantize=true", "lr_decay=linear"),
    *("save_every=0", "log_every=3", "eval_every=0", "sample_every=0", "device=cpu", "threads=1"),
    *("precision=fp32", "metric=[is]", "metric.extractor=cifar", "metric.protocol=smoke"),
    *("metric.protocol.is_n_fake=8", "metric.progress=null"),
]
STOP, END = 4, 8
KEPT = ("config.yaml", "run.json", "metrics.jsonl", "result.json", "checkpoints")
TIMED = ("wall_s", "it_per_s")


def train(run: Path, stop: int | None = None) -> None:
    """The run in ``run``, from its beginning or from where it is; a SIGTERM comes in update ``stop``."""
    composed = compose.compose([*WORDS, f"run_dir={run}"])
    update = engine.Engine.update

    def stopping(self: engine.Engine, step: int) -> None:
        update(self, step)
        if stop is not None and step + 1 == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    engine.Engine.update = stopping  # type: ignore[method-assign]
    try:
        trainer.train(compose.build(composed), composed.saved, composed.choices, composed.overrides)
    except Stopped:
        assert stop is not None
    finally:
        engine.Engine.update = update  # type: ignore[method-assign]


def loaded(run: Path, step: int) -> str:
    """Digest of all that training goes on from."""
    folder = RunFolder(run)
    _, tensors, state = Checkpoints(folder.checkpoints, folder.run_id).load(step)
    return digest(tensors, state["game"])


def records(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl without its clocks."""
    told = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in TIMED} for record in told]


def main(target: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temp:
        here, stopped, on = Path.cwd(), Path("stopped"), Path("on")
        target = here / target
        os.chdir(temp)
        train(stopped, STOP)
        shutil.copytree(stopped, on)
        train(on)
        target.mkdir(parents=True)
        for name in KEPT:
            place = stopped / name
            (shutil.copytree if place.is_dir() else shutil.copy)(place, target / name)
        for old in sorted((target / "checkpoints").iterdir())[:-1]:
            shutil.rmtree(old)
        expected = {
            "format": FORMAT,
            "made_on": {"device": device_name(torch.device("cpu")), "threads": 1, "versions": versions()},
            "words": WORDS,
            "step": STOP,
            "digest": loaded(stopped, STOP),
            "continued": {"step": END, "digest": loaded(on, END), "records": records(on)},
        }
        (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        os.chdir(here)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: format {FORMAT}, {size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
