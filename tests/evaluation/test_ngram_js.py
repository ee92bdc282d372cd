"""n-gram divergences: by hand, against a brute force as the released code has it, and their floor."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

from ganlab.data.text import Text
from ganlab.metrics import ngram_js
from ganlab.metrics.base import Fakes, MetricError, Real
from ganlab.metrics.ngram_js import NgramJS, divergence, grams
from ganlab.metrics.protocol import Protocol

PROTOCOL = Protocol(name="t", is_n_fake=64, fid_n_fake=64)


def real(rows: np.ndarray, symbols: int = 5, name: str = "a") -> Real:
    return Real(rows.astype(np.int16), {"vocabulary": list("?`abcdefgh"[:symbols]), "fingerprint": name})


def brute(a: np.ndarray, b: np.ndarray, n: int) -> float:
    """Counters of tuples, log-likelihoods, as language_helpers.py goes about it."""
    counters = [
        Counter(tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)) for rows in (a, b)
    ]
    p, q = ({k: v / sum(c.values()) for k, v in c.items()} for c in counters)
    total = 0.0
    for one in (p, q):
        for gram, share in one.items():
            total += share * math.log(share / ((p.get(gram, 0) + q.get(gram, 0)) / 2)) / 2
    return total / math.log(2)


def test_by_hand() -> None:
    half = np.array([[1, 1, 2, 2]])  # symbols 1, 2 at 1/2 each
    ones = np.array([[1, 1, 1, 1]])
    # p = (1/2, 1/2), q = (1, 0), m = (3/4, 1/4): KL(p|m) = 1/2 log2(2/3) + 1/2 log2(2); KL(q|m) = log2(4/3)
    expected = (0.5 * math.log2(2 / 3) + 0.5 + math.log2(4 / 3)) / 2
    assert divergence(grams(half, 1, 3), grams(ones, 1, 3)) == pytest.approx(expected, abs=1e-12)
    # bigrams 11 12 22 at 1/3 each, against 11 alone: m = (2/3, 1/6, 1/6)
    expected = (1 / 3 * math.log2(1 / 2) + 2 / 3 * math.log2(2) + math.log2(3 / 2)) / 2
    assert divergence(grams(half, 2, 3), grams(ones, 2, 3)) == pytest.approx(expected, abs=1e-12)
    assert divergence(grams(half, 3, 3), grams(half, 3, 3)) == 0
    assert divergence(grams(ones, 2, 3), grams(ones + 1, 2, 3)) == pytest.approx(1)


def test_grams_do_not_cross_lines() -> None:
    bigrams = grams(np.array([[1, 2], [3, 1]]), 2, 2)
    assert bigrams.codes.tolist() == [1 * 4 + 2, 3 * 4 + 1]
    assert bigrams.counts.tolist() == [1, 1]


@pytest.mark.parametrize("bits", [3, 15])
def test_like_the_brute_force_block_by_block(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    top = 2**bits - 1
    a, b = random.randint(max(0, top - 5), top + 1, (30, 6)), random.randint(max(0, top - 3), top + 1, (9, 6))
    whole = [grams(a, n, bits) for n in range(1, 5)]
    monkeypatch.setattr(ngram_js, "BLOCK", 12)
    for n in range(1, 5):
        blocks = grams(a, n, bits)
        assert np.array_equal(blocks.codes, whole[n - 1].codes)
        assert (blocks.codes >= 0).all()
        assert np.array_equal(blocks.counts, whole[n - 1].counts)
        assert divergence(blocks, grams(b, n, bits)) == pytest.approx(brute(a, b, n), abs=1e-12)


def test_the_metric_and_its_floor() -> None:
    random = np.random.RandomState(1)
    rows, metric = random.randint(1, 5, (50, 7)), NgramJS(n=10)
    fake = torch.from_numpy(random.randint(0, 3, (10, 7)).astype(np.int16))
    scores = metric(real(rows), Fakes(samples=fake), PROTOCOL)
    assert list(scores) == list(metric.names) == ["js4", "js3", "js2", "js1"]
    for n in range(1, 5):
        assert scores[f"js{n}"] == pytest.approx(brute(rows, fake.numpy(), n), abs=1e-12)
        assert metric.among_real(real(rows), PROTOCOL)[f"js{n}"] == pytest.approx(
            brute(rows[10:], rows[:10], n), abs=1e-12
        )
    assert (metric.n_fake(PROTOCOL), metric.better, metric.options()) == (10, "lower", {"n": 10})
    assert metric.among_real(real(rows[:19]), PROTOCOL) == {}  # too few others
    with pytest.raises(MetricError, match=r"needs lines of 4 symbols, and dataset\.length is 3"):
        metric.check(PROTOCOL, real(rows[:, :3]))


def test_vocabularies_that_are_large_fit(tmp_path: object) -> None:
    assert Text().max_vocabulary == 2048
    assert 4 * ngram_js._bits(Real(None, {"vocabulary": ["x"] * 2**15})) == 60
