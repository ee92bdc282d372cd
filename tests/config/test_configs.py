"""Every YAML file under configs/ composes, builds, and plays a round; a new file is tested by being there."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from pathlib import Path

import pytest
import torch
import yaml

from ganlab.config import compose
from ganlab.config.targets import resolve
from ganlab.data.imagenet import ImageNet
from ganlab.errors import ConfigError
from ganlab.experiment import Experiment
from ganlab.training.build import build_gan, pack_gan, unpack_gan
from ganlab.training.step import update
from ganlab.types import Batch, ImageShape

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(p.relative_to(CONFIGS) for p in CONFIGS.rglob("*.yaml"))
PLAYED = ("architecture", "normalization", "technique", "loss", "prior", "setting", "experiment")
LABELLED = ("intra_fid", "intra_ms_ssim")  # scores of classes
SMALL = [
    "architecture.width=0.04",
    "batch_size=4",
    "g_batch_size=null",
    "accumulate=1",
    "lr_decay_start=0",
    "steps=4",
    "d_steps=1",
    "fixed_shift=0",
    "device=cpu",
]
CLASSES = 7
K_PLUS_1 = ["architecture=improved_conv", "architecture.head=k_plus_1", "normalization=none"]
NETS = defaultdict(  # by the dataset's file
    list,
    points=["architecture=mlp", "metric=[wasserstein1,modes]"],
    text=["architecture=charlm", "metric=[ngram_js]"],
)


def composed(*overrides: str) -> Experiment:
    built = compose.build(compose.compose(list(overrides)))
    assert isinstance(built, Experiment)
    return built


def options(group: str) -> list[str]:
    return [f.stem for f in FILES if f.parts[0] == group and len(f.parts) == 2]


@functools.cache
def of_images() -> list[str]:
    """Metrics that score images."""
    nodes = {
        name: next(iter(yaml.safe_load((CONFIGS / "metric" / f"{name}.yaml").read_text()).values()))
        for name in options("metric")
    }
    metrics = {name: resolve(node["_target_"]) for name, node in nodes.items()}
    return [name for name, m in metrics.items() if "images" in m.kinds and "classifier" not in m.needs]


def play(e: Experiment, keeps_state: bool = True) -> dict[str, float]:
    torch.manual_seed(0)
    gan = build_gan(e, torch.device("cpu"), CLASSES)
    y = torch.randint(CLASSES, (e.batch_size,))
    gan.labels = y
    before = [p.detach().clone() for net in (gan.discriminator, gan.generator) for p in net.parameters()]
    x = torch.rand(e.batch_size, *e.shape) * 2 - 1
    losses = update(gan, lambda: Batch(x, y))
    after = [p for net in (gan.discriminator, gan.generator) for p in net.parameters()]
    moved = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(moved) > 0.7 * len(moved), "both players learn"
    if keeps_state:  # on the way to a checkpoint and back
        again, (tensors, rest) = build_gan(e, torch.device("cpu"), CLASSES), pack_gan(gan)
        unpack_gan(again, tensors, rest, "here")
        for key, value in pack_gan(again)[0].items():
            assert torch.equal(value, tensors[key]), key
    return {name: float(value) for name, value in losses.items()}


@pytest.mark.parametrize(("group", "option"), [(g, o) for g in PLAYED for o in options(g)])
def test_every_choice_plays_a_round(group: str, option: str) -> None:
    plus = "+" if group == "experiment" else ""
    # any images of the right shape will do: the datasets' own files are tested with their loaders
    digits = []
    if group == "experiment" and option != "digits":
        made = compose.compose([f"+experiment={option}"])
        shape = compose.build(made).shape
        if isinstance(shape, ImageShape):
            digits = ["dataset=digits", "dataset.channels=3", f"dataset.resolution={shape.height}"]
            own = made.tree["dataset"]  # keys that the experiment sets
            digits += [f"~dataset.{key}" for key in ("limit", "stretch") if own.get(key)]
    if (group, option) == ("architecture", "charlm"):
        digits = ["dataset=text", "metric=[ngram_js]"]
    if (group, option) == ("technique", "label_smoothing"):
        digits = ["loss=standard"]  # the demo's has no targets
    if (group, option) == ("loss", "began"):
        digits = ["architecture=began"]
    if (group, option) == ("loss", "k_plus_1"):
        digits = [*K_PLUS_1, "class_loss=labelled"]
    losses = play(composed(f"{plus}{group}={option}", *digits, *SMALL), group != "experiment")
    assert {"d", "g"} <= set(losses)
    assert all(torch.isfinite(torch.tensor(v)) for v in losses.values()), losses


@pytest.mark.parametrize("option", options("dataset"))
def test_every_dataset_builds(option: str) -> None:
    path = ["dataset.path=nowhere"] if option in ("folder", "text") else []
    net = NETS[compose.compose([f"dataset={option}", *path]).tree["dataset"]["_target_"].split(".")[2]]
    e = composed(f"dataset={option}", *path, *net, *SMALL)
    assert not isinstance(e.shape, ImageShape) or e.shape.channels in (1, 3)
    e.architecture.check(e.shape)


PROTOCOLS = [(p, "cifar") for p in options("protocol")] + [("smoke", "inception")]


@pytest.mark.parametrize(("protocol", "extractor"), PROTOCOLS)
def test_every_protocol_and_extractor_builds(protocol: str, extractor: str) -> None:
    # the language model's protocol has fewer samples than KID's subsets
    free = [name for name in of_images() if name not in LABELLED and (protocol, name) != ("language", "kid")]
    e = composed(f"metric.protocol={protocol}", f"metric.extractor={extractor}", f"metric=[{','.join(free)}]")
    assert (e.metric.protocol.name, e.metric.extractor.name) == (protocol, extractor)
    assert set(e.metric.scores) == set(free)


def test_a_key_of_a_named_file_can_be_changed() -> None:
    words = ["+experiment=sngan_cifar", "metric.protocol=smoke", "metric.protocol.fid_n_real=0"]
    e = composed(*words, "metric.progress.seed=7")
    assert (e.metric.protocol.name, e.metric.protocol.fid_n_real, e.metric.protocol.is_n_fake) == (
        "smoke",
        0,
        500,
    )
    assert (e.metric.progress.name, e.metric.progress.seed) == ("progress5k", 7)
    saved = compose.compose(["metric.protocol=smoke", "metric.protocol.fid_n_real=0"]).saved
    again = compose.reopen(saved, ["metric.protocol.seed=3", "metric.protocol=small2k"])["metric"]["protocol"]
    assert (again["name"], again["seed"], again["fid_n_real"]) == ("small2k", 3, 5000)
    with pytest.raises(ConfigError, match=r"metric\.progress\.seed: metric.progress is null; choose one"):
        composed("metric.progress=null", "metric.progress.seed=7")
    with pytest.raises(ConfigError, match=r"metric\.protocol\.fid_real: .*fid_n_real"):
        composed("metric.protocol=smoke", "metric.protocol.fid_real=0")


def test_scores_of_classes_want_a_conditional_architecture() -> None:
    with pytest.raises(ConfigError) as error:
        composed(f"metric=[{','.join(of_images())}]")
    assert [str(m) for m in error.value.mistakes] == [
        f"metric.scores.{name}: needs class labels, but this architecture is unconditional; leave it out, or "
        "use architecture=resnet architecture.head=projection"
        for name in LABELLED
    ]
    names = ",".join(of_images())
    e = composed(f"metric=[{names}]", "architecture=resnet", "architecture.head=projection", *SMALL)
    assert set(e.metric.scores) == set(of_images())


HEADS = {"concat": [], "projection": [], "k_plus_1": ["class_loss=labelled", "loss=k_plus_1"]}


@pytest.mark.parametrize("option", [*options("class_loss"), *HEADS])
def test_every_class_loss_and_head_plays_a_round(option: str) -> None:
    if option in HEADS:
        words, terms = [f"architecture.head={option}", *HEADS[option]], {"d", "g"}
    elif option == "labelled":
        words, terms = [*K_PLUS_1, "class_loss=labelled"], {"d_class"}
    else:
        words, terms = ["architecture.head=ac", f"class_loss={option}"], {"d_class", "g_class"}
    assert terms <= set(play(composed("architecture=resnet", *words, *SMALL)))


def test_normalizations_combine() -> None:
    losses = play(composed("normalization=[sn,gp,orthonormal]", *SMALL))
    assert {"gp", "orthonormal"} <= set(losses)


def test_settings_are_table_1() -> None:
    table = {
        "A": (1e-4, 0.5, 0.9, 5),
        "B": (1e-4, 0.5, 0.999, 1),
        "C": (2e-4, 0.5, 0.999, 1),
        "D": (1e-3, 0.5, 0.9, 5),
        "E": (1e-3, 0.5, 0.999, 5),
        "F": (1e-3, 0.9, 0.999, 5),
    }
    for name, (lr, beta1, beta2, d_steps) in table.items():
        e = composed(f"setting={name}")
        (group,) = e.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
        assert (group["lr"], *group["betas"], e.d_steps) == (lr, beta1, beta2, d_steps)
        assert e.setting == name


def test_the_resnet_row_is_the_papers() -> None:
    e = composed("+experiment=sngan_cifar_resnet")
    (group,) = e.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    assert (group["lr"], *group["betas"]) == (2e-4, 0.0, 0.9)
    assert (e.d_steps, e.batch_size, e.g_batch_size, e.dequantize, e.lr_decay) == (5, 64, 128, True, "linear")


def test_wgan_gps_resnet_has_its_codes_batch_norm_and_decoding() -> None:
    """gan_cifar_resnet.py halves each batch: G's norms see 32 images in a critic update, 64 in G's."""
    e = composed("+experiment=wgan_gp_cifar_resnet_acgan", "architecture.width=0.02", "device=cpu")
    gan = build_gan(e, torch.device("cpu"), 10)
    norms = [m for m in gan.generator.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert (len(norms), {m.eps for m in norms}) == (7, {1e-5})
    batches: list[int] = []
    norms[0].register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    y = torch.randint(10, (64,))
    gan.labels = y
    update(gan, lambda: Batch(torch.rand(64, 3, 32, 32) * 2 - 1, y))
    assert batches == [32, 32] * 5 + [64, 64]
    protocol = e.metric.protocol
    assert (protocol.is_n_fake, protocol.is_splits, protocol.quantize, protocol.bn) == (
        50_000,
        10,
        "bins",
        "batch",
    )
    sngan = build_gan(
        composed("+experiment=sngan_cifar_resnet", "architecture.width=0.02"), torch.device("cpu")
    )
    assert {m.eps for m in sngan.generator.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {2e-5}


def test_the_released_cnn_is_the_codes() -> None:
    """chainer-gan-lib: 3,828,739 and 5,860,865 parameters; the paper's Table 3: 3,812,355 and 2,935,873."""
    networks = {}
    for name in ("sngan_cifar", "sngan_cifar_released"):
        e = composed(f"+experiment={name}", "device=cpu")
        nets = e.architecture.generator(e.shape, 0), e.architecture.discriminator(e.shape, 0, None)
        counts = [sum(p.numel() for p in net.parameters()) for net in nets]
        networks[name] = (*counts, nets[1].slope, type(e.prior).__name__, e.order, e.setting)
    assert networks["sngan_cifar"] == (3_812_355, 2_935_873, 0.1, "Normal", "d_first", "C")
    assert networks["sngan_cifar_released"] == (3_828_739, 5_860_865, 0.2, "Uniform", "g_first", "C")


