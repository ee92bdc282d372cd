"""Conditional games: class-conditional batch norm, D's heads, labels through the game, resume, samples."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import players
from test_loop import go, interrupted, state
from torch import nn

from ganlab.cli import sample
from ganlab.config import saved_run
from ganlab.data.digits import Digits
from ganlab.data.folder import Folder
from ganlab.data.stl10 import Stl10
from ganlab.errors import ConfigError
from ganlab.evaluation.generate import stored_samples
from ganlab.experiment import Experiment
from ganlab.methods.losses import ClassLoss
from ganlab.methods.penalties import GradientPenalty
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.methods.weights import raw_weight
from ganlab.models.blocks import ConditionalNorm
from ganlab.models.resnet import CONCAT_AFTER, Discriminator, ResNet
from ganlab.runs.folder import RunFolder
from ganlab.samples import latents
from ganlab.training.build import build_gan
from ganlab.training.step import update, update_discriminator
from ganlab.types import Batch, ImageShape

Make = Callable[..., Experiment]
HEADS = ("concat", "projection", "ac")
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def resnet(head: str = "projection", width: float = 0.03) -> ResNet:
    return ResNet(width=width, z_dim=4, head=head)  # type: ignore[arg-type]


@pytest.fixture
def small(tiny: Make) -> Make:
    """Tiny conditional experiments on digits of 32 px."""

    def make(head: str = "projection", **changes: Any) -> Experiment:
        values = {"architecture": resnet(head), "dataset": Digits(), "steps": 6, "batch_size": 4}
        return tiny(**values | changes)

    return make


# ---- nets --------------------------------------------------------------------------------------------


def test_conditional_norm_is_its_formula() -> None:
    torch.manual_seed(0)
    norm = ConditionalNorm(3, 5)
    x, y = torch.randn(6, 3, 4, 4), torch.tensor([0, 4, 4, 2, 0, 1])
    normed = (x - x.mean((0, 2, 3), keepdim=True)) / (
        x.var((0, 2, 3), correction=0, keepdim=True) + 2e-5
    ).sqrt()
    assert torch.allclose(norm(x, y), normed, atol=1e-5), "gamma starts at 1, beta at 0"
    nn.init.normal_(norm.gamma.weight)
    nn.init.normal_(norm.beta.weight)
    wanted = torch.stack(
        [
            normed[i] * norm.gamma.weight[c].view(3, 1, 1) + norm.beta.weight[c].view(3, 1, 1)
            for i, c in enumerate(y)
        ]
    )
    assert torch.allclose(norm(x, y), wanted, atol=1e-5)
    norm.eval()
    moved = (x - norm.norm.running_mean.view(1, 3, 1, 1)) / (
        norm.norm.running_var.view(1, 3, 1, 1) + 2e-5
    ).sqrt()
    gamma, beta = (e.weight[y].view(6, 3, 1, 1) for e in (norm.gamma, norm.beta))
    assert torch.allclose(norm(x, y), moved * gamma + beta, atol=1e-5)
    assert norm.norm.eps == 2e-5


@pytest.mark.parametrize(
    ("head", "side", "classes", "g", "d"),
    [
        ("projection", 32, 10, 4_304_387, 1_053_824 + 1_280),
        ("ac", 32, 10, 4_304_387, 1_053_824 + 1_290),
        ("concat", 128, 1000, 41_996_931, 30_538_625),
        ("projection", 128, 1000, 41_996_931, 30_041_857),
    ],
)
def test_parameter_counts_are_the_papers(head: str, side: int, classes: int, g: int, d: int) -> None:
    a, shape = ResNet(head=head), ImageShape(3, side, side)  # type: ignore[arg-type]
    with torch.device("meta"):
        nets = a.generator(shape, classes), a.discriminator(shape, classes, None)
    assert [sum(p.numel() for p in net.parameters()) for net in nets] == [g, d]


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("head", HEADS)
def test_conditional_nets_of_every_size(head: str, side: int) -> None:
    torch.manual_seed(0)
    a, shape = resnet(head), ImageShape(3, side, side)
    assert a.conditional
    g, d = a.generator(shape, 7), a.discriminator(shape, 7, None)
    z, y = torch.randn(4, 4), torch.tensor([0, 6, 3, 3])
    x = g(z, y)
    assert x.shape == (4, 3, side, side)
    verdict = d(x, y)
    assert verdict.score.shape == (4,)
    assert (verdict.class_logits is None) == (head != "ac")
    if head == "ac":
        assert verdict.class_logits.shape == (4, 7)
        assert torch.equal(verdict.score, d(x, y + 0 * y).score)
    (verdict.score.sum() + (verdict.class_logits.sum() if head == "ac" else 0)).backward()
    assert all(p.grad is not None for net in (g, d) for p in net.parameters())
    with torch.no_grad():
        assert torch.equal(d(x, y).score, d(x, 6 - y).score) == (head == "ac"), (
            "only ac's score is blind to y"
        )
    g.blocks[0].norm1.gamma.weight.data.normal_()
    assert not torch.equal(g(z, y), g(z, 6 - y))
    kinds = {type(m).__name__ for b in g.blocks for m in (b.norm1, b.norm2)}
    assert (kinds, type(g.norm).__name__) == ({"ConditionalNorm"}, "PlainNorm")


def test_projection_is_its_formula() -> None:
    torch.manual_seed(0)
    d = resnet("projection", 0.1).discriminator(ImageShape(3, 32, 32), 5, None)
    x, y = torch.randn(6, 3, 32, 32), torch.arange(6) % 5
    score, phi, _ = d(x, y)
    wanted = [d.dense.weight[0] @ phi[i] + d.embed.weight[y[i]] @ phi[i] for i in range(6)]
    assert torch.allclose(score, torch.stack(wanted), atol=1e-5)


def test_concat_joins_a_constant_map_before_the_fourth_block() -> None:
    d = resnet("concat").discriminator(ImageShape(3, 128, 128), 5, None)
    assert isinstance(d, Discriminator)
    seen: list[torch.Tensor] = []
    d.blocks[CONCAT_AFTER].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    y = torch.tensor([1, 4])
    d.to(memory_format=torch.channels_last)
    d(torch.randn(2, 3, 128, 128).contiguous(memory_format=torch.channels_last), y)
    (joined,) = seen
    width = d.embed.weight.shape[1]
    assert joined.shape == (2, 8 + width, 16, 16), "256 * 0.03 channels, and the label's"
    assert torch.equal(joined[:, -width:], d.embed(y)[:, :, None, None].expand(-1, -1, 16, 16))
    assert joined.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("head", ["concat", "projection"])
def test_spectral_norm_covers_the_embedding(head: str) -> None:
    torch.manual_seed(0)
    d = resnet(head, 0.1).discriminator(ImageShape(3, 32, 32), 5, None)
    sn = SpectralNorm(iterations=50)
    sn.prepare(players(d))
    d(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    d.eval()
    weight, raw = d.embed.weight, raw_weight(d.embed)
    assert torch.linalg.matrix_norm(weight, 2).item() == pytest.approx(1, rel=1e-3)
    assert torch.allclose(weight, raw / torch.linalg.matrix_norm(raw, 2), rtol=1e-3)


# ---- labels through the game ---------------------------------------------------------------------------


class Spy(nn.Module):
    """Hears which labels a network was called with."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.heard = net, []  # type: ignore[var-annotated]

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> Any:
        self.heard.append(None if y is None else y.clone())
        return self.net(x, y)


