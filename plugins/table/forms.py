"""Known forms that are more than one plain table: Kaggle's Indiana University tables, R2Gen's annotations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medunifier_cli.data.contract import DataError, quoted, read_json

from ..raw.tables import column_names
from .rows import Rows, TextRows, open_rows
from .values import whole_number

__all__ = ["ANNOTATION", "PROJECTIONS", "REPORTS", "known_form"]

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
ANNOTATION = "annotation.json"
SPLITS = ("train", "val", "test")
R2GEN_COLUMNS = ("image_path", "report", "patient_id", "study_id", "split")


def known_form(path: Path, encoding: str) -> Rows | None:
    """The rows of a known form that `path` belongs to; None for a plain table.

    Raises:
        DataError: a part of the form is missing or damaged.
    """
    if path.name in (REPORTS, PROJECTIONS):
        return _indiana(path.parent, encoding)
    if path.suffix == ".json" and _is_annotation(path):
        return _annotation(path)
    return None


def _indiana(folder: Path, encoding: str) -> TextRows:
    """One row for each image of `indiana_projections.csv`, with the report of its `uid`."""
    tables = []
    for name in (REPORTS, PROJECTIONS):
        if not (folder / name).is_file():
            raise DataError(f"{folder}: no {name}, the second of the two tables; put it there")
        tables.append(open_rows(folder / name, encoding))
    reports, projections = tables
    texts: dict[str, tuple[str, ...]] = {}
    for place, (uid, *sections) in _of(reports, ("uid", "findings", "impression")):
        uid = whole_number(uid)
        if uid in texts:
            raise DataError(f"{reports.shown}, {place}: a second report of uid {quoted(uid)}")
        texts[uid] = tuple(sections)
    rows = [
        (place, (filename, view, uid, *texts.get(whole_number(uid), ("", ""))))
        for place, (uid, filename, view) in _of(projections, ("uid", "filename", "projection"))
    ]
    columns = ("filename", "projection", "patient", "findings", "impression")
    return TextRows(projections.shown, columns, rows)


def _of(rows: Rows, columns: tuple[str, ...]) -> Any:
    missing = [name for name in columns if name not in rows.columns]
    if missing:
        raise DataError(f"{rows.shown}: no column {missing[0]}; its columns: {column_names(rows.columns)}")
    return rows.read(columns)


def _is_annotation(path: Path) -> bool:
    """Whether a JSON file begins as R2Gen's: an object with the list `train`, `val` or `test`."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).lstrip(b"\xef\xbb\xbf \r\n\t")
    except OSError:
        return False
    return head.startswith(b"{") and any(
        head[1:].lstrip().startswith(f'"{name}"'.encode()) and b"[" in head for name in SPLITS
    )


def _annotation(path: Path) -> TextRows:
    """One row for each image of a study; studies of one `subject_id` are one patient, else each is one."""
    parts: Mapping[str, Any] = read_json(path, dict[str, list[dict[str, Any]]])
    rows = []
    for split, studies in parts.items():
        for number, study in enumerate(studies, 1):
            place = f"{split}, entry {number}"
            images, report = study.get("image_path"), study.get("report")
            name = study.get("study_id", study.get("id"))
            if isinstance(images, str):
                images = [images]
            if not isinstance(images, list) or not isinstance(report, str) or name is None:
                raise DataError(f"{path}, {place}: expected are id, image_path (a list) and report")
            patient = str(study.get("subject_id", name))
            rows += [(place, (str(image), report, patient, str(name), split)) for image in images]
    return TextRows(str(path), R2GEN_COLUMNS, rows)
