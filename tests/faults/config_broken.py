"""Damaged config files, parts that do not go together, absent devices, wrong words of every command."""

from __future__ import annotations

from collections.abc import Iterator

from .config_points import Point

HEAD = b"# @package _global_\n"
OWN = ["train", "--config-dir", "mine", "+experiment=own"]


def files() -> Iterator[Point]:
    """Fault 50: an experiment, a group's option, a protocol and a grid of one's own, damaged."""
    bomb = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
        b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(ord("b"), ord("l"))
    )
    broken: dict[str, tuple[bytes, str]] = {
        "a tab": (b"steps: 3\n\tseed: 4\n", r":3:1: .*tab"),
        "two colons": (b"steps: : 3\n", r":2:8: "),
        "colon in a value": (b"setting: a: b\n", r":2:11: .*quotes"),
        "a key twice": (b"steps: 3\nsteps: 4\n", r":3:1: .*duplicate key"),
        "a key twice, nested": (b"architecture:\n  width: 1\n  width: 2\n", r":4:3: .*duplicate key"),
        "open bracket": (b"steps: [3\n", r":\d+:\d+: "),
        "open quote": (b"setting: 'a\n", r":\d+:\d+: "),
        "bad indent": (b"architecture:\n  width: 1\n z_dim: 2\n", r":4:2: "),
        "octal": (b"steps: 010\n", r":2:8: .*write 8"),
        "base 60": (b"steps: 1:30\n", r":2:8: .*quotes"),
        "yes": (b"flip: yes please\n", r"flip: .*true or false"),
        "a date": (b"steps: 2026-01-01\n", r"steps: .*not an integer"),
        "a float of steps": (b"steps: 1_000.5\n", r"steps: .*not an integer"),
        "a tag": (b"steps: !!python/object/apply:os.getcwd []\n", r":2:8: "),
        "a tag of one's own": (b"steps: !mine 3\n", r":2:8: "),
        "a list at the top": (b"- steps\n- 3\n", r"contains a list"),
        "a value at the top": (b"steps\n", r"contains a single value"),
        "two documents": (b"steps: 3\n---\nseed: 4\n", r":3:1: "),
        "empty": (b"", r"own\.yaml"),
        "bom and nothing": (b"\xef\xbb\xbf", r"is empty"),
        "utf-16": ("steps: 3\n".encode("utf-16"), r"UTF-8"),
        "latin-1": (b"setting: \xe9\n", r"UTF-8"),
        "\\xff": (b"steps: 3 # \xff\n", r"UTF-8"),
        "a null byte": (b"steps: \x00\n", r"own\.yaml"),
        "10 MB": (b"# " + b"x" * 10_000_000, r"10,000,0\d\d bytes"),
        "1,000 deep": (b"steps: " + b"[" * 1000 + b"]" * 1000 + b"\n", r"nests"),
        "50,000 deep": (b"steps: " + b"{a: " * 50_000, r"nests|own\.yaml"),
        "alias bomb": (bomb, r"aliases"),
        "alias of itself": (b"architecture: &a {width: *a}\n", r"own\.yaml|architecture"),
        "alias unknown": (b"steps: *nowhere\n", r":2:8: "),
        "a default that is not there": (
            b"defaults:\n  - override /loss: hing\nsteps: 3\n",
            r"loss: there is no 'hing'.*'hinge'",
        ),
        "a group that is not there": (b"defaults:\n  - override /lss: hinge\n", r"lss"),
        "a default without override": (b"defaults:\n  - /loss: hinge\n", r"loss"),
        "defaults of a wrong kind": (b"defaults: 3\n", r"own\.yaml|defaults"),
        "a list of lists": (b"defaults:\n  - [a, b]\n", r"own\.yaml|defaults"),
        "a key that is no text": (b"3: 4\n", r"own\.yaml:2:1: .*not a string"),
        "a key that is null": (b"null: 4\n", r"own\.yaml:2:1: .*not a string"),
        "an unknown key": (b"stepz: 4\n", r"stepz: .*own\.yaml:2.*'steps'"),
        "an unknown nested key": (b"architecture: {widht: 4}\n", r"widht: .*width"),
        "a part replaced by a number": (b"loss: 3\n", r"loss: 3"),
        "a part emptied": (b"metric: null\n", r"metric"),
        "???": (b"loss: {margin: '???'}\n", r"loss.margin: "),
        "a reference to nothing": (b"steps: ${nothing}\n", r"steps: .*nothing"),
        "a reference to itself": (b"steps: ${steps}\n", r"steps: .*itself"),
        "an unclosed reference": (b"steps: ${\n", r"steps|own\.yaml"),
        "an unset variable": (b"run_dir: ${oc.env:GANLAB_NOT_SET}\n", r"run_dir: .*GANLAB_NOT_SET"),
        "a place elsewhere": (b"run_dir: /tmp/elsewhere\n", r"run_dir: .*outside the working folder"),
        "a place above": (b"run_dir: a/../../elsewhere\n", r"run_dir: .*outside the working folder"),
    }
    for name, (content, where) in broken.items():
        head = b"" if content[:2] in (b"\xff\xfe", b"\xef\xbb", b"") or b"top" in name.encode() else HEAD
        yield Point(f"experiment: {name}", OWN, where, files={"mine/experiment/own.yaml": head + content})
    headless = {"mine/experiment/own.yaml": b"steps: 3\n"}
    yield Point("experiment: no package line", OWN, r"own\.yaml: .*@package", files=headless)
    odd = {"mine/experiment/own.yaml": b"# @package\nsteps: 3\n"}
    yield Point("experiment: half a package line", OWN, r"own\.yaml:1: .*@package", files=odd)
    for name in (
        "a tab",
        "a key twice",
        "\\xff",
        "10 MB",
        "a list at the top",
        "octal",
        "alias bomb",
        "a tag",
    ):
        content, where = broken[name]
        where = where.replace(":3:", r":\d:").replace(":2:", r":\d:")
        train = ["train", "--config-dir", "mine", "loss=own"]
        yield Point(f"loss: {name}", train, where, files={"mine/loss/own.yaml": content})
        protocol = ["train", "--config-dir", "mine", "metric.protocol=own"]
        yield Point(f"protocol: {name}", protocol, where, files={"mine/protocol/own.yaml": content})
        sweep = ["sweep", "--config-dir", "mine", "grid=own", "dry_run=true"]
        yield Point(f"grid: {name}", sweep, where, files={"mine/grid/own.yaml": content})
    same = {"mine/loss/hinge.yaml": b"_target_: ganlab.methods.losses.LSGAN\n"}
    yield Point(
        "a file that hides", ["train", "--config-dir", "mine", "loss=hinge"], r"has the name of", files=same
    )
    yield Point("no such folder", ["train", "--config-dir", "nowhere"], r"--config-dir: .*no folder")


