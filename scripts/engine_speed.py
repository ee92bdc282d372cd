"""CPU time of an update run eagerly, over that of the same update recorded and replayed.

    python scripts/engine_speed.py +experiment=wgan_gp_toy dataset=25gaussians normalization=sn ...

Both run on one thread in one process, in turns of 20 updates (A B A B ...); the times are medians of seven
turns. The states must be equal to the bit at the end.
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

from ganlab.config import compose
from ganlab.sweeps.cost import UpdateTimer, in_turn
from ganlab.training.build import pack_gan


def main(overrides: list[str]) -> int:
    timers = {}
    for engine in ("eager", "graph"):
        words = [*overrides, f"engine={engine}", "device=cpu", "threads=1"]
        timers[engine] = UpdateTimer(compose.build(compose.compose(words)), torch.device("cpu"))

    def turn(timer: UpdateTimer) -> float:
        began = time.process_time()
        for _ in range(20):
            timer.update()
        return time.process_time() - began

    seconds = in_turn({name: lambda timer=t: turn(timer) for name, t in timers.items()}, 7)  # type: ignore[misc]
    eager, graph = (1000 * statistics.median(s) / 20 for s in seconds.values())
    a, b = (pack_gan(t.game)[0] for t in timers.values())
    equal = all(torch.equal(a[name], b[name]) for name in a)
    how = timers["graph"].engine
    print(f"eager {eager:.1f} ms, {how.used} {graph:.1f} ms: {eager / graph:.2f}, equal: {equal} {how.why}")
    return not equal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
