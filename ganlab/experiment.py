"""Every knob of one run, typed and with its unit. The page to read first.

A composed config is a tree of ``_target_`` nodes; its root builds an ``Experiment``. The signatures are the
schema: ``config.py`` checks a config against them before anything is built.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from ganlab.data.base import Dataset
from ganlab.extractors.base import Extractor
from ganlab.methods.base import Method
from ganlab.methods.losses import ClassLoss, Loss
from ganlab.methods.priors import Prior
from ganlab.metrics.base import Measure, Metric, MetricError
from ganlab.metrics.protocol import OPTIONAL, Protocol
from ganlab.models.base import Architecture
from ganlab.schema import MOST, Arguments, Count, NonNegative, Range, Seed, Steps, Threads, Unit, checked
from ganlab.types import Shape

NO_LABELS = (
    "{} has no class labels, and the architecture is conditional; "
    "use a split with labels, or architecture.head=none"
)
UNLIMITED = 1 << 62  # images: as many as a protocol can ask for


class Scoring:
    """What is measured, on which features, under which protocol.

    Args:
        extractor: the feature network (``metric.extractor=inception`` or ``cifar``).
        protocol: counts, splits and rounding of the scores at the end of a run.
        scores: the metrics by name, computed from one feature pass.
        progress: the protocol of the evaluations during training; null: the same.
        weights: a file of the extractor's weights; null: the packaged, cached or downloaded one.

    Raises ValueError for scores that no number of real images makes possible under a protocol.
    """

    @checked
    def __init__(
        self,
        extractor: Extractor,
        protocol: Protocol,
        scores: dict[str, Measure],
        progress: Protocol | None = None,
        weights: str | None = None,
    ) -> None:
        self.extractor, self.protocol, self.scores = extractor, protocol, scores
        self.weights = weights
        same = progress is None or progress.record(OPTIONAL) == protocol.record(OPTIONAL)
        self.progress = protocol if progress is None or same else progress  # one object where they agree
        if wrong := dict.fromkeys(self._impossible()):
            raise ValueError("\n".join(wrong))

    def _impossible(self) -> Iterator[str]:
        """The scores that a protocol's counts rule out, however many real images there are."""
        for protocol in (self.progress, self.protocol):
            for name, score in self.scores.items():
                if isinstance(score, Metric):
                    try:
                        score.check(protocol, protocol.fid_n_real or UNLIMITED)
                    except MetricError as error:
                        fix = "choose another metric.protocol, or leave this metric out"
                        yield f"scores.{name}: {error}; {fix}"


