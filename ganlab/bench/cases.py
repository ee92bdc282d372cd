"""What is measured: a net, a method, D updates per generator update; and each way to run it, a path."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ganlab.bench import KEYS
from ganlab.config.files import groups, user_dirs
from ganlab.errors import ConfigError, Mistake, suggest
from ganlab.system.paths import PACKAGE

NETS = {"cnn": "sngan_cifar", "resnet": "sngan_cifar_resnet"}
METHODS = ("sn", "sn_per_update", "gp", "wn", "none")  # those that the plain loop knows
PRESETS = {
    "main": tuple(f"{net}-{method}" for method in METHODS for net in ("resnet", "cnn")),
    "fig1": tuple(f"cnn-{m}" for m in ("sn", "gp", "wn", "wc", "bn", "ln", "orthonormal")),
}
LOSS = {"cnn": "standard", "resnet": "hinge"}
BETAS = {"cnn": (0.5, 0.999), "resnet": (0.0, 0.9)}
PRECISIONS, ENGINES = ("fp32", "tf32", "bf16"), ("eager", "graph", "compile", "auto")
SIZES = {"cnn": 8, "resnet": 32}  # what the images' side is a multiple of; the ResNet's is 32


class Path_(NamedTuple):  # noqa: N801 - `Path` is a file's
    """One way to run a case. ``kind``: ``plain`` or ``ganlab``."""

    kind: str
    precision: str
    engine: str = "eager"

    @property
    def name(self) -> str:
        return f"plain {self.precision}" if self.kind == "plain" else f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Case:
    """A net and a method at a size. ``name``: as ``cnn-sn-d5``."""

    net: str
    method: str
    d_steps: int
    width: float = 1.0
    batch_size: int = 64
    resolution: int = 32

    @property
    def name(self) -> str:
        return f"{self.net}-{self.method}-d{self.d_steps}"

    @property
    def key(self) -> str:
        """The name and the sizes."""
        side = "" if self.resolution == 32 else f"-{self.resolution}px"
        return f"{self.name}-w{self.width:g}-b{self.batch_size}{side}"

    @property
    def loss(self) -> str:
        return "wasserstein" if self.method == "gp" else LOSS[self.net]

    @property
    def channels(self) -> tuple[int, int]:
        """Of the ResNet's G and D: WGAN-GP's G is as narrow as its D."""
        return (128, 128) if self.method == "gp" else (256, 128)

    def words(self, path: Path_, device: str, threads: int) -> list[str]:
        """What ``ganlab train`` would be told, but for the images: SNGAN's nets, one batch size."""
        method = self.method.removesuffix("_per_update")
        words = [f"+experiment={NETS[self.net]}", f"normalization={method}", f"loss={self.loss}"]
        words += ["normalization.sn.update=per_update"] if method != self.method else []
        words += [f"d_steps={self.d_steps}", f"batch_size={self.batch_size}", "g_batch_size=null"]
        words += [f"architecture.width={self.width!r}", "dequantize=false", "lr_decay=none"]
        if self.net == "resnet":
            words += [f"architecture.{k}_channels={n}" for k, n in zip("gd", self.channels, strict=True)]
        words += [f"device={device}", f"precision={path.precision}", f"engine={path.engine}"]
        return [*words, "metric.extractor=cifar", f"threads={threads}"]

    def plain(self) -> dict[str, Any]:
        """The arguments of the plain loop's ``Loop``, beside the images."""
        g, d = self.channels
        return {
            "net": self.net,
            "method": self.method.removesuffix("_per_update"),
            "loss": self.loss,
            "d_steps": self.d_steps,
            "batch_size": self.batch_size,
            "width": self.width,
            "g_channels": g,
            "d_channels": d,
            "betas": BETAS[self.net],
            "per_update": self.method.endswith("_per_update"),
        }

    def told(self) -> dict[str, Any]:
        return asdict(self)


class Asked(NamedTuple):
    """A command line of ``ganlab bench``, checked."""

    cases: list[Case]
    precisions: list[str]
    engines: list[str]
    width: float
    block: float


def asked(own: Mapping[str, Any], cuda: bool, dirs: Sequence[str] = ()) -> Asked:
    """The cases and paths asked for. Raises ConfigError with every mistake."""
    wrong: list[Mistake] = []
    width, block = (_number(own[key], key, wrong) for key in ("width", "block"))
    names, counts = _words(own["cases"]), _words(own["d_steps"])
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", own["device"]):
        wrong.append(Mistake("device", f"{own['device']!r} is unknown", "use auto, cpu, cuda or cuda:i"))
    wrong += _too_small(own)
    if own["threads"] > (cores := os.cpu_count() or 1):
        wrong.append(Mistake("threads", f"{own['threads']} is more than the {cores} cores", "use 0 for all"))
    wrong += [
        Mistake("d_steps", f"{n!r} is not a whole number above 0", "write d_steps=5,1")
        for n in counts
        if not re.fullmatch(r"[1-9]\d{0,3}", n)
    ]
    found = [c for name in names for c in PRESETS.get(name, (name,))]
    methods = [*METHODS, *groups(user_dirs(dirs)).get("normalization", [])]
    for name in found:
        net, _, method = name.partition("-")
        if net not in NETS:
            wrong.append(
                Mistake(
                    "cases",
                    f"there is no {name!r}",
                    suggest(
                        name, [*PRESETS, *PRESETS["main"]], all_of="write NET-METHOD, as cnn-sn, or main"
                    ),
                )
            )
        elif method not in methods:
            wrong.append(Mistake("cases", f"{name!r}: there is no {method!r}", suggest(method, methods)))
    chosen = {}
    for key, known in (("precision", PRECISIONS), ("engine", ENGINES)):
        chosen[key] = _words(own[key])
        wrong += [
            Mistake(key, f"there is no {w!r}", suggest(w, list(known))) for w in chosen[key] if w not in known
        ]
    if wrong:
        raise ConfigError(dict.fromkeys(wrong))
    cases = [
        Case(net, method, int(n), width, own["batch_size"])
        for net, _, method in (name.partition("-") for name in dict.fromkeys(found))
        for n in counts
    ]
    precisions = chosen["precision"] or (["tf32", "bf16"] if cuda else ["fp32", "bf16"])
    engines = chosen["engine"] or (["eager", "graph"] if cuda else ["eager"])
    return Asked(cases, precisions, engines, width, block)


def script() -> Path:
    """The plain loop's file: in a wheel beside this one, in a checkout in ``scripts/``."""
    for folder in (Path(__file__).parent, PACKAGE.parent / "scripts"):
        if (folder / "plain_loop.py").is_file():
            return folder / "plain_loop.py"
    raise ConfigError(
        "plain", f"no plain_loop.py in or beside {PACKAGE}", "write plain=false, or reinstall ganlab"
    )


def _too_small(own: Mapping[str, Any]) -> list[Mistake]:
    least = {"rounds": 1, "batch_size": 2, "threads": 0, "minutes": 0}
    return [
        Mistake(key, f"{own[key]} is less than {n}", f"the default is {KEYS[key][0]}")
        for key, n in least.items()
        if own[key] < n
    ]


def _words(text: str) -> list[str]:
    return [w.strip() for w in str(text).strip("[]").split(",") if w.strip()]


def _number(text: str, key: str, wrong: list[Mistake]) -> float:
    try:
        value = float(text)
        if not 0 < value < 1e6:
            raise ValueError
    except ValueError:
        wrong.append(Mistake(key, f"{text!r} is not a number above 0", f"the default is {KEYS[key][0]}"))
        return 1.0
    return value
