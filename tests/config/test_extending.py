"""docs/extending.md: its parts work as they stand on the page."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest

from ganlab import analysis
from ganlab.analysis import subjects
from ganlab.cli import main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "extending.md"
PACKAGES = ("methods", "models", "data", "metrics", "analysis")


def parts(folder: Path) -> list[Path]:
    """Write the page's files under ``folder``; each block begins with its path in a comment."""
    written = []
    for path, text in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE.read_text(), re.S):
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        written.append(target)
    return written


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's configs, whose Python files lie beside ganlab's own."""
    assert len(parts(tmp_path)) == 11
    for name in PACKAGES:
        package = importlib.import_module(f"ganlab.{name}")
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path / "ganlab" / name)])
    return tmp_path


def test_the_parts_of_the_page_train_together(checkout: Path, pixel_features: None) -> None:
    words = [
        *("loss=relativistic", "normalization=ws", "architecture=small", "dataset=squares"),
        *("metric=mean_distance", "metric.protocol=smoke", "metric.extractor=cifar", "steps=3", "device=cpu"),
        *("dataset.n=600", "batch_size=8", "architecture.channels=4", f"run_dir={checkout / 'run'}"),
        *("eval_every=0", "sample_every=0", "log_every=1"),
    ]
    assert main.main(["train", *words, "--config-dir", str(checkout / "configs")]) == 0
    result = json.loads((checkout / "run" / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["scores"]["last"]["values"]["mean_distance_cifar"] > 0
    finding = analysis.load("negative_weights")().make(subjects.open_runs([checkout / "run"]))
    assert all(0 < row["share"] < 1 for row in finding.rows)
    assert len(finding.report) == 2
    assert finding.png.startswith(b"\x89PNG")
