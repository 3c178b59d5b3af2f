"""MIMIC-CXR in miniature: both releases with real names, headers and report layout; invented content."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.miniatures.pictures import write_dicom, write_picture

METADATA = [
    *("dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"),
    *("Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning"),
    *("ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning"),
]
SPLIT = ["dicom_id", "study_id", "subject_id", "split"]
LABELS = [
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture"),
    *("Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia"),
    *("Pneumothorax", "Support Devices"),
]
JPG_ROOT = Path("physionet.org/files/mimic-cxr-jpg/2.0.0")
DICOM_ROOT = Path("physionet.org/files/mimic-cxr/2.0.0")


@dataclass(frozen=True)
class Study:
    """One study and its images: (view position, split) each."""

    subject: int
    study: int
    views: Sequence[str] = ("PA",)
    split: str = "train"
    labels: Mapping[str, float] = field(default_factory=dict)
    report: str | None = None

    def dicom(self, place: int) -> str:
        """Five groups of eight hexadecimal digits, as the real ids."""
        digits = hashlib.sha1(f"{self.study}/{place}".encode()).hexdigest()
        return "-".join(digits[start : start + 8] for start in range(0, 40, 8))

    @property
    def folder(self) -> str:
        return f"files/p{str(self.subject)[:2]}/p{self.subject}/s{self.study}"


def report_text(findings: str | None = None, impression: str | None = None, first: str = "") -> str:
    """A report as it lies there: a centred title, and a blank before every line."""
    parts = [
        " " * 33 + "FINAL REPORT",
        " EXAMINATION:  CHEST (PA AND LAT)",
        " ",
        " INDICATION:  ___ year old with cough",
    ]
    if first:
        parts.insert(0, first)
    if findings is not None:
        parts += [" ", " FINDINGS: ", " ", f" {findings}"]
    if impression is not None:
        parts += [" ", " IMPRESSION: ", " ", f" {impression}"]
    return "\n".join(parts) + "\n"


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A CSV, gzipped if it is called so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_tables(
    root: Path, studies: Sequence[Study], metadata: bool = True, suffix: str = ".csv.gz"
) -> None:
    """Split, metadata and label tables of the JPG release, in another order than the files."""
    images = [(study, place, view) for study in studies for place, view in enumerate(study.views)]
    write_table(
        root / f"mimic-cxr-2.0.0-split{suffix}",
        SPLIT,
        [(s.dicom(i), s.study, s.subject, s.split) for s, i, _ in images],
    )
    if metadata:
        rows = [
            (
                s.dicom(i),
                s.subject,
                s.study,
                "CHEST",
                view,
                3056,
                2544,
                21800506,
                80556.875,
                "CHEST",
                "",
                "Erect",
            )
            for s, i, view in reversed(images)
        ]
        write_table(root / f"mimic-cxr-2.0.0-metadata{suffix}", METADATA, rows)
    labelled = [s for s in reversed(studies) if s.labels]
    for labeller in ("chexpert", "negbio"):
        rows = [(s.subject, s.study, *(s.labels.get(name, "") for name in LABELS)) for s in labelled]
        write_table(root / f"mimic-cxr-2.0.0-{labeller}{suffix}", ["subject_id", "study_id", *LABELS], rows)


def write_reports_zip(path: Path, studies: Sequence[Study]) -> None:
    """`mimic-cxr-reports.zip` with its folders, as PhysioNet packs it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("files/", "")
        for study in studies:
            if study.report is not None:
                archive.writestr(f"{study.folder}.txt", study.report)


def write_reports(root: Path, studies: Sequence[Study]) -> None:
    """Reports unpacked: `files/p10/p10000032/s50414267.txt`."""
    for study in studies:
        if study.report is not None:
            path = root / f"{study.folder}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(study.report, encoding="utf-8")


def write_jpg_release(raw: Path, studies: Sequence[Study], root: Path = JPG_ROOT) -> None:
    """MIMIC-CXR-JPG as wget leaves it."""
    write_tables(raw / root, studies)
    for study in studies:
        for place in range(len(study.views)):
            write_picture(raw / root / study.folder / f"{study.dicom(place)}.jpg", place)


def write_dicom_release(
    raw: Path, studies: Sequence[Study], root: Path = DICOM_ROOT, suffix: str = ".dcm"
) -> None:
    """MIMIC-CXR with its reports beside the study folders, and without any of the JPG release's tables."""
    for study in studies:
        for place, view in enumerate(study.views):
            path = raw / root / study.folder / f"{study.dicom(place)}.dcm"
            write_dicom(path, place, view or None)
            if suffix == ".dcm.gz":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
                path.unlink()
    write_reports(raw / root, studies)


def write_r2gen(raw: Path, studies: Sequence[Study]) -> None:
    """R2Gen's `annotation.json` of MIMIC-CXR, with the findings alone, and `images/p10/...`."""
    parts = {"train": "train", "validate": "val", "test": "test"}
    splits: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for study in studies:
        for place in range(len(study.views)):
            name = f"{study.folder.removeprefix('files/')}/{study.dicom(place)}.jpg"
            row: dict[str, object] = {"id": study.dicom(place), "study_id": study.study}
            row |= {"subject_id": study.subject, "report": study.report or "", "image_path": [name]}
            splits[parts[study.split]].append(row | {"split": parts[study.split]})
            write_picture(raw / "images" / name, place)
    (raw / "annotation.json").write_text(json.dumps(splits), encoding="utf-8")
