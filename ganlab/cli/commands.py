"""The table of ``ganlab``'s commands: names, keys with defaults and help, and functions."""

from __future__ import annotations

from ganlab.cli import actions, help
from ganlab.cli.command import Command
from ganlab.cli.help import train

CHECKPOINT = ("last", "last, best, or a step")

_TABLE = (
    Command(
        name="train",
        summary="train one GAN, or several (-m); continue an unfinished run",
        usage="[+experiment=NAME] [group=option ...] [key=value ...] [options]",
        about="Without an experiment or a dataset it trains the demo, +experiment=digits. The run folder "
        "follows from the config: the same command continues an unfinished run, and reports a "
        "finished one.",
        run=actions.train,
        config_dir=True,
        flags={"-m": "--multirun", "-r": "--run"},
        values={"-c": "--cfg", "-p": "--package"},
        more=("--resolve", "--hydra-help", "--info", "-i"),
        page=train.page,
        examples=(
            "train steps=200 run_dir=outputs/try",
            "train +experiment=sngan_cifar setting=B normalization=gp loss=wasserstein",
            "train dataset=folder dataset.path=photos.zip architecture=resnet",
            "train -m +experiment=sngan_cifar normalization=sn,wn,gp setting=A,D",
        ),
    ),
    Command(
        name="sweep",
        summary="run a paper's grid; skip, continue or retry cells as needed",
        usage="grid=NAME [AXIS=a,b] [key=value ...] [scale=...] [jobs=N] [dry_run=true] [hydra/launcher=...]",
        about="Each cell is a run in a folder and a process of its own, jobs of them at a time on this "
        "machine; hydra/launcher=submitit_slurm, ray or joblib runs them elsewhere. The same command "
        "again skips finished cells, continues unfinished ones and reruns failed ones. Within a sweep "
        "a failed cell is retried once, unless its config, data or checkpoint is at fault (exit codes "
        "2 to 4). Several sweeps of one folder, such as a SLURM array of this command, share the work. "
        "The folder has a table, cells.csv, and the output of each cell, .sweep/CELL.log. 'ganlab "
        "status' shows progress, 'ganlab report' the results.",
        run=actions.sweep,
        config_dir=True,
        keys={
            "grid": (None, "the grid; a file in configs/grid"),
            "scale": (None, "UPDATES or UPDATES,WIDTH: fractions, as scale=0.01,0.125"),
            "out": (None, "folder; default outputs/GRID[-SCALE][-HASH of other overrides]"),
            **actions.SWEEP_KEYS,
        },
        rows=(
            ("AXIS=a,b", "only these values of an axis, as method=sn,wn; or other values, as seed=0,1,2"),
            ("n=, seed=", "of a grid that samples at random: the number of samples and the seed"),
            ("key=value", "for every cell, as in 'ganlab train --help'; not scaled"),
            (
                "hydra/launcher=NAME",
                "submitit_slurm, submitit_local, ray or joblib; hydra.launcher.KEY sets it up",
            ),
        ),
        sections=help.grids,
        examples=(
            "sweep grid=sngan_fig1_cifar dry_run=true",
            "sweep grid=sngan_fig1_cifar method=sn,wn seed=0,1,2",
            "sweep grid=sngan_fig1_cifar scale=0.01,0.0625 jobs=2 metric.extractor=cifar",
            "sweep grid=sngan_fig1_cifar gpus=[0,1]",
            "sweep grid=wgan_gp_random_architectures n=12 seed=0",
        ),
    ),
    Command(
        name="status",
        summary="show the progress of runs and sweeps",
        usage="[FOLDER...] [watch=true]",
        about="Prints a line for each run in the folders (default: outputs): state, step, speed, time left, "
        "last scores. killed: its process is gone; the same "
        "command continues it. no checkpoint: its result says finished, but the checkpoint of that "
        "step is missing. Only reads files, so it is safe during a sweep, on any machine that sees "
        "them.",
        run=actions.status,
        strict=True,
        keys={"watch": (False, "refresh every 5 seconds until all runs have ended")},
        examples=("status outputs/sngan_fig1_cifar watch=true",),
    ),
    Command(
        name="check",
        summary="verify the checkpoints of runs: can they resume?",
        usage="RUN... [--json]",
        about="Verifies every checkpoint of the run folders, or of the runs in a folder: checksums, sizes, "
        "content, finite numbers, and fit to the run's config. Prints a line for each step (good, "
        "damaged and why, or another run's), then problems of config.yaml, run.json and "
        "metrics.jsonl, and files left by kills, quarantines and resume=. Writes nothing. Exit code "
        "0: all runs can resume; 4: something is damaged or there is no checkpoint; 3: no run.",
        run=actions.check,
        strict=True,
        json=True,
        examples=("check outputs/sngan_cifar/C-s0", "check outputs/sngan_fig1_cifar --json"),
    ),
    Command(
        name="evaluate",
        summary="score a run's checkpoint again, under any protocol",
        usage="RUN [checkpoint=last|best|STEP] [metric overrides] [device=...]",
        about="Scores a checkpoint of the run folder RUN again, without training; prints the scores and "
        "saves them in RUN/evaluations/.",
        run=actions.evaluate,
        one_run=True,
        config_dir=True,
        keys={
            "checkpoint": CHECKPOINT,
            "protocols": (None, "NAME,NAME: several protocols, with the scores side by side"),
        },
        sections=help.scoring,
        examples=(
            "evaluate outputs/sngan_cifar/C-s0 metric.protocol=ttur50k",
            "evaluate outputs/sngan_cifar/C-s0 protocols=sngan_paper,ttur50k",
            "evaluate outputs/digits/C-s0 checkpoint=best metric.extractor=cifar device=cpu",
        ),
    ),
    Command(
        name="score",
        summary="score any images against a dataset, without a run",
        usage="FOLDER|ZIP|TAR|NPZ dataset=NAME [metric overrides] [device=...] [--json]",
        about="Scores image files, or an .npz file with an array uint8 (N, H, W, C), of the size of the "
        "dataset's images. They are taken in an order shuffled by the protocol's seed. Prints the scores "
        "and the id of the protocol.",
        run=actions.score,
        json=True,
        sections=help.scoring,
        examples=(
            "score samples.zip dataset=cifar10 metric.protocol=ttur50k",
            "score samples/ dataset=folder dataset.path=photos.zip metric.protocol=smoke",
        ),
    ),
    Command(
        name="sample",
        summary="draw samples from a run: a grid, single images, interpolations",
        usage="RUN [n=64] [out=DIR] [key=value ...]",
        about="Draws samples from a checkpoint's generator. Images: grid.png, single PNGs, "
        "interpolation.png; text: samples.txt, interpolation.txt; points: points.csv, grid.png, "
        "interpolation.csv.",
        run=actions.sample,
        one_run=True,
        config_dir=True,
        keys={
            "n": (64, "number of samples"),
            "out": (None, "folder; default RUN/samples/step-N-seedS"),
            "seed": (0, "seed of the latents"),
            "checkpoint": CHECKPOINT,
            "columns": (8, "images per row of the grid and per interpolation"),
            "classes": (None, "of a conditional run, as 0,3,7: rows of the grid; default: spread over all"),
            "interpolations": (8, "pairs of latents to interpolate between; 0: none"),
            "singles": (True, "also write each image as a PNG"),
        },
        rows=(("device=auto", "auto, cpu, cuda or cuda:i"),),
        examples=("sample outputs/digits/C-s0 n=64 out=samples",),
    ),
    Command(
        name="report",
        summary="compare runs: HTML, Markdown, CSV and figures",
        usage="RUN... [out=outputs/report] [thresholds=a,b,...]",
        about="Reads run folders, or folders that contain some, and writes report.html (self-contained), "
        "report.md, CSV files and figures: scores by method and setting, curves and samples; our scores "
        "beside the published ones and other implementations', each with its protocol and whether it "
        "is comparable; the ranking and robustness of methods beside the paper's; whether differences "
        "exceed seed noise; one checkpoint under several protocols. For a grid of paired cells "
        "(random architectures) it prints and writes the counts beside the paper's.",
        run=actions.report,
        strict=True,
        keys={
            "out": (None, "folder; default outputs/report"),
            "thresholds": (
                None,
                "of success, as 2,3.5, for grids that count successes; default: the paper's, or deciles",
            ),
        },
        examples=(
            "report outputs/sngan_cifar outputs/wgan_gp_cifar out=benchmarks/cifar",
            "report outputs/wgan_gp_random_architectures thresholds=2,3,4",
        ),
    ),
    Command(
        name="analyze",
        summary="draw one figure of runs and write its numbers: spectra, gradients, speed, ...",
        usage="RUN... analysis=NAME [out=DIR] [key=value ...]",
        about="Reads run folders, or folders that contain some; draws NAME.png and writes its numbers to "
        "NAME.csv, in RUN/analysis, or for several paths in outputs/analysis. Does not change the "
        "runs.",
        run=actions.analyze,
        config_dir=True,
        keys={"analysis": (None, "an analysis, several as a,b, or all"), "out": (None, "folder")},
        rows=(
            ("checkpoint=last", "last, best, or a step; of analyses of networks"),
            ("dataset.path=PATH", "where the images are now"),
            ("device, threads", "as in 'ganlab train --help all'"),
        ),
        sections=help.analyses,
        examples=(
            "analyze outputs/sngan_cifar analysis=singular_values",
            "analyze outputs/sngan_cifar/C-s0 analysis=nearest,scores,gradient_norm",
            "analyze outputs/sngan_fig4 analysis=feature_dim out=figures",
            "analyze analysis=speed +experiment=sngan_cifar architecture.width=0.25",
        ),
    ),
    Command(
        name="explain",
        summary="show how a run differs from the paper's recipe, and the source of each value",
        usage="RUN | [+experiment=NAME] [group=option ...] [key=value ...] [--json]",
        about="Lists every key in which a run folder, or a run with the overrides, differs from the paper's "
        "recipe; the source of the recipe's values (paper, authors' code, our choice); and where "
        "paper and code disagree or the paper says nothing. The recipe is that of the run's "
        "experiment, or else of the nearest shipped one.",
        run=actions.explain,
        config_dir=True,
        json=True,
        examples=(
            "explain outputs/sngan_cifar/C-s0",
            "explain +experiment=sngan_cifar setting=D steps=1000",
        ),
    ),
    Command(
        name="data",
        summary="prepare or check a dataset, or show what is prepared",
        usage="prepare|check|info DATASET [key=value ...]",
        about="prepare: download (verified, resumable) or read a local source on all cores, and pack it "
        "into one file of pixels with a manifest. If interrupted, the same command continues and ends "
        "with the same bytes. check: read every file of the source; report damaged, unusual and "
        "identical ones, and counts. info: what is prepared, counts, classes, checksums. Environment: "
        "GANLAB_CACHE (folder of downloads and packed data), GANLAB_OFFLINE=1 (never download), "
        "GANLAB_DATA_TIMEOUT (seconds after which an unresponsive reading process is ended; 120).",
        run=actions.data,
        config_dir=True,
        rows=(
            ("path=, split=, ...", "keys of the dataset; split=all: every split"),
            ("hash=write", "with check: write the sha256 of every file beside the source, as sha256sum does"),
            ("hash=verify", "with check: compare with them; finds bit rot that decodes without an error"),
            ("manifest=FILE", "with hash: another file for them"),
            ("out=FILE", "with check: save the report as JSON"),
            ("verify=true", "with info: read every prepared file and compare its checksum"),
            ("dataset.verify=false", "cifar10, stl10, mnist: accept your own data in their format"),
        ),
        sections=help.datasets,
        examples=(
            "data prepare cifar10",
            "data prepare folder path=photos.zip resolution=64",
            "data prepare imagenet path=/data/ILSVRC2012 split=all",
            "data prepare lsun path=/data/lsun category=bedroom resolution=128",
            "data check folder path=photos hash=write",
            "data check folder path=photos hash=verify",
            "data info cifar10 verify=true",
        ),
    ),
    Command(
        name="doctor",
        summary="show what is installed, prepared and missing on this machine",
        usage="[--json]",
        about="Reports the installed packages, devices, datasets and weights, and what is missing: its size "
        "and checksum, and where to put it. Exit code 5 if something required is broken.",
        run=actions.doctor,
        strict=True,
        takes_names=False,
        json=True,
    ),
)
COMMANDS: dict[str, Command] = {command.name: command for command in _TABLE}
SUMMARIES = [(command.name, command.summary) for command in _TABLE]
