"""How an update runs must not change what it computes: recorded, replayed, compiled, in one pass or two."""

from __future__ import annotations

import copy
import functools
import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import count
from host_reads import NoHostReads
from torch import Tensor, nn

from ganlab.data.base import SampleSet
from ganlab.data.batches import Sampler
from ganlab.data.digits import Digits
from ganlab.data.fingerprint import fingerprint
from ganlab.errors import Diverged
from ganlab.experiment import Experiment
from ganlab.methods.constraints import WeightClip
from ganlab.methods.feature_norms import BatchNorm, LayerNorm
from ganlab.methods.losses import Hinge, Wasserstein
from ganlab.methods.penalties import GradientPenalty, Orthonormal, SpectralNormRegularization
from ganlab.methods.weight_norms import SpectralNorm, WeightNorm
from ganlab.models.cnn import CNN
from ganlab.models.dcgan import DCGAN
from ganlab.models.resnet import ResNet
from ganlab.training import engine, recording
from ganlab.training.batches import Feed
from ganlab.training.build import build_gan, pack_gan
from ganlab.training.engine import Compiled, Engine, Graphed
from ganlab.training.gan import GAN
from ganlab.training.loss_buffer import LossBuffer
from ganlab.training.optimizers import OptimizerState, use_fused_kernels
from ganlab.training.step import update
from ganlab.types import Batch

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
SGD = functools.partial(torch.optim.SGD, lr=0.05)  # where Adam's first steps would blow rounding up
pytestmark = pytest.mark.usefixtures("one_thread")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU"
)
NORMALIZATIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "sn": lambda: {"sn": SpectralNorm()},
    "sn, per update": lambda: {"sn": SpectralNorm(update="per_update")},
    "sn, learned gamma, gp": lambda: {"sn": SpectralNorm(gamma="learned"), "gp": GradientPenalty()},
    "gp": lambda: {"gp": GradientPenalty()},
    "wn": lambda: {"wn": WeightNorm()},
    "bn": lambda: {"bn": BatchNorm()},
    "ln": lambda: {"ln": LayerNorm()},
    "wc": lambda: {"wc": WeightClip()},
    "snr": lambda: {"snr": SpectralNormRegularization()},
    "orthonormal": lambda: {"orthonormal": Orthonormal()},
}


def images(e: Experiment, n: int = 40, classes: int = 3) -> SampleSet:
    random = torch.Generator().manual_seed(1)
    x = torch.randint(0, 256, (n, *e.shape), dtype=torch.uint8, generator=random).numpy()
    y = torch.randint(classes, (n,), generator=random).numpy()
    names = [str(i) for i in range(classes)]
    return SampleSet(x, y, names, fingerprint(x, y), "random", "train")


def start(e: Experiment) -> tuple[GAN, Feed]:
    """A fresh gan and its images."""
    samples = images(e)
    gan = build_gan(e, CPU, len(samples.classes))
    gan.labels = torch.from_numpy(samples.labels)
    return gan, Feed(Sampler(samples, CPU, e.seed), e)


def everything(gan: GAN) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in pack_gan(gan)[0].items()}


def played(made: Engine, updates: int = 7) -> tuple[dict[str, Tensor], dict[str, float]]:
    for step in range(updates):
        made.update(step)
    return everything(made.gan), made.loss_buffer.means(updates)


def small(tiny: Make, **changes: Any) -> Experiment:
    """Three layers in each network: time goes by the number of operations."""
    defaults: dict[str, Any] = {"d_steps": 2, "dequantize": True, "flip": True, "lr_decay": "linear"}
    return tiny(**{"architecture": DCGAN(width=0.03, z_dim=8)} | defaults | changes)


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_recorded_update_replays_what_runs_eagerly(name: str, tiny: Make) -> None:
    """Nothing that an update needs happens in Python alone: seeds, images and rates come from outside.

    What outlives an update stays where it is.
    """

    def fresh() -> Experiment:
        loss = Wasserstein() if "gp" in name else Hinge()
        return small(tiny, normalization=NORMALIZATIONS[name](), loss=loss, ema=0.9)

    e = fresh()
    plain = Engine(e, *start(e))
    plain.update(0)
    buffer = plain.loss_buffer
    kept = {**pack_gan(plain.gan)[0], "rows": buffer.rows, "cursor": buffer.cursor}
    places = {k: v.data_ptr() for k, v in kept.items()}
    for step in range(1, 7):
        plain.update(step)
    eager, losses = everything(plain.gan), buffer.means(7)
    e = fresh()
    recorded = Graphed(Engine(e, *start(e)))
    replayed, losses_too = played(recorded, 7)
    assert recorded.graph is not None, recorded.why
    assert [k for k in eager if not torch.equal(eager[k], replayed[k])] == []
    assert losses == losses_too
    assert recorded.used == "graph"
    plain.update(7)
    kept = {**pack_gan(plain.gan)[0], "rows": buffer.rows, "cursor": buffer.cursor}
    assert {k: v.data_ptr() for k, v in kept.items()} == places


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_no_value_is_read_on_the_host(name: str, tiny: Make) -> None:
    """On a GPU a read would wait for all work so far. Recording notices it too, of the smaller networks."""
    head = "projection" if name in ("sn", "bn") else "none"
    changes = {"architecture": ResNet(width=0.03, z_dim=4, head=head), "dataset": Digits(resolution=32)}
    e = small(tiny, normalization=NORMALIZATIONS[name](), ema=0.9, precision="bf16", batch_size=2, **changes)
    gan, feed = start(e)
    ring = LossBuffer(4, CPU)
    feed.place(0)
    ring.add(update(gan, feed))  # the slots of the optimizers, the names of the terms
    feed.place(1)
    with NoHostReads():
        ring.add(update(gan, feed))


