"""Damaged tables, archives and annotations of every data set: a plan, a counted drop, or one clean line."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from medunifier_plugins.chexpert_5x200.dataset import CheXpert5x200
from medunifier_plugins.covid_chestxray import CovidChestXray
from medunifier_plugins.covidx import Covidx
from medunifier_plugins.mimic_cxr.dataset import MimicCxr
from medunifier_plugins.open_i.dataset import OpenI
from medunifier_plugins.raw.sampling import listed_ids
from medunifier_plugins.rsna import Rsna
from medunifier_plugins.siim import Siim

from medunifier_cli.data.contract import DatasetPlugin, Record
from medunifier_cli.prepare.dataset_scan import DatasetScan
from tests.damage import damaged_inside, edited_json, ends_well
from tests.hand_made import covid_raw
from tests.miniatures import chexpert, mimic, open_i
from tests.miniatures.planner import Planner
from tests.unit.plugins import test_chexpert_5x200, test_covidx, test_mimic_cxr, test_rsna, test_siim

TRIES = 12
"""For each file; `tests/damage.py` has been tried on thousands, see docs/decisions.md."""


@dataclass(frozen=True)
class Download:
    """A miniature, the files of it that are damaged, and the options that read all of them."""

    plugin: type[DatasetPlugin]
    write: Callable[[Path], object]
    files: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def read(self, raw: Path, seed: int = 0) -> None:
        """As `mu prepare` reads it, images aside."""
        plan = Planner(self.plugin()).plan(raw, **self.options)
        scan = DatasetScan(3, shared_subjects=True, on_drop=lambda drop: None)
        for chunk in scan.chunks(plan.records):
            assert all(isinstance(record, Record) for record in chunk.records)


def write_mimic(raw: Path) -> None:
    mimic.write_jpg_release(raw, test_mimic_cxr.STUDIES)
    mimic.write_reports_zip(raw / "mimic-cxr-reports.zip", test_mimic_cxr.STUDIES)


RELEASE = mimic.JPG_ROOT.as_posix()
DOWNLOADS = {
    "rsna": Download(
        Rsna,
        lambda raw: test_rsna.write_raw(raw, 12),
        ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"),
        {"per_class": 2, "negatives": "normal-only"},
    ),
    "siim": Download(Siim, lambda raw: test_siim.write_raw(raw, 16), ("stage_2_train.csv",)),
    "covidx": Download(
        Covidx,
        lambda raw: test_covidx.write_raw(raw, test_covidx.table(10)),
        ("train_COVIDx9A.txt", "test_COVIDx9A.txt"),
    ),
    "covid-chestxray": Download(CovidChestXray, lambda raw: covid_raw(raw, 6), ("metadata.csv",)),
    "chexpert-5x200": Download(
        CheXpert5x200,
        lambda raw: chexpert.write_tree(raw, test_chexpert_5x200.rows()[:48]),
        ("train.csv", "valid.csv"),
        {"per_class": 1, "include": "all"},
    ),
    "chexpert-zips": Download(
        CheXpert5x200,
        lambda raw: chexpert.zip_batches(raw, test_chexpert_5x200.rows()[:48]),
        (f"{chexpert.BATCHES[0]}.zip", f"{chexpert.BATCHES[1]}.zip"),
        {"per_class": 1},
    ),
    "mimic-cxr": Download(
        MimicCxr,
        write_mimic,
        (
            *(f"{RELEASE}/mimic-cxr-2.0.0-{name}.csv.gz" for name in ("split", "metadata", "chexpert")),
            "mimic-cxr-reports.zip",
        ),
        {"per_class": 0},
    ),
    "mimic-r2gen": Download(
        MimicCxr,
        lambda raw: mimic.write_r2gen(raw, test_mimic_cxr.ANNOTATED),
        ("annotation.json",),
        {"per_class": 0},
    ),
    "open-i-tgz": Download(
        OpenI, lambda raw: open_i.write_xml(raw, open_i.REPORTS, "png", packed=True), ("NLMCXR_reports.tgz",)
    ),
    "open-i-xml": Download(
        OpenI,
        lambda raw: open_i.write_xml(raw, open_i.REPORTS, "dcm"),
        ("ecgen-radiology/1.xml", "ecgen-radiology/10.xml"),
        {"split": "hash", "images": "all"},
    ),
    "open-i-kaggle": Download(
        OpenI,
        lambda raw: open_i.write_kaggle(raw, open_i.REPORTS),
        ("indiana_reports.csv", "indiana_projections.csv"),
    ),
    "open-i-r2gen": Download(
        OpenI, lambda raw: open_i.write_r2gen(raw, open_i.REPORTS), ("annotation.json",), {"images": "all"}
    ),
}


@pytest.mark.parametrize("name", DOWNLOADS)
def test_damaged_files_end_in_one_line(name: str, tmp_path: Path) -> None:
    try_damage(DOWNLOADS[name], tmp_path, 0, TRIES)


def try_damage(download: Download, raw: Path, seed: int, tries: int) -> int:
    """Returns the number of damaged downloads that were read nevertheless."""
    download.write(raw)
    download.read(raw)
    rng, good = np.random.default_rng(seed), 0
    for file in download.files:
        path = next(iter(raw.rglob(file)))
        whole = path.read_bytes()
        for _ in range(tries):
            json = path.suffix == ".json" and rng.random() < 0.7
            path.write_bytes((edited_json if json else damaged_inside)(whole, rng))
            good += ends_well(lambda: download.read(raw)) is None
        path.write_bytes(whole)
    return good


@pytest.mark.parametrize("name", ["ids.txt", "ids.csv", "ids.csv.gz", "manifest.json", "ids.json"])
def test_damaged_lists_of_ids_end_in_one_line(name: str, tmp_path: Path) -> None:
    text = "key,n\na,1\nb,2\n" if ".csv" in name else "a\nb\n"
    if name.endswith(".json"):
        text = (
            '["a", "b"]' if name == "ids.json" else '{"subsets": {"mine": {"keys": ["a", "b"], "seed": 0}}}'
        )
    body = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
    rng = np.random.default_rng(1)
    for _ in range(40):
        (tmp_path / name).write_bytes(damaged_inside(body, rng))
        ends_well(lambda: listed_ids(tmp_path / name, "mine"))


SECRET = "The patient was told that the mass is malignant"


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("rsna", ",,,,0", f",,,,{SECRET}"),
        ("siim", ",-1", f",{SECRET}"),
        ("covidx", " normal ", f" {SECRET} "),
        ("chexpert-5x200", ",1.0", f",{SECRET}"),
        ("chexpert-5x200", "train/patient", f"{SECRET}/p"),
        ("open-i-kaggle", "1_IM", SECRET),
    ],
)
def test_a_text_in_the_place_of_a_value_does_not_come_out(
    name: str, old: str, new: str, tmp_path: Path
) -> None:
    download = DOWNLOADS[name]
    download.write(tmp_path)
    for file in download.files:
        path = tmp_path / file
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    error = ends_well(lambda: download.read(tmp_path))
    assert error is not None
    assert "malignant" not in str(error)
    assert "malignant" not in repr(error.__context__)


def test_a_patient_without_a_class_is_counted_and_not_normal(tmp_path: Path) -> None:
    download = DOWNLOADS["rsna"]
    download.write(tmp_path)
    table = tmp_path / "stage_2_detailed_class_info.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join(line for line in lines if not line.startswith(test_rsna.patient(0))) + "\n")
    plan = Planner(Rsna()).plan(tmp_path, **download.options)
    assert plan.warnings == ["stage_2_detailed_class_info.csv lacks 1 patients of stage_2_train_labels.csv"]
    assert test_rsna.patient(0) not in plan.subsets["zeroshot"].keys
    assert len(list(replace(plan).records)) == 12
