"""Data set `rocov2`: chest radiographs with captions from open-access articles; free real pairs.

Figures of articles, not clinical archives: arrows are burnt in, many are lateral views or children, and the
captions describe a case rather than report an image. So their `text_kind` is `caption`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Drop,
    EncodedImage,
    FileImage,
    ImageSource,
    Option,
    Plan,
    Record,
)

from .raw.parquet import ParquetRows, read_image
from .raw.tables import Table, find_table
from .raw.tree import folders, need_folder, unpack_hint

PLAIN_XRAY, CHEST = "C1306645", "C0817096"
"""UMLS concepts that the data set's authors assigned by hand: the modality, and the region of the body."""
OFFICIAL = {"train": 59_958, "valid": 9_904, "test": 9_927}
"""Images of each split, as the data set's card counts them; its Parquet form holds four more in train."""
HUB_SPLITS = {"train": "train", "valid": "validation", "test": "test"}
"""Split -> how its Parquet files begin."""
ARTICLE = re.compile(r"pmc_?id|pmcid|pmid", re.IGNORECASE)
"""Columns of `license_information.csv` that may name the article of a figure."""
TOLERANCE = 0.02


@dataclass(frozen=True)
class _Figure:
    split: str
    name: str
    image: ImageSource | None
    source: str
    caption: str
    concepts: frozenset[str]
    facts: Mapping[str, str]