def test_a_read_on_the_host_would_be_noticed(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    e = small(tiny)
    gan, feed = start(e)
    feed.place(0)
    for read in (lambda score: score[0].item(), lambda score: score[score > 0].sum()):
        monkeypatch.setattr(gan.loss, "discriminator", lambda real, _, read=read: read(real.score))
        with NoHostReads(), pytest.raises(AssertionError, match="reads values on the host"):
            update(gan, feed)


@pytest.mark.parametrize(
    ("architecture", "update", "most"),
    [
        (CNN(width=0.05), "per_update", 800),
        (ResNet(width=0.05), "per_update", 1200),
        (CNN(width=0.05), "per_forward", 1250),  # twice the power iterations and two passes of D
        (ResNet(width=0.05), "per_forward", 1900),
    ],
)
def test_operations_of_an_update(architecture: Any, update: Any, most: int, tiny: Make) -> None:
    """Five updates of D and one of G, images read and losses kept; the plain loop needs 3,400 and 5,000."""
    normalization = {"sn": SpectralNorm(update=update)}
    dataset = Digits(resolution=32, channels=3)
    e = tiny(dataset=dataset, architecture=architecture, normalization=normalization, d_steps=5)
    made = Engine(e, *start(e))
    made.update(0)
    assert 0.8 * most < count(lambda: made.update(1)).counts.total() < most


@pytest.mark.parametrize("name", ["none", "sn, per update", "gp", "ln"])
def test_one_pass_of_d_gives_what_two_give(name: str, tiny: Make) -> None:
    def weights(d_pass: str) -> dict[str, Tensor]:
        e = small(tiny, normalization=NORMALIZATIONS[name](), d_pass=d_pass, optimizer=SGD)
        gan = build_gan(e, CPU)
        assert gan.joint_pass is (d_pass == "auto")
        torch.manual_seed(0)
        calls = 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        gan.discriminator.register_forward_pre_hook(count)
        for _ in range(2):
            update(gan, lambda: Batch(torch.rand(8, *e.shape)))
        penalty = name == "gp"
        assert calls == 2 * (2 * ((1 if d_pass == "auto" else 2) + penalty) + 1)
        return everything(gan)

    apart, together = weights("apart"), weights("auto")
    for k in apart:
        atol = max(1e-6, 1e-5 * float(apart[k].abs().max()))
        assert torch.allclose(apart[k], together[k], rtol=1e-4, atol=atol), k


@pytest.mark.parametrize("name", ["sn", "bn", "sn, learned gamma, gp"])
def test_passes_stay_apart_where_they_matter(name: str, tiny: Make) -> None:
    assert not build_gan(small(tiny, normalization=NORMALIZATIONS[name]()), CPU).joint_pass


def test_joint_fakes_are_one_pass_of_g(tiny: Make) -> None:
    e = small(tiny, d_steps=3, joint_fakes=True)
    gan, feed = start(e)
    sizes: list[int] = []
    gan.generator.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    feed.place(0)
    update(gan, feed)
    assert sizes == [3 * e.batch_size, e.g_batch_size]
    labelled = {"architecture": ResNet(width=0.03, head="projection"), "dataset": Digits(resolution=32)}
    with pytest.raises(ValueError, match="joint_fakes: fake_labels=data"):
        small(tiny, joint_fakes=True, fake_labels="data", **labelled)


@pytest.mark.parametrize("name", ["sn, per update", "sn, learned gamma, gp"])
def test_all_layers_at_once_are_each_layer_by_itself(name: str, tiny: Make) -> None:
    def weights(at_once: bool) -> dict[str, Tensor]:
        e = small(tiny, normalization=NORMALIZATIONS[name](), d_pass="apart", optimizer=SGD)
        gan = build_gan(e, CPU)
        if not at_once:
            gan.discriminator._forward_pre_hooks.clear()
        torch.manual_seed(0)
        for _ in range(2):
            update(gan, lambda: Batch(torch.rand(8, *e.shape)))
        return everything(gan)

    one, each = weights(True), weights(False)
    assert all(torch.allclose(one[k], each[k], rtol=1e-4, atol=1e-6) for k in one)


def test_a_fused_optimiser_walks_memory_as_its_parameter_lies() -> None:
    """Moments and gradients of another layout would be mixed up silently: all are brought to the weight's."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    plain = nn.Parameter(weight.detach().clone(memory_format=torch.contiguous_format))
    fast, slow = use_fused_kernels(torch.optim.Adam([weight], lr=0.1), CPU), torch.optim.Adam([plain], lr=0.1)
    assert fast.param_groups[0]["fused"]
    for turn in range(4):
        gradient = torch.randn(4, 3, 2, 2)
        weight.grad, plain.grad = torch.empty_like(weight).copy_(gradient), gradient
        fast.step()
        slow.step()
        if turn == 1:  # a checkpoint holds plain, contiguous tensors
            state = copy.deepcopy(OptimizerState(fast).state_dict())
            state["state"] = {
                i: {k: v.contiguous() for k, v in slots.items()} for i, slots in state["state"].items()
            }
            OptimizerState(fast).load_state_dict(state)
    assert torch.allclose(weight, plain, atol=1e-6)


def test_how_a_step_is_computed_is_not_taken_from_a_checkpoint() -> None:
    weight = nn.Parameter(torch.zeros(2))
    old = torch.optim.Adam([weight], lr=0.5)
    old.param_groups[0]["initial_lr"] = 0.5
    new = use_fused_kernels(torch.optim.Adam([weight], lr=0.1), CPU)
    OptimizerState(new).load_state_dict(old.state_dict())
    group = new.param_groups[0]
    assert (group["fused"], group["lr"]) == (True, 0.1)
    assert use_fused_kernels(torch.optim.RMSprop([weight]), CPU).param_groups[0]["foreach"]
    assert use_fused_kernels(torch.optim.Adam([weight], foreach=False), CPU).param_groups[0]["fused"] is None
    assert not engine.is_graph_safe(torch.optim.Adadelta([weight], lr=1.0)), "its rate is a number"


def test_the_ring_keeps_every_update_and_names_the_first_bad_one() -> None:
    ring = LossBuffer(3, CPU, start=10)
    for value in range(5):  # more than fit at once
        ring.add({"a": torch.tensor(float(value)), "b": torch.tensor(1.0, dtype=torch.double)})
        ring.added()
    kept = ring.state_dict()
    assert kept == {"start": 10, "names": ["a", "b"], "rows": [[float(v), 1.0] for v in range(5)]}
    other = LossBuffer(3, CPU)
    other.load_state_dict(kept)
    for r in (ring, other):
        r.add({"b": torch.tensor(1.0), "a": torch.tensor(5.0)})
        r.added()
        assert r.means(16) == {"a": 2.5, "b": 1.0}
        assert r.means(16) == {}, "it starts anew"
    ring.add({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    ring.added()
    ring.add({"a": torch.tensor(1.0), "b": torch.tensor(math.inf)})
    ring.added()
    with pytest.raises(Diverged, match="loss b: not finite at step 18"):
        ring.means(18)
    old = LossBuffer(3, CPU)
    old.load_state_dict({"start": 2, "count": 4, "sums": {"a": 8.0}})
    assert old.means(6) == {"a": 2.0}, "a checkpoint of the time of sums"


@pytest.mark.parametrize(
    ("choice", "why"), [("auto", ""), ("eager", ""), ("graph", "Adadelta can't be recorded")]
)
def test_what_cannot_be_recorded_runs_eagerly_and_says_so(choice: str, why: str, tiny: Make) -> None:
    e = small(tiny, engine=choice, optimizer=torch.optim.Adadelta)
    made = engine.make(e, *start(e))
    assert (made.used, made.why, type(made)) == ("eager", why, Engine)
    assert made.summary["asked"] == choice


def test_a_failed_recording_goes_on_eagerly(tiny: Make) -> None:
    class Refused(Graphed):
        def _capture(self, work: Callable[[], None]) -> Any:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    e = small(tiny)
    eager, losses = played(Engine(e, *start(e)), 5)
    e = small(tiny)
    made = Refused(Engine(e, *start(e)))
    made.cuda = True
    weights, losses_too = played(made, 5)
    assert all(torch.equal(eager[k], weights[k]) for k in eager)
    assert losses == losses_too
    assert made.used == "eager"
    assert "operation not permitted" in made.why
    assert "more" not in made.why


@pytest.mark.parametrize(
    ("weight", "why"),
    [
        (lambda _, turn: float(next(turn)), "something in it changes on the host"),
        (lambda score, _: score.mean().item(), "_local_scalar_dense reads values on the host"),
        (lambda score, _: torch.ones(1 << 27).mean(), "its results need too much memory"),
    ],
)
def test_on_a_cpu_a_recording_that_would_differ_is_dropped(
    weight: Callable[..., Any], why: str, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recording, "LIMIT", 1 << 22)

    def run(how: type[Engine]) -> tuple[dict[str, Tensor], Engine]:
        e, turn = small(tiny, engine="graph"), itertools.count(1)
        made = how(e, *start(e)) if how is Engine else Graphed(Engine(e, *start(e)))
        monkeypatch.setattr(
            made.gan.loss, "generator", lambda _, fake: fake.score.mean() * weight(fake.score, turn)
        )
        return played(made)[0], made

    (eager, _), (weights, made) = run(Engine), run(Graphed)
    assert all(torch.equal(eager[k], weights[k]) for k in eager)
    assert (made.used, made.why) == ("eager", f"an update can't be recorded: {why}")


def test_a_failed_compilation_goes_on_eagerly(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Any, **_: Any) -> Any:
        def call(gan: GAN, *rest: Any) -> Any:
            terms = function(gan, *rest)  # moves the spectral norms, then fails
            if len(rest) == 3 and isinstance(rest[1], Tensor):
                raise RuntimeError("no C++ compiler\nmore")
            return terms

        return call

    e = small(tiny)
    eager, _ = played(Engine(e, *start(e)), 2)
    monkeypatch.setattr(torch, "compile", broken)
    e = small(tiny)
    made = Compiled(e, *start(e))
    weights, _ = played(made, 2)
    assert all(torch.equal(eager[k], weights[k]) for k in eager)
    assert made.used == "eager"
    assert made.why == "torch.compile failed: RuntimeError: no C++ compiler"


def test_result_and_log_tell_the_engine(tiny: Make, tmp_path: Path) -> None:
    import json

    from ganlab.training import trainer

    e = tiny(engine="graph", steps=1, eval_every=0, optimizer=torch.optim.Adadelta)
    trainer.train(e, {}, {}, [])
    record = json.loads((tmp_path / "run" / "result.json").read_text())["engine"]
    assert record["used"] == "eager"
    assert "Adadelta" in record["why"]
    assert "engine eager: Adadelta can't be recorded" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("backend", "name"),
    [
        pytest.param("aot_eager", "sn", marks=pytest.mark.slow),
        ("aot_eager", "gp"),
        pytest.param("inductor", "sn", marks=[pytest.mark.slow, needs_compiler]),
        pytest.param("inductor", "gp", marks=[pytest.mark.slow, needs_compiler]),
    ],
)
def test_compiled_updates_are_the_same_to_rounding(
    backend: str, name: str, tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``aot_eager``: traced and differentiated as for inductor, but without a C++ compiler."""
    sgd = functools.partial(torch.optim.SGD, lr=0.1)  # Adam moves a weight whose gradient is all rounding
    e = small(tiny, normalization=NORMALIZATIONS[name](), optimizer=sgd)
    eager, losses = played(Engine(e, *start(e)), 3)
    if backend != "inductor":
        compiler = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, **_: compiler(f, backend=backend, dynamic=False))
    e = small(tiny, normalization=NORMALIZATIONS[name](), optimizer=sgd, engine="compile")
    made = engine.make(e, *start(e))
    weights, losses_too = played(made, 3)
    assert (made.used, made.why) == ("compile", "")
    assert losses == pytest.approx(losses_too, rel=1e-4, abs=1e-5)
    for k in eager:
        if eager[k].is_floating_point():
            assert torch.allclose(eager[k], weights[k], 1e-4, 1e-6), k


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_a_cuda_graph_replays_what_runs_eagerly(name: str, tiny: Make) -> None:
    cuda = torch.device("cuda:0")

    def on_gpu(how: str) -> Engine:
        e = small(tiny, normalization=NORMALIZATIONS[name](), engine=how, ema=0.9, device="cuda:0")
        torch.use_deterministic_algorithms(True)
        samples = images(e)
        gan = build_gan(e, cuda, len(samples.classes))
        return engine.make(e, gan, Feed(Sampler(samples, cuda, e.seed), e))

    try:
        eager, losses = played(on_gpu("eager"))
        graphed = on_gpu("graph")
        weights, losses_too = played(graphed)
        torch.cuda.synchronize()
    finally:
        torch.use_deterministic_algorithms(False)
    assert (graphed.used, graphed.why) == ("graph", "")
    assert all(torch.equal(eager[k], weights[k]) for k in eager)
    assert losses == losses_too
