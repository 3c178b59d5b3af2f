"""CheXpert in miniature: the real header and paths, in each of the layouts people have."""

from __future__ import annotations

import csv
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.miniatures.pictures import write_picture

HEADER = [
    *("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", "No Finding", "Enlarged Cardiomediastinum"),
    *("Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation", "Pneumonia", "Atelectasis"),
    *("Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices"),
]
BATCHES = (
    "CheXpert-v1.0 batch 1 (validate & csv)",
    "CheXpert-v1.0 batch 2 (train 1)",
    "CheXpert-v1.0 batch 3 (train 2)",
    "CheXpert-v1.0 batch 4 (train 3)",
)


@dataclass(frozen=True)
class Row:
    """One image."""

    patient: int
    study: int = 1
    view: int = 1
    side: str = "Frontal"
    position: str = "AP"
    labels: Mapping[str, float] = field(default_factory=dict)
    part: str = "train"

    @property
    def tail(self) -> str:
        return f"patient{self.patient:05d}/study{self.study}/view{self.view}_{self.side.lower()}.jpg"

    @property
    def batch(self) -> str:
        """Batch 1 holds valid; train is cut before patients 21514 and 43018."""
        if self.part == "valid":
            return BATCHES[0]
        return BATCHES[1 + (self.patient >= 21_514) + (self.patient >= 43_018)]


def write_csv(path: Path, rows: Sequence[Row], prefix: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for row in rows:
            position = row.position if row.side == "Frontal" else ""
            labels = [row.labels.get(name, "") for name in HEADER[5:]]
            writer.writerow([f"{prefix}/{row.part}/{row.tail}", "Female", 68, row.side, position, *labels])


def write_tree(root: Path, rows: Sequence[Row], prefix: str = "CheXpert-v1.0-small") -> None:
    """`train.csv`, `valid.csv`, `train/` and `valid/`."""
    for part in ("train", "valid"):
        write_csv(root / f"{part}.csv", [row for row in rows if row.part == part], prefix)
    for row in rows:
        write_picture(root / row.part / row.tail, row.patient)


def write_batches(raw: Path, rows: Sequence[Row]) -> None:
    """The four archives of the full release, unpacked; those of train have no `train/` inside."""
    for part in ("train", "valid"):
        write_csv(
            raw / BATCHES[0] / f"{part}.csv", [row for row in rows if row.part == part], "CheXpert-v1.0"
        )
    for row in rows:
        folder = raw / row.batch / ("valid" if row.part == "valid" else "")
        write_picture(folder / row.tail, row.patient)


def zip_batches(raw: Path, rows: Sequence[Row]) -> None:
    """The same four, still packed."""
    write_batches(raw / "unpacked", rows)
    for batch in BATCHES:
        with zipfile.ZipFile(raw / f"{batch}.zip", "w") as archive:
            for path in sorted((raw / "unpacked" / batch).rglob("*")):
                archive.write(path, path.relative_to(raw / "unpacked"))
    shutil.rmtree(raw / "unpacked")


def write_test_set(root: Path, rows: Sequence[Row]) -> None:
    """The official test set as released later: `test/`, and `test_labels.csv` with paths and labels alone."""
    with (root / "test_labels.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["Path", *HEADER[5:]])
        for row in rows:
            labels = [row.labels.get(name, 0.0) for name in HEADER[5:]]
            writer.writerow([f"CheXpert-v1.0/test/{row.tail}", *labels])
    for row in rows:
        write_picture(root / "test" / row.tail, row.patient)


def write_plus(raw: Path, rows: Sequence[Row]) -> None:
    """CheXpert Plus: one table of reports, and PNGs."""
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / "df_chexpert_plus_240401.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path_to_image", "frontal_lateral", "deid_patient_id", "report", "split"])
        for row in rows:
            path = f"{row.part}/{row.tail}"
            writer.writerow([path, row.side, f"patient{row.patient:05d}", "NARRATIVE: ...", row.part])
    for row in rows:
        write_picture(raw / "PNG" / row.part / row.tail.replace(".jpg", ".png"), row.patient)
