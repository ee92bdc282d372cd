"""Architectures: the fact sheet's parameter counts, shapes, ranges, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ganlab.methods.feature_norms import LayerNorm
from ganlab.models.base import Architecture
from ganlab.models.cnn import CNN
from ganlab.models.dcgan import DCGAN
from ganlab.models.resnet import DownBlock, ResNet
from ganlab.types import ImageShape


def shape(side: int, channels: int = 3) -> ImageShape:
    return ImageShape(channels, side, side)


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("architecture", "side", "g", "d"),
    [
        (CNN(), 32, 3_812_355, 2_935_873),
        (CNN(dense_norm="channel"), 32, 3_813_379, 2_935_873),
        (CNN(dense_norm="feature", d_widths="chainer"), 32, 3_828_739, 5_860_865),
        (CNN(), 48, 5_133_315, 2_946_113),
        (CNN(dense_norm="channel"), 48, 5_134_339, 2_946_113),
        (CNN(dense_norm="feature", d_widths="chainer"), 48, 5_170_179, 5_871_105),
        (ResNet(), 32, 4_276_739, 1_053_824),
        (ResNet(g_channels=128, dense_bias=True), 32, 1_204_483, 1_053_825),
        (ResNet(), 48, 4_878_083, 10_141_441),
        (ResNet(), 64, 12_220_675, 10_141_441),
        (ResNet(), 128, 32_150_787, 29_017_857),
        (DCGAN(), 32, 5_179_907, 4_114_689),
    ],
)
def test_parameter_counts_are_the_papers(architecture: Architecture, side: int, g: int, d: int) -> None:
    with torch.device("meta"):
        nets = architecture.generator(shape(side), 0), architecture.discriminator(shape(side), 0, None)
    assert tuple(map(count, nets)) == (g, d)


@pytest.mark.parametrize(
    ("architecture", "side"),
    [
        (CNN(0.05), 32),
        (CNN(0.05), 48),
        (ResNet(0.05), 32),
        (ResNet(0.05), 48),
        (ResNet(0.03), 128),
        (DCGAN(0.05), 64),
    ],
)
def test_images_in_range_and_one_score_each(architecture: Architecture, side: int) -> None:
    channels = 1 if side == 48 else 3
    g = architecture.generator(shape(side, channels), 0)
    d = architecture.discriminator(shape(side, channels), 0, LayerNorm().feature_norm())
    x = g(torch.randn(3, architecture.z_dim))
    assert x.shape == (3, channels, side, side)
    assert x.abs().max() <= 1
    verdict = d(x)
    assert verdict.score.shape == (3,)
    assert verdict.features.shape[0] == 3
    verdict.score.sum().backward()
    assert all(p.grad is not None for net in (g, d) for p in net.parameters())


@pytest.mark.parametrize(
    ("architecture", "side"), [(CNN(), 30), (CNN(), 8), (ResNet(), 96), (DCGAN(), 36), (DCGAN(), 8)]
)
def test_sides_that_cannot_be_built(architecture: Architecture, side: int) -> None:
    with pytest.raises(ValueError, match=r"dataset.resolution: \d+x\d+ can't be built by .*; set dataset"):
        architecture.check(shape(side))


def test_released_widths_and_slope() -> None:
    d = CNN(d_widths="chainer", slope=0.2).discriminator(shape(32), 0, None)
    assert [c.out_channels for c in d.convs] == [64, 128, 128, 256, 256, 512, 512]
    assert d.slope == 0.2
    assert [c.out_channels for c in CNN().discriminator(shape(32), 0, None).convs] == [
        64, 64, 128, 128, 256, 256, 512,
    ]  # fmt: skip


def test_last_factor_scales_both_sides_of_the_seventh_convolution() -> None:
    """SNGAN's Figure 4; a factor of 1 is the plain net, to the bit."""
    for factor, sides in ((0.5, (128, 256)), (2, (512, 1024)), (8, (2048, 4096))):
        d = CNN(last_factor=factor).discriminator(shape(48), 0, None)
        assert (d.convs[6].in_channels, d.convs[6].out_channels) == sides
        assert [c.out_channels for c in d.convs[:5]] == [64, 64, 128, 128, 256]
    nets = []
    for options in ({}, {"last_factor": 1.0}):
        torch.manual_seed(3)
        nets.append(CNN(0.1, **options).discriminator(shape(16), 0, None).state_dict())
    assert all(torch.equal(v, nets[1][k]) for k, v in nets[0].items())


def test_block_without_downsampling_passes_its_input_on() -> None:
    block = DownBlock(4, 4, False, None)
    assert isinstance(block.shortcut, nn.Identity)
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)


def test_sum_and_mean_pooling_differ_by_the_area() -> None:
    torch.manual_seed(0)
    total = ResNet(0.1).discriminator(shape(32), 0, None)
    mean = ResNet(0.1, pool="mean").discriminator(shape(32), 0, None)
    mean.load_state_dict(total.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(total(x).features, 64 * mean(x).features, rtol=1e-4)
