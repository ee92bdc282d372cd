"""One generator update and the discriminator updates before it: the only code that changes weights.

No dataset, network, loss or method is named here.

With ``accumulate`` n each update runs over n micro batches and averages their gradients. For losses that are
means over samples this equals the update of the whole batch, with three exceptions. Batch norm uses the
statistics of each micro batch, and its running averages move n times; the paper's own ImageNet runs did that
for G: four GPUs with 16 real and 32 generated images each, batch norm not synchronized (sngan_projection,
train_mn.py). Minibatch features see a micro batch. Power iterations of spectral norms run in the first micro
batch only, as often per update as without accumulation; the others reuse its estimates.

In a run of several ranks (``distributed/collectives.py``) the ranks split each micro batch and average the
gradients once per update: up to rounding what one process computes, including batch norm, whose statistics
are taken over all ranks. With ``sync_bn=false`` they are a rank's own, and the running averages are means
over the ranks. Minibatch features would see a rank's share.

Nothing here reads a value on the host, and no tensor that outlives an update moves in memory, so an update
can be recorded once and replayed (``engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from ganlab.distributed import collectives
from ganlab.methods.base import Player, Scene
from ganlab.training.fakes import Generated, micro_batches
from ganlab.training.gan import GAN
from ganlab.training.optimizers import with_strides_of
from ganlab.types import Batch

Terms = dict[str, Tensor]
Gradients = list[Tensor | None]
Inputs = tuple[Tensor, Tensor | None]


def update(gan: GAN, real: Callable[[], Batch], labelled: Callable[[], Batch] | None = None) -> Terms:
    """Update D ``d_steps`` times, then G once, or by ``order``; then the moving average; all in place.

    ``real()`` returns the next batch of real images, ``labelled()`` of those whose labels methods of D see;
    None: they see all. Real and generated images pass D separately, as in
    SNGAN's code, or in one ``joint_pass``: it matters only if D normalizes over the batch or per pass.
    Returns detached scalars on the device by name, of each player's last update: ``d``, ``g``, the penalties
    and the class losses.
    """
    for flat in gan.flat.values():
        flat.begin()
    try:
        for method in gan.methods.values():
            method.before_round(gan)
        log: Terms = {}
        if gan.order == "g_first" and gan.source.trains_g:
            log |= update_generator(gan, real)
        gan.source.begin(gan)
        if gan.order == "together" and gan.source.trains_g:
            log |= update_both(gan, real, labelled)
        else:
            for i in range(gan.d_steps):
                own = labelled() if labelled else None
                log |= update_discriminator(gan, real(), i + 1 == gan.d_steps, own)
        if gan.order == "d_first" and gan.source.trains_g:
            log |= update_generator(gan, real)
        if gan.unsynced_bn_stats:
            means = collectives.current().all_reduce_mean(gan.unsynced_bn_stats)
            torch._foreach_copy_(gan.unsynced_bn_stats, means)  # type: ignore[arg-type]
        if gan.source.trains_g:
            update_ema(gan)
        for method in gan.methods.values():
            method.after_round(gan, log)
    finally:
        for flat in gan.flat.values():
            flat.end()
    return log


@torch.no_grad()
def update_ema(gan: GAN) -> None:
    """Update the moving average of G's parameters and buffers; the first update copies them.

    The arithmetic of torch's ``AveragedModel.update_parameters``, but whether this is the first update is
    known on the host, without a sync.
    """
    ema = gan.ema
    if ema is None:
        return
    old = [*ema.module.parameters(), *ema.module.buffers()]
    new = [*gan.generator.parameters(), *gan.generator.buffers()]
    if not gan.ema_started:
        torch._foreach_copy_(old, new)
        gan.ema_started = True
    else:
        assert ema.multi_avg_fn is not None
        for floating in (True, False):  # batch counts are integers
            into = [a for a in old if a.is_floating_point() is floating]
            take = [b for b in new if b.is_floating_point() is floating]
            if into:
                ema.multi_avg_fn(into, take, ema.n_averaged)
    ema.n_averaged.add_(1)


def update_discriminator(
    gan: GAN, real: Batch, log_scores: bool = True, labelled: Batch | None = None
) -> Terms:
    """One optimizer step of D on ``real`` and as many generated samples, then its constraints.

    ``log_scores``: whether to return the mean scores too. ``labelled``: see ``update``.
    """
    return descend("d", *d_gradients(gan, real, log_scores, labelled), gan)


def update_both(gan: GAN, real: Callable[[], Batch], labelled: Callable[[], Batch] | None = None) -> Terms:
    """One optimizer step of each player, on gradients at the same weights and of the same latents."""
    d = d_gradients(gan, real(), True, labelled() if labelled else None)
    assert isinstance(gan.source, Generated)
    g = g_gradients(gan, real, gan.source.inputs)
    return descend("d", *d, gan) | descend("g", *g, gan)


def d_gradients(gan: GAN, real: Batch, log_scores: bool, labelled: Batch | None) -> tuple[Gradients, Terms]:
    """The gradients of D's loss; see ``gradients``."""
    terms_of = gan.compiled.get("d", d_terms)
    batches = zip(
        micro_batches(gan.accumulate, *real),
        gan.source.fakes_for(gan, real),
        micro_batches(gan.accumulate, *(labelled or (None, None))),
        strict=True,
    )
    parts = (
        terms_of(gan, Batch(*x), fake, log_scores, Batch(*own) if labelled else None)
        for x, fake, own in batches
    )
    return gradients("d", parts, gan)


