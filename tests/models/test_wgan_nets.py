"""The nets of the WGAN and WGAN-GP papers: counts by hand, layers, norms, starts; settings and grids."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from host_reads import NoHostReads
from test_nets import count, shape
from torch import Tensor, nn

from ganlab.config import compose
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.methods.base import FeatureNorm
from ganlab.methods.feature_norms import BatchNorm, LayerNorm, SampleNorm
from ganlab.models.activations import Activation, Gate, SmoothELU, activation, smooth_elu
from ganlab.models.base import Architecture
from ganlab.models.bottleneck import Bottleneck, Doubling, EveryOther, Halving
from ganlab.models.dcgan import downward, upward
from ganlab.models.random_dcgan import DCGANFamily
from ganlab.models.wgan_dcgan import WGAN
from ganlab.models.wgan_gp_lsun import Bedrooms, Pair
from ganlab.sweeps import grid, plan
from ganlab.training.build import build_gan
from ganlab.training.step import update
from ganlab.types import Batch

PAIRS: list[Pair] = ["dcgan", "constant", "mlp", "no_norm", "gated", "tanh", "resnet101", "good"]
BN, LN = BatchNorm(affine="full").feature_norm(), LayerNorm(affine="full").feature_norm()
EVERYWHERE = BatchNorm(affine="full", place="all").feature_norm()


def norms(net: nn.Module) -> list[int]:
    """Channels of the norms of a net, in order."""
    channels = []
    for m in net.modules():
        if isinstance(m, (nn.modules.batchnorm._BatchNorm, SampleNorm)):
            assert m.weight is not None
            channels.append(len(m.weight))
    return channels


def longest_path(out: Tensor) -> int:
    """Convolutions and linear layers on the longest way through the graph that made ``out``."""
    order: list[Any] = []
    seen, stack = set(), [(out.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack += [(node, True), *((n, False) for n, _ in node.next_functions)]
    depth: dict[Any, int] = {None: 0}
    for node in order:
        weighted = any(word in type(node).__name__ for word in ("Convolution", "Addmm"))
        depth[node] = weighted + max([depth[n] for n, _ in node.next_functions], default=0)
    return depth[out.grad_fn]


def layers_of(architecture: Architecture, side: int, norm: FeatureNorm | None = None) -> tuple[int, int]:
    x = architecture.generator(shape(side), 0)(torch.randn(2, architecture.z_dim))
    d = architecture.discriminator(shape(side), 0, norm)
    return longest_path(x), longest_path(d(x.detach()).score)


# ---- activations


def test_smooth_elu_is_its_formula_and_has_its_second_derivative() -> None:
    x = torch.tensor([-30.0, -1.0, 0.0, 1.0, 40.0], dtype=torch.float64, requires_grad=True)
    y = smooth_elu(x)
    by_hand = [
        -1.0,
        math.log(2) / 2 - 1,
        math.log1p(math.exp(2)) / 2 - 1,
        math.log1p(math.exp(4)) / 2 - 1,
        40,
    ]
    assert y.tolist() == pytest.approx(by_hand, abs=1e-9)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    s = torch.sigmoid(2 * x.detach() + 2)
    assert torch.allclose(first, s, atol=1e-8)
    assert torch.allclose(second, 2 * s * (1 - s), atol=1e-7)
    near = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(smooth_elu, (near,))
    assert isinstance(activation("smooth_elu"), SmoothELU)


def test_a_gate_is_a_sigmoid_times_a_tanh_and_halves_the_channels() -> None:
    x = torch.tensor([[[[0.0]], [[2.0]], [[0.5]], [[-1.0]]]])
    wanted = [0.5 * math.tanh(0.5), 1 / (1 + math.exp(-2)) * math.tanh(-1)]
    assert Gate()(x).flatten().tolist() == pytest.approx(wanted, rel=1e-6)


# ---- WGAN


def test_wgan_counts_by_hand() -> None:
    a = WGAN()
    critic = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512)
    mirror = 16 * (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) + 2 * (512 + 256 + 128 + 64)
    assert count(a.discriminator(shape(64), 0, None)) == critic == 2_763_776
    assert count(a.discriminator(shape(64), 0, BN)) == critic + 2 * (128 + 256 + 512)
    assert count(a.generator(shape(64), 0)) == mirror == 3_576_704
    small = WGAN(base=8, g_norm=False, g_filters="constant", z_dim=10)
    assert count(small.generator(shape(32), 0)) == 16 * (10 * 8 + 8 * 8 + 8 * 8 + 8 * 3)
    for layers, a in ((4, WGAN(g="mlp")), (3, WGAN(g="mlp", mlp_layers=3))):  # Figure 7's caption, the code
        mlp = 100 * 512 + 512 + (layers - 1) * (512 * 512 + 512) + 512 * 12288 + 12288
        assert count(a.generator(shape(64), 0)) == mlp
    assert layers_of(WGAN(0.1, g="mlp"), 32) == (5, 4)
    assert layers_of(WGAN(0.1), 64) == (5, 5)
    assert layers_of(WGAN(0.1), 128) == (6, 6)


def test_wgan_starts_as_its_code() -> None:
    torch.manual_seed(0)
    nets = WGAN().generator(shape(32), 0), WGAN().discriminator(shape(32), 0, BN)
    for net in nets:
        for m in net.modules():
            if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d)):
                assert m.bias is None
                assert m.weight.abs().max() > 0.036 or m.weight.numel() < 5000, "not uniform"
                assert m.weight.std().item() == pytest.approx(0.02, rel=0.03)
            elif isinstance(m, nn.BatchNorm2d):
                assert m.weight.mean().item() == pytest.approx(1, abs=0.006)
                assert m.weight.std().item() == pytest.approx(0.02, rel=0.25)
                assert not m.bias.any()
    assert norms(nets[1]) == [128, 256], "the first convolution has none"
    assert norms(WGAN().discriminator(shape(32), 0, EVERYWHERE)) == [64, 128, 256]


# ---- the pairs of Figure 2


def same_block(c: int) -> int:
    half = c // 2
    return (c * half + half) + (9 * half * half + half) + half * c


def test_bedrooms_counts_by_hand() -> None:
    def nets(pair: Pair) -> tuple[int, int]:
        a = Bedrooms(pair)
        return count(a.generator(shape(64), 0)), count(a.discriminator(shape(64), 0, None))

    def deconvs(*c: int) -> int:
        return sum(25 * a * b + b for a, b in itertools.pairwise(c))

    dense = 128 * 8192 + 8192
    g = dense + deconvs(512, 256, 128, 64, 3)
    d = deconvs(3, 64, 128, 256, 512) + 8192 + 1
    assert nets("no_norm") == (g, d)
    assert nets("dcgan") == nets("tanh") == (g + 2 * (512 + 256 + 128 + 64), d) == (5_364_739, 4_314_753)
    assert nets("constant") == (128 * 1024 + 1024 + deconvs(64, 64, 64, 64, 3), d)
    mlp = 128 * 512 + 3 * 512 * 512 + 4 * 512 + 512 * 12288 + 12288
    assert nets("mlp") == (mlp, d)
    gated = 2 * dense + sum(25 * a * b + b for a, b in ((512, 512), (256, 256), (128, 128), (64, 3)))
    assert nets("gated") == (
        gated + 4 * (512 + 256 + 128 + 64),
        sum(25 * a * b + b for a, b in ((3, 128), (64, 256), (128, 512), (256, 1024))) + 8193,
    )


def test_the_101_layer_pair_counts_by_hand() -> None:
    a = Bedrooms("resnet101")
    maps = [512, 256, 128, 64, 32]
    same = sum(n * same_block(c) for n, c in zip((6, 6, 6, 6, 5), maps, strict=True))
    up = down = 0
    for big, small in itertools.pairwise(maps):
        h, k = big // 2, small // 2
        up += (big * h + h) + (9 * h * k + k) + k * small + (big + 1) * 4 * small
        down += (small * k + k) + (9 * k * h + h) + h * big + (small + 1) * big
    per_channel = 2 * (6 * 512 + 7 * 256 + 7 * 128 + 7 * 64 + 6 * 32)  # 33 norms at the blocks' ends
    g = 128 * 8192 + 8192 + same + up + 32 * 3 + 3 + per_channel
    d = 3 * 32 + 32 + same + down + 8192 + 1
    assert count(a.generator(shape(64), 0)) == g == 9_189_587
    assert count(a.discriminator(shape(64), 0, None)) == d == 7_605_041
    per_channel = 2 * (5 * 32 + 7 * 64 + 7 * 128 + 7 * 256 + 7 * 512)
    for norm in (BN, LN):
        assert count(a.discriminator(shape(64), 0, norm)) == d + per_channel


def test_the_longest_ways_through_the_pairs() -> None:
    """101 weighted layers in both nets of resnet101; the others as Figure 2's code has them."""
    assert layers_of(Bedrooms("resnet101", 0.05), 64) == (101, 101)
    assert layers_of(Bedrooms("resnet101", 0.05), 32) == (80, 80)
    assert layers_of(Bedrooms("mlp", 0.05), 64) == (5, 5)
    assert layers_of(Bedrooms("good", 0.05), 64) == (10, 10)
    for pair in ("dcgan", "constant", "no_norm", "gated", "tanh"):
        assert layers_of(Bedrooms(pair, 0.05), 64) == (5, 5)


