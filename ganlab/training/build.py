"""Build a GAN from an experiment, after checking its size; convert its state to tensors and JSON and back."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ganlab import rng
from ganlab.data.base import SampleSet
from ganlab.distributed import collectives
from ganlab.distributed.sync_batch_norm import running_averages, synchronize
from ganlab.errors import CheckpointError, ConfigError, EnvError
from ganlab.experiment import Experiment
from ganlab.methods.base import PLAYERS, StartsFromData
from ganlab.methods.flat_weights import FlatWeights
from ganlab.models.blocks import replace_norms
from ganlab.runs.checkpoint import flatten, require_fit, unflatten
from ganlab.samples.base import sample_kind
from ganlab.system.hardware import fast_bf16
from ganlab.training.fakes import Generated, Moved
from ganlab.training.gan import GAN
from ganlab.training.optimizers import OptimizerState, use_fused_kernels
from ganlab.types import Shape


def build_gan(
    e: Experiment,
    device: torch.device,
    num_classes: int = 0,
    shape: Shape | None = None,
    data: SampleSet | None = None,
) -> GAN:
    """Build G, D and their optimizers, initialized from the seed identically on every device.

    num_classes: of the data; used by conditional architectures only. shape: of the data's samples, where it
    is more exact than ``e.shape``. data: for methods that keep something of it; a checkpoint has that too.
    Raises ConfigError for arguments that a method or optimizer rejects, and as ``require_size`` does.
    """
    num_classes = num_classes if e.architecture.conditional else 0
    shape = shape or e.shape
    require_size(e, num_classes, shape)
    rng.seed_default(device, e.seed, "init")
    generator, discriminator = networks(e, shape, num_classes)
    for module in (*generator.modules(), *discriminator.modules()):
        if hasattr(module, "folded"):
            module.folded = e.fold  # type: ignore[assignment]
    # weight norms after methods that change the initial weights and after constraints; techniques last
    keys = sorted(e.methods, key=lambda key: (key.startswith("technique"), e.methods[key].normalizes_weights))
    methods = {key.rpartition(".")[2]: e.methods[key] for key in keys}
    fixed = e.fixed_generator, e.fixed_shift
    gan = GAN(
        generator=generator,
        discriminator=discriminator,
        methods=copy.deepcopy(methods),
        keys={key.rpartition(".")[2]: key for key in keys},
        prior=e.prior,
        z_dim=e.architecture.z_dim,
        d_steps=e.d_steps,
        d_batch_size=e.batch_size,
        g_batch_size=e.g_batch_size,
        device=device,
        shape=shape,
        bf16=e.precision == "bf16" or (e.precision == "auto" and fast_bf16(device)),
        num_classes=num_classes,
        fake_labels=e.fake_labels,
        accumulate=e.accumulate,
        order=e.order,
        source=Moved(*fixed) if any(fixed) else Generated(e.joint_fakes),
    )
    team = collectives.current()
    try:
        for method in gan.methods.values():
            method.prepare(gan, data)
        start_from_data(gan, data, e.seed)
        for method in gan.methods.values():
            method.ready(gan)
        for module in (*gan.methods.values(), generator, discriminator):
            module.to(device)
        for net in (generator, discriminator):
            # 1.26x faster on a CPU at a quarter of SNGAN's width, and what tensor cores need
            net.to(memory_format=torch.channels_last)
            if team.size > 1 and e.sync_bn:
                synchronize(net)
        gan.g_optimizer = use_fused_kernels(e.optimizer(generator.parameters()), device)
        gan.d_optimizer = use_fused_kernels(e.optimizer_of_d(discriminator.parameters()), device)
    except (TypeError, ValueError) as error:
        where, _, what = str(error).partition(": ")
        raise ConfigError(where if what else "optimizer", what or where) from error
    gan.needs = needs(gan)
    gan.joint_pass = e.d_pass == "auto" and not gan.needs & {"whole_batch", "fresh_forward"}
    gan.joint_pass |= "joint_batch" in gan.needs
    if e.ema:
        average = get_ema_multi_avg_fn(e.ema)
        if "ema" in e.schedules:
            decay = torch.tensor(e.ema, device=device)
            gan.scheduled["ema"], average = (e.ema, decay), scheduled_average(decay)
        gan.ema = AveragedModel(generator, device, multi_avg_fn=average, use_buffers=True)
    for key in e.schedules.keys() - {"optimizer.lr", "ema"}:
        owner, _, attribute = key.rpartition(".")
        method = gan.methods[owner.rpartition(".")[2]]
        configured = getattr(method, attribute)
        gan.scheduled[key] = configured, torch.tensor(float(configured), device=device)
        setattr(method, attribute, gan.scheduled[key][1])
    if team.size > 1 and not e.sync_bn:
        gan.unsynced_bn_stats = [*running_averages(generator), *running_averages(discriminator)]
    if device.type == "cuda":
        flatten_weights(gan)
    return gan


def networks(e: Experiment, shape: Shape, num_classes: int) -> tuple[nn.Module, nn.Module]:
    """G and D, freshly initialized, with the feature norms of the methods. Raises ConfigError."""
    of_g, of_d = (
        next((f for m in e.methods.values() if (f := m.feature_norm(player))), None) for player in PLAYERS
    )
    generator = e.architecture.generator(shape, num_classes)
    if of_g is not None and not replace_norms(generator, of_g):
        what = "it replaces G's batch norms, but this G has none"
        raise ConfigError("normalization", what, "choose another architecture, or leave it out")
    try:
        discriminator = e.architecture.discriminator(shape, num_classes, of_d)
    except ValueError as error:
        where, _, what = str(error).partition(": ")
        raise ConfigError(where, *what.split("; ", 1)) from error
    for key, method in e.methods.items():
        try:
            method.change_networks(generator, discriminator)
        except ValueError as error:
            raise ConfigError(key, *str(error).split("; ", 1)) from error
    return generator, discriminator


STARTING = 500  # samples that a data-dependent initialization sees, as in Improved Techniques' code


def start_from_data(gan: GAN, data: SampleSet | None, seed: int) -> None:
    """Call ``start`` of the networks' layers that start from data, in one pass of each network.

    D gets the run's first real samples, G as many latents; a GAN that is built to be restored needs neither.
    """
    for net in (gan.generator, gan.discriminator) if data is not None else ():
        layers = [m for m in net.modules() if isinstance(m, StartsFromData)]
        hooks = [m.register_forward_pre_hook(lambda layer, inputs: layer.start(inputs[0])) for m in layers]
        if hooks and data is not None:
            x, y = data.batches("cpu", seed, 0).batch(0, min(STARTING, len(data)))
            x = data.to_model_input(x)
            y = y if gan.num_classes else None
            with torch.no_grad(), collectives.use_ranks(collectives.Ranks()):  # each rank sees all of them
                net(x if net is gan.discriminator else gan.prior(len(x), gan.z_dim, torch.device("cpu")), y)
        for hook in hooks:
            hook.remove()


def scheduled_average(decay: Tensor) -> Callable[[Any, Any, Any], None]:
    """As torch's ``get_ema_multi_avg_fn``, with a decay that may change between updates."""

    def average(old: Sequence[Tensor], new: Sequence[Tensor], _: Any) -> None:
        for a, b in zip(old, new, strict=True):
            a.copy_(torch.lerp(a.float(), b.float(), 1 - decay))

    return average


