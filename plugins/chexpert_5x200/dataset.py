"""Data set `chexpert-5x200`: a 5x200 set sampled from CheXpert's train.csv; optionally its splits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from medunifier_cli.data.contract import DataError, DatasetPlugin, Drop, Option, Plan, Record, Subset, quoted

from ..raw.five_by_200 import CLASS_LISTS, PATHOLOGIES, exclusive_class, sample_5x200
from ..raw.five_by_200_prompts import PROMPT_SETS
from ..raw.sampling import listed_ids
from ..raw.tables import Table, label_value
from ..raw.tree import need_folder
from .images import CheXpertFiles, find_images_and_tables, image_tail

HELD_OUT = "5x200"
LABELS = ("No Finding", *PATHOLOGIES)
DESCRIPTION = ("Sex", "Age", "Frontal/Lateral", "AP/PA")
"""Columns of train.csv and valid.csv, but not of test_labels.csv."""

EXAMPLE = "train/patient00001/study1/view1_frontal.jpg"

FRONTAL_TRAIN = 184_000
"""Frontal images of train.csv (191,027) minus those of 5x200 patients, about 6,000 to 8,000."""


class CheXpertRow(NamedTuple):
    """One image, as a row of train.csv or valid.csv."""

    tail: str
    """`patient00001/study1/view1_frontal.jpg`"""
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
    """CheXpert, Stanford 2002-2017: 223,414 train images without reports; by default only 200 of each class.

    Citation: Irvin et al., CheXpert, AAAI 2019, arXiv:1901.07031
    Licence: Stanford's research use agreement, accepted on registration at Stanford AIMI
    Labels: 14 findings; classes: Atelectasis, Cardiomegaly, Pneumonia, Edema, Pleural Effusion
    Homepage: https://stanfordmlgroup.github.io/competitions/chexpert/
    """

    name = "chexpert-5x200"
    title = "CheXpert 5x200: 200 images of each of five findings, Stanford 2002-2017"
    citation = "Irvin et al., CheXpert, AAAI 2019, arXiv:1901.07031"
    licence = "Stanford's research use agreement, accepted on registration at Stanford AIMI"
    homepage = "https://stanfordmlgroup.github.io/competitions/chexpert/"
    needs = (
        "CheXpert-v1.0-small or CheXpert-v1.0 with train.csv (and valid.csv and test_labels.csv for "
        "-o include=all): one tree, the four unpacked batches, or their zips. Free registration at Stanford "
        "AIMI."
    )
    splits = (HELD_OUT, "train", "valid", "test")
    classes = CLASS_LISTS["paper"]
    benchmark_split = HELD_OUT
    text_sections = ()
    options: ClassVar[Mapping[str, Option]] = {
        "include": Option(
            HELD_OUT, "splits: the 5x200 set alone, or also train, valid and test", (HELD_OUT, "all")
        ),
        "class_list": Option("paper", "classes: with Pneumonia, or with Consolidation", ("paper", "gloria")),
        "per_class": Option(200, "images per class of 5x200"),
        "ids_5x200": Option("", "file that lists the 5x200 set (GLoRIA's, for example); empty: sample it"),
        "holdout": Option(
            "subject", "unit removed from train with each 5x200 image", ("subject", "study", "image")
        ),
        "seed": Option(0, "seed of the 5x200 set"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        files, train, others = find_images_and_tables(raw)
        classes = CLASS_LISTS[options["class_list"]]
        warnings = []
        if options["ids_5x200"]:
            list_file = Path(options["ids_5x200"])
            held_out = _listed_set(list_file, train)
            ambiguous = sum(1 for row in held_out.values() if _ambiguous(row, classes))
            if ambiguous:
                share = f"{ambiguous} of {len(held_out)} images"
                warnings.append(f"{list_file}: {share} are not positive for exactly one class")
            subset = Subset([row.key for row in held_out.values()], f"given as {list_file.name}")
        else:
            held_out = _sampled_set(train, files, classes, options["per_class"], options["seed"])
            rule = (
                f"{options['per_class']} of each class from train.csv: only that finding positive, the rest "
                "negative or blank, frontal, one image per patient"
            )
            subset = Subset([row.key for row in held_out.values()], rule, options["seed"])
        expected = {HELD_OUT: len(held_out)}
        if options["include"] == "all":
            records = _all_records(files, train, others, held_out, options["holdout"])
            expected["train"] = FRONTAL_TRAIN
            if "valid" not in others:
                warnings.append(f"{raw}: no valid.csv, so there is no valid split")
        else:
            records = (_item(files, row, HELD_OUT) for row in held_out.values())
        return Plan(
            records=records,
            total=len(held_out) if options["include"] == HELD_OUT else None,
            split_source="5x200 from train.csv; train, valid and test are official",
            seed=options["seed"],
            subsets={HELD_OUT: subset},
            expected=expected,
            warnings=warnings,
            classes=classes,
            allow_shared_subjects=options["holdout"] != "subject",
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return PROMPT_SETS


def _ambiguous(row: CheXpertRow, classes: Sequence[str]) -> bool:
    return sum(1 for name in classes if row.labels[name] == 1) != 1


def _rows(table: Table) -> Iterator[CheXpertRow]:
    # the official test set's table has paths and labels alone
    columns: tuple[str, ...] = () if set(DESCRIPTION).isdisjoint(table.header()) else DESCRIPTION
    for line, (path, *values) in table.rows(("Path", *columns, *LABELS)):
        described, texts = values[: len(columns)], values[len(columns) :]
        tail = image_tail(path)
        if tail is None:
            raise DataError(f"{table.shown}:{line}: {quoted(path)} does not end like {EXAMPLE}")
        text_by_label = zip(LABELS, texts, strict=True)
        labels = {name: label_value(text, table, line, name) for name, text in text_by_label}
        sex, age, side, view = described or ("", "", "Frontal" if "frontal" in tail else "Lateral", "")
        yield CheXpertRow(tail, side == "Frontal", view, sex, age, labels)


def _sampled_set(
    table: Table, files: CheXpertFiles, classes: Sequence[str], per_class: int, seed: int
) -> dict[str, CheXpertRow]:
    """Tail -> row of a sampled 5x200 set, in the order of the table."""
    # Only the few thousand rows that qualify are kept in memory, not all 223,414.
    qualified: list[CheXpertRow] = []
    candidates: list[dict[int, list[int]]] = [{} for _ in classes]
    for row in _rows(table):
        if not row.frontal:
            continue
        values = [row.labels[name] for name in PATHOLOGIES]
        labels_113 = np.array([[-2 if value is None else int(value) for value in values]], dtype=np.int8)
        class_index = int(exclusive_class(labels_113, classes)[0])
        if class_index >= 0:
            patient = int(row.subject.removeprefix("patient"))
            candidates[class_index].setdefault(patient, []).append(len(qualified))
            qualified.append(row)
    by_class = sample_5x200(
        candidates, classes, per_class, seed, lambda index: files.find(qualified[index].tail) is not None
    )
    indices = sorted(index for rows in by_class for index in rows)
    return {qualified[index].tail: qualified[index] for index in indices}


def _listed_set(list_file: Path, table: Table) -> dict[str, CheXpertRow]:
    """Tail -> row of the images that the user's list names.

    Raises:
        DataError: an entry is not in the table.
    """
    ids = listed_ids(list_file, HELD_OUT, lambda text: image_tail(text) or text)
    listed = set(ids)
    rows = {row.tail: row for row in _rows(table) if row.tail in listed}
    missing = [name for name in ids if name not in rows]
    if missing:
        count = f"{len(missing)} of {len(ids)}"
        raise DataError(f"{list_file}: {count} entries are not in {table.shown}, first {quoted(missing[0])}")
    return rows


def _all_records(
    files: CheXpertFiles,
    train: Table,
    others: Mapping[str, Table],
    held_out: Mapping[str, CheXpertRow],
    holdout: str,
) -> Iterator[Record | Drop]:
    """5x200, train without the subjects (studies, images) of 5x200, valid and test; frontal images only."""

    def unit(row: CheXpertRow) -> str:
        return {"subject": row.subject, "study": row.study, "image": row.tail}[holdout]

    held_out_units = {unit(row) for row in held_out.values()}
    for row in _rows(train):
        if row.tail in held_out:
            yield _item(files, row, HELD_OUT)
        elif not row.frontal:
            yield Drop("filtered: lateral view", row.tail)
        elif unit(row) in held_out_units:
            yield Drop(f"held out: {HELD_OUT} {holdout}", row.tail)
        else:
            yield _item(files, row, "train")
    for split, table in others.items():
        for row in _rows(table):
            yield _item(files, row, split) if row.frontal else Drop("filtered: lateral view", row.tail)


def _item(files: CheXpertFiles, row: CheXpertRow, split: str) -> Record | Drop:
    located = files.find(row.tail)
    if located is None:
        return Drop("missing", row.tail)
    image, source = located
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
