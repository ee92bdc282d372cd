"""The character-level language model: its nets, its game, and runs on text from end to end."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scenes import scene

from ganlab.cli import main
from ganlab.config import compose
from ganlab.experiment import Experiment
from ganlab.methods.feature_norms import BatchNorm, LayerNorm
from ganlab.methods.penalties import GradientPenalty
from ganlab.models.char_lm import Block, CharLM
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import Batch, TextShape

SHAPE = TextShape(11, 8)
TINY = ["architecture.width=0.02", "dataset.length=8", "batch_size=4", "device=cpu", "threads=1"]


def test_sizes_are_the_released_codes() -> None:
    shape, nets = TextShape(97, 32), CharLM()
    with torch.device("meta"):
        g, d = nets.generator(shape, 0), nets.discriminator(shape, 0, None)
    assert sum(p.numel() for p in g.parameters()) == 15_225_856 + 513 * 97
    assert sum(p.numel() for p in d.parameters()) == 13_129_217 + 512 * 97
    block = 2 * (5 * 512 * 512 + 512)
    assert 129 * 32 * 512 + 5 * block + 513 * 97 == 15_225_856 + 513 * 97


def test_first_weights() -> None:
    torch.manual_seed(0)
    nets = CharLM()
    g = nets.generator(TextShape(97, 32), 0)
    conv = g.blocks[0].convs[0].weight  # variance 4 / (5 * 512 + 5 * 512)
    assert conv.std().item() == pytest.approx(math.sqrt(4 / 5120), rel=0.01)
    assert conv.abs().max().item() == pytest.approx(math.sqrt(12 / 5120), rel=0.01)
    assert g.dense.weight.std().item() == pytest.approx(math.sqrt(2 / (128 + 32 * 512)), rel=0.01)
    assert g.last.weight.std().item() == pytest.approx(math.sqrt(4 / (512 + 97)), rel=0.02)
    assert all(not p.any() for n, p in g.named_parameters() if n.endswith("bias"))


def test_a_block_by_its_formula() -> None:
    torch.manual_seed(0)
    block, x = Block(3, CharLM(kernel=3, residual=0.5)), torch.randn(2, 3, 8)
    a, b = block.convs
    h = F.conv1d(F.relu(x), a.weight, a.bias, padding=1)
    h = F.conv1d(F.relu(h), b.weight, b.bias, padding=1)
    assert torch.allclose(block(x), x + 0.5 * h, atol=1e-6)


@pytest.mark.parametrize("norm", [None, LayerNorm(affine="full"), BatchNorm(), BatchNorm(affine="full")])
def test_shapes_and_norms(norm: Any) -> None:
    torch.manual_seed(0)
    nets = CharLM(width=0.02, blocks=2)
    g = nets.generator(SHAPE, 0)
    d = nets.discriminator(SHAPE, 0, norm and norm.feature_norm())
    x = g(torch.randn(5, 128))
    assert x.shape == (5, *SHAPE)
    assert torch.allclose(x.sum(1), torch.ones(5, 8))
    verdict = d(x)
    assert verdict.score.shape == (5,)
    assert verdict.features is not None
    assert verdict.features.shape == (5, 80)
    norms = [m for m in d.modules() if type(m).__name__ in ("SampleNorm", "BatchNorm2d", "OffsetBatchNorm")]
    assert len(norms) == (3 if norm else 0)  # all but after the first convolution


def test_a_penalty_has_one_point_between_each_pair() -> None:
    """Of D(x) = <w, x> the gradient is w everywhere; of D(x) = |x|^2 / 2 it is the point itself."""

    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: object = None) -> Any:
            from ganlab.types import Verdict

            return Verdict(x.square().flatten(1).sum(1) / 2)

    real = F.one_hot(torch.zeros(6, 4, dtype=torch.int64), 3).transpose(1, 2).float()
    fake = F.one_hot(torch.ones(6, 4, dtype=torch.int64), 3).transpose(1, 2).float()
    torch.manual_seed(1)
    penalty = GradientPenalty(weight=1.0).d_term(scene(Square(), Batch(real), Batch(fake)))
    torch.manual_seed(1)
    a = torch.rand(6, 1, 1)
    assert a.shape == (6, 1, 1)
    norms = (4 * (a.square() + (1 - a).square())).sqrt().view(-1)  # 4 places, symbols 0 and 1
    assert penalty.item() == pytest.approx((norms - 1).square().mean().item(), rel=1e-5)


METHODS = ["bn", "in", "fn", "wn,gp", "sn,snr", "orthonormal"]  # those of each kind of layer and loss term


@pytest.mark.parametrize("method", METHODS)
def test_every_method_plays_text(method: str) -> None:
    words = ["+experiment=wgan_gp_language", f"normalization=[{method}]"]
    e = compose.build(compose.compose([*words, *TINY, "d_steps=1", "dataset.path=x"]))
    assert isinstance(e, Experiment)
    torch.manual_seed(0)
    game = build_gan(e, torch.device("cpu"), 0, SHAPE)
    real = F.one_hot(torch.randint(11, (4, 8)), 11).transpose(1, 2).float()
    before = [p.detach().clone() for net in (game.discriminator, game.generator) for p in net.parameters()]
    losses = update(game, lambda: Batch(real))
    after = [p for net in (game.discriminator, game.generator) for p in net.parameters()]
    assert all(math.isfinite(float(v)) for v in losses.values())
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > 0.8 * len(after)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "corpus.txt"
    path.write_text("".join(f"{'xyz'[i % 3]}<b>{i % 7}\n" for i in range(60)))
    return path


def train(corpus: Path, run: str, *words: str, experiment: str = "wgan_gp_language") -> int:
    more = ["dataset.path=" + str(corpus), "d_steps=2", "save_every=2", "sample_every=3", "eval_every=3"]
    more += ["log_every=1", "metric.scores.ngram_js.n=20", f"run_dir={corpus.parent / run}"]
    return main.main(["train", f"+experiment={experiment}", *TINY, *more, *words])


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    run = RunFolder(folder)
    return Checkpoints(run.checkpoints, run.run_id).load(step)[1]


def test_a_run_on_text(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scores, samples, TensorBoard, resume bit by bit, samples without the text, and what is refused."""
    assert train(corpus, "whole", "steps=6") == 0
    assert "real samples against the others: js4 " in capsys.readouterr().out
    whole = corpus.parent / "whole"
    symbols = json.loads((whole / "vocabulary.json").read_text())["symbols"]
    assert symbols[:2] == ["\ufffd", "`"]
    assert len(symbols) == 15
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    (floor,) = [r for r in rows if r["kind"] == "real"]
    assert floor["step"] == 0
    assert set(floor) >= {f"real/js{n}" for n in range(1, 5)}
    scores = [r["scores"] for r in rows if r["kind"] == "eval"]
    assert len(scores) == 2
    assert all(0 <= v <= 1 for s in scores for v in s.values())
    assert "js4" in scores[0]
    lines = (whole / "samples" / "step-000000006.txt").read_text().split("\n")
    assert len(lines) == 65
    assert all(len(line) <= 8 and set(line) <= set(symbols) for line in lines)
    assert written_text(whole)  # in TensorBoard's text page

    assert train(corpus, "parts", "steps=3") == 0
    assert train(corpus, "parts", "steps=6") == 0
    parts = corpus.parent / "parts"
    for key, value in state(whole, 6).items():
        assert torch.equal(value, state(parts, 6)[key]), key
    assert (parts / "samples" / "step-000000006.txt").read_text() == "\n".join(lines)

    corpus.rename(corpus.with_suffix(".gone"))
    out = corpus.parent / "out"
    assert main.main(["sample", str(whole), "n=5", "columns=3", "interpolations=2", f"out={out}"]) == 0
    assert len((out / "samples.txt").read_text().split("\n")) == 6
    ways = (out / "interpolation.txt").read_text().split("\n")
    assert len(ways) == 9
    assert ways[3] == ways[7] == ""
    assert json.loads((out / "samples.json").read_text())["n"] == 5

    corpus.write_text(corpus.with_suffix(".gone").read_text().replace("x", "w"))
    capsys.readouterr()
    assert train(corpus, "whole", "steps=8", "resume_allow=[dataset]") == 3
    assert "this run has another vocabulary: 15 symbols, the text has " in capsys.readouterr().err
    assert train(corpus, "whole", "steps=2", "resume=never") == 0
    assert "w" in json.loads((whole / "vocabulary.json").read_text())["symbols"]


