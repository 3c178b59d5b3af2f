"""The rows of a table and what each means: one record for each image and text, checked against each other."""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier_cli.data.contract import DataError, Drop, EncodedImage, FileImage, ImageSource, Record, quoted

from ..raw.sampling import hash_share
from ..raw.tables import reads_as_name
from .columns import Columns
from .images import ImageFolder, as_posix
from .rows import Rows
from .values import (
    MOST_CLASSES,
    SPLIT,
    SPLITS,
    SYNTHETIC,
    class_names,
    label_of,
    split_names,
    spreadsheet_ids,
    whole_number,
)

__all__ = ["Table", "section"]

SHARES = {"train": 0.8, "valid": 0.9, "test": 1.0}
"""Upper end of each split's range of `hash_share`, for a table without splits."""
SECTION = re.compile(r"\W+")


def section(column: str) -> str:
    """Name of the report section that a column becomes: `Report Text` -> `report_text`."""
    return SECTION.sub("_", column.strip()).strip("_").lower() or "text"


@dataclass(frozen=True)
class _Row:
    place: str
    image: str
    number: int
    """Row of the table, from 0: a Parquet file's images are found by it."""
    split: str
    patient: str
    study: str
    view: str
    texts: tuple[str, ...]
    labels: Mapping[str, float | None]
    origin: str
    """Of a synthetic image, else empty."""


@dataclass(frozen=True)
class Table:
    """All rows, read and checked; one for each image and text."""

    source: Rows
    columns: Columns
    rows: Sequence[_Row | Drop]
    classes: tuple[str, ...]
    notes: Sequence[str]
    warnings: Sequence[str]

    @classmethod
    def read(cls, source: Rows, columns: Columns, options: Mapping[str, Any]) -> Table:
        names = columns.all()
        found = [(place, dict(zip(names, values, strict=True))) for place, values in source.read(names)]
        if not found:
            raise DataError(f"{source.shown}: no rows below the header")
        notes, warnings = [], []
        for name in dict.fromkeys(filter(None, (columns.image, columns.patient, columns.study))):
            if spreadsheet_ids([row[name] for _, row in found], source.shown, name):
                notes.append(f"{name} holds numbers such as 7.0, as spreadsheets write ids; read as 7")
                for _, row in found:
                    row[name] = whole_number(row[name])
        whole = _whole(options, source.shown)
        synthetic = sum(row.get(columns.origin, "").startswith(SYNTHETIC) for _, row in found)
        if not columns.patient and not whole and synthetic < len(found):
            warnings.append(
                "no column names the patient: images of one patient may be in several splits, and scores "
                "on held-out images then come out too high; name it with -o patient=COLUMN"
            )
        values = {row[columns.split] for _, row in found} if columns.split else set()
        splits = split_names(values, options["splits"], source.shown)
        if columns.split:
            missing = [name for name in ("train", "valid") if name not in splits.values()]
            warnings += [f"no row is in {name}" for name in missing]
        elif whole:
            notes.append(f"all rows are in {whole}")
        elif synthetic < len(found):
            notes.append(f"no column of splits: 80/10/10 by patient, seed {options['seed']}")
        if synthetic:
            where = "" if columns.split or whole else ", and in train"
            notes.append(f"{synthetic:,} of {len(found):,} rows are synthetic{where}")
        classes = _classes(source.shown, columns, found)
        rows = [_row(source, columns, classes, splits, options, n, one) for n, one in enumerate(found)]
        # the bytes of images in Parquet come with a path that need not be unique
        if not _is_stored(source, columns):
            rows = _merged(rows, columns)
        if not (columns.split or whole):
            there = {row.split for row in rows if isinstance(row, _Row)}
            warnings += [f"no row is in {name}" for name in SHARES if name not in there]
        return cls(source, columns, rows, classes, notes, warnings)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits that the rows are in."""
        return tuple(dict.fromkeys(row.split for row in self.rows if isinstance(row, _Row)))

    def records(self, path: Path) -> Iterator[Record | Drop]:
        """The records; keys are the images' names, with a number where several are alike."""
        listed = (row.image for row in self.rows if isinstance(row, _Row))
        folder = ImageFolder(path.parent, self.source.shown, listed)
        split_of: dict[Path, tuple[str, str]] = {}
        stored = _is_stored(self.source, self.columns)
        seen: Counter[str] = Counter()
        kind = "caption" if self.columns.texts == (_named("caption", self.columns.texts),) else "report"
        for row in self.rows:
            if isinstance(row, Drop):
                yield row
                continue
            source: ImageSource
            if stored:
                from ..raw.parquet import read_image

                shown = _shown(self.source, self.columns, row.image, row.number)
                read = functools.partial(read_image, path, self.columns.image, row.number)
                source = EncodedImage(read, container=path)
                stem = Path(row.image).stem if row.image else f"{path.stem}-{row.number:06d}"
            else:
                found = folder.find(row.image, row.place)
                if found is None:
                    yield Drop("missing", row.image or f"{path.name}, {row.place}")
                    continue
                shown = _shown(self.source, self.columns, row.image, row.number)
                stem = Path(shown).stem
                source = FileImage(found)
                split, place = split_of.setdefault(found, (row.split, row.place))
                if split != row.split:
                    both = f"{self.source.shown}, {place} and {row.place}: both are of {shown}"
                    raise DataError(f"{both}, which would be in {split} and in {row.split}")
            key = _key(stem)
            seen[key] += 1
            yield Record(
                key=key if seen[key] == 1 else f"{key}-{_digest(f'{shown} {seen[key]}')}",
                image=source,
                split=row.split,
                subject=row.patient or shown,
                study=row.study or row.patient or shown,
                source=shown,
                view=row.view or None,
                sections={
                    section(name): text
                    for name, text in zip(self.columns.texts, row.texts, strict=True)
                    if text
                },
                labels=row.labels,
                text_kind=kind,
                origin=row.origin,
            )


