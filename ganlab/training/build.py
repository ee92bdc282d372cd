"""Build the two networks of an experiment, after checking their size; their state as tensors and JSON."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.distributed.sync_batch_norm import running_averages, synchronize
from ganlab.errors import CheckpointError, ConfigError, EnvError
from ganlab.experiment import Experiment
from ganlab.methods.base import Method
from ganlab.methods.flat_weights import FlatWeights
from ganlab.runs.checkpoint import flatten, require_fit, unflatten
from ganlab.system.hardware import fast_bf16
from ganlab.training.gan import GAN
from ganlab.training.optimizers import OptimizerState, use_fused_kernels
from ganlab.types import Shape, TextShape


def build_game(e: Experiment, device: torch.device, num_classes: int = 0, shape: Shape | None = None) -> GAN:
    """G, D, their optimisers and the rules, freshly initialised from the seed: the same on every device.

    ``num_classes``: of the data, for a conditional architecture; any other ignores it. ``shape``: of the
    data's samples, where it is known better than ``e.shape``.
    Raises ConfigError for what a stabiliser or optimiser refuses, and as ``require_size`` does.
    """
    num_classes = num_classes if e.architecture.conditional else 0
    shape = shape or e.shape
    require_size(e, num_classes, shape)
    rng.seed_default(device, e.seed, "init")
    generator = e.architecture.generator(shape, num_classes)
    norm = next((f for s in e.normalization.values() if (f := s.feature_norm())), None)
    discriminator = e.architecture.discriminator(shape, num_classes, norm)
    # weight norms last: they are of the weights that another start, and then constraints, leave
    stabilisers = dict(sorted(e.normalization.items(), key=lambda item: item[1].normalizes_weights))
    try:
        for stabiliser in stabilisers.values():
            stabiliser.prepare(discriminator)
        # channels last: 1.26x faster on a CPU at a quarter of SNGAN's width, and what tensor cores want
        generator, discriminator = (
            net.to(memory_format=torch.channels_last).to(device) for net in (generator, discriminator)
        )
        together = collectives.current().size == 1 or e.sync_bn
        if collectives.current().size > 1 and e.sync_bn:
            synchronize(generator)
            synchronize(discriminator)
        g_optimizer = use_fused_kernels(e.optimizer(generator.parameters()), device)
        d_optimizer = use_fused_kernels(e.optimizer_of_d(discriminator.parameters()), device)
    except (TypeError, ValueError) as error:
        where, _, what = str(error).partition(": ")
        raise ConfigError(where if what else "optimizer", what or where) from error
    for net in (generator, discriminator):
        for module in net.modules():
            if hasattr(module, "folded"):
                module.folded = e.fold  # type: ignore[assignment]
    average = None
    if e.ema:
        average = AveragedModel(generator, device, multi_avg_fn=get_ema_multi_avg_fn(e.ema), use_buffers=True)
    game = GAN(
        generator=generator,
        discriminator=discriminator,
        average=average,
        loss=e.loss.to(device),
        stabilisers=stabilisers,
        prior=e.prior,
        z_dim=e.architecture.z_dim,
        g_optimizer=g_optimizer,
        d_optimizer=d_optimizer,
        d_steps=e.d_steps,
        d_batch_size=e.batch_size,
        g_batch_size=e.g_batch_size,
        device=device,
        shape=shape,
        bf16=e.precision == "bf16" or (e.precision == "auto" and fast_bf16(device)),
        num_classes=num_classes,
        fake_labels=e.fake_labels,
        class_loss=e.class_loss,
        accumulate=e.accumulate,
        order=e.order,
        together=e.d_pass == "auto" and passes_together(e, discriminator),
        joint_fakes=e.joint_fakes,
        noise=e.fixed_generator,
        shift=e.fixed_shift,
        apart=[] if together else [*running_averages(generator), *running_averages(discriminator)],
    )
    if device.type == "cuda":
        flatten_weights(game)
    return game


def flatten_weights(game: GAN) -> None:
    """Let updates take the weights of both players from ``FlatWeights``: fewer kernels, up to rounding."""
    for net in (game.generator, game.discriminator):
        at_once = getattr(net, "spectral_at_once", None)
        if game.bf16 or at_once is not None:
            game.flat[net] = FlatWeights(net, at_once, game.bf16)


def shape_facts(game: GAN) -> dict[str, Any]:
    """What a checkpoint tells of the samples' shape: that of text, which its config does not know."""
    return {"shape": list(game.shape)} if game.shape.kind == "text" else {}


def stored_shape(e: Experiment, state: Mapping[str, Any]) -> Shape | None:
    """The shape in a checkpoint's ``state``; None where the config knows it. Raises ValueError, TypeError."""
    if e.shape.kind != "text" or "shape" not in state:
        return None
    found, most = TextShape(*map(int, state["shape"])), e.shape
    assert isinstance(most, TextShape)
    if not 1 <= found.vocabulary <= most.vocabulary or found.length != most.length:
        raise ValueError(f"shape: {state['shape']} is not that of the config")
    return found