def written_text(run: Path) -> bool:
    """Whether the event files hold the last sampled lines."""
    last = sorted((run / "samples").glob("*.txt"))[-1].read_text().splitlines()
    events = b"".join(p.read_bytes() for p in run.rglob("events.out.tfevents*"))
    return b"samples/text_summary" in events and all(line.encode() in events for line in last)


def test_a_damaged_vocabulary_is_one_line(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(corpus, "run", "steps=1") == 0
    place = corpus.parent / "run" / "vocabulary.json"
    for content, line in [
        ('{"symbols": [1]}', "is not a valid vocabulary; restore it, or remove it"),
        ('{"symbols": ["a"]}', "has 1 symbols, the run 15; restore it"),
    ]:
        place.write_text(content)
        capsys.readouterr()
        assert main.main(["sample", str(place.parent), "n=2"]) == 3
        assert line in capsys.readouterr().err
    place.unlink()
    assert main.main(["sample", str(place.parent), "n=2", f"out={corpus.parent / 'out'}"]) == 0
    corpus.unlink()
    assert main.main(["sample", str(place.parent), "n=2"]) == 3


def test_points_are_sampled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANLAB_CACHE", str(tmp_path / "cache"))
    run, out = tmp_path / "run", tmp_path / "out"
    words = [
        "architecture.width=0.02",
        "batch_size=4",
        "steps=1",
        "dataset.n=200",
        "metric=[modes]",
        "device=cpu",
    ]
    more = [f"run_dir={run}", "metric.protocol.fid_n_fake=50", "metric.protocol.is_n_fake=50", "d_steps=1"]
    assert main.main(["train", "+experiment=wgan_gp_toy", *words, *more]) == 0
    assert main.main(["sample", str(run), "n=5", "columns=3", "interpolations=2", f"out={out}"]) == 0
    assert (out / "points.csv").read_text().startswith("x,y\n")
    assert len((out / "points.csv").read_text().splitlines()) == 6
    ways = (out / "interpolation.csv").read_text().splitlines()
    assert ways[0] == "way,x,y"
    assert [w[0] for w in ways[1:]] == list("000111")
    assert (out / "grid.png").read_bytes().startswith(b"\x89PNG")
    more[-1] = "fixed_generator=1"
    assert main.main(["train", "+experiment=wgan_gp_toy", *words, *more, "resume=never"]) == 0
    assert main.main(["sample", str(run)]) == 2


def test_pictures_and_pages_of_text(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The divergences over the updates with the floor, and a report whose lines are no markup."""
    assert train(corpus, "runs/a", "steps=2", "eval_every=1", "eval_start=true") == 0
    gan = ["steps=2", "eval_every=1", "d_steps=1"]
    assert train(corpus, "runs/b", *gan, experiment="gan_language") == 0
    runs, out = corpus.parent / "runs", corpus.parent / "out"
    corpus.unlink()
    capsys.readouterr()
    assert main.main(["analyze", str(runs), "analysis=ngram_js", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert "WGAN-GP, wasserstein loss: js1 " in said
    assert "real lines: js1 " in said
    table = list(csv.DictReader((out / "ngram_js.csv").open()))
    steps = {m: [r["step"] for r in table if (r["method"], r["n"]) == (m, "4")] for m in ("wgan-gp", "none")}
    assert steps == {"wgan-gp": ["0", "1", "2"], "none": ["1", "2"]}
    records = [json.loads(line) for line in (runs / "a" / "metrics.jsonl").read_text().splitlines()]
    real = next(r for r in records if r["kind"] == "real")
    scored = [r["scores"]["js2"] for r in records if r["kind"] == "eval"]
    mine = [r for r in table if (r["method"], r["n"]) == ("wgan-gp", "2")]
    assert [float(r["js"]) for r in mine] == scored
    assert {float(r["real"]) for r in mine} == {real["real/js2"]}
    assert (out / "ngram_js.png").read_bytes().startswith(b"\x89PNG")

    samples = runs / "a" / "samples" / "step-000000002.txt"
    samples.write_text("<script>alert(1)</script>\n# no *heading*\x1b[2J\n" + "x\n" * 20)
    assert main.main(["report", str(runs), f"out={out}"]) == 0
    page, markdown = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "<script>" not in page
    assert "<pre>&lt;script&gt;alert(1)&lt;/script&gt;\n# no *heading*\nx\n" in page
    assert "\n    <script>alert(1)</script>\n    # no *heading*\n    x\n" in markdown
    assert markdown.count("\n    x") == 10
