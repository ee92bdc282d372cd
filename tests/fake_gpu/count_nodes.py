"""Counts the nodes of an update's CUDA graph, without a GPU: exact, the same every time.

    python tests/fake_gpu/count_nodes.py [NAME ...]        those of budgets.json: batch 64, bf16
    python tests/fake_gpu/count_nodes.py words +experiment=sngan_cifar normalization=[bn] ...

The second form prints the nodes of one config by the kernel's name.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fake_gpu import ROOT, environment, missing

BUDGETS = Path(__file__).with_name("budgets.json")
COMMON = "batch_size=64 g_batch_size=null precision=bf16 engine=graph metric.extractor=cifar"
NOISE = re.compile(
    r"\(anonymous namespace\)::|at::native::|binary_internal::|void |gpu_kernel_impl_nocast<|c10::"
)


def counted(words: list[str]) -> dict[str, Any]:
    """In a process on the fake device: the nodes of an update of this config, on random images."""
    from fake_gpu import device
    from ganlab.config import compose
    from ganlab.sweeps.cost import UpdateTimer
    from ganlab.system import hardware

    e = compose.build(compose.compose([*words, "device=cuda"]))
    before = device.graphs()
    device.complaints()
    trial = UpdateTimer(e, hardware.find_device(e.device))
    trial.warm_up()
    trial.update()
    nodes = device.nodes() if device.graphs() > before else {}
    return {"engine": trial.engine.summary, "nodes": nodes, "complaints": device.complaints()}


def count(configs: list[list[str]]) -> list[dict[str, Any]]:
    """``counted`` of each config, in one process on the fake device."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child"]
    text = json.dumps(configs)
    done = subprocess.run(
        command, input=text, stdout=subprocess.PIPE, text=True, env=environment(), check=True, cwd=ROOT
    )
    counts: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return counts


def budgets(names: list[str]) -> dict[str, tuple[int, list[str]]]:
    """Most nodes of an update and the words of ``ganlab train``, by name: those named, or all."""
    table = json.loads(BUDGETS.read_text())
    chosen = names or list(table)
    return {name: (table[name]["nodes"], f"{table[name]['words']} {COMMON}".split()) for name in chosen}


def main(args: list[str]) -> int:
    if args == ["--child"]:
        from fake_gpu.device import patch

        patch()
        print(json.dumps([counted(words) for words in json.load(sys.stdin)]))
        return 0
    if reason := missing():
        print(f"no fake device: {reason}", file=sys.stderr)
        return 1
    if args[:1] == ["words"]:
        (result,) = count([args[1:]])
        for name, n in result["nodes"].items():
            print(f"{n:6} {NOISE.sub('', name)[:130]}")
        print(f"{sum(result['nodes'].values()):6} nodes; {result['engine']}")
        print("\n".join(result["complaints"]), end="")
        return 0
    table = budgets(args)
    for (name, (budget, _)), result in zip(table.items(), count([b for _, b in table.values()]), strict=True):
        print(f"{sum(result['nodes'].values()):6} nodes, budget {budget:6}  {name}")
        print("\n".join(result["complaints"]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
