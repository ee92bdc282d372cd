"""Checkpoints: exact, whole or absent, never wrong. Kills and full disks happen in forked children."""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from faults import hostile_files
from faults.fileops import die_at
from torch import nn

from ganlab.errors import CheckpointError, EnvError
from ganlab.runs import manifest as manifest_file
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder
from ganlab.runs.state import digest, flatten, non_finite, require_fit, unflatten
from ganlab.system import files
from ganlab.training.optimizers import RMSpropTF

RUN = "a" * 32
FILES = ("state.safetensors", "state.json", "MANIFEST.json")


@pytest.fixture
def quick(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: hundreds of kills take a minute on a disk."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm", prefix="ganlab-test-"))
    yield folder
    shutil.rmtree(folder)


def some_state(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    random_numbers = torch.Generator().manual_seed(step)
    tensors = {f"g/layer{i}.weight": torch.randn(8, 16, generator=random_numbers) for i in range(4)}
    return tensors, {"step": step, "best": {"fid": 1 / 3 + step}, "betas": (0.5, 0.999)}


def made(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    folder.mkdir(parents=True, exist_ok=True)
    kept = Checkpoints(folder / "checkpoints", RUN, keep)
    for step in steps:
        kept.save(step, *some_state(step))
    return kept


def loads(kept: Checkpoints, step: int | None = None, **options: Any) -> int:
    """Load, and insist that what comes is what was saved at that step. Returns the step."""
    loaded, tensors, state = kept.load(step, **options)
    assert digest(tensors, state) == digest(*some_state(loaded))
    return loaded


def leftovers(kept: Checkpoints) -> list[str]:
    return [n for n in os.listdir(kept.folder) if n.startswith(".")]


def reseal(folder: Path, **changes: Any) -> None:
    """Rewrite a manifest as a crafted or newer ganlab would: hashes and seal fit the files."""
    manifest = json.loads((folder / "MANIFEST.json").read_text())
    del manifest["seal"]
    for name in FILES[:2]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "MANIFEST.json").write_bytes(manifest_file.seal(manifest | changes))


# ---- exactness ---------------------------------------------------------------------------------------


def test_every_kind_of_tensor_comes_back_equal(tmp_path: Path) -> None:
    base = torch.randn(4, 6)
    tensors = {
        "transposed": base.T,
        "whole": base,
        "row of whole": base[1],
        "same again": base,
        "expanded": torch.ones(2).expand(3, 2),
        "channels last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "float scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.randn(5).bfloat16(),
        "half": torch.randn(5).half(),
        "uint8": torch.arange(5, dtype=torch.uint8),
        "int64": torch.tensor([2**62 + 1, -1]),
        "parameter": nn.Parameter(torch.ones(2)),
        "tiny": torch.tensor([1e-45, -0.0]),
    }
    kept = made(tmp_path)
    kept.save(5, tensors, {})
    _, loaded, _ = kept.load()
    assert set(loaded) == set(tensors)
    assert digest(loaded) == digest(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].is_contiguous()
    loaded["whole"].add_(1)  # memory of its own
    assert torch.equal(loaded["same again"], base)


def test_state_comes_back_with_its_types(tmp_path: Path) -> None:
    state = {
        "tuple": (1, 2.5, (None, [True])),
        "inf": [math.inf, -math.inf],
        "int keys": {0: "a", 1: {"b": (0.1,)}},
        "__tuple__": [1],
        "nested": {"__float__": "no"},
        "text": "é\n\udcff",
        "floats": [0.1, 1e-300, 2 / 3, 5e-324, -0.0],
        "big": 2**80,
    }
    kept = made(tmp_path)
    kept.save(1, {}, state | {"nan": math.nan})
    _, _, loaded = kept.load()
    assert math.isnan(loaded.pop("nan"))
    assert loaded == state
    assert isinstance(loaded["tuple"], tuple)
    assert math.copysign(1, loaded["floats"][-1]) == -1
    assert "NaN" not in (kept.path(1) / "state.json").read_text()  # strict JSON


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, lr=2e-4, betas=(0.5, 0.999), amsgrad=True),
    "adamw tensor lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3)),
    "plain sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "rmsprop tf": lambda p: RMSpropTF(p),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_goes_through_a_checkpoint_and_trains_on_identically(
    tmp_path: Path, name: str
) -> None:
    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        net(torch.linspace(0, 1, 6).view(2, 3)).square().sum().backward()
        optimizer.step()

    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = OPTIMIZERS[name](net.parameters())
    for _ in range(3):
        step(net, optimizer)
    halves = [flatten("net", net.state_dict()), flatten("opt", optimizer.state_dict())]
    kept = made(tmp_path)
    kept.save(3, halves[0][0] | halves[1][0], {"net": halves[0][1], "opt": halves[1][1]})

    _, tensors, state = kept.load()
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    again = OPTIMIZERS[name](other.parameters())
    other.load_state_dict(unflatten(tensors, state["net"]))
    restored = unflatten(tensors, state["opt"])
    groups, wanted = restored["param_groups"], optimizer.state_dict()["param_groups"]
    assert [{k: type(v) for k, v in g.items()} for g in groups] == [
        {k: type(v) for k, v in g.items()} for g in wanted
    ]
    assert list(restored["state"]) == list(optimizer.state_dict()["state"])  # int keys, same order
    again.load_state_dict(restored)
    step(net, optimizer)
    step(other, again)
    assert digest(*flatten("n", net.state_dict())) == digest(*flatten("n", other.state_dict()))
    assert digest(*flatten("o", optimizer.state_dict())) == digest(*flatten("o", again.state_dict()))


