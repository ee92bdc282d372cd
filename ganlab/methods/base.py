"""What a method is: the hooks of losses, penalties, norms, constraints and techniques."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ganlab.errors import ConfigError
from ganlab.types import Batch, Verdict

Player = Literal["g", "d"]
PLAYERS: tuple[Player, Player] = ("g", "d")


class Scene(NamedTuple):
    """One micro batch as the terms of a loss see it.

    gan: the players (``training/gan.py``). real, d_real: real samples and D's verdict on them; None in
    ``g_term`` unless some method needs ``real_in_g``. fake, d_fake: generated samples and D's verdict.
    labelled: the real samples with their labels even where the networks see none; None unless a method needs
    ``labelled``.
    """

    gan: Any
    real: Batch
    fake: Batch
    d_real: Verdict
    d_fake: Verdict
    labelled: Batch | None = None


@dataclass(frozen=True)
class FeatureNorm:
    """A feature norm of a network and its position; ``norm(channels)`` builds the module of one layer.

    make: channels -> module for (B, C, ...). first: after D's first convolution too. after_activation: the
    module follows the activation instead of standing between convolution and activation.
    """

    make: Callable[[int], nn.Module]
    first: bool = False
    after_activation: bool = False

    def __call__(self, channels: int) -> nn.Module:
        module = self.make(channels)
        module.after_activation = self.after_activation  # type: ignore[assignment]
        return module


RENAMED = {  # of the first interface of methods, losses included
    "capturable": "graph_safe",
    "has_penalty": "d_term, which may return None",
    "penalty": "d_term(self, scene)",
    "before_update": "before_round(self, gan)",
    "generator_needs_real": 'needs = frozenset({"real_in_g"})',
    "needs_per_sample_d": 'needs = frozenset({"per_sample_d"})',
    "differs_per_forward": 'needs = frozenset({"fresh_forward"})',
    "looks_at_passes": 'needs = frozenset({"fresh_forward"})',
}


class StartsFromData(nn.Module):
    """A layer whose ``start`` sees the first samples of a run, which pass the new network once, in training
    mode: data-dependent initialization. ``start(x)`` gets the layer's own input."""

    def start(self, x: Tensor) -> None:
        """Set parameters from the input x (B, ...); gradients are off."""
        raise NotImplementedError


class Method(nn.Module):
    """A loss, penalty, norm, constraint or technique. Override the hooks you need; a step calls all of them.

    Buffers are state of the run: saved in its checkpoints, under the method's name. A copy is made for each
    GAN, so ``self`` may change. A module of a player that a method keeps belongs in a list or on the player.

    needs: ``real_in_g``: D's verdict on real samples in ``g_term``. ``labelled``: see ``Scene``.
        ``per_sample_d``: D must score each sample independently (no batch norm). ``fresh_forward``: D changes
        with each forward, ``whole_batch``: D judges a sample by its batch; in both cases real and generated
        samples pass D separately. Modules of D may have ``needs`` too.
        ``joint_batch``: both players see D's verdicts on a joint batch of real and generated samples.
    replaces_g_loss: ``g_term`` takes the place of the adversarial loss's.
    graph_safe: no hook reads or changes a value on the host, so updates may be recorded.
    schedulable: numbers that hooks read in each update, which ``schedules`` may move: 0-dim tensors then.
    normalizes_weights: at most one such method per run, prepared last.
    """

    needs: frozenset[str] = frozenset()
    replaces_g_loss = False
    graph_safe = True
    schedulable: frozenset[str] = frozenset()
    normalizes_weights = False

    def __new__(cls, *_: Any, **__: Any) -> Method:
        self = super().__new__(cls)
        nn.Module.__init__(self)  # so that a constructor without buffers need not call it
        return self

    def __init_subclass__(cls) -> None:
        """Raise ConfigError, one line, for hooks of the first interface."""
        super().__init_subclass__()
        for name, value in vars(cls).items():
            now = RENAMED.get(name, "")
            if name in ("prepare", "feature_norm", "after_update") and inspect.isfunction(value):
                hook = inspect.signature(getattr(Method, name))
                if len(inspect.signature(value).parameters) != len(hook.parameters):
                    now = f"{name}{hook}"
            if now:
                raise ConfigError(
                    f"{cls.__module__}.{cls.__name__}", f"{name} is of an older interface", f"use {now}"
                )

    def feature_norm(self, player: Player = "d") -> FeatureNorm | None:
        """The feature norm of a player, or None. G's replaces each batch norm of its architecture and is
        called as it is, with (x) or with (x, y); of a norm per class its scales and offsets stay."""
        return None

    def mistakes(self, e: Any, data: Any = None) -> Iterator[str]:
        """What in the ``Experiment`` e does not go with this method, "problem; fix" each, before any work;
        called again with the training set once it is loaded."""
        yield from ()

    def change_networks(self, generator: nn.Module, discriminator: nn.Module) -> None:
        """Change the freshly built networks; called on torch's meta device too, before any work.

        Raises ValueError("problem; fix") for networks that do not fit.
        """

    def prepare(self, gan: Any, data: Any = None) -> None:
        """Reinitialize or reparametrize weights, register buffers; called once, on the CPU.

        ``data``: the training set (``data/base.SampleSet``); None where a saved GAN is built to be restored.
        """

    def ready(self, gan: Any) -> None:
        """Called once, on the CPU, when all methods are prepared and the layers that start from data have
        started: the weights are those that training begins with."""

    def before_round(self, gan: Any) -> None:
        """Called before the updates of a step: discard cached values."""

    def augment(self, x: Tensor) -> Tensor:
        """What D sees of samples x (B, ...) in training, real or generated; differentiable."""
        return x

    def d_term(self, scene: Scene) -> Tensor | None:
        """A scalar added to D's loss, a mean over samples in float32; or None."""
        return None

    def g_term(self, scene: Scene) -> Tensor | None:
        """A scalar added to G's loss, or None."""
        return None

    def after_update(self, gan: Any, player: Player) -> None:
        """Called right after each optimizer step of ``player``."""

    def after_round(self, gan: Any, means: Mapping[str, Tensor]) -> None:
        """Called after the updates of a step with their mean terms over all ranks: ``d``, ``g``, ``d_real``
        and ``d_fake`` (D's mean scores), penalties by name. State is changed in place."""

    def scores(self) -> dict[str, float]:
        """Measures of convergence (lower is better), which a run's scores contain beside its metrics'."""
        return {}

    def curves(self, d: float, penalties: float) -> dict[str, float]:
        """What papers plot, by name, from D's loss and the sum of the penalties beside it (means, floats)."""
        return {}
