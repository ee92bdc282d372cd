"""Figure 1b of the WGAN-GP paper (arXiv:1704.00028), left: gradients in a critic, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from ganlab.analysis import drawing, subjects
from ganlab.analysis.base import Analysis, Finding, Row
from ganlab.analysis.subjects import Subject
from ganlab.methods.modes import evaluating, unfolded
from ganlab.methods.weights import weighted_layers
from ganlab.schema import Count, Steps, checked
from ganlab.training.gan import GAN


class Norms(NamedTuple):
    """Of the activations that enter a layer: the layer's name, and the mean norm of their gradients."""

    layer: str
    norm: float


class LayerGradients(Analysis):
    """norm of D's loss gradient with respect to the activations that enter each layer (WGAN-GP, Figure 1b)

    A line per run, by depth: place 1 is the sample itself, place l what the layer l is given. The norm is L2
    over one sample's activations of the gradient of its own part of D's loss, penalties left out, and the
    mean over real and generated samples is shown; D in evaluation mode, layers in the order in which they
    are called. Clipped critics' gradients grow or decay exponentially with depth, penalised ones' do not.
    The paper says no more than "norm of the gradient of the critic loss": the mean over samples is ours.

    Args:
        checkpoint: last, best, or a step.
        n: samples of each kind.
        seed: of the samples drawn.
    """

    @checked
    def __init__(self, checkpoint: str | int = "last", n: Count = 256, seed: Steps = 0) -> None:
        self.checkpoint, self.n, self.seed = str(checkpoint), n, seed

    def make(self, runs: Sequence[Subject]) -> Finding:
        rows: list[Row] = []
        found: dict[Subject, list[Norms]] = {}
        says = ["gradient norms at the first and the last layer; factor from a layer to the next before it"]
        for subject in runs:
            game, step = subject.restore(self.checkpoint)
            found[subject] = norms = by_layer(game, *self._samples(subject, game))
            rows += [
                {**subject.columns, "step": step, "place": i, "layer": layer, "norm": norm}
                for i, (layer, norm) in enumerate(norms, 1)
            ]
            says.append(f"  {subject.label}: {norms[0].norm:.3g}, {norms[-1].norm:.3g}; {factor(norms):.3g}")
        return Finding(self._draw(found), rows, says)

    def _samples(self, subject: Subject, game: GAN) -> tuple[Any, Any]:
        real = subject.real(game, self.n, self.seed)
        return real, subject.fake(game, len(real.x), self.seed)

    def _draw(self, found: dict[Subject, list[Norms]]) -> bytes:
        runs = list(found)
        styles = drawing.run_styles(runs)
        with drawing.style():
            figure = Figure(figsize=(6.4, 3.8), layout="constrained")
            (ax,) = drawing.panels(figure, 1, 1)
            for subject, norms in found.items():
                shown = [(i, n.norm) for i, n in enumerate(norms, 1) if n.norm > 0]
                if shown:
                    ax.plot(*zip(*shown, strict=True), marker="o", ms=3, lw=1.4, **styles[subject])
            ax.set_yscale("log")
            drawing.logarithmic(ax.yaxis)
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
            ax.set_xlabel("layer of D that the activations enter")
            ax.set_ylabel("norm of the gradient of D's loss")
            drawing.legend(figure, runs, styles)
            drawing.titled(figure, f"Gradients in D, layer by layer: {subjects.common(runs)}")
            return drawing.png(figure)


def factor(norms: Sequence[Norms]) -> float:
    """How many times larger the gradient becomes on its way back over one layer, as a geometric mean."""
    first, last = norms[0].norm, norms[-1].norm
    if len(norms) < 2 or not first or not last:
        return float("nan")
    return float((first / last) ** (1 / (len(norms) - 1)))


def by_layer(game: GAN, real: Any, fake: Any) -> list[Norms]:
    """For each weighted layer of D, as called: the mean over samples of |d(own loss)/d(its input)|_2.

    real, fake: batches of n samples each. The gradient of a mean over n samples, times n, is that of each
    sample's own part. Layers whose input is no float (embeddings of labels) are left out.
    """
    d, n = game.discriminator, len(real.x)
    with evaluating(d), unfolded(d), torch.enable_grad():
        with _inputs(d) as told_real:
            verdict_real = game.verdict(real.x.detach().requires_grad_(), real.y)
        with _inputs(d) as told_fake:
            verdict_fake = game.verdict(fake.x.detach().requires_grad_(), fake.y)
        loss = game.loss.discriminator(verdict_real, verdict_fake)
        inputs = [h for _, h in (*told_real, *told_fake)]
        gradients = torch.autograd.grad(loss * n, inputs, allow_unused=True)
    sizes = [0.0 if g is None else float(g.double().flatten(1).norm(dim=1).mean()) for g in gradients]
    half = len(told_real)
    return [
        Norms(name, (a + b) / 2)
        for (name, _), a, b in zip(told_real, sizes[:half], sizes[half:], strict=True)
    ]


@contextmanager
def _inputs(net: nn.Module) -> Iterator[list[tuple[str, Tensor]]]:
    """Inside, each call of a weighted layer leaves its name and what it was given."""
    told: list[tuple[str, Tensor]] = []

    def listen(name: str) -> Any:
        def hear(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0].is_floating_point() and given[0].requires_grad:
                told.append((name, given[0]))

        return hear

    handles = [layer.register_forward_pre_hook(listen(name)) for name, layer in weighted_layers(net)]
    try:
        yield told
    finally:
        for handle in handles:
            handle.remove()
