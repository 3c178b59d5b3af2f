"""A small Parquet file that unpacks to gigabytes is one line; shared texts are held once."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from medunifier_plugins.raw.parquet import ParquetRows

from medunifier_cli.data.contract import DataError

pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs pyarrow")


def test_a_text_that_all_rows_share_takes_no_more_than_its_bound(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "bomb.parquet"
    text = pyarrow.array(["x" * 2**20]).dictionary_encode()
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4096), text.dictionary)
    parquet.write_table(pyarrow.table({"image": ["a.png"] * 4096, "text": column}), path)
    assert path.stat().st_size < 2**21
    tracemalloc.start()
    with pytest.raises(DataError, match=r"bomb\.parquet, row 512: .*512 MiB"):
        list(ParquetRows.open(path).read(["image", "text"]))
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_values_of_dictionaries_are_those_of_plain_columns(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "plain.parquet"
    texts = ["a", None, " b ", "a", "c"] * 500
    parquet.write_table(pyarrow.table({"text": texts, "number": list(range(2500))}), path)
    found = [values for _, values in ParquetRows.open(path).read(["text", "number"])]
    assert found == [((text or "").strip(), str(number)) for number, text in enumerate(texts)]
