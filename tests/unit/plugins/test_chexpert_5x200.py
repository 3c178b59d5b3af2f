"""CheXpert: the sampled 5x200 set against a direct check of its rule, in every layout."""

from __future__ import annotations

import csv
import io
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from medunifier_plugins.chexpert_5x200.dataset import CheXpert5x200
from medunifier_plugins.raw.five_by_200 import CLASS_LISTS, PATHOLOGIES, exclusive_class
from PIL import Image

from medunifier_cli.data.contract import DataError, Drop, FileImage, Record, ZipImage
from tests.folders import SHARED
from tests.miniatures.chexpert import (
    BATCHES,
    HEADER,
    Row,
    write_batches,
    write_plus,
    write_test_set,
    write_tree,
    zip_batches,
)
from tests.miniatures.planner import Planner, miniature

PAPER = CLASS_LISTS["paper"]
HEAD = SHARED / "data/labels/chexpert-v1.0-small-train.head.csv"


def rows() -> list[Row]:
    """Six patients for each class in three batches, with images that do not qualify beside them."""
    found = []
    for number in range(36):
        patient = 1 + number * 1_700
        label = (*PAPER, "Consolidation")[number % 6]
        found.append(Row(patient, 1, 1, labels={label: 1.0, "Fracture": 0.0}))
        found.append(Row(patient, 1, 2, "Lateral", labels={label: 1.0, "Fracture": 0.0}))
        found.append(Row(patient, 2, 1, position="PA", labels={label: 1.0, "Support Devices": 1.0}))
        found.append(Row(patient, 3, 1, position="LL", labels={label: 1.0, "Lung Opacity": -1.0}))
    found.append(Row(64_000, 1, labels={"No Finding": 1.0}))
    found += [Row(64_541, labels={"Edema": 0.0}, part="valid"), Row(64_542, 1, 2, "Lateral", part="valid")]
    return found


CHEXPERT = Planner(CheXpert5x200())
plan, records = CHEXPERT.plan, CHEXPERT.records


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory, lambda raw: write_tree(raw / "CheXpert-v1.0-small", rows()))


def test_sampled_images_have_their_class_and_no_other_finding(small: Path) -> None:
    found = records(small, per_class=4)
    assert {record.split for record in found} == {"5x200"}
    assert Counter(CheXpert5x200().class_of(record.labels) for record in found) == dict.fromkeys(range(5), 4)
    for record in found:
        findings = {name: value for name, value in record.labels.items() if value and name != "No Finding"}
        assert list(findings.values()) == [1.0]
        assert findings.keys() <= set(PAPER)
        assert record.source.endswith("_frontal.jpg")
    assert len({record.subject for record in found}) == 20


def test_a_record_says_all_that_is_known(small: Path) -> None:
    record = next(record for record in records(small, per_class=6) if record.subject == "patient00001")
    assert (record.key, record.study) == ("patient00001_study1_view1_frontal", "patient00001_study1")
    assert record.view == "AP"
    assert record.source == "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg"
    assert record.image == FileImage(small / record.source)
    assert record.labels == dict.fromkeys(HEADER[5:]) | {"Atelectasis": 1.0, "Fracture": 0.0}
    assert record.facts == {"sex": "Female", "age": "68"}


@pytest.mark.parametrize("layout", ["full tree", "raw itself", "batches", "zips"])
def test_every_layout_gives_the_same_set(small: Path, tmp_path: Path, layout: str) -> None:
    if layout == "full tree":
        write_tree(tmp_path / "here" / "CheXpert-v1.0", rows(), "CheXpert-v1.0")
    elif layout == "raw itself":
        write_tree(tmp_path, rows())
    elif layout == "batches":
        write_batches(tmp_path, rows())
    else:
        zip_batches(tmp_path, rows())
    expected = records(small, per_class=4)
    found = records(tmp_path, per_class=4)
    assert [record.key for record in found] == [record.key for record in expected]
    assert [record.labels for record in found] == [record.labels for record in expected]
    if layout == "zips":
        image = found[0].image
        assert isinstance(image, ZipImage)
        assert Image.open(io.BytesIO(zipfile.ZipFile(image.archive).read(image.member))).size == (24, 24)
    assert len(records(tmp_path, per_class=4, include="all")) == len(
        records(small, per_class=4, include="all")
    )


def test_the_rest_of_train_without_the_patients_of_the_set(small: Path) -> None:
    found = list(plan(small, per_class=4, include="all").records)
    kept = [item for item in found if isinstance(item, Record)]
    assert Counter(record.split for record in kept) == {"5x200": 20, "train": 16 * 3 + 1, "valid": 1}
    held_out = {record.subject for record in kept if record.split == "5x200"}
    assert not held_out & {record.subject for record in kept if record.split != "5x200"}
    reasons = Counter(item.reason for item in found if isinstance(item, Drop))
    assert reasons == {"filtered: lateral view": 37, "held out: 5x200 subject": 40}
    by_image = Counter(record.split for record in records(small, per_class=4, include="all", holdout="image"))
    assert by_image["train"] == 36 * 3 + 1 - 20


