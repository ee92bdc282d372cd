"""How an update runs: eagerly, through torch.compile, recorded once as a CUDA graph and replayed, or both.

The update is the same everywhere (``step.update``). With batches of 64 a GPU is done with an operation in a
few microseconds, and the host needs about as long to launch the next; a graph launches all operations of an
update at once. The first updates run eagerly and are training like all others; then one is recorded, which
computes nothing, and from there on it is replayed. Before each the host seeds the generator by (seed, step),
writes the indices of the real images and, where it changes, the learning rate.
"""

from __future__ import annotations

import gc
import os
import types
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ganlab import rng
from ganlab.distributed import collectives
from ganlab.experiment import Experiment
from ganlab.system.paths import library_cache
from ganlab.training.batches import Feed
from ganlab.training.build import pack_game, unpack_game
from ganlab.training.gan import GAN
from ganlab.training.loss_buffer import LossBuffer
from ganlab.training.optimizers import capturable
from ganlab.training.step import d_terms, g_terms, set_rates, update

WARM = 3  # eager updates before one is recorded: libraries choose their kernels in these
RING = 1000  # most updates between two looks at the losses
CHOSEN = "TORCHINDUCTOR_CACHE_DIR" in os.environ  # by the user, where compiled code is kept
if not CHOSEN:  # torch's own choice is a known name in /tmp, where others may put code first
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = library_cache("compiled")
CHECK_EVERY = 100  # updates between looks where nothing is logged


class Engine:
    """Plays updates of a game. ``used``: eager, compile, graph or compile+graph; ``why``: not what was asked.

    On a GPU everything happens on a stream of its own, so that several runs of a process work side by side:
    whoever reads the game's tensors calls ``settle`` first.
    """

    used = "eager"

    def __init__(self, e: Experiment, game: GAN, feed: Feed, why: str = "") -> None:
        self.e, self.game, self.feed, self.why = e, game, feed, why
        self.ring = LossBuffer(min(e.log_every or CHECK_EVERY, RING), game.device)
        self.cuda = game.device.type == "cuda"
        self.stream = torch.cuda.Stream(game.device) if self.cuda else None
        self.settled = True
        self.factor: float | None = None

    def update(self, step: int) -> None:
        """Update number ``step``, counted from 0; its losses go into the ring. Raises Diverged at a look."""
        with self._on_stream():
            self._prepare(step)
            self._play(step)
        if self.ring.count + 1 == self.ring.size:
            self.settle()  # a full ring is read
        self.ring.added()

    @property
    def told(self) -> dict[str, Any]:
        """How updates run, for ``result.json``."""
        game, tf32 = self.game, self.cuda and self.e.precision != "fp32"
        return {
            "asked": self.e.engine,
            "used": self.used,
            "why": self.why,
            "precision": "bf16" if game.bf16 else "tf32" if tf32 else "fp32",
            "d_pass": "together" if game.together else "apart",
            "joint_fakes": game.joint_fakes,
            "fold": self.e.fold,
        }

    def settle(self) -> None:
        """What comes after this on the caller's stream sees all updates so far."""
        if self.stream is not None and not self.settled:
            torch.cuda.current_stream(self.game.device).wait_stream(self.stream)
            self.settled = True

    def _on_stream(self) -> AbstractContextManager[Any]:
        if self.stream is None:
            return nullcontext()
        if self.settled:  # something else may have happened to the game since
            self.stream.wait_stream(torch.cuda.current_stream(self.game.device))
            self.settled = False
        return torch.cuda.stream(self.stream)

    def _prepare(self, step: int) -> None:
        rng.seed_default(self.game.device, self.e.seed, "train", 0, step)
        self.feed.place(step)
        self.game.d_steps = self.e.d_steps_of(step)
        factor = self.e.lr_factor(step)
        if factor != self.factor:
            set_rates(self.game, factor)
            self.factor = factor

    def _play(self, step: int) -> None:
        self.ring.add(update(self.game, self.feed))


class Compiled(Engine):
    """D's and G's losses through torch.compile, backward included; what cannot be compiled runs eagerly.

    The compiled code is cached under ganlab's cache folder, so that only the first run of a sweep pays.
    """

    used = "compile"

    def __init__(self, e: Experiment, game: GAN, feed: Feed, why: str = "") -> None:
        super().__init__(e, game, feed, why)
        if not CHOSEN:  # torch sets it to a folder under /tmp as soon as it is asked
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = library_cache("compiled")
        self.proven = False
        how: dict[str, Any] = {
            "dynamic": False,
            "options": {"fallback_random": True},
        }  # eager's random numbers
        game.compiled = {
            "d": torch.compile(_own(d_terms), **how),
            "g": torch.compile(_own(g_terms), **how),
        }

    def _play(self, step: int) -> None:
        if self.proven or not self.game.compiled:
            super()._play(step)
            return
        before, rest = pack_game(self.game)
        before = {name: value.clone() for name, value in before.items()}
        why = _failure(lambda: super(Compiled, self)._play(step))
        if not why:
            self.proven = True
            return
        self.used, self.why = "eager", f"torch.compile failed: {why}"
        self.game.compiled = {}
        unpack_game(self.game, before, rest, "the state before compiling")
        self._prepare(step)
        super()._play(step)


