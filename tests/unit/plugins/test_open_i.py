"""Open-i: all 3,955 real reports against known counts, and the three layouts in miniature."""

from __future__ import annotations

import re
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from medunifier_plugins.open_i.dataset import OpenI
from medunifier_plugins.open_i.reports import read_reports

from medunifier_cli.data.contract import DataError, Drop, Record
from tests.folders import SHARED
from tests.miniatures import mimic
from tests.miniatures.open_i import REPORTS, write_kaggle, write_r2gen, write_xml
from tests.miniatures.pictures import leave_rubbish
from tests.miniatures.planner import Planner

REAL = SHARED / "data/open-i"


OPEN_I = Planner(OpenI())
plan = OPEN_I.plan


def items(raw: Path, **options: Any) -> tuple[dict[str, Record], Counter[str]]:
    records, drops = OPEN_I.items(raw, **options)
    assert len(records) + len(drops) == plan(raw, **options).total
    return {record.key: record for record in records}, Counter(drop.reason for drop in drops)


def test_all_real_reports_match_the_known_counts() -> None:
    if not (REAL / "NLMCXR_reports.tgz").is_file():
        pytest.skip("needs NLMCXR_reports.tgz in ../shared/data/open-i")
    form, reports = read_reports([REAL])
    assert (form, len(reports)) == ("xml", 3_955)
    images = [name for report in reports for name in report.images]
    assert len(set(images)) == len(images) == 7_470
    assert Counter(len(report.images) for report in reports) == {
        0: 104,
        1: 446,
        2: 3_208,
        3: 181,
        4: 15,
        5: 1,
    }
    findings, impression = (
        [name in report.sections for report in reports] for name in ("findings", "impression")
    )
    both = [a and b for a, b in zip(findings, impression, strict=True)]
    either = [a or b for a, b in zip(findings, impression, strict=True)]
    assert (sum(findings), sum(impression), sum(both), sum(either)) == (3_425, 3_921, 3_419, 3_927)
    pictured = [bool(report.images) for report in reports]
    with_image = [
        sum(a and b for a, b in zip(pictured, flags, strict=True))
        for flags in (findings, both, either, impression)
    ]
    assert [sum(pictured), *with_image] == [3_851, 3_337, 3_331, 3_826, 3_820]
    cost = OpenI.options["sections"].help  # what each choice keeps, as the user reads it
    assert all(f"{count:,}" in cost for count in (sum(pictured), *with_image))
    assert sum(len(report.images) >= 2 and "findings" in report.sections for report in reports) == 2_955
    texts = [
        " ".join(report.sections.get(name, "") for name in ("findings", "impression")) for report in reports
    ]
    words = sorted(len(text.split()) for text in texts)
    assert (words[len(words) // 2], words[int(0.95 * len(words))]) == (34, 77)
    assert sum(count > 95 for count in words) == 75
    assert sum("XXXX" in text for text in texts) == 1_855
    full = [text for text in texts if text.strip()]
    assert len(full) - len(set(full)) == 768
    assert all(text.isascii() for text in texts)


def test_every_real_report_with_image_and_text_becomes_one_sample(tmp_path: Path) -> None:
    if not (REAL / "NLMCXR_reports.tgz").is_file():
        pytest.skip("needs NLMCXR_reports.tgz in ../shared/data/open-i")
    with tarfile.open(REAL / "NLMCXR_reports.tgz") as archive:
        names = re.findall(r'parentImage id="([^"]+)"', "".join(_text(archive, member) for member in archive))
    (tmp_path / "NLMCXR_png").mkdir()
    for name in names:
        (tmp_path / "NLMCXR_png" / f"{name}.png").touch()
    (tmp_path / "NLMCXR_reports.tgz").write_bytes((REAL / "NLMCXR_reports.tgz").read_bytes())
    found = plan(tmp_path)
    items = list(found.records)
    records = [item for item in items if isinstance(item, Record)]
    reasons = Counter(item.reason for item in items if isinstance(item, Drop))
    assert len(records) == 3_826
    assert reasons == {
        "filtered: no image": 104,
        "filtered: not the frontal image": 7_470 - 3_851,
        "empty_text": 25,
    }
    assert (found.total, found.expected) == (len(items), {"all": 3_826})
    # File names, ids in the XML and our keys agree, but for the two images of report 1.
    assert sum(f"{record.key}.png" != Path(record.source).name for record in records) == 1


def _text(archive: tarfile.TarFile, member: tarfile.TarInfo) -> str:
    file = archive.extractfile(member)
    return file.read().decode() if file is not None else ""


@pytest.mark.parametrize("packed", [True, False])
def test_xml_with_dicom_takes_the_image_whose_header_is_frontal(tmp_path: Path, packed: bool) -> None:
    write_xml(tmp_path, REPORTS, "dcm", packed)
    leave_rubbish(tmp_path)
    records, reasons = items(tmp_path)
    assert set(records) == {
        "CXR1_IM-0001-1001",
        "CXR2_IM-0002-2001",  # the second image is PA
        "CXR3_IM-0003-1001",  # both say PA: the first one
        "CXR6_IM-0006-1001",  # none says PA or AP: the first one, though it is lateral
        "CXR10_IM-0010-1001",
    }
    assert reasons == {"empty_text": 1, "filtered: no image": 1, "filtered: not the frontal image": 6}
    record = records["CXR2_IM-0002-2001"]
    assert (record.subject, record.view, record.split) == ("CXR2", "PA", "test")
    assert record.source == "NLMCXR_dcm/2/2_IM-0002-2001.dcm"
    assert record.sections == {
        "comparison": "None.",
        "indication": "Cough & fever",
        "findings": "Large effusion.",
    }
    assert record.facts["mesh"] == ["Pleural Effusion/left/large"]
    by = {record.subject: record.facts["frontal_by"] for record in records.values()}
    assert by == {
        "CXR1": "header",
        "CXR2": "header",
        "CXR3": "first image",
        "CXR6": "first image",
        "CXR10": "first image",
    }
    assert "lateral in about 15 of 100" in plan(tmp_path).warnings[0]


def test_xml_with_png_takes_the_first_image_unless_projections_lie_there(tmp_path: Path) -> None:
    write_xml(tmp_path, REPORTS, "png")
    assert "CXR2_IM-0002-1001" in items(tmp_path)[0]
    write_kaggle(tmp_path, REPORTS, texts=False)
    records, reasons = items(tmp_path)
    assert set(records) == {
        "CXR1_IM-0001-1001",
        "CXR2_IM-0002-2001",
        "CXR3_IM-0003-1001",
        "CXR10_IM-0010-1001",
    }
    assert reasons["filtered: not the frontal image"] == 7
    assert not plan(tmp_path).warnings
    assert records["CXR3_IM-0003-1001"].view == "Frontal"


def test_kaggle_tables(tmp_path: Path) -> None:
    write_kaggle(tmp_path, REPORTS)
    records, reasons = items(tmp_path)
    assert set(records) == {
        "CXR1_IM-0001-1001",
        "CXR2_IM-0002-2001",
        "CXR3_IM-0003-1001",
        "CXR10_IM-0010-1001",
    }
    assert reasons["empty_text"] == 1
    record = records["CXR1_IM-0001-1001"]
    assert record.source == "images/images_normalized/1_IM-0001-1001.dcm.png"
    assert record.sections["findings"] == "The heart is normal.\nXXXX are clear."
    assert record.facts["mesh"] == ["Pleural Effusion/left/large", "Cardiomegaly"]


def test_r2gen_annotations_keep_their_split(tmp_path: Path) -> None:
    write_r2gen(tmp_path, REPORTS)
    records, _ = items(tmp_path)
    assert {key: record.split for key, record in records.items()} == {
        "CXR1_IM-0001_0": "train",
        "CXR2_IM-0002_0": "valid",
        "CXR10_IM-0010_0": "test",
    }
    assert records["CXR2_IM-0002_0"].sections == {"findings": "Large effusion."}
    assert plan(tmp_path).split_source == "R2Gen"
    assert len(items(tmp_path, images="all")[0]) == 6


def test_options_for_images_sections_and_split(tmp_path: Path) -> None:
    write_kaggle(tmp_path, REPORTS)
    assert len(items(tmp_path, images="all")[0]) == 10
    assert {
        name: len(items(tmp_path, sections=name)[0]) for name in ("any", "both", "findings", "impression")
    } == {
        "any": 4,
        "both": 2,
        "findings": 3,
        "impression": 3,
    }
    splits = {
        record.subject: record.split for record in items(tmp_path, split="hash", images="all")[0].values()
    }
    assert set(splits.values()) <= {"train", "valid", "test"}
    assert splits == {
        record.subject: record.split for record in items(tmp_path, split="hash", images="all")[0].values()
    }


def test_images_that_are_not_there(tmp_path: Path) -> None:
    write_kaggle(tmp_path, REPORTS)
    (tmp_path / "images" / "images_normalized" / "2_IM-0002-2001.dcm.png").unlink()
    assert items(tmp_path)[1]["missing"] == 1


def test_errors_say_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "NLMCXR_png.tgz").touch()
    with pytest.raises(DataError, match="neither ecgen-radiology"):
        plan(tmp_path)
    write_xml(tmp_path, REPORTS[4:5], "png", packed=True)
    with pytest.raises(DataError, match=r"reports but no images such as .*; unpack NLMCXR_png\.tgz first"):
        plan(tmp_path)
    whole = (tmp_path / "NLMCXR_reports.tgz").read_bytes()
    (tmp_path / "NLMCXR_reports.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"NLMCXR_reports\.tgz is damaged or cut short"):
        plan(tmp_path)


def test_damaged_files_are_named(tmp_path: Path) -> None:
    write_xml(tmp_path, REPORTS, "png")
    path = tmp_path / "NLMCXR_reports" / "ecgen-radiology" / "3.xml"
    path.write_text(path.read_text(encoding="utf-8")[:200], encoding="utf-8")
    with pytest.raises(DataError, match=r"3\.xml is not XML"):
        plan(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "annotation.json").write_text('{"train": [{"id": "CXR1_IM-1"}]}', encoding="utf-8")
    with pytest.raises(DataError, match=r"report at .*; train, val and test lists"):
        plan(other)


def test_r2gen_images_next_to_projections_that_do_not_name_them(tmp_path: Path) -> None:
    write_r2gen(tmp_path, REPORTS)
    alone = items(tmp_path)
    write_kaggle(tmp_path, REPORTS, texts=False)
    assert items(tmp_path) == alone
    (warning,) = plan(tmp_path).warnings
    assert "indiana_projections.csv lists no image of 3 of 3 reports" in warning


def test_reports_that_the_projections_leave_out_keep_their_first_image(tmp_path: Path) -> None:
    write_xml(tmp_path, REPORTS, "png")
    write_kaggle(tmp_path, [report for report in REPORTS if report.number != 2], texts=False)
    records, _ = items(tmp_path)
    assert records["CXR2_IM-0002-1001"].facts["frontal_by"] == "first image"
    assert records["CXR3_IM-0003-1001"].facts["frontal_by"] == "projections"
    assert "CXR6_IM-0006-1001" not in records  # the table says that its only image is lateral


def test_r2gen_annotation_of_mimic_cxr_is_refused(tmp_path: Path) -> None:
    mimic.write_r2gen(tmp_path, [mimic.Study(10000032, 50414267, report="secret")])
    with pytest.raises(DataError, match=r"annotation\.json: not Open-i's.*`mu prepare mimic-cxr`") as error:
        plan(tmp_path)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)