class Experiment:
    """One run. A "step" is one generator update, unless said otherwise.

    Raises ValueError with one line per mistake, each "key: what is wrong; the fix".

    Args:
        dataset: the images.
        architecture: G and D.
        normalization: what stabilises D, by name, in this order, but for a norm of weights, which comes last.
        loss: the adversarial loss of both players.
        prior: where z comes from.
        optimizer: called with parameters; one for each player.
        d_optimizer: the optimizer's arguments that are others for D, as {lr: 4e-4, weight_decay: 1e-3}; null:
            none.
        setting: name of the optimizer setting, A to F of SNGAN's Table 1, or your own.
        metric: how the run is scored.
        class_loss: the loss of D's auxiliary classifier, for architecture.head=ac; null: none.
        steps: generator updates in all.
        d_steps: discriminator updates before each generator update (n_dis, n_critic).
        d_warmup_steps: so many instead, before generator updates that warm D up; 0: there are none. WGAN's
            code has 100 (arXiv:1701.07875).
        d_warmup_updates: the first so many generator updates do; WGAN's code: 25.
        d_warmup_every: and every one whose number, counted from 0, is a multiple of this; WGAN's code: 500;
            0: no others.
        batch_size: real, and generated, images per D update, of all ranks together.
        g_batch_size: generated images per G update; null: ``batch_size``.
        accumulate: micro batches that each update is made of, so that a large batch fits a small GPU; batch
            norm sees micro batches, and ``step.py`` says what else is not the same.
        order: ``d_first``, or ``g_first`` as in SNGAN's code: G's update stands before D's in every step.
        d_pass: ``auto``: real and generated images pass D in one batch where that changes nothing but
            rounding (no batch norm in D, no spectral norm with update=per_forward); ``apart``: never.
        joint_fakes: G makes the images of all ``d_steps`` updates of D in one pass: faster; its batch norm
            then sees all of them at once, which no paper does.
        fold: up- and downsampling folded into the ResNets' convolutions: the same numbers up to rounding.
        fixed_generator: above 0, generated samples are real ones plus N(0, fixed_generator^2), and G is not
            trained: WGAN-GP's Figure 1a, of D alone, has 1. Such a run has no scores.
        fixed_shift: the same with this added to each coordinate of the real samples, and with no noise where
            fixed_generator is 0: WGAN's Figure 2 (arXiv:1701.07875); 0: none.
        fake_labels: the classes that a conditional G is trained on: ``uniform``, as in SNGAN's code, or as in
            the ``data``: the labels of D's real batch, and of random training images in G's updates.
            Scores and pictures draw them uniformly.
        sync_bn: in a run of many ranks (torchrun), batch norm over the whole batch, as one process has it;
            ``false``: over each rank's part, as SNGAN's runs on four GPUs had it, and without its exchanges.
        seed: of everything random.
        lr_decay: ``linear``: the learning rates fall to 0 at the last step, from ``lr_decay_start`` on.
        lr_decay_start: step from which they fall.
        ema: decay per step of the moving average of G that is scored and sampled; 0: G itself.
        dequantize: real pixels as x / 128 - 1 + U(0, 1/128) (SNGAN's code), not x / 127.5 - 1.
        flip: mirror real images left-right with probability 1/2.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:i``.
        engine: how an update runs. ``eager``; ``graph``: recorded once as a CUDA graph and replayed;
            ``compile``: by torch.compile, which takes a minute or more at first; ``auto``: ``graph`` on a GPU
            where everything can be recorded, else ``eager``. log.txt and result.json tell which it was.
        precision: ``fp32``; ``tf32``: fp32 whose convolutions may use TensorFloat-32 on a GPU; ``bf16``:
            nets under bfloat16 autocast; norms, penalties and losses stay in fp32. Scores are in fp32
            always. ``auto``: ``bf16`` where the processor has it, else ``tf32``: it depends on the machine.
        eval_every: steps between evaluations; 0: only at the end.
        eval_start: evaluate the untrained G too.
        save_every: steps between checkpoints; 0: only at evaluations that are the best so far, and the end.
        log_every: steps between log lines; 0: never.
        sample_every: steps between sample grids; 0: only at the end.
        validation: at every log line D's loss on images that it was not trained on, beside that on training
            images: of this split of the dataset; true: its test or validation split, or what ``limit`` left
            out; null: none. Training is the same with it.
        validation_n: how many images of each, the same ones every time.
        spectral_every: steps between records of the spectral norms of D's weights (exact SVD); 0: none.
        keep_checkpoints: how many of the newest checkpoints stay, besides the best one.
        keep_every: checkpoints at multiples of this step stay for good; 0: none.
        resume: ``auto``: go on from the newest checkpoint that verifies; a step, or a step's folder: from
            that one or not at all, later ones are set aside; ``never``: set the old run aside, begin anew.
        resume_allow: keys that may differ from the run's, as [optimizer.lr]: the rest is another run.
        run_dir: the run folder; null: derived from the config, under ``outputs/``.
        data_memory_gb: images up to this size (10^9 bytes) lie on the device as a whole, larger sets in a
            memory map, and an update is then not recorded; null: half of a GPU's free memory, 4 on a CPU.
        threads: CPU threads of torch; null: torch's choice, all cores (a resumed run takes the recorded
            number). Runs side by side on one CPU are faster with threads=1 each; a sweep sees to it.
        deterministic: only deterministic GPU kernels (slower); a CPU is deterministic always.
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
        class_loss: ClassLoss | None = None,
        setting: str = "custom",
        steps: Steps = 100_000,
        d_steps: Count = 1,
        d_warmup_steps: Steps = 0,
        d_warmup_updates: Steps = 0,
        d_warmup_every: Steps = 0,
        batch_size: Annotated[int, Range(ge=2, le=MOST)] = 64,
        g_batch_size: Annotated[int, Range(ge=2, le=MOST)] | None = None,
        accumulate: Count = 1,
        order: Literal["d_first", "g_first"] = "d_first",
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
        keep_checkpoints: Annotated[int, Range(ge=2, le=MOST)] = 2,
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
        self.d_warmup_steps, self.d_warmup_updates = d_warmup_steps, d_warmup_updates
        self.d_warmup_every, self.validation, self.validation_n = d_warmup_every, validation, validation_n
        self.batch_size, self.g_batch_size = batch_size, g_batch_size or batch_size
        self.class_loss, self.fake_labels = class_loss, fake_labels
        self.accumulate, self.order = accumulate, order
        self.d_pass, self.joint_fakes, self.fold, self.engine = d_pass, joint_fakes, fold, engine
        self.sync_bn, self.fixed_generator = sync_bn, fixed_generator
        self.fixed_shift = fixed_shift
        if fixed_generator or fixed_shift:  # scores of a G that is not trained say nothing
            self.metric = Scoring(metric.extractor, metric.protocol, {})
        self.lr_decay, self.lr_decay_start, self.ema = lr_decay, lr_decay_start, ema
        self.dequantize, self.flip = dequantize, flip
        self.device, self.precision, self.deterministic = device, precision, deterministic
        self.eval_every, self.eval_start, self.save_every = eval_every, eval_start, save_every
        self.log_every, self.sample_every, self.keep_checkpoints = log_every, sample_every, keep_checkpoints
        self.spectral_every, self.keep_every = spectral_every, keep_every
        self.resume, self.resume_allow = resume, tuple(resume_allow or ())
        self.run_dir, self.data_memory_gb, self.threads = run_dir, data_memory_gb, threads

        wrong = [*self._warmup_mistakes()]
        if not re.fullmatch(r"[\w.+ -]{1,64}", setting):
            wrong.append(
                f"setting: {setting[:40]!r} is no name, and it names folders; use letters and digits"
            )
        wrong += _misfits(self)
        if architecture.classifies and class_loss is None:
            what = "architecture.head=ac has a classifier and no loss for it"
            wrong.append(f"class_loss: {what}; set class_loss=acgan or wgan_gp")
        if class_loss is not None and not architecture.classifies:
            wrong.append("class_loss: D has no classifier; set architecture.head=ac, or leave it out")
        for key, size in (("batch_size", self.batch_size), ("g_batch_size", self.g_batch_size)):
            if size % accumulate or size // accumulate < 2:
                what = f"{accumulate} micro batches of at least 2 do not make {key}={size}"
                wrong.append(f"accumulate: {what}; choose a divisor of it")
        if joint_fakes and fake_labels == "data" and architecture.conditional:
            wrong.append("joint_fakes: fake_labels=data wants the labels of each real batch; set it to false")
        if architecture.conditional and not dataset.labelled:
            wrong.append(f"dataset: {NO_LABELS.format(f'{dataset.name} {dataset.split}')}")
        if isinstance(resume, str) and not re.search(
            r"^(auto|never|\d{1,18})$|(^|/)step-\d{9,18}[^/]*/?$", resume
        ):
            wrong.append(
                f"resume: {resume!r} is none of auto, never, a step, a step's folder; use resume=auto"
            )
        if keep_every and save_every and keep_every % save_every:
            wrong.append(f"keep_every: {keep_every} is no multiple of save_every={save_every}; make it one")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            wrong.append(f"device: {device!r} is unknown; use auto, cpu, cuda or cuda:0, cuda:1, ...")
        if lr_decay == "linear" and lr_decay_start >= max(steps, 1):
            wrong.append(f"lr_decay_start: {lr_decay_start} is not below steps={steps}; lower it")
        norms = [name for name, s in normalization.items() if s.feature_norm() is not None]
        if len(norms) > 1:
            wrong.append(f"normalization: {' and '.join(norms)} both normalise D's activations; choose one")
        norms = [name for name, s in normalization.items() if s.normalizes_weights]
        if len(norms) > 1:
            wrong.append(f"normalization: {' and '.join(norms)} both normalise D's weights; choose one")
        if not architecture.conditional:
            wrong += [
                f"metric.scores.{name}: needs class labels, and this architecture is unconditional; leave it "
                "out, or use architecture=resnet architecture.head=projection"
                for name, measure in metric.scores.items()
                if measure.needs_labels
            ]
        if wrong:
            raise ValueError("\n".join(wrong))

    @property
    def shape(self) -> Shape:
        """Shape of the samples: what the dataset gives and the architecture builds; see ``Dataset.shape``."""
        return self.dataset.shape

    def optimizer_of_d(self, parameters: Iterable[Tensor]) -> Optimizer:
        """D's optimiser."""
        return self.optimizer(parameters, **self.d_optimizer)

    def d_steps_of(self, step: int) -> int:
        """D's updates before generator update number ``step``, counted from 0."""
        every = self.d_warmup_every
        warming = step < self.d_warmup_updates or (every and step % every == 0)
        return self.d_warmup_steps if warming and self.d_warmup_steps else self.d_steps

    def extra_d_steps(self, step: int) -> int:
        """How many more than ``d_steps`` each D's warm-ups take in all generator updates before ``step``."""
        if not self.d_warmup_steps:
            return 0
        first, every = min(step, self.d_warmup_updates), self.d_warmup_every
        warming = first + (-(-step // every) - -(-first // every) if every else 0)
        return warming * (self.d_warmup_steps - self.d_steps)

    def _warmup_mistakes(self) -> Iterator[str]:
        steps, when = self.d_warmup_steps, self.d_warmup_updates or self.d_warmup_every
        if steps and not when:
            what = f"{steps} updates of D, and no update of G that wants them"
            yield f"d_warmup_steps: {what}; set d_warmup_updates=25 or d_warmup_every=500"
        if when and not steps:
            key = "d_warmup_updates" if self.d_warmup_updates else "d_warmup_every"
            yield f"{key}: there is no warm-up with d_warmup_steps=0; set d_warmup_steps=100"
        if steps and steps < self.d_steps:
            yield f"d_warmup_steps: {steps} are fewer than d_steps={self.d_steps}; raise it"
        if steps and self.joint_fakes:
            what = f"images of all {steps} updates of a warm-up from one pass of G"
            yield f"joint_fakes: {what} would be too many; set it to false, or d_warmup_steps=0"

    def lr_factor(self, step: int) -> float:
        """What the learning rates are multiplied by in the update number ``step``, counted from 0."""
        if self.lr_decay == "none" or step < self.lr_decay_start:
            return 1.0
        return 1.0 - (step - self.lr_decay_start) / (self.steps - self.lr_decay_start)


def _misfits(e: Experiment) -> Iterator[str]:
    """Parts that do not know the dataset's kind of samples, and options that only images have."""
    kind, named = e.shape.kind, e.dataset.name
    if kind not in e.architecture.kinds:
        fix = {"images": "cnn", "points": "mlp", "text": "charlm"}[kind]
        what = f"builds {' and '.join(e.architecture.kinds)}, and dataset {named} has {kind}"
        yield f"architecture: it {what}; use architecture={fix}"
    else:
        try:
            e.architecture.check(e.shape)
        except ValueError as error:
            yield str(error)
    fix = {"points": "modes,wasserstein1", "text": "ngram_js", "images": "is,fid,kid"}[kind]
    for name, measure in e.metric.scores.items():
        if kind not in measure.kinds:
            what = f"scores {' and '.join(measure.kinds)}, and dataset {named} has {kind}"
            yield f"metric.scores.{name}: {what}; use metric=[{fix}]"
    for key in ("dequantize", "flip"):
        if getattr(e, key) and kind != "images":
            yield f"{key}: is for images, and dataset {named} has {kind}; set it to false"


def method_name(normalization: Mapping[str, object] | list[str], loss: str) -> str:
    """The field's name of a method: ``sn``, ``wgan-gp``, ``gan-gp``, ``none``, ``sn+gp``, ...

    ``loss`` is the class's or the group choice's name. A gradient penalty alone is called by its loss; among
    others it is ``wgan-gp`` under the Wasserstein loss, else ``gp``: ``sn+wgan-gp``, ``sn+gp``.
    """
    names = list(normalization)
    if loss.lower() == "wasserstein":
        names = ["wgan-gp" if n == "gp" else n for n in names]
    elif names == ["gp"]:
        return "gan-gp"
    return "+".join(names) or "none"