def test_which_layers_have_norms() -> None:
    """Batch norm in G where the paper has it; D's is the normalization's, behind the same layers."""
    of_g = {
        "dcgan": [512, 256, 128, 64],
        "tanh": [512, 256, 128, 64],
        "gated": [1024, 512, 256, 128],
        "resnet101": [512] * 6 + [256] * 7 + [128] * 7 + [64] * 7 + [32] * 6,
        "good": [512, 512, 512, 256, 256, 128, 128, 64, 64],
    }
    of_d = {
        "gated": [256, 512, 1024],
        "resnet101": [32] * 5 + [64] * 7 + [128] * 7 + [256] * 7 + [512] * 7,
        "good": [64, 64, 128, 128, 256, 256, 512, 512],
    }
    for pair in PAIRS:
        a = Bedrooms(pair)
        assert norms(a.generator(shape(64), 0)) == of_g.get(pair, []), pair
        assert norms(a.discriminator(shape(64), 0, None)) == []
        for norm in (BN, LN):
            assert norms(a.discriminator(shape(64), 0, norm)) == of_d.get(pair, [128, 256, 512]), pair
        more = {"gated": [128], "resnet101": [32], "good": []}.get(pair, [64])
        assert len(norms(a.discriminator(shape(64), 0, EVERYWHERE))) == len(of_d.get(pair, "abc")) + len(more)


