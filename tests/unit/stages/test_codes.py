"""`codes.h5` and what priors are measured against."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import h5py
import numpy as np
import pytest

from medunifier_cli.errors import CheckpointError
from medunifier_cli.prior.baseline import baseline, refuse_collapsed
from medunifier_cli.stages.codes import Codes, read_codes, split_hash, write_codes

MADE_OF = {"checkpoint": "abc", "data": "def"}


def draw(n: int = 12, tokens: bool = True) -> Codes:
    random = np.random.default_rng(0)
    return Codes(
        random.integers(0, 16, (n, 2, 2)).astype(np.uint16),
        random.integers(0, 16, (n, 4, 4)).astype(np.uint16),
        random.normal(size=(n, 3, 5)).astype(np.float16),
        np.arange(n, dtype=np.int16),
        np.array([f"key-{i}".encode() for i in range(n)]),
        random.integers(-1, 16, (n, 3, 7)).astype(np.int32) if tokens else None,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_codes(tmp_path / "codes.h5", {"train": draw(12), "valid": draw(5)}, MADE_OF)
    return tmp_path / "codes.h5"


def test_codes_come_back_as_written(path: Path) -> None:
    found = read_codes(path, ("train", "valid"), MADE_OF)
    assert [len(codes) for codes in found.values()] == [12, 5]
    for name, column in vars(draw(12)).items():
        assert np.array_equal(getattr(found["train"], name), column), name
        assert getattr(found["train"], name).dtype == column.dtype
    assert [p.name for p in path.parent.iterdir()] == ["codes.h5"]


def test_codes_without_tokens_come_back_without_and_hash_otherwise(tmp_path: Path) -> None:
    write_codes(tmp_path / "codes.h5", {"train": draw(tokens=False)}, MADE_OF)
    found = read_codes(tmp_path / "codes.h5", ("train",), MADE_OF)["train"]
    assert found.token_nVM is None
    assert split_hash(found) == split_hash(draw(tokens=False)) != split_hash(draw())


def test_a_file_cut_short_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged or incomplete; delete it"):
        read_codes(path, ("train",), MADE_OF)


def test_changed_codes_are_refused(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["train/top"][0, 0, 0] = (file["train/top"][0, 0, 0] + 1) % 16
    with pytest.raises(CheckpointError, match="were changed since"):
        read_codes(path, ("train",), MADE_OF)


def test_codes_of_another_checkpoint_are_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"another checkpoint \(abc, now xyz\)"):
        read_codes(path, ("train",), {**MADE_OF, "checkpoint": "xyz"})


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_codes(blocked / "codes.h5", {"train": draw()}, MADE_OF)


def test_unigrams_by_counting() -> None:
    random = np.random.default_rng(1)
    train = (random.integers(0, 4, (50, 2, 2)) + np.array([[0, 1], [2, 3]])).astype(np.uint16)
    heldout = (random.integers(0, 4, (20, 2, 2)) + np.array([[0, 1], [2, 3]])).astype(np.uint16)
    found = baseline(train, heldout, 8)
    counts = Counter(train.ravel().tolist())
    share = {code: (counts[code] + 1) / (200 + 8) for code in range(8)}
    expected = -sum(math.log(share[code]) for code in heldout.ravel().tolist()) / 80
    assert found.unigram == pytest.approx(expected)
    assert found.place_unigram < found.unigram
    entropy = -sum(count / 200 * math.log(count / 200) for count in counts.values())
    assert found.perplexity == pytest.approx(math.exp(entropy))
    assert found.place_perplexity == pytest.approx(4, abs=0.3)
    hits = sum(
        heldout[n, i, j] == Counter(train[:, i, j].tolist()).most_common(1)[0][0]
        for n in range(20) for i in range(2) for j in range(2)
    )  # fmt: skip
    assert found.accuracy == pytest.approx(hits / 80, abs=0.05)  # ties may go either way


def test_collapsed_codes_are_refused_and_say_why() -> None:
    same = np.full((30, 4, 4), 3, np.uint16)
    with pytest.raises(CheckpointError, match=r"collapsed: perplexity 1\.00 of 16"):
        refuse_collapsed("top", baseline(same, same, 16), 16, "runs/x")
    places = np.broadcast_to(np.arange(16, dtype=np.uint16).reshape(4, 4), (30, 4, 4))
    with pytest.raises(CheckpointError, match="depend on the position"):
        refuse_collapsed("top", baseline(places, places, 16), 16, "runs/x")
    random = np.random.default_rng(0).integers(0, 16, (30, 4, 4)).astype(np.uint16)
    refuse_collapsed("top", baseline(random, random, 16), 16, "runs/x")
