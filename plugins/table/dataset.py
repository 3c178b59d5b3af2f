"""Data set `table`: any table of images with texts, labels, patients and splits, without a line of Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Option,
    Plan,
    quoted,
    read_yaml,
)

from .columns import Columns, choose, described, unused
from .forms import ANNOTATION, REPORTS, known_form
from .rows import SUFFIXES, Rows, open_rows
from .table import Table, section
from .values import LABELS


class TableDataset(DatasetPlugin):
    """A table of your own: CSV, TSV, JSON lines or Parquet with a row for each image.

    Also Kaggle's two tables of Indiana University (`indiana_reports.csv` with `indiana_projections.csv`) and
    R2Gen's `annotation.json`.

    Citation: that of the source of your table
    Licence: that of the source of your table
    Labels: none of its own; those of the table
    """

    name = "table"
    title = "A table of images with texts or labels"
    citation = licence = "that of the source of your table"
    needs = (
        "a CSV, TSV, JSON, JSON lines or Parquet file with a column of image paths (or, in Parquet, of "
        "bytes); columns are found by their usual names, or named with -o."
    )
    raw_form = "file"
    options: ClassVar[Mapping[str, Option]] = {
        "image": Option("", "column of image paths, relative to the table; by default found by its name"),
        "text": Option("", "columns of texts, such as findings,impression; `none` for no text"),
        "labels": Option("", "columns of labels, such as effusion,edema, or one of class names; or `none`"),
        "patient": Option("", "column that names the patient, or `none`"),
        "study": Option("", "column that names the study, or `none`"),
        "split": Option("", "column of splits, or `none` to draw them anew"),
        "all": Option("", "split that every row is put into, such as train, whatever the table says"),
        "splits": Option("", "what the values of that column mean, such as 0=train,1=valid,2=test"),
        "view": Option("", "column of view positions, or `none`"),
        "views": Option("", "views to keep, such as PA,AP; by default all"),
        "shared": Option("refuse", "patients in more than one split of the table", ("refuse", "allow")),
        "seed": Option(0, "seed of the split by patient, for a table without splits (80/10/10)"),
        "encoding": Option("", "of a text file that is not UTF-8, such as windows-1252"),
        "prompts": Option("", "YAML file `class: [prompt, ...]` for zero-shot classification"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        path = _table_in(raw)
        rows = known_form(path, options["encoding"]) or open_rows(path, options["encoding"])
        like_labels, nearly = _like_labels(rows)
        columns = choose(rows.shown, rows.columns, options, like_labels)
        table = Table.read(rows, columns, options)
        prompts = _prompts(options["prompts"], table.classes)
        return Plan(
            records=table.records(path),
            total=len(table.rows),
            split_source=(
                f"column {columns.split}"
                if columns.split
                else f"all rows {options['all']}"
                if options["all"]
                else "hash of the patient, 80/10/10; synthetic images train"
                if columns.origin
                else "hash of the patient, 80/10/10"
            ),
            seed=None if columns.split or options["all"] else options["seed"],
            notes=[described(columns), *_not_labels(columns, nearly, options), *table.notes],
            warnings=[*_no_texts(columns, rows, [*like_labels, *nearly], options), *table.warnings],
            splits=table.splits,
            classes=table.classes,
            text_sections=tuple(map(section, columns.texts)),
            prompts={"given": prompts} if prompts else {},
            allow_shared_subjects=options["shared"] == "allow",
        )


def _table_in(raw: Path) -> Path:
    """The table: a file, or the only one in a folder.

    Raises:
        DataError: there is none, or there are several.
    """
    if not raw.is_dir():
        return raw
    for name in (REPORTS, ANNOTATION):
        if (raw / name).is_file():
            return raw / name
    found = [path for path in sorted(raw.iterdir()) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise DataError(f"{raw}: give --raw FILE, the table itself; tables in this folder: {names}")
    return found[0]


def _like_labels(rows: Rows) -> tuple[dict[str, bool], dict[str, str]]:
    """Columns with labels in them -> whether every value is one; and of those with nearly all, which is none.

    Returns:
        (column -> whether every value is a label, column -> `'maybe' in line 4`, the first that is none).
    """
    names = [name for name in rows.columns if name and not _counts_rows(name)]
    said, others = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    first: dict[str, str] = {}
    for place, values in rows.read(names):
        for name, value in zip(names, values, strict=True):
            if value.lower() not in LABELS:
                others[name] += 1
                first.setdefault(name, f"{quoted(value)} in {place}")
            elif LABELS[value.lower()] is not None:
                said[name] += 1
    nearly = {name: where for name, where in first.items() if others[name] < said[name]}
    return {name: not others[name] for name in names if said[name]}, nearly


def _not_labels(columns: Columns, nearly: Mapping[str, str], options: Mapping[str, Any]) -> list[str]:
    """A line on columns that hold labels but for a few values, where the labels are to be found."""
    left = [f"{name} ({where})" for name, where in nearly.items() if name not in columns.all()]
    if options["labels"] or not left:
        return []
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return [f"not labels: {', '.join(left[:3])}{more}; labels are 1, 0, -1 and blank in every row"]


def _no_texts(columns: Columns, rows: Rows, no_texts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """A line for a table without texts: they may be in a column of another name."""
    left = unused(columns, [n for n in rows.columns if n not in no_texts and not _counts_rows(n)])
    if columns.texts or options["text"] or not left:
        return []
    return [
        f"no column of texts among the columns that are left ({left}): nothing is read of them; name it "
        "with -o text=COLUMN, or say -o text=none"
    ]


def _counts_rows(name: str) -> bool:
    """Columns that a short table may have ones and zeros in, and that are never labels."""
    return name.lower().startswith("unnamed:") or name.lower() in (
        "id",
        "index",
        "age",
        "sex",
        "gender",
        "fold",
    )


def _prompts(path: str, classes: Sequence[str]) -> dict[str, list[str]]:
    if not path:
        return {}
    prompts = read_yaml(Path(path), dict[str, list[str]], DataError, "write it as `class: [prompt, ...]`")
    missing = [name for name in classes if not prompts.get(name)]
    if missing:
        raise DataError(f"{path}: no prompts for {', '.join(missing[:5])}")
    return prompts
