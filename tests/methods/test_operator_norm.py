"""Norms of convolutions as operators, against the operator's dense matrix on small images."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from scenes import players
from torch import Tensor, nn

from ganlab.methods.operator_norm import circular_singular_values, conv_operator_norm, layer_norms
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.methods.weights import as_matrix, out_dim
from ganlab.models.cnn import CNN
from ganlab.models.resnet import ResNet
from ganlab.types import ImageShape, Verdict

CONVS: dict[str, tuple[type[nn.Module], dict[str, Any], tuple[int, int, int]]] = {
    "3x3": (nn.Conv2d, {"kernel_size": 3, "padding": 1}, (2, 7, 6)),
    "4x4 stride 2": (nn.Conv2d, {"kernel_size": 4, "stride": 2, "padding": 1}, (2, 8, 8)),
    "5x5 stride 2": (nn.Conv2d, {"kernel_size": 5, "stride": 2, "padding": 2}, (2, 9, 8)),
    "1x1": (nn.Conv2d, {"kernel_size": 1}, (4, 6, 6)),
    "valid": (nn.Conv2d, {"kernel_size": 3}, (2, 7, 7)),
    "larger than the image": (nn.Conv2d, {"kernel_size": 5, "padding": 2}, (2, 3, 3)),
    "one output": (nn.Conv2d, {"kernel_size": 4}, (2, 4, 4)),
    "dilated": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "dilation": 2}, (2, 7, 7)),
    "dilated stride 2": (nn.Conv2d, {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2}, (2, 8, 8)),
    "grouped": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "groups": 2}, (4, 6, 6)),
    "circular": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (2, 6, 6)),
    "circular dilated": (
        nn.Conv2d,
        {"kernel_size": 3, "padding": 2, "dilation": 2, "padding_mode": "circular"},
        (2, 8, 8),
    ),
    "same": (nn.Conv2d, {"kernel_size": (2, 3), "padding": "same"}, (2, 6, 7)),
    "deconv": (nn.ConvTranspose2d, {"kernel_size": 4, "stride": 2, "padding": 1}, (2, 4, 5)),
    "deconv output padding": (
        nn.ConvTranspose2d,
        {"kernel_size": 5, "stride": 2, "padding": 2, "output_padding": 1},
        (2, 4, 4),
    ),
    "deconv grouped": (nn.ConvTranspose2d, {"kernel_size": 3, "groups": 2}, (4, 5, 5)),
}


def made(name: str) -> tuple[nn.Module, tuple[int, int, int]]:
    torch.manual_seed(len(name))
    kind, options, shape = CONVS[name]
    return kind(shape[0], 4, **options), shape


def dense(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The operator's matrix, a column for each pixel of the input; by the layer's own forward pass."""
    layer = copy.deepcopy(layer).double().eval()
    layer.bias = None
    with torch.no_grad():
        basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
        return layer(basis).flatten(1).T


@pytest.mark.parametrize("name", CONVS)
def test_norm_is_that_of_the_dense_matrix(name: str) -> None:
    layer, shape = made(name)
    exact = torch.linalg.matrix_norm(dense(layer, shape), 2).item()
    assert conv_operator_norm(layer, shape) == pytest.approx(exact, rel=1e-7)
    from_below = conv_operator_norm(layer, shape, iterations=300)
    assert from_below == pytest.approx(exact, rel=1e-2)
    assert from_below <= exact * (1 + 1e-12)


@pytest.mark.parametrize("name", CONVS)
def test_bounds_of_the_norm_by_the_reshaped_matrix(name: str) -> None:
    layer, shape = made(name)
    (row,) = layer_norms(nn.Sequential(layer), shape)
    reshaped = torch.linalg.matrix_norm(as_matrix(layer.weight.double(), out_dim(layer)), 2).item()
    assert row["reshaped"] == pytest.approx(reshaped, rel=1e-12)
    assert row["exact"] <= math.sqrt(math.prod(layer.kernel_size)) * reshaped + 1e-9
    assert row["ratio"] == pytest.approx(row["exact"] / reshaped)
    if "circular" in name:
        assert row["bound"] is None
        return
    assert row["bound"] is not None
    assert row["exact"] <= row["bound"] + 1e-9
    fits = all(
        (k - 1) * d + 1 <= n for k, d, n in zip(layer.kernel_size, layer.dilation, shape[1:], strict=True)
    )
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and fits and "stride" not in name:
        assert row["exact"] >= reshaped - 1e-9, "an image of one patch alone"


