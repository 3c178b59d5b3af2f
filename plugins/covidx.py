"""Data set `covidx`: COVID-19, normal or pneumonia, from Kaggle's COVIDx images and COVID-Net's 9A labels.

Two numberings are in use. The paper's "version 6" is the sixth version of the Kaggle data set and COVID-Net's
version 9; COVID-Net's label files `*_COVIDx6.txt` are something else (two classes, 14,311 images).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Drop,
    FileImage,
    Option,
    Plan,
    Record,
    decode_text,
    read_bytes,
    unpack,
)

from .raw.prompts import observed
from .raw.sampling import PART_OPTIONS, random_state, shuffled, train_parts
from .raw.tree import IMAGE_SUFFIXES, file_below, folders, need_folder

CLASSES = ("COVID-19", "normal", "pneumonia")
LABEL_FILES = {"train": "train_COVIDx9A.txt", "test": "test_COVIDx9A.txt"}
PUBLISHED_ROWS = {"train": 30_130, "test": 400}
FIRST_PUBLISHED = ("positive", "sirm")
"""Class and source of SIRM's images in the first 9A list: an oversight for COVID-19 (COVID-Net issue 209)."""
VALID_SHARE = 0.2
"""Share of the train file that becomes valid: MGCA's code, which the paper follows."""

LABELS_NEEDED = (
    "COVIDx needs the three-class labels train_COVIDx9A.txt and test_COVIDx9A.txt, from the folder labels/ "
    "of the COVID-Net repository"
)


class LabelLine(NamedTuple):
    """One line of a label file."""

    patient: str
    file: str
    label: str
    source: str


