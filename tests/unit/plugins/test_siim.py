"""SIIM: unique images from tables with several rows for one, both spellings of "none", renamed mirrors."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from medunifier_plugins.siim import Siim

from medunifier_cli.data.contract import DataError, Drop
from tests.folders import SHARED
from tests.miniatures.pictures import write_dicom, write_picture
from tests.miniatures.planner import Planner, miniature

HEAD = SHARED / "data/labels/siim-train-rle.head.csv"


def image_id(number: int) -> str:
    return f"1.2.276.0.7230010.3.1.4.8323329.{number}.1517875201.850819"


def masks(number: int) -> list[str]:
    """Every fourth image has one to three masks."""
    return (
        [f"{557374 + place} 2 1015 8 1009 14" for place in range(1 + number // 4 % 3)]
        if number % 4 == 0
        else []
    )


def write_masks(path: Path, images: int, none: str = "-1") -> None:
    lines = ["ImageId, EncodedPixels"]
    for number in range(images):
        lines += [f"{image_id(number)},{mask}" for mask in masks(number) or [none]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_raw(raw: Path, images: int = 80, none: str = "-1") -> None:
    """The original tree: the last eighth lies among the test images of stage 1."""
    for number in range(images):
        part = "train" if number < images * 7 // 8 else "test"
        write_dicom(
            raw / f"dicom-images-{part}" / f"1.2.{number}" / "1.3" / f"{image_id(number)}.dcm", number
        )
    write_masks(raw / "stage_2_train.csv", images, none)


SIIM = Planner(Siim())
plan, records = SIIM.plan, SIIM.records


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniature(tmp_path_factory, write_raw)


def test_an_image_is_one_sample_whatever_its_rows(raw: Path) -> None:
    found = {record.key: record for record in records(raw)}
    assert len(found) == 80
    record = found[image_id(4).replace(".", "_")]
    assert record.labels == {"Pneumothorax": 1.0, "No Pneumothorax": 0.0}
    assert record.facts == {"rle_masks": masks(4)}
    assert len(record.facts["rle_masks"]) == 2
    assert record.source == f"dicom-images-train/1.2.4/1.3/{image_id(4)}.dcm"
    assert (record.view, record.subject) == ("PA", image_id(4))
    assert Counter(record.labels["Pneumothorax"] for record in found.values()) == {1.0: 20, 0.0: 60}


@pytest.mark.parametrize("none", ["-1", " -1"])
def test_both_spellings_of_no_pneumothorax(tmp_path: Path, none: str) -> None:
    write_raw(tmp_path, 12, none)
    assert Counter(record.labels["Pneumothorax"] for record in records(tmp_path)) == {1.0: 3, 0.0: 9}


def test_renamed_mirror_is_mapped_through_its_tables(raw: Path, tmp_path: Path) -> None:
    rows: dict[str, list[str]] = {"train": [], "test": []}
    for number in range(80):
        part, positive = "train" if number < 70 else "test", int(bool(masks(number)))
        name = f"{number}_{part}_{positive}_.png"
        rows[part].append(f"{name},{image_id(number)},{positive}")
        write_picture(tmp_path / "png_images" / name, number)
        write_picture(tmp_path / "png_masks" / name, 1)
    for part, lines in rows.items():
        text = "\n".join(["new_filename,ImageId,has_pneumo", *lines])
        (tmp_path / f"stage_1_{part}_images.csv").write_text(text, encoding="utf-8")
    found = {record.key: record for record in records(tmp_path)}
    expected = {record.key: record for record in records(raw)}
    assert found.keys() == expected.keys()
    assert all(record.source.startswith("png_images/") for record in found.values())
    for key, record in found.items():
        assert (record.labels, record.split) == (expected[key].labels, expected[key].split)
    write_masks(tmp_path / "train-rle.csv", 80)
    assert {r.key: r.facts for r in records(tmp_path)} == {
        key: record.facts for key, record in expected.items()
    }


def test_default_split_is_stratified_and_by_image(raw: Path) -> None:
    found = records(raw)
    assert Counter(record.split for record in found) == {"train": 64, "valid": 8, "test": 8}
    positive = Counter(record.split for record in found if record.labels["Pneumothorax"])
    assert positive == {"train": 16, "valid": 2, "test": 2}
    other = {record.key: record.split for record in records(raw, seed=6)}
    assert other != {record.key: record.split for record in found}


def test_the_split_of_the_published_code_is_not_called_official(raw: Path) -> None:
    option = Siim.options["split"]
    assert option.default == "published-code"
    assert "paper's text leads" in option.help
    assert plan(raw).split_source == "published-code, by image, seed 5"
    assert plan(raw, split="official").split_source == "published-code, by image, seed 5"
    former = {record.key: record.split for record in records(raw, split="official")}
    assert former == {record.key: record.split for record in records(raw)}
    assert former != {record.key: record.split for record in records(raw, split="gloria")}


def test_split_of_as_many_images_as_the_real_table_has_the_published_sizes() -> None:
    from medunifier_plugins.siim import SiimImage, gloria_split, published_code_split

    images = {image_id(number): SiimImage(image_id(number), number < 2_669, []) for number in range(12_047)}
    split = published_code_split(images, 5)
    assert Counter(split.values()) == {"train": 9_757, "valid": 1_085, "test": 1_205}
    positive = Counter(split[name] for name in images if images[name].positive)
    assert positive == {"train": 2_162, "valid": 240, "test": 267}
    assert Counter(gloria_split(images, 0).values()) == {"train": 8_432, "valid": 1_808, "test": 1_807}


def test_real_rows_are_read_as_a_plain_reading_says(tmp_path: Path) -> None:
    if not HEAD.is_file():
        pytest.skip(f"needs {HEAD.name} in ../shared/data/labels")
    with HEAD.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))[1:]
    with_mask = {row[0] for row in rows if row[1].strip() != "-1"}
    (tmp_path / "stage_2_train.csv").write_bytes(HEAD.read_bytes())
    for name in {row[0] for row in rows}:
        (tmp_path / f"{name}.png").touch()
    found = records(tmp_path)
    assert {record.subject for record in found} == {row[0] for row in rows}
    assert {record.subject for record in found if record.labels["Pneumothorax"]} == with_mask
    assert sum(len(record.facts["rle_masks"]) for record in found) == sum(row[0] in with_mask for row in rows)


def test_ten_percent_may_be_given_by_image_id(raw: Path, tmp_path: Path) -> None:
    train = sorted(record.subject for record in records(raw) if record.split == "train")[:6]
    (tmp_path / "ten.txt").write_text("\n".join(train), encoding="utf-8")
    part = plan(raw, ids_10_percent=str(tmp_path / "ten.txt")).subsets["train-0.1"]
    assert list(part.keys) == [name.replace(".", "_") for name in train]


def test_a_missing_file_is_dropped_and_renamed_kaggle_files_are_explained(raw: Path, tmp_path: Path) -> None:
    write_raw(tmp_path, 12)
    next(tmp_path.rglob(f"{image_id(3)}.dcm")).unlink()
    drops = [item for item in plan(tmp_path).records if isinstance(item, Drop)]
    assert drops == [Drop("missing", f"{image_id(3)}.dcm")]
    for number, path in enumerate(sorted(tmp_path.rglob("*.dcm"))):
        path.rename(path.with_name(f"ID_{number:09x}.dcm"))
    with pytest.raises(
        DataError, match=r"no image has a name from the table.*ID_xxxxxxxxx\.dcm, as Kaggle distributes them"
    ):
        plan(tmp_path)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        ("", "neither -1 nor number pairs"),
        ("1 2 3", "neither -1 nor"),
        ("5 1048576", "neither -1 nor"),
        ("x", "neither"),
    ],
)
def test_invalid_masks_are_reported_with_their_line(tmp_path: Path, pixels: str, message: str) -> None:
    (tmp_path / "train-rle.csv").write_text(
        f"ImageId, EncodedPixels\n{image_id(1)},{pixels}\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match=rf"train-rle\.csv:2: EncodedPixels is {message}"):
        plan(tmp_path)


def test_an_image_with_and_without_masks_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "train-rle.csv").write_text(
        f"ImageId, EncodedPixels\n{image_id(1)},-1\n{image_id(1)},5 9\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="1 images have both -1 and a mask"):
        plan(tmp_path)