def config_warnings(game: GAN) -> list[str]:
    """What a run should be warned of at its start: allowed, and hardly meant."""
    if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in game.discriminator.modules()):
        return []
    return [
        f"normalization.{name}: the penalty is of each sample by itself, and batch norm in D couples them; "
        "use normalization=ln in its place (arXiv:1704.00028, section 4)"
        for name, stabiliser in game.stabilisers.items()
        if stabiliser.needs_per_sample_d
    ]


def passes_together(e: Experiment, d: nn.Module) -> bool:
    """Whether D's verdict on an image does not depend on which pass and batch the image is in."""
    couples = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in d.modules())
    return not couples and not any(s.differs_per_forward for s in e.normalization.values())


def stateful_parts(game: GAN) -> dict[str, Any]:
    """Everything with a state_dict, by name: what a checkpoint holds and what resume restores."""
    stateful: dict[str, Any] = {
        "generator": game.generator,
        "discriminator": game.discriminator,
        "loss": game.loss,
        "g_optimizer": OptimizerState(game.g_optimizer),
        "d_optimizer": OptimizerState(game.d_optimizer),
    }
    if game.average is not None:
        stateful["average"] = game.average
    return stateful | {f"normalization.{k}": s for k, s in game.stabilisers.items() if has_state(s)}


def has_state(stabiliser: Method) -> bool:
    return isinstance(stabiliser, nn.Module) and bool(stabiliser.state_dict())


def pack_game(game: GAN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All state as (named tensors, JSON-able rest)."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, part in stateful_parts(game).items():
        found, rest[name] = flatten(name, part.state_dict())
        tensors |= found
    return tensors, rest


def slot_bytes(game: GAN) -> int:
    """By how much a checkpoint grows with the first update, when the optimisers get their slots."""
    total = 0
    for optimizer in (game.g_optimizer, game.d_optimizer):
        slots = 2 if "betas" in optimizer.defaults else 1  # Adam's two moments; at most one elsewhere
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        total += slots * sum(p.numel() * p.element_size() for p in weights)
    return total


def require_networks(game: GAN, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError unless the networks' tensors fit; optimisers' slots come with the first step."""
    for name, part in stateful_parts(game).items():
        if isinstance(part, nn.Module):
            wanted, _ = flatten(name, part.state_dict())
            require_fit({k: v for k, v in tensors.items() if k.startswith(f"{name}/")}, wanted, where)


def unpack_game(game: GAN, tensors: dict[str, Tensor], rest: dict[str, Any], where: str) -> None:
    """Put a packed state into a freshly built game. Raises CheckpointError unless everything fits."""
    stateful = stateful_parts(game)
    if set(rest) != set(stateful):
        raise CheckpointError(
            where, f"holds {', '.join(rest)}; this run has {', '.join(stateful)}", "use its own config"
        )
    require_networks(game, tensors, where)
    for name, part in stateful.items():
        try:
            part.load_state_dict(unflatten(tensors, rest[name]))
        except torch.OutOfMemoryError:  # a RuntimeError, but not the checkpoint's fault
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                where, f"{name} does not fit: {error}", "use the config it was made with"
            ) from error
    game.averaging = game.average is not None and bool(game.average.n_averaged)


MAX_PARAMETERS = 4_000_000_000  # of G and D together: four times the largest GANs there are
FIX = "lower architecture.width"


def require_size(e: Experiment, num_classes: int = 0, shape: Shape | None = None) -> None:
    """Raise ConfigError for networks past ``MAX_PARAMETERS``, EnvError for more than this machine's memory.

    ``num_classes`` and ``shape``: of the data; 0 and None where not known yet. Both networks are built on
    torch's "meta" device, which has shapes and no memory: milliseconds.
    """
    conditional = e.architecture.conditional
    classes = max(num_classes, 2) if conditional else 0
    shape = shape or e.shape
    norm = next((f for s in e.normalization.values() if (f := s.feature_norm())), None)
    try:
        with torch.device("meta"):
            nets: list[nn.Module] = [
                e.architecture.generator(shape, classes),
                e.architecture.discriminator(shape, classes, norm),
            ]
        total = sum(t.numel() for net in nets for t in (*net.parameters(), *net.buffers()))
    except NotImplementedError:
        return  # an architecture that can't be built without memory: it is judged when it is built
    except (OverflowError, RuntimeError, TypeError, MemoryError) as error:
        if not any(
            word in str(error).lower() for word in ("overflow", "infinity", "too large", "negative dim")
        ):
            raise
        raise ConfigError("architecture", "its layers are too large to be counted", FIX) from error
    if total > MAX_PARAMETERS:
        what = f"G and D would have {total:.3g} parameters, more than {MAX_PARAMETERS:.0e}"
        raise ConfigError("architecture", what, FIX)
    memory = physical_memory()
    if memory and 4 * total > memory:
        what = f"G and D need {4 * total / 1e9:.1f} GB, this machine has {memory / 1e9:.1f}"
        raise EnvError("memory", what, FIX)


def physical_memory() -> int:
    """Bytes of this machine's memory; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
