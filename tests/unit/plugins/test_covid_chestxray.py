"""The covid-chestxray plugin on hand-made tables and on the real one."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from medunifier_plugins.covid_chestxray import CovidChestXray

from medunifier_cli.commands.prepare import plugin_options
from medunifier_cli.data.contract import Drop, Record
from medunifier_cli.errors import DataError
from tests.folders import SHARED
from tests.hand_made import COVID_HEADER, write_covid_csv

REAL = SHARED / "data" / "covid-chestxray"


def walk(raw: Path, *options: str) -> tuple[list[Record], Mapping[str, int]]:
    plugin = CovidChestXray()
    items = list(plugin.plan(raw, plugin_options(plugin, options)).records)
    drops = Counter(item.reason for item in items if isinstance(item, Drop))
    return [item for item in items if isinstance(item, Record)], drops


def rows(folder: Path, *changes: Mapping[str, str]) -> Path:
    plain = dict.fromkeys(COVID_HEADER, "") | {"modality": "X-ray", "view": "PA", "finding": "COVID-19"}
    numbered = [{"patientid": str(i), "filename": f"f{i}.png"} | dict(c) for i, c in enumerate(changes)]
    write_covid_csv(folder, [plain | row for row in numbered])
    return folder


@pytest.mark.parametrize(
    ("finding", "one"),
    [
        ("COVID-19", "COVID-19"), ("Pneumonia/Viral/COVID-19", "COVID-19"), ("COVID-19, ARDS", "COVID-19"),
        ("Pneumonia/Bacterial/Streptococcus", "Pneumonia"), ("Pneumonia", "Pneumonia"), ("SARS", "Pneumonia"),
        ("No Finding", "No Finding"), ("ARDS", None), ("Tuberculosis", None),
    ],
)  # fmt: skip
def test_findings_old_and_new_become_one_class(tmp_path: Path, finding: str, one: str | None) -> None:
    plugin = CovidChestXray()
    record = walk(rows(tmp_path, {"finding": finding}))[0][0]
    number = plugin.class_of(record.labels)
    assert (None if number is None else plugin.classes[number]) == one
    assert record.labels[finding.split("/")[-1].split(",")[0]] == 1
    assert record.facts["finding"] == finding


def test_rows_that_are_left_out_say_why(tmp_path: Path) -> None:
    raw = rows(tmp_path, {}, {"modality": "CT"}, {"view": "L"}, {"finding": "todo"}, {"finding": "Unknown"},
               {"view": "AP Supine"}, {"filename": "f0.png"}, {"filename": ""})  # fmt: skip
    records, drops = walk(raw)
    assert [record.view for record in records] == ["PA", "AP Supine"]
    assert drops == {
        "filtered: not an X-ray": 1,
        "filtered: not a frontal view": 1,
        "filtered: no diagnosis": 2,
        "filtered: image listed before": 1,
        "filtered: no file name or no patient id": 1,
    }
    kept, _ = walk(raw, "undiagnosed=keep")
    assert [record.labels["COVID-19"] for record in kept] == [1, None, None, 1]


def test_keys_are_unique_and_fit_a_tar(tmp_path: Path) -> None:
    names = ["a.b (1).png", "a_b__1_.png", "plain.jpg", "plain.png"]
    records, _ = walk(rows(tmp_path, *({"filename": name} for name in names)))
    keys = [record.key for record in records]
    assert len(set(keys)) == 4
    assert all(key.replace("-", "").replace("_", "").isalnum() for key in keys)


def test_patients_stay_on_one_side_and_options_move_the_shares(tmp_path: Path) -> None:
    raw = rows(tmp_path, *({"patientid": str(i // 3)} for i in range(3000)))
    records, _ = walk(raw)
    sides: dict[str, set[str]] = {}
    for record in records:
        sides.setdefault(record.subject, set()).add(record.split)
    assert all(len(side) == 1 for side in sides.values())
    counts = Counter(next(iter(side)) for side in sides.values())
    assert 60 < counts["valid"] < 140
    assert 160 < counts["test"] < 240
    assert {r.split for r in walk(raw, "valid=0", "test=0")[0]} == {"train"}
    assert [r.split for r in walk(raw, "seed=1")[0]] != [r.split for r in records]


@pytest.mark.parametrize("column", ["patientid", "finding", "view", "modality", "filename", "clinical_notes"])
def test_a_missing_column_is_named(tmp_path: Path, column: str) -> None:
    write_covid_csv(tmp_path, [], drop=column)
    with pytest.raises(DataError, match=rf"metadata\.csv: no column {column}"):
        walk(tmp_path)


def test_no_table_no_folder_bad_shares(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        walk(tmp_path / "nowhere")
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no metadata\.csv"):
        walk(tmp_path)
    with pytest.raises(DataError, match="leave some patients to train"):
        walk(rows(tmp_path, {}), "valid=0.5", "test=0.5")


@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data/covid-chestxray is not there")
def test_the_real_table() -> None:
    """Counts of the table, taken with a spreadsheet's means: 264 rows, 43 todo, 1 Unknown, 174 with notes."""
    records, drops = walk(REAL)
    assert (len(records), drops) == (220, {"filtered: no diagnosis": 44})
    assert sum("clinical_notes" in record.sections for record in records) == 152
    assert {record.text_kind for record in records} == {"clinical_notes"}
    kept, _ = walk(REAL, "undiagnosed=keep")
    assert (len(kept), sum("clinical_notes" in record.sections for record in kept)) == (264, 174)
    found: Any = Counter(CovidChestXray().class_of(record.labels) for record in records)
    assert found == {0: 166, 1: 44, 2: 6, None: 4}
