"""CheXpert: a 5x200 set drawn from train.csv, and on request the rest of train and the official valid set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from medunifier_cli.data.contract import DataError, DatasetPlugin, Drop, Option, Plan, Record, Subset

from ..raw.draws import listed_ids
from ..raw.five_by_200 import CLASS_LISTS, PATHOLOGIES, draw_5x200, strict_class
from ..raw.tables import Table, label_value
from ..raw.tree import need_folder
from .images import ImageFinder, find_images_and_tables, image_tail
from .prompts import PROMPT_SETS

HELD_OUT = "5x200"
LABELS = ("No Finding", *PATHOLOGIES)
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *LABELS)

EXAMPLE = "train/patient00001/study1/view1_frontal.jpg"

FRONTAL_TRAIN = 184_000
"""Frontal images of train.csv (191,027) less those of 5x200 patients, about 6,000 to 8,000 of them."""


class Row(NamedTuple):
    """A row of train.csv or valid.csv."""

    tail: str
    frontal: bool
    view: str
    sex: str
    age: str
    labels: Mapping[str, float | None]

    @property
    def subject(self) -> str:
        return self.tail.split("/")[0]

    @property
    def study(self) -> str:
        return "_".join(self.tail.split("/")[:2])

    @property
    def key(self) -> str:
        return self.tail.removesuffix(".jpg").replace("/", "_")


class CheXpert5x200(DatasetPlugin):
    name = "chexpert-5x200"
    title = "CheXpert 5x200: 200 images of each of five findings, Stanford 2002-2017"
    homepage = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    needs = (
        "CheXpert-v1.0-small or CheXpert-v1.0 with train.csv (valid.csv for -o include=all): one tree, the "
        "four batches unpacked, or their zips; free registration at Stanford AIMI."
    )
    splits = (HELD_OUT, "train", "valid")
    classes = CLASS_LISTS["paper"]
    benchmark_split = HELD_OUT
    text_sections = ()
    options: ClassVar[Mapping[str, Option]] = {
        "include": Option(HELD_OUT, "only the 5x200 set, or train and valid as well", (HELD_OUT, "all")),
        "class_list": Option("paper", "with Pneumonia, or with Consolidation", ("paper", "gloria")),
        "per_class": Option(200, "images per class of 5x200"),
        "ids_5x200": Option("", "a file that lists a given 5x200 set (such as GLoRIA's), instead of a draw"),
        "holdout": Option("subject", "what leaves train with a 5x200 image", ("subject", "study", "image")),
        "seed": Option(0, "seed of the 5x200 draw"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        finder, train, valid = find_images_and_tables(raw)
        classes = CLASS_LISTS[options["class_list"]]
        warnings = []
        if options["ids_5x200"]:
            listed = Path(options["ids_5x200"])
            held_out = _given(listed, train)
            unclear = sum(1 for row in held_out.values() if self._unclear(row, classes))
            if unclear:
                warnings.append(
                    f"{listed}: {unclear} of {len(held_out)} images are not positive for one class only"
                )
            subset = Subset([row.key for row in held_out.values()], f"given as {listed.name}")
        else:
            held_out = _drawn(train, finder, classes, options["per_class"], options["seed"])
            rule = (
                f"{options['per_class']} of each class from train.csv: only that finding positive, the rest "
                "negative or blank, frontal, one image per patient"
            )
            subset = Subset([row.key for row in held_out.values()], rule, options["seed"])
        expected = {HELD_OUT: len(held_out)}
        if options["include"] == "all":
            records = _all_records(finder, train, valid, held_out, options["holdout"])
            expected["train"] = FRONTAL_TRAIN
            if valid is None:
                warnings.append(f"{raw}: no valid.csv, so there is no valid split")
        else:
            records = (_item(finder, row, HELD_OUT) for row in held_out.values())
        return Plan(
            records=records,
            total=len(held_out) if options["include"] == HELD_OUT else None,
            split_source="5x200 from train.csv; train and valid are official",
            seed=options["seed"],
            subsets={HELD_OUT: subset},
            expected=expected,
            warnings=warnings,
            classes=classes,
            allow_shared_subjects=options["holdout"] != "subject",
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return PROMPT_SETS

    def _unclear(self, row: Row, classes: Sequence[str]) -> bool:
        return sum(1 for name in classes if row.labels[name] == 1) != 1


def _rows(table: Table) -> Iterator[Row]:
    for line, (path, sex, age, side, view, *labels) in table.rows(COLUMNS):
        tail = image_tail(path)
        if tail is None:
            raise DataError(f"{table.shown}:{line}: {path!r} does not end like {EXAMPLE}")
        named = zip(LABELS, labels, strict=True)
        values = {name: label_value(text, table, line, name) for name, text in named}
        yield Row(tail, side == "Frontal", view, sex, age, values)


def _drawn(
    table: Table, finder: ImageFinder, classes: Sequence[str], per_class: int, seed: int
) -> dict[str, Row]:
    """tail -> row of the drawn set, in the order of the table; only rows that qualify are held in memory."""
    qualified: list[Row] = []
    candidates: list[dict[int, list[int]]] = [{} for _ in classes]
    for row in _rows(table):
        if not row.frontal:
            continue
        values = [row.labels[name] for name in PATHOLOGIES]
        codes = np.array([[-2 if value is None else int(value) for value in values]], dtype=np.int8)
        place = int(strict_class(codes, classes)[0])
        if place >= 0:
            patient = int(row.subject.removeprefix("patient"))
            candidates[place].setdefault(patient, []).append(len(qualified))
            qualified.append(row)
    drawn = draw_5x200(
        candidates, classes, per_class, seed, lambda place: finder.find(qualified[place].tail) is not None
    )
    places = sorted(place for rows in drawn for place in rows)
    return {qualified[place].tail: qualified[place] for place in places}


def _given(listed: Path, table: Table) -> dict[str, Row]:
    """tail -> row of a list by the user.

    Raises:
        DataError: an entry that is not in the table.
    """
    ids = listed_ids(listed, HELD_OUT, lambda text: image_tail(text) or text)
    wanted = set(ids)
    rows = {row.tail: row for row in _rows(table) if row.tail in wanted}
    lacking = [name for name in ids if name not in rows]
    if lacking:
        count = f"{len(lacking)} of {len(ids)}"
        raise DataError(f"{listed}: {count} entries are not in {table.shown}, first {lacking[0]!r}")
    return rows


def _all_records(
    finder: ImageFinder, train: Table, valid: Table | None, held_out: Mapping[str, Row], holdout: str
) -> Iterator[Record | Drop]:
    """5x200, train without what it holds out, and valid; frontal images only."""

    def part(row: Row) -> str:
        return {"subject": row.subject, "study": row.study, "image": row.tail}[holdout]

    taken = {part(row) for row in held_out.values()}
    for row in _rows(train):
        if row.tail in held_out:
            yield _item(finder, row, HELD_OUT)
        elif not row.frontal:
            yield Drop("filtered: lateral view", row.tail)
        elif part(row) in taken:
            yield Drop(f"held out: {HELD_OUT} {holdout}", row.tail)
        else:
            yield _item(finder, row, "train")
    for row in _rows(valid) if valid else ():
        yield _item(finder, row, "valid") if row.frontal else Drop("filtered: lateral view", row.tail)


def _item(finder: ImageFinder, row: Row, split: str) -> Record | Drop:
    found = finder.find(row.tail)
    if found is None:
        return Drop("missing", row.tail)
    image, source = found
    return Record(
        key=row.key,
        image=image,
        split=split,
        subject=row.subject,
        study=row.study,
        source=source,
        view=row.view or ("frontal" if row.frontal else "lateral"),
        labels=row.labels,
        facts={"sex": row.sex, "age": row.age},
    )
