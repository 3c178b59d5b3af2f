"""RSNA Pneumonia Detection Challenge, stage 2: 26,684 frontal radiographs, pneumonia or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Drop,
    FileImage,
    Option,
    Plan,
    Record,
    Subset,
)

from .chexpert_5x200.prompts import combinations, observed
from .raw.dicom_header import view_position
from .raw.draws import PART_OPTIONS, listed_ids, shuffled, train_parts
from .raw.tables import Table, find_table
from .raw.tree import archives, folders, image_paths, need_folder

CLASSES = ("Pneumonia", "Normal")

SPLIT_SIZES = {"train": 18_678, "valid": 4_003, "test": 4_003}

Box = tuple[float, float, float, float]

PROMPTS = {
    "Pneumonia": combinations(
        (
            *("in the left lower lung", "in the right lower lung", "in the left upper lung"),
            *("in the right upper lung", "in the mid lung zone", "in both lungs", "at the lung base"),
        ),
        (
            *("patchy pneumonia", "multifocal pneumonia", "focal pneumonia", "bacterial pneumonia"),
            *("lobar pneumonia", "airspace opacity of pneumonia"),
        ),
    ),
    "Normal": combinations(
        ("no pneumonia", "no airspace opacity", "no infection"),
        ("", "and normal heart size", "and no pleural effusion"),
        ("in clear lungs", "in the left lung", "in the right lung"),
    ),
}
"""42 and 27 combinations, as many as the MedUnifier code has; the words are our own."""


class Rsna(DatasetPlugin):
    name = "rsna"
    title = "RSNA Pneumonia Detection Challenge, stage 2"
    homepage = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    needs = (
        "stage_2_train_labels.csv, stage_2_train_images/ (DICOM, or PNG or JPG of a mirror) and, for class "
        "names, stage_2_detailed_class_info.csv; Kaggle account."
    )
    classes = CLASSES
    benchmark_split = "zeroshot"
    prompts_drawn = 10
    headline_metric = "auroc"
    text_sections = ()
    options: ClassVar[Mapping[str, Option]] = {
        "per_class": Option(500, "images per class of the zero-shot subset; 0 for none"),
        "negatives": Option(
            "any", "its negatives: any Target 0, or only the class Normal", ("any", "normal-only")
        ),
        "ids_zeroshot": Option("", "a file that lists a given zero-shot subset, instead of a draw"),
        **PART_OPTIONS,
        "seed": Option(0, "seed of the zero-shot subset and of the 1 % and 10 % lists"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        places = list(folders(raw, 1))
        boxes = read_boxes(_table(places, "stage_2_train_labels.csv"))
        classes = read_classes(places, required=options["negatives"] == "normal-only")
        paths = image_paths(raw, lambda stem: stem if stem in boxes else None)
        if not paths:
            packed = ", ".join(archives(raw))
            hint = f"; unpack {packed} first" if packed else ""
            raise DataError(f"{raw}: no image stage_2_train_images/<patientId>.dcm of the label table{hint}")
        split = gloria_split(sorted(boxes))
        subsets = self._subsets(split, boxes, classes, paths, options)
        return Plan(
            records=self._records(raw, boxes, classes, paths, split),
            total=len(boxes),
            split_source="GLoRIA 70/15/15 of the sorted patient ids, RandomState(0)",
            seed=options["seed"],
            subsets=subsets,
            expected=SPLIT_SIZES,
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {"combinations": PROMPTS, "observed": observed(*CLASSES)}

    def _records(
        self,
        raw: Path,
        boxes: Mapping[str, Sequence[Box]],
        classes: Mapping[str, str],
        paths: Mapping[str, str],
        split: Mapping[str, str],
    ) -> Iterator[Record | Drop]:
        for patient in sorted(boxes):
            if patient not in paths:
                yield Drop("missing", f"stage_2_train_images/{patient}.dcm")
                continue
            source = paths[patient]
            positive = float(bool(boxes[patient]))
            facts: dict[str, Any] = {"boxes": [list(box) for box in boxes[patient]]}
            if patient in classes:
                facts["class"] = classes[patient]
            yield Record(
                key=patient,
                image=FileImage(raw / source),
                split=split[patient],
                subject=patient,
                study=patient,
                source=source,
                view=view_position(raw / source) if source.endswith(".dcm") else None,
                labels={"Pneumonia": positive, "Normal": 1 - positive},
                facts=facts,
            )

    def _subsets(
        self,
        split: Mapping[str, str],
        boxes: Mapping[str, Sequence[Box]],
        classes: Mapping[str, str],
        paths: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> dict[str, Subset]:
        there = (patient for patient in split if split[patient] == "train" and patient in paths)
        subsets = train_parts({patient: bool(boxes[patient]) for patient in there}, options)
        if options["ids_zeroshot"]:
            listed = Path(options["ids_zeroshot"])
            ids = listed_ids(listed, "zeroshot", lambda text: PurePosixPath(text).stem)
            lacking = [patient for patient in ids if patient not in boxes]
            if lacking:
                raise DataError(f"{listed}: {len(lacking)} of {len(ids)} ids are not in the label table")
            subsets["zeroshot"] = Subset(ids, f"given as {listed.name}")
        elif options["per_class"]:
            subsets["zeroshot"] = self._zero_shot(boxes, classes, paths, options)
        return subsets

    def _zero_shot(
        self,
        boxes: Mapping[str, Sequence[Box]],
        classes: Mapping[str, str],
        paths: Mapping[str, str],
        options: Mapping[str, Any],
    ) -> Subset:
        there = sorted(paths)
        positive = [patient for patient in there if boxes[patient]]
        negative = [patient for patient in there if not boxes[patient]]
        if options["negatives"] == "normal-only":
            negative = [patient for patient in negative if classes[patient] == "Normal"]
        per_class, seed = options["per_class"], options["seed"]
        if min(len(positive), len(negative)) < per_class:
            raise DataError(
                f"zero-shot subset: {per_class} positive and negative images wanted, {len(positive)} and "
                f"{len(negative)} there; is the download complete? -o per_class=N asks for fewer or none (0)"
            )
        keys = shuffled(positive, seed, 0)[:per_class] + shuffled(negative, seed, 1)[:per_class]
        what = "class Normal" if options["negatives"] == "normal-only" else "any Target 0"
        return Subset(sorted(keys), f"{per_class} Target 1 and {per_class} of {what}, from all splits", seed)


def gloria_split(patients: Sequence[str]) -> dict[str, str]:
    """patient -> split, in the order of the published split: train, valid, test, each as it was permuted.

    The recipe of GLoRIA, MGCA and CXR-CLIP: scikit-learn's unstratified `train_test_split`, twice, seed 0, on
    the sorted ids. Three tenths (rounded up) are held out; the first half of these, permuted again, is valid.
    """
    held_out = int(np.ceil(0.3 * len(patients)))
    order = np.random.RandomState(0).permutation(len(patients))
    rest, train = order[:held_out], order[held_out:]
    again = np.random.RandomState(0).permutation(held_out)
    half = int(np.ceil(0.5 * held_out))
    parts = {"train": train, "valid": rest[again[:half]], "test": rest[again[half:]]}
    return {patients[place]: name for name, places in parts.items() for place in places}


def read_boxes(table: Table) -> dict[str, tuple[Box, ...]]:
    """patient -> boxes (x, y, width, height in pixels) of the label table, which has one row per box.

    Raises:
        DataError: a Target that is neither 0 nor 1, or a box that is incomplete.
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    for line, (patient, *corners, target) in table.rows(["patientId", "x", "y", "width", "height", "Target"]):
        known = boxes.setdefault(patient, ())
        if target == "1":
            try:
                x, y, width, height = (float(corner) for corner in corners)
            except ValueError:
                raise DataError(f"{table.shown}:{line}: Target 1 without a box") from None
            boxes[patient] = (*known, (x, y, width, height))
        elif target != "0":
            raise DataError(f"{table.shown}:{line}: Target {target!r} is neither 0 nor 1")
    return boxes


def read_classes(places: Sequence[Path], required: bool) -> dict[str, str]:
    """patient -> one of Normal, `No Lung Opacity / Not Normal`, Lung Opacity; also one row per box."""
    table = find_table(places, "stage_2_detailed_class_info.csv")
    if table is None:
        if required:
            raise DataError(f"{places[0]}: -o negatives=normal-only needs stage_2_detailed_class_info.csv")
        return {}
    return {patient: name for _, (patient, name) in table.rows(["patientId", "class"])}


def _table(places: Sequence[Path], name: str) -> Table:
    table = find_table(places, name)
    if table is None:
        raise DataError(f"{places[0]}: no {name}")
    return table