def test_a_bottleneck_is_its_shortcut_and_three_tenths_of_its_branch() -> None:
    block = Bottleneck(4, 4, None, None)
    assert block.conv3.bias is None
    x = torch.randn(2, 4, 6, 6)
    branch = block.conv3(block.conv2(block.conv1(x.relu()).relu()).relu())
    assert torch.allclose(block(x), x + 0.3 * branch)
    up, down = Bottleneck(4, 2, "up", BN), Bottleneck(4, 8, "down", LN)
    assert up(x).shape == (2, 2, 12, 12)
    assert down(x).shape == (2, 8, 3, 3)
    nn.init.zeros_(up.norm.weight)
    four = up.shortcut(x)  # (2, 8, 6, 6): the four pixels of each
    assert torch.equal(up(x)[:, 1, 1::2, 0::2], four[:, 4 + 2])


def test_resampling_in_a_bottleneck_is_padded_as_tensorflow_pads() -> None:
    """SAME, stride 2, even side: of a 3x3 kernel's one column of zeros none stands in front (0, 1)."""
    x = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    halving, doubling = Halving(1, 1), Doubling(1, 1)
    for layer in (halving, doubling):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
    sums = [[1 + 2 + 3 + 5 + 6 + 7 + 9 + 10 + 11, 3 + 4 + 7 + 8 + 11 + 12], [9 + 10 + 11 + 13 + 14 + 15, 54]]
    assert halving(x)[0, 0].tolist() == sums
    assert doubling(torch.tensor([[[[1.0, 10.0], [100.0, 1000.0]]]]))[0, 0].tolist() == [
        [1, 1, 11, 10],
        [1, 1, 11, 10],
        [101, 101, 1111, 1010],
        [100, 100, 1100, 1000],
    ]
    kernel = torch.randn(1, 1, 3, 3)
    halving.weight.data, doubling.weight.data = kernel, kernel
    y = torch.randn(1, 1, 2, 2)
    assert torch.allclose((halving(x) * y).sum(), (x * doubling(y)).sum(), rtol=1e-5), (
        "each is the other's adjoint"
    )
    down = Bottleneck(2, 2, "down", None)
    assert (type(down.conv2), type(Bottleneck(2, 2, "up", None).conv2)) == (Halving, Doubling)
    corner = torch.zeros(1, 2, 4, 4)
    corner[..., 0, 0] = 1.0
    assert down.shortcut(corner)[0, 0, 0, 0] != down.shortcut(corner)[0, 0, 1, 1], "the window's first pixel"