def test_digest_sees_a_bit_a_name_a_shape_a_dtype_and_the_state() -> None:
    one = {"a": torch.tensor([0.0, 1.0])}
    others = [
        ({"a": torch.tensor([-0.0, 1.0])}, None),
        ({"b": one["a"]}, None),
        ({"a": one["a"].view(2, 1)}, None),
        ({"a": one["a"].view(torch.int32)}, None),
        (one, {"k": 1}),
        (one, {"k": (1,)}),
        (one, {"k": [1]}),
    ]
    assert len({digest(one), *(digest(*o) for o in others)}) == 8
    assert digest(one) == digest({"a": one["a"].clone()})


def test_require_fit_names_the_first_difference_and_counts_the_rest() -> None:
    wanted = {"a": torch.ones(2), "b": torch.ones(3, 3), "c": torch.ones(1)}
    require_fit({k: v.clone() for k, v in wanted.items()}, wanted, "x")
    with pytest.raises(
        CheckpointError, match=r"tensor b is \[3\] int64, this config builds \[3, 3\] float32"
    ):
        require_fit({**wanted, "b": torch.ones(3, dtype=torch.int64)}, wanted, "x")
    with pytest.raises(CheckpointError, match=r"tensor a is nothing.*\(and 3 more\)"):
        require_fit({"extra": torch.ones(1)}, wanted, "x")


def test_what_a_checkpoint_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    kept = made(tmp_path)
    for bad in ({1, 2}, object(), b"bytes"):
        with pytest.raises(TypeError, match=r"state\.a\.b\[1\]"):
            kept.save(1, {}, {"a": {"b": [0, bad]}})
    assert kept.steps() == []
    with pytest.raises(ValueError, match="x/a/b"):
        flatten("x", {"a": {"b": torch.ones(1)}, "a/b": torch.ones(1)})
    _, rest = flatten("x", {"a": torch.ones(1)})
    with pytest.raises(CheckpointError, match="lacks tensor x/a"):
        unflatten({}, rest)


# ---- the folder --------------------------------------------------------------------------------------


