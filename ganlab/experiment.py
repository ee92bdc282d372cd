"""All settings of one run, with types and units. Read this file first.

A composed config is a tree of ``_target_`` nodes whose root builds an ``Experiment``. The signatures are the
schema: ``config/check.py`` checks a config against them before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from ganlab.data.base import Dataset
from ganlab.extractors.base import Extractor
from ganlab.methods.base import PLAYERS, Method
from ganlab.methods.losses import ClassLoss, Loss
from ganlab.methods.priors import Prior
from ganlab.methods.timetable import Linear, Schedule, Steady, Timetable
from ganlab.metrics.base import Metric, MetricError, Real
from ganlab.metrics.protocol import OPTIONAL, Protocol
from ganlab.models.base import Architecture
from ganlab.samples.base import sample_kind
from ganlab.schema import MAX_COUNT, Arguments, Count, NonNegative, Range, Seed, Steps, Threads, Unit, checked
from ganlab.types import Shape

NO_LABELS = (
    "{} has no class labels, but the architecture is conditional; "
    "use a split with labels, or architecture.head=none"
)
UNLIMITED = 1 << 62  # images: more than any protocol uses


class Scoring:
    """The metrics, their feature extractor and their protocols.

    Args:
        extractor: the feature extractor (``metric.extractor=inception`` or ``cifar``).
        protocol: sample counts, splits and rounding of the final scores.
        scores: the metrics by name, computed from one pass of the extractor.
        progress: the protocol of evaluations during training; null: ``protocol``.
        weights: file of the extractor's weights; null: the packaged, cached or downloaded one.

    Raises ValueError for metrics that the extractor or a protocol rules out, whatever the real images are.
    """

    @checked
    def __init__(
        self,
        extractor: Extractor,
        protocol: Protocol,
        scores: dict[str, Metric[Any]],
        progress: Protocol | None = None,
        weights: str | None = None,
    ) -> None:
        self.extractor, self.protocol, self.scores = extractor, protocol, scores
        self.weights = weights
        same = progress is None or progress.record(OPTIONAL) == protocol.record(OPTIONAL)
        self.progress = protocol if progress is None or same else progress  # one object where they agree
        if mistakes := dict.fromkeys(self._impossible()):
            raise ValueError("\n".join(mistakes))

    def _impossible(self) -> Iterator[str]:
        """One message per metric that the extractor or a protocol's sample counts rule out."""
        for name, metric in self.scores.items():
            if "logits" in metric.needs and not self.extractor.num_classes:
                what = f"needs class logits, which the feature network {self.extractor.name} does not have"
                yield f"scores.{name}: {what}; choose another metric.extractor, or leave this metric out"
        for protocol in (self.progress, self.protocol):
            for name, metric in self.scores.items():
                try:
                    if metric.uses_extractor:  # others depend on the real samples
                        metric.check(protocol, Real(n=protocol.fid_n_real or UNLIMITED))
                except MetricError as error:
                    fix = "choose another metric.protocol, or leave this metric out"
                    yield f"scores.{name}: {error}; {fix}"


