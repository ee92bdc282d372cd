"""Text as a dataset: lines, vocabulary, splits, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHARED
from torch._subclasses.fake_tensor import FakeTensorMode

from ganlab.cli import main
from ganlab.data import corpus as reading
from ganlab.data.text import Text, TextSet
from ganlab.errors import DataError

SHAKESPEARE = SHARED / "tinyshakespeare.txt"


def made(path: Path, content: str | bytes, **keys: Any) -> TextSet:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Text(**{"path": str(path), "length": 4} | keys).load()


def lines_of(images: TextSet) -> list[str]:
    """The lines as text, padding included, sorted: they are shuffled."""
    symbols = images.manifest["vocabulary"]
    return sorted("".join(symbols[i] for i in row) for row in images.images)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "corpus.txt"


def test_lines_are_cut_padded_and_counted(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ganlab"):
        images = made(file, "ab\n\nabcdef\r\n\r\nabcd\nc")
    assert lines_of(images) == ["ab``", "abcd", "abcd", "c```"]
    assert images.manifest["counts"] == {"lines_cut": 1, "empty_lines_left_out": 2}
    assert "1 lines are longer than 4 symbols and were cut" in caplog.text
    assert images.warnings == ("1 lines were cut",)
    assert (images.images.dtype, len(images), images.shape) == (np.int16, 4, (6, 4))
    assert images.manifest["count"] == 4
    assert images.fingerprint == images.manifest["fingerprint"]


@pytest.mark.parametrize("how", ["\n", "\r\n", "\r", "\r\r\n"])
def test_line_ends_of_all_systems(file: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in (3, 1 << 24):
        monkeypatch.setattr(reading, "BLOCK", block)
        images = made(file, "\ufeff" + how.join(["ab", "cd", "ef", ""]))
        assert lines_of(images) == ["ab``", "cd``", "ef``"]


def test_the_vocabulary_is_by_frequency_then_code_point(file: Path) -> None:
    # ` 6 times; b 3; a, c 2 each; the others once
    images = made(file, "bac\nbacd\nb\né€\n")
    assert images.manifest["vocabulary"] == ["\ufffd", "`", "b", "a", "c", "d", "é", "€"]
    small = made(file, "bac\nbacd\nb\né€\n", max_vocabulary=4)
    assert small.manifest["vocabulary"] == ["\ufffd", "`", "b", "a"]
    assert small.manifest["counts"]["symbols_unknown"] == 5
    assert lines_of(small) == ["b```", "ba\ufffd`", "ba\ufffd\ufffd", "\ufffd\ufffd``"]


def test_long_lines_are_split_or_fail(file: Path) -> None:
    text = "abcdefghij\nab\n\nabcdefgh\n"
    images = made(file, text, long_lines="split")
    assert lines_of(images) == sorted(["abcd", "efgh", "ij``", "ab``", "abcd", "efgh"])
    assert images.manifest["counts"] == {"lines_split": 2, "empty_lines_left_out": 1}
    with pytest.raises(DataError, match=r"line 4 has 8 symbols, more than dataset.length=4; set dataset"):
        made(file, text[11:] and "ab\n\nab\nabcdefgh\n", long_lines="fail")


def test_what_players_see_is_one_hot(file: Path) -> None:
    images = made(file, "ab\nba\n")
    x = torch.from_numpy(images.images)
    seen = images.to_model_input(x)
    assert (seen.shape, seen.dtype) == ((2, 4, 4), torch.float32)
    assert torch.equal(seen, torch.nn.functional.one_hot(x.long(), 4).transpose(1, 2).float())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # which refuses to read a value on the host
        assert images.to_model_input(mode.from_tensor(x)).shape == (2, 4, 4)
    first = images.batches("cpu", seed=3).batch(0, 2)
    assert first.x.dtype == torch.int16
    assert first.y is None


@pytest.mark.parametrize("how", ["cut", "split"])
def test_blocks_and_pieces_change_nothing(file: Path, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.RandomState(0)
    words = ["".join(random.choice(list("abcdeé€\U0001f600 "), random.randint(0, 11))) for _ in range(200)]
    text = "\n".join(words)
    whole = made(file, text, long_lines=how)
    monkeypatch.setattr(reading, "BLOCK", 7)
    monkeypatch.setattr(reading, "PIECE", 12)
    again = made(file, text, long_lines=how)
    assert again.manifest == whole.manifest
    assert np.array_equal(again.images, whole.images)
    step = 4 if how == "split" else 99
    wanted = [w[i : i + 4].ljust(4, "`") for w in words for i in range(0, len(w), step)]
    assert lines_of(whole) == sorted(wanted)
    counts = Counter("".join(wanted))
    order = sorted(counts, key=lambda c: (-counts[c], c))
    assert whole.manifest["vocabulary"] == ["\ufffd", *order]


def test_folders_archives_and_splits(tmp_path: Path) -> None:
    """The layout of Google Billion Word: training and held-out folders, files in the order of their names."""
    root = tmp_path / "1-billion"
    for folder, name, text in [
        ("training-monolingual.tokenized.shuffled", "news.en-00002-of-00100", "ccc\nddd\n"),
        ("training-monolingual.tokenized.shuffled", "news.en-00001-of-00100", "aaa\nbbb"),
        ("heldout-monolingual.tokenized.shuffled", "news.en.heldout-00000-of-00050", "aza\n"),
        ("training-monolingual.tokenized.shuffled", ".hidden", "eee\n"),
        (".", "README", "fff\n"),
    ]:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / name).write_text(text)
    data = Text(path=str(root), length=4)
    assert data.splits() == ("train", "test")
    assert lines_of(data.load()) == ["aaa`", "bbb`", "ccc`", "ddd`"]
    test = data.load(split="test")
    assert lines_of(test) == ["a\ufffda`"]  # z is not in the training text
    assert test.shape == data.load().shape
    assert test.manifest["vocabulary"] == data.load().manifest["vocabulary"]
    assert lines_of(Text(path=str(root), length=4, max_lines=3).load()) == ["aaa`", "bbb`", "ccc`"]
    packed = tmp_path / "corpus.txt.gz"
    packed.write_bytes(gzip.compress(b"aaa\nbbb\nccc\nddd\n"))
    same = Text(path=str(packed), length=4)
    assert same.splits() == ("train",)
    assert same.load().fingerprint == data.load().fingerprint


def test_a_share_is_held_out(file: Path) -> None:
    file.write_text("".join(f"{i:03d}\n" for i in range(100)))
    data = Text(path=str(file), length=4, held_out=0.2)
    train, test = data.load(), data.load(split="test")
    assert data.splits() == ("train", "test")
    assert (len(train), len(test)) == (80, 20)
    assert sorted(lines_of(train) + lines_of(test)) == [f"{i:03d}`" for i in range(100)]
    other = Text(path=str(file), length=4, held_out=0.2, data_seed=1).load(split="test")
    assert lines_of(other) != lines_of(test)
    with pytest.raises(DataError, match="has no split 'test'"):
        Text(path=str(file), length=4).load(split="test")


def test_the_fingerprint_knows_the_symbols(file: Path) -> None:
    a, b = made(file, "ab\nba\n"), made(file, "xy\nyx\n")
    assert np.array_equal(a.images, b.images)
    assert a.fingerprint != b.fingerprint


BAD = {
    "absent": (None, {}, r"corpus.txt: does not exist; give a text file"),
    "only empty lines": (b"\n\r\n\n", {}, r"all its 3 lines are empty"),
    "latin-1": (b"abc\nd\xe9f\n", {}, r"byte 5 \(0xe9\) is not UTF-8; convert it, or set dataset.on_bad="),
    "nul": (b"abc\nd\0f", {}, r"byte 5 is NUL: it is .*, no text; give UTF-8 text"),
    "one symbol": (b"aaa\naa\n", {}, r"has only one symbol"),
    "damaged archive": (gzip.compress(b"abc\n" * 99)[:-9], {}, r"is damaged"),
    "one line held out": (b"abc", {"held_out": 0.5}, r"has one line, and dataset.held_out wants some"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_one_line(case: str, file: Path) -> None:
    content, keys, line = BAD[case]
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=line) as error:
        Text(path=str(file), length=4, **keys).load()  # type: ignore[arg-type]
    assert len(error.value.mistakes) == 1
    assert error.value.code == 3


def test_bad_bytes_become_the_unknown_symbol(file: Path) -> None:
    images = made(file, b"\xef\xbb\xbfab\nd\xe9f\n", on_bad="replace")
    assert lines_of(images) == ["ab``", "d\ufffdf`"]
    assert images.manifest["counts"] == {"symbols_replaced": 1, "symbols_unknown": 1}


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        ([], 2, "batch_size: 64 is more than the 2 lines of text train"),
        (["batch_size=2", "dataset.length=3"], 3, "metric.scores.ngram_js: needs lines of 4 symbols"),
        (["dataset.path=null"], 3, "dataset.path: is not set; give a text file"),
        (
            ["metric=[fid]"],
            2,
            "metric.scores.fid: scores images, but dataset text has text; use metric=[ngram_js]",
        ),
    ],
)
def test_wrong_runs_are_one_line(
    words: list[str], code: int, line: str, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text("abc\nabcd\n")
    run = ["train", "+experiment=wgan_gp_language", f"dataset.path={file}", "device=cpu"]
    assert main.main([*run, f"run_dir={file.parent / 'run'}", *words]) == code
    assert line in capfd.readouterr().err


def test_data_commands(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text("abc\n\nabcdef\n")
    assert main.main(["data", "check", "text", f"path={file}", "length=4"]) == 0
    said = capsys.readouterr().out
    assert f"text train: {Text.origin}; loads correctly" in said
    assert "2 lines, 2x4, sha256" in said
    assert "1 lines cut; 1 empty lines left out" in said
    assert "6 characters, the unknown one first" in said
    assert main.main(["data", "info", "text", f"path={file}"]) == 0
    assert "lines of 32 characters, a vocabulary of at most 2048" in capsys.readouterr().out
    assert main.main(["data", "prepare", "text", f"path={file}"]) == 0
    assert f"text: {Text.origin}; nothing to prepare" in capsys.readouterr().out
    assert main.main(["data", "check", "text", f"path={file}", "hash=write"]) == 2


@pytest.mark.data
@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="needs tinyshakespeare.txt beside the checkout")
def test_shakespeare() -> None:
    images = Text(path=str(SHAKESPEARE)).load()
    lines = [line for line in SHAKESPEARE.read_text().splitlines() if line]
    assert lines_of(images) == sorted(line[:32].ljust(32, "`") for line in lines)
    counts = Counter("".join(lines_of(images)))
    assert images.manifest["vocabulary"][1:] == sorted(counts, key=lambda c: (-counts[c], c))
    assert images.shape == (65, 32)
    assert json.dumps(images.manifest)