class Graphed(Engine):
    """Updates recorded once and replayed.

    ``inner`` plays the first ones, those that warm D up, and all if recording fails.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.e, inner.game, inner.feed, inner.why)
        self.inner, self.ring, self.stream = inner, inner.ring, inner.stream
        self.used = "compile+graph" if inner.used == "compile" else "graph"
        self.graph: Any = None
        self.warmed = 0
        # a state of its own: replays of several runs on several streams must not share one
        self.random = rng.default_of(self.game.device).clone_state() if self.cuda else None

    def update(self, step: int) -> None:
        with self._own_generator():
            super().update(step)

    def _play(self, step: int) -> None:
        if self.game.d_steps != self.e.d_steps:  # a warm-up of D is not what is recorded
            self.inner._play(step)
        elif self.graph is not None:
            self.graph.replay()
        elif self.used != self.inner.used:
            self._warm_or_record(step)
        else:
            self.inner._play(step)

    def _warm_or_record(self, step: int) -> None:
        if self.warmed < WARM:
            self.warmed += 1
            self.inner._play(step)
            if self.inner.why != self.why:  # it could not be compiled
                self.used, self.why = "graph", self.inner.why
            return
        why = _failure(self._record)
        if not why:
            self.graph.replay()
            return
        self.used, self.why = self.inner.used, f"an update can't be recorded: {why}"
        if self.random is not None:  # a capture that was cut off leaves its state unusable
            self.random = self.random.clone_state()
            rng.default_of(self.game.device).graphsafe_set_state(self.random)
        self._prepare(step)
        self.inner._play(step)

    def _record(self) -> None:
        self.graph = self._recorded(lambda: self.ring.add(update(self.game, self.feed)))

    def _recorded(self, work: Callable[[], None]) -> Any:
        """``work`` as something to ``replay``; recording it computes nothing. Raises what ``work`` raises."""
        graph = torch.cuda.CUDAGraph()
        cause: BaseException | None = None
        try:
            # thread_local: a thread that writes TensorBoard's files is none of the graph's business
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                try:
                    work()
                except BaseException as error:
                    cause = error
                    raise
        except RuntimeError as error:  # the end of a capture that was cut off says only that it was
            raise (cause or error) from None
        return graph

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Inside, the device's default generator is in this run's state."""
        if self.random is None:
            yield
            return
        default = rng.default_of(self.game.device)
        before = default.graphsafe_get_state()
        default.graphsafe_set_state(self.random)
        try:
            yield
        finally:
            default.graphsafe_set_state(before)


def make(e: Experiment, game: GAN, feed: Feed) -> Engine:
    """The engine that the config asks for, or what comes nearest, with the reason in ``why``."""
    if collectives.current().size > 1:
        asked = e.engine in ("graph", "compile") or (e.engine == "auto" and game.device.type == "cuda")
        return Engine(e, game, feed, "updates of many ranks are not recorded" if asked else "")
    obstacle = cannot_record(game, feed)
    if e.engine == "compile":
        inner: Engine = Compiled(e, game, feed)
        return inner if obstacle else Graphed(inner)
    why = obstacle if e.engine == "graph" or (e.engine == "auto" and game.device.type == "cuda") else ""
    plain = Engine(e, game, feed, why)
    return plain if obstacle or e.engine == "eager" else Graphed(plain)


def cannot_record(game: GAN, feed: Feed) -> str:
    """Why updates of this game can't be recorded as a CUDA graph; "" if they can."""
    if game.device.type != "cuda":
        return "only a CUDA device records graphs"
    if not feed.capturable:
        return feed.batches.obstacle
    if not all(map(capturable, (game.g_optimizer, game.d_optimizer))):
        return f"{type(game.d_optimizer).__name__} can't be recorded"
    for name, stabiliser in game.stabilisers.items():
        if not stabiliser.graph_safe:
            return f"normalization.{name} reads values on the host"
    for module in (*game.generator.modules(), *game.discriminator.modules(), game.loss):
        if not getattr(module, "graph_safe", True):
            return f"{type(module).__name__} changes or reads values on the host"
    return ""


def _own(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with code of its own: a compiler allows each code a few versions, a run needs one."""
    code: types.CodeType = function.__code__
    return types.FunctionType(code.replace(), function.__globals__, function.__name__)


def _failure(work: Callable[[], object]) -> str:
    """Run ``work``; "" or, in a line, why it failed. By then what it held of the device's memory is free."""
    try:
        work()
        return ""
    except Exception as error:  # of any of a compiler's or a capture's many kinds
        why = _first_line(error)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return why


def _first_line(error: Exception) -> str:
    said = str(error).strip().splitlines()
    said = [" ".join(said[: 2 if said[0].endswith("raised:") else 1])] if said else []
    return ": ".join([type(error).__name__, *said])
