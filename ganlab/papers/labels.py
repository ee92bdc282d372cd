"""Labels, number formats and escaping for reports.

Run folders are shared between people, so every string in them is untrusted: control characters, escape
sequences and direction marks are removed, length is bounded, and each output format has its own escaping.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping

from ganlab.text import clean

# Labels of ganlab's methods in the order of SNGAN's Figure 1; the unnormalized D first, others last.
METHODS = {
    "none": "None",
    "wc": "Weight clip",
    "gan-gp": "GAN-GP",
    "wgan-gp": "WGAN-GP",
    "bn": "BN",
    "ln": "LN",
    "wn": "WN",
    "orthonormal": "Orthonormal",
    "sn": "SN",
    "gp": "GP",
    "r1": "R1",
    "r2": "R2",
    "fn": "FN",
    "in": "IN",
    "snr": "SN regularization",
    "l2_clip": "L2 norm clip",
    "weight_decay": "Weight decay",
    "orthonormal_init": "Orthonormal init",
    "dcgan": "DCGAN",
    "gan": "GAN",
    "lsgan": "LSGAN",
    "wgan": "WGAN",
    "real-data": "Real data",
}

DATASETS = {
    "cifar10": "CIFAR-10",
    "stl10": "STL-10",
    "digits": "Digits",
    "mnist": "MNIST",
    "svhn": "SVHN",
    "stacked_mnist": "Stacked MNIST",
    "imagenet": "ImageNet",
    "lsun": "LSUN",
    "8gaussians": "8 Gaussians",
    "25gaussians": "25 Gaussians",
    "swissroll": "Swiss roll",
    "gaussian": "Gaussian",
}

ARCHITECTURES = {
    "cnn": "CNN",
    "resnet": "ResNet",
    "dcgan": "DCGAN",
    "wgan": "WGAN's DCGAN",
    "bedrooms": "Bedrooms",
    "dcgan_family": "DCGAN family",
    "mlp": "MLP",
    "improved_mlp": "Improved Techniques' MLP",
    "improved_conv": "Improved Techniques' CNN",
    "charlm": "character language model",
}

SCORES = {
    "is": "IS",
    "fid": "FID",
    "fid_infinity": "FID-infinity",
    "kid": "KID",
    "intra_fid": "Intra-FID",
    "intra_ms_ssim": "Intra-class MS-SSIM",
    "ms_ssim": "MS-SSIM",
    "w1": "W1",
    "modes": "Modes",
    "high_quality": "High quality",
    "kl": "Reverse KL",
    "test_error": "Test error, %",
    "js1": "JS of 1-grams",
    "js2": "JS of 2-grams",
    "js3": "JS of 3-grams",
    "js4": "JS of 4-grams",
}

HIGHER = ("is", "modes", "high_quality")  # higher is better

_MARKDOWN = re.compile(r"[\\`*\[\]{}|#~$@]|:(?=//)|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|(?<=www)\.")


def md(value: object, limit: int = 80) -> str:
    """Text escaped for Markdown, tables included: no markup, link or mention remains."""
    line = _MARKDOWN.sub(r"\\\g<0>", clean(value, limit))
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def slug(*parts: object) -> str:
    """A file name from any text: lowercase letters, digits, ``_`` and ``-``; distinct texts stay distinct."""
    raw = "-".join(str(p) for p in parts)
    name = re.sub(r"[^a-z0-9_]+", "-", raw.lower()).strip("-")
    if name == raw and len(name) <= 60:
        return name
    return f"{name[:50].rstrip('-')}-{hashlib.sha256(raw.encode('utf-8', 'replace')).hexdigest()[:6]}"


def natural(text: str) -> list[tuple[int, float, str]]:
    """Sort key that puts "d_steps 2" before "d_steps 10"."""
    parts = re.split(r"(\d{1,15}(?:\.\d{1,15})?)", text)
    return [(0, float(p), "") if i % 2 else (1, 0.0, p) for i, p in enumerate(parts)]


def number(value: float | None, like: float | None = None) -> str:
    """Format a score or rate, with as many decimals as ``like`` would get.

    The rounded value decides the decimals (0.9999999 prints as 1.00), so that the last bits don't.
    """
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value if like is None else like)
    if 0 < float(f"{size:.1e}") < 1e-3:
        return f"{value:.1e}"
    for decimals, below in ((4, 1), (2, 100), (1, 1000)):
        if round(size, decimals) < below:
            return f"{value:z.{decimals}f}"
    return f"{value:z,.0f}"


def signed(value: float | None, like: float | None = None) -> str:
    """Format a difference, always with its sign: ``+1.20``."""
    digits = number(value, like)
    return digits if digits.startswith(("-", "–")) else f"+{digits}"


def spread(value: float | None, std: float | None) -> str:
    """``29.30 ± 0.21``, or the value alone."""
    return number(value) if std is None else f"{number(value)} ± {number(std, like=value)}"


def count(value: float | None) -> str:
    """An integer with thousands separators, or a dash."""
    return "–" if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Wall time: ``41 s``, ``12 min``, ``3.2 h``."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def protocol_name(record: Mapping[str, object], ident: str) -> str:
    """``sngan_paper [0123456789ab]``."""
    return f"{clean(record.get('protocol') or record.get('name') or 'unnamed', 40)} [{ident}]"


def span(low: str, high: str) -> str:
    """``A–B``, or ``A`` if both are equal."""
    return low if low == high else f"{low}–{high}"


def method_label(method: str) -> str:
    """``sn+gp`` -> ``SN + GP``; unknown names are kept."""
    if method in METHODS:
        return METHODS[method]
    return " + ".join(METHODS.get(part, part) for part in method.split("+"))


def method_rank(method: str) -> tuple[int, str]:
    """Sort key: the paper's order, then methods that are not in the paper, by name."""
    order = list(METHODS)
    return (order.index(method) if method in METHODS else len(order), method)


def setting_rank(setting: str) -> tuple[int, str]:
    """Sort key: A to F of Table 1, then others by name."""
    return (0 if len(setting) == 1 and setting in "ABCDEF" else 1, setting)


def split_score(name: str) -> tuple[str, str]:
    """A score's kind and the suffix of its extractor: ``fid_cifar`` -> (``fid``, ``_cifar``)."""
    for kind in sorted(SCORES, key=len, reverse=True):  # fid_infinity before fid
        if name == kind or name.startswith(kind + "_"):
            return kind, name[len(kind) :]
    return name, ""


def score_rank(name: str) -> tuple[int, str]:
    """Sort key: IS, FID, KID as in the papers, then others by name."""
    kinds = list(SCORES)
    kind = split_score(name)[0]
    return (kinds.index(kind) if kind in kinds else len(kinds), name)


def spread_of(name: str) -> str:
    """The score that a spread belongs to: ``is_std_cifar`` -> ``is_cifar``; "" if not a spread."""
    return re.sub(r"_std(?=_|$)", "", name) if re.search(r"_std(?=_|$)", name) else ""


def score_label(name: str) -> str:
    """``fid`` -> ``FID``; a score with another extractor keeps its name, so that it isn't taken for FID."""
    return SCORES.get(name, name)


def better(name: str) -> str:
    """``higher`` for IS and coverage, ``lower`` for other known scores, "" for unknown ones."""
    kind = split_score(name)[0]
    return "" if kind not in SCORES else "higher" if kind in HIGHER else "lower"


def sign(name: str) -> int:
    """1 for scores of which lower is better, else -1: a score times its sign is better if smaller."""
    return 1 if better(name) == "lower" else -1