def test_the_5x5_layers_are_tensorflows_upside_down() -> None:
    """SAME pads an even side by (1, 2), ours by (2, 1): the same nets, of images turned by 180 degrees."""
    x, turned = torch.randn(1, 2, 8, 8), (2, 3)
    down, up = downward(2, 3), upward(3, 2)
    same = F.conv2d(F.pad(x.flip(turned), (1, 2, 1, 2)), down.weight.flip(turned), down.bias, 2)
    assert torch.allclose(down(x), same.flip(turned), atol=1e-6)
    y = torch.randn(1, 3, 4, 4)
    whole = F.conv_transpose2d(
        y.flip(turned), up.weight.flip(turned), up.bias, 2
    )  # side 11: 1 and 2 too many
    assert torch.allclose(up(y), whole[:, :, 1:-2, 1:-2].flip(turned), atol=1e-6)


def test_outputs_of_the_101_layer_pair_are_divided_by_5() -> None:
    torch.manual_seed(0)
    a = Bedrooms("resnet101", 0.05)
    g, d = a.generator(shape(32), 0), a.discriminator(shape(32), 0, None)
    before: dict[str, Tensor] = {}
    g.last.register_forward_hook(lambda m, i, out: before.update(g=out))
    d.dense.register_forward_hook(lambda m, i, out: before.update(d=out))
    x = g(torch.randn(2, 128))
    score = d(x).score
    assert torch.allclose(x, (before["g"] / 5).tanh())
    assert torch.allclose(score, before["d"].squeeze(1) / 5)


def test_how_the_pairs_start() -> None:
    """DCGANs and tanh nets uniform with deviation 0.02; the others as He and Glorot say."""
    torch.manual_seed(0)
    for pair in ("dcgan", "no_norm", "tanh"):
        a = Bedrooms(pair)
        for net in (a.generator(shape(64), 0), a.discriminator(shape(64), 0, None)):
            for m in net.modules():
                if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
                    assert m.weight.abs().max() <= 0.02 * math.sqrt(3)
                    assert m.weight.std().item() == pytest.approx(0.02, rel=0.02)
                    assert not m.bias.any()
    gated = Bedrooms("gated").discriminator(shape(64), 0, None).convs[1]
    assert gated.weight.std().item() == pytest.approx(math.sqrt(4 / (25 * 64 + 25 * 256 / 4)), rel=0.02)
    constant = Bedrooms("constant")
    deconv = constant.generator(shape(64), 0).body[0]
    assert deconv.weight.std().item() == pytest.approx(math.sqrt(4 / (25 * 64 / 4 + 25 * 64)), rel=0.02)
    assert constant.discriminator(shape(64), 0, None).convs[1].weight.abs().max() <= 0.02 * math.sqrt(3)
    mlp = [m for m in Bedrooms("mlp").generator(shape(64), 0).modules() if isinstance(m, nn.Linear)]
    wanted = [*(math.sqrt(2 / m.in_features) for m in mlp[:-1]), math.sqrt(2 / (512 + 12288))]
    assert [m.weight.std().item() for m in mlp] == pytest.approx(wanted, rel=0.02)
    block = Bedrooms("resnet101").discriminator(shape(64), 0, None).blocks[5]
    assert block.shortcut.weight.std().item() == pytest.approx(math.sqrt(2 / (32 + 64 / 4)), rel=0.05)
    assert block.conv2.weight.std().item() == pytest.approx(math.sqrt(4 / (9 * 16 + 9 * 32 / 4)), rel=0.05)


def test_the_good_pair_has_no_bias_before_its_second_norms() -> None:
    a = Bedrooms("good", 0.1)
    for net in (a.generator(shape(32), 0), a.discriminator(shape(32), 0, LN)):
        assert [b.conv1.bias for b in net.blocks] == [None] * 3
        assert all(b.conv2.bias is not None for b in net.blocks)


# ---- the random family


