"""Data set `rsna`: 26,684 frontal radiographs of the RSNA Pneumonia Detection Challenge, stage 2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    quoted,
)

from .raw.dicom_header import view_position
from .raw.prompts import combinations, observed
from .raw.sampling import PART_OPTIONS, listed_ids, shuffled, train_parts
from .raw.tables import Table, find_table
from .raw.tree import folders, image_paths, need_folder, unpack_hint

CLASSES = ("Pneumonia", "Normal")

SPLIT_SIZES = {"train": 18_678, "valid": 4_003, "test": 4_003}

Box = tuple[float, float, float, float]
"""x, y of the upper left corner, width, height; in pixels."""

GLORIA = {
    "Pneumonia": combinations(
        (
            *("mid lung zone", "upper lung zone", "right lung zone", "left lung zone", "lung bases"),
            *("right lung base", "left lung base", "bilateral lung bases", "left upper lobe"),
            *("right upper lobe", "left lower lobe", "right lower lobe", "left middle lobe"),
            "right middle lobe",
        ),
        ("multifocal", "basilar", ""),
        ("pneumonia",),
    ),
    "Normal": combinations(
        ("no infection", "normal", "negative findings"),
        (
            *("at the left lobe", "at the right lobe", "at the upper lobe", "at the lower lobe"),
            *("at the lung bases", "at the right lung base", "at the left lung base"),
            *("at the bilateral lung bases", ""),
        ),
    ),
}
"""What the published MedUnifier code generates by GLoRIA's scheme: 42 and 27 prompts.