def test_the_bound_of_four_by_four_stride_two_is_two_and_is_reached() -> None:
    """Kernels all alike: overlapping patches add up. SNGAN's layers lie between 1 and 2, or 1 and 3."""
    layer = nn.Conv2d(1, 1, 4, 2, 1, bias=False)
    nn.init.ones_(layer.weight)
    (row,) = layer_norms(nn.Sequential(layer), (1, 64, 64))
    assert row["bound"] == pytest.approx(2 * row["reshaped"])
    assert 1.98 < row["ratio"] < 2


@pytest.mark.parametrize("name", [n for n in CONVS if CONVS[n][0] is nn.Conv2d and "circular" not in n])
def test_the_bound_counts_the_patches_that_share_a_pixel(name: str) -> None:
    _, options, (channels, *_) = CONVS[name]
    layer = nn.Conv2d(channels, 4, **options)
    (row,) = layer_norms(nn.Sequential(layer), (channels, 25, 25))
    ones = nn.Conv2d(1, 1, **(options | {"groups": 1}), bias=False)
    nn.init.ones_(ones.weight)
    x = torch.zeros(1, 1, 25, 25, requires_grad=True)
    (patches,) = torch.autograd.grad(ones(x).sum(), x)
    assert row["bound"] == pytest.approx(patches.max().sqrt().item() * row["reshaped"])


def test_the_bound_of_a_transposed_convolution_is_reached() -> None:
    """Each of the output's four phases has a channel of its own: 4 = sqrt(4 x 4), whatever the stride."""
    layer = nn.ConvTranspose2d(1, 4, 4, 2, 1, bias=False)
    i, j = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    with torch.no_grad():
        layer.weight.copy_(torch.stack([(i % 2 * 2 + j % 2 == c).float() for c in range(4)])[None])
    (row,) = layer_norms(nn.Sequential(layer), (1, 40, 40))
    assert row["bound"] == pytest.approx(4 * row["reshaped"])
    assert 3.9 < row["ratio"] < 4


@pytest.mark.parametrize(
    ("kernel", "size", "stride"),
    [((3, 3), 6, 1), ((4, 4), (6, 12), 2), ((2, 5), 6, (2, 1)), ((1, 1), (6, 12), 3), ((2, 5), (6, 12), 3)],
)
def test_circular_values_are_those_of_the_dense_matrix(kernel: Any, size: Any, stride: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, kernel, stride, 0, bias=False).double()
    h, w = (size, size) if isinstance(size, int) else size

    class Circular(nn.Module):
        bias = None

        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(x, (0, kernel[1] - 1, 0, kernel[0] - 1), mode="circular")
            return layer(padded)  # type: ignore[no-any-return]

    expected = torch.linalg.svdvals(dense(Circular(), (2, h, w)))
    got = circular_singular_values(layer.weight, size, stride)
    assert got.shape == expected.shape
    assert torch.allclose(got, expected, atol=1e-9)


def test_circular_kernel_larger_than_the_image_wraps() -> None:
    kernel = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    kernel[0, 0, 0, 0] = kernel[0, 0, 3, 3] = 1.0  # on 3 x 3 both taps fall on one pixel
    assert torch.allclose(circular_singular_values(kernel, 3), torch.full((9,), 2.0, dtype=torch.float64))


def test_circular_refuses_a_stride_that_does_not_divide() -> None:
    with pytest.raises(ValueError, match="2x2 does not divide 7x7"):
        circular_singular_values(torch.zeros(1, 1, 3, 3), 7, 2)


@pytest.mark.parametrize(
    "name", ["4x4 stride 2", "deconv", "dilated", "grouped", "circular", "1x1", "circular dilated"]
)
def test_circular_column(name: str) -> None:
    layer, shape = made(name)
    (row,) = layer_norms(nn.Sequential(layer), shape)
    assert row["circular"] is not None
    if name in ("circular", "1x1", "circular dilated"):
        assert row["circular"] == pytest.approx(row["exact"], rel=1e-7)
    assert row["circular"] == pytest.approx(row["exact"], rel=0.3)


