"""Benchmark cases (network, method, d_steps) and paths (ways to run a case)."""

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
METHODS = ("sn", "sn_per_update", "gp", "wn", "none")  # methods that the plain loop implements
PRESETS = {
    "main": tuple(f"{net}-{method}" for method in METHODS for net in ("resnet", "cnn")),
    "fig1": tuple(f"cnn-{m}" for m in ("sn", "gp", "wn", "wc", "bn", "ln", "orthonormal")),
}
LOSS = {"cnn": "standard", "resnet": "hinge"}
BETAS = {"cnn": (0.5, 0.999), "resnet": (0.0, 0.9)}
PRECISIONS, ENGINES = ("fp32", "tf32", "bf16"), ("eager", "graph", "compile", "auto")
SIZES = {"cnn": 8, "resnet": 32}  # image sides are multiples of these; the ResNet needs exactly 32


class Path_(NamedTuple):  # noqa: N801 - `Path` is pathlib's
    """One way to run a case. ``kind``: ``plain`` or ``ganlab``."""

    kind: str
    precision: str
    engine: str = "eager"

    @property
    def name(self) -> str:
        return f"plain {self.precision}" if self.kind == "plain" else f"{self.engine} {self.precision}"


@dataclass(frozen=True)
class Case:
    """A network and a method at a size. ``name``: such as ``cnn-sn-d5``."""

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
        """Name and sizes, as used in bench.json."""
        side = "" if self.resolution == 32 else f"-{self.resolution}px"
        return f"{self.name}-w{self.width:g}-b{self.batch_size}{side}"

    @property
    def loss(self) -> str:
        return "wasserstein" if self.method == "gp" else LOSS[self.net]

    @property
    def channels(self) -> tuple[int, int]:
        """Channels of the ResNet's G and D; in WGAN-GP both have 128."""
        return (128, 128) if self.method == "gp" else (256, 128)

    def overrides(self, path: Path_, device: str, threads: int) -> list[str]:
        """Overrides for ``ganlab train``, except the dataset: SNGAN's networks, one batch size."""
        method = self.method.removesuffix("_per_update")
        overrides = [f"+experiment={NETS[self.net]}", f"normalization={method}", f"loss={self.loss}"]
        overrides += ["normalization.sn.update=per_update"] if method != self.method else []
        overrides += [f"d_steps={self.d_steps}", f"batch_size={self.batch_size}", "g_batch_size=null"]
        overrides += [f"architecture.width={self.width!r}", "dequantize=false", "lr_decay=none"]
        if self.net == "resnet":
            overrides += [f"architecture.{k}_channels={n}" for k, n in zip("gd", self.channels, strict=True)]
        overrides += [f"device={device}", f"precision={path.precision}", f"engine={path.engine}"]
        return [*overrides, "metric.extractor=cifar", f"threads={threads}"]

    def plain(self) -> dict[str, Any]:
        """Keyword arguments of the plain loop's ``Loop``, except the images."""
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

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Request(NamedTuple):
    """Validated options of ``ganlab bench``."""

    cases: list[Case]
    precisions: list[str]
    engines: list[str]
    width: float
    block: float


def parse_request(own: Mapping[str, Any], cuda: bool, dirs: Sequence[str] = ()) -> Request:
    """Validate the options. Raises ConfigError with all mistakes."""
    mistakes: list[Mistake] = []
    width, block = (_number(own[key], key, mistakes) for key in ("width", "block"))
    names, counts = _split_list(own["cases"]), _split_list(own["d_steps"])
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", own["device"]):
        mistakes.append(
            Mistake("device", f"{own['device']!r} is not a device", "use auto, cpu, cuda or cuda:i")
        )
    mistakes += _too_small(own)
    if own["threads"] > (cores := os.cpu_count() or 1):
        mistakes.append(
            Mistake("threads", f"{own['threads']} exceeds the {cores} available cores", "use 0 for all")
        )
    mistakes += [
        Mistake("d_steps", f"{n!r} is not a positive integer", "use, for example, d_steps=5,1")
        for n in counts
        if not re.fullmatch(r"[1-9]\d{0,3}", n)
    ]
    case_names = [c for name in names for c in PRESETS.get(name, (name,))]
    methods = [*METHODS, *groups(user_dirs(dirs)).get("normalization", [])]
    for name in case_names:
        net, _, method = name.partition("-")
        if net not in NETS:
            mistakes.append(
                Mistake(
                    "cases",
                    f"unknown case {name!r}",
                    suggest(
                        name, [*PRESETS, *PRESETS["main"]], all_of="use NET-METHOD, such as cnn-sn, or main"
                    ),
                )
            )
        elif method not in methods:
            mistakes.append(
                Mistake("cases", f"{name!r}: unknown method {method!r}", suggest(method, methods))
            )
    choices = {}
    for key, allowed in (("precision", PRECISIONS), ("engine", ENGINES)):
        choices[key] = _split_list(own[key])
        mistakes += [
            Mistake(key, f"unknown {key} {w!r}", suggest(w, list(allowed)))
            for w in choices[key]
            if w not in allowed
        ]
    if mistakes:
        raise ConfigError(dict.fromkeys(mistakes))
    cases = [
        Case(net, method, int(n), width, own["batch_size"])
        for net, _, method in (name.partition("-") for name in dict.fromkeys(case_names))
        for n in counts
    ]
    precisions = choices["precision"] or (["tf32", "bf16"] if cuda else ["fp32", "bf16"])
    engines = choices["engine"] or (["eager", "graph"] if cuda else ["eager"])
    return Request(cases, precisions, engines, width, block)


def script() -> Path:
    """Path of the plain loop: next to this file in a wheel, in ``scripts/`` in a checkout."""
    for folder in (Path(__file__).parent, PACKAGE.parent / "scripts"):
        if (folder / "plain_loop.py").is_file():
            return folder / "plain_loop.py"
    raise ConfigError(
        "plain", f"plain_loop.py is missing from {PACKAGE}", "set plain=false, or reinstall ganlab"
    )


def _too_small(own: Mapping[str, Any]) -> list[Mistake]:
    minimums = {"rounds": 1, "batch_size": 2, "threads": 0, "minutes": 0}
    return [
        Mistake(key, f"{own[key]} is below the minimum of {n}", f"the default is {KEYS[key][0]}")
        for key, n in minimums.items()
        if own[key] < n
    ]


def _split_list(text: str) -> list[str]:
    return [w.strip() for w in str(text).strip("[]").split(",") if w.strip()]


def _number(text: str, key: str, mistakes: list[Mistake]) -> float:
    try:
        value = float(text)
        if not 0 < value < 1e6:
            raise ValueError
    except ValueError:
        mistakes.append(Mistake(key, f"{text!r} is not a positive number", f"the default is {KEYS[key][0]}"))
        return 1.0
    return value
