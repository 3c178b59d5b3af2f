"""Rows and images of a Parquet file, as the Hugging Face hub stores data sets: images as bytes or paths."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medunifier_cli.data.contract import DataError

__all__ = ["ParquetRows", "as_text", "read_image"]

MEMORY = 1 << 29
"""Bytes that the texts of a table may take, as those of a CSV may; or one of its packed columns, unpacked."""
ROWS = 1024
"""Rows that are decoded at a time."""
CELL = 60
"""Bytes of a value beside its characters."""


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file; of a column of images its paths are the values."""

    path: Path
    columns: Sequence[str]
    images: frozenset[str]
    """Columns whose values are the bytes of an image, alone or in a struct with its path."""
    names: Mapping[str, Sequence[str]]
    """Class names of the columns that the hub stores as numbers."""

    @property
    def shown(self) -> str:
        return str(self.path)

    @classmethod
    def open(cls, path: Path) -> ParquetRows:
        """Read the schema.

        Raises:
            DataError: pyarrow is not installed, or the file is damaged.
        """
        arrow = _arrow()
        with _explained(path):
            schema = arrow.ParquetFile(path).schema_arrow
        return cls(path, schema.names, frozenset(filter(None, map(_image_column, schema))), _names(schema))

    def read(self, columns: Sequence[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
        """See `Rows.read`. No image is read: the value of an image column is its path, or empty."""
        arrow = _arrow()
        wanted = [f"{name}.path" if name in self.images else name for name in columns]
        number, left = 0, MEMORY
        with _explained(self.path):
            # as they are in the file: a text that a million rows share is held once
            texts = [name for name in columns if name not in self.images]
            file = arrow.ParquetFile(self.path, read_dictionary=texts)
            self._check_size(file.metadata, wanted)
            for batch in file.iter_batches(columns=wanted, batch_size=ROWS):
                found = {name: _values(batch.column(name)) for name in batch.schema.names}
                for row in range(batch.num_rows):
                    number += 1
                    place = f"row {number}"
                    values = [self._value(name, found.get(name), row, place) for name in columns]
                    left -= sum(CELL + len(value) * (1 if value.isascii() else 4) for value in values)
                    if left < 0:
                        raise self._too_much(place)
                    yield place, tuple(values)

    def _check_size(self, metadata: Any, wanted: Sequence[str]) -> None:
        """Raises DataError if one of the columns `wanted` says that it unpacks to more than `MEMORY`."""
        for group in range(metadata.num_row_groups):
            for place in range(metadata.num_columns):
                column = metadata.row_group(group).column(place)
                if column.path_in_schema in wanted and column.total_uncompressed_size > MEMORY:
                    raise self._too_much(f"column {column.path_in_schema}")

    def _too_much(self, place: str) -> DataError:
        return DataError(
            f"{self.path}, {place}: up to here, more text than is read at once ({MEMORY >> 20} MiB); "
            "split the file"
        )

    def count(self) -> int:
        """Number of rows."""
        with _explained(self.path):
            return int(_arrow().ParquetFile(self.path).metadata.num_rows)

    def lists(self, column: str) -> Iterator[list[str]]:
        """The values of a column of lists of texts, such as `cui`."""
        with _explained(self.path):
            for batch in _arrow().ParquetFile(self.path).iter_batches(columns=[column], batch_size=ROWS):
                for value in batch.column(0).to_pylist():
                    yield value if isinstance(value, list) else [value] if value else []

    def _value(self, name: str, found: Sequence[Any] | None, row: int, place: str) -> str:
        value = found[row] if found is not None else None
        if name in self.images:
            return str(value.get("path") or "") if isinstance(value, dict) else ""
        if name in self.names and isinstance(value, int):
            names = self.names[name]
            # the hub writes -1 where the class is not known
            return names[value] if 0 <= value < len(names) else ""
        return as_text(value, f"{self.path}, {place}: {name}").strip()


def _values(array: Any) -> list[Any]:
    """The values of an Arrow array as Python objects; one object for a value that a dictionary holds once."""
    if not hasattr(array, "dictionary"):
        return list(array.to_pylist())
    values = array.dictionary.to_pylist()
    return [None if index is None else values[index] for index in array.indices.to_pylist()]


def as_text(value: Any, where: str) -> str:
    """A value of JSON or Parquet as a CSV would hold it; blank for null and NaN.

    Raises:
        DataError: a list or an object.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, str | int | float):
        return str(value)
    raise DataError(f"{where} holds a {type(value).__name__}, not one value")


def read_image(path: Path, column: str, row: int) -> bytes:
    """The bytes of one image; neighbours are read together, as records come in order."""
    group, first = _group_of(path, row)
    value = _images(path, column, group)[row - first]
    content = value.get("bytes") if isinstance(value, dict) else value
    return content if isinstance(content, bytes) else b""


@functools.lru_cache(maxsize=64)
def _bounds(path: Path) -> list[int]:
    metadata = _arrow().ParquetFile(path).metadata
    bounds = [0]
    for group in range(metadata.num_row_groups):
        bounds.append(bounds[-1] + metadata.row_group(group).num_rows)
    return bounds


def _group_of(path: Path, row: int) -> tuple[int, int]:
    """(row group, its first row) of a row."""
    bounds = _bounds(path)
    group = next(i for i in range(len(bounds) - 1) if row < bounds[i + 1])
    return group, bounds[group]


@functools.lru_cache(maxsize=1)
def _images(path: Path, column: str, group: int) -> list[Any]:
    values: list[Any] = (
        _arrow().ParquetFile(path).read_row_group(group, columns=[column]).column(0).to_pylist()
    )
    return values


def _image_column(field: Any) -> str:
    """The name of a column that holds the bytes of images; empty for another."""
    import pyarrow

    kind = field.type
    if pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind):
        return str(field.name)
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return str(field.name)
    return ""


def _names(schema: Any) -> dict[str, list[str]]:
    """Column -> class names, which the hub's own library writes into the schema."""
    try:
        features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        return {
            name: [str(one) for one in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _arrow() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise DataError("Parquet needs pyarrow; `pip install 'medunifier[parquet]'`") from None
    return pyarrow.parquet


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors into one line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({type(error).__name__})") from error