class Experiment:
    """One run. A "step" is one generator update unless stated otherwise.

    Raises ValueError with one line per mistake: "key: problem; fix".

    Args:
        dataset: the training data.
        architecture: G and D.
        normalization: the methods that stabilize D, by name, applied in this order, weight norms last.
        loss: the adversarial loss of both networks.
        prior: the distribution of z.
        optimizer: called with the parameters; one for each network.
        d_optimizer: arguments of the optimizer that differ for D, as {lr: 4e-4, weight_decay: 1e-3}; null:
            none.
        labelled_per_class: so many samples of each class bear labels, chosen by ``label_seed``; D's labelled
            batches of ``batch_size`` come from them. null: all samples do.
        label_seed: null: ``seed``.
        setting: name of the optimizer setting, A to F of SNGAN's Table 1, or your own.
        metric: how the run is scored.
        technique: further methods that change how both networks are trained, by name; null: none.
        class_loss: the loss of D's auxiliary classifier, for architecture.head=ac; null: none.
        steps: total generator updates.
        d_steps: discriminator updates per generator update (n_dis, n_critic).
        d_warmup_steps: discriminator updates before a generator update that warms D up; 0: no warm-up. WGAN's
            code: 100 (arXiv:1701.07875).
        d_warmup_updates: the first so many generator updates warm D up; WGAN's code: 25.
        d_warmup_every: generator updates whose number, counted from 0, is a multiple of this warm D up too;
            WGAN's code: 500; 0: none.
        batch_size: real images per D update, over all ranks; as many are generated.
        g_batch_size: generated images per G update; null: ``batch_size``.
        accumulate: micro batches per update, so that a large batch fits on a small GPU; batch norm then uses
            micro batches, and ``training/step.py`` lists the other differences.
        order: ``d_first``, or ``g_first`` as in SNGAN's code: G's update comes before D's in every step;
            ``together``: both at once, from the same latents, as in the code of BEGAN and Progressive GAN.
        d_pass: ``auto``: real and generated images pass D in one batch where that changes nothing but
            rounding (no batch norm in D, no spectral norm with update=per_forward); ``apart``: never.
        joint_fakes: G generates the images of all ``d_steps`` updates of D in one pass: faster, but its batch
            norm then sees all of them at once, which no paper does.
        fold: fold up- and downsampling into the ResNets' convolutions: equal up to rounding.
        fixed_generator: above 0, generated samples are real ones plus N(0, fixed_generator^2), and G is not
            trained: WGAN-GP's Figure 1a, which trains D alone, uses 1. Such a run has no scores.
        fixed_shift: as fixed_generator, but adds this to each coordinate of the real samples, without noise
            if fixed_generator is 0: WGAN's Figure 2 (arXiv:1701.07875); 0: none.
        fake_labels: labels that a conditional G is trained on: ``uniform``, as in SNGAN's code, or from the
            ``data``: those of D's real batch, and of random training images in G's updates. Scores and sample
            grids always draw them uniformly.
        sync_bn: in a run of several ranks (torchrun), batch norm over the global batch, as in one process;
            ``false``: over each rank's share, as in SNGAN's runs on four GPUs, without communication.
        seed: seed of all randomness.
        lr_decay: ``linear``: the learning rates fall to 0 at the last step, starting at ``lr_decay_start``.
        lr_decay_start: step at which the decay starts.
        timetable: D's updates, batch sizes and phases of each step, a class of yours under
            ``methods/timetable.Timetable``; null: ``d_steps``, the warm-up and the batch sizes above. Set
            with +timetable=...
        schedules: factors of configured values as functions of the step, by their key: ``optimizer.lr``,
            ``ema``, ``loss.margin``, ``normalization.gp.weight``, ...; set with
            +schedules={normalization.gp.weight: {_target_: ganlab.methods.timetable.Linear, end: 1000}}.
            ``lr_decay`` is such a schedule of optimizer.lr.
        ema: decay per step of the moving average of G that is scored and sampled; 0: G itself.
        dequantize: real pixels as x / 128 - 1 + U(0, 1/128) (SNGAN's code), not x / 127.5 - 1.
        flip: mirror real images left-right with probability 1/2.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        engine: how updates run. ``eager``; ``graph``: recorded once and replayed, on a GPU as a CUDA graph,
            on a CPU if the network is small; ``compile``: by torch.compile, which takes a minute or more at
            first; ``auto``: ``graph`` if everything can be recorded, else ``eager``. log.txt and result.json
            record which was used.
        precision: ``fp32``; ``tf32``: fp32 whose convolutions may use TensorFloat-32 on a GPU; ``bf16``:
            networks under bfloat16 autocast, with norms, penalties and losses in fp32. Scores are always
            computed in fp32. ``auto``: ``bf16`` if the processor supports it, else ``tf32``.
        eval_every: steps between evaluations; 0: only at the end.
        eval_start: evaluate the untrained G too.
        save_every: steps between checkpoints; 0: only at each new best evaluation, and at the end.
        log_every: steps between log lines; 0: never.
        sample_every: steps between sample grids; 0: only at the end. Else also at the end of each phase of a
            timetable, and in the middle of each fade.
        validation: log D's loss on held-out and on training images with every log line. The value is a split
            of the dataset; true: its test or validation split, or what ``limit`` left out; null: off.
            Training is the same with it.
        validation_n: images per split for ``validation``, the same ones every time.
        spectral_every: steps between records of the spectral norms of D's weights (exact SVD); 0: none.
        keep_checkpoints: number of newest checkpoints to keep, besides the best.
        keep_every: checkpoints at multiples of this step are never deleted; 0: none.
        resume: ``auto``: resume from the newest checkpoint that verifies; a step, or a step's folder: from
            exactly that one, moving later ones aside; ``never``: move the old run aside and start over.
        resume_allow: keys that may differ from the stored config on resume, as [optimizer.lr].
        run_dir: the run folder; null: derived from the config, under ``outputs/``.
        data_memory_gb: datasets up to this size (10^9 bytes) are kept on the device; larger ones are read
            from a memory map, and updates are then not recorded; null: half of a GPU's free memory, 4 on a
            CPU.
        threads: CPU threads of torch; null: torch's choice, all cores (a resumed run keeps its number).
            Parallel runs on one CPU are faster with threads=1 each, which a sweep sets.
        deterministic: use only deterministic GPU kernels (slower); CPU runs are always deterministic.
    """

    @checked
    def __init__(
        self,
        dataset: Dataset,
        architecture: Architecture,
        normalization: dict[str, Method],
        loss: Loss,
        prior: Prior,
        optimizer: Callable[..., Optimizer],
        metric: Scoring,
        d_optimizer: Annotated[dict[str, Any] | None, Arguments("optimizer")] = None,
        technique: dict[str, Method] | None = None,
        class_loss: ClassLoss | None = None,
        labelled_per_class: Count | None = None,
        label_seed: Seed | None = None,
        setting: str = "custom",
        steps: Steps = 100_000,
        d_steps: Count = 1,
        d_warmup_steps: Steps = 0,
        d_warmup_updates: Steps = 0,
        d_warmup_every: Steps = 0,
        batch_size: Annotated[int, Range(ge=2, le=MAX_COUNT)] = 64,
        g_batch_size: Annotated[int, Range(ge=2, le=MAX_COUNT)] | None = None,
        accumulate: Count = 1,
        order: Literal["d_first", "g_first", "together"] = "d_first",
        d_pass: Literal["auto", "apart"] = "auto",
        joint_fakes: bool = False,
        fold: bool = True,
        fixed_generator: NonNegative = 0.0,
        fixed_shift: Annotated[float, Range(ge=-1e6, le=1e6)] = 0.0,
        fake_labels: Literal["uniform", "data"] = "uniform",
        sync_bn: bool = True,
        seed: Seed = 0,
        lr_decay: Literal["none", "linear"] = "none",
        lr_decay_start: Steps = 0,
        timetable: Timetable | None = None,
        schedules: dict[str, Schedule] | None = None,
        ema: Unit = 0.0,
        dequantize: bool = False,
        flip: bool = False,
        device: str = "auto",
        engine: Literal["auto", "eager", "graph", "compile"] = "auto",
        precision: Literal["fp32", "tf32", "bf16", "auto"] = "tf32",
        eval_every: Steps = 0,
        eval_start: bool = False,
        save_every: Steps = 0,
        log_every: Steps = 100,
        sample_every: Steps = 0,
        validation: bool | str | None = None,
        validation_n: Count = 1000,
        spectral_every: Steps = 0,
        keep_checkpoints: Annotated[int, Range(ge=2, le=MAX_COUNT)] = 2,
        keep_every: Steps = 0,
        resume: Steps | str = "auto",
        resume_allow: list[str] | None = None,
        run_dir: str | None = None,
        data_memory_gb: NonNegative | None = None,
        threads: Threads | None = None,
        deterministic: bool = False,
    ) -> None:
        self.dataset, self.architecture, self.loss, self.prior = dataset, architecture, loss, prior
        self.normalization, self.optimizer, self.metric = normalization, optimizer, metric
        self.d_optimizer = d_optimizer or {}
        self.setting, self.steps, self.d_steps, self.seed = setting, steps, d_steps, seed
        self.validation, self.validation_n = validation, validation_n
        self.batch_size, self.g_batch_size = batch_size, g_batch_size or batch_size
        self.class_loss, self.fake_labels, self.technique = class_loss, fake_labels, technique or {}
        self.accumulate, self.order = accumulate, order
        self.labelled_per_class = labelled_per_class
        self.label_seed = seed if label_seed is None else label_seed
        self.d_pass, self.joint_fakes, self.fold, self.engine = d_pass, joint_fakes, fold, engine
        self.sync_bn, self.fixed_generator = sync_bn, fixed_generator
        self.fixed_shift = fixed_shift
        if fixed_generator or fixed_shift:  # scores of an untrained G are meaningless
            self.metric = Scoring(metric.extractor, metric.protocol, {})
        self.lr_decay, self.lr_decay_start, self.ema = lr_decay, lr_decay_start, ema
        self.dequantize, self.flip = dequantize, flip
        self.device, self.precision, self.deterministic = device, precision, deterministic
        self.eval_every, self.eval_start, self.save_every = eval_every, eval_start, save_every
        self.log_every, self.sample_every, self.keep_checkpoints = log_every, sample_every, keep_checkpoints
        self.spectral_every, self.keep_every = spectral_every, keep_every
        self.resume, self.resume_allow = resume, tuple(resume_allow or ())
        self.run_dir, self.data_memory_gb, self.threads = run_dir, data_memory_gb, threads

        mistakes = [*_warmup_mistakes(d_steps, d_warmup_steps, d_warmup_updates, d_warmup_every)]
        if d_warmup_steps and joint_fakes:
            what = f"can't generate the images of all {d_warmup_steps} updates of a warm-up in one pass of G"
            mistakes.append(f"joint_fakes: {what}; set it to false, or d_warmup_steps=0")
        needs = frozenset[str]().union(*(m.needs for m in self.methods.values()))
        self.extra_batches = int("real_in_g" in needs)  # of real samples per step, beside D's
        warmup = d_warmup_steps, d_warmup_updates, d_warmup_every
        sizes = d_steps, self.batch_size, self.g_batch_size
        self.timetable = timetable or Steady(*sizes, self.extra_batches, *warmup)
        self.schedules = dict(schedules or {})
        try:
            self.timetable.prepare(self)
        except ValueError as error:
            mistakes.append(str(error))
        mistakes += _schedule_mistakes(self)
        if not re.fullmatch(r"[\w.+ -]{1,64}", setting):
            mistakes.append(f"setting: {setting[:40]!r} is not a valid folder name; use letters and digits")
        mistakes += _kind_mistakes(self)
        if architecture.classifies and class_loss is None:
            k_plus_1 = getattr(architecture, "k_plus_1", False)
            what = (
                f"architecture.head={'k_plus_1' if k_plus_1 else 'ac'} has a classifier, but no loss is set"
            )
            mistakes.append(
                f"class_loss: {what}; set class_loss={'labelled' if k_plus_1 else 'acgan or wgan_gp'}"
            )
        if class_loss is not None and not architecture.classifies:
            mistakes.append("class_loss: D has no classifier; set architecture.head=ac, or leave it out")
        if order == "together" and (
            d_steps > 1 or self.g_batch_size != batch_size or joint_fakes or d_warmup_steps
        ):
            what = "both players are updated from the same latents, once"
            fix = "set d_steps=1 g_batch_size=null joint_fakes=false d_warmup_steps=0, or order=d_first"
            mistakes.append(f"order: {what}; {fix}")
        for size, key in self.batch_sizes().items():
            if size % accumulate or size // accumulate < 2:
                what = f"{key}={size} does not split into {accumulate} micro batches of at least 2"
                mistakes.append(f"accumulate: {what}; choose a divisor of {key}")
            elif size // accumulate % architecture.group:
                what = f"{size // accumulate} images of a pass are no groups of {architecture.group}"
                mistakes.append(f"{key}: {what}; choose a multiple")
        if joint_fakes and fake_labels == "data" and architecture.conditional:
            mistakes.append(
                "joint_fakes: fake_labels=data needs the labels of each real batch; set it to false"
            )
        needing = [name for name, m in self.methods.items() if "labelled" in m.needs]
        if needing and not dataset.labelled:
            what = f"{needing[0]} needs class labels, which {dataset.name} {dataset.split} has not"
            mistakes.append(f"dataset: {what}; use a split with labels")
        if architecture.conditional and not dataset.labelled:
            mistakes.append(f"dataset: {NO_LABELS.format(f'{dataset.name} {dataset.split}')}")
        if isinstance(resume, str) and not re.search(
            r"^(auto|never|\d{1,18})$|(^|/)step-\d{9,18}[^/]*/?$", resume
        ):
            mistakes.append(
                f"resume: must be auto, never, a step or a step's folder, got {resume!r}; use resume=auto"
            )
        if keep_every and save_every and keep_every % save_every:
            mistakes.append(
                f"keep_every: {keep_every} is not a multiple of save_every={save_every}; make it one"
            )
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            mistakes.append(f"device: {device!r} is unknown; use auto, cpu, cuda or cuda:0, cuda:1, ...")
        if lr_decay == "linear" and lr_decay_start >= max(steps, 1):
            mistakes.append(f"lr_decay_start: {lr_decay_start} is not below steps={steps}; lower it")
        elif lr_decay == "linear" and "optimizer.lr" in self.schedules:
            mistakes.append("lr_decay: schedules has optimizer.lr too; leave one out")
        elif lr_decay == "linear":
            self.schedules["optimizer.lr"] = Linear(max(steps, 1), lr_decay_start)
        mistakes += [f"{key}: {text}" for key, m in self.methods.items() for text in m.mistakes(self)]
        if len(replacing := [key for key, m in self.methods.items() if m.replaces_g_loss]) > 1:
            mistakes.append(f"technique: {' and '.join(replacing)} both replace G's loss; choose one")
        if both := normalization.keys() & self.technique.keys():
            mistakes.append(f"technique: {min(both)} is a normalization's name too; rename one")
        for player in PLAYERS:
            norms = [key for key, m in self.methods.items() if m.feature_norm(player) is not None]
            if len(norms) > 1:
                names = " and ".join(key.rpartition(".")[2] for key in norms)
                what = f"{names} both normalize {player.upper()}'s activations"
                mistakes.append(f"normalization: {what}; choose one")
        norms = [name for name, s in normalization.items() if s.normalizes_weights]
        if len(norms) > 1:
            mistakes.append(f"normalization: {' and '.join(norms)} both normalize D's weights; choose one")
        if not getattr(architecture, "k_plus_1", False):
            mistakes += [
                f"metric.scores.{name}: needs a D that classifies; leave it out, or use head=k_plus_1"
                for name, score in metric.scores.items()
                if "classifier" in score.needs
            ]
        if labelled_per_class and not any("labelled" in m.needs for m in self.methods.values()):
            mistakes.append("labelled_per_class: nothing learns from labels here; set class_loss=labelled")
        if not architecture.conditional:
            mistakes += [
                f"metric.scores.{name}: needs class labels, but this architecture is unconditional; leave it "
                "out, or use architecture=resnet architecture.head=projection"
                for name, score in metric.scores.items()
                if "labels" in score.needs
            ]
        if mistakes:
            raise ValueError("\n".join(mistakes))

    @property
    def methods(self) -> dict[str, Method]:
        """All methods of the run by their config keys, as ``normalization.gp``."""
        of_d = {"normalization": self.normalization, "technique": self.technique}
        named = {f"{group}.{name}": m for group, ms in of_d.items() for name, m in ms.items()}
        classes = {} if self.class_loss is None else {"class_loss": self.class_loss}
        return {"loss": self.loss, **classes, **named}

    def batch_sizes(self) -> dict[int, str]:
        """The run's batches over all ranks, and the first key that sets each."""
        sizes = {self.g_batch_size: "g_batch_size", self.batch_size: "batch_size"}
        phases = (self.timetable.round(step).batch for step, _ in self.timetable.stretches(self.steps))
        return dict.fromkeys(phases, "timetable.batch") | sizes

    @property
    def shape(self) -> Shape:
        """Shape of the samples; see ``Dataset.shape``."""
        return self.dataset.shape

    def optimizer_of_d(self, parameters: Iterable[Tensor]) -> Optimizer:
        """Build D's optimizer."""
        return self.optimizer(parameters, **self.d_optimizer)


