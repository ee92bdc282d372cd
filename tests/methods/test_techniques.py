"""Improved Techniques (arXiv:1606.03498): each technique against values by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab.analysis import toy_games
from ganlab.config import compose
from ganlab.data.base import SampleSet
from ganlab.data.digits import Digits
from ganlab.errors import ConfigError
from ganlab.methods.base import Scene
from ganlab.methods.feature_matching import distance
from ganlab.methods.historical_averaging import HistoricalAveraging
from ganlab.methods.label_smoothing import LabelSmoothing
from ganlab.methods.losses import LeastSquares, Minimax, Standard
from ganlab.methods.minibatch_discrimination import MinibatchFeatures, WithMinibatch
from ganlab.methods.virtual_batch_norm import VirtualNorm
from ganlab.training.build import build_gan
from ganlab.training.gan import GAN
from ganlab.training.step import update
from ganlab.types import Batch, Verdict

CPU = torch.device("cpu")
SMALL = [
    *("dataset=digits", "dataset.resolution=16", "architecture=cnn", "architecture.width=0.05"),
    *(
        "architecture.z_dim=8",
        "batch_size=8",
        "loss=standard",
        "normalization=none",
        "setting=C",
        "device=cpu",
    ),
]


def built(*words: str, data: SampleSet | None = None) -> GAN:
    e = compose.build(compose.compose([*SMALL, *words]))
    return build_gan(e, CPU, 10, data=data)


def verdicts(real: list[float], fake: list[float]) -> Scene:
    d_real, d_fake = (Verdict(torch.tensor(s, dtype=torch.float64)) for s in (real, fake))
    x = Batch(torch.zeros(len(real), 1))
    return Scene(SimpleNamespace(loss=Standard()), x, x, d_real, d_fake)


# ---- label smoothing


def bce(score: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(score, torch.full_like(score, target))


def test_label_smoothing_is_cross_entropy_with_other_targets() -> None:
    s = verdicts([0.3, -2.0, 5.0], [1.0, -0.7, 0.1])
    smooth = LabelSmoothing(real=0.75, fake=0.2, generator=0.375)
    d = s.gan.loss.d_term(s) + smooth.d_term(s)
    assert float(d) == pytest.approx(float(bce(s.d_real.score, 0.75) + bce(s.d_fake.score, 0.2)), rel=1e-12)
    g = s.gan.loss.g_term(s) + smooth.g_term(s)
    assert float(g) == pytest.approx(float(bce(s.d_fake.score, 0.375)), rel=1e-12)
    one_sided = LabelSmoothing()
    assert one_sided.g_term(s) is None
    assert float(one_sided.d_term(s)) == pytest.approx(0.1 * 1.1)  # (1 - 0.9) mean score


def test_label_smoothing_moves_the_targets_of_least_squares() -> None:
    score = torch.tensor([0.3, 2.0])
    for player, half in (("d", 2), ("g", 1)):
        moved = LeastSquares().moved_target(player, score, 1.0, 0.9)  # type: ignore[arg-type]
        want = ((score - 0.9).square().mean() - (score - 1).square().mean()) / half
        assert float(moved) == pytest.approx(float(want))
    assert Minimax().moved_target("g", score, 1.0, 0.9) is None


# ---- feature matching


def test_distances_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 4.0, 4.0])
    assert float(distance(a, b, "squared")) == 5
    assert float(distance(a, b, "mean_squared")) == pytest.approx(5 / 3)
    assert float(distance(a, b, "absolute")) == 1


@pytest.mark.parametrize("layer", [None, "convs.2"])
def test_feature_matching_replaces_gs_loss_by_the_layers_means(layer: str | None) -> None:
    words = [] if layer is None else [f"technique.feature_matching.layer={layer}"]
    gan = built("technique=feature_matching", *words, "technique.feature_matching.weight=3")
    batches = [Batch(torch.rand(8, 1, 16, 16) * 2 - 1) for _ in range(2)]  # D's, and G's own
    used = iter(batches)
    d_then, z = [], []
    gan.generator.register_forward_hook(lambda g, inputs, x: z.append(x.detach()))
    step = gan.d_optimizer.step

    def d_step() -> Any:
        result = step()
        d_then.append({k: v.clone() for k, v in gan.discriminator.state_dict().items()})
        return result

    gan.d_optimizer.step = d_step  # type: ignore[method-assign]
    log = update(gan, lambda: next(used))
    assert set(log) == {"d", "d_real", "d_fake", "g"}
    gan.discriminator.load_state_dict(d_then[0])

    def features(x: Tensor) -> Tensor:
        if layer is None:
            last = gan.discriminator(x).features
            assert last is not None
            return last.mean(0)
        d = gan.discriminator
        for conv in d.convs[:2]:  # type: ignore[union-attr]
            x = F.leaky_relu(conv(x), d.slope)  # type: ignore[arg-type]
        return d.convs[2](x).mean(0)  # type: ignore[index, no-any-return]

    want = 3 * (features(batches[1].x) - features(z[-1])).square().sum()
    assert float(log["g"]) == pytest.approx(float(want), rel=1e-5)


def test_feature_matching_beside_the_loss() -> None:
    gan = built("technique=feature_matching", "technique.feature_matching.beside_loss=true")
    log = update(gan, lambda: Batch(torch.rand(8, 1, 16, 16)))
    assert {"g", "g_feature_matching"} <= set(log)


# ---- minibatch discrimination


def layer(form: str, features: int = 1, kernels: int = 1, dims: int = 2) -> MinibatchFeatures:
    module = MinibatchFeatures(features, kernels, dims, form)  # type: ignore[arg-type]
    with torch.no_grad():
        module.T.copy_(torch.tensor([[[1.0, -0.5]]]))
    return module


def test_minibatch_features_by_hand() -> None:
    f = torch.tensor([[0.0], [1.0], [3.0]])
    c = [[math.exp(-1.5 * abs(a - b)) for b in (0, 1, 3)] for a in (0, 1, 3)]  # |a - b| (1 + 0.5)
    assert layer("paper")(f).squeeze(1).tolist() == pytest.approx([sum(row) for row in c])
    code = layer("code")
    norm = torch.tensor([1.0, 1.0])  # of columns of one entry: its sign stays
    code.log_scale.data = torch.log(torch.tensor([[2.0, 0.5]]))
    assert norm.sum() == 2
    c = [[math.exp(-2.5 * abs(a - b)) if a != b else 0 for b in (0, 1, 3)] for a in (0, 1, 3)]
    assert code(f).squeeze(1).tolist() == pytest.approx([sum(row) - 1 for row in c])
    joint = layer("joint")
    joint.n_real = 1  # one real sample, two generated
    c = [[math.exp(-1.5 * abs(a - b)) if a != b else 0 for b in (0, 1, 3)] for a in (0, 1, 3)]
    want = [[row[0] / (1 * 2), (row[1] + row[2]) / (2 * 2)] for row in c]
    assert joint(f).tolist() == [pytest.approx(row) for row in want]


def test_minibatch_gradients_are_finite_differences() -> None:
    torch.manual_seed(0)
    module = MinibatchFeatures(4, 3, 2, "code").double()
    f = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(module, (f,))
    assert torch.autograd.gradgradcheck(module, (f,))


def test_minibatch_discrimination_starts_from_data() -> None:
    """Half the mean nearest distance is the unit, and the features have mean 0 on the first samples."""
    torch.manual_seed(0)
    module, f = MinibatchFeatures(6, 4, 3, "code"), torch.randn(50, 6)
    with torch.no_grad():
        module.start(f)
        nearest = (module.distances(f) + 1e6 * module.itself(50, CPU)).amin(1)
        assert nearest.mean(0).tolist() == pytest.approx([2.0] * 4, rel=1e-5)
        assert module(f).mean(0).abs().max() < 1e-5
    data = Digits(resolution=16).load()
    d = built("technique=minibatch_discrimination", data=data).discriminator
    seen = [m for m in d.modules() if isinstance(m, MinibatchFeatures)]
    assert len(seen) == 1
    assert not torch.equal(seen[0].offset, torch.full_like(seen[0].offset, -1))


def test_minibatch_discrimination_keeps_the_last_layers_columns() -> None:
    torch.manual_seed(0)
    gan = built("technique=minibatch_discrimination")
    last = gan.discriminator.dense
    assert isinstance(last, WithMinibatch)
    assert last.layer.in_features == last.minibatch.T.shape[0] + 100
    assert not gan.joint_pass  # real and generated samples apart
    assert built(
        "technique=minibatch_discrimination", "technique.minibatch_discrimination.form=joint"
    ).joint_pass


# ---- historical averaging


def test_historical_averaging_is_the_mean_of_all_past_parameters() -> None:
    gan = built("technique=historical_averaging", "d_steps=2", "technique.historical_averaging.g=0.5")
    method = gan.methods["historical_averaging"]
    assert isinstance(method, HistoricalAveraging)
    past: dict[str, list[list[Tensor]]] = {"d": [], "g": []}
    nets = {"d": gan.discriminator, "g": gan.generator}
    for player, net in nets.items():
        past[player].append([p.detach().clone() for p in net.parameters()])

    inner = method.after_update

    def after_update(g: Any, player: Any) -> None:
        inner(g, player)
        past[player].append([p.detach().clone() for p in nets[player].parameters()])

    method.after_update = after_update  # type: ignore[method-assign]
    for _ in range(3):
        update(gan, lambda: Batch(torch.rand(8, 1, 16, 16)))
    assert (len(past["d"]), len(past["g"])) == (7, 4)
    for player, weight in (("d", 1.0), ("g", 0.5)):
        means = [torch.stack(values).mean(0) for values in zip(*past[player], strict=True)]
        for mean, kept in zip(means, method.means(player, len(means)), strict=True):  # type: ignore[arg-type]
            assert torch.allclose(mean, kept, atol=1e-6)
        now = nets[player].parameters()
        want = weight * sum(float((p - m).square().sum()) for p, m in zip(now, means, strict=True))
        scene = Scene(gan, None, None, None, None)  # type: ignore[arg-type]
        term = method.d_term(scene) if player == "d" else method.g_term(scene)
        assert float(term) == pytest.approx(want, rel=1e-4)  # type: ignore[arg-type]


# ---- virtual batch norm


def test_virtual_norm_by_hand() -> None:
    norm = VirtualNorm(2, 1e-5, 1)
    norm.weight.data.fill_(2.0)
    norm.bias.data.fill_(0.5)
    x = torch.tensor(
        [[[3.0, 5.0]], [[0.0, 1.0]], [[2.0, 1.0]]]
    )  # one live sample of 2 pixels, 2 of reference
    m_ref, q_ref = 1.0, 6 / 4
    m, q = (4 + 2 * m_ref) / 3, (17 + 2 * q_ref) / 3
    live = [2 * (v - m) / math.sqrt(1e-5 + q - m * m) + 0.5 for v in (3, 5)]
    ref = [2 * (v - m_ref) / math.sqrt(1e-5 + q_ref - m_ref**2) + 0.5 for v in (0, 1, 2, 1)]
    assert norm(x).flatten().tolist() == pytest.approx([*live, *ref], rel=1e-5)
    vector = norm(torch.tensor([[3.0], [0.0], [2.0]])).flatten()  # without space a sample is its own mean
    m, q = (3 + 2 * 1) / 3, (9 + 2 * 2) / 3
    assert float(vector[0]) == pytest.approx(2 * (3 - m) / math.sqrt(1e-5 + q - m * m) + 0.5, rel=1e-5)


@pytest.mark.parametrize(
    "net", [[], ["architecture=resnet", "architecture.head=projection", "dataset.resolution=32"]]
)
def test_an_image_depends_on_its_own_latent_alone(net: list[str]) -> None:
    gan = built(*net, "technique=virtual_batch_norm", "technique.virtual_batch_norm.size=6", "ema=0.9")
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in gan.generator.modules())
    torch.manual_seed(0)
    z, y = torch.randn(5, gan.z_dim), torch.arange(5) if gan.num_classes else None
    shape = (8, 1, 32, 32) if net else (8, 1, 16, 16)
    update(gan, lambda: Batch(torch.rand(shape), torch.arange(8)))
    for g in (gan.generator, gan.ema_or_generator):
        for training in (True, False):
            images = g.train(training)(z, y)
            alone = g(z[3:4], None if y is None else y[3:4])
            assert torch.allclose(images[3:4], alone, atol=1e-6)
            if y is not None:
                assert not torch.allclose(alone, g(z[3:4], y[2:3]), atol=1e-4)  # labels still matter
    assert torch.equal(gan.ema_or_generator.reference_z, gan.generator.reference_z)  # type: ignore[arg-type]


# ---- together, and not


REFUSED = [
    ("technique=feature_matching technique.feature_matching.layer=convs.99", "D has no layer 'convs.99'"),
    ("technique=label_smoothing loss=hinge", "Hinge's loss of D has no targets to smooth"),
    (
        "technique=label_smoothing loss=minimax technique.label_smoothing.generator=0.5",
        "loss of G has no targets",
    ),
    ("technique=label_smoothing technique.label_smoothing.fake=0.9", "fake: 0.9 is not below real=0.9"),
    ("technique=historical_averaging technique.historical_averaging={g: 0, d: 0}", "g=0 and d=0 do nothing"),
    ("technique=minibatch_discrimination batch_size=1", "batch_size: 1 is not an integer >= 2"),
    (
        "technique=minibatch_discrimination architecture=wgan ~architecture.slope",
        "does not end in a dense layer",
    ),
    (
        "technique=minibatch_discrimination technique.minibatch_discrimination.form=joint normalization=gp",
        "normalization.gp needs each alone",
    ),
    ("technique=virtual_batch_norm architecture=mlp", "this G has none"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED)
def test_what_makes_no_sense_together_is_refused_in_one_line(words: str, message: str) -> None:
    line = [w.replace("g: 0, d: 0", "g: 0, d: 0") for w in words.replace("{g: 0, d: 0}", "{g:0,d:0}").split()]
    line = [w for w in line if not w.startswith("~")]
    with pytest.raises(ConfigError) as error:
        built(*line)
    assert any(message in str(m) for m in error.value.mistakes), error.value.mistakes
    assert all("\n" not in str(m) for m in error.value.mistakes)


def test_a_reference_batch_larger_than_the_data_is_refused() -> None:
    e = compose.build(
        compose.compose([*SMALL, "technique=virtual_batch_norm", "technique.virtual_batch_norm.size=9999"])
    )
    data = Digits(resolution=16).load()
    (text,) = e.technique["virtual_batch_norm"].mistakes(e, data)
    assert text.startswith(f"size=9999 is more than the {len(data)} samples of the data; use at most")


# ---- toy games


def test_gradient_descent_leaves_v_xy_at_the_exact_rate_and_averaging_returns() -> None:
    start = math.sqrt(2) * 0.5
    plain = toy_games.away(toy_games.play("xy", 0.0, 0.05, 200, 0.5), "xy")
    assert float(plain[-1]) == pytest.approx(start * (1 + 0.05**2) ** 100, rel=1e-9)
    for game in toy_games.GAMES:
        averaged = toy_games.away(toy_games.play(game, 0.1, 0.05, 800, 0.5), game)
        assert float(averaged[-1]) < 0.05 * start
    assert len(toy_games.play("f", 0.0, 0.05, 2000, 0.5)) < 2000  # the paper: gradient descent fails


def test_one_step_of_averaging_by_hand() -> None:
    """theta[1] = theta[2] = the start's neighbours: the second step sees (theta - mean) = half the first."""
    path = toy_games.play("xy", 0.1, 0.05, 2, 0.5).tolist()
    assert path[1] == pytest.approx([0.5 - 0.05 * 0.5, 0.5 + 0.05 * 0.5])  # the mean is the start: no pull
    (x, y), half = path[1], 0.5 * 0.05 * 0.5
    want = [x - 0.05 * (y - 0.2 * half), y + 0.05 * (x - 0.2 * half)]
    assert path[2] == pytest.approx(want)
