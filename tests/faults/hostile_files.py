"""Files that would run code, grow without end or point elsewhere, and run folders that hold them."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ganlab.runs import manifest
from ganlab.runs.checkpoint import Checkpoints
from ganlab.runs.folder import RunFolder

CANARY = "canary"


class Calls:
    """Pickled, it calls a function with arguments when it is read."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def payloads(place: Path) -> dict[str, bytes]:
    """Files that make ``CANARY`` in ``place`` when they are unpickled, in every wrapping."""
    import os
    import subprocess

    touch = f"touch {place / CANARY}"
    evil: dict[str, Any] = {
        "os.system": Calls(os.system, touch),
        "builtins.exec": Calls(exec, f"import os; os.system({touch!r})"),
        "builtins.eval": Calls(eval, f"__import__('os').system({touch!r})"),
        "subprocess": Calls(subprocess.check_output, ["/bin/sh", "-c", touch]),
        "a chain": Calls(Calls, Calls(os.system, touch)),
        "in a state dict": {"weight": torch.zeros(2), "x": Calls(os.system, touch)},
    }
    made = {f"pickle, {name}": pickle.dumps(value) for name, value in evil.items()}
    made["pickle, protocol 0"] = f"cposix\nsystem\n(S'{touch}'\ntR.".encode()
    out = io.BytesIO()
    torch.save(evil["in a state dict"], out)
    made["torch zip"] = out.getvalue()
    out = io.BytesIO()
    torch.save(evil["in a state dict"], out, _use_new_zipfile_serialization=False)
    made["torch legacy"] = out.getvalue()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:  # torch's format of before 0.1.10
        for name in ("sys_info", "pickle", "storages", "tensors"):
            entry = tarfile.TarInfo(name)
            entry.size = len(made["pickle, os.system"])
            tar.addfile(entry, io.BytesIO(made["pickle, os.system"]))
    made["torch tar"] = out.getvalue()
    array = np.empty(1, dtype=object)
    array[0] = evil["os.system"]
    out = io.BytesIO()
    np.save(out, array, allow_pickle=True)
    made["npy"] = out.getvalue()
    out = io.BytesIO()
    np.savez(out, mu=array, sigma=array)
    made["npz"] = out.getvalue()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as outer:
        outer.writestr("archive/data.pkl", made["torch zip"])
        outer.writestr("data_batch_1", made["pickle, os.system"])
    made["zip in a zip"] = out.getvalue()
    return made


def plant(run: Path, tensors: bytes | None = None, state: bytes | None = None, **more: Any) -> None:
    """Put files into a run's newest checkpoint, with a manifest that fits them: sizes, hashes, seal."""
    folder = RunFolder(run)
    kept = Checkpoints(folder.checkpoints, folder.run_id)
    for step in kept.steps()[:-1]:
        for file in kept.path(step).iterdir():
            file.unlink()
        kept.path(step).rmdir()
    place = kept.path(kept.steps()[-1])
    content = json.loads((place / manifest.MANIFEST).read_text())
    content.pop("seal")
    for name, data in ((manifest.TENSORS, tensors), (manifest.STATE, state)):
        if data is not None:
            (place / name).write_bytes(data)
            content["files"][name] = {"size": len(data), "sha256": manifest.sha256(data)}
    (place / manifest.MANIFEST).write_bytes(manifest.seal(content | more))


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of the format with a header of one's own; ``length``: what it claims to be long."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def crafted() -> dict[str, bytes]:
    """Tensor files that are well signed and lie."""

    def tensor(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, Any]:
        return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}

    return {
        "a header of 2**63": safetensors(b"{}", length=2**63),
        "a header of 2**64-1": safetensors(b"{}", length=2**64 - 1),
        "a header past the end": safetensors(b"{}", length=100),
        "overlaps": safetensors({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)),
        "a hole": safetensors({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)),
        "offsets below zero": safetensors({"a": tensor(-8, 8)}, bytes(16)),
        "offsets backwards": safetensors({"a": tensor(8, 0, [2])}, bytes(8)),
        "offsets past the end": safetensors({"a": tensor(0, 1 << 40)}, bytes(8)),
        "a shape that overflows": safetensors({"a": tensor(0, 8, [2**62, 2**62])}, bytes(8)),
        "a negative shape": safetensors({"a": tensor(0, 8, [-2])}, bytes(8)),
        "a dtype unheard of": safetensors({"a": tensor(0, 8, dtype="OBJ")}, bytes(8)),
        "1,000,000 tensors": safetensors({f"t{i}": tensor(0, 0, [0]) for i in range(1_000_000)}),
        "names that climb": safetensors({"../../../etc/x": tensor(0, 8)}, bytes(8)),
        "a name twice": safetensors(
            b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            bytes(8),
        ),
        "a header that is no JSON": safetensors(b"{{{{"),
        "a header of 100,000 brackets": safetensors(b"[" * 100_000),
        "no header": b"",
        "metadata of another kind": safetensors({"__metadata__": {"a": [1]}, "a": tensor(0, 8)}, bytes(8)),
        "a pickle": pickle.dumps([1]),
    }


def states() -> dict[str, bytes]:
    """State files that are well signed and lie."""
    deep = b'{"a":' * 100_000 + b"1" + b"}" * 100_000
    return {
        "deep": deep,
        "a list": b"[]",
        "a number": b"1" + b"0" * 5000,
        "empty": b"{}",
        "null": b"null",
        "nan": b'{"game": NaN, "progress": Infinity}',
        "unknown kinds": b'{"game": {"__object__": "os.system"}, "progress": 1, "threads": 1}',
        "a tensor that is not there": b'{"game": {"generator": {"__tensor__": "x"}}, "progress": {}}',
        "pairs that are none": b'{"__dict__": [1, 2, 3]}',
        "floats that are none": b'{"__float__": "x"}',
        "not utf-8": b'{"\xff": 1}',
        "80 MB": b'{"a": "' + b"x" * 80_000_000 + b'"}',
    }


