"""ROCOv2 in miniature: the tree of Zenodo, and the Parquet files of the hub."""

from __future__ import annotations

import csv
from pathlib import Path

from tests.miniatures.tables import write_picture_of

CHEST_FILM, CT = "C1306645;C0817096;C0032285", "C0040405;C0817096"
FIGURES = {
    "train": {1: CHEST_FILM, 2: CT, 3: CHEST_FILM, 4: "C1306645;C0030797"},
    "valid": {5: CHEST_FILM, 6: CT},
    "test": {7: CHEST_FILM, 8: CHEST_FILM},
}
"""Split -> number of the figure -> its concepts; 1, 3, 5, 7 and 8 are chest radiographs."""


def name_of(split: str, n: int) -> str:
    return f"ROCOv2_2023_{split}_{n:06d}"


def caption_of(n: int) -> str:
    return f'Chest film {n}, with a comma; "quoted".'


def write_tree(folder: Path) -> None:
    for split, figures in FIGURES.items():
        for n in figures:
            write_picture_of(folder / f"{split}_images" / split / f"{name_of(split, n)}.jpg", n)
        _table(
            folder / f"{split}_captions.csv", "Caption", {name_of(split, n): caption_of(n) for n in figures}
        )
        concepts = {name_of(split, n): cuis for n, cuis in figures.items()}
        _table(folder / f"{split}_concepts.csv", "CUIs", concepts)
    licences = {name_of(split, n): f"PMC{n // 2}" for split, figures in FIGURES.items() for n in figures}
    _table(folder / "license_information.csv", "PMCID", licences)


def write_hub(folder: Path) -> None:
    """`data/train-00000-of-00001.parquet` and so on, two rows in each row group."""
    import pyarrow
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True)
    for split, hub in (("train", "train"), ("valid", "validation"), ("test", "test")):
        rows = []
        for n, cuis in FIGURES[split].items():
            path = folder.parent / "pictures" / f"{n}.png"
            write_picture_of(path, n)
            name = name_of(split, n)
            image = {"bytes": path.read_bytes(), "path": f"{name}.png"}
            rows.append(
                {
                    "image": image,
                    "image_id": name_of(split, n),
                    "caption": caption_of(n),
                    "cui": cuis.split(";"),
                }
            )
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(
            table, folder / "data" / f"{hub}-00000-of-00001.parquet", row_group_size=2
        )


def _table(path: Path, column: str, values: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", column])
        writer.writerows(values.items())