def reset_optimizers(e: Experiment, gan: GAN) -> None:
    """Forget the optimizers' state, as at the start of the run; learning rates stay."""
    fresh = e.optimizer(gan.generator.parameters()), e.optimizer_of_d(gan.discriminator.parameters())
    for optimizer, new in zip((gan.g_optimizer, gan.d_optimizer), fresh, strict=True):
        optimizer.state.clear()
        optimizer.state.update(new.state)


def needs(gan: GAN) -> frozenset[str]:
    """What the methods and D's modules need; batch norm in D sees the whole batch, whoever put it there."""
    modules = [*gan.methods.values(), *gan.discriminator.modules()]
    batch_norm = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in modules)
    own: list[frozenset[str]] = [getattr(m, "needs", frozenset()) for m in modules]
    return frozenset({"whole_batch"} if batch_norm else ()).union(*own)


def flatten_weights(gan: GAN) -> None:
    """Keep the weights of both networks in ``FlatWeights``: fewer kernels, equal up to rounding."""
    for net in (gan.generator, gan.discriminator):
        at_once = getattr(net, "spectral_at_once", None)
        if gan.bf16 or at_once is not None:
            gan.flat[net] = FlatWeights(net, at_once, gan.bf16)


def shape_facts(e: Experiment, gan: GAN) -> dict[str, Any]:
    """The sample shape for a checkpoint, where the config's is an upper bound, as of a vocabulary."""
    return {"shape": list(gan.shape)} if gan.shape != e.shape else {}


def stored_shape(e: Experiment, state: Mapping[str, Any]) -> Shape | None:
    """The shape in a checkpoint's ``state``; None if the config has it. Raises ValueError, TypeError."""
    return sample_kind(e.shape).restored_shape(state["shape"]) if "shape" in state else None


