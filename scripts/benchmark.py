"""Speed of ganlab's update on this machine, beside the plain eager loop of scripts/plain_loop.py.

    python scripts/benchmark.py [--cases cnn-sn,resnet-gp] [--d-steps 5,1] [--scoring] [--quick] ...

Each path (the plain loop, or ganlab by engine and precision) runs in its own process; paths take turns
(A B A B ...), and values are medians over the rounds. Images are noise, so no data is needed. ``bench.json``
is written after each case, and a case that it has already, measured with the same commit, versions and
settings, is not measured again; ``bench.md`` and ``bench.png`` show all of it.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from counting import count
from plain_loop import Loop

from ganlab.config import compose
from ganlab.config.files import groups
from ganlab.errors import GanlabError
from ganlab.experiment import Experiment
from ganlab.runs.provenance import git_revision, now, versions
from ganlab.sweeps.cost import UpdateTimer, in_turn, scoring_seconds
from ganlab.system.files import read_json, write_atomic, write_json
from ganlab.system.hardware import device_name, find_device, peak_memory_mb, set_precision
from ganlab.tables import print_table

NETS = {"cnn": "sngan_cifar", "resnet": "sngan_cifar_resnet"}
PLAIN = ("sn", "sn_per_update", "gp", "wn", "none")  # the methods of the plain loop
MAIN = [f"{net}-{method}" for method in PLAIN for net in ("resnet", "cnn")]
LOSS = {"cnn": "standard", "resnet": "hinge"}
BETAS = {"cnn": (0.5, 0.999), "resnet": (0.0, 0.9)}
PRECISIONS, ENGINES = ("fp32", "tf32", "bf16"), ("eager", "graph", "compile")
WARM_UP = 8  # updates on a GPU until graphs are recorded and compilation is done
MAX_UPDATES = 2000  # of a turn

Row = dict[str, Any]


class Path_(NamedTuple):  # noqa: N801 - `Path` is pathlib's
    """A way to run a case."""

    kind: str  # plain or ganlab
    precision: str
    engine: str = "eager"

    @property
    def name(self) -> str:
        return f"{'plain' if self.kind == 'plain' else self.engine} {self.precision}"


@dataclass(frozen=True)
class Case:
    """A network and a method at a size."""

    net: str
    method: str
    d_steps: int
    width: float
    batch_size: int

    @property
    def name(self) -> str:
        return f"{self.net}-{self.method}-d{self.d_steps}-w{self.width:g}-b{self.batch_size}"

    def options(self) -> Row:
        """Arguments of the plain loop. WGAN-GP's ResNet has 128 channels, SNGAN's G has 256."""
        g_channels = 128 if self.method == "gp" else 256
        return {
            "net": self.net,
            "method": self.method.removesuffix("_per_update"),
            "loss": "wasserstein" if self.method == "gp" else LOSS[self.net],
            "d_steps": self.d_steps,
            "batch_size": self.batch_size,
            "width": self.width,
            "g_channels": g_channels,
            "d_channels": 128,
            "betas": BETAS[self.net],
            "per_update": self.method.endswith("_per_update"),
        }

    def experiment(self, path: Path_, device: str, threads: int) -> Experiment:
        """The experiment that does the same: SNGAN's networks, one batch size for D and G."""
        o = self.options()
        overrides = [f"+experiment={NETS[self.net]}", f"normalization={o['method']}", f"loss={o['loss']}"]
        overrides += ["normalization.sn.update=per_update"] if o["per_update"] else []
        overrides += [f"d_steps={self.d_steps}", f"batch_size={self.batch_size}", "g_batch_size=null"]
        overrides += [f"architecture.width={self.width!r}", "dequantize=false", "lr_decay=none"]
        if self.net == "resnet":
            overrides += [f"architecture.{p}_channels={o[f'{p}_channels']}" for p in "gd"]
        overrides += [f"device={device}", f"precision={path.precision}", f"engine={path.engine}"]
        experiment: Experiment = compose.build(
            compose.compose([*overrides, "metric.extractor=cifar", f"threads={threads}"])
        )
        return experiment


Update = tuple[Callable[[], object], Callable[[], str]]  # an update, and the engine that runs it