def test_imagenet_recipes_train_on_stretched_images_and_score_against_others() -> None:
    for name in ("sngan_imagenet_unconditional", "sngan_imagenet", "projection_imagenet", "acgan_imagenet"):
        e = composed(f"+experiment={name}")
        assert isinstance(e.dataset, ImageNet)
        assert (e.dataset.rule.stretch, e.dataset.reference.rule.stretch) == (True, False)
    others = ["+experiment=sngan_imagenet", "dataset=folder", "dataset.path=x", "dataset.resolution=128"]
    with pytest.raises(
        ConfigError, match=r"dataset\.stretch: .*the experiment sets it; ~dataset\.stretch removes"
    ):
        composed(*others)
    composed(*others, "~dataset.stretch")


def test_every_file_begins_with_a_header() -> None:
    """That of an experiment names paper, table and command."""
    for file in FILES:
        text = (CONFIGS / file).read_text()
        first = next(line for line in text.splitlines() if not line.startswith("# @package"))
        assert first.startswith("#"), file
        assert max(map(len, text.splitlines())) <= 130, file
        if file.parts[0] == "experiment" and file.stem != "digits":
            header = text[: text.index("defaults:")]
            assert header.startswith("# @package _global_"), file
            for pattern in (
                r"arXiv:\d{4}\.\d{5}",
                r"(Table|Figure) \d",
                "Protocol",
                rf"ganlab train \+experiment={file.stem}",
            ):
                assert re.search(pattern, header), (file, pattern)