def combinations() -> Iterator[Point]:
    """Fault 52: each alone is fine. Both keys are named."""
    projection = ["architecture=resnet", "architecture.head=projection"]
    for words, one, other in (
        (["dataset.resolution=33"], "dataset.resolution", "cnn"),
        (["dataset.resolution=8"], "dataset.resolution", "cnn"),
        (["architecture=resnet", "dataset.resolution=20"], "dataset.resolution", "resnet"),
        (["architecture=dcgan", "dataset.resolution=33"], "dataset.resolution", "dcgan"),
        ([*projection, "dataset=stl10", "dataset.split=unlabeled"], "dataset", "architecture.head"),
        (["architecture=resnet", "architecture.head=ac"], "class_loss", "architecture.head=ac"),
        (["class_loss=acgan"], "class_loss", "architecture.head=ac"),
        ([*projection, "class_loss=acgan"], "class_loss", "architecture.head=ac"),
        (["accumulate=3", "batch_size=8"], "accumulate", "batch_size=8"),
        (["accumulate=8", "batch_size=8"], "accumulate", "batch_size=8"),
        (["accumulate=4", "g_batch_size=6"], "accumulate", "g_batch_size=6"),
        ([*projection, "joint_fakes=true", "fake_labels=data"], "joint_fakes", "fake_labels=data"),
        (["lr_decay=linear", "lr_decay_start=1000", "steps=100"], "lr_decay_start", "steps=100"),
        (["lr_decay=linear", "lr_decay_start=5", "steps=5"], "lr_decay_start", "steps=5"),
        (["normalization=[bn,ln]"], "normalization", "bn and ln"),
        (["normalization=[bn,in]"], "normalization", "bn and in"),
        (["normalization=[sn,wn]"], "normalization", "sn and wn"),
        (["normalization=[sn,fn]"], "normalization", "sn and fn"),
        (["normalization=[sn,none]"], "normalization", "none"),
        (["metric=[is,intra_fid]"], "metric.scores.intra_fid", "architecture"),
        (["metric=[intra_ms_ssim]"], "metric.scores.intra_ms_ssim", "architecture"),
        (["metric.protocol.is_n_fake=10", "metric.protocol.is_splits=20"], "is_splits", "is_n_fake"),
        (["batch_size=4096"], "batch_size", "1797 images"),
        (["metric.protocol.kid_subset_size=5000"], "kid_subset_size", "1000"),
        (["metric.protocol.fid_n_real=5000"], "metric.protocol.fid_n_real", "1797"),
        (["optimizer.fused=true", "optimizer.foreach=true"], "optimizer", "fused.*foreach"),
        (["optimizer.foreach=true", "optimizer.differentiable=true"], "optimizer", "foreach"),
        (["optimizer._target_=torch.optim.SparseAdam"], "optimizer", "SparseAdam"),
        (["optimizer._target_=torch.optim.SGD"], r"optimizer\.betas", "SGD"),
        (["architecture.width=1000"], "architecture", "parameters"),
        (["architecture=resnet", "architecture.g_channels=1000000"], "architecture", "parameters|memory"),
        (["architecture.width=1e30"], "architecture", "width"),
        (["architecture.z_dim=1000000000"], "architecture|memory", "width"),
    ):
        yield Point(" ".join(words), ["train", *words], f"{one}.*{other}", codes=(2, 3, 5))


