"""`mu prepare` where a mistake is near: another patient's image, one image in two splits, stale shards."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from medunifier_cli.cli import mu
from tests.miniatures import tables
from tests.miniatures.prepared import prepare, refusal
from tests.run.test_prepare_webdataset import picture, write_tar

HEAD = "image,report,patient,split\n"


def table(folder: Path, *lines: str, head: str = HEAD) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "t.csv"
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def test_a_missing_image_is_not_replaced_by_one_of_the_same_name(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    path = table(raw, "site1/0.png,One.,p1,train", "site2/0.png,Two.,p2,valid", "site3/0.png,Three.,p3,test")
    tables.write_picture_of(raw / "site1/0.png", 1)
    found = prepare("table", path, tmp_path / "out")
    assert found.rejects == {"missing": 2}
    assert [meta["sections"]["report"] for meta in found.samples.values()] == ["One."]


def test_a_path_of_another_machine_finds_its_image_by_a_name_that_no_other_row_has(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    path = table(
        raw, "/mnt/pacs/a/1.png,One.,p1,train", "study/2.png,Two.,p2,train", "a/0.png,Three.,p3,train",
        "b/0.png,Four.,p4,train",
    )  # fmt: skip
    for n, place in enumerate(("films/1.png", "deep/study/2.png", "deep/a/0.png", "deep/b/0.png"), 1):
        tables.write_picture_of(raw / place, n)
    found = prepare("table", path, tmp_path / "out")
    shown = {
        meta["sections"]["report"]: tables.number_in(found.pictures[k]) for k, meta in found.samples.items()
    }
    assert shown == {"One.": 1, "Two.": 2, "Three.": 3, "Four.": 4}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (("0.png,A.,p1,train", "0.png,B.,p2,valid"), "are of one image, with another split or patient"),
        (("0.png,A.,p1,train", "./0.png,B.,p1,valid"), "are of one image, with another split or patient"),
        (("0.png,A.,p1,train", "images/0.png,B.,p2,valid"), "would be in train and in valid"),
    ],
)
def test_one_image_is_not_in_two_splits(tmp_path: Path, rows: tuple[str, ...], said: str) -> None:
    path = table(tmp_path / "raw", *rows)
    tables.write_picture_of(tmp_path / "raw/images/0.png", 1)
    assert said in refusal("table", path, tmp_path / "out")


def test_spellings_of_one_path_are_one_patient(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(8)]
    rows = [f"{spelt},{text}" for name in names for spelt, text in ((name, "A."), (f"./{name}", "B."))]
    path = table(tmp_path / "raw", *rows, head="image,report\n")
    for number, name in enumerate(names, 1):
        tables.write_picture_of(tmp_path / "raw" / name, number)
    found = prepare("table", path, tmp_path / "out")
    assert len(found.samples) == 16
    splits: dict[int, set[str]] = {}
    for key, meta in found.samples.items():
        splits.setdefault(tables.number_in(found.pictures[key]), set()).add(meta["split"])
    assert all(len(names) == 1 for names in splits.values())


def test_drawn_splits_do_not_depend_on_where_a_parquet_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyarrow")
    rows = [{"image": f"{n}.png", "report": f"Film {n}."} for n in range(1, 9)]
    tables.write_images(tmp_path / "a")
    tables.write_parquet(tmp_path / "a" / "films.parquet", tables.rows(), with_bytes=True)
    shutil.copytree(tmp_path / "a", tmp_path / "deep/b")
    monkeypatch.chdir(tmp_path)
    drawn = []
    for number, raw in enumerate(
        (Path("a/films.parquet"), tmp_path / "a/films.parquet", Path("deep/b/films.parquet"))
    ):
        found = prepare("table", raw, tmp_path / f"out{number}", "split=none", "patient=none")
        drawn.append({key: meta["split"] for key, meta in found.samples.items()})
    assert drawn[0] == drawn[1] == drawn[2]
    assert len(rows) == len(drawn[0])


def test_other_image_files_are_prepared_again(tmp_path: Path) -> None:
    """Of the same table and the same names, from another folder."""
    for folder, n in (("a", 1), ("b", 7)):
        path = table(tmp_path / folder, "0.png,One.,p1,train", "1.png,Two.,p2,valid")
        tables.write_picture_of(tmp_path / folder / "0.png", n)
        tables.write_picture_of(tmp_path / folder / "1.png", n)
        # a picture of few bytes may have the size of another: real films do not
        with (tmp_path / folder / "0.png").open("ab") as file:
            file.write(b"\0" * n)
        found = prepare("table", path, tmp_path / "out")
        assert {tables.number_in(body) for body in found.pictures.values()} >= {n}


def test_values_that_nobody_assigned_are_no_splits(tmp_path: Path) -> None:
    path = table(tmp_path / "raw", "0.png,A.,p1,0", "1.png,B.,p2,1", "2.png,C.,p3,2")
    for n in range(3):
        tables.write_picture_of(tmp_path / "raw" / f"{n}.png", n + 1)
    says = "-o splits=0=train,1=valid says nothing of '2'; add 2=SPLIT to it"
    assert says in refusal("table", path, tmp_path / "out", "splits=0=train,1=valid")
    found = prepare("table", path, tmp_path / "out", "splits=0=training,1=validation,2=test")
    assert found.splits() == {"train": 1, "valid": 1, "test": 1}


def test_blank_classes_are_none_and_a_column_of_classes_that_is_passed_over_is_named(tmp_path: Path) -> None:
    head = "image,report,patient,split,diagnosis\n"
    rows = (
        "0.png,A.,p1,train,NaN",
        "0.png,A.,p1,train,edema",
        "1.png,B.,p2,valid,edema",
        "1.png,B.,p2,valid,N/A",
    )
    path = table(tmp_path / "raw", *rows, head=head)
    for n in range(2):
        tables.write_picture_of(tmp_path / "raw" / f"{n}.png", n + 1)
    found = prepare("table", path, tmp_path / "out")
    assert found.manifest["classes"] == ["edema"]
    assert [meta["labels"]["edema"] for meta in found.samples.values()] == [1, 1], (
        "in either order of the rows"
    )
    rows = ("0.png,A.,p1,train,edema,1", "1.png,B.,p2,valid,normal,0")
    path = table(tmp_path / "raw", *rows, head="image,report,patient,split,diagnosis,portable\n")
    found = prepare("table", path, tmp_path / "again")
    assert "not diagnosis, unless -o labels=diagnosis asks for it" in found.said


def test_shards_of_one_name_in_folders_of_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for n, split in enumerate(("train", "val"), 1):
        members = {"000000000.png": picture(n), "000000000.txt": f"Film {n}.".encode()}
        write_tar(tmp_path / "raw" / split / "00000.tar", members)
    found = prepare("webdataset", tmp_path / "raw", tmp_path / "out")
    assert found.splits() == {"train": 1, "valid": 1}
    monkeypatch.chdir(tmp_path / "raw/val")
    assert prepare("webdataset", Path(), tmp_path / "one").splits() == {"valid": 1}, (
        "the folder's name counts"
    )


def test_a_data_sets_name_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path / "data"))
    path = table(tmp_path / "raw", "0.png,A.,p1,train")
    done = CliRunner().invoke(mu, ["prepare", "table", "--raw", str(path), "--name", "../mine"])
    assert done.exit_code == 1
    assert "the name of a data set cannot contain /" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "data").exists()
