#!/bin/bash
# What ganlab needs on a machine that has PyTorch for CUDA but no network, fetched into a folder on one that has one:
#
#   scripts/offline-bundle.sh DEST [PACKAGE ...]      DEST/wheels: packages that such machines seldom have, and those named,
#                                                     at the versions of constraints.txt, without what they depend on
#   DATA=cifar-10-python.tar.gz scripts/offline-bundle.sh DEST pytest pytest-timeout pytest-xdist execnet
#
# There:  python3 -m pip install --no-index --no-deps --target site DEST/wheels/*.whl
#         PYTHONPATH=site:. python3 -m ganlab doctor        (says what is still missing)
#
# DATA: files to be copied to DEST/data. VERSION: Python's there (default 3.12; x86-64 Linux). PY: the Python here.
set -euo pipefail
dest=${1:?usage: scripts/offline-bundle.sh DEST [PACKAGE ...]}; shift
constraints=$(dirname "$(readlink -f "$0")")/../constraints.txt
pip=("${PY:-python3}" -m pip --disable-pip-version-check)
mkdir -p "$dest/wheels"
pinned() { for name; do grep -m1 "^$name==" "$constraints" | sed 's/ *;.*//' || echo "$name"; done; }
platforms=(); for glibc in 17 24 27 28 34; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
# shellcheck disable=SC2046  # a word for each package
"${pip[@]}" wheel -q --no-deps -w "$dest/wheels" $(pinned antlr4-python3-runtime)  # it has no wheel
# shellcheck disable=SC2046
"${pip[@]}" download -q --no-deps --only-binary=:all: --python-version "${VERSION:-3.12}" --implementation cp \
  "${platforms[@]}" --platform manylinux2014_x86_64 -d "$dest/wheels" \
  $(pinned hydra-core omegaconf hydra-joblib-launcher torch-fidelity lmdb pot "$@")
for file in ${DATA:-}; do mkdir -p "$dest/data"; cp "$file" "$dest/data/"; done
du -sh "$dest"
