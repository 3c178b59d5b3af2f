"""`mu prepare rocov2` on both published forms in miniature: chest radiographs alone, official split."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.miniatures import rocov2, tables
from tests.miniatures.prepared import prepare, refusal


@pytest.mark.parametrize("form", ["zenodo", "hub"])
def test_chest_radiographs_keep_their_captions_and_splits(tmp_path: Path, form: str) -> None:
    raw = tmp_path / "raw"
    if form == "hub":
        pytest.importorskip("pyarrow")
    (rocov2.write_tree if form == "zenodo" else rocov2.write_hub)(raw)
    found = prepare("rocov2", raw, tmp_path / "out")
    assert found.splits() == {"train": 2, "valid": 1, "test": 2}
    assert found.rejects == {"filtered: no plain radiograph of the chest": 3}
    for key, meta in found.samples.items():
        n = tables.number_in(found.pictures[key])
        split = next(name for name, figures in rocov2.FIGURES.items() if n in figures)
        assert key == rocov2.name_of(split, n)
        assert (meta["split"], meta["sections"]) == (split, {"caption": rocov2.caption_of(n)})
        assert meta["facts"]["concepts"] == sorted(rocov2.CHEST_FILM.split(";"))
        assert meta["subject"] == (f"PMC{n // 2}" if form == "zenodo" else key)
    assert "is it complete?" in found.said


def test_one_line_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "train_images.zip").write_bytes(b"PK")
    assert "unpack train_images.zip first" in refusal("rocov2", tmp_path / "empty", tmp_path / "out")
    rocov2.write_tree(tmp_path / "raw")
    (tmp_path / "raw" / "valid_concepts.csv").unlink()
    assert "no valid_concepts.csv beside it" in refusal("rocov2", tmp_path / "raw", tmp_path / "out")


def test_a_missing_image_is_counted(tmp_path: Path) -> None:
    rocov2.write_tree(tmp_path / "raw")
    (tmp_path / "raw" / "test_images" / "test" / f"{rocov2.name_of('test', 8)}.jpg").unlink()
    assert prepare("rocov2", tmp_path / "raw", tmp_path / "out").rejects["missing"] == 1