def build(case: Case, path: Path_, device: str, threads: int) -> Update:
    if path.kind == "ganlab":
        timer = UpdateTimer(case.experiment(path, device, threads), find_device(device))
        return timer.update, lambda: str(timer.engine.summary["used"])
    place = find_device(device)
    set_precision("tf32" if path.precision == "tf32" else "fp32", place, False)
    torch.set_num_threads(threads)
    images = torch.randint(0, 256, (4 * case.batch_size, 3, 32, 32), dtype=torch.uint8, device=place)
    loop = Loop(images=images, bf16=path.precision == "bf16", **case.options())
    return loop.update, lambda: "eager"


def work(case: Case, path: Path_, threads: int) -> Row:
    """Operations of an update, and its FLOPs: counted at batch sizes 2 and 4 on a CPU and extrapolated."""
    counts = []
    for n in (2, 4):
        update, _ = build(
            Case(**{**asdict(case), "batch_size": n}), path._replace(engine="eager"), "cpu", threads
        )
        update()
        counts.append(count(update))
    per_image = (counts[1].flops - counts[0].flops) / 2
    flops = counts[0].flops + (case.batch_size - 2) * per_image
    return {"operations": counts[0].counts.total(), "flops": flops}


def serve(connection: Connection, case: Case, path: Path_, device: str, threads: int, start: float) -> None:
    """A path in a process of its own: for each number of updates received, the seconds that they take."""
    try:
        update, engine = build(case, path, device, threads)
        updates, first = 1, True
        while updates:
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(updates):
                update()
            if device != "cpu":
                torch.cuda.synchronize()
            row: Row = {"s": (time.perf_counter() - wall) / updates, "used": engine()}
            row |= {"cpu_s": (time.process_time() - cpu) / updates}
            row |= {"first_s": time.time() - start} if first else {}
            row |= {"rss_mb": peak_memory_mb(torch.device("cpu"))}
            row |= {"cuda_mb": peak_memory_mb(torch.device(device))} if device != "cpu" else {}
            connection.send(row)
            updates, first = connection.recv(), False
    except (GanlabError, RuntimeError, MemoryError) as error:
        message = str(error.mistakes[0]) if isinstance(error, GanlabError) else str(error).partition("\n")[0]
        connection.send({"error": f"{type(error).__name__}: {message}"[:200]})


