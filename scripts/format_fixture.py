"""Create ``tests/fixtures/format-N``: a run stopped halfway, in the current checkpoint format.

    python scripts/format_fixture.py tests/fixtures/format-1

Run it once when a format is released, commit the folder, and never regenerate it: the tests load and continue
it with every later version. ``expected.json`` holds the losses of the continued run and the digest of its
last state, which is reproducible to the bit only on the kind of machine recorded there.
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

# A minimal run that covers all state: power iterations, batch norm, labels, EMA of G, several D updates, Adam
# moments, random flips, a decaying learning rate, and losses not yet logged.
OVERRIDES = [
    *("dataset=digits", "dataset.resolution=32", "architecture=resnet", "architecture.head=projection"),
    *("architecture.width=0.008", "architecture.z_dim=4", "normalization=[sn,gp]", "loss=hinge"),
    *("steps=8", "batch_size=4", "d_steps=2", "ema=0.9", "flip=true", "dequantize=true", "lr_decay=linear"),
    *("save_every=0", "log_every=3", "eval_every=0", "sample_every=0", "device=cpu", "threads=1"),
    *("precision=fp32", "metric=[is]", "metric.extractor=cifar", "metric.protocol=smoke"),
    *("metric.protocol.is_n_fake=8", "metric.progress=null"),
]
STOP, END = 4, 8
FILES = ("config.yaml", "run.json", "metrics.jsonl", "result.json", "checkpoints")
CLOCK_KEYS = ("wall_s", "it_per_s")


def train(run: Path, stop: int | None = None) -> None:
    """Start or continue the run in ``run``; send SIGTERM during update ``stop``."""
    composed = compose.compose([*OVERRIDES, f"run_dir={run}"])
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


def state_digest(run: Path, step: int) -> str:
    """Digest of the training state at a step."""
    folder = RunFolder(run)
    _, tensors, state = Checkpoints(folder.checkpoints, folder.run_id).load(step)
    return digest(tensors, state["game"])


def records(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl without timings."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in CLOCK_KEYS} for record in rows]


def main(target: Path) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temp:
        cwd, stopped, resumed = Path.cwd(), Path("stopped"), Path("on")
        target = cwd / target
        os.chdir(temp)
        train(stopped, STOP)
        shutil.copytree(stopped, resumed)
        train(resumed)
        target.mkdir(parents=True)
        for name in FILES:
            source = stopped / name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
        for checkpoint in sorted((target / "checkpoints").iterdir())[:-1]:
            shutil.rmtree(checkpoint)
        expected = {
            "format": FORMAT,
            "made_on": {"device": device_name(torch.device("cpu")), "threads": 1, "versions": versions()},
            "words": OVERRIDES,
            "step": STOP,
            "digest": state_digest(stopped, STOP),
            "continued": {"step": END, "digest": state_digest(resumed, END), "records": records(resumed)},
        }
        (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
        os.chdir(cwd)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: format {FORMAT}, {size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
