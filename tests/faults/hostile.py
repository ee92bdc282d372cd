"""Checkpoints, weights, data, configs, run folders of someone else: nothing in them runs or escapes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from . import hostile_files as files
from .base import LINE, Case, Failed, Figure, pixel_means, run_here, tiny
from .watch import watching

MAX_S = 20.0  # CPU seconds that one file may take, on a busy machine
MAX_MB = 200  # beside twice the file


@contextlib.contextmanager
def quick() -> Iterator[None]:
    """Inside, features cost nothing, and nothing is downloaded."""
    from ganlab.extractors.cifar import CifarExtractor

    call, env = CifarExtractor.__call__, os.environ.get("GANLAB_OFFLINE")
    CifarExtractor.__call__ = pixel_means  # type: ignore[assignment, method-assign]
    os.environ["GANLAB_OFFLINE"] = "1"
    try:
        yield
    finally:
        CifarExtractor.__call__ = call  # type: ignore[method-assign]
        os.environ.pop("GANLAB_OFFLINE")
        if env is not None:
            os.environ["GANLAB_OFFLINE"] = env


def trained(place: Path, *more: str) -> Path:
    """A small sound run in ``place/run``."""
    os.chdir(place)
    with quick():
        done = run_here(*tiny("steps=2", "save_every=1", "metric.protocol.is_n_fake=32", *more))
    assert done.code == 0, done.err
    return place / "run"


class Attack:
    """One case: commands one after the other, each with what was done to the machine meanwhile."""

    def __init__(self, place: Path) -> None:
        self.place, self.failures, self.count = place, list[str](), 0
        os.environ["GANLAB_TOKEN"] = "s3cret-of-the-environment"

    def run(
        self,
        name: str,
        words: Sequence[str],
        codes: Sequence[int],
        allowed: Sequence[Path] = (),
        size: int = 0,
    ) -> None:
        """``ganlab words`` must end with one of ``codes``, write below ``allowed`` and the cache alone."""
        self.count += 1
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with quick(), watching(Path(os.environ["GANLAB_CACHE"]), *allowed) as watch:
            done = run_here(*words)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 - 2 * size / 1e6
        canaries = [*self.place.rglob(files.CANARY)]
        why = watch.summary()
        if canaries:
            why = "code was executed"
        elif done.code not in codes:
            why = f"code {done.code}: {done.err[-200:]}"
        elif "Traceback" in done.err + done.out or any(len(s) > LINE for s in done.err.splitlines()):
            why = f"printed {done.err[-200:]}"
        elif done.seconds > MAX_S or grown > MAX_MB:
            why = f"took {done.seconds:.1f} s, {grown:.0f} MB"
        if why:
            self.failures.append(f"{name}: {why}")
            for canary in canaries:
                canary.unlink()

    def end(self, count: int) -> None:
        if self.failures:
            raise Failed(len(self.failures), "; ".join(self.failures[:15]))
        assert self.count == count, f"{self.count} commands, not {count}"


def pickled(name: str) -> Callable[[Path], None]:
    """One payload as weights, as a checkpoint and as data."""

    def check(place: Path) -> None:
        attack, content = Attack(place), files.payloads(place)[name]
        run = trained(place)
        bad = place / ("bad.npz" if "np" in name else "bad.pth")
        bad.write_bytes(content)
        data = ["train", "dataset=folder", f"dataset.path={bad}", "dataset.resolution=16", "run_dir=new"]
        files.plant(run, tensors=content)
        for words, code in (
            (tiny(f"metric.weights={bad}", "run_dir=new"), 5),
            (tiny(f"metric.weights={bad}", "metric.extractor=inception", "run_dir=new"), 5),
            (data, 3),
        ):
            attack.run(" ".join(words[-2:]), words, (code,))
        attack.run("as a checkpoint", ["sample", "run", "n=2"], (4,), [run])
        attack.run("to evaluate", ["evaluate", str(bad)], (2, 3, 5))
        attack.end(5)

    return check


def tensors(place: Path) -> None:
    """Well-signed checkpoints that lie; checked, sampled, resumed."""
    attack = Attack(place)
    run = trained(place)
    shutil.copytree(run, place / "sound")

    def fresh() -> None:
        shutil.rmtree(run)
        shutil.copytree(place / "sound", run)

    resume = tiny("steps=3", "save_every=1", "metric.protocol.is_n_fake=32")
    for name, content in files.crafted().items():
        fresh()
        files.plant(run, tensors=content, tensors_=1)
        attack.run(f"sample: {name}", ["sample", "run", "n=2"], (4,), [run], len(content))
        attack.run(f"check: {name}", ["check", "run"], (4,), [run], len(content))
    for name, content in files.states().items():
        fresh()
        files.plant(run, state=content)
        attack.run(f"state, {name}", ["sample", "run", "n=2"], (4,), [run], len(content))
        attack.run(f"resume, {name}", resume, (4,), [run], len(content))
    free = [word for word in resume if not word.startswith("threads=")]
    for name, change in {
        "10**9 threads": lambda s: s.update(threads=10**9),
        "0 threads": lambda s: s.update(threads=0),
        "text for threads": lambda s: s.update(threads="many"),
        "10**12 classes": lambda s: s.update(num_classes=10**12),
        "a step of text": lambda s: s["progress"].update(best={"step": "x"}),
        "no progress": lambda s: s.pop("progress"),
    }.items():
        fresh()
        files.edited(run, change)
        attack.run(f"resume, {name}", free, (0, 4) if "classes" in name else (4,), [run])
    attack.end(68)


def folders(place: Path) -> None:
    """A run folder whose files say what they should not."""
    attack = Attack(place)
    run = trained(place)
    sound = yaml.safe_load((run / "config.yaml").read_text())
    for name, (key, value) in files.configs().items():
        (run / "config.yaml").write_text(yaml.safe_dump(changed(sound, key, value), sort_keys=False))
        for words in (["evaluate", "run"], ["sample", "run", "n=2"]):
            attack.run(f"{words[0]}: {name}", words, (2, 3, 4, 5), [run])
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    for name, text in {
        "an alias bomb": bomb,
        "1,000 deep": "a: " + "[" * 1000 + "]" * 1000,
        "a tag": f"a: !!python/object/apply:os.system ['touch {place}/canary']",
        "10 MB": "#" * 10_000_000,
        "nothing": "",
    }.items():
        (run / "config.yaml").write_text(text)
        for words in (["sample", "run", "n=2"], ["explain", "run"], ["report", "run", "out=out"]):
            codes = (0, 2, 3) if words[0] == "report" else (2, 3)
            attack.run(f"{words[0]}: {name}", words, codes, [run, place / "out"])
    (run / "config.yaml").unlink()
    os.mkfifo(run / "config.yaml")
    attack.run("a pipe for a config", ["sample", "run", "n=2"], (2, 3, 5), [run])
    (run / "config.yaml").unlink()
    secret = changed(
        sound, "dataset.path" if "path" in sound["dataset"] else "run_dir", "${oc.env:GANLAB_TOKEN}"
    )
    (run / "config.yaml").write_text(yaml.safe_dump(secret, sort_keys=False))
    attack.run("a token of the environment", ["evaluate", "run"], (0, 2, 3), [run])
    token = os.environ["GANLAB_TOKEN"].encode()
    assert not [p for p in place.rglob("*") if p.is_file() and token in p.read_bytes()], "the token leaks"
    (run / "config.yaml").write_text(yaml.safe_dump(sound, sort_keys=False))
    for name, text in {
        "deep": "[" * 100_000,
        "nan": '{"step": NaN}',
        "a list": "[]",
        "binary": "\x00\xff",
    }.items():
        for file in ("result.json", "metrics.jsonl"):
            (run / file).write_text(text)
            for words in (["status", "run"], ["report", "run", "out=out"]):
                attack.run(f"{words[0]}: {file}, {name}", words, (0, 2, 3, 4), [run, place / "out"])
    attack.end(85)


def changed(tree: Mapping[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A tree with another value at a dotted key."""
    copy = json.loads(json.dumps(tree))
    *parents, last = key.split(".")
    node = copy
    for name in parents:
        if not isinstance(node.get(name), dict):
            node[name] = {}
        node = node[name]
    node[last] = value
    return dict(copy)