def test_the_family_s_depth_is_its_weighted_layers() -> None:
    for depth in (4, 5, 12):
        a = DCGANFamily(g_depth=depth, d_depth=24 - depth, width=0.05)
        assert layers_of(a, 32) == (depth, 24 - depth)
    assert layers_of(DCGANFamily(width=0.05), 64) == (5, 5)
    assert layers_of(DCGANFamily(width=0.05), 16) == (3, 3)


def test_the_family_s_smallest_net_is_the_dcgan_and_more_layers_are_spread_over_the_maps() -> None:
    a = DCGANFamily(g_filters=128, d_filters=32)
    g = 128 * 8192 + 8192 + 25 * (512 * 256 + 256 * 128 + 128 * 3) + 256 + 128 + 3 + 2 * (512 + 256 + 128)
    assert count(a.generator(shape(32), 0)) == g
    assert count(a.discriminator(shape(32), 0, None)) == (
        25 * (3 * 32 + 32 * 64 + 64 * 128) + 32 + 64 + 128 + 128 * 16 + 1
    )
    deep = DCGANFamily(g_depth=8, d_depth=8, g_filters=8, d_filters=8)
    d = deep.discriminator(shape(32), 0, LN)
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in d.convs] == [
        (8, 5, 2), (8, 3, 1), (16, 5, 2), (16, 3, 1), (32, 5, 2), (32, 3, 1), (32, 3, 1),
    ]  # fmt: skip
    assert norms(d) == [8, 16, 16, 32, 32, 32], "not behind the first"
    body = deep.generator(shape(32), 0)
    convs = [m for m in body.modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    assert [(c.out_channels, c.kernel_size[0]) for c in convs] == [
        (32, 3), (32, 3), (16, 5), (16, 3), (8, 5), (8, 3), (3, 5),
    ]  # fmt: skip
    assert norms(body) == [32, 32, 32, 16, 16, 8, 8]
    assert norms(DCGANFamily(g_norm=False).generator(shape(32), 0)) == []


@pytest.mark.parametrize("name", ["leaky_relu", "smooth_elu", "tanh"])
def test_the_family_s_activations(name: Activation) -> None:
    kind = type(activation(name))
    assert kind.__name__.lower() == name.replace("_", "")
    a = DCGANFamily(g_activation=name, d_activation=name, g_depth=20, d_depth=20, g_norm=False, width=0.1)
    g, d = a.generator(shape(32), 0), a.discriminator(shape(32), 0, None)
    assert sum(isinstance(m, kind) for m in g.modules()) == 19 + (name == "tanh")
    assert isinstance(d.activation, kind)
    x = g(torch.randn(2, 128))
    assert torch.isfinite(d(x).score).all()
    assert x.std().item() > 1e-3, "twenty layers still pass a signal"


# ---- all of them

SOME: list[tuple[Architecture, int]] = [
    *((Bedrooms(pair, 0.04), 32) for pair in PAIRS),
    (WGAN(0.04), 64),
    (WGAN(0.04, g_norm=False, g_filters="constant"), 64),
    (WGAN(0.04, g="mlp"), 16),
    (DCGANFamily(width=0.02, g_depth=12, d_depth=20, d_activation="smooth_elu"), 32),
]
IDS = [f"{type(a).__name__} {getattr(a, 'pair', '')} {side}" for a, side in SOME]


@pytest.mark.parametrize(("architecture", "side"), SOME, ids=IDS)
def test_images_in_range_scores_and_gradients(architecture: Architecture, side: int) -> None:
    for channels, norm in ((1, LN), (3, BatchNorm(order="after_activation").feature_norm())):
        g = architecture.generator(shape(side, channels), 0)
        d = architecture.discriminator(shape(side, channels), 0, norm)
        x = g(torch.randn(3, architecture.z_dim))
        assert x.shape == (3, channels, side, side)
        assert x.abs().max() <= 1
        verdict = d(x)
        assert verdict.score.shape == (3,)
        assert verdict.features.shape[0] == 3
        verdict.score.square().sum().backward()
        assert [n for net in (g, d) for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("architecture", [WGAN(), Bedrooms(), DCGANFamily()])
@pytest.mark.parametrize("side", [8, 48])
def test_sides_that_cannot_be_built(architecture: Architecture, side: int) -> None:
    fix = r"dataset.resolution: \d+x\d+ can't be built by .* 4 times a power of two.*; set dataset.resol"
    with pytest.raises(ValueError, match=fix):
        architecture.check(shape(side))


def composed(*words: str) -> Experiment:
    made = compose.build(compose.compose(list(words)))
    assert isinstance(made, Experiment)
    return made


def images(*words: str) -> Experiment:
    return composed(*words, "dataset=digits", "dataset.channels=3", "device=cpu")


@pytest.mark.parametrize(
    "words",
    [
        ["+experiment=wgan_cifar"],
        *(["+experiment=wgan_gp_lsun", f"architecture.pair={p}"] for p in ("gated", "mlp", "good")),
        ["architecture=dcgan_family", "architecture.d_activation=smooth_elu", "normalization=gp"],
    ],
    ids=lambda words: words[-1].rpartition("=")[2],
)  # fmt: skip
def test_no_value_is_read_on_the_host(words: list[str]) -> None:
    e = images(*words, "dataset.resolution=32", "architecture.width=0.04", "batch_size=4", "d_steps=1")
    game, x = build_gan(e, torch.device("cpu")), torch.rand(4, 3, 32, 32)
    update(game, lambda: Batch(x))  # the slots of the optimizers
    with NoHostReads():
        losses = update(game, lambda: Batch(x))
    assert {"d", "g"} <= set(losses)


def test_the_101_layer_pair_takes_an_update_of_each_player_at_full_width() -> None:
    """WGAN-GP with layer norm, second derivatives through 101 layers, on a CPU."""
    e = images(
        "+experiment=wgan_gp_lsun", "architecture.pair=resnet101", "dataset.resolution=64", "d_steps=1",
        "batch_size=2",
    )  # fmt: skip
    game = build_gan(e, torch.device("cpu"))
    assert (count(game.generator), count(game.discriminator)) == (9_189_587, 7_605_041 + 13_760)
    before = {
        k: v.clone() for k, v in (game.generator.state_dict() | game.discriminator.state_dict()).items()
    }
    with NoHostReads():
        losses = update(game, lambda: Batch(torch.rand(2, 3, 64, 64) * 2 - 1))
    assert set(losses) == {"d", "gp", "g", "d_real", "d_fake"}
    assert all(math.isfinite(float(v)) for v in losses.values()), losses
    after = game.generator.state_dict() | game.discriminator.state_dict()
    assert all(torch.isfinite(v).all() for v in after.values())
    assert sum(not torch.equal(v, before[k]) for k, v in after.items()) > 0.95 * len(after)


# ---- settings, normalizations, grids


def test_settings_are_the_papers() -> None:
    weight = [nn.Parameter(torch.zeros(1))]
    for name, kind, lr, alpha, d_steps in (
        ("wgan", "RMSprop", 5e-5, 0.99, 5),
        ("wgan_tf", "RMSpropTF", 5e-5, 0.9, 5),
        ("lsgan", "RMSpropTF", 1e-4, 0.9, 1),
    ):
        e = composed(f"setting={name}")
        optimizer = e.optimizer(weight)
        (group,) = optimizer.param_groups
        assert (type(optimizer).__name__, group["lr"], group["alpha"], e.d_steps) == (
            kind,
            lr,
            alpha,
            d_steps,
        )
        assert group.get("momentum", 0) == 0
        assert e.setting == name
    e = composed("setting=wgan_gp")
    (group,) = e.optimizer(weight).param_groups
    assert (group["lr"], *group["betas"], e.d_steps) == (1e-4, 0.0, 0.9, 5)


def test_wgan_clips_every_parameter_of_its_critic() -> None:
    """Convolutions and batch norm's scales, which start at 1; G is left alone."""
    e = images("+experiment=wgan_cifar", "architecture.width=0.1", "batch_size=8", "d_steps=1")
    game = build_gan(e, torch.device("cpu"))
    update(game, lambda: Batch(torch.rand(8, 3, 32, 32)))
    parameters = dict(game.discriminator.named_parameters())
    assert any("norms" in name for name in parameters)
    bound = torch.tensor(0.01)  # as float32 has it
    assert all(p.abs().max() <= bound for p in parameters.values())
    assert any(p.abs().max() > 0.5 for p in game.generator.parameters())


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("normalization.wc.bound=-0.01", "normalization.wc.bound: -0.01 is not a number > 0"),
        ("normalization.gp.weight=-1", "normalization.gp.weight: -1 is not a number >= 0"),
        ("architecture.pair=resnet102", "architecture.pair: 'resnet102' is not one of dcgan, constant"),
    ],
)
def test_impossible_bounds_and_weights_are_one_line(word: str, line: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed("architecture=bedrooms", "normalization=[wc_all,gp]", word)
    (mistake,) = error.value.mistakes
    assert str(mistake).startswith(line)


@functools.cache
def cells(name: str) -> dict[str, dict[str, Any]]:
    return {job.name: job.tree for job in plan.plan_grid(name, [], grid.Scale(), None).jobs}


def test_figure_2_is_seven_pairs_by_four_methods() -> None:
    trees = cells("wgan_gp_fig2")
    assert len(trees) == 28
    assert {(t["steps"], t["batch_size"], t["dataset"]["resolution"]) for t in trees.values()} == {
        (200_000, 64, 64)
    }
    by_method = {
        "dcgan": (["bn"], "Standard", "Adam", 2e-4, 1),
        "lsgan": (["bn"], "LeastSquares", "RMSpropTF", 1e-4, 1),
        "wgan": (["bn", "wc"], "Wasserstein", "RMSpropTF", 5e-5, 5),
        "wgan-gp": (["ln", "gp"], "Wasserstein", "Adam", 1e-4, 5),
    }
    for name, tree in trees.items():
        pair, method = name.removesuffix("-s0").split("-", 1)
        made, loss, optimizer, lr, d_steps = by_method[method]
        if pair == "no_norm":
            made = [n for n in made if n not in ("bn", "ln")]
        assert list(tree["normalization"]) == made, name
        assert tree["architecture"]["pair"] == ("dcgan" if pair == "baseline" else pair)
        assert tree["loss"]["_target_"].endswith(loss)
        assert tree["optimizer"]["_target_"].endswith(optimizer)
        assert (tree["optimizer"]["lr"], tree["d_steps"]) == (lr, d_steps)
        for norm in ("bn", "ln"):
            assert tree["normalization"].get(norm, {}).get("affine", "full") == "full"
        assert tree["normalization"].get("wc", {}).get("scope", "all") == "all"
    assert trees["tanh-wgan-gp-s0"]["optimizer"]["betas"] == [0.5, 0.9]


def test_figure_3_and_table_3() -> None:
    trees = cells("wgan_gp_fig3")
    assert {name: (list(t["normalization"]), t["setting"]) for name, t in trees.items()} == {
        "clipping-s0": (["bn", "wc"], "wgan_tf"),
        "gp-rmsprop-s0": (["gp"], "wgan_tf"),
        "gp-adam-s0": (["gp"], "A"),
        "dcgan-s0": (["bn"], "C"),
    }
    assert {t["loss"]["_target_"] for n, t in trees.items() if n != "dcgan-s0"} == {
        "ganlab.methods.losses.Wasserstein"
    }
    assert trees["dcgan-s0"]["loss"]["_target_"] == "ganlab.methods.losses.Standard"
    free, labelled = (cells("wgan_gp_table3")[f"{name}-s0"] for name in ("unsupervised", "supervised"))
    assert (free["architecture"]["head"], labelled["architecture"]["head"]) == ("none", "ac")
    differing = {k for k in labelled if free.get(k) != labelled[k]}
    assert differing == {"architecture", "class_loss", "fake_labels"}


def test_every_other_pixel_is_a_strided_convolution() -> None:
    """With few channels torch's own backward pass writes past its memory on a CPU; this one may not."""
    torch.manual_seed(0)
    for c_in, c_out in ((2, 4), (4, 8), (8, 16)):
        ours = EveryOther(c_in, c_out)
        plain = nn.Conv2d(c_in, c_out, 1, 2).double()
        plain.load_state_dict(ours.state_dict())
        x = torch.randn(16, c_in, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
        exact = x.detach().double().contiguous().requires_grad_()
        wanted = plain(exact)
        (gradient,) = torch.autograd.grad(ours.to(memory_format=torch.channels_last)(x).square().sum(), x)
        (other,) = torch.autograd.grad(wanted.square().sum(), exact)
        torch.testing.assert_close(gradient.double(), other, rtol=1e-4, atol=1e-5)
