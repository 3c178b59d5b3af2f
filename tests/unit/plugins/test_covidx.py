"""COVIDx: 9A labels on the Kaggle tree, MGCA's split, the split by patient, wrong versions refused."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from medunifier_plugins.covidx import Covidx, LabelLine, patient_split, read_labels, row_split
from sklearn.model_selection import train_test_split

from medunifier_cli.data.contract import DataError, Drop, Record
from tests.miniatures.pictures import write_picture
from tests.miniatures.planner import Planner, miniature

CLASSES = ("COVID-19", "normal", "pneumonia")
ODD_NAMES = [
    ("A1", "A1-12-31-1900-NA-CHEST_AP_VIEWONLY-26790-1.000000-AP-81991-1-1.jpg", "COVID-19", "stonybrook"),
    ("COVID1", "COVID 1 COVID(1).png", "COVID-19", "sirm"),
    ("462", "3e9d9c9b02b9bcd81c851134667e76_jumbo.JPG", "pneumonia", "cohen"),
    ("73", "41591_2020_819_Fig1_HTML.webp-day5.png", "COVID-19", "cohen"),
    ("3", "SARS-10.1148rg.242035193-g04mr34g0-Fig8a-day0.jpeg", "pneumonia", "cohen"),
]


def table(rows: int = 60) -> list[LabelLine]:
    """Five odd names, and patients of five images each."""
    found = [LabelLine(*row) for row in ODD_NAMES]
    for number in range(rows):
        found.append(LabelLine(f"P{number // 5}", f"img{number}.png", CLASSES[number // 5 % 3], "rsna"))
    return found


def lines(rows: list[LabelLine]) -> str:
    return "".join(" ".join(row) + "\n" for row in rows)


def write_raw(raw: Path, rows: list[LabelLine], nested: bool = False) -> None:
    test = [LabelLine(f"T{number}", f"test{number}.png", CLASSES[number % 3], "cohen") for number in range(6)]
    raw.mkdir(parents=True, exist_ok=True)
    for part, listed in (("train", rows), ("test", test)):
        (raw / f"{part}_COVIDx9A.txt").write_text(lines(listed), encoding="utf-8")
        (raw / f"{part}.txt").write_text(
            "".join(f"{r.patient} {r.file} positive {r.source}\n" for r in listed)
        )
        for number, row in enumerate(listed):
            write_picture(raw / part / (part if nested else "") / row.file, number)


COVIDX = Planner(Covidx())
plan, records = COVIDX.plan, COVIDX.records


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory, lambda folder: write_raw(folder, table()))


def test_every_line_is_a_sample_with_one_class(raw: Path) -> None:
    found = {record.source: record for record in records(raw)}
    assert len(found) == len(table()) + 6
    for row in table():
        record = found[f"train/{row.file}"]
        assert record.labels == {name: float(name == row.label) for name in CLASSES}
        assert (record.subject, record.facts) == (row.patient, {"collection": row.source})
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", record.key) for record in found.values())
    assert len({record.key for record in found.values()}) == len(found)
    assert found["train/COVID 1 COVID(1).png"].subject == "COVID1"
    assert sum(record.split == "test" for record in found.values()) == 6


def test_images_one_folder_deeper(raw: Path, tmp_path: Path) -> None:
    write_raw(tmp_path, table(), nested=True)
    found = records(tmp_path)
    assert [record.key for record in found] == [record.key for record in records(raw)]
    assert found[0].source.startswith("train/train/")


def test_files_that_differ_in_suffix_only_have_keys_of_their_own(tmp_path: Path) -> None:
    write_raw(
        tmp_path, [LabelLine("1", "a.png", "normal", "x"), LabelLine("2", "a.jpg", "normal", "x"), *table(10)]
    )
    keys = [record.key for record in records(tmp_path)]
    assert len(set(keys)) == len(keys) == 23


def test_row_split_is_that_of_scikit_learn_as_mgca_calls_it() -> None:
    rows = list(range(30_130))
    train, valid = train_test_split(rows, test_size=0.2, random_state=0)
    split = row_split(30_130, 0)
    assert [row for row in rows if split[row] == "valid"] == sorted(valid)
    assert (len(train), len(valid)) == (24_104, 6_026)
    assert train[0] == 20_445  # the row of patient A635949 in the published file


def test_split_by_row_shares_patients_and_split_by_patient_does_not(raw: Path) -> None:
    def shared(found: list[Record]) -> set[str]:
        parts = {
            part: {record.subject for record in found if record.split == part} for part in ("train", "valid")
        }
        return parts["train"] & parts["valid"]

    assert Covidx.allow_shared_subjects
    assert shared(records(raw))
    grouped = records(raw, group_by_patient=True)
    assert not shared(grouped)
    assert Counter(record.split for record in grouped)["valid"] in range(10, 17)


def test_split_by_patient_takes_about_a_fifth_of_each_class() -> None:
    rows = [
        LabelLine(f"{label}{number // 3}", f"{label}{number}.png", label, "x")
        for label in CLASSES
        for number in range(600)
    ]
    rows += [LabelLine("big", f"big{number}.png", "normal", "x") for number in range(400)]
    split = patient_split(rows, 0)
    valid = Counter(row.label for row, part in zip(rows, split, strict=True) if part == "valid")
    assert all(abs(valid[label] - 0.2 * sum(row.label == label for row in rows)) <= 3 for label in CLASSES)
    by_patient: dict[str, set[str]] = {}
    for row, part in zip(rows, split, strict=True):
        by_patient.setdefault(row.patient, set()).add(part)
    assert all(len(parts) == 1 for parts in by_patient.values())


def test_a_listed_file_that_is_not_in_the_kaggle_copy_is_dropped_and_not_drawn(
    raw: Path, tmp_path: Path
) -> None:
    write_raw(tmp_path, table())
    (tmp_path / "train" / "img7.png").unlink()
    found = plan(tmp_path)
    assert found.warnings  # the miniature has fewer rows than the published file
    assert [item for item in found.records if isinstance(item, Drop)] == [Drop("missing", "train/img7.png")]
    keys = {record.key for record in records(tmp_path) if record.split == "train"}
    assert set(found.subsets["train-0.1"].keys) <= keys


def test_ten_percent_may_be_given_by_file_name(raw: Path, tmp_path: Path) -> None:
    train = [record for record in records(raw) if record.split == "train"][:4]
    (tmp_path / "ten.txt").write_text(
        "\n".join(r.source.removeprefix("train/") for r in train), encoding="utf-8"
    )
    part = plan(raw, ids_10_percent=str(tmp_path / "ten.txt")).subsets["train-0.1"]
    assert list(part.keys) == [record.key for record in train]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["train.txt", "test.txt"], r"own train\.txt has only two classes \(9B\)"),
        (["train_COVIDx6.txt", "train.txt"], r"train_COVIDx6\.txt is another label version"),
        (["train.txt", "val.txt"], r"this is COVIDx CXR-4"),
        (["train_COVIDx9A.txt", "val/a.png"], r"this is COVIDx CXR-4"),
        (["train_COVIDx9A.txt"], r"no test_COVIDx9A\.txt"),
        ([], r"no train_COVIDx9A\.txt"),
    ],
)
def test_other_versions_are_refused_with_an_explanation(
    tmp_path: Path, files: list[str], message: str
) -> None:
    (tmp_path / "train").mkdir()
    for name in ["README", *files]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1 a.png positive x\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"{message}.*train_COVIDx9A\.txt and test_COVIDx9A\.txt.*COVID-Net"
    ) as error:
        plan(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "line", ["1 a.png positive x", "1 a.png pneumonia", "patientid filename class source", "1 a.png COVID-19"]
)
def test_lines_of_other_versions_under_the_right_name_are_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train_COVIDx9A.txt"
    path.write_text(f"1 b.png normal x\n{line}\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"train_COVIDx9A\.txt:2: not `patient file class source` with a 9A class"
    ):
        read_labels(path)


def test_positive_of_sirm_in_the_first_published_list_is_covid(tmp_path: Path) -> None:
    path = tmp_path / "train_COVIDx9A.txt"
    path.write_text("1 b.png normal rsna\nCOVID_3 COVID 3 (3).png positive sirm\n", encoding="utf-8")
    assert read_labels(path)[1] == LabelLine("COVID_3", "COVID 3 (3).png", "COVID-19", "sirm")
