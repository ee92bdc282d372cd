"""Run updates eagerly, through torch.compile, recorded once and replayed, or both.

The update itself is always ``step.update``. With batches of 64 a GPU finishes an operation in a few
microseconds, and the host needs about as long to launch the next; a CUDA graph launches all operations of an
update at once. On a CPU small networks spend most of their time between the kernels too (``recording.py``).
The first updates run eagerly and count as training; then one is recorded, and replayed from then on. Before
each update the host seeds the generator by (seed, step), writes the real images into their buffer and, where
it changes, the learning rate.
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
from ganlab.training.build import pack_gan, reset_optimizers, unpack_gan
from ganlab.training.gan import GAN
from ganlab.training.loss_buffer import LossBuffer
from ganlab.training.optimizers import is_graph_safe
from ganlab.training.recording import Recording
from ganlab.training.step import d_terms, g_terms, update

WARM = {"cuda": 3, "cpu": 1}  # eager updates before recording, in which libraries choose their kernels
MAX_BUFFERED = 1000  # updates between two reads of the losses
CACHE_CHOSEN = "TORCHINDUCTOR_CACHE_DIR" in os.environ  # by the user: the cache of compiled code
if not CACHE_CHOSEN:  # torch's default is a predictable folder in /tmp, where others could plant code
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = library_cache("compiled")
CHECK_EVERY = 100  # updates between reads of the losses if nothing is logged


class Engine:
    """Runs updates. ``used``: eager, compile, graph or compile+graph; ``why``: the reason for a fallback.

    On a GPU updates run on a separate stream, so that several runs of a process overlap: call ``settle``
    before reading the GAN's tensors.
    """

    used = "eager"

    def __init__(self, e: Experiment, gan: GAN, feed: Feed, why: str = "") -> None:
        self.e, self.gan, self.feed, self.why = e, gan, feed, why
        self.loss_buffer = LossBuffer(min(e.log_every or CHECK_EVERY, MAX_BUFFERED), gan.device)
        self.cuda = gan.device.type == "cuda"
        self.stream = torch.cuda.Stream(gan.device) if self.cuda else None
        self.settled = True
        self.factors: dict[str, float] = {}

    def update(self, step: int) -> None:
        """Update number ``step``, counted from 0; buffers its losses. Raises Diverged when they are read."""
        with self._on_stream():
            self._prepare(step)
            self._run_update(step)
        if self.loss_buffer.count + 1 == self.loss_buffer.size:
            self.settle()  # a full buffer is read
        self.loss_buffer.added()

    @property
    def summary(self) -> dict[str, Any]:
        """The engine's entry in ``result.json``."""
        gan, tf32 = self.gan, self.cuda and self.e.precision != "fp32"
        return {
            "asked": self.e.engine,
            "used": self.used,
            "why": self.why,
            "precision": "bf16" if gan.bf16 else "tf32" if tf32 else "fp32",
            "d_pass": "together" if gan.joint_pass else "apart",
            "joint_fakes": self.e.joint_fakes,
            "fold": self.e.fold,
        }

    @property
    def is_warm(self) -> bool:
        """Whether updates run as they will from now on: recorded or compiled, if that is possible."""
        return True

    def settle(self) -> None:
        """Make the caller's stream wait for all updates so far."""
        if self.stream is not None and not self.settled:
            torch.cuda.current_stream(self.gan.device).wait_stream(self.stream)
            self.settled = True

    def _on_stream(self) -> AbstractContextManager[Any]:
        if self.stream is None:
            return nullcontext()
        if self.settled:  # the caller's stream may have changed the GAN since
            self.stream.wait_stream(torch.cuda.current_stream(self.gan.device))
            self.settled = False
        return torch.cuda.stream(self.stream)

    def _prepare(self, step: int) -> None:
        rng.seed_default(self.gan.device, self.e.seed, "train", 0, step)
        if self.e.timetable.boundary(step):
            self.begin_phase()
        self.gan.begin(self.feed.place(step))
        for key, schedule in self.e.schedules.items():
            if (factor := schedule(step)) != self.factors.get(key):
                self.gan.schedule(key, factor)
                self.factors[key] = factor

    def begin_phase(self) -> None:
        """Start the optimizers anew."""
        reset_optimizers(self.e, self.gan)

    def _run_update(self, step: int) -> None:
        self.loss_buffer.add(update(self.gan, self.feed, self.feed.labelled))


