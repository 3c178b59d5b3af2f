"""Shards written by hand with `tarfile`, and a plugin for them: what the readers are tested against."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medunifier_cli.data.contract import DatasetPlugin, Plan

WORDS = ["heart", "enlarged", "no", "pleural", "effusion", "pneumothorax", "lungs", "are", "clear", "left"]


class HandMade(DatasetPlugin):
    """Two classes, never prepared."""

    name = "hand-made"
    title = "Hand-made shards"
    classes = ("Edema", "Pneumonia")

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        raise NotImplementedError


def png(pixels: np.ndarray[Any, Any], mode: str = "L") -> bytes:
    """A PNG file of uint8 pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "PNG")
    return file.getvalue()


def sample(number: int, size: int = 16, **changes: Any) -> tuple[str, bytes, dict[str, Any]]:
    """Sample `number`: a grey level that follows from it, a text of a few words, labels."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 256, (size, size)).astype(np.uint8)
    meta = {
        "key": f"s{number:05d}",
        "subject": f"p{number // 2}",
        "sections": {
            "findings": " ".join(rng.choice(WORDS, 3 + number % 7)),
            "impression": f"case {number}.",
        },
        "labels": {"Edema": 1.0 if number % 2 else 0.0, "Pneumonia": None if number % 2 else 1.0},
    }
    return f"s{number:05d}", png(pixels), meta | changes


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, Mapping[str, Any]]]) -> Path:
    """One plain tar: `<key>.png`, `<key>.json`, ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, meta in samples:
            for name, body in ((f"{key}.png", image), (f"{key}.json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(body)
                tar.addfile(info, io.BytesIO(body))
    return path


def write_split(folder: Path, split: str, n: int, per_shard: int, size: int = 16) -> Path:
    """`n` samples in shards of `per_shard`."""
    for number, start in enumerate(range(0, n, per_shard)):
        rows = (sample(i, size) for i in range(start, min(n, start + per_shard)))
        write_shard(folder / f"{split}-{number:06d}.tar", rows)
    return folder


COVID_HEADER = (
    "patientid", "offset", "sex", "age", "finding", "survival", "intubated", "intubation_present", "went_icu",
    "in_icu", "needed_supplemental_O2", "extubated", "temperature", "pO2_saturation", "leukocyte_count",
    "neutrophil_count", "lymphocyte_count", "view", "modality", "date", "location", "folder", "filename",
    "doi", "url", "license", "clinical_notes", "other_notes", "",
)  # fmt: skip
"""Of the published metadata.csv; the last column has no name."""


def covid_raw(folder: Path, n: int = 30, edge: int = 40) -> Path:
    """A covid-chestxray download in miniature: two images per patient; JPEG, PNG, and PNG named .jpg."""
    (folder / "images").mkdir(parents=True)
    rows = []
    for i in range(n):
        rng = np.random.default_rng(i)
        smooth = np.add.outer(np.arange(edge + i % 5), np.arange(edge)) * 3 + rng.integers(0, 40)
        picture = Image.fromarray((smooth % 256).astype(np.uint8))
        name, form = [(f"case.{i}.jpg", "JPEG"), (f"case-{i}.png", "PNG"), (f"case {i}.jpg", "PNG")][i % 3]
        picture.save(folder / "images" / name, form)
        finding = ["COVID-19", "Pneumonia/Bacterial/Streptococcus", "No Finding", "COVID-19, ARDS"][i % 4]
        row = dict.fromkeys(COVID_HEADER, "") | {
            "patientid": str(i // 2), "offset": str(i), "finding": finding, "view": "PA", "modality": "X-ray",
            "filename": name, "license": "CC BY", "clinical_notes": f"Note {i}, cough." if i % 5 else "",
        }  # fmt: skip
        rows.append(row)
    write_covid_csv(folder, rows)
    return folder


def write_covid_csv(folder: Path, rows: list[dict[str, str]], drop: str = "") -> None:
    """Write metadata.csv; without the column `drop`."""
    columns = [name for name in COVID_HEADER if name != drop]
    with open(folder / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_covid_csv(folder: Path) -> list[dict[str, str]]:
    """The rows of metadata.csv."""
    with open(folder / "metadata.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
