"""One generator update and the discriminator updates before it: the only code that changes weights.

It knows no dataset, network, loss or stabiliser by name.

With ``accumulate`` n each update runs over n micro batches and averages their gradients. For losses that are
means over samples this is the update of the whole batch, but for three things. Batch norm takes each micro
batch's statistics, and its running averages move n times; for G the paper's own ImageNet runs were like that:
four GPUs with 16 real and 32 generated images each, batch norm not synchronised (sngan_projection,
train_mn.py). What else looks at a whole batch (minibatch features) sees a micro batch. Spectral norms iterate
in the first micro batch alone, as often for each update as without accumulation: from the second on they
stand where the first left them.

A run of many ranks (``ranks.py``) shares each micro batch among them and averages the gradients once an
update: up to rounding what one process does, batch norm included, which takes its statistics over all ranks.
With ``sync_bn=false`` it takes those of a rank's own part, and the running averages are means over the ranks.
What else looks at a whole batch would see a rank's part of it.

Nothing here reads a value on the host, and nothing that outlives an update moves in memory, so that an update
can be recorded once and replayed (``engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.optim import Optimizer

from ganlab.distributed import collectives
from ganlab.training.gan import GAN
from ganlab.training.optimizers import with_strides_of
from ganlab.types import Batch

Terms = dict[str, Tensor]


def play_round(game: GAN, real: Callable[[], Batch], lr_factor: float = 1.0) -> Terms:
    """``set_rates``, then ``update``: see there."""
    set_rates(game, lr_factor)
    return update(game, real)


def set_rates(game: GAN, factor: float) -> None:
    """Both learning rates at ``factor`` times their first value. On the host: no part of an update."""
    for optimizer in (game.g_optimizer, game.d_optimizer):
        for group in optimizer.param_groups:
            rate = group["initial_lr"] * factor
            if isinstance(group["lr"], Tensor):  # its storage is what a recorded update reads
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def update(game: GAN, real: Callable[[], Batch]) -> Terms:
    """Update D ``d_steps`` times, then G once (or G first), then the moving average; all in place.

    ``real()`` gives the next batch of real images. They and the generated ones pass D apart, as in SNGAN's
    code, or ``together``: it matters only if D normalises over the batch or per forward pass.
    Returns detached scalars on the device by name, ``d``, ``g``, the penalties and the class losses, of the
    last update of each player: no host sync here.
    """

    def seen() -> Batch:
        batch = real()
        return batch if game.num_classes else batch._replace(y=None)

    for flat in game.flat.values():
        flat.begin()
    try:
        for stabiliser in game.stabilisers.values():
            stabiliser.before_update(game.discriminator)
        log = update_critic(game, seen) if game.fixed else update_both(game, seen)
    finally:
        for flat in game.flat.values():
            flat.end()
    return log


def update_both(game: GAN, seen: Callable[[], Batch]) -> Terms:
    """The updates of D and of G, then the moving average."""
    log: Terms = update_generator(game, seen) if game.order == "g_first" else {}
    fakes = fakes_of_a_round(game) if game.joint_fakes else None
    for i in range(game.d_steps):
        log |= update_discriminator(game, seen(), next(fakes) if fakes else None, i + 1 == game.d_steps)
    if game.order == "d_first":
        log |= update_generator(game, seen)
    if game.apart:
        torch._foreach_copy_(game.apart, collectives.current().all_reduce_mean(game.apart))  # type: ignore[arg-type]
    update_ema(game)
    return log


def update_critic(game: GAN, real: Callable[[], Batch]) -> Terms:
    """Update D ``d_steps`` times against real samples that were moved: the fixed G of WGAN-GP's Figure 1a.

    Each generated sample is a real one of the same batch, a shift and N(0, noise^2), as in WGAN-GP's released
    code (gan_toy.py), which has no shift. G has no loss to tell.
    """
    log: Terms = {}
    for i in range(game.d_steps):
        batch = real()
        team, shape = collectives.current(), batch.x.shape
        noise = torch.randn(shape[0] * team.size, *shape[1:], device=batch.x.device)
        fake = batch._replace(x=game.moved(batch.x, team.shard(noise, game.accumulate)))
        log |= update_discriminator(game, batch, fake, i + 1 == game.d_steps)
    return log


@torch.no_grad()
def update_ema(game: GAN) -> None:
    """The moving average of G, its buffers included, takes in the newest G; the first time it becomes it.

    As torch's ``AveragedModel.update_parameters`` with the same arithmetic, but it asks the host, not the
    device, whether this is the first time.
    """
    average = game.average
    if average is None:
        return
    old = [*average.module.parameters(), *average.module.buffers()]
    new = [*game.generator.parameters(), *game.generator.buffers()]
    if not game.averaging:
        torch._foreach_copy_(old, new)
        game.averaging = True
    else:
        assert average.multi_avg_fn is not None
        for floating in (True, False):  # counts of batches are whole numbers
            into = [a for a in old if a.is_floating_point() is floating]
            take = [b for b in new if b.is_floating_point() is floating]
            if into:
                average.multi_avg_fn(into, take, average.n_averaged)
    average.n_averaged.add_(1)


def fakes_of_a_round(game: GAN) -> Iterator[Batch]:
    """Generated images for ``d_steps`` updates of D from one pass of G: with batch norm another statistic."""
    sizes = [game.d_batch_size] * game.d_steps
    with torch.no_grad():
        x, y = game.fakes(sum(sizes), game.d_steps)
    sizes = [len(x) // game.d_steps] * game.d_steps  # of this rank
    labels = [None] * len(sizes) if y is None else y.split(sizes)
    return map(Batch, x.split(sizes), labels)


def update_discriminator(game: GAN, real: Batch, fakes: Batch | None = None, tell: bool = True) -> Terms:
    """One optimiser step of D on ``real`` and as many generated images; then its constraints.

    With ``fake_labels="data"`` the generated images take the labels of the real ones, as in WGAN-GP's code.
    ``fakes``: generated already. ``tell``: whether anybody looks at the scores' means.
    """
    d, stabilisers = game.discriminator, game.stabilisers.values()
    whole = len(real.x) * collectives.current().size
    given = fakes or game.inputs(whole, real.y if game.fake_labels == "data" else None)
    terms_of = game.compiled.get("d", d_terms)
    as_made = not game.together and not any(s.has_penalty for s in stabilisers)

    def parts() -> Iterator[tuple[Terms, Terms]]:
        for real_x, real_y, part, part_y in micro_batches(game.accumulate, real.x, real.y, *given):
            if fakes is None:
                with torch.no_grad():
                    fake = game.generate(part, part_y, as_made)
            else:
                fake = Batch(part, part_y)
            yield terms_of(game, Batch(real_x, real_y), fake, tell)

    log = descend(d, game.d_optimizer, parts(), game)
    for stabiliser in stabilisers:
        stabiliser.after_update(d)
    if d in game.flat:
        game.flat[d].moved()
    return log


def d_terms(game: GAN, real: Batch, fake: Batch, tell: bool) -> tuple[Terms, Terms]:
    """The terms of D's loss on a micro batch, and other numbers to tell: its mean scores."""
    told_real, told_fake = game.verdicts(real, fake)
    terms = {"d": game.loss.discriminator(told_real, told_fake)}
    if game.class_loss is not None:
        assert real.y is not None
        terms["d_class"] = game.class_loss.discriminator(told_real, real.y, told_fake, fake.y)
    for name, stabiliser in game.stabilisers.items():
        if stabiliser.has_penalty:
            terms[name] = stabiliser.penalty(game.discriminator, real, fake)
    scores = {"d_real": told_real.score, "d_fake": told_fake.score} if tell else {}
    return terms, {name: score.detach().mean() for name, score in scores.items()}