class Compiled(Engine):
    """D's and G's losses, with their backward passes, through torch.compile; falls back to eager updates.

    Compiled code is cached in ganlab's cache folder, so only the first run of a sweep compiles.
    """

    used = "compile"

    def __init__(self, e: Experiment, gan: GAN, feed: Feed, why: str = "") -> None:
        super().__init__(e, gan, feed, why)
        if not CACHE_CHOSEN:  # torch sets it to a folder in /tmp on first use
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = library_cache("compiled")
        self.compiled_once = False
        options: dict[str, Any] = {
            "dynamic": False,
            "options": {"fallback_random": True},
        }  # the random numbers of eager mode
        gan.compiled = {
            "d": torch.compile(_copy_function(d_terms), **options),
            "g": torch.compile(_copy_function(g_terms), **options),
        }

    @property
    def is_warm(self) -> bool:
        return self.compiled_once or not self.gan.compiled

    def _run_update(self, step: int) -> None:
        if self.compiled_once or not self.gan.compiled:
            super()._run_update(step)
            return
        before, rest = pack_gan(self.gan)
        before = {name: value.clone() for name, value in before.items()}
        why = _failure(lambda: super(Compiled, self)._run_update(step))
        if not why:
            self.compiled_once = True
            return
        self.used, self.why = "eager", f"torch.compile failed: {why}"
        self.gan.compiled = {}
        unpack_gan(self.gan, before, rest, "the state before compiling")
        self._prepare(step)
        super()._run_update(step)