def devices() -> Iterator[Point]:
    """Fault 53, on a machine without a GPU or with few."""
    for device in ("cuda:99", "cuda:999999999999999999999"):
        yield Point(f"device {device}", ["train", f"device={device}"], "device:", "device=cpu", codes=(5,))
    for device in ("mps", "tpu", "gpu", "cpu:0", "CPU", "cuda:-1", "cuda:x", "''", "3", "null", "[cpu]"):
        yield Point(f"device {device}", ["train", f"device={device}"], "device:", "cpu|auto")
    for threads in ("0", "-1", "1025", "100000000", "2.5", "all"):
        yield Point(f"threads {threads}", ["train", f"threads={threads}"], "threads:", "integer")


def words() -> Iterator[Point]:
    """Wrong words of every command."""
    for line, where in (
        ("", "usage"),
        ("--hlep", "'--help'"),
        ("steps=3", "ganlab train steps=3"),
        ("+experiment=digits", "ganlab train"),
        ("train --multirn", "'--multirun'"),
        ("train --config-name x", "unknown option"),
        ("train --config-path x", "unknown option"),
        ("train --cfg", "requires a value"),
        ("train --cfg jbo", "none of job"),
        ("train --resolve", "requires --cfg"),
        ("train digits", r"\+experiment=digits"),
        ("train steps", "steps=VALUE"),
        ("train =3", "is not a valid key"),
        ("train steps==3", "steps: "),
        ("train steps=3=4", "steps: "),
        ("train a.b.c.d=3", "unknown key"),
        ("train +experiment=digits +experiment=sngan_cifar", "is set twice"),
        ("train loss@x=hinge", "omit @"),
        ("train ~loss", "loss: missing"),
        ("train ~nothing", "cannot be removed"),
        ("train seed=1,2", "add -m"),
        ("train hydra.run.dir=x", "add -m"),
        ("train -m hydra.sweep.dir=x", "cannot be set"),
        ("train -m hydra/launcher=slrum", "there is no"),
        ("train -m seed=1,2 stepz=3", "'steps'"),
        ("train -m seed=1,-2", "seed: -2"),
        ("train -m seed=range(0,100000)", "at most 1000"),
        ("train -m loss=hinge,hing", "'hinge'"),
        ("train -m loss=", "loss"),
        ("sweep", "grid: missing"),
        ("sweep grid=", "grid: "),
        ("sweep grid=sngan_fig9", "grid|sngan_fig"),
        ("sweep sngan_fig11", "grid=sngan_fig11"),
        ("sweep grid=sngan_fig11 scale=x dry_run=true", "scale"),
        ("sweep grid=sngan_fig11 scale=0 dry_run=true", "scale"),
        ("sweep grid=sngan_fig11 scale=nan dry_run=true", "scale"),
        ("sweep grid=sngan_fig11 scale=1,2,3 dry_run=true", "scale"),
        ("sweep grid=sngan_fig11 jobs=0 dry_run=true", "jobs"),
        ("sweep grid=sngan_fig11 jobs=x dry_run=true", "jobs"),
        ("sweep grid=sngan_fig11 per_gpu=many dry_run=true", "per_gpu"),
        ("sweep grid=sngan_fig11 gpus=[0,x] dry_run=true", "gpus"),
        ("sweep grid=sngan_fig11 dry_run=maybe", "dry_run"),
        ("sweep grid=sngan_fig11 stepz=3 dry_run=true", "'steps'"),
        ("sweep grid=sngan_fig11 steps=-3 dry_run=true", "steps: -3"),
        ("sweep grid=sngan_fig11 seed=x dry_run=true", "seed: 'x'"),
        ("sweep grid=../grid/sngan_fig11", "grid|no"),
        ("status wtach=true", "'watch'"),
        ("status nowhere", "nowhere"),
        ("status watch=2", "true or false"),
        ("evaluate", "RUN"),
        ("evaluate a b", "got 2"),
        ("evaluate nowhere", "nowhere: "),
        ("evaluate nowhere checkpont=best", "'checkpoint'"),
        ("evaluate nowhere protocols=a,a", "duplicate"),
        ("evaluate nowhere protocols=demo metric.protocol=demo", "combined"),
        ("sample nowhere", "nowhere: "),
        ("sample nowhere n=0", "n: "),
        ("sample nowhere n=abc", "n: "),
        ("sample nowhere n=999999999999", "n: "),
        ("sample nowhere columns=0", "columns: "),
        ("sample nowhere columns=999999999", "columns: "),
        ("sample nowhere interpolations=-1", "interpolations: "),
        ("sample nowhere seed=-1", "seed: "),
        ("sample nowhere colums=3", "'columns'"),
        ("sample nowhere out=", "out: "),
        ("report", "run folders"),
        ("report nowhere", "nowhere"),
        ("report nowhere oot=x", "'out'"),
        ("explain a b", "one run folder"),
        ("explain nowhere", "nowhere"),
        ("explain stepz=3", "'steps'"),
        ("explain --jsn", "'--json'"),
        ("analyze", "analysis: "),
        ("analyze nowhere analysis=scores", "nowhere"),
        ("analyze nowhere analysis=scroes", "'scores'"),
        ("analyze nowhere analysis=scores nn=3", "nn|nowhere"),
        ("analyze nowhere anlysis=scores", "'analysis'"),
        ("data prepar digits", "'prepare'"),
        ("data prepare", "exactly one dataset"),
        ("data prepare digts", "'digits'"),
        ("data info digits resolutoin=3", "'resolution'"),
        ("data info digits resolution=x", "resolution"),
        ("data info digits verify=1", "verify=true"),
        ("doctor --jsn", "'--json'"),
        ("doctor x", "unknown key of ganlab doctor"),
        ("trian", "'train'"),
    ):
        yield Point(line or "no word at all", line.split(), where, codes=(2, 3, 5))
