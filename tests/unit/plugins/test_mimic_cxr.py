"""MIMIC-CXR from a miniature of either release: ids, splits, texts, labels, drops."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from medunifier_plugins.mimic_cxr.dataset import MimicCxr

from medunifier_cli.data.contract import DataError, Drop, FileImage, Record
from tests.miniatures.mimic import (
    DICOM_ROOT,
    JPG_ROOT,
    LABELS,
    Study,
    report_text,
    write_dicom_release,
    write_jpg_release,
    write_r2gen,
    write_reports,
    write_reports_zip,
    write_tables,
)
from tests.miniatures.pictures import leave_rubbish
from tests.miniatures.planner import Planner

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
NO_5X200 = {"per_class": 0}


MIMIC = Planner(MimicCxr())
plan = MIMIC.plan


def items(raw: Path, **options: Any) -> tuple[dict[str, Record], dict[str, str]]:
    """(records by key, reason of each drop by the file name's stem)."""
    records, drops = MIMIC.items(raw, **options)
    reasons = {Path(drop.source).name.split(".")[0]: drop.reason for drop in drops}
    assert len(reasons) == len(drops)
    return {record.key: record for record in records}, reasons


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_jpg_release(tmp_path, STUDIES)
    write_reports_zip(tmp_path / DICOM_ROOT / "mimic-cxr-reports.zip", STUDIES)
    leave_rubbish(tmp_path)
    return tmp_path


def test_frontal_images_with_text_in_their_official_split(raw: Path) -> None:
    (raw / JPG_ROOT / STUDIES[7].folder / f"{STUDIES[7].dicom(0)}.jpg").unlink()
    records, drops = items(raw, **NO_5X200)
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
    record = items(raw, **NO_5X200)[0][study.dicom(1)]
    source = f"{JPG_ROOT}/{study.folder}/{study.dicom(1)}.jpg"
    assert record.image == FileImage(raw / source, "equalise")
    assert (record.source, record.subject, record.study) == (source, "p10000032", "s53189527")
    assert (record.view, record.text_kind) == ("AP", "report")
    assert record.sections["findings"] == "Oedema."
    assert "impression" not in record.sections
    expected = dict.fromkeys(LABELS) | {"Edema": 1.0, "Pneumonia": -1.0}
    assert record.labels == expected


def test_total_counts_every_image_and_order_does_not_depend_on_the_tables(raw: Path) -> None:
    assert plan(raw, **NO_5X200).total == sum(len(study.views) for study in STUDIES)
    keys = list(items(raw, **NO_5X200)[0])
    write_tables(raw / JPG_ROOT, STUDIES[::-1])
    assert list(items(raw, **NO_5X200)[0]) == keys


def test_sections_asked_for_decide_who_stays(raw: Path) -> None:
    by_option = {
        name: len(items(raw, sections=name, **NO_5X200)[0])
        for name in ("any", "both", "findings", "impression")
    }
    assert by_option == {"any": 5, "both": 2, "findings": 4, "impression": 3}


@pytest.mark.parametrize("place", ["zip", "unpacked zip", "reports folder", "beside the images", "given"])
def test_reports_are_found_wherever_people_put_them(tmp_path: Path, place: str) -> None:
    write_jpg_release(tmp_path, STUDIES, Path("."))
    options: dict[str, Any] = dict(NO_5X200)
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
    before = items(raw, **NO_5X200)
    for path in (raw / JPG_ROOT).glob("*.csv.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert items(raw, **NO_5X200) == before


@pytest.mark.parametrize("suffix", [".dcm", ".dcm.gz"])
def test_dicom_release_with_the_tables_of_the_jpg_release(tmp_path: Path, suffix: str) -> None:
    write_dicom_release(tmp_path, STUDIES, suffix=suffix)
    write_tables(tmp_path / JPG_ROOT, STUDIES)
    records, drops = items(tmp_path, **NO_5X200)
    assert len(records) == 5
    assert drops[STUDIES[2].dicom(1)] == "filtered: no view position"
    record = records[STUDIES[1].dicom(0)]
    assert record.source.endswith(f"{STUDIES[1].dicom(0)}{suffix}")
    assert isinstance(record.image, FileImage)
    assert record.image.dicom_tone == "equalise"
    plain = items(tmp_path, equalise=False, **NO_5X200)[0][STUDIES[1].dicom(0)].image
    assert isinstance(plain, FileImage)
    assert plain.dicom_tone == "range"


@pytest.mark.parametrize("suffix", [".dcm", ".dcm.gz"])
def test_without_metadata_the_view_comes_from_the_dicom_header(tmp_path: Path, suffix: str) -> None:
    write_dicom_release(tmp_path, STUDIES, suffix=suffix)
    write_tables(tmp_path, STUDIES, metadata=False)
    found = plan(tmp_path, **NO_5X200)
    assert "view positions are read from the DICOM headers" in found.warnings[0]
    records, drops = items(tmp_path, **NO_5X200)
    assert {records[key].view for key in records} == {"PA", "AP"}
    assert len(records) == 5
    assert drops[STUDIES[2].dicom(0)] == "filtered: lateral view"


def test_both_releases_side_by_side_take_jpg_unless_told_otherwise(tmp_path: Path) -> None:
    write_jpg_release(tmp_path, STUDIES)
    write_dicom_release(tmp_path, STUDIES)
    assert all(record.source.endswith(".jpg") for record in items(tmp_path, **NO_5X200)[0].values())
    records = items(tmp_path, release="dicom", **NO_5X200)[0]
    assert len(records) == 5
    assert all(record.source.endswith(".dcm") for record in records.values())


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
        plan(raw, **NO_5X200)
    shutil.rmtree(raw / JPG_ROOT / "files")
    with pytest.raises(DataError, match="no images such as files/p10/"):
        plan(raw, **NO_5X200)


def test_damaged_tables_are_named(raw: Path) -> None:
    split = raw / JPG_ROOT / "mimic-cxr-2.0.0-split.csv.gz"
    whole = split.read_bytes()
    split.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        plan(raw, **NO_5X200)
    text = gzip.decompress(whole).decode()
    split.write_bytes(gzip.compress(text.replace(",10000032,", ",10000032.0,", 1).encode()))
    with pytest.raises(DataError, match=r"split\.csv\.gz:2: subject_id is '10000032\.0', not an integer"):
        plan(raw, **NO_5X200)
    split.write_bytes(gzip.compress(text.replace("validate", "val").encode()))
    with pytest.raises(DataError, match="split 'val' is none of train, validate, test"):
        plan(raw, **NO_5X200)
    split.write_bytes(gzip.compress(text.replace("subject_id", "patient").encode()))
    with pytest.raises(
        DataError, match="no column subject_id; its columns: dicom_id, study_id, patient, split"
    ):
        plan(raw, **NO_5X200)
    split.write_bytes(gzip.compress((text + text.split("\n")[1] + "\n").encode()))
    with pytest.raises(DataError, match="is listed twice"):
        plan(raw, **NO_5X200)


def test_no_report_text_in_drops_or_errors(raw: Path) -> None:
    secret = "Zebra-shaped heart."
    studies = [replace(study, report=report_text(None, None, f" WET READ: {secret}")) for study in STUDIES]
    write_reports_zip(raw / DICOM_ROOT / "mimic-cxr-reports.zip", studies)
    drops = [item for item in plan(raw, **NO_5X200).records if isinstance(item, Drop)]
    assert drops
    assert not any("ebra" in f"{drop.reason}{drop.source}" for drop in drops)


@pytest.mark.parametrize("form", ["csv", "tar.gz", "txt", "lzma"])
def test_reports_in_another_form_are_named_and_not_called_damaged(tmp_path: Path, form: str) -> None:
    write_jpg_release(tmp_path, STUDIES)
    path = tmp_path / f"mimic_cxr_reports.{form}"
    report = BOTH.encode()
    if form == "tar.gz":
        with tarfile.open(path, "w:gz") as archive:
            member = tarfile.TarInfo("files/p10/p10000032/s50414267.txt")
            member.size = len(report)
            archive.addfile(member, io.BytesIO(report))
    elif form == "lzma":  # a zip that another program packed more tightly is read
        with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as packed:
            packed.writestr("files/p10/p10000032/s50414267.txt", report)
        assert STUDIES[0].dicom(0) in items(tmp_path, reports=str(path), **NO_5X200)[0]
        return
    else:
        path.write_text("study,impression,findings\ns50414267,Größe.,x\n" * 50, encoding="utf-8")
    with pytest.raises(DataError) as error:
        plan(tmp_path, reports=str(path), **NO_5X200)
    found = {"csv": "a CSV table", "tar.gz": "a gzip archive", "txt": "a text file"}[form]
    message = str(error.value)
    assert message.startswith(
        f"{path} is {found}, not mimic-cxr-reports.zip of MIMIC-CXR or a folder with files/"
    )
    assert ("unpack it" in message) == (form == "tar.gz")
    assert "damaged" not in message
    assert "\n" not in message
    if form != "txt":  # found on its own, beside the images
        path.rename(tmp_path / JPG_ROOT / path.name)
        with pytest.raises(DataError, match=f"reports.{form} is {found}, not mimic-cxr-reports"):
            plan(tmp_path, **NO_5X200)


def test_a_report_that_is_not_utf_8_is_dropped_and_no_wrong_text(raw: Path) -> None:
    with zipfile.ZipFile(raw / DICOM_ROOT / "mimic-cxr-reports.zip", "w") as archive:
        for study in STUDIES[:2]:
            archive.writestr(f"{study.folder}.txt", (study.report or "").encode())
        archive.writestr(
            f"{STUDIES[3].folder}.txt", BOTH.replace("clear", "cl\u00e9ar").encode("windows-1252")
        )
    records, drops = items(raw, **NO_5X200)
    assert len(records) == 3
    assert drops[STUDIES[3].dicom(0)] == "report is not UTF-8 text"


ANNOTATED = [
    Study(10000032, 50414267, ("PA", "LATERAL"), "train", {"No Finding": 1.0}, "the lungs are clear ."),
    Study(11000001, 50000001, ("AP",), "validate", {}, "no change ."),
    Study(12000001, 50000002, ("PA",), "test", {}, ""),
    Study(12000002, 50000004, ("AP",), "test", {}, "small effusion ."),
]


def test_r2gen_annotation_is_read_with_its_split_and_findings(tmp_path: Path) -> None:
    write_r2gen(tmp_path, ANNOTATED)
    leave_rubbish(tmp_path)
    found = plan(tmp_path, **NO_5X200)
    assert found.split_source == "R2Gen (annotation.json)"
    (warning,) = found.warnings
    assert "lateral images are kept" in warning
    records, drops = items(tmp_path, **NO_5X200)
    assert {key: record.split for key, record in records.items()} == {
        ANNOTATED[0].dicom(0): "train",
        ANNOTATED[0].dicom(1): "train",
        ANNOTATED[1].dicom(0): "valid",
        ANNOTATED[3].dicom(0): "test",
    }
    assert drops == {ANNOTATED[2].dicom(0): "empty_text"}
    record = records[ANNOTATED[0].dicom(0)]
    assert record.sections == {"findings": "the lungs are clear ."}
    assert (record.subject, record.study, record.view) == ("p10000032", "s50414267", None)
    assert record.source == f"images/p10/p10000032/s50414267/{ANNOTATED[0].dicom(0)}.jpg"
    with pytest.raises(DataError, match=r"no mimic-cxr-2\.0\.0-chexpert\.csv.* -o per_class=0"):
        plan(tmp_path)


def test_r2gen_annotation_with_the_metadata_table_keeps_frontal_images(tmp_path: Path) -> None:
    write_r2gen(tmp_path, ANNOTATED)
    write_tables(tmp_path, ANNOTATED)
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    assert list(plan(tmp_path, **NO_5X200).warnings) == []
    records, drops = items(tmp_path, **NO_5X200)
    assert drops[ANNOTATED[0].dicom(1)] == "filtered: lateral view"
    assert records[ANNOTATED[0].dicom(0)].view == "PA"
    assert records[ANNOTATED[0].dicom(0)].labels["No Finding"] == 1.0


def test_the_official_split_comes_before_r2gen(raw: Path) -> None:
    before = items(raw, **NO_5X200)
    write_r2gen(raw, ANNOTATED)
    assert items(raw, **NO_5X200) == before


def test_an_annotation_of_another_data_set_is_named(tmp_path: Path) -> None:
    write_r2gen(tmp_path, ANNOTATED)
    (tmp_path / "annotation.json").write_text(
        '{"train": [{"id": "CXR1_IM-0001", "report": "secret", "image_path": ["CXR1_IM-0001/0.png"]}]}'
    )
    with pytest.raises(DataError, match=r"not R2Gen's annotation of MIMIC-CXR.*`mu prepare open-i`") as error:
        plan(tmp_path, **NO_5X200)
    assert "secret" not in str(error.value)
