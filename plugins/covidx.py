"""COVIDx "version 6" of Kaggle, COVID-Net's version 9: its three-class 9A labels on the Kaggle images."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from medunifier_cli.data.contract import DataError, DatasetPlugin, Drop, FileImage, Option, Plan, Record

from .chexpert_5x200.prompts import observed
from .raw.draws import PART_OPTIONS, shuffled, train_parts
from .raw.tree import IMAGE_SUFFIXES, folders, need_folder

CLASSES = ("COVID-19", "normal", "pneumonia")
LABEL_FILES = {"train": "train_COVIDx9A.txt", "test": "test_COVIDx9A.txt"}
ROWS = {"train": 30_130, "test": 400}
VALID_SHARE = 0.2
"""Of the train file; MGCA's code, followed by the paper."""

WANTED = (
    "COVIDx needs the three-class labels train_COVIDx9A.txt and test_COVIDx9A.txt, from the folder labels/ "
    "of the COVID-Net repository"
)


class Row(NamedTuple):
    """A line of a label file."""

    patient: str
    file: str
    label: str
    source: str


class Covidx(DatasetPlugin):
    name = "covidx"
    title = "COVIDx CXR (Kaggle version 6, labels 9A): COVID-19, normal, pneumonia"
    homepage = "https://www.kaggle.com/datasets/andyczhao/covidx-cxr2"
    needs = (
        "the Kaggle tree with train/ and test/ (version 5 or 6), and beside them train_COVIDx9A.txt and "
        "test_COVIDx9A.txt of the COVID-Net repository; free."
    )
    classes = CLASSES
    text_sections = ()
    allow_shared_subjects = True  # MGCA's 80/20 split is by row: 865 patients are in train and valid
    options: ClassVar[Mapping[str, Option]] = {
        "group_by_patient": Option(False, "split train and valid by patient, not by row as MGCA does"),
        **PART_OPTIONS,
        "seed": Option(0, "seed of the split and of the 1 % and 10 % lists; 0 is MGCA's"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        places = list(folders(raw, 2, skip=re.compile("train|test")))
        refuse_other_versions(places)
        files = {name: _find(places, file) for name, file in LABEL_FILES.items()}
        train, test = (read_labels(files[name]) for name in ("train", "test"))
        seed = options["seed"]
        split = patient_split(train, seed) if options["group_by_patient"] else row_split(len(train), seed)
        rows = [*zip(train, split, ["train"] * len(train), strict=True)]
        rows += [(row, "test", "test") for row in test]
        keys = sample_keys([f"{folder}/{row.file}" for row, _, folder in rows])
        finder = Finder(
            raw, [place for place in places if (place / "train").is_dir() or (place / "test").is_dir()]
        )
        there = {
            row.file: (key, row.label)
            for key, (row, part, folder) in zip(keys, rows, strict=True)
            if part == "train" and finder.find(folder, row.file)
        }
        warnings = [
            f"{files[name]}: {len(found):,} rows, the published file has {ROWS[name]:,}"
            for name, found in (("train", train), ("test", test))
            if len(found) != ROWS[name]
        ]
        valid = math.ceil(VALID_SHARE * ROWS["train"])
        unit = "patient" if options["group_by_patient"] else "row"
        return Plan(
            records=self._records(rows, keys, finder),
            total=len(rows),
            split_source=f"official test; valid is 20 % of train, by {unit}",
            seed=seed,
            subsets=train_parts(
                dict(there.values()), options, {file: key for file, (key, _) in there.items()}
            ),
            expected={"train": ROWS["train"] - valid, "valid": valid, "test": ROWS["test"]},
            warnings=warnings,
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {"observed": observed(*CLASSES)}

    def _records(
        self, rows: Sequence[tuple[Row, str, str]], keys: Sequence[str], finder: Finder
    ) -> Iterator[Record | Drop]:
        for key, (row, split, folder) in zip(keys, rows, strict=True):
            found = finder.find(folder, row.file)
            if found is None:
                yield Drop("missing", f"{folder}/{row.file}")
                continue
            path, source = found
            yield Record(
                key=key,
                image=FileImage(path),
                split=split,
                subject=row.patient,
                study=row.patient,
                source=source,
                labels={name: float(name == row.label) for name in CLASSES},
                facts={"collection": row.source},
            )


class Finder:
    """Images of `train/` and `test/`, or a folder deeper (`train/train/`), as some copies have them."""

    def __init__(self, raw: Path, roots: Sequence[Path]) -> None:
        if not roots:
            raise DataError(f"{raw}: neither train/ nor test/ with images; unpack the Kaggle archive there")
        self._raw, self._roots = raw, roots

    def find(self, folder: str, file: str) -> tuple[Path, str] | None:
        """(path, path relative to the raw folder), None where it is missing."""
        for root in self._roots:
            for path in (root / folder / file, root / folder / folder / file):
                if path.is_file():
                    return path, path.relative_to(self._raw).as_posix()
        return None


def refuse_other_versions(places: Sequence[Path]) -> None:
    """Raises: DataError that explains which version lies there, if the 9A labels do not."""
    names = {path.name for place in places for path in place.glob("*.txt")}
    folder = places[0]
    if any((place / "val").is_dir() for place in places) or "val.txt" in names:
        raise DataError(
            f"{folder}: this is COVIDx CXR-4 (it has val/ or val.txt), with 85,000 images only called "
            f"positive or negative. {WANTED}, and version 5 or 6 of the Kaggle data set"
        )
    if LABEL_FILES["train"] in names:
        return
    others = sorted(name for name in names if re.fullmatch(r"train_COVIDx.*\.txt", name))
    if others:
        raise DataError(
            f"{folder}: {', '.join(others)} is another label version (the paper's 6 is Kaggle's count, not "
            f"COVIDx6). {WANTED}"
        )
    if "train.txt" in names:
        raise DataError(f"{folder}: the Kaggle copy's own train.txt has two classes only (9B). {WANTED}")


def _find(places: Sequence[Path], name: str) -> Path:
    for place in places:
        if (place / name).is_file():
            return place / name
    raise DataError(f"{places[0]}: no {name}. {WANTED}")


def read_labels(path: Path) -> list[Row]:
    """Lines of `patientid filename class source` without a header, read from the right: names have blanks.

    Raises:
        DataError: a line with fewer fields or another class, such as `positive` of other versions.
    """
    rows = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields:
                continue
            if len(fields) < 4 or fields[-2] not in CLASSES:
                raise DataError(f"{path}:{number}: not `patient file class source` with a 9A class. {WANTED}")
            patient, file = line.rsplit(maxsplit=2)[0].split(maxsplit=1)
            rows.append(Row(patient, file.strip(), fields[-2], fields[-1]))
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def row_split(rows: int, seed: int) -> list[str]:
    """MGCA's: the first fifth (rounded up) of a permutation of the rows is valid, patient or not."""
    split = ["train"] * rows
    order = np.random.RandomState(seed).permutation(rows)
    for place in order[: math.ceil(VALID_SHARE * rows)]:
        split[place] = "valid"
    return split


def patient_split(rows: Sequence[Row], seed: int) -> list[str]:
    """About a fifth of the rows of each class, patient by patient: none is on both sides.

    A patient with several classes counts for the one of the first row.
    """
    patients: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        patients.setdefault(row.patient, []).append(place)
    split = ["train"] * len(rows)
    for stream, name in enumerate(CLASSES):
        own = sorted(patient for patient, places in patients.items() if rows[places[0]].label == name)
        wanted = VALID_SHARE * sum(len(patients[patient]) for patient in own)
        taken = 0
        for patient in shuffled(own, seed, stream):
            more = taken + len(patients[patient])
            if abs(more - wanted) >= abs(taken - wanted):
                continue  # one patient of thousands of rows must not fill valid alone
            taken = more
            for place in patients[patient]:
                split[place] = "valid"
    return split


def sample_keys(sources: Sequence[str]) -> list[str]:
    """A key for each path: its file name without what a key may not hold, and a hash where two are alike."""
    plain = [
        re.sub(r"[^A-Za-z0-9_-]+", "-", _stem(source.rsplit("/", 1)[-1])).strip("-") for source in sources
    ]
    times = Counter(plain)
    return [
        key if times[key] == 1 else f"{key}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
        for key, source in zip(plain, sources, strict=True)
    ]


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name