def real_batch(y: list[int] | None) -> Batch:
    return Batch(torch.rand(4, 1, 32, 32) * 2 - 1, None if y is None else torch.tensor(y))


def test_who_sees_which_labels(small: Make) -> None:
    e = small(normalization={"gp": GradientPenalty()}, fake_labels="data", d_pass="apart")
    game = build_gan(e, CPU, 10)
    game.labels = torch.tensor([3, 3, 3])
    game.generator, game.discriminator = g, d = Spy(game.generator), Spy(game.discriminator)
    update(game, lambda: real_batch([1, 2, 3, 4]))
    assert [h.tolist() for h in g.heard] == [[1, 2, 3, 4], [3, 3, 3, 3]], (
        "the real batch's; the training set's"
    )
    # D: real, fake, the penalty's interpolates with the real labels, and G's turn
    assert [h.tolist() for h in d.heard] == [[1, 2, 3, 4]] * 3 + [[3, 3, 3, 3]]


def test_uniform_labels_are_fresh_and_uniform(small: Make) -> None:
    game = build_gan(small(), CPU, 10)
    game.generator, game.discriminator = g, d = Spy(game.generator), Spy(game.discriminator)
    torch.manual_seed(0)
    update_discriminator(game, real_batch([1, 1, 1, 1]))
    assert torch.equal(d.heard[0], torch.ones(4, dtype=torch.int64))
    assert torch.equal(d.heard[1], g.heard[0])
    counts = torch.bincount(game.draw_labels(20_000), minlength=10)
    assert counts.min() > 1_800, "five sigma below 2,000 is 1,788"
    assert counts.max() < 2_212


