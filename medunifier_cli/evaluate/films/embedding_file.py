"""Write joint embeddings of files or a split, for other programs: Parquet or NumPy's npz, in bounded memory.

n samples, Q queries, E joint space.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.films.origin import Origin
from medunifier_cli.evaluate.retrieval.embed import embed_many_images, embed_split, need_itc
from medunifier_cli.evaluate.user_images import UserImages, of_files
from medunifier_cli.files import atomic_write

ROWS = 1024
"""Samples that are written at a time: 32 MiB at the paper's sizes."""
BATCH = 64
SUFFIXES = (".parquet", ".npz")


@dataclass(frozen=True)
class Block:
    """Embeddings of some samples."""

    ids: Sequence[str]
    """Keys of a split, paths of files."""
    image_nQE: NDArray[np.float32]
    text_nE: NDArray[np.float32] | None = None
    """NaN for samples without text; None for files."""


def of_split(trained: PretrainedRun, benchmark: Benchmark) -> Iterator[Block]:
    """Embeddings of a split with those of its texts, as `mu retrieve` computes and caches them.

    Raises:
        CheckpointError: the run was trained without ITC.
    """
    found = embed_split(trained, benchmark.source, benchmark.plugin.name, benchmark.split, benchmark.shards)
    for start in range(0, len(found.keys), ROWS):
        some = slice(start, start + ROWS)
        text_nE = np.where(found.has_text_n[some, None], found.text_nE[some], np.float32(np.nan))
        yield Block(found.keys[some], np.asarray(found.image_nQE[some]), text_nE)


def of_image_files(trained: PretrainedRun, paths: Sequence[Path]) -> Iterator[Block]:
    """Embeddings of image files; unreadable ones are reported on stderr, counted and left out.

    Raises:
        CheckpointError: the run was trained without ITC.
        DataError: no file can be read.
    """
    need_itc(trained)
    size = trained.recipe.data.image_size
    for files, image_nQE in of_files(partial(_embedded, trained), paths, size, trained.batch_size or BATCH):
        if files.paths:
            yield Block([str(path) for path in files.paths], image_nQE)


def _embedded(trained: PretrainedRun, files: UserImages) -> NDArray[np.float32]:
    if not files.paths:
        return np.empty(0, np.float32)
    return embed_many_images(trained, files.image_B1HW)


def check_out(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed.

    Raises:
        MuError: another ending than .parquet or .npz, no such folder, or Parquet without pyarrow.
    """
    if path.suffix not in SUFFIXES:
        raise MuError(f"{path}: embeddings are written as {' or '.join(SUFFIXES)}; name such a file")
    if not path.parent.is_dir():
        raise MuError(f"{path.parent}: no such folder; make it first")
    if path.suffix == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise MuError(
                "Parquet needs pyarrow; `pip install 'medunifier[parquet]'`, or write .npz"
            ) from None


def write_embeddings(blocks: Iterator[Block], origin: Origin, path: Path) -> int:
    """Write blocks to a file, which is whole or not there; returns the number of samples.

    Parquet has the columns `id`, `image` (Q E numbers, query after query) and for a split `text`, and in its
    metadata `medunifier`: JSON of the origin and of `queries` and `width`. An npz has the arrays `id`,
    `image` [n, Q, E], for a split `text` [n, E], NaN without text, and `origin`, the same JSON.

    Raises:
        DataError: no sample; or the disk is full or cannot be written to.
    """
    with atomic_write(path) as file:
        if path.suffix == ".parquet":
            return _write_parquet(blocks, origin, file)
        return _write_npz(blocks, origin, file, path.parent)


def _facts(origin: Origin, block: Block) -> str:
    _, queries, width = block.image_nQE.shape
    return json.dumps({**origin.as_json(), "queries": queries, "width": width})


def _write_parquet(blocks: Iterator[Block], origin: Origin, file: IO[bytes]) -> int:
    import pyarrow
    import pyarrow.parquet

    writer: Any = None
    count = 0
    for block in blocks:
        columns: dict[str, Any] = {
            "id": pyarrow.array(block.ids, pyarrow.string()),
            "image": _lists(pyarrow, block.image_nQE.reshape(len(block.ids), -1)),
        }
        if block.text_nE is not None:
            columns["text"] = _lists(pyarrow, block.text_nE)
        table = pyarrow.table(columns)
        if writer is None:
            schema = table.schema.with_metadata({"medunifier": _facts(origin, block)})
            writer = pyarrow.parquet.ParquetWriter(file, schema)
        writer.write_table(table.cast(schema))
        count += len(block.ids)
    if writer is None:
        raise DataError("no sample to embed")
    writer.close()
    return count


def _lists(pyarrow: Any, rows_nK: NDArray[np.float32]) -> Any:
    flat = pyarrow.array(np.ascontiguousarray(rows_nK).ravel())
    return pyarrow.FixedSizeListArray.from_arrays(flat, rows_nK.shape[1])


def _write_npz(blocks: Iterator[Block], origin: Origin, file: IO[bytes], folder: Path) -> int:
    """The arrays go through temporary files in a folder, as the number of rows comes before them in a npz."""
    ids: list[str] = []
    facts, shapes = "", dict[str, tuple[int, ...]]()
    # not in /tmp, which may be small or in memory
    with tempfile.TemporaryFile(dir=folder) as image, tempfile.TemporaryFile(dir=folder) as text:
        spilled: Mapping[str, IO[bytes]] = {"image": image, "text": text}
        for block in blocks:
            facts = facts or _facts(origin, block)
            ids += block.ids
            for name, rows in (("image", block.image_nQE), ("text", block.text_nE)):
                if rows is not None:
                    shapes[name] = rows.shape[1:]
                    spilled[name].write(np.ascontiguousarray(rows, "<f4").tobytes())
        if not ids:
            raise DataError("no sample to embed")
        with zipfile.ZipFile(file, "w") as archive:
            for name, shape in shapes.items():
                spilled[name].seek(0)
                with archive.open(f"{name}.npy", "w", force_zip64=True) as out:
                    head = {"descr": "<f4", "fortran_order": False, "shape": (len(ids), *shape)}
                    np.lib.format.write_array_header_1_0(out, head)  # type: ignore[arg-type]
                    shutil.copyfileobj(spilled[name], out)
            for name, array in (("id", np.array(ids)), ("origin", np.array(facts))):
                with archive.open(f"{name}.npy", "w") as out:
                    np.lib.format.write_array(out, array)  # type: ignore[arg-type]
    return len(ids)
