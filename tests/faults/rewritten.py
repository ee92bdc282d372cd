"""Checkpoints rewritten as sound ones, and what the command says of them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .base import LINE
from .played import child, play, take_few, words_of

TENSORS, STATE, MANIFEST = "state.safetensors", "state.json", "MANIFEST.json"
QUIET = ("eval_every=0", "sample_every=0", "spectral_every=0", "steps=8")  # as quick as a run can be
END = 8


def ganlab(place: Path, *words: str, few_images: bool = True) -> tuple[int, str]:
    """The command in a child; its exit code and what it said."""
    from ganlab.cli import main

    def work() -> int:
        if few_images:
            take_few()
        return main.main([*words])

    return child(work, place)


def train(place: Path, *more: str) -> tuple[int, str]:
    return ganlab(place, "train", *words_of(*QUIET, *more))


def refused(said: tuple[int, str], code: int, *patterns: str) -> None:
    """It ended with ``code``, each error one line, and one of them has all the patterns."""
    errors = [line for line in said[1].splitlines() if line.startswith("ganlab: error: ")]
    assert said[0] == code, f"exit code {said[0]}, not {code}: {said[1][-400:]}"
    assert "Traceback" not in said[1]
    assert errors, said[1][-300:]
    assert all(len(line) <= LINE for line in errors)
    assert any(all(re.search(p, line) for p in patterns) for line in errors), errors


def went_on(said: tuple[int, str], *warnings: str) -> None:
    """It finished, and warned of exactly these."""
    assert said[0] == 0, f"exit code {said[0]}: {said[1][-400:]}"
    told = [line for line in said[1].splitlines() if "warning: " in line and "collapsed" not in line]
    assert len(told) == len(warnings), told
    for line, pattern in zip(told, warnings, strict=True):
        assert re.search(pattern, line), line


# ---- a checkpoint rewritten as a sound one


def sign(step: Path, **changes: Any) -> None:
    """The manifest anew, hashes and seal fitting the files."""
    from ganlab.runs.manifest import seal

    manifest = json.loads((step / MANIFEST).read_text())
    del manifest["seal"]
    for name in (TENSORS, STATE):
        raw = (step / name).read_bytes()
        manifest["files"][name] = {"size": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (step / MANIFEST).write_bytes(seal(manifest | changes))


def with_tensors(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    import safetensors.torch

    def rewrite(step: Path) -> None:
        tensors = safetensors.torch.load((step / TENSORS).read_bytes())
        change(tensors)
        (step / TENSORS).write_bytes(safetensors.torch.save(tensors))
        sign(step, tensors=len(tensors))

    return rewrite


def with_state(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def rewrite(step: Path) -> None:
        state = json.loads((step / STATE).read_text())
        change(state)
        (step / STATE).write_text(json.dumps(state))
        sign(step)

    return rewrite


def stopped(place: Path, *more: str) -> Path:
    """A run stopped at step 5; its newest checkpoint's folder."""
    play(place, *QUIET, *more, stop=5)
    return place / "run" / "checkpoints" / "step-000000005"


def trained(run: Path) -> str:
    """Digest of the newest networks and optimisers: what was trained, not what was looked at on the way."""
    from ganlab.runs.checkpoint import Checkpoints, digest
    from ganlab.runs.folder import RunFolder

    folder = RunFolder(run)
    step, tensors, state = Checkpoints(folder.checkpoints, folder.run_id).load(quarantine=False)
    return f"{step} {digest(tensors, state['game'])}"


def first(tensors: Mapping[str, Any], prefix: str) -> str:
    """The name of the first tensor there that is no number."""
    return min(name for name in tensors if name.startswith(prefix) and tensors[name].ndim)
