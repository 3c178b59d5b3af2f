"""MIMIC-CXR from a miniature of either release: ids, splits, texts, labels, drops, and the 5x200 set."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from medunifier_plugins.five_by_200 import CLASS_LISTS
from medunifier_plugins.mimic_cxr import MimicCxr

from medunifier_cli.data.contract import DataError, Drop, FileImage, Plan, Record
from tests.miniatures.mimic import (
    DICOM_ROOT,
    JPG_ROOT,
    LABELS,
    Study,
    report_text,
    write_dicom_release,
    write_jpg_release,
    write_reports,
    write_reports_zip,
    write_tables,
)
from tests.miniatures.pictures import leave_rubbish

BOTH = report_text("The lungs are clear.", "Normal.")
STUDIES = [
    Study(10000032, 50414267, ("PA", "LATERAL"), "train", {"No Finding": 1.0}, BOTH),
    Study(
        10000032, 53189527, ("AP", "AP"), "train", {"Edema": 1.0, "Pneumonia": -1.0}, report_text("Oedema.")
    ),
    Study(10000764, 57375967, ("LL", "", "LAO"), "train", {}, BOTH),
    Study(11000001, 50000001, ("PA",), "validate", {"Fracture": 0.0}, report_text(None, "No change.")),
    Study(12000001, 50000002, ("PA",), "test", {"No Finding": 1.0}, report_text()),
    Study(12000001, 50000003, ("PA",), "test", {"No Finding": 1.0}, None),
    Study(12000001, 58235663, ("PA",), "test", {"No Finding": 1.0}, BOTH),
    Study(12000002, 50000004, ("AP",), "test", {"No Finding": 1.0}, BOTH),
]
NO_DRAW = {"per_class": 0}


def plan(raw: Path, **options: Any) -> Plan:
    values = {name: option.default for name, option in MimicCxr.options.items()}
    assert set(options) <= set(values)
    return MimicCxr().plan(raw, {**values, **options})


def items(raw: Path, **options: Any) -> tuple[dict[str, Record], dict[str, str]]:
    """(records by key, reason of each drop by the file name's stem)."""
    found = list(plan(raw, **options).records)
    records = {item.key: item for item in found if isinstance(item, Record)}
    drops = {Path(item.source).name.split(".")[0]: item.reason for item in found if isinstance(item, Drop)}
    assert len(records) + len(drops) == len(found)
    return records, drops


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_jpg_release(tmp_path, STUDIES)
    write_reports_zip(tmp_path / DICOM_ROOT / "mimic-cxr-reports.zip", STUDIES)
    leave_rubbish(tmp_path)
    return tmp_path


def test_frontal_images_with_text_in_their_official_split(raw: Path) -> None:
    (raw / JPG_ROOT / STUDIES[7].folder / f"{STUDIES[7].dicom(0)}.jpg").unlink()
    records, drops = items(raw, **NO_DRAW)
    assert {key: record.split for key, record in records.items()} == {
        STUDIES[0].dicom(0): "train",
        STUDIES[1].dicom(0): "train",
        STUDIES[1].dicom(1): "train",
        STUDIES[3].dicom(0): "valid",
    }
    assert drops == {
        STUDIES[0].dicom(1): "filtered: lateral view",
        STUDIES[2].dicom(0): "filtered: lateral view",
        STUDIES[2].dicom(1): "filtered: no view position",
        STUDIES[2].dicom(2): "filtered: other view",
        STUDIES[4].dicom(0): "empty_text",
        STUDIES[5].dicom(0): "missing report",
        STUDIES[6].dicom(0): "empty_text",
        STUDIES[7].dicom(0): "missing",
    }


def test_a_record_says_all_that_is_known(raw: Path) -> None:
    study = STUDIES[1]
    record = items(raw, **NO_DRAW)[0][study.dicom(1)]
    source = f"{JPG_ROOT}/{study.folder}/{study.dicom(1)}.jpg"
    assert record.image == FileImage(raw / source, "equalise")
    assert (record.source, record.subject, record.study) == (source, "p10000032", "s53189527")
    assert (record.view, record.text_kind) == ("AP", "report")
    assert record.sections["findings"] == "Oedema."
    assert "impression" not in record.sections
    expected = dict.fromkeys(LABELS) | {"Edema": 1.0, "Pneumonia": -1.0}
    assert record.labels == expected


def test_total_counts_every_image_and_order_does_not_depend_on_the_tables(raw: Path) -> None:
    assert plan(raw, **NO_DRAW).total == sum(len(study.views) for study in STUDIES)
    keys = list(items(raw, **NO_DRAW)[0])
    write_tables(raw / JPG_ROOT, STUDIES[::-1])
    assert list(items(raw, **NO_DRAW)[0]) == keys


def test_sections_asked_for_decide_who_stays(raw: Path) -> None:
    by_option = {
        name: len(items(raw, sections=name, **NO_DRAW)[0])
        for name in ("any", "both", "findings", "impression")
    }
    assert by_option == {"any": 5, "both": 2, "findings": 4, "impression": 3}


@pytest.mark.parametrize("place", ["zip", "unpacked zip", "reports folder", "beside the images", "given"])
def test_reports_are_found_wherever_people_put_them(tmp_path: Path, place: str) -> None:
    write_jpg_release(tmp_path, STUDIES, Path("."))
    options: dict[str, Any] = dict(NO_DRAW)
    if place == "zip":
        write_reports_zip(tmp_path / "mimic-cxr-reports.zip", STUDIES)
    elif place == "given":
        write_reports_zip(tmp_path / "elsewhere" / "r.zip", STUDIES)
        options["reports"] = str(tmp_path / "elsewhere" / "r.zip")
    else:
        root = {"unpacked zip": "mimic-cxr-reports", "reports folder": "reports", "beside the images": "."}[
            place
        ]
        write_reports(tmp_path / root, STUDIES)
    records, drops = items(tmp_path, **options)
    assert len(records) == 5
    assert records[STUDIES[0].dicom(0)].sections["impression"] == "Normal."
    assert Counter(drops.values())["missing report"] == 1


def test_plain_tables_do_as_well_as_gzipped_ones(raw: Path) -> None:
    before = items(raw, **NO_DRAW)
    for path in (raw / JPG_ROOT).glob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert items(raw, **NO_DRAW) == before


@pytest.mark.parametrize("suffix", [".dcm", ".dcm.gz"])
def test_dicom_release_with_the_tables_of_the_jpg_release(tmp_path: Path, suffix: str) -> None:
    write_dicom_release(tmp_path, STUDIES, suffix=suffix)
    write_tables(tmp_path / JPG_ROOT, STUDIES)
    records, drops = items(tmp_path, **NO_DRAW)
    assert len(records) == 5
    assert drops[STUDIES[2].dicom(1)] == "filtered: no view position"
    record = records[STUDIES[1].dicom(0)]
    assert record.source.endswith(f"{STUDIES[1].dicom(0)}{suffix}")
    assert isinstance(record.image, FileImage)
    assert record.image.dicom_tone == "equalise"
    plain = items(tmp_path, equalise=False, **NO_DRAW)[0][STUDIES[1].dicom(0)].image
    assert isinstance(plain, FileImage)
    assert plain.dicom_tone == "range"


@pytest.mark.parametrize("suffix", [".dcm", ".dcm.gz"])
def test_without_metadata_the_view_comes_from_the_dicom_header(tmp_path: Path, suffix: str) -> None:
    write_dicom_release(tmp_path, STUDIES, suffix=suffix)
    write_tables(tmp_path, STUDIES, metadata=False)
    found = plan(tmp_path, **NO_DRAW)
    assert "views are read from DICOM headers" in found.warnings[0]
    records, drops = items(tmp_path, **NO_DRAW)
    assert {records[key].view for key in records} == {"PA", "AP"}
    assert len(records) == 5
    assert drops[STUDIES[2].dicom(0)] == "filtered: lateral view"


def test_both_releases_side_by_side_take_jpg_unless_told_otherwise(tmp_path: Path) -> None:
    write_jpg_release(tmp_path, STUDIES)
    write_dicom_release(tmp_path, STUDIES)
    assert all(record.source.endswith(".jpg") for record in items(tmp_path, **NO_DRAW)[0].values())
    records = items(tmp_path, release="dicom", **NO_DRAW)[0]
    assert len(records) == 5
    assert all(record.source.endswith(".dcm") for record in records.values())


# The 5x200 set: ten patients for each class, with all that disqualifies an image beside them.

PAPER = CLASS_LISTS["paper"]


def crowd() -> list[Study]:
    studies = []
    for number in range(100):
        subject, wanted = 13000000 + number, (*PAPER, "Consolidation")[number % 6]
        for turn in range(2):
            labels = {wanted: 1.0, "Fracture": 0.0, "No Finding": 1.0 if turn else 0.0}
            study = 51000000 + number * 10 + turn
            studies.append(Study(subject, study, ("PA", "AP", "LATERAL"), "train", labels, BOTH))
    spoilers: list[dict[str, float]] = [
        {"Lung Opacity": 1.0},
        {"Support Devices": -1.0},
        {"Pneumothorax": 1.0},
    ]
    for number in range(60):
        labels = {PAPER[number % 5]: 1.0, **spoilers[number % 3]}
        studies.append(Study(14000000 + number, 52000000 + number, ("PA",), "train", labels, BOTH))
    studies.append(Study(15000001, 53000001, ("PA",), "test", {"Pneumonia": 1.0}, BOTH))
    studies.append(Study(15000002, 53000002, ("LATERAL",), "train", {"Pneumonia": 1.0}, BOTH))
    studies.append(Study(15000003, 53000003, ("PA",), "train", {"Pneumonia": 1.0}, report_text()))
    return studies


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = tmp_path_factory.mktemp("crowded")
    write_jpg_release(raw, crowd(), Path("."))
    write_reports_zip(raw / "mimic-cxr-reports.zip", crowd())
    return raw


def qualifies(study: Study) -> bool:
    others = [value for name, value in study.labels.items() if name not in (*PAPER, "No Finding")]
    positive = [name for name, value in study.labels.items() if value == 1.0 and name in PAPER]
    return study.split == "train" and len(positive) == 1 and all(value == 0.0 for value in others)


def test_5x200_is_drawn_from_clean_frontal_train_images_one_per_patient(crowded: Path) -> None:
    records, _ = items(crowded, per_class=8)
    chosen = [record for record in records.values() if record.split == "5x200"]
    studies = {f"s{study.study}": study for study in crowd()}
    assert Counter(MimicCxr().class_of(record.labels) for record in chosen) == dict.fromkeys(range(5), 8)
    assert all(qualifies(studies[record.study]) for record in chosen)
    assert all(record.view in ("PA", "AP") for record in chosen)
    assert len({record.subject for record in chosen}) == len(chosen) == 40


def test_patients_of_5x200_leave_train(crowded: Path) -> None:
    records, drops = items(crowded, per_class=8)
    held_out = {record.subject for record in records.values() if record.split == "5x200"}
    others = {record.subject for record in records.values() if record.split != "5x200"}
    assert not held_out & others
    # Each of the 40 patients has two studies of three images; one image is in the set.
    assert Counter(drops.values())["held out: 5x200 subject"] == 40 * 5
    assert not plan(crowded, per_class=8).allow_shared_subjects


@pytest.mark.parametrize(("holdout", "gone"), [("study", 40 * 2), ("image", 0)])
def test_literal_readings_of_the_paper_hold_out_less_and_say_so(
    crowded: Path, holdout: str, gone: int
) -> None:
    _, drops = items(crowded, per_class=8, holdout=holdout)
    assert Counter(drops.values())[f"held out: 5x200 {holdout}"] == gone
    assert plan(crowded, per_class=8, holdout=holdout).allow_shared_subjects


def test_the_draw_follows_its_seed_and_is_told_to_the_manifest(crowded: Path) -> None:
    first, again, other = (plan(crowded, per_class=8, seed=seed).subsets["5x200"] for seed in (0, 0, 1))
    assert list(first.keys) == list(again.keys)
    assert set(first.keys) != set(other.keys)
    assert (first.seed, other.seed) == (0, 1)
    assert "one image per patient" in first.rule


def test_gloria_classes_have_consolidation(crowded: Path) -> None:
    found = plan(crowded, per_class=8, class_list="gloria")
    assert found.classes == CLASS_LISTS["gloria"]
    labels = [item.labels for item in found.records if isinstance(item, Record) and item.split == "5x200"]
    assert Counter(
        name for one in labels for name, value in one.items() if value == 1 and name != "No Finding"
    ) == (dict.fromkeys(CLASS_LISTS["gloria"], 8))


def test_a_list_of_ids_replaces_the_draw(crowded: Path, tmp_path: Path) -> None:
    keys = sorted(plan(crowded, per_class=8, seed=3).subsets["5x200"].keys)
    listed = tmp_path / "mine.txt"
    listed.write_text("\n".join(keys) + "\n", encoding="utf-8")
    found = plan(crowded, ids_5x200=str(listed))
    assert sorted(found.subsets["5x200"].keys) == keys
    assert found.subsets["5x200"].seed is None
    assert {item.key for item in found.records if isinstance(item, Record) and item.split == "5x200"} == set(
        keys
    )
    table = tmp_path / "official.csv"
    table.write_text("index,image_path\n" + "".join(f"0,a/b/{key}.jpg\n" for key in keys), encoding="utf-8")
    assert sorted(plan(crowded, ids_5x200=str(table)).subsets["5x200"].keys) == keys
    listed.write_text("nobody\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"mine\.txt: 1 of 1 ids are not in the split table, first 'nobody'"):
        plan(crowded, ids_5x200=str(listed))


def test_too_few_images_of_a_class_are_an_error(crowded: Path) -> None:
    with pytest.raises(DataError, match=r"5x200: 1\d of 30 \w+.* images found") as error:
        plan(crowded, per_class=30)
    assert "\n" not in str(error.value)


# What goes wrong.


def test_errors_say_what_is_missing_and_what_to_do(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder\. Needed: MIMIC-CXR-JPG"):
        plan(tmp_path / "nowhere")
    (raw / DICOM_ROOT / "mimic-cxr-reports.zip").unlink()
    with pytest.raises(DataError, match=r"no reports\. They come with MIMIC-CXR"):
        plan(raw)
    write_reports(raw / DICOM_ROOT, STUDIES)
    (raw / JPG_ROOT / "mimic-cxr-2.0.0-chexpert.csv.gz").unlink()
    with pytest.raises(DataError, match=r"no mimic-cxr-2\.0\.0-chexpert\.csv.* -o per_class=0"):
        plan(raw)
    (raw / JPG_ROOT / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(DataError, match=r"no mimic-cxr-2\.0\.0-split\.csv.*DICOM download needs"):
        plan(raw, **NO_DRAW)
    shutil.rmtree(raw / JPG_ROOT / "files")
    with pytest.raises(DataError, match="no images such as files/p10/"):
        plan(raw, **NO_DRAW)


def test_damaged_tables_are_named(raw: Path) -> None:
    split = raw / JPG_ROOT / "mimic-cxr-2.0.0-split.csv.gz"
    whole = split.read_bytes()
    split.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        plan(raw, **NO_DRAW)
    text = gzip.decompress(whole).decode()
    split.write_bytes(gzip.compress(text.replace(",10000032,", ",10000032.0,", 1).encode()))
    with pytest.raises(DataError, match=r"split\.csv\.gz:2: subject_id '10000032\.0' is not an integer"):
        plan(raw, **NO_DRAW)
    split.write_bytes(gzip.compress(text.replace("validate", "val").encode()))
    with pytest.raises(DataError, match="split 'val' is none of train, validate, test"):
        plan(raw, **NO_DRAW)
    split.write_bytes(gzip.compress(text.replace("subject_id", "patient").encode()))
    with pytest.raises(
        DataError, match="no column subject_id; there are: dicom_id, study_id, patient, split"
    ):
        plan(raw, **NO_DRAW)
    split.write_bytes(gzip.compress((text + text.split("\n")[1] + "\n").encode()))
    with pytest.raises(DataError, match="is listed twice"):
        plan(raw, **NO_DRAW)


def test_no_report_text_in_drops_or_errors(raw: Path) -> None:
    secret = "Zebra-shaped heart."
    studies = [replace(study, report=report_text(None, None, f" WET READ: {secret}")) for study in STUDIES]
    write_reports_zip(raw / DICOM_ROOT / "mimic-cxr-reports.zip", studies)
    drops = [item for item in plan(raw, **NO_DRAW).records if isinstance(item, Drop)]
    assert drops
    assert not any("ebra" in f"{drop.reason}{drop.source}" for drop in drops)