def _warmup_mistakes(d_steps: int, steps: int, updates: int, every: int) -> Iterator[str]:
    if steps and not updates and not every:
        what = f"{steps} updates of D, but no update of G uses them"
        yield f"d_warmup_steps: {what}; set d_warmup_updates=25 or d_warmup_every=500"
    if (updates or every) and not steps:
        key = "d_warmup_updates" if updates else "d_warmup_every"
        yield f"{key}: has no effect with d_warmup_steps=0; set d_warmup_steps=100"
    if steps and steps < d_steps:
        yield f"d_warmup_steps: {steps} is less than d_steps={d_steps}; raise it"


def _schedule_mistakes(e: Experiment) -> Iterator[str]:
    known = ["optimizer.lr", *(["ema"] if e.ema else [])]
    for name, method in e.methods.items():
        known += [f"{name}.{key}" for key in sorted(method.schedulable)]
    for key in e.schedules.keys() - known:
        yield f"schedules: {key!r} is no number of this run that can change; it has {', '.join(known)}"


def _kind_mistakes(e: Experiment) -> Iterator[str]:
    """Parts that do not support the dataset's kind of samples, and options for images only."""
    kind, dataset, traits = e.shape.kind, e.dataset.name, sample_kind(e.shape)
    if kind not in e.architecture.kinds:
        what = f"generates {' and '.join(e.architecture.kinds)}, but dataset {dataset} has {kind}"
        yield f"architecture: {what}; use architecture={traits.architecture}"
    else:
        try:
            e.architecture.check(e.shape)
        except ValueError as error:
            yield str(error)
    for name, metric in e.metric.scores.items():
        if kind not in metric.kinds:
            what = f"scores {' and '.join(metric.kinds)}, but dataset {dataset} has {kind}"
            yield f"metric.scores.{name}: {what}; use metric=[{traits.metrics}]"
    for key in ("dequantize", "flip"):
        if getattr(e, key) and key not in traits.options:
            yield f"{key}: works on images only, but dataset {dataset} has {kind}; set it to false"


def method_name(
    normalization: Mapping[str, object] | list[str], loss: str, technique: Iterable[str] = ()
) -> str:
    """The name of a method in papers: ``sn``, ``wgan-gp``, ``gan-gp``, ``none``, ``sn+gp``, ...

    ``loss``: name of the loss's class or config. A gradient penalty alone is named after the loss; combined
    with others it is ``wgan-gp`` with the Wasserstein loss, else ``gp``: ``sn+wgan-gp``, ``sn+gp``. Names of
    techniques follow.
    """
    names = list(normalization)
    if loss.lower() == "wasserstein":
        names = ["wgan-gp" if n == "gp" else n for n in names]
    elif names == ["gp"]:
        names = ["gan-gp"]
    return "+".join([*names, *technique]) or "none"
