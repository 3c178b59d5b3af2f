"""What `mu prepare table` says of columns that it does not use, and of what was typed in another way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from medunifier_cli.cli import mu
from tests.miniatures import tables
from tests.miniatures.prepared import prepare


def write(folder: Path, content: str) -> Path:
    tables.write_images(folder)
    (folder / "export.csv").write_text(content, encoding="utf-8")
    return folder / "export.csv"


def table(text: str = "report", patient: str = "patient_id", **changed: Sequence[str]) -> str:
    header, rest = tables.as_csv(tables.rows(**changed)).split("\n", 1)
    return f"{header.replace('report', text).replace('patient_id', patient)}\n{rest}"


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(mu, ["prepare", *map(str, words)])


@pytest.mark.parametrize(
    "name", ["Radiology Report", "Final_Report", "clinical report", "Report Text", "NARRATIVE"]
)
def test_texts_and_patients_of_an_export_are_found_by_their_names(tmp_path: Path, name: str) -> None:
    found = prepare("table", write(tmp_path / "raw", table(name, "MRN")), tmp_path / "out")
    assert {split["with_text"] for split in found.manifest["splits"].values()} == {2, 4}
    for meta in found.samples.values():
        assert next(iter(meta["sections"].values())).startswith("Film number ")
        assert meta["subject"] in ("1000", "1001", "1002", "1003")
    assert "warning" not in found.said


@pytest.mark.parametrize("name", ["Date of Report", "has_report", "Words", "report status"])
def test_columns_that_may_hold_the_texts_are_named(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "raw", table(name, age=["50"] * 8))
    wanted = f"warning: no column of texts among the columns that are left ({name}): nothing is read of them"
    found = prepare("table", path, tmp_path / "out")
    assert wanted in found.said
    assert found.manifest["warnings"] == [next(one for one in found.manifest["warnings"] if name in one)]
    assert "no column of texts" not in prepare("table", path, tmp_path / "none", "text=none").said


def test_of_two_kinds_of_reports_none_is_guessed(tmp_path: Path) -> None:
    content = table("Final Report", **{"Preliminary Report": ["x."] * 8})
    said = prepare("table", write(tmp_path / "raw", content), tmp_path / "out").said
    assert "no column of texts among the columns that are left (Final Report, Preliminary Report)" in said


def test_a_table_of_labels_alone_is_not_asked_for_texts(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "report"} | {"age": "50"} for row in tables.rows()]
    found = prepare("table", write(tmp_path / "raw", tables.as_csv(rows)), tmp_path / "out")
    assert "none for text" in found.said
    assert found.manifest["warnings"] == []


def test_a_column_that_is_labels_but_for_a_value_is_named(tmp_path: Path) -> None:
    edema = ["1", "0", "1", "maybe", "0", "1", "0", "Mrs Smith fell"]
    path = write(tmp_path / "raw", table(edema=edema, beds=["1", "2", "3", "4", "5", "6", "7", "8"]))
    found = prepare("table", path, tmp_path / "out")
    # rows of this table take two lines, as the texts have line ends
    assert "not labels: edema ('maybe' in line 9); " in found.said
    assert "Smith" not in found.said
    assert found.manifest["classes"] == ["effusion", "no effusion"]
    assert "not labels" not in prepare("table", path, tmp_path / "named", "labels=effusion").said


def test_other_settings_are_told_of_what_was_made_and_how_to_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MU_DATA", str(tmp_path / "data"))
    path = write(tmp_path / "raw", table())
    for where, advice in (("--name", "--name or --out"), ("--out", "--out")):
        words = ("table", "--raw", path, where, tmp_path / "out" if where == "--out" else "mine")
        assert call(*words, "--size", "32", "--workers", "1").exit_code == 0
        line = call(*words, "--size", "16", "--workers", "1").stderr.splitlines()[-1]
        assert "was made with other settings (image.size: was 32, is 16); " in line
        assert line.endswith(f"; choose another {advice}, or delete it")


def test_splits_come_in_one_order_and_what_was_left_out_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "raw", table())
    words = ("table", "--raw", path, "--out", tmp_path / "out", "--format", "json", "--workers", "1")
    orders = []
    for more in (("--dry-run",), ()):
        result = call(*words, *more)
        orders.append([row["split"] for row in json.loads(result.stdout)])
        assert "rejects.jsonl" not in result.stderr
    assert orders == [["train", "valid", "test"]] * 2
    (tmp_path / "raw" / "images" / "film_3.png").unlink()
    assert "rejects.jsonl lists what was left out" in prepare("table", path, tmp_path / "less").said


def test_the_file_of_a_table_in_place_of_a_name_is_answered(tmp_path: Path) -> None:
    path = write(tmp_path / "my films", table())
    result = call(path)
    assert (result.exit_code, f"a file? mu prepare table --raw '{path}'" in result.stderr) == (1, True)
    result = call("table", path)
    assert (result.exit_code, "; a file? mu prepare table --raw FILE" in result.stderr) == (2, True)
    assert "a file?" not in call("phantm").stderr