class Covidx(DatasetPlugin):
    """COVIDx CXR: 30,530 radiographs from eight collections; the class almost follows from the collection.

    Citation: Wang, Lin and Wong, COVID-Net, Scientific Reports 10:19549, 2020
    Licence: unknown for the whole: each source collection has its own terms
    Labels: COVID-19, normal, pneumonia
    Homepage: https://www.kaggle.com/datasets/andyczhao/covidx-cxr2
    """

    name = "covidx"
    title = "COVIDx CXR (Kaggle version 6, labels 9A): COVID-19, normal, pneumonia"
    citation = "Wang, Lin and Wong, COVID-Net, Scientific Reports 10:19549, 2020"
    licence = "unknown for the whole: each source collection has its own terms"
    homepage = "https://www.kaggle.com/datasets/andyczhao/covidx-cxr2"
    needs = (
        "the Kaggle images in train/ and test/ (version 5 or 6), and next to these folders "
        "train_COVIDx9A.txt and test_COVIDx9A.txt from the COVID-Net repository. Free."
    )
    classes = CLASSES
    text_sections = ()
    allow_shared_subjects = True  # MGCA's 80/20 split is by row: 865 patients are in both train and valid
    options: ClassVar[Mapping[str, Option]] = {
        "group_by_patient": Option(False, "split train and valid by patient; MGCA splits by row"),
        **PART_OPTIONS,
        "seed": Option(0, "seed of the split and of the 1 % and 10 % subsets; MGCA's is 0"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        search = list(folders(raw, 2, skip=re.compile("train|test")))
        refuse_other_versions(search)
        files = {name: _find(search, file) for name, file in LABEL_FILES.items()}
        train, test = (read_labels(files[name]) for name in ("train", "test"))
        seed = options["seed"]
        split = patient_split(train, seed) if options["group_by_patient"] else row_split(len(train), seed)
        rows = [*zip(train, split, ["train"] * len(train), strict=True)]
        rows += [(row, "test", "test") for row in test]
        keys = sample_keys([f"{folder}/{row.file}" for row, _, folder in rows])
        images = CovidxFiles(raw, search)
        train_images = {
            row.file: (key, row.label)
            for key, (row, part, folder) in zip(keys, rows, strict=True)
            if part == "train" and images.find(folder, row.file)
        }
        warnings = [
            f"{files[name]}: {len(lines):,} rows, the published file has {PUBLISHED_ROWS[name]:,}"
            for name, lines in (("train", train), ("test", test))
            if len(lines) != PUBLISHED_ROWS[name]
        ]
        valid = math.ceil(VALID_SHARE * PUBLISHED_ROWS["train"])
        unit = "patient" if options["group_by_patient"] else "row"
        return Plan(
            records=self._records(rows, keys, images),
            total=len(rows),
            split_source=f"official test; valid is 20 % of train, by {unit}",
            seed=seed,
            subsets=train_parts(
                dict(train_images.values()), options, {file: key for file, (key, _) in train_images.items()}
            ),
            expected={
                "train": PUBLISHED_ROWS["train"] - valid,
                "valid": valid,
                "test": PUBLISHED_ROWS["test"],
            },
            warnings=warnings,
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {"observed": observed(*CLASSES)}

    def _records(
        self, rows: Sequence[tuple[LabelLine, str, str]], keys: Sequence[str], images: CovidxFiles
    ) -> Iterator[Record | Drop]:
        for key, (row, split, folder) in zip(keys, rows, strict=True):
            located = images.find(folder, row.file)
            if located is None:
                yield Drop("missing", f"{folder}/{row.file}")
                continue
            path, source = located
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


class CovidxFiles:
    """The images in `train/` and `test/`, or one folder deeper (`train/train/`), as in some copies.

    Raises:
        DataError: none of the folders `search` holds `train/` or `test/`.
    """

    def __init__(self, raw: Path, search: Sequence[Path]) -> None:
        roots = [folder for folder in search if (folder / "train").is_dir() or (folder / "test").is_dir()]
        if not roots:
            raise DataError(f"{raw}: neither train/ nor test/ with images; unpack the Kaggle archive there")
        self._raw, self._roots = raw, roots

    def find(self, folder: str, file: str) -> tuple[Path, str] | None:
        """(path, path relative to the raw folder) of an image; None if it is missing."""
        for root in self._roots:
            for below in (root / folder, root / folder / folder):
                if path := file_below(below, file):
                    return path, path.relative_to(self._raw).as_posix()
        return None


def refuse_other_versions(search: Sequence[Path]) -> None:
    """Explain which version of COVIDx this is, unless the 9A labels are there.

    Raises:
        DataError: it is COVIDx CXR-4, another label version, or the Kaggle copy without the 9A labels.
    """
    names = {path.name for folder in search for path in folder.glob("*.txt")}
    folder = search[0]
    if any((path / "val").is_dir() for path in search) or "val.txt" in names:
        raise DataError(
            f"{folder}: this is COVIDx CXR-4 (it has val/ or val.txt), not version 5 or 6 of Kaggle. "
            f"{LABELS_NEEDED}"
        )
    if LABEL_FILES["train"] in names:
        return
    others = sorted(name for name in names if re.fullmatch(r"train_COVIDx.*\.txt", name))
    if others:
        raise DataError(
            f"{folder}: {', '.join(others)} is another label version (the paper's 6 is Kaggle's numbering, "
            f"not COVIDx6). {LABELS_NEEDED}"
        )
    if "train.txt" in names:
        raise DataError(
            f"{folder}: the Kaggle copy's own train.txt has only two classes (9B). {LABELS_NEEDED}"
        )


def _find(search: Sequence[Path], name: str) -> Path:
    for folder in search:
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{search[0]}: no {name}. {LABELS_NEEDED}")


def read_labels(path: Path) -> list[LabelLine]:
    """Lines of `patientid filename class source`, without a header.

    Raises:
        DataError: a line with fewer fields or another class, such as `positive` in other versions.
    """
    rows = []
    content = read_bytes(path, DataError, LABELS_NEEDED, unpack.LIST_BYTES)
    for number, line in enumerate(decode_text(content, str(path)).split("\n"), 1):
        fields = line.split()
        if not fields:
            continue
        label = fields[-2] if len(fields) > 3 else ""
        if len(fields) > 3 and tuple(fields[-2:]) == FIRST_PUBLISHED:
            label = CLASSES[0]
        if label not in CLASSES:
            raise DataError(
                f"{path}:{number}: not `patient file class source` with a 9A class. {LABELS_NEEDED}"
            )
        # From the right, because file names contain spaces: "COVID 1 COVID(1).png".
        patient, file = line.rsplit(maxsplit=2)[0].split(maxsplit=1)
        rows.append(LabelLine(patient, file.strip(), label, fields[-1]))
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def row_split(rows: int, seed: int) -> list[str]:
    """MGCA's split: the first fifth (rounded up) of a permutation of the rows is valid."""
    split = ["train"] * rows
    order = random_state(seed).permutation(rows)
    for i in order[: math.ceil(VALID_SHARE * rows)]:
        split[i] = "valid"
    return split


def patient_split(rows: Sequence[LabelLine], seed: int) -> list[str]:
    """Valid has about a fifth of the rows of each class, and whole patients only.

    A patient with several classes counts towards the class of the first row.
    """
    rows_of: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        rows_of.setdefault(row.patient, []).append(i)
    split = ["train"] * len(rows)
    for stream, name in enumerate(CLASSES):
        patients = sorted(patient for patient, indices in rows_of.items() if rows[indices[0]].label == name)
        target = VALID_SHARE * sum(len(rows_of[patient]) for patient in patients)
        size = 0
        for patient in shuffled(patients, seed, stream):
            larger = size + len(rows_of[patient])
            # Skip a patient who would take valid further from its target: one has thousands of rows.
            if abs(larger - target) >= abs(size - target):
                continue
            size = larger
            for i in rows_of[patient]:
                split[i] = "valid"
    return split


def sample_keys(sources: Sequence[str]) -> list[str]:
    """A key for each path: its file name without forbidden characters, plus a hash if two would be equal."""
    plain = [
        re.sub(r"[^A-Za-z0-9_-]+", "-", _stem(source.rsplit("/", 1)[-1])).strip("-") for source in sources
    ]
    count = Counter(plain)
    return [
        key if count[key] == 1 else f"{key}-{hashlib.sha256(source.encode()).hexdigest()[:8]}"
        for key, source in zip(plain, sources, strict=True)
    ]


def _stem(name: str) -> str:
    stem, dot, suffix = name.rpartition(".")
    return stem if dot and f".{suffix.lower()}" in IMAGE_SUFFIXES else name
