"""Feature matching (Salimans et al. 2016, arXiv:1606.03498, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ganlab.distributed import collectives
from ganlab.distributed.sync_batch_norm import sum_over_ranks
from ganlab.errors import suggest
from ganlab.methods.base import Method, Scene
from ganlab.schema import NonNegative, checked

Distance = Literal["squared", "mean_squared", "absolute"]


class FeatureMatching(Method):
    """G: weight * distance(mean f(x), mean f(G(z))), f an inner layer of D; D's loss stays.

    Real samples are a batch of their own, the next of the data; the paper's code shuffles them apart. Means
    are over the batch, of all ranks; under ``accumulate`` over a micro batch.

    Args:
        layer: of D, by its name in ``named_modules``, as ``convs.3``; null: the input of D's last layer.
        distance: ``squared``: sum over features of the squared difference (the paper); ``mean_squared``
            (its MNIST code) and ``absolute`` (its CIFAR-10 and SVHN code): mean over features.
        weight: of the term.
        beside_loss: added to G's adversarial loss, which it replaces otherwise.
    """

    needs = frozenset({"real_in_g"})
    schedulable = frozenset({"weight"})

    @checked
    def __init__(
        self,
        layer: str | None = None,
        distance: Distance = "squared",
        weight: NonNegative = 1.0,
        beside_loss: bool = False,
    ) -> None:
        self.layer, self.distance, self.weight = layer, distance, weight
        self.replaces_g_loss = not beside_loss
        self.outputs: tuple[Tensor, ...] = ()  # of the layer, in D's last two passes

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        if e.fixed_generator or e.fixed_shift:
            yield "G is not trained; leave it out"

    def change_networks(self, generator: nn.Module, discriminator: nn.Module) -> None:
        names = [name for name, _ in discriminator.named_modules() if name]
        if self.layer is not None and self.layer not in names:
            near = suggest(self.layer, names)
            raise ValueError(
                f"D has no layer {self.layer!r}; {near}, or leave layer out for its last features"
            )

    def prepare(self, gan: Any, data: Any = None) -> None:
        d = gan.discriminator
        if self.layer is not None:
            d.get_submodule(self.layer).register_forward_hook(self._keep)
        training = d.training
        with torch.no_grad():  # whether there is anything to match
            y = torch.zeros(2, dtype=torch.int64) if gan.num_classes else None
            verdict = d.eval()(torch.zeros(2, *gan.shape), y)
        d.train(training)
        if self.layer is None and verdict.features is None:
            raise ValueError("technique.feature_matching: this D has no features; set layer=NAME")
        if self.layer is not None and not self.outputs:
            what = (
                f"D applies {self.layer!r} inside another operation; set fold=false, or choose another layer"
            )
            raise ValueError(f"technique.feature_matching.layer: {what}")
        self.outputs = ()

    def _keep(self, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        self.outputs = (*self.outputs[-1:], output)

    def before_round(self, gan: Any) -> None:
        self.outputs = ()

    def g_term(self, scene: Scene) -> Tensor:
        if self.layer is None:
            real, fake = scene.d_real.features, scene.d_fake.features
            assert real is not None
            assert fake is not None
        elif "joint_batch" in scene.gan.needs:
            n = len(scene.real.x)
            real, fake = self.outputs[-1][:n], self.outputs[-1][n:]
        else:
            real, fake = self.outputs
        self.outputs = ()  # frees the graph
        return self.weight * distance(mean(real), mean(fake), self.distance)


def mean(features: Tensor) -> Tensor:
    """The mean (...) of features (B, ...) over the batch of all ranks."""
    return sum_over_ranks(features.float().mean(0)) / collectives.current().size


def distance(a: Tensor, b: Tensor, kind: Distance) -> Tensor:
    """The distance of two means of one shape; see ``FeatureMatching``."""
    if kind == "absolute":
        return (a - b).abs().mean()
    squares = (a - b).square()
    return squares.sum() if kind == "squared" else squares.mean()