def config_warnings(gan: GAN) -> list[str]:
    """Warnings for a valid config that is probably a mistake, logged when a run starts."""
    if "whole_batch" not in gan.needs:
        return []
    return [
        f"{gan.keys[name]}: the penalty is defined per sample, but D judges each sample by its batch; "
        "without batch norm (normalization=ln, arXiv:1704.00028, section 4) or minibatch features it does not"
        for name, method in gan.methods.items()
        if "per_sample_d" in method.needs
    ]


def stateful_parts(gan: GAN) -> dict[str, Any]:
    """Everything with a state_dict, by name: the content of a checkpoint."""
    stateful: dict[str, Any] = {
        "generator": gan.generator,
        "discriminator": gan.discriminator,
        "loss": gan.loss,
        "g_optimizer": OptimizerState(gan.g_optimizer),
        "d_optimizer": OptimizerState(gan.d_optimizer),
    }
    if gan.ema is not None:
        stateful["average"] = gan.ema
    for name, method in gan.methods.items():
        if name != "loss" and method.state_dict():
            stateful[gan.keys[name]] = method
    return stateful


def pack_gan(gan: GAN) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All state as (named tensors, JSON-serializable rest)."""
    tensors: dict[str, Tensor] = {}
    rest: dict[str, Any] = {}
    for name, part in stateful_parts(gan).items():
        part_tensors, rest[name] = flatten(name, part.state_dict())
        tensors |= part_tensors
    return tensors, rest


def optimizer_state_bytes(gan: GAN) -> int:
    """Bytes by which a checkpoint grows at the first update, when the optimizers create their state."""
    total = 0
    for optimizer in (gan.g_optimizer, gan.d_optimizer):
        moments = 2 if "betas" in optimizer.defaults else 1  # Adam's two moments; at most one elsewhere
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        total += moments * sum(p.numel() * p.element_size() for p in weights)
    return total


def require_networks(gan: GAN, tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise CheckpointError unless the networks' tensors fit."""
    for name, part in stateful_parts(gan).items():
        if isinstance(part, nn.Module):
            expected, _ = flatten(name, part.state_dict())
            require_fit({k: v for k, v in tensors.items() if k.startswith(f"{name}/")}, expected, where)


def unpack_gan(gan: GAN, tensors: dict[str, Tensor], rest: dict[str, Any], where: str) -> None:
    """Load a packed state into a newly built GAN. Raises CheckpointError unless everything fits."""
    stateful = stateful_parts(gan)
    if set(rest) != set(stateful):
        raise CheckpointError(
            where, f"contains {', '.join(rest)}; this run has {', '.join(stateful)}", "use its own config"
        )
    require_networks(gan, tensors, where)
    for name, part in stateful.items():
        try:
            part.load_state_dict(unflatten(tensors, rest[name]))
        except torch.OutOfMemoryError:  # a RuntimeError that is not the checkpoint's fault
            raise
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(
                where, f"{name} does not fit: {error}", "use the config it was made with"
            ) from error
    gan.ema_started = gan.ema is not None and bool(gan.ema.n_averaged)


MAX_PARAMETERS = 4_000_000_000  # of G and D together: four times the largest published GANs
FIX = "lower architecture.width"


def require_size(e: Experiment, num_classes: int = 0, shape: Shape | None = None) -> None:
    """Raise ConfigError for more than ``MAX_PARAMETERS``, EnvError for more than this machine's memory.

    num_classes, shape: of the data; 0 and None while unknown. Both networks are built on torch's "meta"
    device, which allocates no memory: milliseconds.
    """
    conditional = e.architecture.conditional
    classes = max(num_classes, 2) if conditional else 0
    shape = shape or e.shape
    try:
        with torch.device("meta"):
            nets = networks(e, shape, classes)
        total = sum(t.numel() for net in nets for t in (*net.parameters(), *net.buffers()))
    except NotImplementedError:
        return  # this architecture can't be built on "meta": it fails later, if at all
    except (OverflowError, RuntimeError, TypeError, MemoryError) as error:
        if not any(
            word in str(error).lower() for word in ("overflow", "infinity", "too large", "negative dim")
        ):
            raise
        raise ConfigError("architecture", "its layers are too large to count", FIX) from error
    if total > MAX_PARAMETERS:
        what = f"G and D would have {total:.3g} parameters, more than {MAX_PARAMETERS:.0e}"
        raise ConfigError("architecture", what, FIX)
    memory = physical_memory()
    if memory and 4 * total > memory:
        what = f"G and D need {4 * total / 1e9:.1f} GB, but this machine has {memory / 1e9:.1f}"
        raise EnvError("memory", what, FIX)


def physical_memory() -> int:
    """This machine's memory in bytes; 0 if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 0
