"""MIMIC 5x200, sampled from a miniature of MIMIC-CXR."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from medunifier_plugins.mimic_cxr.dataset import MimicCxr
from medunifier_plugins.raw.five_by_200 import CLASS_LISTS

from medunifier_cli.data.contract import DataError, Record
from tests.miniatures.mimic import (
    Study,
    report_text,
    write_jpg_release,
    write_reports_zip,
)
from tests.unit.plugins.test_mimic_cxr import BOTH, items, plan

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


def test_5x200_is_sampled_from_clean_frontal_train_images_one_per_patient(crowded: Path) -> None:
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


def test_the_sample_follows_its_seed_and_is_recorded_in_the_manifest(crowded: Path) -> None:
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


def test_a_list_of_ids_replaces_the_sample(crowded: Path, tmp_path: Path) -> None:
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
