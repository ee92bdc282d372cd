"""WGAN-GP (arXiv:1704.00028), Figure 1b left: gradient norms in a critic, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ganlab.analysis import drawing
from ganlab.analysis.base import Analysis, Finding
from ganlab.analysis.subjects import Subject
from ganlab.methods.modes import evaluating, unfolded
from ganlab.methods.weights import weighted_layers
from ganlab.schema import Count, Steps
from ganlab.training.gan import GAN


class Norms(NamedTuple):
    """A layer's name, and the mean gradient norm of its input activations."""

    layer: str
    norm: float


class LayerGradients(Analysis):
    """norm of the gradient of D's loss with respect to each layer's input (WGAN-GP, Figure 1b)

    One line per run. Layers are numbered in call order; the input of layer 1 is the sample itself. For each
    sample, the norm is the L2 norm of the gradient of that sample's term of D's loss, without penalties, with
    D in evaluation mode; the figure shows the mean over real and generated samples. In critics with weight
    clipping, gradients grow or decay exponentially with depth; with a gradient penalty they do not. The
    paper says only "norm of the gradient of the critic loss"; averaging over samples is our choice.

    Args:
        checkpoint: last, best, or a step.
        n: number of samples of each kind.
        seed: random seed.
    """

    checkpoint: str | int = "last"
    n: Count = 256
    seed: Steps = 0

    def make(self, runs: Sequence[Subject]) -> Finding:
        norms: dict[Subject, list[Norms]] = {}
        result = Finding(
            report=["gradient norm at the first and last layer; mean factor per layer, last to first"]
        )
        for subject in runs:
            gan, step = subject.restore(self.checkpoint)
            real = subject.real(gan, self.n, self.seed)
            norms[subject] = own = by_layer(gan, real, subject.fake(gan, len(real.x), self.seed))
            result.rows += [
                {**subject.columns, "step": step, "place": i, "layer": layer, "norm": norm}
                for i, (layer, norm) in enumerate(own, 1)
            ]
            ends = f"{own[0].norm:.3g}, {own[-1].norm:.3g}; {factor(own):.3g}"
            result.report.append(f"  {subject.label}: {ends}")
        styles = drawing.run_styles(runs)
        with drawing.Picture("Gradients in D, layer by layer", 6.4, 3.8, runs) as picture:
            (ax,) = picture.panels()
            for subject, own in norms.items():
                points = [(i, n.norm) for i, n in enumerate(own, 1) if n.norm > 0]
                if points:
                    ax.plot(*zip(*points, strict=True), marker="o", ms=3, lw=1.4, **styles[subject])
            ax.set_yscale("log")
            drawing.set_log_scale(ax.yaxis)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set(xlabel="layer of D", ylabel="gradient norm of D's loss at the layer's input")
            picture.run_legend(styles)
        result.png = picture.png
        return result


def factor(norms: Sequence[Norms]) -> float:
    """Factor by which the gradient norm grows per layer in the backward pass (geometric mean)."""
    first, last = norms[0].norm, norms[-1].norm
    if len(norms) < 2 or not first or not last:
        return float("nan")
    return float((first / last) ** (1 / (len(norms) - 1)))


def by_layer(gan: GAN, real: Any, fake: Any) -> list[Norms]:
    """For each weighted layer of D, as called: the mean over samples of |d(own loss)/d(its input)|_2.

    real, fake: batches of n samples each. The gradient of a mean over n samples, times n, is that of each
    sample's own part. Layers whose input is no float (embeddings of labels) are left out.
    """
    d, n = gan.discriminator, len(real.x)
    with evaluating(d), unfolded(d), torch.enable_grad():
        with _inputs(d) as real_inputs:
            verdict_real = gan.verdict(real.x.detach().requires_grad_(), real.y)
        with _inputs(d) as fake_inputs:
            verdict_fake = gan.verdict(fake.x.detach().requires_grad_(), fake.y)
        loss = gan.loss.discriminator(verdict_real, verdict_fake)
        inputs = [h for _, h in (*real_inputs, *fake_inputs)]
        gradients = torch.autograd.grad(loss * n, inputs, allow_unused=True)
    sizes = [0.0 if g is None else float(g.double().flatten(1).norm(dim=1).mean()) for g in gradients]
    half = len(real_inputs)
    pairs = zip(real_inputs, sizes[:half], sizes[half:], strict=True)
    return [Norms(name, (a + b) / 2) for (name, _), a, b in pairs]


@contextmanager
def _inputs(net: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Inside, each call of a weighted layer appends its name and its input."""
    inputs: list[tuple[str, Tensor]] = []

    def recorder(name: str) -> Any:
        def record(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if arguments[0].is_floating_point() and arguments[0].requires_grad:
                inputs.append((name, arguments[0]))

        return record

    handles = [layer.register_forward_pre_hook(recorder(name)) for name, layer in weighted_layers(net)]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()