def test_the_checkerboard_is_not_missed() -> None:
    """The top vector is orthogonal to a constant image: a constant start would never find it."""
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    with torch.no_grad():
        i, j = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
        layer.weight.copy_(((-1.0) ** (i + j)).view(1, 1, 3, 3))
    assert conv_operator_norm(layer, (1, 10, 10)) == pytest.approx(9.0, rel=1e-9)
    assert conv_operator_norm(layer, (1, 10, 10), iterations=100) == pytest.approx(9.0, rel=1e-3)


@pytest.mark.parametrize("net", [CNN(width=0.05), ResNet(width=0.05)], ids=["cnn", "resnet"])
def test_rows_of_a_discriminator(net: CNN | ResNet) -> None:
    torch.manual_seed(0)
    d = net.discriminator(ImageShape(3, 32, 32), 0, None)
    SpectralNorm(method="svd").prepare(players(d))
    d.train()
    before, modes = copy.deepcopy(d.state_dict()), [m.training for m in d.modules()]
    rows = layer_norms(d, (3, 32, 32))
    assert all(torch.equal(before[k], v) for k, v in d.state_dict().items()), "reading leaves no trace"
    assert modes == [m.training for m in d.modules()]
    assert len({r["layer"] for r in rows}) == len(rows) == (8 if isinstance(net, CNN) else 11)
    for row in rows:
        assert row["reshaped"] == pytest.approx(1.0, abs=1e-5)
        assert row["reshaped"] - 1e-6 <= row["exact"] <= (row["bound"] or 0) + 1e-9
    assert rows[-1]["kind"] == "Linear"
    assert rows[-1]["ratio"] == 1.0
    if isinstance(net, CNN):
        assert [r["input"] for r in rows[:3]] == [(3, 32, 32), (3, 32, 32), (3, 16, 16)]
        assert [r["stride"] for r in rows[:2]] == [(1, 1), (2, 2)]
        assert {r["kind"] for r in rows[:7]} == {"Conv2d"}
        d.to(memory_format=torch.channels_last)
        again = layer_norms(d, (3, 32, 32))
        assert [r["exact"] for r in again] == pytest.approx([r["exact"] for r in rows], rel=1e-9)
        circles = [[r["circular"] for r in some if r["circular"]] for some in (rows, again)]
        assert len(circles[0]) == 7
        assert circles[1] == pytest.approx(circles[0], rel=1e-9)


def test_a_conditional_net_is_given_its_label() -> None:
    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.embed = nn.Conv2d(1, 2, 3), nn.Embedding(5, 2)

        def forward(self, x: Tensor, y: Tensor) -> Verdict:
            return Verdict((self.conv(x).sum((2, 3)) * self.embed(y)).sum(1))

    rows = layer_norms(Labelled(), (1, 5, 5), torch.zeros(1, dtype=torch.int64))
    assert [r["kind"] for r in rows] == ["Conv2d", "Embedding"]


def test_odd_weights_and_layers() -> None:
    layer = nn.Conv2d(1, 1, 3, padding=1)
    nn.init.zeros_(layer.weight)
    assert conv_operator_norm(layer, (1, 16, 16)) == 0.0
    nn.init.constant_(layer.weight, math.inf)
    assert math.isnan(conv_operator_norm(layer, (1, 16, 16)))
    (row,) = layer_norms(nn.Sequential(layer), (1, 16, 16))
    assert math.isnan(row["reshaped"])
    with pytest.raises(ValueError, match="Linear is no convolution"):
        conv_operator_norm(nn.Linear(2, 2), (2,))


def test_one_dimension() -> None:
    layer = nn.Conv1d(3, 4, 5, stride=2, padding=2)
    exact = torch.linalg.matrix_norm(dense(layer, (3, 40)), 2).item()
    assert conv_operator_norm(layer, (3, 40)) == pytest.approx(exact, rel=1e-7)
