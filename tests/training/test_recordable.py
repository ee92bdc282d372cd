"""What a GPU or a compiler would stumble over, found without one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from ganlab.experiment import Experiment
from ganlab.extractors.base import exact_fp32
from ganlab.methods.weight_norms import SpectralNorm
from ganlab.system import hardware
from ganlab.training import engine
from ganlab.training.build import build_gan
from ganlab.training.optimizers import OptimizerState, use_fused_kernels
from ganlab.training.step import d_terms, g_terms, update, update_discriminator
from ganlab.types import Batch

Make = Callable[..., Experiment]
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_an_update_writes_lies_on_the_device(tiny: Make) -> None:
    """A count on the host would stand still while a recorded update is replayed."""
    meta = torch.device("meta")
    gan = build_gan(tiny(ema=0.9), meta)
    assert gan.ema is not None
    nets = (gan.generator, gan.discriminator, gan.ema)
    tensors = {n: t for net in nets for n, t in (*net.named_parameters(), *net.named_buffers())}
    assert "n_averaged" in tensors
    assert [name for name, t in tensors.items() if t.device != meta] == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["per_forward", "per_update"])
def test_the_losses_of_d_and_of_g_are_a_graph_each_for_a_compiler(how: Any, tiny: Make) -> None:
    """It neither stops halfway nor begins anew when weights have moved. Traced only: no C++ compiler."""
    torch._dynamo.reset()
    counters.clear()
    gan = build_gan(tiny(normalization={"sn": SpectralNorm(update=how)}), CPU)
    for name, terms in (("d", d_terms), ("g", g_terms)):
        gan.compiled[name] = torch.compile(engine._copy_function(terms), backend="eager", dynamic=False)
    x = torch.rand(8, 1, 16, 16)
    for _ in range(3):
        update(gan, lambda: Batch(x))
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_spectral_norms_are_of_weights_that_a_fused_optimiser_has_moved(tiny: Make) -> None:
    """Its steps leave no trace in the weights' versions."""
    gan = build_gan(tiny(normalization={"sn": SpectralNorm(update="per_update")}), CPU)
    gan.d_optimizer.param_groups[0]["lr"] = 0.02
    assert gan.d_optimizer.param_groups[0]["fused"]
    x = torch.rand(8, 1, 16, 16)
    for _ in range(3):
        update_discriminator(gan, Batch(x))
    at_once = gan.discriminator(x).score
    gan.discriminator._forward_pre_hooks.clear()
    assert torch.allclose(at_once, gan.discriminator(x).score, rtol=1e-4, atol=1e-7)


def test_step_counts_of_another_form_of_the_optimiser_come_as_fused_kernels_want_them() -> None:
    weight = nn.Parameter(torch.ones(2))
    old, new = torch.optim.Adam([weight]), use_fused_kernels(torch.optim.Adam([weight]), CPU)
    weight.grad = torch.ones(2)
    old.step()
    state = old.state_dict()
    state["state"][0]["step"] = state["state"][0]["step"].double()
    state["param_groups"][0]["initial_lr"] = 0.001
    OptimizerState(new).load_state_dict(state)
    assert new.state[weight]["step"].dtype == torch.float32
    new.step()
    assert float(new.state[weight]["step"]) == 2


def test_slots_that_are_there_already_are_not_fused_over() -> None:
    group = use_fused_kernels(torch.optim.Adagrad([nn.Parameter(torch.ones(2))]), CPU).param_groups[0]
    assert (group["fused"], group["foreach"]) == (None, True)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("one\ntwo")])
def test_any_error_of_a_compiler_is_one_line(error: Exception) -> None:
    assert engine._first_line(error) in ("AssertionError", "RuntimeError: one")


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "auto"])
def test_tf32_is_for_convolutions_alone_and_said_in_the_words_that_a_compiler_reads(precision: str) -> None:
    """Of the norms', penalties' and losses' products none is in TF32; torch's two ways to say so agree."""
    b = torch.backends
    for inside in (contextlib.nullcontext, exact_fp32):
        hardware.set_precision(precision, CPU, True)
        with inside():
            convolutions = precision != "fp32" and inside is contextlib.nullcontext
            assert (b.cuda.matmul.allow_tf32, b.cudnn.allow_tf32) == (False, convolutions)
            assert torch.get_float32_matmul_precision() == "highest"
            if hasattr(b.cudnn, "conv"):  # torch 2.9 on
                assert (b.cudnn.conv.fp32_precision == "tf32") == convolutions
        assert b.cudnn.allow_tf32 == (precision != "fp32")
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("precision", "device", "flags", "warned"),
    [
        ("bf16", "cpu", "fpu avx512f", True),
        ("bf16", "cpu", "fpu avx512f avx512_bf16", False),
        ("auto", "cpu", "fpu avx512f", False),
        ("bf16", "cuda", "fpu avx512f", False),
        ("bf16", "cpu", None, False),  # not Linux: nobody knows
    ],
)
def test_bf16_that_a_cpu_emulates_is_warned_of(
    precision: str, device: str, flags: str | None, warned: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(hardware, "CPU", tmp_path / "cpuinfo")
    if flags is not None:
        hardware.CPU.write_text(f"model name : x\nflags : {flags}\n")
    text = hardware.slow_bf16(precision, torch.device(device))
    assert ("precision=bf16 is several times slower" in text) == warned
    assert bool(text) == warned
