"""`mu prepare mimic-cxr` on both releases in miniature."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.miniatures.mimic import (
    DICOM_ROOT,
    JPG_ROOT,
    Study,
    report_text,
    write_dicom_release,
    write_jpg_release,
    write_reports_zip,
    write_tables,
)
from tests.miniatures.pictures import leave_rubbish, pattern
from tests.miniatures.prepared import prepare, refusal

CLASSES = ("Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion")


def studies() -> list[Study]:
    """Three patients for each class in train, two studies each, and a few in valid and test."""
    found = []
    for number in range(15):
        for turn in range(2):
            labels = {CLASSES[number % 5]: 1.0, "Fracture": 0.0}
            text = report_text(f"Finding number {number}.", f"Impression {turn}.")
            study = 50000000 + 10 * number + turn
            found.append(Study(10000000 + number, study, ("PA", "LATERAL"), "train", labels, text))
    for number, split in enumerate(("validate", "test", "test")):
        text = report_text(None, "Normal.") if number < 2 else report_text()
        found.append(Study(19000000 + number, 59000000 + number, ("AP",), split, {"No Finding": 1.0}, text))
    return found


def test_jpg_release_with_the_reports_zip(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_jpg_release(raw, studies())
    write_reports_zip(raw / DICOM_ROOT / "mimic-cxr-reports.zip", studies())
    leave_rubbish(raw)
    lost = studies()[-3]
    path = raw / JPG_ROOT / lost.folder / f"{lost.dicom(0)}.jpg"
    path.write_bytes(path.read_bytes()[:200])
    found = prepare("mimic-cxr", raw, tmp_path / "out", "per_class=2")
    # Ten of fifteen patients are in the set with one image, and have a frontal and two lateral ones left.
    assert found.splits() == {"5x200": 10, "test": 1, "train": 10}
    assert found.rejects == {
        "filtered: lateral view": 10,
        "held out: 5x200 subject": 30,
        "empty_text": 1,
        "truncated": 1,
    }
    subjects = {
        split: {meta["subject"] for meta in found.samples.values() if meta["split"] == split}
        for split in found.splits()
    }
    assert not subjects["5x200"] & subjects["train"]
    assert found.manifest["splits"]["5x200"]["classes"] == dict.fromkeys(CLASSES, 2)
    assert sorted(found.manifest["subsets"]["5x200"]["keys"]) == sorted(
        key for key, meta in found.samples.items() if meta["split"] == "5x200"
    )
    study = next(study for study in studies() if study.dicom(0) in found.samples)
    meta = found.samples[study.dicom(0)]
    assert meta["sections"]["findings"].startswith("Finding number")
    assert meta["labels"]["Fracture"] == 0.0
    assert meta["labels"]["Pneumothorax"] is None
    assert "found 33 of about 243,300 frontal images: is the download complete?" in found.said
    assert found.manifest["split_source"].startswith("official")


@pytest.mark.parametrize("suffix", [".dcm", ".dcm.gz"])
def test_dicom_release_is_equalised_as_the_jpg_release_unless_told_not_to(
    tmp_path: Path, suffix: str
) -> None:
    raw = tmp_path / "raw"
    write_dicom_release(raw, studies(), suffix=suffix)
    write_tables(raw / JPG_ROOT, studies())
    found = prepare("mimic-cxr", raw, tmp_path / "out", "per_class=2")
    assert found.splits() == {"5x200": 10, "test": 1, "train": 10, "valid": 1}
    plain = prepare("mimic-cxr", raw, tmp_path / "plain", "per_class=2", "equalise=false")
    key = studies()[-2].dicom(0)
    grey = np.array(Image.open(io.BytesIO(plain.pictures[key]))).astype(float)
    stored = pattern(0).astype(float)
    expected = (stored - stored.min()) / (stored.max() - stored.min()) * 255
    wide = Image.fromarray(expected.astype(np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(grey - np.array(wide)).mean() < 2
    flat = np.array(Image.open(io.BytesIO(found.pictures[key]))).astype(float)
    # Equalised: the levels are spread evenly, so their median lies in the middle.
    assert abs(np.median(flat) - 128) < 15 < abs(np.median(grey) - 128)


def test_literal_reading_of_the_paper_shares_patients_and_counts_them(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_jpg_release(raw, studies())
    write_reports_zip(raw / "mimic-cxr-reports.zip", studies())
    found = prepare("mimic-cxr", raw, tmp_path / "out", "per_class=2", "holdout=image")
    assert found.splits() == {"5x200": 10, "test": 1, "train": 20, "valid": 1}
    assert found.manifest["shared_subjects"] == 10
    strict = prepare("mimic-cxr", raw, tmp_path / "strict", "per_class=2")
    assert strict.manifest["shared_subjects"] == 0


def test_a_patient_in_two_official_splits_is_refused(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    leaking = [*studies(), Study(10000014, 59900000, ("PA",), "test", {}, report_text("Clear."))]
    write_jpg_release(raw, leaking)
    write_reports_zip(raw / "mimic-cxr-reports.zip", leaking)
    assert "p10000014" in refusal("mimic-cxr", raw, tmp_path / "out", "per_class=0")


def test_the_set_of_one_folder_of_shards_serves_for_another(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_jpg_release(raw, studies())
    write_reports_zip(raw / "mimic-cxr-reports.zip", studies())
    first = prepare("mimic-cxr", raw, tmp_path / "a", "per_class=2", "seed=7")
    again = prepare("mimic-cxr", raw, tmp_path / "b", f"ids_5x200={tmp_path / 'a' / 'manifest.json'}")
    assert {key: meta["split"] for key, meta in again.samples.items()} == {
        key: meta["split"] for key, meta in first.samples.items()
    }


def test_a_wrong_download_is_one_line(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_jpg_release(raw, studies())
    assert "no reports" in refusal("mimic-cxr", raw, tmp_path / "out")
    write_reports_zip(raw / "mimic-cxr-reports.zip", studies())
    assert "5x200: 3 of 200 Atelectasis images found" in refusal("mimic-cxr", raw, tmp_path / "out")