class Graphed(Engine):
    """Updates recorded once and replayed.

    ``inner`` runs the first ones, those that warm D up, and all of them if recording fails.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner.e, inner.gan, inner.feed, inner.why)
        self.inner, self.loss_buffer, self.stream = inner, inner.loss_buffer, inner.stream
        self.used = "compile+graph" if inner.used == "compile" else "graph"
        self.graph: Any = None
        self.recording: Recording | None = None  # on a CPU: what may become the graph
        self.sizes: tuple[int, int] | None = None  # batch sizes of the updates that are recorded
        self.warmed = 0
        # its own state: replays of several runs on several streams must not share one
        self.random = rng.default_of(self.gan.device).clone_state() if self.cuda else None

    @property
    def is_warm(self) -> bool:
        return self.graph is not None or self.used == self.inner.used

    def update(self, step: int) -> None:
        with self._own_generator():
            super().update(step)

    def begin_phase(self) -> None:
        super().begin_phase()
        self.sizes = None

    def _run_update(self, step: int) -> None:
        if self.gan.d_steps != self.e.d_steps:  # warm-ups of D are not recorded
            self.inner._run_update(step)
            return
        if self.sizes != (sizes := (self.gan.d_batch_size, self.gan.g_batch_size)):
            self.sizes, self.graph, self.recording, self.warmed = sizes, None, None, 0
        if self.graph is not None:
            self.graph.replay()
        elif self.used != self.inner.used:
            self._warm_or_record(step)
        else:
            self.inner._run_update(step)

    def _warm_or_record(self, step: int) -> None:
        if self.warmed < WARM[self.gan.device.type]:
            self.warmed += 1
            self.inner._run_update(step)
            if self.inner.why != self.why:  # compilation failed
                self.used, self.why = "graph", self.inner.why
            return
        if not self.cuda:
            self._record_on_cpu(step)
            return
        why = _failure(self._record)
        if not why:
            self.graph.replay()
            return
        self.used, self.why = self.inner.used, f"an update can't be recorded: {why}"
        if self.random is not None:  # an aborted capture leaves its state unusable
            self.random = self.random.clone_state()
            rng.default_of(self.gan.device).graphsafe_set_state(self.random)
        self._prepare(step)
        self.inner._run_update(step)

    def _record_on_cpu(self, step: int) -> None:
        """Record this update, which computes it; the next one runs eagerly and as a replay, to compare."""
        if self.recording is None:
            self.recording = Recording(lambda: self.inner._run_update(step))
            why = self.recording.obstacle
        else:
            state = [*pack_gan(self.gan)[0].values(), self.loss_buffer.rows, self.loss_buffer.cursor]
            before = [t.clone() for t in state]
            self.inner._run_update(step)
            eager = [t.clone() for t in state]
            torch._foreach_copy_(state, before)
            self._prepare(step)
            self.recording.replay()
            why = "" if all(map(torch.equal, state, eager)) else "something in it changes on the host"
            if why:
                torch._foreach_copy_(state, eager)
            else:
                self.graph = self.recording
        if why:
            self.used, self.recording = self.inner.used, None
            self.why = f"an update can't be recorded: {why}" if self.e.engine == "graph" else ""

    def _record(self) -> None:
        self.graph = self._capture(lambda: self.inner._run_update(0))

    def _capture(self, work: Callable[[], None]) -> Any:
        """Capture ``work`` as a graph to ``replay``, without computing it. Raises the errors of ``work``."""
        graph = torch.cuda.CUDAGraph()
        cause: BaseException | None = None
        try:
            # thread_local: ignore the thread that writes TensorBoard files
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                try:
                    work()
                except BaseException as error:
                    cause = error
                    raise
        except RuntimeError as error:  # this error only states that the capture was aborted
            raise (cause or error) from None
        return graph

    @contextmanager
    def _own_generator(self) -> Iterator[None]:
        """Use this run's state in the device's default generator inside the block."""
        if self.random is None:
            yield
            return
        default = rng.default_of(self.gan.device)
        previous = default.graphsafe_get_state()
        default.graphsafe_set_state(self.random)
        try:
            yield
        finally:
            default.graphsafe_set_state(previous)


def make(e: Experiment, gan: GAN, feed: Feed) -> Engine:
    """Build the engine that the config requests, or the nearest possible, with the reason in ``why``."""
    if collectives.current().size > 1:
        requested = e.engine in ("graph", "compile") or (e.engine == "auto" and gan.device.type == "cuda")
        return Engine(e, gan, feed, "updates of several ranks are not recorded" if requested else "")
    obstacle, cuda = cannot_record(gan), gan.device.type == "cuda"
    if e.engine == "compile":
        inner: Engine = Compiled(e, gan, feed)
        return inner if obstacle or not cuda else Graphed(inner)
    why = obstacle if e.engine == "graph" or (e.engine == "auto" and cuda) else ""
    plain = Engine(e, gan, feed, why)
    return plain if obstacle or e.engine == "eager" else Graphed(plain)


def cannot_record(gan: GAN) -> str:
    """The reason why updates of this GAN can't be recorded; "" if nothing is known to prevent it."""
    if not all(map(is_graph_safe, (gan.g_optimizer, gan.d_optimizer))):
        return f"{type(gan.d_optimizer).__name__} can't be recorded"
    for name, method in gan.methods.items():
        if not method.graph_safe:
            return f"{gan.keys[name]} reads values on the host"
    for module in (*gan.generator.modules(), *gan.discriminator.modules(), gan.loss):
        if not getattr(module, "graph_safe", True):
            return f"{type(module).__name__} changes or reads values on the host"
    return ""


def _copy_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy with its own code object: the compiler limits recompilations per code object."""
    code: types.CodeType = function.__code__
    return types.FunctionType(code.replace(), function.__globals__, function.__name__)


def _failure(work: Callable[[], object]) -> str:
    """Run ``work`` and return "" or its error as one line, after freeing the device memory it held."""
    try:
        work()
        return ""
    except Exception as error:  # compilers and captures raise many types
        why = _first_line(error)
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    return why


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    lines = [" ".join(lines[: 2 if lines[0].endswith("raised:") else 1])] if lines else []
    return ": ".join([type(error).__name__, *lines])
