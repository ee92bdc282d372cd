"""Building the two players of an experiment, and their whole state as tensors and JSON, both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ganlab import rng
from ganlab.checkpoint import flatten, require_fit, unflatten
from ganlab.errors import CheckpointError, ConfigError
from ganlab.experiment import Experiment
from ganlab.step import Game
from ganlab.types import Stabiliser


def build_game(e: Experiment, device: torch.device, num_classes: int = 0) -> Game:
    """G, D, their optimisers and the rules, freshly initialised from the seed: the same on every device.

    ``num_classes``: of the data, for a conditional architecture; any other ignores it.
    Raises ConfigError for what a stabiliser or optimiser refuses.
    """
    num_classes = num_classes if e.architecture.conditional else 0
    rng.seed_default(device, e.seed, "init")
    generator = e.architecture.generator(e.shape, num_classes)
    norm = next((f for s in e.normalization.values() if (f := s.feature_norm())), None)
    discriminator = e.architecture.discriminator(e.shape, num_classes, norm)
    try:
        for stabiliser in e.normalization.values():
            stabiliser.prepare(discriminator)
        # channels last: 1.26x faster on a CPU at a quarter of SNGAN's width, and what tensor cores want
        generator, discriminator = (
            net.to(memory_format=torch.channels_last).to(device) for net in (generator, discriminator)
        )
        g_optimizer, d_optimizer = (e.optimizer(net.parameters()) for net in (generator, discriminator))
    except (TypeError, ValueError) as error:
        where, _, what = str(error).partition(": ")
        raise ConfigError(where if what else "optimizer", what or where) from error
    for optimizer in (g_optimizer, d_optimizer):
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
    average = None
    if e.ema:
        average = AveragedModel(generator, multi_avg_fn=get_ema_multi_avg_fn(e.ema), use_buffers=True)
    return Game(
        generator=generator,
        discriminator=discriminator,
        average=average,
        loss=e.loss.to(device),
        stabilisers=e.normalization,
        prior=e.prior,
        z_dim=e.architecture.z_dim,
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        d_steps=e.d_steps,
        g_batch_size=e.g_batch_size,
        device=device,
        bf16=e.precision == "bf16",
        num_classes=num_classes,
        fake_labels=e.fake_labels,
        class_loss=e.class_loss,
        accumulate=e.accumulate,
        order=e.order,
    )


def parts(game: Game) -> dict[str, Any]:
    """Everything with a state_dict, by name: what a checkpoint holds and what resume restores."""
    stateful: dict[str, Any] = {
        "generator": game.generator,
        "discriminator": game.discriminator,
        "loss": game.loss,
        "g_optimizer": game.g_optimizer,
        "d_optimizer": game.d_optimizer,
    }
    if game.average is not None:
        stateful["average"] = game.average
    return stateful | {f"normalization.{k}": s for k, s in game.stabilisers.items() if has_state(s)}


def has_state(stabiliser: Stabiliser) -> bool:
    return isinstance(stabiliser, nn.Module) and bool(stabiliser.state_dict())


def pack_game(game: Game) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All state as (named tensors, JSON-able rest)."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, part in parts(game).items():
        found, rest[name] = flatten(name, part.state_dict())
        tensors |= found
    return tensors, rest


def unpack_game(game: Game, tensors: dict[str, Tensor], rest: dict[str, Any], where: str) -> None:
    """Put a packed state into a freshly built game. Raises CheckpointError unless everything fits."""
    stateful = parts(game)
    if set(rest) != set(stateful):
        raise CheckpointError(
            where, f"holds {', '.join(rest)}; this run has {', '.join(stateful)}", "use its own config"
        )
    for name, part in stateful.items():
        if isinstance(part, nn.Module):  # an optimiser's slots appear with its first step
            wanted, _ = flatten(name, part.state_dict())
            require_fit({k: v for k, v in tensors.items() if k.startswith(f"{name}/")}, wanted, where)
    for name, part in stateful.items():
        try:
            part.load_state_dict(unflatten(tensors, rest[name]))
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                where, f"{name} does not fit: {error}", "use the config it was made with"
            ) from error
