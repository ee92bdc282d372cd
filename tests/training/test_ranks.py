"""Many ranks: shares of a batch, errors that travel, the norm, torchrun itself. More in faults/ranks.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.base import ROOT, environment, nothing_lost, tiny
from torch import nn

from ganlab.cli.main import main
from ganlab.distributed import collectives
from ganlab.distributed.collectives import deserialize_error, serialize_error
from ganlab.distributed.session import joined
from ganlab.distributed.sync_batch_norm import SyncBatchNorm, running_averages, synchronize
from ganlab.errors import ConfigError, Diverged, EnvError, Stopped
from ganlab.experiment import Experiment
from ganlab.system.hardware import find_device
from ganlab.training import prepare


def one_of(rank: int, size: int) -> collectives.Ranks:
    """A rank that has met nobody: it knows its share."""
    return collectives.Ranks(rank, size, rank)


@pytest.mark.parametrize(("size", "parts"), [(2, 1), (3, 2), (2, 4)])
def test_the_ranks_shares_of_each_micro_batch_make_it_up(size: int, parts: int) -> None:
    rows = torch.arange(24).view(24, 1)
    shares = [one_of(i, size).shard(rows, parts) for i in range(size)]
    for part, whole in enumerate(rows.chunk(parts)):
        assert torch.equal(torch.cat([s.chunk(parts)[part] for s in shares]), whole)


def test_ranks_draw_what_one_process_draws() -> None:
    def drawn(team: collectives.Ranks, rows: int) -> torch.Tensor:
        torch.manual_seed(3)
        return team.rand_shard(rows, 2, 1)

    whole = drawn(collectives.Ranks(), 12)
    assert torch.equal(whole, torch.cat([drawn(one_of(i, 3), 4) for i in range(3)]))


@pytest.mark.parametrize(
    "error", [ConfigError("a", "b", "c"), Diverged("loss d", "is NaN"), Stopped(15, "x"), EnvError("d", "e")]
)
def test_an_error_of_one_rank_is_that_of_all_and_silent(error: Any) -> None:
    again: Any = deserialize_error(serialize_error(error, 1))
    assert type(again) is type(error)
    assert (again.code, again.mistakes, again.silent) == (error.code, error.mistakes, True)
    assert not error.silent
    bug: Any = deserialize_error(serialize_error(ValueError("odd"), 3))
    assert (bug.code, "rank 3" in str(bug)) == (1, True)
    assert isinstance(deserialize_error(serialize_error(FloatingPointError("w"), 0)), FloatingPointError)
    assert deserialize_error(serialize_error(KeyboardInterrupt(), 0)).code == 130  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.BatchNorm1d])
def test_the_synchronised_norm_of_one_rank_is_batch_norm_with_its_second_derivative(kind: Any) -> None:
    torch.manual_seed(0)
    norm = kind(3, eps=1e-3).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    net = nn.Sequential(kind(3, eps=1e-3).double())
    net[0].load_state_dict(norm.state_dict())
    names = list(net.state_dict())
    synchronize(net)
    assert isinstance(net[0], SyncBatchNorm)
    assert list(net.state_dict()) == names
    assert len(running_averages(net)) == 2
    shape = (6, 3, 4, 5) if kind is nn.BatchNorm2d else (6, 3)
    x = (torch.randn(shape, dtype=torch.float64) + 5).requires_grad_()
    for _ in range(2):
        a, b = norm(x), net(x)
        torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-12)
    for mine, theirs in zip(net.state_dict().values(), norm.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    weight = torch.randn(shape, dtype=torch.float64)

    def twice(out: torch.Tensor) -> torch.Tensor:
        (g,) = torch.autograd.grad((out * weight).sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), x)[0]

    torch.testing.assert_close(twice(b), twice(a), rtol=1e-8, atol=1e-10)
    norm.eval(), net.eval()
    torch.testing.assert_close(net(x), norm(x), rtol=1e-10, atol=1e-12)


def test_the_synchronised_norm_keeps_bfloat16_and_its_place() -> None:
    norm = nn.BatchNorm2d(2)
    norm.after_activation = True  # type: ignore[assignment]
    made = SyncBatchNorm(norm)
    assert made.after_activation
    with torch.autocast("cpu", torch.bfloat16):
        assert made(torch.randn(4, 2, 3, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"batch_size": 9}, ["batch_size"]),
        ({"batch_size": 8, "accumulate": 4, "sync_bn": False}, ["batch_size"]),
        ({"batch_size": 8, "g_batch_size": 6, "accumulate": 2}, ["g_batch_size"]),
    ],
)
def test_a_batch_that_ranks_cannot_share_is_refused(
    tiny: Callable[..., Experiment], changes: dict[str, Any], keys: list[str]
) -> None:
    e = tiny(**({"accumulate": 1} | changes)) if changes.get("batch_size") != 9 else tiny(batch_size=9)
    with collectives.use_ranks(one_of(0, 2)), pytest.raises(ConfigError, match="2 ranks") as caught:
        prepare.require_divisible(e)
    assert [m.where for m in caught.value.mistakes] == keys
    prepare.require_divisible(e)  # one process plays any


def test_each_rank_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("auto") == torch.device("cuda:0")
    with collectives.use_ranks(one_of(1, 2)):
        assert find_device("auto") == find_device("cuda") == torch.device("cuda:1")
        with pytest.raises(ConfigError, match="all 2 ranks"):
            find_device("cuda:0")
    with collectives.use_ranks(one_of(2, 3)), pytest.raises(EnvError, match="rank 2 needs cuda:2"):
        find_device("auto")


@pytest.mark.parametrize(
    ("env", "where"),
    [
        ({"RANK": "x"}, "RANK"),
        ({"RANK": "2"}, "RANK"),
        ({"MASTER_PORT": ""}, "MASTER_PORT"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR"),
    ],
)
def test_half_an_environment_is_one_line(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], where: str
) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, value in (whole | env).items():
        monkeypatch.setenv(key, value)
    with pytest.raises(EnvError, match=where), joined():
        pass


def test_commands_of_one_process_refuse_to_be_one_of_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        for words in (["sweep", "grid=x"], ["train", "-m", "seed=0,1"], ["report", "run"]):
            assert main(words) == 2
            err = capsys.readouterr().err
            assert err.count("ganlab: error: ") == lines
            assert not lines or "without torchrun" in err


@pytest.mark.slow
def test_torchrun_itself_stops_goes_on_and_ends(tmp_path: Path) -> None:
    """Two ranks under the real launcher: SIGTERM saves, the same command finishes, files are of one run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    env = environment({"GANLAB_CACHE": str(tmp_path / "cache")})

    def run(*more: str) -> subprocess.Popen[str]:
        words = [*command, "-m", "ganlab", *tiny("save_every=50", "log_every=50", *more)]
        return subprocess.Popen(
            words, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    first = run("steps=1000000")
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoints" / "step-000000050").exists():
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()[0][-2000:]
            time.sleep(0.1)
        first.send_signal(signal.SIGTERM)
        said = first.communicate(timeout=100)[0]
    finally:
        first.kill()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["status"] == "stopped", said[-2000:]
    assert result["ranks"] == {"size": 2, "backend": "gloo", "sync_bn": True}
    assert said.count("ganlab: error: ") == 1, said
    nothing_lost(tmp_path / "run")
    again = run(f"steps={result['step'] + 10}")
    said = again.communicate(timeout=200)[0]
    assert again.returncode == 0, said[-2000:]
    assert f"finished run: step {result['step'] + 10}" in said
    assert said.count("finished run") == 1
    nothing_lost(tmp_path / "run")
    assert ROOT.is_dir()
    assert os.listdir(tmp_path / "run" / "samples")
