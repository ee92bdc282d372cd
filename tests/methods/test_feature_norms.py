"""Batch, layer and instance norm of D: their statistics, what they learn, where the networks put them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from ganlab.methods.feature_norms import BatchNorm, InstanceNorm, LayerNorm, OffsetBatchNorm
from ganlab.models.base import Architecture
from ganlab.models.cnn import CNN
from ganlab.models.dcgan import DCGAN
from ganlab.models.resnet import ResNet
from ganlab.models.wgan_dcgan import WGAN
from ganlab.types import ImageShape

RULES: dict[str, Any] = {"bn": BatchNorm, "ln": LayerNorm, "in": InstanceNorm}
OVER = {"bn": (0, 2, 3), "ln": (1, 2, 3), "in": (2, 3)}
SHAPE = ImageShape(3, 32, 32)


@pytest.mark.parametrize("kind", RULES)
def test_the_default_has_an_offset_and_no_scale(kind: str) -> None:
    norm = RULES[kind]().feature_norm()(5)
    assert {n: tuple(p.shape) for n, p in norm.named_parameters()} == {"bias": (5,)}
    with torch.no_grad():
        norm.bias.fill_(2.0)
    y = norm(torch.randn(8, 5, 6, 6) * 3 + 7)
    mean, variance = y.mean(OVER[kind]), y.var(OVER[kind], unbiased=False)
    assert torch.allclose(mean, torch.full_like(mean, 2.0), atol=1e-4)
    assert torch.allclose(variance, torch.ones_like(variance), atol=1e-2)


def test_batch_norm_without_a_scale_multiplies_by_one_that_no_init_and_no_checkpoint_knows() -> None:
    """CUDA gives the offset no gradient where the multiplier is None."""
    d = WGAN(width=0.1).discriminator(SHAPE, 0, RULES["bn"]().feature_norm())
    norms = [m for m in d.modules() if isinstance(m, OffsetBatchNorm)]
    assert norms
    for norm in norms:
        assert torch.equal(norm.weight, torch.ones_like(norm.weight))
        assert set(norm.state_dict()) == {"bias", "running_mean", "running_var", "num_batches_tracked"}


@pytest.mark.parametrize("kind", RULES)
@pytest.mark.parametrize(("affine", "names"), [("full", {"weight", "bias"}), ("none", set())])
def test_affine_says_what_is_learned(kind: str, affine: str, names: set[str]) -> None:
    norm = RULES[kind](affine=affine).feature_norm()(4)
    assert {n for n, _ in norm.named_parameters()} == names
    x = torch.randn(6, 4, 5, 5)
    y = norm(x)
    with torch.no_grad():
        for p in norm.parameters():
            p.copy_(torch.arange(4.0))
    scaled = norm(x)
    assert torch.allclose(scaled, y * (k := torch.arange(4.0).view(4, 1, 1)) + k if names else y, atol=1e-5)


@pytest.mark.parametrize("affine", ["offset", "full", "none"])
def test_sample_norms_are_torchs(affine: str) -> None:
    x = torch.randn(3, 4, 6, 6)
    layer = LayerNorm(affine=affine).feature_norm()(4)  # type: ignore[arg-type]
    assert torch.allclose(layer(x), nn.GroupNorm(1, 4)(x), atol=1e-5)
    instance = InstanceNorm(affine=affine).feature_norm()(4)  # type: ignore[arg-type]
    assert torch.allclose(instance(x), nn.InstanceNorm2d(4)(x), atol=1e-5)


@pytest.mark.parametrize("rule", [LayerNorm(), InstanceNorm()])
def test_sample_norms_keep_samples_apart(rule: LayerNorm | InstanceNorm) -> None:
    norm = rule.feature_norm()(3)
    x = torch.randn(4, 3, 5, 5)
    assert torch.allclose(norm(x)[:1], norm(x[:1]), atol=1e-6)


@pytest.mark.parametrize(
    ("net", "apart", "all_"),
    [(CNN(width=0.05), 6, 7), (DCGAN(width=0.05), 2, 3), (ResNet(width=0.05), 6, 7)],
    ids=["cnn", "dcgan", "resnet"],
)
def test_place_spares_the_first_convolution_or_not(net: Architecture, apart: int, all_: int) -> None:
    for place, count in (("all_but_first", apart), ("all", all_)):
        d = net.discriminator(SHAPE, 0, BatchNorm(place=place).feature_norm())  # type: ignore[arg-type]
        norms = [m for m in d.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == count
        d(torch.randn(2, *SHAPE))
        assert all(m.num_batches_tracked == 1 for m in norms), (
            "each stands where its channels are, and is used"
        )


def test_the_spared_one_is_the_first() -> None:
    d = CNN(width=0.125).discriminator(SHAPE, 0, BatchNorm().feature_norm())
    assert [isinstance(n, nn.BatchNorm2d) for n in d.norms] == [False] + [True] * 6


@pytest.mark.parametrize("net", [CNN(width=0.05), DCGAN(width=0.05), ResNet(width=0.05)], ids=type)
@pytest.mark.parametrize("order", ["before_activation", "after_activation"])
def test_order_about_the_activation(net: Architecture, order: str) -> None:
    """Behind a (leaky) ReLU a norm sees mostly what is positive; before it, both signs alike."""
    torch.manual_seed(0)
    d = net.discriminator(SHAPE, 0, BatchNorm(place="all", order=order).feature_norm())  # type: ignore[arg-type]
    seen: list[float] = []
    norms = [m for m in d.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        m.register_forward_pre_hook(lambda m, x: seen.append((x[0].min() / x[0].max()).item()))
    d(torch.randn(4, *SHAPE))
    assert len(seen) == len(norms)
    assert all(s > -0.5 if order == "after_activation" else s < -0.5 for s in seen), seen


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"place.*all_but_first, all"):
        BatchNorm(place="last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="affine"):
        LayerNorm(affine="gamma")  # type: ignore[arg-type]