class RocoV2(DatasetPlugin):
    """ROCOv2: chest radiographs of 79,789 radiological figures with captions; the official split.

    Citation: Rückert et al., Scientific Data 11:688, 2024
    Licence: CC BY-NC-SA 4.0 as the hub's card says; each figure CC BY or CC BY-NC, by its article
    Labels: none; UMLS concepts are kept in the facts
    Homepage: https://zenodo.org/records/10821435
    """

    name = "rocov2"
    title = "ROCOv2: chest radiographs with captions from open-access articles"
    citation = "Rückert et al., Scientific Data 11:688, 2024"
    licence = "CC BY-NC-SA 4.0 as the hub's card says; each figure CC BY or CC BY-NC, by its article"
    homepage = "https://zenodo.org/records/10821435"
    needs = (
        "train_images/, valid_images/ and test_images/ unpacked, with *_captions.csv and *_concepts.csv; or "
        "the hub's Parquet files data/train-*, validation-*, test-*. Free."
    )
    text_sections = ("caption",)
    allow_shared_subjects = True  # the official split is by figure; two of one article may lie apart
    options: ClassVar[Mapping[str, Option]] = {
        "words": Option(0, "fewest words of a caption; shorter ones are left out"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        search = list(folders(raw, 1, skip=re.compile(r".*_images")))
        tables = {split: find_table(search, f"{split}_captions.csv") for split in OFFICIAL}
        files = {split: _parquet_files(search, start) for split, start in HUB_SPLITS.items()}
        if any(tables.values()):
            counts, figures = _of_tables(raw, search, {k: v for k, v in tables.items() if v is not None})
        elif any(files.values()):
            counts, figures = _of_parquet(raw, files)
        else:
            raise DataError(
                f"{raw}: no train_captions.csv and no train-*.parquet. {self.needs}{unpack_hint(raw)}"
            )
        warnings = [
            f"{split}: {counts.get(split, 0):,} figures, the official split has {number:,}: is it complete?"
            for split, number in OFFICIAL.items()
            if abs(counts.get(split, 0) - number) > number * TOLERANCE
        ]
        return Plan(
            records=_records(figures, options["words"]),
            total=sum(counts.values()),
            split_source="official",
            warnings=warnings,
        )


def _records(figures: Iterator[_Figure], fewest: int) -> Iterator[Record | Drop]:
    for figure in figures:
        if not {PLAIN_XRAY, CHEST} <= figure.concepts:
            yield Drop("filtered: no plain radiograph of the chest", figure.source)
        elif figure.image is None:
            yield Drop("missing", figure.source)
        elif len(figure.caption.split()) < fewest:
            yield Drop(f"filtered: caption of less than {fewest} words", figure.source)
        else:
            article = next((value for name, value in figure.facts.items() if ARTICLE.fullmatch(name)), "")
            yield Record(
                key=re.sub(r"[^A-Za-z0-9_-]", "_", figure.name),
                image=figure.image,
                split=figure.split,
                # neither form is known to name patients, so the article stands for one where it is given
                subject=article or figure.name,
                study=article or figure.name,
                source=figure.source,
                sections={"caption": figure.caption} if figure.caption else {},
                text_kind="caption",
                facts={"concepts": sorted(figure.concepts), **figure.facts},
            )


def _of_tables(
    raw: Path, search: Sequence[Path], tables: Mapping[str, Table]
) -> tuple[dict[str, int], Iterator[_Figure]]:
    """Figures of the tree on Zenodo: `ID,Caption`, and `ID,CUIs` with concepts between semicolons."""
    captions = {split: dict(_pairs(table, "Caption")) for split, table in tables.items()}
    licences = _licences(search)

    def figures() -> Iterator[_Figure]:
        for split, texts in captions.items():
            concepts: dict[str, set[str]] = {}
            found = [find_table(search, f"{split}_concepts{part}.csv") for part in ("", "_manual")]
            if not any(found):
                raise DataError(f"{tables[split].shown}: no {split}_concepts.csv beside it")
            for table in filter(None, found):
                for name, cuis in _pairs(table, "CUIs"):
                    concepts.setdefault(name, set()).update(filter(None, re.split(r"[;,\s]+", cuis)))
            for name, caption in texts.items():
                path = _image(search, split, name)
                source = path.relative_to(raw).as_posix() if path else f"{split}_images/{name}.jpg"
                image = FileImage(path) if path else None
                yield _Figure(
                    split, name, image, source, caption, frozenset(concepts.get(name, ())),
                    licences.get(name, {}),
                )  # fmt: skip

    return {split: len(texts) for split, texts in captions.items()}, figures()


def _pairs(table: Table, column: str) -> Iterator[tuple[str, str]]:
    """(ID, value of `column`).

    Raises:
        DataError: an id that is listed twice.
    """
    seen = set()
    for line, (name, value) in table.rows(["ID", column]):
        if name in seen:
            raise DataError(f"{table.shown}:{line}: {name} is listed twice")
        seen.add(name)
        yield name, value


def _licences(search: Sequence[Path]) -> dict[str, dict[str, str]]:
    """ID -> the other columns of `license_information.csv`, if it is there and names ids."""
    table = find_table(search, "license_information.csv")
    header = table.header() if table is not None else []
    if table is None or "ID" not in header:
        return {}
    others = [name for name in header if name and name != "ID"]
    return {
        name: {column: value for column, value in zip(others, values, strict=True) if value}
        for _, (name, *values) in table.rows(["ID", *others])
    }


def _image(search: Sequence[Path], split: str, name: str) -> Path | None:
    """Zenodo's archives unpack to `train_images/train/`; others have moved them."""
    for folder in search:
        for below in (f"{split}_images/{split}", f"{split}_images", split):
            path = folder / below / f"{name}.jpg"
            if path.is_file():
                return path
    return None


def _parquet_files(search: Sequence[Path], start: str) -> list[Path]:
    return next(
        (sorted(found) for folder in search if (found := list(folder.glob(f"{start}-*.parquet")))), []
    )


def _of_parquet(raw: Path, files: Mapping[str, Sequence[Path]]) -> tuple[dict[str, int], Iterator[_Figure]]:
    """Figures of the hub's form: image, image_id, caption and a list of concepts."""
    opened = {split: [ParquetRows.open(path) for path in paths] for split, paths in files.items()}
    for rows in (one for of_split in opened.values() for one in of_split):
        missing = {"image", "image_id", "caption", "cui"} - set(rows.columns)
        if missing:
            raise DataError(f"{rows.shown}: no column {', '.join(sorted(missing))}; is it ROCOv2?")

    def figures() -> Iterator[_Figure]:
        for split, of_split in opened.items():
            for rows in of_split:
                texts = rows.read(["image_id", "caption"])
                for number, ((_, (name, caption)), cuis) in enumerate(
                    zip(texts, rows.lists("cui"), strict=True)
                ):
                    read = functools.partial(read_image, rows.path, "image", number)
                    image = EncodedImage(read, container=rows.path)
                    source = f"{rows.path.relative_to(raw).as_posix()}#{number}"
                    yield _Figure(split, name, image, source, caption, frozenset(map(str, cuis)), {})

    return {split: sum(rows.count() for rows in of_split) for split, of_split in opened.items()}, figures()