The phrases are data of the protocol, from `utilities/constants.py` of github.com/ZiyangZhang0511/MedUnifier;
GLoRIA has none for this data set. They are joined in the order in which that table lists them: for pneumonia,
the location comes first ("left lower lobe multifocal pneumonia").
"""

OURS = {
    "Pneumonia": combinations(
        (
            *("patchy pneumonia", "multifocal pneumonia", "focal pneumonia", "bacterial pneumonia"),
            *("lobar pneumonia", "airspace opacity of pneumonia"),
        ),
        (
            *("in the left lower lung", "in the right lower lung", "in the left upper lung"),
            *("in the right upper lung", "in the mid lung zone", "in both lungs", "at the lung base"),
        ),
    ),
    "Normal": combinations(
        ("no pneumonia", "no airspace opacity", "no infection"),
        ("", "and normal heart size", "and no pleural effusion"),
        ("in clear lungs", "in the left lung", "in the right lung"),
    ),
}
"""Other words, to measure how much the wording matters."""


class Rsna(DatasetPlugin):
    """RSNA Pneumonia Detection Challenge, stage 2: 26,684 frontal radiographs, 6,012 with pneumonia boxes.

    Citation: Shih et al., Radiology: Artificial Intelligence, 2019, doi 10.1148/ryai.2019180041
    Licence: the rules of the Kaggle competition, accepted before the download
    Labels: Pneumonia (Target 1), Normal (Target 0; includes 11,821 abnormal images without pneumonia)
    Homepage: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge
    """

    name = "rsna"
    title = "RSNA Pneumonia Detection Challenge, stage 2"
    citation = "Shih et al., Radiology: Artificial Intelligence, 2019, doi 10.1148/ryai.2019180041"
    licence = "the rules of the Kaggle competition, accepted before the download"
    homepage = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge"
    needs = (
        "stage_2_train_labels.csv, stage_2_train_images/ (DICOM, or PNG or JPG from a mirror) and, for the "
        "class names, stage_2_detailed_class_info.csv. A Kaggle account is required."
    )
    classes = CLASSES
    benchmark_split = "zeroshot"
    prompts_drawn = 10
    headline_metric = "auroc"
    text_sections = ()
    options: ClassVar[Mapping[str, Option]] = {
        "per_class": Option(500, "images per class of the zero-shot subset; 0 for none"),
        "negatives": Option(
            "any", "negatives of that subset: any Target 0, or only the class Normal", ("any", "normal-only")
        ),
        "ids_zeroshot": Option("", "file that lists the zero-shot subset; empty: sample it"),
        **PART_OPTIONS,
        "seed": Option(0, "seed of the zero-shot subset and of the 1 % and 10 % subsets"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        search = list(folders(raw, 1))
        boxes = read_boxes(_table(search, "stage_2_train_labels.csv"))
        classes = read_classes(search, required=options["negatives"] == "normal-only")
        paths = image_paths(raw, lambda stem: stem if stem in boxes else None)
        if not paths:
            expected = "no image stage_2_train_images/<patientId>.dcm of the label table"
            raise DataError(f"{raw}: {expected}{unpack_hint(raw)}")
        split = gloria_split(sorted(boxes))
        subsets = self._subsets(split, boxes, classes, paths, options)
        return Plan(
            records=self._records(raw, boxes, classes, paths, split),
            total=len(boxes),
            split_source="GLoRIA 70/15/15 of the sorted patient ids, RandomState(0)",
            seed=options["seed"],
            subsets=subsets,
            expected=SPLIT_SIZES,
            warnings=_without_class(boxes, classes),
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {"gloria": GLORIA, "ours": OURS, "observed": observed(*CLASSES)}

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
        train = (patient for patient in split if split[patient] == "train" and patient in paths)
        subsets = train_parts({patient: bool(boxes[patient]) for patient in train}, options)
        if options["ids_zeroshot"]:
            list_file = Path(options["ids_zeroshot"])
            ids = listed_ids(list_file, "zeroshot", lambda text: PurePosixPath(text).stem)
            unknown = [patient for patient in ids if patient not in boxes]
            if unknown:
                raise DataError(f"{list_file}: {len(unknown)} of {len(ids)} ids are not in the label table")
            subsets["zeroshot"] = Subset(ids, f"given as {list_file.name}")
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
        positive = [patient for patient in sorted(paths) if boxes[patient]]
        negative = [patient for patient in sorted(paths) if not boxes[patient]]
        if options["negatives"] == "normal-only":
            negative = [patient for patient in negative if classes.get(patient) == "Normal"]
        per_class, seed = options["per_class"], options["seed"]
        if min(len(positive), len(negative)) < per_class:
            raise DataError(
                f"zero-shot subset: needs {per_class} positive and {per_class} negative images, found "
                f"{len(positive)} and {len(negative)}; is the download complete? -o per_class=N asks for "
                "fewer, 0 none"
            )
        keys = shuffled(positive, seed, 0)[:per_class] + shuffled(negative, seed, 1)[:per_class]
        negatives = "class Normal" if options["negatives"] == "normal-only" else "any Target 0"
        rule = f"{per_class} Target 1 and {per_class} of {negatives}, from all splits"
        return Subset(sorted(keys), rule, seed)


def gloria_split(patients: Sequence[str]) -> dict[str, str]:
    """patient -> split, in the order of the published split: train, valid, test, each in its permuted order.

    The procedure of GLoRIA, MGCA and CXR-CLIP: scikit-learn's unstratified `train_test_split`, twice, seed 0,
    on the sorted ids. 30 % (rounded up) are held out; the first half of these, permuted again, is valid.
    """
    # Written out, so that the split cannot change with a new version of scikit-learn.
    held_out = int(np.ceil(0.3 * len(patients)))
    order = np.random.RandomState(0).permutation(len(patients))
    rest, train = order[:held_out], order[held_out:]
    rest_order = np.random.RandomState(0).permutation(held_out)
    half = int(np.ceil(0.5 * held_out))
    parts = {"train": train, "valid": rest[rest_order[:half]], "test": rest[rest_order[half:]]}
    return {patients[i]: name for name, indices in parts.items() for i in indices}


def read_boxes(table: Table) -> dict[str, tuple[Box, ...]]:
    """patient -> boxes of the label table, which has one row per box.

    Raises:
        DataError: a Target that is neither 0 nor 1, or an incomplete box.
    """
    boxes: dict[str, tuple[Box, ...]] = {}
    for line, (patient, *corners, target) in table.rows(["patientId", "x", "y", "width", "height", "Target"]):
        earlier = boxes.setdefault(patient, ())
        if target == "1":
            try:
                x, y, width, height = (float(corner) for corner in corners)
                if not math.isfinite(x + y + width + height):
                    raise ValueError("not a place")
            except ValueError:
                raise DataError(f"{table.shown}:{line}: Target 1 without a box") from None
            boxes[patient] = (*earlier, (x, y, width, height))
        elif target != "0":
            raise DataError(f"{table.shown}:{line}: Target {quoted(target)} is neither 0 nor 1")
    return boxes


def read_classes(search: Sequence[Path], required: bool) -> dict[str, str]:
    """patient -> Normal, `No Lung Opacity / Not Normal` or Lung Opacity; empty without the optional table.

    Raises:
        DataError: `required`, and the table is missing.
    """
    table = find_table(search, "stage_2_detailed_class_info.csv")
    if table is None:
        if required:
            raise DataError(f"{search[0]}: -o negatives=normal-only needs stage_2_detailed_class_info.csv")
        return {}
    return {patient: name for _, (patient, name) in table.rows(["patientId", "class"])}


def _without_class(patients: Iterable[str], classes: Mapping[str, str]) -> list[str]:
    """A warning if the table of classes, where there is one, lacks patients, who do not count as Normal."""
    lacking = sum(patient not in classes for patient in patients) if classes else 0
    if not lacking:
        return []
    return [f"stage_2_detailed_class_info.csv lacks {lacking:,} patients of stage_2_train_labels.csv"]


def _table(search: Sequence[Path], name: str) -> Table:
    table = find_table(search, name)
    if table is None:
        raise DataError(f"{search[0]}: no {name}")
    return table