def test_manifest_and_layout(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints", RUN, 2, config_hash="c0ffee")
    assert kept.save(12000, *some_state(12000)) == kept.folder / "step-000012000"
    assert {p.name for p in kept.path(12000).iterdir()} == set(FILES)
    manifest = json.loads((kept.path(12000) / "MANIFEST.json").read_text())
    wanted = {"run_id": RUN, "step": 12000, "config_hash": "c0ffee", "format": 1, "tensors": 4}
    assert {key: manifest[key] for key in wanted} == wanted
    for name in FILES[:2]:
        data = (kept.path(12000) / name).read_bytes()
        assert manifest["files"][name] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    assert leftovers(kept) == []


def test_a_folder_without_checkpoints_or_that_is_gone(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "run" / "checkpoints", RUN, 2)
    assert (kept.steps(), kept.has_any()) == ([], False)
    kept.prune()
    kept.clean()
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        kept.load()
    with pytest.raises(EnvError, match="can't write"):  # a run folder deleted meanwhile is not revived
        kept.save(2, *some_state(2))
    assert not (tmp_path / "run").exists()


def test_the_newest_is_the_highest_number_whatever_else_lies_about(tmp_path: Path) -> None:
    kept = made(tmp_path, 9000, 10000, 500)
    for step, when in ((10000, 1), (9000, 2), (500, 3)):  # a copied tree: times say nothing
        os.utime(kept.path(step), (when, when))
    for name in ("step-final", "step-99999", "step-0000020000", "latest", ".tmp-90000-" + "0" * 32):
        (kept.folder / name).mkdir()
    (kept.folder / "step-000099999").write_text("a file")
    (kept.folder / "step-000088888").symlink_to(kept.path(500))
    assert kept.steps() == [500, 9000, 10000]
    assert loads(kept) == 10000


def test_retention_keeps_the_last_and_the_best_unless_the_newest_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = made(tmp_path)
    stale = kept.folder / (".tmp-2-" + "0" * 32)
    for step in range(8):
        kept.save(step, *some_state(step))
        kept.prune({3})
        stale.mkdir(exist_ok=True)
    kept.clean()
    assert kept.steps() == [3, 6, 7]
    assert leftovers(kept) == []
    assert [loads(kept, s) for s in kept.steps()] == [3, 6, 7]
    kept.save(8, *some_state(8))
    (kept.path(8) / "state.json").write_bytes(b"{}")
    kept.prune()
    assert kept.steps() == [3, 6, 7, 8]
    assert "older checkpoints are kept" in caplog.text


def test_prune_touches_nothing_but_real_folders_of_this_run(tmp_path: Path) -> None:
    kept = made(tmp_path, 1, 2, 3, 4, 5)
    victim = made(tmp_path / "victim", 1)
    shutil.rmtree(kept.path(1))
    kept.path(1).symlink_to(victim.path(1))  # a planted link
    other = Checkpoints(kept.folder, "b" * 32, 2)
    shutil.rmtree(kept.path(2))
    other.save(2, *some_state(2))  # another run's
    (kept.path(3) / "MANIFEST.json").write_text("{}")  # whose is it?
    (kept.folder / ".trash-7-link").symlink_to(victim.folder)
    (kept.folder / (".trash-7-" + "0" * 32)).symlink_to(victim.folder)
    kept.save(6, *some_state(6))
    kept.prune()
    kept.clean()
    assert kept.path(1).is_symlink()
    assert kept.path(2).is_dir()
    assert kept.path(3).is_dir()
    assert not kept.path(4).exists()
    assert loads(victim) == 1


def test_saving_a_step_again_keeps_a_sound_one_and_replaces_a_damaged_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = made(tmp_path, 1, 2)
    before = (kept.path(2) / "MANIFEST.json").stat().st_mtime_ns
    kept.save(2, *some_state(2))
    assert (kept.path(2) / "MANIFEST.json").stat().st_mtime_ns == before
    (kept.path(2) / "state.json").unlink()
    kept.save(2, *some_state(2))
    assert loads(kept) == 2
    assert "set aside as step-000000002.corrupt" in caplog.text
    (kept.path(2) / "state.json").unlink()
    kept.save(2, *some_state(2))
    assert (kept.folder / "step-000000002.corrupt-2").is_dir()
    shutil.rmtree(kept.path(2))
    kept.path(2).symlink_to(kept.path(1))  # a planted link is set aside, not written through
    kept.save(2, *some_state(2))
    assert loads(kept) == 2
    assert not kept.path(2).is_symlink()


# ---- non-finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "dtype"), [(math.nan, torch.float32), (-math.inf, torch.bfloat16)])
def test_a_non_finite_tensor_is_not_saved(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    kept = made(tmp_path, 1)
    tensors, state = some_state(2)
    tensors["g/layer2.weight"] = tensors["g/layer2.weight"].to(dtype)
    assert non_finite(tensors | {"none": torch.empty(0), "mask": torch.tensor([True])}) is None
    tensors["g/layer2.weight"][3, 4] = value
    with pytest.raises(FloatingPointError, match=r"g/layer2\.weight is not finite at step 2"):
        kept.save(2, tensors, state)
    assert kept.steps() == [1]
    assert leftovers(kept) == []


def test_a_non_finite_tensor_is_not_loaded_even_if_signed(tmp_path: Path) -> None:
    import safetensors.torch

    kept = made(tmp_path, 1, 2)
    tensors, _ = some_state(2)
    tensors["g/layer1.weight"][0, 0] = math.nan
    (kept.path(2) / "state.safetensors").write_bytes(safetensors.torch.save(tensors))
    reseal(kept.path(2))
    with pytest.raises(CheckpointError, match=r"tensor g/layer1\.weight is not finite"):
        kept.load(2)
    assert loads(kept) == 1


# ---- damage ------------------------------------------------------------------------------------------


def test_a_damaged_newest_is_set_aside_with_one_warning_but_never_for_a_reader_or_a_named_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = made(tmp_path, 1, 2, 3)
    (kept.path(3) / "state.safetensors").unlink()
    (kept.path(2) / "MANIFEST.json").unlink()  # it is no step any more, and must not be passed over silently
    with pytest.raises(CheckpointError, match="is missing"):
        kept.load(3)
    assert loads(kept, quarantine=False) == 1
    assert kept.path(3).is_dir()
    caplog.clear()
    assert loads(kept) == 1
    assert len(caplog.records) == 2
    assert sorted(os.listdir(kept.folder)) == [
        "step-000000001",
        "step-000000002.corrupt",
        "step-000000003.corrupt",
    ]
    assert "state.safetensors: is missing" in caplog.text


def test_all_damaged_lists_every_step_and_keeps_saying_so(tmp_path: Path) -> None:
    kept = made(tmp_path, 1, 2, 3)
    for step, name in ((1, FILES[0]), (2, FILES[1]), (3, FILES[2])):
        (kept.path(step) / name).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(CheckpointError) as caught:
            kept.load()
        assert [m.where for m in caught.value.mistakes] == [
            str(kept.path(s) / n) for s, n in ((3, FILES[2]), (2, FILES[1]), (1, FILES[0]))
        ]
        assert kept.has_any()
    shutil.rmtree(kept.folder)
    kept.folder.mkdir()
    (kept.folder / "step-000000003.corrupt").mkdir()
    assert kept.has_any()  # never from scratch silently


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    path.write_bytes(raw)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


TENSORS, STATE, MANIFEST = FILES
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {  # what is done to a step's folder
    "missing": (shutil.rmtree, "no such checkpoint; available steps: 1"),
    "short": (lambda p: os.truncate(p / TENSORS, 100), r"safetensors: truncated: 100 of \d+ b"),
    "a bit of the tensors": (lambda p: flip(p / TENSORS), "sha256 mismatch"),
    "a bit of the state": (lambda p: flip(p / STATE), "sha256 mismatch"),
    "a bit of the manifest": (lambda p: flip(p / MANIFEST), "seal mismatch"),
    "copied": (lambda p: p.rename(p.with_name("step-000000005")), "its manifest says step 2"),
    "newer": (lambda p: reseal(p, format=9, needs="3.1"), r"needs ganlab >= 3\.1"),
    "other run": (lambda p: reseal(p, run_id="b" * 32), "another run"),
    "more tensors": (lambda p: reseal(p, tensors=99), "holds 4 tensors, not 99"),
    "outside": (lambda p: reseal(p, files={"../../victim": {"size": 1, "sha256": ""}}), "does not list"),
    "no size": (lambda p: reseal(p, files={TENSORS: {"size": math.inf, "sha256": ""}}), "does not list"),
    "a pipe": (lambda p: pipe(p / STATE), "not a regular file"),
    "a link": (lambda p: link(p / STATE), "is missing"),
    "vast": (lambda p: os.truncate(p / STATE, 1 << 40), "too large"),  # a hole: not read
    "long": (lambda p: (p / MANIFEST).write_bytes(b" " * (2 << 20)), "too large"),
    "deep": (lambda p: (p / MANIFEST).write_bytes(b'{"a":' * 100_000), "seal mismatch"),
    "a list": (lambda p: (p / MANIFEST).write_bytes(b"[]"), "seal mismatch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_checkpoint_that_is_not_this_one_is_refused_by_reason(tmp_path: Path, name: str) -> None:
    kept, (spoil, reason) = made(tmp_path, 1, 2), REFUSED[name]
    spoil(kept.path(2))
    with pytest.raises(CheckpointError, match=reason):
        kept.load(5 if name == "copied" else 2)
    assert kept.path(2).is_dir() == (name not in ("missing", "copied"))
    if name == "newer":  # neither passed over nor renamed
        with pytest.raises(CheckpointError, match=reason):
            kept.load()
    else:
        assert loads(kept) == 1
    assert kept.path(2).is_dir() == (name in ("newer", "other run"))


@pytest.mark.slow
def test_crafted_checkpoints_are_refused(tmp_path: Path) -> None:
    """Signed so that the hashes fit."""
    run = RunFolder(tmp_path)
    with run.lock():
        kept = Checkpoints(run.checkpoints, run.run_id)
        kept.save(2, *some_state(2))
    tensors = {k: v for k, v in hostile_files.crafted().items() if "1,000,000" not in k}
    for name, content in tensors.items():
        hostile_files.plant(tmp_path, tensors=content, tensors_=1)
        with pytest.raises(CheckpointError):
            pytest.fail(f"{name}: {kept.load(2)}")
    hostile_files.plant(tmp_path, state=b"[" * 100_000)
    with pytest.raises(CheckpointError):
        kept.load(2)


# ---- power loss, kills, full disks -------------------------------------------------------------------


def test_order_of_the_commit_survives_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path / "run")
    kept = Checkpoints(tmp_path / "run" / "checkpoints", RUN, 2)
    happened: list[str] = []
    fsync, rename = os.fsync, os.rename

    def note_fsync(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        size = path.stat().st_size if path.is_file() else 0
        fsync(fd)
        name = "TEMP" if path.name.startswith(".tmp-") else path.name
        happened.append(f"fsync {name}")
        if path.is_file():
            assert path.parent.name.startswith(".tmp-")
            assert size == path.stat().st_size > 0  # all of it, before its fsync

    def note_rename(old: Path, new: Path) -> None:
        assert old.parent == new.parent
        assert {p.name for p in old.iterdir()} == set(FILES)
        rename(old, new)
        happened.append(f"rename to {new.name}")

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "rename", note_rename)
    kept.save(7, *some_state(7))
    assert happened == [
        "fsync run",  # checkpoints/ itself is new
        "fsync state.safetensors",
        "fsync state.json",
        "fsync MANIFEST.json",
        "fsync TEMP",
        "rename to step-000000007",
        "fsync checkpoints",
    ]


def in_child(work: Callable[[], object]) -> int:
    """Run in a forked child; its exit code (0 = returned, 1 = raised)."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_everywhere(
    template: Path, place: Path, work: Callable[[Checkpoints], None]
) -> Iterator[Checkpoints]:
    """A copy of ``template`` after each death of ``work``, and last after none.

    All deaths: "fileops" of ``make reliability``.
    """
    killed, k = True, 0
    while killed:
        run = place / f"run{k}"
        shutil.copytree(template, run / "checkpoints")
        kept = Checkpoints(run / "checkpoints", RUN, 2)
        killed = in_child(lambda: (die_at(k, str(run)), work(kept))) == -signal.SIGKILL  # noqa: B023
        yield kept
        shutil.rmtree(run)
        k += 1


@pytest.mark.slow
def test_a_kill_between_file_operations_of_save_and_prune_loses_nothing(quick: Path) -> None:
    template = made(quick / "template", 1, 2)
    newest = []

    def work(kept: Checkpoints) -> None:
        kept.save(3, *some_state(3))
        kept.prune()

    for kept in killed_everywhere(template.folder, quick, work):
        steps = kept.steps()
        assert len(steps) >= 2
        for step in steps:
            loads(kept, step)
        newest.append(loads(kept))
        assert newest[-1] == steps[-1]
        assert not [n for n in os.listdir(kept.folder) if "corrupt" in n]
        kept.clean()
        assert leftovers(kept) == []
        work(kept)
        assert kept.steps() == [2, 3]
        assert loads(kept) == 3
    assert len(newest) > 12  # each a real death
    assert set(newest) == {2, 3}


def test_a_kill_between_file_operations_of_load_and_quarantine_loses_nothing(quick: Path) -> None:
    template = made(quick / "template", 1, 2, 3)
    (template.path(3) / "state.json").write_bytes(b"damaged")
    (template.path(2) / "MANIFEST.json").unlink()
    (template.folder / (".tmp-4-" + "0" * 32)).mkdir()
    deaths = 0

    def work(kept: Checkpoints) -> None:
        logging.disable()
        kept.clean()
        kept.load()

    for kept in killed_everywhere(template.folder, quick, work):
        kept.clean()
        assert loads(kept) == 1
        assert kept.steps() == [1]
        names = ["step-000000001", "step-000000002.corrupt", "step-000000003.corrupt"]
        assert sorted(os.listdir(kept.folder)) == names
        deaths += 1
    assert deaths > 3


@pytest.mark.parametrize(
    ("call", "code"),
    [
        *((c, errno.ENOSPC) for c in ("write", "fsync", "mkdir", "rename")),
        ("fsync", errno.EIO),
        ("rename", None),
    ],
)
def test_an_error_of_any_call_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, call: str
) -> None:
    kept = made(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise KeyboardInterrupt if code is None else OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        patch.setattr(files, "PAUSES", (0.0,))
        with pytest.raises(EnvError if code else KeyboardInterrupt) as caught:
            kept.save(2, *some_state(2))
    if code:
        assert str(kept.path(2)) in str(caught.value)
        assert ("disk full" in str(caught.value)) == (code == errno.ENOSPC)
    assert leftovers(kept) == []
    assert kept.steps() == [1]
    kept.save(2, *some_state(2))
    assert loads(kept) == 2


@pytest.mark.parametrize("nth", range(6))
def test_a_brief_error_of_any_sync_is_endured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    """Also after the rename: the checkpoint that is there by then is kept."""
    code = errno.ESTALE if nth == 1 else errno.EIO
    kept, real, count = made(tmp_path, 1), os.fsync, -2  # the first save syncs its parents too

    def fail(fd: int) -> None:
        nonlocal count
        count += 1
        if count == nth:
            raise OSError(code, os.strerror(code))
        real(fd)

    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "fsync", fail)
    kept.save(2, *some_state(2))
    kept.save(3, *some_state(3))
    assert count > nth
    assert leftovers(kept) == []
    assert kept.steps() == [1, 2, 3]
    assert loads(kept) == 3
