"""Which column is what: found by the usual names, or named by the user."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medunifier_cli.data.contract import DataError

from ..raw.tables import column_names

__all__ = ["Columns", "choose", "described", "unused"]

USUAL: Mapping[str, tuple[str, ...]] = {
    "image": (
        "image", "imagepath", "imagefile", "imagefilename", "path", "filepath", "imgpath", "file", "filename",
        "img", "imagename", "imageindex", "imageid", "dicomid",
    ),
    "patient": ("patient", "patientid", "subject", "subjectid", "patientnumber", "mrn"),
    "study": ("study", "studyid", "accession", "accessionnumber"),
    "split": ("split", "fold", "partition", "subset", "set"),
    "view": ("view", "viewposition", "projection", "position"),
    "origin": ("origin",),
    "label": ("label", "class", "diagnosis", "finding", "findinglabels", "target", "category"),
}  # fmt: skip
"""Role -> usual names of its column, likeliest first, without case, spaces and `_`."""
KIND_OF_REPORT = "... report"
"""Stands in `TEXTS` for the one column whose name ends so, such as `Radiology Report`."""
TEXTS = (
    ("findings", "impression"), ("report",), ("reporttext",), ("text",), (KIND_OF_REPORT,), ("narrative",),
    ("caption",), ("description",), ("prompt",),
)  # fmt: skip
"""Usual names of columns with text; the first group of which at least one column is there."""
NOT_THE_REPORT = {
    "accession", "author", "by", "date", "file", "for", "has", "id", "in", "is", "language", "length", "link",
    "no", "number", "of", "path", "status", "time", "type", "url", "with",
}  # fmt: skip
"""Words of a name that ends in `report` and says something about the report, such as `date of report`."""
SHOWN = 6
"""Columns that a message lists."""


@dataclass(frozen=True)
class Columns:
    """Names of columns; empty where there is none."""

    image: str
    texts: tuple[str, ...]
    patient: str
    study: str
    split: str
    view: str
    origin: str
    """Column that may say of an image that it is synthetic, see `values.SYNTHETIC`."""
    label: str
    """Column of class names, for a table with one row for each label; then `labels` is empty."""
    labels: tuple[str, ...]
    """Columns of 1, 0, -1 or blank, one for each class."""
    passed_over: str = ""
    """A column with the usual name of one of classes, which is not used, as there are columns of labels."""

    def all(self) -> list[str]:
        """All that are there, each once."""
        names = (
            self.image, *self.texts, self.patient, self.study, self.split, self.view, self.origin, self.label,
            *self.labels,
        )  # fmt: skip
        return list(dict.fromkeys(name for name in names if name))


def choose(
    shown: str, columns: Sequence[str], given: Mapping[str, str], like_labels: Mapping[str, bool]
) -> Columns:
    """The columns that the user named, and for the rest those with a usual name.

    Args:
        shown: name of the table, for messages.
        columns: of the table.
        given: option -> column, or several with commas; `none` for no such column; empty to find it.
        like_labels: columns with labels in them -> whether every value is one.

    Raises:
        DataError: no column for the images, or one that is not there.
    """
    found = {role: _find(names, columns) for role, names in USUAL.items()}
    texts = _usual_texts([name for name in columns if not like_labels.get(name)])
    taken = {found[role] for role in ("image", "patient", "study", "split", "view", "origin")} | set(texts)
    labels = tuple(name for name, every in like_labels.items() if every and name not in taken)
    # a column `label` of ones and zeros is one class; of names, a class each
    label = "" if found["label"] in (*labels, *texts) else found["label"]
    roles = {**found, "label": label}
    for role in ("image", "patient", "study", "split", "view"):
        if given[role]:
            roles[role] = "" if given[role] == "none" else _named(shown, role, given[role], columns)
    passed_over = ""
    if given["all"]:
        roles["split"] = ""
    if given["text"]:
        texts = _several(shown, "text", given["text"], columns)
    if given["labels"]:
        labels, roles["label"] = _several(shown, "labels", given["labels"], columns), ""
        # one column of names that the user points at, and not one of ones and zeros
        if len(labels) == 1 and labels[0] not in like_labels:
            roles["label"], labels = labels[0], ()
    elif labels:
        passed_over, roles["label"] = roles["label"], ""
    if not roles["image"]:
        raise DataError(
            f"{shown}: no column of images; name it with -o image=COLUMN (columns: {column_names(columns)})"
        )
    used = {roles[role] for role in ("image", "patient", "study", "split", "view")} | set(texts)
    return Columns(
        passed_over=passed_over, texts=texts, labels=tuple(name for name in labels if name not in used),
        **{role: roles[role] for role in ("image", "patient", "study", "split", "view", "origin", "label")},
    )  # fmt: skip


def described(columns: Columns) -> str:
    """The choice in one line, as it is shown before anything is written."""
    parts = {
        "image": columns.image, "text": ", ".join(columns.texts), "patient": columns.patient,
        "split": columns.split, "view": columns.view, "label": columns.label,
        "labels": ", ".join(columns.labels),
    }  # fmt: skip
    shown = [f"{role} = {name}" for role, name in parts.items() if name]
    missing = [role for role in ("text", "patient", "split") if not parts[role]]
    if not (columns.label or columns.labels):
        missing.append("labels")
    none = f"; none for {', '.join(missing)}" if missing else ""
    instead = f"; not {columns.passed_over}, unless -o labels={columns.passed_over} asks for it"
    return f"columns: {'; '.join(shown)}{none}{instead if columns.passed_over else ''}"


def unused(columns: Columns, of_table: Sequence[str]) -> str:
    """The columns that nothing was found for, for a message; empty where there is none."""
    left = [name for name in of_table if name and name not in columns.all()]
    more = f" and {len(left) - SHOWN} more" if len(left) > SHOWN else ""
    return f"{column_names(left[:SHOWN])}{more}" if left else ""


def _usual_texts(columns: Sequence[str]) -> tuple[str, ...]:
    reports = [name for name in columns if _is_kind_of_report(name)]
    for names in TEXTS:
        if names == (KIND_OF_REPORT,):
            found = reports if len(reports) == 1 else []  # of two, the user says which
        else:
            found = [column for name in names if (column := _find([name], columns))]
        if found:
            return tuple(found)
    return ()


def _is_kind_of_report(name: str) -> bool:
    """`Radiology Report`, but neither `Date of Report` nor a whole sentence."""
    words = re.split(r"[\W_]+", name.strip().lower())
    return 1 < len(words) <= 3 and words[-1] == "report" and not NOT_THE_REPORT & set(words)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).lower()


def _find(names: Sequence[str], columns: Sequence[str]) -> str:
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(_plain(column), column)
    return next((by_name[name] for name in names if name in by_name), "")


def _several(shown: str, role: str, names: str, columns: Sequence[str]) -> tuple[str, ...]:
    if names == "none":
        return ()
    return tuple(_named(shown, role, name.strip(), columns) for name in names.split(",") if name.strip())


def _named(shown: str, role: str, name: str, columns: Sequence[str]) -> str:
    if name in columns:
        return name
    same = [column for column in columns if _plain(column) == _plain(name)]
    if len(same) == 1:
        return same[0]
    nearest = difflib.get_close_matches(name, columns, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"columns: {column_names(columns)}"
    raise DataError(f"{shown}: -o {role}={name}: no such column; {hint}")