class Child:
    """``serve`` in a process, and its first answer."""

    def __init__(self, case: Case, path: Path_, device: str, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when the process imports torch
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        arguments = (theirs, case, path, device, threads, time.time())
        self.process = context.Process(target=serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.first = self._receive()

    def updates(self, n: int) -> Row:
        self.connection.send(n)
        return self._receive()

    def _receive(self) -> Row:
        try:
            row: Row = self.connection.recv()
        except EOFError:
            self.process.join()
            row = {"error": f"the process ended with code {self.process.exitcode}; out of memory?"}
        return row

    def close(self) -> None:
        if self.process.is_alive() and "error" not in self.first:
            self.connection.send(0)
        self.process.join(10)
        self.process.kill()


def measure(case: Case, paths: Sequence[Path_], device: str, args: argparse.Namespace) -> dict[str, Row]:
    """A row for each path: seconds of an update, ratio to the first path round by round, operations."""
    rows: dict[str, Row] = {}
    children: dict[str, Child] = {}
    try:
        for path in paths:
            child = Child(case, path, device, args.threads)
            rows[path.name] = {**path._asdict(), **child.first}
            if "error" not in child.first:
                rows[path.name] |= work(case, path, args.threads)
                children[path.name] = child
        sizes = {name: _updates_in_turn(child, device, args.block) for name, child in children.items()}
        blocks = {name: (lambda name=name: children[name].updates(sizes[name])) for name in children}
        turns = in_turn(blocks, args.rounds, warm=0)
    finally:
        for child in children.values():
            child.close()
    base = next((name for name in children if name.startswith("plain")), None)
    for name, results in turns.items():
        if lost := next((r["error"] for r in results if "error" in r), None):
            rows[name]["error"] = lost
            continue
        seconds = [r["s"] for r in results]
        rows[name] |= {**results[-1], "s": statistics.median(seconds), "range": [min(seconds), max(seconds)]}
        if base is not None and "error" not in rows[base]:
            pairs = list(zip(turns[base], results, strict=True))
            ratios = [a["s"] / b["s"] for a, b in pairs]
            rows[name] |= {"ratio": statistics.median(ratios), "ratio_range": [min(ratios), max(ratios)]}
            rows[name]["ratio_cpu"] = statistics.median(a["cpu_s"] / b["cpu_s"] for a, b in pairs)
    return rows


def _updates_in_turn(child: Child, device: str, block: float) -> int:
    """The updates that take about ``block`` seconds, measured after the warm-up."""
    seconds = child.updates(WARM_UP if device != "cpu" else 1).get("s", block)
    if seconds * 20 < block:  # too short to time alone
        seconds = child.updates(20).get("s", block)
    return int(max(1, min(MAX_UPDATES, math.ceil(block / seconds - 0.5))))


def table(records: Mapping[str, Row]) -> list[dict[str, str]]:
    rows = []
    for name, record in records.items():
        for path, row in record["paths"].items():
            cells = {"case": name, "path": path}
            if "error" in row:
                rows.append({**cells, "updates/s": row["error"]})
                continue
            cells["path"] += f" ({row['used']})" if row["used"] != row["engine"] else ""
            cells |= {"updates/s": f"{1 / row['s']:.4g}", "s": f"{row['s']:.4g}"}
            cells["range"] = "{:.3g}-{:.3g}".format(*row["range"])
            if "ratio" in row:
                cells["x plain"] = "{:.2f} ({:.2f}-{:.2f})".format(row["ratio"], *row["ratio_range"])
                cells["x CPU"] = f"{row['ratio_cpu']:.2f}"
            cells |= {"operations": f"{row['operations']:,}", "GFLOP": f"{row['flops'] / 1e9:,.2f}"}
            cells["MB"] = f"{row['rss_mb']:,.0f}" + (
                f" + {row['cuda_mb']:,.0f} GPU" if "cuda_mb" in row else ""
            )
            rows.append({**cells, "first s": f"{row['first_s']:.1f}"})
        for extractor, s in record.get("scoring", {}).items():
            rows.append(
                {
                    "case": name,
                    "path": f"scoring, {extractor}",
                    "s": f"{s:.3g} an image" if s else "no weights",
                }
            )
    return rows


def markdown(rows: Sequence[Mapping[str, str]], records: Mapping[str, Row]) -> str:
    last = list(records.values())[-1]
    heads = max((list(row) for row in rows), key=len)
    lines = [
        "# Speed",
        "",
        f"- machine: {last['device']}, {os.cpu_count()} cores, {last['threads']} threads a path",
    ]
    lines += [
        f"- versions: {', '.join(f'{k} {v}' for k, v in versions().items() if v)}; commit {last['git']}"
    ]
    lines += [f"- measured {last['when']}, load {last['load']:.1f}"]
    lines += [f"- `{command}`" for command in dict.fromkeys(r["command"] for r in records.values())]
    lines += ["", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(row.get(head, '') for head in heads)} |" for row in rows]
    lines += [
        "",
        "Medians and ranges of the rounds; x plain: speed relative to `scripts/plain_loop.py`, x CPU:",
    ]
    lines += ["the same by CPU time; operations: dispatched in an update, without views and allocations.", ""]
    return "\n".join(lines)


def picture(records: Mapping[str, Row]) -> bytes:
    """Updates per second of each case and path, relative to the plain loop where it was measured."""
    from matplotlib.figure import Figure

    from ganlab.analysis import drawing

    bars = [(f"{case}, {path}", r) for case, record in records.items() for path, r in record["paths"].items()]
    bars = [(name, row) for name, row in bars if "error" not in row]
    with drawing.style():
        figure = Figure(figsize=(7.2, 0.22 * len(bars) + 1), layout="constrained")
        ax = figure.subplots()
        values = [row.get("ratio", 1) for _, row in bars]
        colors = ["#999999" if row["kind"] == "plain" else "#0072b2" for _, row in bars]
        drawn = ax.barh([name for name, _ in bars], values, color=colors)
        ax.bar_label(drawn, [f"{1 / row['s']:.3g}/s" for _, row in bars], padding=3, fontsize=7)
        ax.margins(x=0.15)
        ax.invert_yaxis()
        ax.set_xlabel("times as fast as the plain eager loop; labels: generator updates per second")
        return drawing.png(figure)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    def several(allowed: Sequence[Any], kind: type = str) -> Callable[[str], list[Any]]:
        def read(text: str) -> list[Any]:
            values = [kind(word) for word in text.split(",") if word]
            if unknown := [v for v in values if allowed and v not in allowed]:
                raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(allowed)}")
            return values

        return read

    cases = [
        f"{net}-{m}" for net in NETS for m in dict.fromkeys([*PLAIN, *groups([]).get("normalization", [])])
    ]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cases", type=several(cases), default=MAIN, help="NET-NORMALIZATION, comma-separated"
    )
    parser.add_argument("--d-steps", type=several((), int), default=[5, 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=float, default=2.0, help="seconds of a turn; at least one update")
    parser.add_argument("--width", type=float, default=1.0, help="multiplies all channel counts")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:i")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count(), help="of each path; default: one a core"
    )
    parser.add_argument(
        "--precision", type=several(PRECISIONS), help="default: fp32,bf16; on a GPU tf32,bf16"
    )
    parser.add_argument("--engine", type=several(ENGINES), help="default: eager; on a GPU eager,graph")
    parser.add_argument("--no-plain", action="store_true", help="leave the plain loop out")
    parser.add_argument("--scoring", action="store_true", help="also seconds to score an image")
    parser.add_argument(
        "--quick", action="store_true", help="width 1/16, batch 8, two short rounds, two cases"
    )
    parser.add_argument("--out", type=Path, help="default: outputs/bench/DEVICE")
    args = parser.parse_args(arguments)
    if args.quick:
        quick = {
            "cases": ["cnn-sn", "resnet-gp"],
            "width": 1 / 16,
            "batch_size": 8,
            "rounds": 2,
            "block": 0.2,
        }
        vars(args).update({k: v for k, v in quick.items() if getattr(args, k) == parser.get_default(k)})
    if (
        min(args.rounds, args.threads, *args.d_steps) < 1
        or args.batch_size < 2
        or min(args.block, args.width) <= 0
    ):
        parser.error(
            "--rounds, --threads and --d-steps are 1 or more, --batch-size 2, --block and --width above 0"
        )
    return args