def test_a_missing_image_is_not_sampled(small: Path, tmp_path: Path) -> None:
    lost = records(small, per_class=4)[0]
    write_tree(
        tmp_path, [row for row in rows() if row.tail.replace("/", "_").removesuffix(".jpg") != lost.key]
    )
    # The table still lists it, as an incomplete download does.
    (tmp_path / "train.csv").write_bytes((small / "CheXpert-v1.0-small" / "train.csv").read_bytes())
    found = records(tmp_path, per_class=4)
    assert len(found) == 20
    assert lost.key not in {record.key for record in found}
    everything = list(plan(tmp_path, per_class=4, include="all", ids_5x200="").records)
    assert [item.reason for item in everything if isinstance(item, Drop)].count("missing") == 1


def test_a_published_list_replaces_the_sample(small: Path, tmp_path: Path) -> None:
    listed = tmp_path / "chexpert_5x200.csv"
    chosen = [row for row in rows() if row.part == "train"][:9:2]
    listed.write_text(
        ",Path,Atelectasis\n"
        + "".join(f"{i},CheXpert-v1.0/train/{row.tail},1.0\n" for i, row in enumerate(chosen)),
        encoding="utf-8",
    )
    found = plan(small, ids_5x200=str(listed))
    assert {
        key.replace("_study", "/study").replace("_view", "/view") + ".jpg"
        for key in found.subsets["5x200"].keys
    } == {row.tail for row in chosen}
    assert found.subsets["5x200"].seed is None
    listed.write_text("Path\nCheXpert-v1.0/train/patient99999/study1/view1_frontal.jpg\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"1 of 1 entries are not in .*train\.csv, first 'patient99999"):
        plan(small, ids_5x200=str(listed))


def test_errors_say_what_is_missing(tmp_path: Path, small: Path) -> None:
    with pytest.raises(DataError, match="images found, 6 patients qualify"):
        plan(small, per_class=7)
    (tmp_path / "readme.txt").write_text("x", encoding="utf-8")
    with pytest.raises(DataError, match=r"no train\.csv here"):
        plan(tmp_path)
    write_batches(tmp_path, rows())
    for batch in BATCHES:
        (tmp_path / batch).rename(tmp_path / f"x{BATCHES.index(batch)}")
    table = tmp_path / "x0" / "train.csv"
    text = table.read_text(encoding="utf-8")
    table.write_text(text.replace(",1.0", ",yes", 1), encoding="utf-8")
    with pytest.raises(DataError, match=r"train\.csv:2: Atelectasis is 'yes', not 1, 0, -1 or blank"):
        plan(tmp_path)


def test_real_rows_of_train_csv_qualify_as_a_plain_reading_says() -> None:
    if not HEAD.is_file():
        pytest.skip(f"needs {HEAD.name} in ../shared/data/labels")
    with HEAD.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    codes = [[-2 if line[name] == "" else int(float(line[name])) for name in PATHOLOGIES] for line in table]
    for classes in CLASS_LISTS.values():
        found = exclusive_class(np.array(codes, dtype=np.int8), classes)
        assert (found >= 0).sum() > 5
        for line, place in zip(table, found, strict=True):
            marked = [name for name in HEADER[6:] if line[name] not in ("", "0.0")]
            single = marked[0] if len(marked) == 1 and line[marked[0]] == "1.0" else None
            assert place == (classes.index(single) if single in classes else -1)


def test_the_official_test_set_is_the_split_test(small: Path, tmp_path: Path) -> None:
    write_tree(tmp_path, rows())
    listed = [Row(64_741, labels={"Atelectasis": 1.0}), Row(64_742), Row(64_742, 1, 2, "Lateral")]
    write_test_set(tmp_path, listed)
    assert records(tmp_path, per_class=4) == [
        replace(record, image=FileImage(tmp_path / source), source=source)
        for record in records(small, per_class=4)
        if (source := record.source.removeprefix("CheXpert-v1.0-small/"))
    ]
    found = [record for record in records(tmp_path, per_class=4, include="all") if record.split == "test"]
    assert [record.source for record in found] == [f"test/{row.tail}" for row in listed[:2]]
    assert found[0].labels == dict.fromkeys(HEADER[5:], 0.0) | {"Atelectasis": 1.0}
    assert found[0].view == "frontal"


def test_chexpert_plus_is_named_and_its_png_copies_are_read_with_train_csv(
    small: Path, tmp_path: Path
) -> None:
    write_plus(tmp_path, rows())
    with pytest.raises(
        DataError, match=r"df_chexpert_plus_240401\.csv is CheXpert Plus.*put train\.csv"
    ) as error:
        plan(tmp_path, per_class=4)
    assert "\n" not in str(error.value)
    (tmp_path / "train.csv").write_bytes((small / "CheXpert-v1.0-small" / "train.csv").read_bytes())
    found = records(tmp_path, per_class=4)
    assert [record.key for record in found] == [record.key for record in records(small, per_class=4)]
    assert found[0].source.startswith("PNG/train/patient")
    assert found[0].source.endswith(".png")