def edited(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """A run's ``state.json`` with a change, well signed."""
    folder = RunFolder(run)
    kept = Checkpoints(folder.checkpoints, folder.run_id)
    state = json.loads((kept.path(kept.steps()[-1]) / manifest.STATE).read_text())
    change(state)
    plant(run, state=json.dumps(state).encode())


def configs() -> dict[str, tuple[str, Any]]:
    """Dotted key -> value to put into a run folder's ``config.yaml``."""
    call = {"_target_": "os.system", "command": f"touch {CANARY}"}
    return {
        "os.system as the loss": ("loss", call),
        "os.system deep inside": ("loss.margin", call),
        "subprocess in a list": ("architecture.d_widths", [{"_target_": "subprocess.Popen", "args": ["id"]}]),
        "builtins.eval": ("prior", {"_target_": "builtins.eval", "_args_": ["1"]}),
        "builtins.exec partial": ("optimizer", {"_target_": "builtins.exec", "_partial_": True}),
        "torch.load": ("dataset", {"_target_": "torch.load", "f": "x"}),
        "torch.hub": ("architecture", {"_target_": "torch.hub.load", "repo_or_dir": "x/y", "model": "z"}),
        "a module of the cwd": ("loss", {"_target_": "evil.Loss"}),
        "a function of ours": ("loss", {"_target_": "ganlab.cli.main.main"}),
        "a method of ours": ("loss", {"_target_": "ganlab.methods.losses.Hinge.__init__"}),
        "through our modules": ("loss", {"_target_": "ganlab.cli.main.sys.exit"}),
        "hydra's instantiate": ("loss", {"_target_": "hydra.utils.instantiate"}),
        "_args_": ("loss._args_", [1, 2]),
        "_convert_ and _recursive_": ("loss._recursive_", False),
        "_target_ of another kind": ("loss._target_", ["os.system"]),
        "10**9 channels": ("architecture.width", 1e9),
        "10**30 channels": ("architecture.width", 1e30),
        "z of 10**9": ("architecture.z_dim", 10**9),
        "10**9 pixels a side": ("dataset.resolution", 10**9),
        "10**18 threads": ("threads", 10**18),
        "a resolver of one's own": ("seed", "${evil:1}"),
        "a resolver of Hydra's": ("seed", "${hydra:runtime.cwd}"),
        "code in a resolver": ("seed", "${oc.decode:'__import__(\"os\")'}"),
        "a protocol that climbs": ("metric.protocol.name", "../../../../escape"),
        "a setting that climbs": ("setting", "../../escape"),
        "10**12 images": ("metric.protocol.is_n_fake", 10**12),
    }


def user_configs() -> dict[str, tuple[Mapping[str, bytes], list[str]]]:
    """Files of a ``--config-dir`` that someone sent, and the words that choose them."""
    head = b"# @package _global_\n"
    own = {
        "callbacks": b"hydra: {callbacks: {x: {_target_: os.system, command: touch canary}}}",
        "launcher": b"hydra: {launcher: {_target_: os.system}}",
        "sweeper": b"hydra: {sweeper: {_target_: subprocess.Popen}}",
        "job_logging factory": b"hydra: {job_logging: {handlers: {x: {'()': os.system, command: ls}}}}",
        "hydra_logging": b"hydra: {hydra_logging: {handlers: {x: {class: logging.FileHandler}}}}",
        "searchpath": b"hydra: {searchpath: ['pkg://os', 'file:///tmp']}",
        "env_set": b"hydra: {job: {env_set: {LD_PRELOAD: /tmp/x.so}}}",
        "run dir": b"hydra: {run: {dir: /tmp/elsewhere}}",
        "output_subdir": b"hydra: {output_subdir: canary}",
        "chdir": b"hydra: {job: {chdir: true}}",
        "mode": b"hydra: {mode: MULTIRUN}",
        "override hydra's groups": b"defaults: [override /hydra/launcher: joblib]\n"
        b"hydra: {launcher: {x: {_target_: os.system}}}",
        "a target": b"loss: {_target_: os.system, command: touch canary}",
        "a target beside": b"extra: {_target_: os.system, command: touch canary}",
        "a partial target": b"optimizer: {_target_: os.system, _partial_: true}",
        "a resolver": b"seed: ${python:1}",
        "a YAML tag": b"seed: !!python/object/apply:os.system [touch canary]",
        "a YAML name": b"seed: !!python/name:os.system",
        "a place": b"run_dir: /tmp/elsewhere",
        "a place above": b"run_dir: ../../elsewhere",
    }
    made = {
        name: ({"mine/experiment/own.yaml": head + text + b"\n"}, ["+experiment=own"])
        for name, text in own.items()
    }
    made["a group's file"] = (
        {"mine/loss/own.yaml": b"_target_: os.system\ncommand: touch canary\n"},
        ["loss=own"],
    )
    made["a launcher's file"] = (
        {"mine/hydra/launcher/own.yaml": b"_target_: os.system\n"},
        ["-m", "seed=1,2", "hydra/launcher=own"],
    )
    made["a module beside"] = (
        {"mine/loss/own.yaml": b"_target_: evil.Loss\n", "evil.py": b"open('canary', 'w')\n"},
        ["loss=own"],
    )
    return made
