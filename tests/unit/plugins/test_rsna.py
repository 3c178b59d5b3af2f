"""RSNA: one sample per patient, GLoRIA's split on the real table, the zero-shot subset, and odd downloads."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from medunifier_plugins.rsna import Rsna, gloria_split
from sklearn.model_selection import train_test_split

from medunifier_cli.data.contract import DataError, Drop, Record
from tests.folders import SHARED
from tests.miniatures.pictures import write_dicom, write_picture
from tests.miniatures.planner import Planner, miniature

LABELS = SHARED / "data/labels/rsna-stage_2_train_labels.csv"
CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def patient(number: int) -> str:
    return f"{number:08x}-14fd-4e49-80ba-63a80b6bddd6"


def write_raw(raw: Path, patients: int = 60, suffix: str = ".dcm") -> None:
    """Every third patient has one to three boxes, a row for each; as many rows in the class table."""
    boxes, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number in range(patients):
        for box in range(1 + number // 3 % 3 if number % 3 == 2 else 1):
            target = f"{264.0 + box},152.0,213.0,379.0,1" if number % 3 == 2 else ",,,,0"
            boxes.append(f"{patient(number)},{target}")
            classes.append(f"{patient(number)},{CLASSES[number % 3]}")
        path = raw / "stage_2_train_images" / f"{patient(number)}{suffix}"
        if suffix == ".dcm":
            write_dicom(path, number, "AP" if number % 2 else "PA")
        else:
            write_picture(path, number)
    write_dicom(raw / "stage_2_test_images" / f"{patient(999_999)}.dcm")
    (raw / "stage_2_train_labels.csv").write_text("\n".join(boxes) + "\n", encoding="utf-8")
    (raw / "stage_2_detailed_class_info.csv").write_text("\n".join(classes) + "\n", encoding="utf-8")
    (raw / "stage_2_sample_submission.csv").write_text("patientId,PredictionString\n", encoding="utf-8")


RSNA = Planner(Rsna(), {"per_class": 10})
plan, records = RSNA.plan, RSNA.records


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory, write_raw)


def test_one_sample_per_patient_with_all_boxes(raw: Path) -> None:
    found = {record.key: record for record in records(raw)}
    assert set(found) == {patient(number) for number in range(60)}
    assert Counter(record.labels["Pneumonia"] for record in found.values()) == {1.0: 20, 0.0: 40}
    record = found[patient(5)]
    assert record.labels == {"Pneumonia": 1.0, "Normal": 0.0}
    assert record.facts == {
        "boxes": [[264.0, 152.0, 213.0, 379.0], [265.0, 152.0, 213.0, 379.0]],
        "class": "Lung Opacity",
    }
    assert (record.view, record.subject) == ("AP", patient(5))
    assert record.source == f"stage_2_train_images/{patient(5)}.dcm"
    assert found[patient(1)].facts == {"boxes": [], "class": "No Lung Opacity / Not Normal"}


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_mirrors_with_other_image_formats(tmp_path: Path, suffix: str) -> None:
    write_raw(tmp_path, 9, suffix)
    assert len(records(tmp_path, per_class=0)) == 9
    # An unpacked copy beside a mirror: DICOM is taken.
    write_dicom(tmp_path / "stage_2_train_images" / f"{patient(3)}.dcm")
    sources = {record.key: record.source for record in records(tmp_path, per_class=0)}
    assert sources[patient(3)].endswith(".dcm")
    assert sources[patient(4)].endswith(suffix)


@pytest.mark.parametrize("patients", [7, 60, 101, 26_684])
def test_split_is_that_of_scikit_learn_as_gloria_calls_it(patients: int) -> None:
    ids = [patient(number) for number in range(patients)]
    split = gloria_split(ids)
    train, held_out = train_test_split(ids, test_size=0.3, random_state=0)
    test, valid = train_test_split(held_out, test_size=0.5, random_state=0)
    assert split == {
        **dict.fromkeys(train, "train"),
        **dict.fromkeys(valid, "valid"),
        **dict.fromkeys(test, "test"),
    }


def test_split_of_the_real_table_has_the_published_sizes_and_first_ids() -> None:
    if not LABELS.is_file():
        pytest.skip(f"needs {LABELS.name} in ../shared/data/labels")
    with LABELS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    target = {row["patientId"]: row["Target"] == "1" for row in rows}
    assert (len(rows), len(target), sum(target.values())) == (30_227, 26_684, 6_012)
    split = gloria_split(sorted(target))
    assert Counter(split.values()) == {"train": 18_678, "valid": 4_003, "test": 4_003}
    positive = Counter(split[patient] for patient in target if target[patient])
    assert positive == {"train": 4_162, "valid": 928, "test": 922}
    first = {
        name: next(patient for patient in split if split[patient] == name)
        for name in ("train", "valid", "test")
    }
    assert {name: patient[:8] for name, patient in first.items()} == {
        "train": "5b3477db",
        "valid": "8e2001aa",
        "test": "f2698fda",
    }


def test_the_real_label_table_is_read_whole(tmp_path: Path) -> None:
    if not LABELS.is_file():
        pytest.skip(f"needs {LABELS.name} in ../shared/data/labels")
    (tmp_path / "stage_2_train_labels.csv").write_bytes(LABELS.read_bytes())
    with LABELS.open(encoding="utf-8", newline="") as file:
        ids = sorted({row["patientId"] for row in csv.DictReader(file)})
    (tmp_path / "stage_2_train_images").mkdir()
    for patient_id in ids[::10]:
        (tmp_path / "stage_2_train_images" / f"{patient_id}.png").touch()
    found = plan(tmp_path, per_class=400)
    items = list(found.records)
    kept = [item for item in items if isinstance(item, Record)]
    assert (len(items), len(kept), found.total) == (26_684, 2_669, 26_684)
    assert sum(len(record.facts["boxes"]) for record in kept) > sum(
        record.labels["Pneumonia"] or 0 for record in kept
    )
    assert Counter(item.reason for item in items if isinstance(item, Drop)) == {"missing": 24_015}
    assert len(found.subsets["zeroshot"].keys) == 800
    assert found.expected == {"train": 18_678, "valid": 4_003, "test": 4_003}
    # The sampled subsets contain only images that exist.
    listed = {key for subset in found.subsets.values() for key in subset.keys}
    assert listed <= {record.key for record in kept}


def test_zero_shot_subset_is_balanced_seeded_and_can_be_given(raw: Path, tmp_path: Path) -> None:
    positive = {record.key for record in records(raw) if record.labels["Pneumonia"]}
    subset = plan(raw).subsets["zeroshot"]
    assert (len(subset.keys), len(positive & set(subset.keys)), subset.seed) == (20, 10, 0)
    assert set(subset.keys) != set(plan(raw, seed=1).subsets["zeroshot"].keys)
    classes = {record.key: record.facts["class"] for record in records(raw)}
    chosen = Counter(classes[key] for key in plan(raw, negatives="normal-only").subsets["zeroshot"].keys)
    assert chosen == {"Lung Opacity": 10, "Normal": 10}
    (tmp_path / "set.csv").write_text(f"Filename,Pneumonia,Normal\n{patient(4)}.dcm,0,1\n", encoding="utf-8")
    given = plan(raw, ids_zeroshot=str(tmp_path / "set.csv")).subsets["zeroshot"]
    assert (list(given.keys), given.seed) == ([patient(4)], None)


def test_fractions_are_of_train_only(raw: Path) -> None:
    split = {record.key: record.split for record in records(raw)}
    part = plan(raw).subsets["train-0.1"]
    assert len(part.keys) == 5  # a tenth of 42, rounded up
    assert {split[key] for key in part.keys} == {"train"}


def test_errors_say_what_is_missing(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="needs 50 positive and 50 negative images, found 20 and 40"):
        plan(raw, per_class=50)
    (tmp_path / "rsna-pneumonia-detection-challenge.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"no stage_2_train_labels\.csv"):
        plan(tmp_path)
    table = tmp_path / "stage_2_train_labels.csv"
    table.write_bytes((raw / "stage_2_train_labels.csv").read_bytes())
    with pytest.raises(DataError, match=r"unpack rsna-pneumonia-detection-challenge\.zip first"):
        plan(tmp_path)
    table.write_text(f"patientId,x,y,width,height,Target\n{patient(1)},1,2,,4,1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"labels\.csv:2: Target 1 without a box"):
        plan(tmp_path)