def sent_configs(place: Path) -> None:
    """A folder of configs that someone sent."""
    attack = Attack(place)
    for number, (name, (content, words)) in enumerate(files.user_configs().items()):
        here = place / str(number)
        for path, data in content.items():
            (here / path).parent.mkdir(parents=True, exist_ok=True)
            (here / path).write_bytes(data)
        os.chdir(here)
        attack.run(
            name,
            ["train", "--config-dir", "mine", *words],
            (2, 5) if name == "mode" else (2,),
            [here / "outputs"],
        )
    os.chdir(place)
    for word in (
        "hydra.callbacks.x._target_=os.system",
        "hydra/job_logging=x",
        "hydra.searchpath=[pkg://os]",
        "hydra.sweeper._target_=os.system",
        "loss._target_=os.system",
        "+x._target_=os.system",
        "optimizer._target_=torch.optim.sys.exit",
    ):
        attack.run(word, ["train", word], (2,))
        attack.run(f"-m {word}", ["train", "-m", "seed=1,2", word], (2,))
    attack.end(37)


def cases() -> list[Case]:
    return [
        *(Case(f"{name}: as weights, checkpoint, data", pickled(name), 5) for name in files.payloads(Path())),
        Case("crafted checkpoints", tensors, 68),
        Case("crafted run folders", folders, 85),
        Case("configs that were sent", sent_configs, 37),
    ]


FIGURES = [Figure("hostile", "Hostile weights, checkpoints, data, configs, run folders: inert", cases)]
