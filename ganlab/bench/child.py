"""Subprocess that runs one path of a case: reads requests as JSON lines on stdin, writes JSON replies.

    python -m ganlab.bench.child      {"do": "start", ...} {"do": "run", "updates": 3} ...

``start`` builds the networks and runs the first update, ``run`` runs more updates, ``memory`` returns the
peak memory. A reply holds numbers, or ``error`` with the mistakes of a GanlabError. End of input ends the
process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ganlab.errors import EnvError, GanlabError

Message = dict[str, Any]


class Trainer:
    """Runs updates; ``train(n)`` returns when they are done on the device.

    describe: returns the engine used and the reason, for the record.
    """

    def __init__(self, update: Callable[[], object], device: Any, describe: Callable[[], Message]) -> None:
        self.update, self.device, self.describe = update, device, describe

    def train(self, updates: int) -> None:
        for _ in range(updates):
            self.update()
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def ganlab_trainer(spec: Message) -> Trainer:
    """ganlab's engines, as in a run; ``lanes`` of them alternate in this process on shared images."""
    from ganlab.bench import games

    return Trainer(*games.ganlab_updates(spec["words"], spec["resolution"], spec.get("lanes", 1)))


def plain_trainer(spec: Message) -> Trainer:
    """The plain loop, with its own images."""
    from ganlab.bench import reference

    return Trainer(*reference.plain_updates(Path(spec["script"]), spec))


class Server:
    """State of the subprocess; each public method handles one kind of request."""

    def __init__(self) -> None:
        self.trainer: Trainer | None = None
        self.scorer: Any = None

    def start(self, spec: Message) -> Message:
        """Build and run the first update. ``first_s``: seconds since the process was launched."""
        build = {"ganlab": ganlab_trainer, "plain": plain_trainer}[spec["kind"]]
        self.trainer = build(spec)
        build_time = time.time()
        self.trainer.train(1)
        now = time.time()
        return {
            "first_s": now - spec["asked"],
            "build_s": build_time - spec["asked"],
            **self.trainer.describe(),
        }

    def run(self, spec: Message) -> Message:
        """Wall-clock and CPU seconds of ``updates`` updates."""
        assert self.trainer is not None, "start comes first"
        wall, cpu = time.perf_counter(), time.process_time()
        self.trainer.train(spec["updates"])
        return {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - cpu,
            **self.trainer.describe(),
        }

    def memory(self, spec: Message) -> Message:
        """Peak memory of the process and, on a GPU, of the allocator, in 10^6 bytes."""
        import torch

        from ganlab.system.hardware import peak_memory_mb

        peaks = {"rss_mb": peak_memory_mb(torch.device("cpu"))}
        if self.trainer is not None and self.trainer.device.type == "cuda":
            peaks["cuda_mb"] = peak_memory_mb(self.trainer.device)
        return peaks

    def count(self, spec: Message) -> Message:
        from ganlab.bench import games

        return games.count_work(spec)

    def peak(self, spec: Message) -> Message:
        from ganlab.bench import reference

        return reference.peak(spec["device"], spec["precisions"], spec["threads"], spec["seconds"])

    def score(self, spec: Message) -> Message:
        from ganlab.bench import scoring

        self.scorer = self.scorer or scoring.Scorer(spec)
        scores: Message = self.scorer.score(spec["samples"])
        return scores


def serve() -> int:
    """Reply until end of input. Output of libraries is redirected to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    server = Server()
    for line in sys.stdin:
        spec = json.loads(line)
        try:
            answer = getattr(server, spec["do"])(spec)
        except GanlabError as error:
            answer = {"error": [list(m) for m in error.mistakes], "code": error.code}
        except MemoryError as error:
            answer = _error_reply("out of memory", error)
        except RuntimeError as error:  # from torch: out of memory, or an unsupported operation
            answer = _error_reply(type(error).__name__, error)
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _error_reply(kind: str, error: BaseException) -> Message:
    first = (str(error).strip().splitlines() or [""])[0]
    return {"error": [["bench", f"{kind}: {first}"[:300], ""]], "code": EnvError.code}


if __name__ == "__main__":
    sys.exit(serve())
