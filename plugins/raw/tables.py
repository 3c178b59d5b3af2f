"""Read label tables row by row, columns by name: CSV, plain, gzipped or inside a zip archive."""

from __future__ import annotations

import csv
import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from medunifier_cli.data.contract import DataError, decode_lines, quoted, unpack

__all__ = ["Table", "column_names", "find_table", "identifier", "label_value"]

DAMAGED = (
    EOFError, zlib.error, gzip.BadGzipFile, zipfile.BadZipFile, KeyError, RuntimeError, struct.error,
    ValueError,
)  # fmt: skip
"""What `gzip` and `zipfile` raise for damaged bytes, a member that is gone, encrypted or packed otherwise."""

csv.field_size_limit(1 << 24)  # one SIIM mask is a single field of up to several hundred kilobytes


LONGEST_NAME = 40
"""Characters of the longest name of a column or a class that a message shows."""


@dataclass(frozen=True)
class Table:
    """A CSV on disk (`member` empty) or inside the zip archive `path`."""

    path: Path
    member: str = ""

    @property
    def shown(self) -> str:
        """Name for messages: the path, and the member after `!`."""
        return f"{self.path}!{self.member}" if self.member else str(self.path)

    @contextmanager
    def lines(self) -> Iterator[Iterable[str]]:
        """The lines of the file, decompressed while reading."""
        with _open_bytes(self.path, self.member) as raw:
            limited = unpack.Limited(raw, unpack.TABLE_BYTES, self.shown)
            yield decode_lines(cast("IO[bytes]", limited), self.shown)

    def header(self) -> list[str]:
        """Column names without surrounding spaces: SIIM's file has ` EncodedPixels`.

        Raises:
            DataError: as `rows`.
        """
        with self._explained(), self.lines() as lines:
            return [name.strip() for name in next(csv.reader(lines), [])]

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(line number, stripped values of `columns`) of each row; empty lines are skipped.

        Raises:
            DataError: a missing column, a row shorter than the header, a damaged file, or not UTF-8 text.
        """
        with self._explained(), self.lines() as lines:
            reader = csv.reader(lines)
            header = [name.strip() for name in next(reader, [])]
            missing = [name for name in columns if name not in header]
            if missing:
                names = ", ".join(missing)
                raise DataError(f"{self.shown}: no column {names}; its columns: {column_names(header)}")
            indices = [header.index(name) for name in columns]
            for row in reader:
                if not row:
                    continue
                if len(row) < len(header):
                    raise DataError(
                        f"{self.shown}:{reader.line_num}: {len(row)} fields, the header has {len(header)}"
                    )
                yield reader.line_num, tuple(row[index].strip() for index in indices)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        # All of these mean damaged bytes, whether the file is plain, gzipped or in a zip archive.
        except (*DAMAGED, csv.Error) as error:
            raise DataError(f"{self.shown} is damaged or cut short ({error}); download it again") from error
        except OSError as error:
            raise DataError(f"{self.shown}: cannot be read ({error.strerror or error})") from error


@contextmanager
def _open_bytes(path: Path, member: str) -> Iterator[IO[bytes]]:
    if member:
        with zipfile.ZipFile(path) as archive, archive.open(member) as raw:
            yield raw
    elif path.suffix == ".gz":
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as unpacked:
            yield cast("IO[bytes]", unpacked)
    else:
        with path.open("rb") as raw:
            yield raw


def find_table(folders: Iterable[Path], *names: str) -> Table | None:
    """The first of `names` (as `X.csv`, or gzipped as `X.csv.gz`) in the first folder that holds one."""
    for folder in folders:
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return Table(path)
    return None


def column_names(header: Sequence[str]) -> str:
    """The names of a table's columns for a message.

    Where the header is lost, a row of a patient's texts stands in its place: then only their number is told.
    """
    if not header:
        return "none"
    if not all(map(reads_as_name, header)):
        return f"{len(header)} that do not read as names"
    return ", ".join(header)


def reads_as_name(value: str) -> bool:
    """Whether a value may be the name of a column or a class; a sentence or a long text is a patient's."""
    return len(value) <= LONGEST_NAME and ";" not in value and not value.endswith((".", "?", "!"))


def identifier(text: str, table: Table, line: int, column: str) -> int:
    """A numeric id of at most nine digits.

    Raises:
        DataError: anything else, such as `10000032.0`: a table saved by a spreadsheet may have lost digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= 9):
        raise DataError(f"{table.shown}:{line}: {column} is {quoted(text)}, not an integer of up to 9 digits")
    return int(text)


def label_value(text: str, table: Table, line: int, column: str) -> float | None:
    """A label of the CheXpert family: 1 positive, 0 negative, -1 uncertain, None blank.

    Raises:
        DataError: any other value.
    """
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")  # refused below, like any other number
    if value not in (-1.0, 0.0, 1.0):
        raise DataError(f"{table.shown}:{line}: {column} is {quoted(text)}, not 1, 0, -1 or blank")
    return value