def _row(
    source: Rows, columns: Columns, classes: Sequence[str], splits: Mapping[str, str],
    options: Mapping[str, Any], number: int, one: tuple[str, Mapping[str, str]],
) -> _Row | Drop:  # fmt: skip
    place, values = one
    where = f"{source.shown}, {place}"
    image, patient = values[columns.image], values.get(columns.patient, "")
    shown = _shown(source, columns, image, number) if image or _is_stored(source, columns) else where
    view = values.get(columns.view, "")
    views = [name.strip().lower() for name in options["views"].split(",") if name.strip()]
    if views and view.lower() not in views:
        return Drop(f"filtered: view {quoted(view) if view else 'unknown'}", shown)
    if columns.patient and not patient:
        return Drop("filtered: no patient", shown)
    origin = values.get(columns.origin, "")
    origin = origin if origin.startswith(SYNTHETIC) else ""
    split = _whole(options, source.shown)
    if columns.split:
        split = splits[values[columns.split]]
        if not split:
            return Drop("filtered: no split", shown)
    elif origin:
        split = split or "train"  # nothing may be measured on it, so it is not drawn
    elif not split:
        share = hash_share(patient or shown, options["seed"])
        split = next(name for name, end in SHARES.items() if share < end)
    if columns.label:
        present = class_names(values[columns.label])
        labels: dict[str, float | None] = {name: float(name in present) for name in classes}
        if not present:
            labels = dict.fromkeys(classes)
    else:
        labels = {name: label_of(values[name], f"{where}: {name}") for name in columns.labels}
        if len(columns.labels) == 1:
            value = labels[columns.labels[0]]
            # so that a softmax, zero-shot and retrieval have two classes to tell apart
            labels[classes[1]] = 1 - value if value in (0.0, 1.0) else value
    texts = tuple(values[name] for name in columns.texts)
    return _Row(
        place, image, number, split, patient, values.get(columns.study, ""), view, texts, labels, origin
    )  # fmt: skip


def _shown(source: Rows, columns: Columns, image: str, number: int) -> str:
    """What an image is called in lists, and a patient of its own where no column names one.

    The same wherever the table lies and however its folders are written, as splits are drawn by it.
    """
    if _is_stored(source, columns):
        return f"{Path(source.shown).name}#{number}"
    return as_posix(image)


def _whole(options: Mapping[str, Any], shown: str) -> str:
    """The split that `-o all` puts every row into; empty without the option.

    Raises:
        DataError: no name of a split.
    """
    name: str = options["all"]
    if name and not SPLIT.fullmatch(name):
        raise DataError(f"{shown}: -o all={name}: {quoted(name)} is no name of a split; try -o all=train")
    return SPLITS.get(name.lower(), name)


def _is_stored(source: Rows, columns: Columns) -> bool:
    """Whether the images' bytes are in the table itself."""
    return columns.image in getattr(source, "images", ())


def _classes(shown: str, columns: Columns, found: Sequence[tuple[str, Mapping[str, str]]]) -> tuple[str, ...]:
    if columns.label:
        names = sorted({name for _, row in found for name in class_names(row[columns.label])})
        if not all(map(reads_as_name, names)):
            raise DataError(
                f"{shown}: the column {columns.label} holds texts and no class names; name the "
                "columns of labels with -o labels=..., or -o labels=none"
            )
        if len(names) > MOST_CLASSES:
            raise DataError(
                f"{shown}: the column {columns.label} holds {len(names):,} different values, no classes; "
                "name the columns of labels with -o labels=..., or -o labels=none"
            )
        return tuple(names)
    if len(columns.labels) == 1:
        return columns.labels[0], f"no {columns.labels[0]}"
    return columns.labels


def _merged(rows: Sequence[_Row | Drop], columns: Columns) -> list[_Row | Drop]:
    """One row for each image and text: a table with one row a label lists an image several times.

    Raises:
        DataError: two rows of one image contradict each other in split or patient.
    """
    first: dict[tuple[Any, ...], int] = {}
    owner: dict[str, _Row] = {}
    merged: list[_Row | Drop] = []
    for row in rows:
        if isinstance(row, Drop) or not row.image:
            merged.append(row)
            continue
        image = as_posix(row.image)
        other = owner.setdefault(image, row)
        if (other.split, other.patient) != (row.split, row.patient):
            raise DataError(f"{other.place} and {row.place} are of one image, with another split or patient")
        known = first.setdefault((image, row.texts), len(merged))
        if known == len(merged):
            merged.append(row)
            continue
        before = merged[known]
        assert isinstance(before, _Row)
        if columns.label:
            both = {name: _either(before.labels[name], value) for name, value in row.labels.items()}
            merged[known] = _Row(**{**vars(before), "labels": both})
            continue
        if before.labels != row.labels:
            raise DataError(f"{before.place} and {row.place} are of one image, with other labels")
        merged.append(Drop("filtered: repeated row", row.image))
    return merged


def _either(a: float | None, b: float | None) -> float | None:
    """A class is there if one row names it, and unknown only if both are blank."""
    return max((value for value in (a, b) if value is not None), default=None)


def _named(name: str, texts: Sequence[str]) -> str:
    return next((text for text in texts if section(text) == name), "")


def _key(stem: str) -> str:
    """A file name as a WebDataset key; one that had to be changed or cut gets a hash of the whole."""
    key = re.sub(r"[^A-Za-z0-9_-]+", "_", stem)[:70].strip("_") or "image"
    return key if key == stem else f"{key}-{_digest(stem)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