def d_terms(
    gan: GAN, real: Batch, fake: Batch, log_scores: bool, labelled: Batch | None = None
) -> tuple[Terms, Terms]:
    """The terms of D's loss on a micro batch, and other values to log: its mean scores."""
    if labelled is None and "labelled" in gan.needs:
        labelled = real
    real = gan.seen(real)
    scene = Scene(gan, real, fake, *gan.verdicts(real, fake), labelled)
    scores = {"d_real": scene.d_real.score, "d_fake": scene.d_fake.score} if log_scores else {}
    return gan.terms("d", scene), {name: score.detach().mean() for name, score in scores.items()}


def update_generator(gan: GAN, real: Callable[[], Batch]) -> Terms:
    """One optimizer step of G."""
    return descend("g", *g_gradients(gan, real, gan.inputs), gan)


def g_gradients(
    gan: GAN, real: Callable[[], Batch], inputs: Callable[[int], Inputs]
) -> tuple[Gradients, Terms]:
    """The gradients of G's loss for latents and labels ``inputs(n)``; D's weights get no gradients."""
    terms_of = gan.compiled.get("g", g_terms)

    def parts() -> Iterator[tuple[Terms, Terms]]:
        reals = real() if "real_in_g" in gan.needs else (None, None)
        for real_x, real_y, z, y in micro_batches(gan.accumulate, *reals, *inputs(gan.g_batch_size)):
            yield terms_of(gan, None if real_x is None else Batch(real_x, real_y), z, y), {}

    with frozen(gan.discriminator.parameters()):
        return gradients("g", parts(), gan)


def g_terms(gan: GAN, real: Batch | None, z: Tensor, y: Tensor | None) -> Terms:
    """The terms of G's loss on a micro batch."""
    real = None if real is None else gan.seen(real)
    if real is not None and "joint_batch" in gan.needs:
        fake = gan.generate(z, y)
        return gan.terms("g", Scene(gan, real, fake, *gan.verdicts(real, fake)))
    d_real = None if real is None else gan.verdict(*real)
    fake = gan.generate(z, y, keep_dtype=True)
    return gan.terms("g", Scene(gan, real, fake, d_real, gan.verdict(*fake)))  # type: ignore[arg-type]


def gradients(player: Player, parts: Iterator[tuple[Terms, Terms]], gan: GAN) -> tuple[Gradients, Terms]:
    """Gradients of the mean over micro batches of the sum of a player's terms, and the means of all values.

    ``parts`` yields each micro batch's (terms, other values to log), so that only one is in memory at a time.
    Power iterations of D's weights run in the first only. Gradients are those of the parameters of its
    optimizer only, on this rank; the values are detached.
    """
    log: Terms = {}
    n, total = gan.accumulate, Gradients()
    parameters, flat = gan.trained(player)
    leaves = parameters if flat is None else [*parameters, flat.leaf]
    with ExitStack() as stack:
        for i, (terms, others) in enumerate(parts):
            values = list(terms.values())
            loss = values[0] if len(values) == 1 else torch.stack(values).sum()
            new = torch.autograd.grad(loss if n == 1 else loss / n, leaves, allow_unused=True)
            total = [add(a, b) for a, b in zip(total, new, strict=True)] if i else list(new)
            for name, value in (terms | others).items():
                mean = value.detach() if n == 1 else value.detach() / n
                log[name] = log[name] + mean if i else mean
            if i == 0 < n - 1:
                stack.enter_context(freeze_power_iteration(gan.discriminator))
    return total, log


def descend(player: Player, total: Gradients, log: Terms, gan: GAN) -> Terms:
    """One optimizer step of a player on its ``gradients``, means over the ranks. Returns those of ``log``."""
    parameters, flat = gan.trained(player)
    means = collectives.current().all_reduce_mean([*total, *log.values()])
    total, log = means[: len(total)], dict(zip(log, means[len(total) :], strict=True))  # type: ignore[arg-type]
    if flat is not None:
        total = flat.shared_out(parameters, total[:-1], total[-1])
    for parameter, gradient in zip(parameters, total, strict=True):
        parameter.grad = with_strides_of(gradient, parameter)
    (gan.d_optimizer if player == "d" else gan.g_optimizer).step()
    for parameter in parameters:
        parameter.grad = None
    for method in gan.methods.values():
        method.after_update(gan, player)
    if flat is not None:
        flat.moved()
    return log


def add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, None being 0."""
    return b if a is None else a if b is None else a + b


@contextmanager
def freeze_power_iteration(net: nn.Module) -> Iterator[None]:
    """Keep ``net``'s weight parametrizations in evaluation mode inside the block: no power iteration."""
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
    """Disable the gradients of ``parameters`` inside the block."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]

    def __enter__(self) -> None:
        for p in self.parameters:
            p.requires_grad_(False)

    def __exit__(self, *_: object) -> None:
        for p in self.parameters:
            p.requires_grad_(True)
