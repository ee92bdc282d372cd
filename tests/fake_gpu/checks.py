"""Many looks at the fake device in one process: JSON [[name, check, words], ...] in, {name: result} out."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

from fake_gpu import device
from fake_gpu.count_nodes import counted
from ganlab.config import compose
from ganlab.evaluation import passes
from ganlab.sweeps import cost
from ganlab.sweeps.cost import UpdateTimer
from ganlab.system import hardware
from ganlab.training import engine

EVALUATIONS = 40


def built(words: list[str]) -> UpdateTimer:
    e = compose.build(compose.compose([*words, "device=cuda"]))
    return UpdateTimer(e, hardware.find_device(e.device))


def reserved(words: list[str]) -> dict[str, Any]:
    """Bytes of the device in use once an update is recorded and after all evaluations, updates between."""
    trial = built(words)
    once = cost.scoring_pass(trial.e, trial.game, trial.device, 3 * passes.CHUNK)
    assert once is not None
    seen = []
    for _ in range(EVALUATIONS):
        trial.update()
        trial.engine.settle()
        once()
        seen.append(device.used())
    return {"reserved": [seen[engine.WARM["cuda"] + 1], seen[-1]], "complaints": device.complaints()}


def out_of_memory(words: list[str]) -> dict[str, Any]:
    """A device whose memory others hold while an update is recorded."""
    trial = built(words)
    assert isinstance(trial.engine, engine.Graphed)
    recorded = trial.engine._capture

    def short(work: Callable[[], None]) -> Any:
        torch.cuda.empty_cache()
        device.limit(0)
        try:
            return recorded(work)
        finally:
            device.limit()

    trial.engine._capture = short  # type: ignore[method-assign]
    for _ in range(engine.WARM["cuda"] + 3):
        trial.update()
    return {"engine": trial.engine.summary}


def refusals(_: list[str]) -> dict[str, Any]:
    """That the device refuses what a real one refuses: reading a value, and a launch beside, in a capture."""
    device.complaints()
    x, side = torch.ones(3, device="cuda"), torch.cuda.Stream()
    answers = {}
    for name in ("read", "beside", "unjoined"):
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
                here = torch.cuda.current_stream()
                if name == "unjoined":
                    side.wait_stream(here)
                with torch.cuda.stream(here if name == "read" else side):
                    x.add_(1)
                if name == "read":
                    x[0].item()
            error = ""
        except RuntimeError as caught:
            error = type(caught).__name__
        answers[name] = [error, *device.complaints()]
    return answers


CHECKS: dict[str, Callable[[list[str]], dict[str, Any]]] = {
    "counted": counted,
    "reserved": reserved,
    "out_of_memory": out_of_memory,
    "refusals": refusals,
}


def main() -> None:
    device.patch()
    results = {}
    for name, check, words in json.load(sys.stdin):
        try:
            results[name] = CHECKS[check](words)
        except Exception:
            results[name] = {"error": traceback.format_exc()}
            device.complaints()
    print(json.dumps(results))


if __name__ == "__main__":
    main()
