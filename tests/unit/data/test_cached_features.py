"""Cached features: read back bit for bit, and any damage or other origin refused by the name of the file."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medunifier_cli.data import cached_features
from medunifier_cli.data.cached_features import (
    FeatureFacts,
    SplitFeatures,
    check_file,
    features_path,
    write_facts,
    write_features,
)
from medunifier_cli.data.loader import SplitSource, eval_batches
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError
from tests.hand_made import write_split
from tests.unit.data.test_loader import open_source

FACTS = FeatureFacts(
    encoder="e" * 64, name="vit", heads=2, pixel_norm="none", image_size=16, tokens=3, width=5,
    shards="5" * 64, samples=23,
)  # fmt: skip


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_features, "FILE_ROWS", 10)


def drawn(facts: FeatureFacts = FACTS) -> Tensor:
    shape = (facts.samples, facts.tokens, facts.width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)


def write(folder: Path, facts: FeatureFacts = FACTS, split: str = "train") -> Tensor:
    """A cache of random features, written in uneven blocks."""
    folder.mkdir(exist_ok=True)
    features = drawn(facts)
    write_facts(folder, split, facts)
    for number in range(facts.files):
        rows = facts.rows_of(number)
        blocks = (features[start : min(start + 4, rows.stop)] for start in range(rows.start, rows.stop, 4))
        write_features(folder, split, facts, number, blocks)
    return features


def wanted(**changes: Any) -> dict[str, Any]:
    return dataclasses.asdict(FACTS) | changes


def test_rows_are_what_was_written_in_any_order(tmp_path: Path) -> None:
    features = write(tmp_path)
    opened = pickle.loads(pickle.dumps(SplitFeatures(tmp_path, "train", wanted())))
    rows = np.array([22, 0, 9, 10, 19, 20, 0])
    read = opened.empty(len(rows))
    opened.read(rows, read)
    assert torch.equal(read.view(torch.int16), features[rows].view(torch.int16))


def test_the_files_can_be_read_without_this_module(tmp_path: Path) -> None:
    features = write(tmp_path)
    parts = [
        np.frombuffer(path.read_bytes()[: rows * 3 * 5 * 2], "<u2")
        for path, rows in zip(sorted(tmp_path.glob("train-*.features")), (10, 10, 3), strict=True)
    ]
    # bf16 is the upper half of fp32
    values = (np.concatenate(parts).astype(np.uint32) << 16).view(np.float32).reshape(23, 3, 5)
    assert np.array_equal(values, features.float().numpy())
    assert sum(path.stat().st_size for path in tmp_path.glob("*.features")) == FACTS.total_bytes


def test_paper_sizes() -> None:
    full = dataclasses.replace(FACTS, tokens=257, width=1408, samples=243_300)
    assert full.row_bytes == 723_712
    assert 176e9 < full.total_bytes < 176.2e9
    assert full.file_rows * full.row_bytes <= 1 << 27


@pytest.mark.parametrize("place", ["first", "middle", "sum", "seal"])
def test_one_changed_bit_is_found(tmp_path: Path, place: str) -> None:
    write(tmp_path)
    path = features_path(tmp_path, "train", 1)
    body = bytearray(path.read_bytes())
    body[{"first": 0, "middle": 155, "sum": 10 * 30 + 5, "seal": len(body) - 1}[place]] ^= 1
    path.write_bytes(body)
    with pytest.raises(DataError, match=r"train-000001\.features: damaged.*delete it and run `mu prepare"):
        SplitFeatures(tmp_path, "train", wanted()).verify()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_file_cut_short_is_found_at_once(tmp_path: Path, keep: int) -> None:
    write(tmp_path)
    path = features_path(tmp_path, "train", 2)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-000002\.features: .* bytes, 134 expected: truncated"):
        SplitFeatures(tmp_path, "train", wanted())


def test_a_missing_file_and_a_missing_cache(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json.*mu prepare --features RECIPE"):
        SplitFeatures(tmp_path, "train", wanted())
    write(tmp_path)
    features_path(tmp_path, "train", 0).unlink()
    with pytest.raises(DataError, match=r"train-000000\.features: missing.*mu prepare --features RECIPE"):
        SplitFeatures(tmp_path, "train", wanted())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"encoder": "f" * 64}, "another image encoder"),
        ({"image_size": 32}, "of images of 16 pixels, not of 32"),
        ({"shards": "6" * 64}, "other shards"),
        ({"samples": 24}, "other shards"),
        ({"pixel_norm": "clip"}, "pixel_norm none, not clip"),
    ],
)
def test_features_of_something_else_are_refused(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match=rf"train\.json: features .*{said}.*; delete that folder"):
        SplitFeatures(tmp_path, "train", wanted(**change))
    with pytest.raises(DataError, match=rf"{said}.*--out"):
        write_facts(tmp_path, "train", dataclasses.replace(FACTS, **change))


def test_a_file_of_another_cache_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    other = dataclasses.replace(FACTS, encoder="f" * 64)
    write(tmp_path / "b", other)
    foreign, own = (features_path(tmp_path / name, "train", 1) for name in "ba")
    own.write_bytes(foreign.read_bytes())
    with pytest.raises(DataError, match=r"train-000001\.features: damaged, or of other features"):
        check_file(tmp_path / "a", "train", FACTS, 1)
    # nor one of the same cache in another's place
    own.write_bytes(features_path(tmp_path / "a", "train", 0).read_bytes())
    with pytest.raises(DataError, match="damaged, or of other features"):
        check_file(tmp_path / "a", "train", FACTS, 1)


@pytest.mark.parametrize("tokens", [0, -1, 1 << 62, "many"])
def test_absurd_facts_are_one_line_and_take_no_memory(tmp_path: Path, tokens: Any) -> None:
    write(tmp_path)
    path = tmp_path / "train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": tokens}))
    with pytest.raises(DataError, match=r"train\.json"):
        SplitFeatures(tmp_path, "train", {})
    path.write_text("{")
    with pytest.raises(DataError, match=r"train\.json"):
        SplitFeatures(tmp_path, "train", {})


def with_features(folder: Path) -> tuple[SplitSource, Tensor]:
    source = open_source(write_split(folder / "shards", "train", 23, 10))
    assert isinstance(source.shards, Shards)
    facts = dataclasses.replace(FACTS, shards=source.shards.fingerprint)
    features = write(folder / "cache", facts)
    return source.with_features(SplitFeatures(folder / "cache", "train", {}), images=False), features


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("images", [True, False])
def test_batches_have_features_and_images_if_they_are_wanted(
    tmp_path: Path, workers: int, images: bool
) -> None:
    source, features = with_features(tmp_path)
    live = source.with_features(None)
    source = source.with_features(source.features, images=images)
    loaded = eval_batches(source, batch_size=8, rank=0, world=1, workers=workers)
    plain = eval_batches(live, batch_size=8, rank=0, world=1, workers=0)
    for (batch, _), (expected, _) in zip(loaded, plain, strict=True):
        assert batch.feature_BVD is not None
        assert torch.equal(batch.feature_BVD, features[batch.position_B])
        assert torch.equal(batch.text.ids_N, expected.text.ids_N)
        assert expected.feature_BVD is None
        if images:
            assert torch.equal(batch.image_B1HW, expected.image_B1HW)
        else:
            assert batch.image_B1HW.shape == (8, 1, 0, 0)


def test_a_damaged_row_comes_out_of_a_worker_as_one_line(tmp_path: Path) -> None:
    source, _ = with_features(tmp_path)
    path = features_path(tmp_path / "cache", "train", 0)
    body = bytearray(path.read_bytes())
    body[3 * 30] ^= 1
    path.write_bytes(body)
    with pytest.raises(DataError, match=r"train-000000\.features: damaged in row 3;"):
        list(eval_batches(source, batch_size=8, rank=0, world=1, workers=1))