def test_data_labels_follow_the_training_set(small: Make) -> None:
    game = build_gan(small(fake_labels="data"), CPU, 3)
    game.labels = torch.tensor([0] * 700 + [2] * 300)
    torch.manual_seed(0)
    counts = torch.bincount(game.draw_labels(10_000), minlength=3) / 10_000
    assert counts.tolist() == pytest.approx([0.7, 0.0, 0.3], abs=0.03)


def test_labels_to_look_at_have_a_stream_of_their_own(small: Make) -> None:
    game = build_gan(small(fake_labels="data"), CPU, 10)
    before = torch.random.get_rng_state()
    z, y = game.draw(5_000, torch.Generator().manual_seed(0))
    again = game.draw(5_000, torch.Generator().manual_seed(0))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert y is not None
    assert torch.equal(z, again[0])
    assert torch.equal(y, again[1])
    assert y.dtype == torch.int64
    assert torch.bincount(y, minlength=10).min() > 400, "uniform, though the data were not asked"


def test_an_unconditional_game_is_blind(tiny: Make) -> None:
    game = build_gan(tiny(), CPU, 10)
    assert game.num_classes == 0
    assert game.draw(2, torch.Generator())[1] is None
    game.generator, game.discriminator = g, d = Spy(game.generator), Spy(game.discriminator)
    update(game, lambda: Batch(torch.rand(4, 1, 16, 16), torch.arange(4)))
    assert g.heard + d.heard == [None] * (2 + 3)


def test_conditional_resume_is_bitwise(small: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, parts, other = (tmp_path / name for name in ("whole", "parts", "other"))
    changes: dict[str, Any] = {"fake_labels": "data", "ema": 0.9, "d_steps": 2, "eval_every": 0, "steps": 4}
    go(small(run_dir=str(whole), **changes))
    interrupted(small, monkeypatch, parts, 3, **changes)
    assert state(whole, 4) == state(parts, 4)
    go(small(run_dir=str(other), **{**changes, "fake_labels": "uniform"}))
    assert state(whole, 4) != state(other, 4)
    assert (whole / "samples/step-000000004.png").read_bytes() == (
        parts / "samples/step-000000004.png"
    ).read_bytes()


# ---- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [Folder("nowhere", labels=False), Stl10(split="unlabeled")])
def test_a_dataset_surely_without_labels_is_refused_before_it_is_read(small: Make, dataset: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^dataset: \w+ \w+ has no class labels, .*; use a split with labels"
    ):
        small(dataset=dataset, architecture=resnet())
    small(dataset=dataset, architecture=resnet("none"))


def test_a_dataset_that_turns_out_to_have_no_labels(small: Make, tmp_path: Path) -> None:
    from PIL import Image

    for i in range(4):
        path = tmp_path / "images" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (32, 32), i).save(path)
    e = small(dataset=Folder(str(tmp_path / "images"), channels=1), batch_size=2)
    with pytest.raises(ConfigError, match=r"dataset: folder-images all has no class labels, .*; use a"):
        go(e)
    assert not (tmp_path / "run").exists()
    (tmp_path / "images" / "cat").mkdir()
    for path in (tmp_path / "images").glob("*.png"):
        path.rename(path.parent / "cat" / path.name)
    with pytest.raises(ConfigError, match=r"dataset: .* has one class, .*; use .*architecture\.head=none"):
        go(e)


# ---- what is written, samples, scores --------------------------------------------------------------------


def test_rows_of_a_grid() -> None:
    assert latents.some_classes(3) == [0, 1, 2]
    assert latents.some_classes(1000) == [0, 111, 222, 333, 444, 555, 666, 777, 888, 999]
    assert latents.some_classes(1000, 1) == [0]
    assert latents.some_classes(0) == []
    z, y = latents.by_class(torch.arange(6.0).view(3, 2), [7, 5])
    assert y.tolist() == [7, 7, 7, 5, 5, 5]
    assert torch.equal(z[:3], z[3:])
    labels = latents.row_labels([4, 2], 8, 3, CPU)
    assert labels is not None
    assert labels.tolist() == [4, 4, 4, 2, 2, 2, 4, 4]
    assert latents.row_labels([], 8, 3, CPU) is None