def main(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    device = find_device(args.device)
    cuda = device.type == "cuda"
    args.precision = args.precision or (["tf32", "bf16"] if cuda else ["fp32", "bf16"])
    args.engine = args.engine or (["eager", "graph"] if cuda else ["eager"])
    out = args.out or Path("outputs/bench") / ("gpu" if cuda else "cpu")
    out.mkdir(parents=True, exist_ok=True)
    records: dict[str, Row] = read_json(out / "bench.json") or {}
    stamp: Row = {"device": device_name(device), "threads": args.threads, "git": git_revision()}
    stamp |= {"versions": versions(), "rounds": args.rounds, "block": args.block}
    for net, _, method in (name.partition("-") for name in args.cases):
        for d_steps in args.d_steps:
            case = Case(net, method, d_steps, args.width, args.batch_size)
            paths = [Path_("ganlab", p, e) for e in args.engine for p in args.precision]
            if method in PLAIN and not args.no_plain:
                paths.insert(0, Path_("plain", "tf32" if cuda else "fp32"))
            settings = {**stamp, "names": [path.name for path in paths], "with_scoring": args.scoring}
            if all(records.get(case.name, {}).get(key) == value for key, value in settings.items()):
                continue
            print(f"{case.name}: {', '.join(settings['names'])}", file=sys.stderr)
            record: Row = {"paths": measure(case, paths, str(device), args)}
            if args.scoring:
                e = case.experiment(paths[-1], str(device), args.threads)
                record["scoring"] = {
                    e.metric.extractor.name: scoring_seconds(e, UpdateTimer(e, device).game, device)
                }
            record |= {"when": now(), "load": os.getloadavg()[0]}
            record["command"] = shlex.join(["python", "scripts/benchmark.py", *arguments])
            records[case.name] = {**settings, **record}
            write_json(out / "bench.json", records)
    rows = table(records)
    heads = max((list(row) for row in rows), key=len)
    print_table("Updates", heads, [[row.get(head) for head in heads] for row in rows])
    write_atomic(out / "bench.md", markdown(rows, records).encode())
    write_atomic(out / "bench.png", picture(records))
    print(f"{out}: bench.json, bench.md, bench.png")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except GanlabError as error:
        sys.exit("\n".join(f"benchmark: {mistake}" for mistake in error.mistakes))
