"""The process that plays one path of a case: it answers, line by line, what it is asked on its input.

    python -m ganlab.bench.child      {"do": "start", ...} {"do": "run", "updates": 3} ... each a line of JSON

``start`` builds and plays the first update; ``run`` plays some more; ``memory`` tells the peak so far. The
answer is a line of JSON too: numbers, or ``error`` in the words of ``errors.py``. The end of its input ends
it.
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

Answer = dict[str, Any]


class Player:
    """Plays updates: ``play(n)`` returns when they are done on the device. ``told``: how, for the record."""

    def __init__(self, update: Callable[[], object], device: Any, told: Callable[[], Answer]) -> None:
        self.update, self.device, self.told = update, device, told

    def play(self, updates: int) -> None:
        for _ in range(updates):
            self.update()
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def ganlab_player(spec: Answer) -> Player:
    """Engines as runs have them: ``lanes`` of them take turns in this process, on one set of images."""
    from ganlab.bench import games

    return Player(*games.ganlab(spec["words"], spec["resolution"], spec.get("lanes", 1)))


def plain_player(spec: Answer) -> Player:
    """The plain loop, on images of its own."""
    from ganlab.bench import reference

    return Player(*reference.plain(Path(spec["script"]), spec))


class Server:
    """The state between two questions."""

    def __init__(self) -> None:
        self.player: Player | None = None
        self.scorer: Any = None

    def start(self, spec: Answer) -> Answer:
        """Build, play the first update. ``first_s``: seconds since the process was asked for."""
        make = {"ganlab": ganlab_player, "plain": plain_player}[spec["kind"]]
        self.player = make(spec)
        built = time.time()
        self.player.play(1)
        now = time.time()
        return {"first_s": now - spec["asked"], "build_s": built - spec["asked"], **self.player.told()}

    def run(self, spec: Answer) -> Answer:
        """Wall and processor seconds of ``updates`` updates."""
        assert self.player is not None, "start comes first"
        wall, cpu = time.perf_counter(), time.process_time()
        self.player.play(spec["updates"])
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu, **self.player.told()}

    def memory(self, spec: Answer) -> Answer:
        """Peak of the process and, on a GPU, of its allocator, in 10^6 bytes."""
        import torch

        from ganlab.system.hardware import peak_memory_mb

        told = {"rss_mb": peak_memory_mb(torch.device("cpu"))}
        if self.player is not None and self.player.device.type == "cuda":
            told["cuda_mb"] = peak_memory_mb(self.player.device)
        return told

    def count(self, spec: Answer) -> Answer:
        from ganlab.bench import games

        return games.counted(spec)

    def peak(self, spec: Answer) -> Answer:
        from ganlab.bench import reference

        return reference.peak(spec["device"], spec["precisions"], spec["threads"], spec["seconds"])

    def score(self, spec: Answer) -> Answer:
        from ganlab.bench import scoring

        self.scorer = self.scorer or scoring.Scorer(spec)
        told: Answer = self.scorer.score(spec["samples"])
        return told


def serve() -> int:
    """Answer until the input ends. What libraries print goes to stderr, not between the answers."""
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
            answer = _refused("out of memory", error)
        except RuntimeError as error:  # of torch: out of memory, an operation that is not there
            answer = _refused(type(error).__name__, error)
        print(json.dumps(answer), file=answers, flush=True)
    return 0


def _refused(what: str, error: BaseException) -> Answer:
    first = (str(error).strip().splitlines() or [""])[0]
    return {"error": [["bench", f"{what}: {first}"[:300], ""]], "code": EnvError.code}


if __name__ == "__main__":
    sys.exit(serve())
