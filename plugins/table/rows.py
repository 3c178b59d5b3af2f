"""Read the rows of a table of any form: CSV, TSV, JSON, JSON lines or Parquet; every value becomes a text.

A row that does not fit the header is an error and never a guess: shifted by one column, a table pairs images
with the reports of others.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol, cast

from medunifier_cli.data.contract import DataError, NotTextError, decode_lines, unpack

from ..raw.parquet import as_text

__all__ = ["Rows", "TextRows", "open_rows"]

csv.field_size_limit(1 << 24)
DELIMITERS = (",", "\t", ";", "|")
"""What separates columns; the one that the first line has most of."""
MEMORY = 1 << 29
"""Estimated bytes that the rows of a table may take: 512 MiB, or 480,000 rows of ten short columns."""
ROW, CELL = 500, 57
"""Bytes of a row with its place, here and where it is checked, and of a short text in it."""
JSON_BYTES = 1 << 27
"""Largest table in JSON, which takes several times its size to read; a CSV is read row by row."""
SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods")


class Rows(Protocol):
    """A table: its columns, and its rows with the place of each, for messages."""

    @property
    def shown(self) -> str: ...

    @property
    def columns(self) -> Sequence[str]: ...

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """(`line 7`, the stripped values of `columns`) of each row."""
        ...


@dataclass(frozen=True)
class TextRows:
    """Rows that are in memory: of a text file, or joined from several."""

    shown: str
    columns: Sequence[str]
    values: Sequence[tuple[str, Sequence[str]]] = field(repr=False)
    """(place, a value for each column)."""

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        indices = [self.columns.index(name) for name in columns]
        for place, values in self.values:
            yield place, tuple(values[index].strip() for index in indices)


def open_rows(path: Path, encoding: str) -> Rows:
    """The table in a file.

    Args:
        encoding: of a text file, such as `windows-1252`; empty for UTF-8, or UTF-16 with its mark.

    Raises:
        DataError: no such file, another form, damaged, or rows that do not fit the header.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if suffix not in SUFFIXES:
        advice = "; save a spreadsheet as CSV (UTF-8)" if suffix in SPREADSHEETS else ""
        raise DataError(f"{path}: a table is one of {', '.join(SUFFIXES)}{advice}")
    if suffix == ".parquet":
        from ..raw.parquet import ParquetRows

        return ParquetRows.open(path)
    with _explained(path, encoding):
        if suffix in (".json", ".jsonl", ".ndjson"):
            return _json_rows(path, "".join(_lines(path, encoding, JSON_BYTES)))
        return _csv_rows(path, _lines(path, encoding, unpack.TABLE_BYTES))


def _lines(path: Path, encoding: str, limit: int) -> Iterator[str]:
    """The lines of a text file, read as they are asked for; each ends at a line feed."""
    with path.open("rb") as file:
        limited = cast("IO[bytes]", unpack.Limited(file, limit, str(path)))
        for line in decode_lines(limited, str(path), encoding):
            yield line.replace("\r\n", "\n").replace("\r", "\n")


@contextlib.contextmanager
def _explained(path: Path, encoding: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except LookupError:
        raise DataError(f"-o encoding={encoding}: no such encoding; for example windows-1252") from None
    except NotTextError as error:
        if encoding:
            raise DataError(f"{path}: not text in the encoding {encoding}") from None
        raise NotTextError(f"{error}, or give -o encoding=windows-1252") from None
    except UnicodeError:
        raise DataError(f"{path}: not text in the encoding {encoding}") from None


def _csv_rows(path: Path, lines: Iterator[str]) -> TextRows:
    first = next(lines, "")
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(itertools.chain([first], lines), delimiter=delimiter, strict=True)
    rows: list[tuple[str, Sequence[str]]] = []
    left = MEMORY
    try:
        columns = [name.strip() for name in next(reader, [])]
        _check_columns(path, columns)
        for row in reader:
            if not any(row):
                continue
            # blanks that a spreadsheet leaves behind the last column are no data
            while len(row) > len(columns) and not row[-1].strip():
                row.pop()
            if len(row) != len(columns):
                raise DataError(
                    f"{path}:{reader.line_num}: {len(row)} fields, the header has {len(columns)}; "
                    "a text with commas or line ends needs quotes around it"
                )
            left -= ROW + sum(CELL + len(value) * (1 if value.isascii() else 4) for value in row)
            if left < 0:
                raise _too_many(path, len(rows))
            rows.append((f"line {reader.line_num}", row))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a table ({error})") from error
    return TextRows(str(path), columns, rows)


def _json_rows(path: Path, text: str) -> TextRows:
    """JSON lines, or one list of objects."""
    commas, brackets = text.count(","), text.count("{") + text.count("[")
    if (4 * len(text) + CELL * commas) * (1 if text.isascii() else 2) + CELL * 4 * brackets > MEMORY:
        raise DataError(f"{path}: too large a JSON to be read at once; save it as Parquet or CSV")
    try:
        if text.lstrip().startswith("["):
            found = [(f"entry {i}", one) for i, one in enumerate(json.loads(text), 1)]
        else:
            lines = enumerate(text.split("\n"), 1)
            found = [(f"line {i}", json.loads(line)) for i, line in lines if line.strip()]
    except (ValueError, RecursionError) as error:
        where = f" ({error.msg}, line {error.lineno})" if isinstance(error, json.JSONDecodeError) else ""
        raise DataError(f"{path}: neither JSON lines nor a list of objects{where}") from None
    columns: dict[str, None] = {}
    for place, one in found:
        if not isinstance(one, dict):
            raise DataError(f"{path}, {place}: not an object with the columns as keys")
        columns.update(dict.fromkeys(one))
    _check_columns(path, list(columns))
    if CELL * len(columns) * len(found) > MEMORY:
        raise _too_many(path, len(found), f" of {len(columns):,} columns")
    rows = [
        (place, [as_text(one.get(name), f"{path}, {place}: {name}") for name in columns])
        for place, one in found
    ]
    return TextRows(str(path), list(columns), rows)


def _too_many(path: Path, rows: int, columns: str = "") -> DataError:
    return DataError(
        f"{path}: more than {rows:,} rows{columns} do not fit into the memory that a table may take; leave "
        "out columns, or split the table and prepare its parts one by one"
    )


def _check_columns(path: Path, columns: Sequence[str]) -> None:
    if not any(columns):
        raise DataError(f"{path}: no header line with the names of the columns")
    repeated = sorted({name for name in columns if name and columns.count(name) > 1})
    if repeated:
        raise DataError(f"{path}: two columns are called {repeated[0]!r}")
