"""`mu prepare` of the data sets that have labels and no reports: CheXpert, RSNA, SIIM, COVIDx."""

from __future__ import annotations

from pathlib import Path

from tests.miniatures.chexpert import write_batches, write_tree, zip_batches
from tests.miniatures.pictures import leave_rubbish
from tests.miniatures.prepared import prepare, refusal
from tests.unit.plugins import test_chexpert_5x200, test_covidx, test_rsna, test_siim

PAPER = ("Atelectasis", "Cardiomegaly", "Pneumonia", "Edema", "Pleural Effusion")


def test_chexpert_from_a_tree_from_batches_and_from_zips(tmp_path: Path) -> None:
    rows = test_chexpert_5x200.rows()
    found = {}
    for layout, write in {"tree": write_tree, "batches": write_batches, "zips": zip_batches}.items():
        write(tmp_path / layout, rows)
        found[layout] = prepare(
            "chexpert-5x200", tmp_path / layout, tmp_path / f"{layout}-out", "per_class=4"
        )
    one = found["tree"]
    assert one.splits() == {"5x200": 20}
    assert one.manifest["splits"]["5x200"]["classes"] == dict.fromkeys(PAPER, 4)
    for other in (found["batches"], found["zips"]):
        assert other.pictures == one.pictures
        assert {key: meta["labels"] for key, meta in other.samples.items()} == {
            key: meta["labels"] for key, meta in one.samples.items()
        }


def test_chexpert_gloria_classes_reach_the_manifest(tmp_path: Path) -> None:
    write_tree(tmp_path / "raw", test_chexpert_5x200.rows())
    options = ("per_class=4", "class_list=gloria", "include=all")
    found = prepare("chexpert-5x200", tmp_path / "raw", tmp_path / "out", *options)
    assert found.manifest["classes"][2] == "Consolidation"
    assert found.manifest["splits"]["5x200"]["classes"] == dict.fromkeys(found.manifest["classes"], 4)
    assert found.manifest["shared_subjects"] == 0


def test_rsna_splits_subsets_and_a_damaged_file(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    test_rsna.write_raw(raw)
    leave_rubbish(raw)
    damaged = raw / "stage_2_train_images" / f"{test_rsna.patient(3)}.dcm"
    damaged.write_bytes(damaged.read_bytes()[:-300])
    found = prepare("rsna", raw, tmp_path / "out", "per_class=10")
    assert sum(found.splits().values()) == 59
    assert found.rejects == {"truncated": 1}
    subset = found.manifest["subsets"]["zeroshot"]
    assert (subset["n"], subset["seed"]) == (20, 0)
    assert set(subset["keys"]) - {test_rsna.patient(3)} <= set(found.samples)
    meta = found.samples[test_rsna.patient(2)]
    assert meta["labels"] == {"Pneumonia": 1.0, "Normal": 0.0}
    assert meta["view"] == "PA"
    assert found.manifest["headline_metric"] == "auroc"
    assert "is the download complete?" in found.said


def test_siim_has_one_sample_per_image(tmp_path: Path) -> None:
    test_siim.write_raw(tmp_path / "raw")
    found = prepare("siim", tmp_path / "raw", tmp_path / "out")
    assert found.splits() == {"train": 64, "valid": 8, "test": 8}
    positive = {split: entry["classes"]["Pneumothorax"] for split, entry in found.manifest["splits"].items()}
    assert positive == {"train": 16, "valid": 2, "test": 2}
    part = found.manifest["subsets"]["train-0.1"]
    assert part["n"] == 7
    assert {found.samples[key]["split"] for key in part["keys"]} == {"train"}


def test_covidx_counts_shared_patients_and_can_avoid_them(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    test_covidx.write_raw(raw, test_covidx.table())
    by_row = prepare("covidx", raw, tmp_path / "rows")
    assert by_row.manifest["shared_subjects"] > 0
    by_patient = prepare("covidx", raw, tmp_path / "patients", "group_by_patient=true")
    assert by_patient.manifest["shared_subjects"] == 0
    assert by_row.manifest["classes"] == ["COVID-19", "normal", "pneumonia"]
    for name in ("train_COVIDx9A.txt", "test_COVIDx9A.txt"):
        (raw / name).unlink()
    assert "only two classes (9B)" in refusal("covidx", raw, tmp_path / "wrong")