def test_a_run_tells_its_classes_and_is_opened_without_data(
    small: Make, tmp_path: Path, monkeypatch: Any
) -> None:
    e = small(steps=2)
    run = tmp_path / "run"
    go(e)
    record = json.loads((run / "result.json").read_text())
    assert record["num_classes"] == 10
    monkeypatch.setattr(Digits, "load", lambda *_: pytest.fail("data were read"))
    monkeypatch.setattr(saved_run.compose, "build", lambda *_: e)
    monkeypatch.setattr(saved_run.compose, "reopen", lambda *_: {})
    place = sample.sample_run(
        str(run), out=str(tmp_path / "out"), n=6, columns=2, classes="3,1", interpolations=2
    )
    meta = json.loads((place / "samples.json").read_text())
    assert meta["labels"] == [3, 3, 1, 1, 3, 3]
    assert len(list(place.glob("0*.png"))) == 6
    game, _ = saved_run.restore(RunFolder(run), e, "last", CPU)
    assert (game.num_classes, game.labels) == (10, None)
    with monkeypatch.context() as broken:
        broken.setattr(saved_run, "build_gan", lambda *_: [][0])
        with pytest.raises(IndexError):  # our fault, not the checkpoint's
            saved_run.restore(RunFolder(run), e, "last", CPU)
    for classes, message in (("10", "no class '10'"), ("x,1", "no class 'x'"), ("-1", "no class '-1'")):
        with pytest.raises(ConfigError, match=f"classes: this run has {message}"):
            sample.sample_run(str(run), classes=classes)


def test_classes_of_an_unconditional_run() -> None:
    assert sample.class_rows(None, 0, 8) == []
    with pytest.raises(ConfigError, match="classes: this run is unconditional"):
        sample.class_rows("1", 0, 8)


def test_a_picture_shows_what_its_row_says(small: Make) -> None:
    """Each row of the run's fixed grid is G of that row's class."""
    game = build_gan(small(), CPU, 10)
    game.generator.blocks[0].norm1.beta.weight.data.normal_(0, 3)
    z, y = latents.by_class(torch.randn(2, 4), range(10))
    images = stored_samples(game.ema_or_generator, z, y, batch_size=3)
    for i in (0, 7, 19):
        alone = stored_samples(game.ema_or_generator, z[i : i + 1], y[i : i + 1])
        assert (images[i].int() - alone[0].int()).abs().max() <= 1
    assert len({images[i].numpy().tobytes() for i in range(0, 20, 2)}) == 10
    assert math.isfinite(float(images.float().mean()))


# ---- it learns -----------------------------------------------------------------------------------------


def greys(y: torch.Tensor) -> torch.Tensor:
    """Class 0 is bright, class 1 dark."""
    return torch.where(y == 0, 0.6, -0.6).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["projection", "ac"])
def test_g_learns_what_the_label_means(head: str, small: Make) -> None:
    """In numbers: class 0 ends brighter than class 1, for nearly every z."""
    adam = functools.partial(torch.optim.Adam, lr=2e-3, betas=(0.0, 0.9))
    loss = ClassLoss(1.0, 0.0, 1.0) if head == "ac" else None
    game = build_gan(small(head, optimizer=adam, batch_size=16, class_loss=loss, seed=0), CPU, 2)

    def real() -> Batch:
        y = torch.randint(2, (16,))
        return Batch(greys(y) + 0.1 * torch.randn(16, 1, 32, 32), y)

    for step in range(120):
        torch.manual_seed(step)
        update(game, real)
    game.generator.eval()
    z = torch.randn(32, 4)
    with torch.no_grad():
        zeros, ones = (game.generator(z, torch.full((32,), c)) for c in (0, 1))
    difference = (zeros - ones).mean((1, 2, 3))
    assert difference.mean() > 0.6
    assert (difference > 0).float().mean() > 0.9


def test_channels_last_stays_through_conditional_blocks() -> None:
    g = resnet().generator(ImageShape(3, 64, 64), 5).to(memory_format=torch.channels_last)
    laid: list[bool] = []
    for block in list(g.blocks)[1:]:
        block.up.register_forward_pre_hook(
            lambda _, inputs: laid.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
    g(torch.randn(2, 4), torch.tensor([0, 1]))
    assert laid == [True] * 3
