"""Exact norms of convolutions as linear maps of images, and how far the reshaped matrix's norm is from them.

Spectral normalisation divides by the largest singular value of the (d_out, d_in * kernel) matrix, which
ignores stride and padding (arXiv:1802.05957, footnote 3). The map from image to image has another norm. For
k x k kernels and stride s it is at most ceil(k / s) times the matrix's (a pixel lies in at most ceil(k / s)^2
patches), and at least the matrix's where a whole patch fits into the image. All values are float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganlab import rng
from ganlab.methods.modes import evaluating, unfolded
from ganlab.methods.weights import CONVOLUTIONS, as_matrix, out_dim, weighted_layers

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d)
DENSE_UP_TO = 64  # operators with a side this short are written out as a matrix


class LayerNorms(TypedDict):
    """Norms of one layer's effective weight; None where a quantity has no meaning.

    layer: its name in the net. kind: ``Conv2d``, ... kernel, stride: per spatial axis, () for linear layers.
    input: shape of what it is fed, without the batch. reshaped: largest singular value of the (d_out, d_in *
    kernel) matrix. exact: operator norm with the layer's own stride and padding. circular: the same for
    wrap-around padding. bound: what ``exact`` can't exceed, given ``reshaped``. ratio: exact / reshaped.
    """

    layer: str
    kind: str
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    input: tuple[int, ...]
    reshaped: float
    exact: float
    circular: float | None
    bound: float | None
    ratio: float


@torch.no_grad()
def layer_norms(net: nn.Module, input_shape: Sequence[int], y: Tensor | None = None) -> list[LayerNorms]:
    """A row for each convolution, linear layer and embedding that ``net`` passes through, in its order.

    ``net(x)``, or ``net(x, y)``, runs once on zeros of ``input_shape`` (C, H, W), in evaluation mode, to find
    each layer's input size (of its first call); y: labels (1,) int64 of a conditional D. The net is left as
    it was. Weights are those that act: normalised ones under a weight norm.
    """
    sizes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(layer: nn.Module, x: tuple[Tensor, ...]) -> None:
            sizes.setdefault(name, tuple(x[0].shape[1:]))

        return hook

    layers = dict(weighted_layers(net))
    hooks = [layer.register_forward_pre_hook(remember(name)) for name, layer in layers.items()]
    with evaluating(net), unfolded(net):
        try:
            some = next(net.parameters())
            x = torch.zeros(1, *input_shape, device=some.device, dtype=some.dtype)
            net(*((x,) if y is None else (x, y)))
        finally:
            for hook in hooks:
                hook.remove()
        return [_row(name, layers[name], size) for name, size in sizes.items()]


def conv_operator_norm(layer: nn.Module, input_shape: Sequence[int], iterations: int | None = None) -> float:
    """Largest singular value of a convolution as a map of inputs (C, H, W), its bias left out.

    Stride, padding, dilation and groups are the layer's own; transposed convolutions too. By products with
    the operator and its adjoint alone: Lanczos's method (ARPACK) to about 1e-9 of the value, or with
    ``iterations`` that many steps of plain power iteration, a lower bound that closes slowly. NaN if a weight
    is not finite. Raises ValueError for a layer that is no convolution.
    """
    if not isinstance(layer, CONVOLUTIONS):
        raise ValueError(f"a {type(layer).__name__} is no convolution; its matrix's norm is its operator's")
    with evaluating(layer), torch.no_grad():
        weight = _weight(layer)
    if not bool(torch.isfinite(weight).all()):
        return math.nan
    if not bool(weight.any()):
        return 0.0  # ARPACK can't start on it
    x = torch.zeros(tuple(input_shape), dtype=weight.dtype, device=weight.device)
    apply = _operator(layer, weight)
    y, adjoint, *_ = torch.func.vjp(apply, x)  # a linear map's vjp is its adjoint, at any x

    def there_and_back(v: Tensor) -> Tensor:
        (back,) = adjoint(apply(v.view_as(x)))
        return back.flatten()  # type: ignore[no-any-return]

    def back_and_there(v: Tensor) -> Tensor:
        (back,) = adjoint(v.view_as(y))
        return apply(back).flatten()

    square, n = (there_and_back, x.numel()) if x.numel() <= y.numel() else (back_and_there, y.numel())
    with torch.no_grad():
        if n <= DENSE_UP_TO:
            basis = torch.eye(n, dtype=weight.dtype, device=weight.device)
            largest = float(torch.linalg.eigvalsh(torch.stack([square(v) for v in basis]))[-1])
            return math.sqrt(max(largest, 0.0))
        start = torch.randn(n, dtype=weight.dtype, generator=rng.generator("cpu", 0, "metric", n))
        if iterations is None:
            return math.sqrt(_largest_eigenvalue(square, start, weight.device))
        v = start.to(weight.device)
        for _ in range(iterations):
            v = square(F.normalize(v, dim=0))
        return math.sqrt(float(v.norm()))


def circular_singular_values(
    kernel: Tensor, n: int | tuple[int, int], stride: int | tuple[int, int] = 1
) -> Tensor:
    """All singular values of a convolution with wrap-around padding on n x n or h x w inputs, largest first.

    Source: Sedghi, Gupta & Long 2019, arXiv:1805.10408, Theorem 6: the kernel's Fourier transform gives a
    c_out x c_in matrix for each frequency. A stride folds the s_h * s_w frequencies that it aliases into one
    matrix of c_out x (s_h * s_w * c_in), divided by sqrt(s_h * s_w).

    kernel: (c_out, c_in, kh, kw), may be larger than the input. Returns float64, of length
    (h / s_h) (w / s_w) min(c_out, s_h s_w c_in). Raises ValueError unless the stride divides the size.
    """
    (h, w), (sh, sw) = _pair(n), _pair(stride)
    if h % sh or w % sw:
        raise ValueError(
            f"stride {sh}x{sw} does not divide {h}x{w}: wrap-around padding has no such operator"
        )
    c_out, c_in, kh, kw = kernel.shape
    taps = kernel.detach().double()
    wrapped = taps.new_zeros(c_out, c_in, h, w)
    for i in range(kh):
        for j in range(kw):
            wrapped[:, :, i % h, j % w] += taps[:, :, i, j]
    spectrum = torch.fft.fft2(wrapped) / math.sqrt(sh * sw)
    aliased = spectrum.view(c_out, c_in, sh, h // sh, sw, w // sw).permute(3, 5, 0, 2, 4, 1)
    values: Tensor = torch.linalg.svdvals(aliased.reshape(h // sh * (w // sw), c_out, sh * sw * c_in))
    return values.flatten().sort(descending=True).values


def _row(name: str, layer: nn.Module, size: tuple[int, ...]) -> LayerNorms:
    weight = _weight(layer)
    finite = bool(torch.isfinite(weight).all())
    reshaped = float(torch.linalg.matrix_norm(as_matrix(weight, out_dim(layer)), 2)) if finite else math.nan
    row = LayerNorms(
        layer=name,
        kind=_kind(layer),
        kernel=(),
        stride=(),
        input=size,
        reshaped=reshaped,
        exact=reshaped,
        circular=None,
        bound=reshaped,
        ratio=1.0,
    )
    if isinstance(layer, CONVOLUTIONS):
        row["kernel"], row["stride"] = tuple(layer.kernel_size), tuple(layer.stride)
        row["exact"] = conv_operator_norm(layer, size)
        row["ratio"] = row["exact"] / reshaped if reshaped else math.nan
        row["circular"], row["bound"] = _circular(layer, weight, size) if finite else None, None
        if layer.padding_mode == "zeros":
            row["bound"] = math.sqrt(_overlap(layer)) * reshaped
    return row


def _overlap(layer: nn.Module) -> int:
    """How many patches share a pixel at most; of a transposed convolution, its kernel's area."""
    assert isinstance(layer, CONVOLUTIONS)
    count = 1
    for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True):
        count *= k if isinstance(layer, TRANSPOSED) else math.ceil(k / (s // math.gcd(s, d)))
    return count


def _circular(layer: nn.Module, weight: Tensor, size: tuple[int, ...]) -> float | None:
    """The norm with wrap-around padding of the same output size, or None where there is no such operator."""
    if not isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
        return None
    x = weight.new_zeros(size)
    out = tuple(_operator(layer, weight)(x).shape[1:])
    # a transposed convolution is the adjoint of a convolution from its output to its input
    large, small = (out, size[1:]) if isinstance(layer, nn.ConvTranspose2d) else (size[1:], out)
    (sh, sw), (dh, dw) = layer.stride, layer.dilation
    if large != (small[0] * sh, small[1] * sw):
        return None
    kh, kw = layer.kernel_size
    spread = weight.new_zeros(*weight.shape[:2], dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    spread[:, :, ::dh, ::dw] = weight
    kernels = spread.chunk(layer.groups)
    return max(float(circular_singular_values(k, (large[0], large[1]), (sh, sw))[0]) for k in kernels)


def _operator(layer: nn.Module, weight: Tensor) -> Callable[[Tensor], Tensor]:
    """The layer without its bias as a function of one input (C, ...), differentiable."""
    if isinstance(layer, (nn.Conv1d, nn.Conv2d)):
        return lambda x: layer._conv_forward(x[None], weight, None)[0]
    assert isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d))
    transposed: Callable[..., Tensor] = (
        F.conv_transpose1d if isinstance(layer, nn.ConvTranspose1d) else F.conv_transpose2d
    )
    how = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    return lambda x: transposed(x[None], weight, None, *how)[0]


def _largest_eigenvalue(square: Callable[[Tensor], Tensor], start: Tensor, device: torch.device) -> float:
    from scipy.sparse.linalg import LinearOperator, eigsh

    n = len(start)
    operator = LinearOperator(
        (n, n), matvec=lambda v: square(torch.from_numpy(v.ravel()).to(device)).cpu().numpy(), dtype="float64"
    )
    (value,) = eigsh(operator, 1, which="LA", v0=start.numpy(), tol=1e-9, return_eigenvectors=False)
    return max(float(value), 0.0)


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().double()


def _kind(layer: nn.Module) -> str:
    """The layer's class, without the prefix that a parametrisation gives it."""
    return type(layer).__name__.removeprefix("Parametrized")


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
