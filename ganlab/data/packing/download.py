"""Download datasets from their authors' sites: pinned by size and checksum, resumable, one process at a time.

``REMOTES`` lists the files; ``ganlab doctor`` shows them. ``GANLAB_OFFLINE=1`` forbids downloads. Files are
stored in ``<cache>/downloads/``, where they may also be placed manually.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ganlab.data.formats.files import check_room, progress
from ganlab.errors import EnvError
from ganlab.system import download
from ganlab.system.paths import cache_dir


@dataclass(frozen=True)
class Remote:
    """A file on its authors' site: exactly ``size`` bytes with these sums."""

    dataset: str
    file: str
    url: str
    size: int
    md5: str
    sha256: str
    part: bool = False  # whether the dataset needs all its files; else any one suffices

    @property
    def path(self) -> Path:
        """Path of the file in the cache, downloaded or not."""
        return cache_dir() / "downloads" / self.file

    @property
    def by_hand(self) -> str:
        """Instructions for obtaining the file without a download."""
        return f"put it in {self.path.parent} ({self.size:,} bytes, md5 {self.md5}) or set dataset.path"


CIFAR10, STL10 = "https://www.cs.toronto.edu/~kriz", "https://cs.stanford.edu/~acoates/stl10"
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"  # torchvision's mirror: the authors' is closed
SVHN = "http://ufldl.stanford.edu/housenumbers"
REMOTES = tuple(
    Remote(dataset, file, f"{site}/{file}", size, md5, sha256, part=dataset in ("mnist", "svhn"))
    for dataset, site, file, size, md5, sha256 in (
        ("cifar10", CIFAR10, "cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a",
         "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        ("cifar10", CIFAR10, "cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530",
         "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
        ("stl10", STL10, "stl10_binary.tar.gz", 2_640_397_119, "91f7769df0f17e558f3565bffb0c7dfb",
         "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"),
        ("mnist", MNIST, "train-images-idx3-ubyte.gz", 9_912_422, "f68b3c2dcbeaaa9fbdd348bbdeb94873",
         "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("mnist", MNIST, "train-labels-idx1-ubyte.gz", 28_881, "d53e105ee54ea40749a09fcbcd1e9432",
         "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("mnist", MNIST, "t10k-images-idx3-ubyte.gz", 1_648_877, "9fb629c4189551a2d022fa330f9573f3",
         "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("mnist", MNIST, "t10k-labels-idx1-ubyte.gz", 4_542, "ec29112dd5afa0611ce80d1b7f02629c",
         "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ("svhn", SVHN, "train_32x32.mat", 182_040_794, "e26dedcc434d2e4c54c9b2d4a06d8373",
         "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
        ("svhn", SVHN, "test_32x32.mat", 64_275_384, "eb5a983be6a315427106f1b164d9cef3",
         "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
        ("svhn", SVHN, "extra_32x32.mat", 1_329_278_602, "a93ce644f1a588dc4d68dda5feec44a7",
         "a133a4beb38a00fcdda90c9489e0c04f900b660ce8a316a5e854838379a71eb3"),
    )
)  # fmt: skip
BY_HAND = {  # not downloadable: reason, and the files to put into ``by_hand_place``
    "imagenet": (
        "no download: requires registration at image-net.org",
        "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, or train/ and val/",
    ),
    "lsun": (
        "no download: http://dl.yf.io/lsun/scenes/bedroom_train_lmdb.zip and the like",
        "bedroom_train_lmdb/ and the like, unzipped",
    ),
}


def by_hand_place(dataset: str) -> Path:
    """Default folder of a dataset in ``BY_HAND``, used if ``dataset.path`` is null."""
    return cache_dir() / "downloads" / dataset


def remotes(dataset: str) -> tuple[Remote, ...]:
    """Remote files of a dataset: alternative archives, or all its ``part`` files."""
    return tuple(remote for remote in REMOTES if remote.dataset == dataset)


def fetch(remote: Remote) -> Path:
    """Return the cached file, downloading it first if missing; an interrupted download resumes.

    Raises EnvError, with instructions for a manual download, if the network fails, the content is wrong, the
    disk is full or ``GANLAB_OFFLINE`` is set.
    """
    path, size = remote.path, remote.size
    if path.is_file() and path.stat().st_size == size:  # the reader verifies its content
        return path
    if os.environ.get("GANLAB_OFFLINE", "0") not in ("", "0"):
        raise EnvError(remote.file, f"not found, and GANLAB_OFFLINE forbids {remote.url}", remote.by_hand)
    if path.is_file():
        what = f"{path.stat().st_size:,} bytes, expected {size:,}"
        raise EnvError(str(path), what, "remove it to download it again")
    check_room(path.parent, size)
    reported = 0
    with progress(f"downloading {remote.file}", size, "bytes") as advance:

        def show(have: int, total: int) -> None:
            nonlocal reported
            advance(have - reported)
            reported = have

        try:
            download.fetch(remote.url, path, remote.sha256, show, size=size)
        except download.NotFetched as error:
            what = f"download failed ({error}) from {remote.url}"
            raise EnvError(remote.file, what, remote.by_hand) from None
    return path
