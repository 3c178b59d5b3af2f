"""Tables of eight radiographs in miniature, in every form that `mu prepare table` reads.

Image n has its bright square at n, and its text says n: a pair that came apart shows.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.miniatures.pictures import pattern

EDGE = 32
"""As the miniatures are prepared, so that the square stays where it is."""
NUMBERS = range(1, 9)
SPLITS = ("train", "train", "train", "training", "val", "val", "test", "test")
SPLIT_OF = {n: "valid" if n in (5, 6) else "test" if n > 6 else "train" for n in NUMBERS}
EFFUSION = ("1", "0", "-1", "", "yes", "FALSE", "positive", "0.0")
EFFUSION_IS = (1.0, 0.0, -1.0, None, 1.0, 0.0, 1.0, 0.0)

Row = Mapping[str, str]


def write_images(folder: Path, suffix: str = ".png") -> None:
    for n in NUMBERS:
        write_picture_of(folder / "images" / f"film_{n}{suffix}", n)


def write_picture_of(path: Path, n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pattern(n * 3, EDGE)).save(path)


def number_in(picture: bytes) -> int:
    """Which image it is, by the place of its square."""
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L")).astype(int)
    return min(NUMBERS, key=lambda n: int(np.abs(pixels - pattern(n * 3, EDGE)).sum()))


def text_of(n: int) -> str:
    """With a comma, a quotation mark and a line end, as reports have them."""
    return f'Film number {n}, "upright".\nNo effusion.'


def rows(**changed: Sequence[str]) -> list[dict[str, str]]:
    """Image, report, patient (two films each), split and a label; `changed` replaces or adds columns."""
    table = []
    for i, n in enumerate(NUMBERS):
        row = {
            "image": f"images/film_{n}.png", "report": text_of(n), "patient_id": str(1000 + i // 2),
            "split": SPLITS[i], "view": "PA", "effusion": EFFUSION[i],
        }  # fmt: skip
        table.append(row | {name: values[i] for name, values in changed.items()})
    return table


def as_csv(table: Sequence[Row], delimiter: str = ",", line_end: str = "\n") -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), delimiter=delimiter, lineterminator=line_end)
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def as_json_lines(table: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table)


def write_parquet(path: Path, table: Sequence[Row], *, with_bytes: bool, groups: int = 3) -> None:
    """Images as paths, or as the hub stores them: a struct of bytes and path, in several row groups."""
    import pyarrow
    import pyarrow.parquet

    rows: list[dict[str, Any]] = [dict(row) for row in table]
    if with_bytes:
        for row in rows:
            content = (path.parent / row["image"]).read_bytes()
            row["image"] = {"bytes": content, "path": "image.png"}  # the hub's paths need not be unique
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=groups)


def write_indiana(folder: Path) -> None:
    """Kaggle's two tables: two films for each of four reports, and a third table's worth of other columns."""
    folder.mkdir(parents=True, exist_ok=True)
    reports = [
        {"uid": str(uid), "MeSH": "x", "findings": f"Films of {uid}, clear.", "impression": f"Normal {uid}."}
        for uid in range(1, 5)
    ]  # fmt: skip
    projections = []
    for n in NUMBERS:
        name = f"{(n + 1) // 2}_IM-{n}.dcm.png"
        write_picture_of(folder / "images" / "images_normalized" / name, n)
        side = "Frontal" if n % 2 else "Lateral"
        projections.append({"uid": str((n + 1) // 2), "filename": name, "projection": side})
    (folder / "indiana_reports.csv").write_text(as_csv(reports), encoding="utf-8")
    (folder / "indiana_projections.csv").write_text(as_csv(projections), encoding="utf-8")


def write_annotation(folder: Path) -> Path:
    """R2Gen's file for images of one's own: two films a study in train, one elsewhere."""
    studies: dict[str, list[dict[str, Any]]] = {"train": [], "val": [], "test": []}
    for split, ids in (("train", ((1, 2), (3, 4))), ("val", ((5,), (6,))), ("test", ((7,), (8,)))):
        for numbers in ids:
            names = [f"S{numbers[0]}/{i}.png" for i in range(len(numbers))]
            for n, name in zip(numbers, names, strict=True):
                write_picture_of(folder / "images" / name, n)
            report = f"Films {' '.join(map(str, numbers))}."
            studies[split].append(
                {"id": f"S{numbers[0]}", "report": report, "image_path": names, "split": split}
            )
    path = folder / "annotation.json"
    path.write_text(json.dumps(studies), encoding="utf-8")
    return path