def update_generator(game: GAN, real: Callable[[], Batch]) -> Terms:
    """One optimiser step of G; D's weights stand still and get no gradients."""
    d = game.discriminator
    needs_real = game.loss.generator_needs_real
    terms_of = game.compiled.get("g", g_terms)

    def parts() -> Iterator[tuple[Terms, Terms]]:
        given = (*(real() if needs_real else (None, None)), *game.inputs(game.g_batch_size))
        for real_x, real_y, z, y in micro_batches(game.accumulate, *given):
            yield terms_of(game, None if real_x is None else Batch(real_x, real_y), z, y), {}

    with frozen(d.parameters()):
        return descend(game.generator, game.g_optimizer, parts(), game)


def g_terms(game: GAN, real: Batch | None, z: Tensor, y: Tensor | None) -> Terms:
    """The terms of G's loss on a micro batch."""
    told_real = None if real is None else game.verdict(*real)
    fake = game.generate(z, y, as_made=True)
    told_fake = game.verdict(*fake)
    terms = {"g": game.loss.generator(told_real, told_fake)}
    if game.class_loss is not None:
        terms["g_class"] = game.class_loss.generator(told_fake, fake.y)
    return terms


def descend(net: nn.Module, optimizer: Optimizer, parts: Iterator[tuple[Terms, Terms]], game: GAN) -> Terms:
    """One optimiser step of ``net`` on the mean over the micro batches of the sum of their terms.

    ``parts`` makes the micro batches' (terms, other numbers to tell) one at a time, so that only one lies in
    memory. Power iterations of D's weights happen in the first alone. Returns the means of all, detached.
    The gradients are asked for by parameter: nothing else gets any.
    """
    log: Terms = {}
    n, total = game.accumulate, list[Tensor | None]()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    flat = game.flat.get(net)
    leaves = parameters if flat is None else [*parameters, flat.leaf]
    with ExitStack() as stack:
        for i, (terms, others) in enumerate(parts):
            values = list(terms.values())
            loss = values[0] if len(values) == 1 else torch.stack(values).sum()
            found = torch.autograd.grad(loss if n == 1 else loss / n, leaves, allow_unused=True)
            total = [add(a, b) for a, b in zip(total, found, strict=True)] if i else list(found)
            for name, value in (terms | others).items():
                mean = value.detach() if n == 1 else value.detach() / n
                log[name] = log[name] + mean if i else mean
            if i == 0 < n - 1:
                stack.enter_context(freeze_power_iteration(game.discriminator))
    means = collectives.current().all_reduce_mean([*total, *log.values()])
    total, log = means[: len(total)], dict(zip(log, means[len(total) :], strict=True))  # type: ignore[arg-type]
    if flat is not None:
        total = flat.shared_out(parameters, total[:-1], total[-1])
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = with_strides_of(gradient, parameter)
    optimizer.step()
    for parameter in parameters:
        parameter.grad = None
    if flat is not None:
        flat.moved()
    return log


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, None being 0."""
    return b if a is None else a if b is None else a + b


def micro_batches(n: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """``n`` times the next n-th of every tensor along its first axis; None stays None."""
    return zip(*([None] * n if t is None else t.chunk(n) for t in tensors), strict=True)


@contextmanager
def freeze_power_iteration(net: nn.Module) -> Iterator[None]:
    """Inside: ``net``'s weight parametrisations behave as in evaluation: no power iteration."""
    lists = [m for m in net.modules() if isinstance(m, ParametrizationList)]
    modes = [(m, m.training) for parametrizations in lists for m in parametrizations.modules()]
    try:
        for m, _ in modes:
            m.training = False
        yield
    finally:
        for m, mode in modes:
            m.training = mode


class frozen:  # noqa: N801 - reads as a verb phrase in ``with``
    """No gradients for these parameters inside the block."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)
