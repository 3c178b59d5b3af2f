"""`mu prepare table` on every form of table: each image keeps its own text, label, patient and split."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from tests.folders import SHARED
from tests.miniatures import tables
from tests.miniatures.prepared import Prepared, prepare, refusal

ROWS = tables.rows()


def write(folder: Path, content: str | bytes, name: str = "pairs.csv") -> Path:
    tables.write_images(folder)
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def check_pairs(found: Prepared, section: str = "report") -> None:
    """Text, label, patient and split of each image are those of the picture that is in the shard."""
    assert len(found.samples) == 8
    for key, meta in found.samples.items():
        n = tables.number_in(found.pictures[key])
        assert meta["sections"] == {section: tables.text_of(n)}
        assert meta["subject"] == str(1000 + (n - 1) // 2)
        assert meta["split"] == tables.SPLIT_OF[n]
        assert meta["labels"]["effusion"] == tables.EFFUSION_IS[n - 1]


EMPTY_ENDS = "".join(
    line.rstrip("\n") + ",,\n" if line.startswith("No effusion") else line
    for line in tables.as_csv(ROWS).splitlines(keepends=True)
).encode()
TEXTS = {
    "csv": tables.as_csv(ROWS).encode(),
    "byte order mark and CRLF": b"\xef\xbb\xbf" + tables.as_csv(ROWS, line_end="\r\n").encode(),
    "utf-16": tables.as_csv(ROWS).encode("utf-16"),
    "semicolons": tables.as_csv(ROWS, ";").encode(),
    "other names": tables.as_csv(ROWS).replace("image,report,patient_id", "Path,Text,SUBJECT ID").encode(),
    "ids of a spreadsheet": tables.as_csv(
        tables.rows(patient_id=[f"{1000 + i // 2}.0" for i in range(8)])
    ).encode(),
    "names without a folder": tables.as_csv(
        tables.rows(image=[f"film_{n}.png" for n in tables.NUMBERS])
    ).encode(),
    "names without an ending": tables.as_csv(
        tables.rows(image=[f"film_{n}" for n in tables.NUMBERS])
    ).encode(),
    "of windows": tables.as_csv(
        tables.rows(image=[f"images\\film_{n}.png" for n in tables.NUMBERS])
    ).encode(),
    "empty columns at the end": EMPTY_ENDS,
}  # fmt: skip


@pytest.mark.parametrize("form", TEXTS)
def test_text_tables(tmp_path: Path, form: str) -> None:
    found = prepare("table", write(tmp_path / "raw", TEXTS[form]), tmp_path / "out")
    check_pairs(found, "text" if form == "other names" else "report")
    assert found.manifest["classes"] == ["effusion", "no effusion"]


def test_tab_separated_json_lines_and_a_list_of_objects(tmp_path: Path) -> None:
    lines = tables.as_json_lines(ROWS)
    forms = {
        "a.tsv": tables.as_csv(ROWS, "\t"),
        "b.jsonl": lines,
        "c.json": f"[{','.join(lines.strip().split(chr(10)))}]",
    }
    for name, content in forms.items():
        check_pairs(prepare("table", write(tmp_path / name, content, name), tmp_path / "out" / name))


@pytest.mark.parametrize("with_bytes", [False, True])
def test_parquet_of_paths_and_of_bytes(tmp_path: Path, with_bytes: bool) -> None:
    pytest.importorskip("pyarrow")
    tables.write_images(tmp_path / "raw")
    tables.write_parquet(tmp_path / "raw" / "a.parquet", ROWS, with_bytes=with_bytes)
    check_pairs(prepare("table", tmp_path / "raw" / "a.parquet", tmp_path / "out"))


def test_two_tables_of_kaggle(tmp_path: Path) -> None:
    tables.write_indiana(tmp_path / "raw")
    found = prepare("table", tmp_path / "raw", tmp_path / "out")
    assert len(found.samples) == 8
    for key, meta in found.samples.items():
        uid = (tables.number_in(found.pictures[key]) + 1) // 2
        assert meta["sections"] == {"findings": f"Films of {uid}, clear.", "impression": f"Normal {uid}."}
        assert meta["subject"] == str(uid)
    assert found.manifest["text_sections"] == ["findings", "impression"]
    frontal = prepare("table", tmp_path / "raw", tmp_path / "frontal", "views=frontal")
    assert {tables.number_in(body) % 2 for body in frontal.pictures.values()} == {1}
    assert frontal.rejects == {"filtered: view 'Lateral'": 4}


def test_a_spreadsheet_may_have_saved_one_of_kaggles_tables(tmp_path: Path) -> None:
    tables.write_indiana(tmp_path / "raw")
    reports = tmp_path / "raw" / "indiana_reports.csv"
    reports.write_text(re.sub(r"(?m)^(\d+),", r"\1.0,", reports.read_text()))
    found = prepare("table", tmp_path / "raw", tmp_path / "out")
    for key, meta in found.samples.items():
        uid = (tables.number_in(found.pictures[key]) + 1) // 2
        assert meta["sections"]["impression"] == f"Normal {uid}."
    assert len(found.samples) == 8


def test_annotation_of_r2gen(tmp_path: Path) -> None:
    found = prepare("table", tables.write_annotation(tmp_path / "raw"), tmp_path / "out")
    assert found.splits() == {"train": 4, "valid": 2, "test": 2}
    for key, meta in found.samples.items():
        n = tables.number_in(found.pictures[key])
        assert str(n) in meta["sections"]["report"].rstrip(".").split()
        assert meta["split"] == tables.SPLIT_OF[n]


def test_one_row_for_each_label(tmp_path: Path) -> None:
    long = [
        {"image": f"images/film_{n}.png", "finding": name, "patient": str(n)}
        for n in tables.NUMBERS
        for name in (["Effusion|Edema"] if n == 1 else ["Effusion", "Edema"] if n == 2 else ["Normal"])
    ]
    found = prepare("table", write(tmp_path / "raw", tables.as_csv(long)), tmp_path / "out")
    assert found.manifest["classes"] == ["Edema", "Effusion", "Normal"]
    for key, meta in found.samples.items():
        n = tables.number_in(found.pictures[key])
        ill = float(n <= 2)
        assert meta["labels"] == {"Edema": ill, "Effusion": ill, "Normal": 1 - ill}
    assert "filtered: repeated row" not in found.rejects


def test_without_splits_patients_stay_together_and_the_seed_decides(tmp_path: Path) -> None:
    table = [{k: v for k, v in row.items() if k != "split"} for row in ROWS]
    path = write(tmp_path / "raw", tables.as_csv(table))
    splits = []
    for out, seed in (("a", 0), ("b", 0), ("c", 3)):
        found = prepare("table", path, tmp_path / out, f"seed={seed}")
        of_patient: dict[str, set[str]] = {}
        for meta in found.samples.values():
            of_patient.setdefault(meta["subject"], set()).add(meta["split"])
        assert all(len(names) == 1 for names in of_patient.values())
        assert "80/10/10 by patient" in found.said
        splits.append({key: meta["split"] for key, meta in found.samples.items()})
    assert splits[0] == splits[1] != splits[2]


def test_without_patients_it_says_what_that_means(tmp_path: Path) -> None:
    table = [{k: v for k, v in row.items() if k != "patient_id"} for row in ROWS]
    found = prepare("table", write(tmp_path / "raw", tables.as_csv(table)), tmp_path / "out")
    assert "too high" in found.said
    assert "columns: image = image; text = report; split = split" in found.said


def test_columns_and_folds_are_named(tmp_path: Path) -> None:
    table = tables.rows(split=list("00111122"), oedema=["1", "0"] * 4, comment=["x"] * 8)
    path = write(tmp_path / "raw", tables.as_csv(table).replace("image,", "Bild,", 1))
    options = ("image=Bild", "labels=effusion,oedema", "splits=0=train,1=valid,2=test", "text=report,comment")
    found = prepare("table", path, tmp_path / "out", *options)
    assert found.splits() == {"train": 2, "valid": 4, "test": 2}
    assert found.manifest["classes"] == ["effusion", "oedema"]
    assert found.manifest["text_sections"] == ["report", "comment"]


CSV = tables.as_csv(ROWS)
SPLITS = ("train", "test")
TEXT = "SECRET words of a report."


@pytest.mark.parametrize(
    ("content", "options", "what"),
    [
        (CSV.replace("split,", "", 1), (), "6 fields, the header has 5"),
        (CSV.replace('"Film number 3, ""upright"".\nNo effusion."', "Film 3, upright"), (), "7 fields"),
        (CSV.replace('"Film number 8', "Film number 8"), (), "fields"),
        (CSV.encode().replace(b"number 2", b"num\xfcber 2"), (), "encoding=windows-1252"),
        (CSV.replace(",yes\n", ",maybe\n"), ("labels=effusion",), "'maybe' is no label"),
        (CSV.replace(",yes\n", f",{TEXT}\n"), ("labels=effusion",), "a text of 25 characters is no label"),
        (CSV.replace(",PA,", f",{TEXT},"), ("split=view",), "a text of 25 characters is no name"),
        (CSV.replace(",PA,", f",{TEXT},"), ("labels=view",), "holds texts and no class names"),
        (CSV, ("image=imagee",), "did you mean image?"),
        (CSV, ("labels=edema",), "no such column"),
        (CSV.replace("images/film_1.png", "https://x.org/1.png"), (), "download the images first"),
        (CSV.replace("image,", "picture,", 1), (), "-o image=COLUMN"),
        (tables.as_csv(tables.rows(patient_id=["1.2E+11"] * 8)), (), "rounded"),
        (tables.as_csv(tables.rows(split=list("00011122"))), (), "say what each is"),
        (tables.as_csv(tables.rows(patient_id=["7"] * 8)), (), "a patient in two splits"),
        (CSV + "".join(f"images/film_1.png,a,1000,{name},PA,1\n" for name in SPLITS), (), "of one image"),
        ("", (), "no header"),
        ("image,report\n", (), "no rows"),
        (CSV.replace("patient_id", "report", 1), (), "two columns"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(
    tmp_path: Path, content: str | bytes, options: tuple[str, ...], what: str
) -> None:
    line = refusal("table", write(tmp_path / "raw", content), tmp_path / "out", *options)
    assert what in line
    assert "SECRET" not in line
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_no_table_or_a_spreadsheet_says_what_to_do(tmp_path: Path) -> None:
    there = refusal("table", write(tmp_path / "raw", "", "films.xlsx"), tmp_path / "out")
    assert there.endswith(".parquet; save a spreadsheet as CSV (UTF-8)")
    assert "pairs.csv: no such file; give --raw FILE. Needed: a CSV" in refusal(
        "table", tmp_path / "pairs.csv", tmp_path / "out"
    )


def test_prompts_of_another_form_say_how_to_write_them(tmp_path: Path) -> None:
    prompts = write(tmp_path, "effusion: Left pleural effusion.\n", "prompts.yaml")
    line = refusal("table", write(tmp_path / "raw", CSV), tmp_path / "out", f"prompts={prompts}")
    assert line.endswith("write it as `class: [prompt, ...]`")


def test_windows_text_with_its_encoding_named(tmp_path: Path) -> None:
    content = CSV.replace("No effusion", "Kein Erguß").encode("cp1252")
    found = prepare("table", write(tmp_path / "raw", content), tmp_path / "out", "encoding=windows-1252")
    assert all("Kein Erguß" in meta["sections"]["report"] for meta in found.samples.values())


def test_missing_images_are_counted_and_two_of_one_name_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "raw", CSV)
    (tmp_path / "raw" / "images" / "film_3.png").unlink()
    assert prepare("table", path, tmp_path / "out").rejects == {"missing": 1}
    tables.write_picture_of(tmp_path / "raw" / "a" / "film_3.png", 3)
    tables.write_picture_of(tmp_path / "raw" / "b" / "film_3.png", 3)
    path.write_text(CSV.replace("images/film_3.png", "film_3.png"), encoding="utf-8")
    assert "give paths" in refusal("table", path, tmp_path / "again")


def test_prompts_and_a_name_reach_the_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from medunifier_cli.cli import mu
    from medunifier_cli.plugin_index import prepared_dataset

    monkeypatch.setenv("MU_DATA", str(tmp_path / "data"))
    path = write(tmp_path / "raw", CSV)
    prompts = tmp_path / "prompts.yaml"
    prompts.write_text("effusion: [Fluid.]\nno effusion: [Clear., Dry.]\n", encoding="utf-8")
    words = ["prepare", "table", "--raw", str(path), "--name", "mine", "--size", "32", "--workers", "1"]
    result = CliRunner().invoke(mu, [*words, "-o", f"prompts={prompts}"])
    assert result.exit_code == 0, result.output
    plugin = prepared_dataset("mine")
    assert (plugin.name, plugin.classes) == ("mine", ("effusion", "no effusion"))
    assert plugin.text_sections == ("report",)
    assert plugin.prompt_sets() == {"given": {"effusion": ["Fluid."], "no effusion": ["Clear.", "Dry."]}}


@pytest.mark.skipif(
    not (SHARED / "data" / "rocov2-chest").is_dir(), reason="needs the tables in ../shared/data/rocov2-chest"
)
@pytest.mark.parametrize("every", [20, pytest.param(1, marks=pytest.mark.slow)])
def test_real_tables_need_no_option(tmp_path: Path, every: int) -> None:
    """One row of so many."""
    rows = {}
    for folder, name in (("rocov2-chest", "pairs.csv"), ("pediatric-pneumonia", "labels.csv")):
        header, *lines = (SHARED / "data" / folder / name).read_text(encoding="utf-8").splitlines(True)
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(header + "".join(lines[::every]), encoding="utf-8")
        (tmp_path / name / "images").symlink_to(SHARED / "data" / folder / "images")
        rows[name] = list(csv.DictReader([header, *lines[::every]]))
    found = prepare("table", tmp_path / "pairs.csv" / "pairs.csv", tmp_path / "pairs")
    wanted = Counter(row["split"] for row in rows["pairs.csv"])
    assert found.splits() == wanted
    assert len(wanted) == 2
    found = prepare("table", tmp_path / "labels.csv" / "labels.csv", tmp_path / "labels")
    ill = [meta["labels"]["pneumonia"] == 1 for meta in found.samples.values()]
    assert (len(ill), sum(ill)) == (1400 // every, sum(row["pneumonia"] == "1" for row in rows["labels.csv"]))
    assert 0 < sum(ill) < len(ill)


def test_synthetic_rows_go_into_train_and_the_others_are_drawn(tmp_path: Path) -> None:
    """Also in one table with real ones; an origin of another form, such as a hospital, says nothing."""
    kinds = ["synthetic:a@1", "Oslo", "synthetic:b@2", "", "synthetic:a@1", "Bergen", "", "synthetic:a@1"]
    gone = ("split", "patient_id")
    rows = [{k: v for k, v in row.items() if k not in gone} for row in tables.rows(origin=kinds)]
    path = write(tmp_path / "raw", tables.as_csv(rows))
    found = prepare("table", path, tmp_path / "out", "seed=6")
    made = {f"film_{n}": kind for n, kind in zip(tables.NUMBERS, kinds, strict=True)}
    for key, meta in found.samples.items():
        synthetic = made[key].startswith("synthetic:")
        assert meta.get("origin") == (made[key] if synthetic else None)
        assert meta["split"] == "train" or not synthetic
    assert {meta["split"] for meta in found.samples.values()} != {"train"}  # the real ones are drawn
    counted = {split: entry.get("synthetic") for split, entry in found.manifest["splits"].items()}
    assert counted.pop("train") == {"synthetic:a@1": 3, "synthetic:b@2": 1}
    assert set(counted.values()) == {None}
    assert "4 of 8 rows are synthetic, and in train" in found.said
    assert "synthetic, for training alone: 3 of synthetic:a@1, 1 of synthetic:b@2" in found.said


def test_all_rows_into_one_split(tmp_path: Path) -> None:
    path = write(tmp_path / "raw", CSV)
    found = prepare("table", path, tmp_path / "out", "all=train")
    assert found.splits() == {"train": 8}
    assert found.manifest["split_source"] == "all rows train"
    assert "all rows are in train" in found.said
    assert prepare("table", path, tmp_path / "val", "all=val").splits() == {"valid": 8}
    assert "-o all=a/b: 'a/b' is no name of a split" in refusal("table", path, tmp_path / "no", "all=a/b")


def test_an_option_that_came_later_does_not_make_finished_shards_others(tmp_path: Path) -> None:
    path, out = write(tmp_path / "raw", CSV), tmp_path / "out"
    first = prepare("table", path, out)
    (settings,) = out.rglob("settings.json")
    assert '"all"' in settings.read_text()
    earlier = json.loads(settings.read_text())
    del earlier["options"]["all"]
    settings.write_text(json.dumps(earlier))
    assert prepare("table", path, out).manifest == first.manifest
    assert "options.all: was '', is 'valid'" in refusal("table", path, out, "all=valid")
