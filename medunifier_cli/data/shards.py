"""Reading WebDataset shards by offset: `<split>-<nnnnnn>.tar` with `<key>.png|jpg` and `<key>.json`.

`mu prepare` leaves an index beside the shards, which is memory-mapped: opening a split costs no memory and
no scan. Shards from elsewhere, without a manifest, are scanned once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.shard_scan import Row, digest64, scan_shard
from medunifier_cli.errors import DataError

MANIFEST = "manifest.json"
SHARD_NAME = re.compile(r"(?P<split>.+)-(?P<number>\d+)\.tar")
OPEN_SHARDS = 256
"""File descriptors kept per process."""


def index_dtype(key_bytes: int, labels: int) -> np.dtype[Any]:
    """One row per sample: where its two members lie, and what a loader asks for without opening the JSON.

    `subject` is a 64-bit hash; `labels` holds NaN where the label is blank. Offsets and sizes are in bytes
    and point at the contents, past the tar header.
    """
    return np.dtype(
        [
            ("key", f"S{max(key_bytes, 1)}"),
            ("subject", "<u8"),
            ("shard", "<u4"),
            ("image_offset", "<u8"),
            ("image_size", "<u4"),
            ("json_offset", "<u8"),
            ("json_size", "<u4"),
            ("labels", "<f4", (labels,)),
        ]
    )


def fill_index(out: NDArray[Any], rows: Sequence[Row], shard: int, names: Sequence[str]) -> None:
    """Write the rows of one shard into `out`, a stretch of an index with `labels` named `names`."""
    for slot, row in zip(out, rows, strict=True):
        slot["key"] = row.key.encode()
        slot["subject"] = digest64(row.subject)
        slot["shard"] = shard
        slot["image_offset"], slot["image_size"] = row.image
        slot["json_offset"], slot["json_size"] = row.json
        slot["labels"] = [np.nan if (value := row.labels.get(name)) is None else value for name in names]


def split_names(folder: Path) -> list[str]:
    """The splits that have shards in `folder`, sorted."""
    found = (SHARD_NAME.fullmatch(path.name) for path in folder.glob("*.tar"))
    return sorted({match["split"] for match in found if match})


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest beside the shards, None where there is none.

    Raises:
        DataError: it is there and cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(manifest, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable manifest; run `mu prepare` again") from error
    return manifest


class Shards:
    """One split of one folder of shards. Reads with `pread`, so forks and threads may share it; it pickles.

    Attributes:
        folder, split: what was opened.
        names: shard file names in order.
        index: structured array, see `index_dtype`; memory-mapped when there is a manifest.
        label_names: names of the columns of `index["labels"]`.
        classes: class names the split was prepared with; empty where there is no manifest.
        fingerprint: hex hash of the split's contents (of names and sizes where there is no manifest).
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        names: Sequence[str],
        index: NDArray[Any],
        label_names: Sequence[str],
        fingerprint: str,
        classes: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.split = split
        self.names = tuple(names)
        self.index = index
        self.label_names = tuple(label_names)
        self.fingerprint = fingerprint
        self.classes = tuple(classes)
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, split: str) -> Shards:
        """Open a split.

        Raises:
            DataError: no such folder or split, an index that does not fit, a shard of another size.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of shards; run `mu prepare` first")
        manifest = read_manifest(folder)
        there = sorted(manifest.get("splits", {})) if manifest else split_names(folder)
        if split not in there:
            known = f"the splits there are {', '.join(there)}" if there else "there are no shards"
            raise DataError(f"{folder}: no split {split!r}; {known}")
        return _open_prepared(folder, split, manifest) if manifest else _open_foreign(folder, split)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> tuple[bytes, dict[str, Any]]:
        """Image file and metadata of sample i.

        Raises:
            DataError: the shard is cut or gone.
        """
        return self.image(i), self.meta(i)

    def image(self, i: int) -> bytes:
        """The image file of sample i (PNG or JPEG), as it lies in the shard."""
        row = self.index[i]
        return self._pread(int(row["shard"]), int(row["image_offset"]), int(row["image_size"]))

    def images(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The image files of several samples; looks the index up once."""
        found = self.index[rows]
        columns = (found[name].tolist() for name in ("shard", "image_offset", "image_size"))
        return [self._pread(*where) for where in zip(*columns, strict=True)]

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """Keys of several samples."""
        return [key.decode() for key in self.index["key"][rows].tolist()]

    def meta(self, i: int) -> dict[str, Any]:
        """The parsed `<key>.json` of sample i."""
        row = self.index[i]
        text = self._pread(int(row["shard"]), int(row["json_offset"]), int(row["json_size"]))
        try:
            meta = json.loads(text)
        except ValueError as error:
            raise DataError(f"{self.where(i)}: damaged metadata; run `mu prepare` again") from error
        return dict(meta)

    def key(self, i: int) -> str:
        """Key of sample i."""
        return bytes(self.index[i]["key"]).decode()

    def labels(self, i: int) -> dict[str, float | None]:
        """Labels of sample i from the index, None where blank; single precision."""
        return self.label_dict(self.index[i]["labels"])

    def label_dict(self, row: NDArray[Any]) -> dict[str, float | None]:
        """A row of `index["labels"]` as a dictionary."""
        return {
            name: None if value != value else float(value)
            for name, value in zip(self.label_names, row.tolist(), strict=True)
        }

    def class_indices(self, plugin: DatasetPlugin) -> NDArray[np.int64]:
        """`plugin.class_of` of every sample, -1 where there is none, int64 [n].

        Under the classes the split was prepared with; the plugin is asked once per distinct row of labels.
        """
        plugin = plugin.with_classes(self.classes)
        columns = self.index["labels"].copy()
        if not columns.size:
            return np.full(len(columns), -1, np.int64)
        whole_rows = columns.view(np.dtype((np.void, columns[:1].nbytes)))[:, 0]  # NaN equals NaN as bytes
        _, first, which = np.unique(whole_rows, return_index=True, return_inverse=True)
        classes = [plugin.class_of(self.label_dict(columns[row])) for row in first]
        return np.array([-1 if c is None else c for c in classes], np.int64)[which]

    def where(self, i: int) -> str:
        """`folder/train-000003.tar: key`, for messages."""
        return f"{self.folder / self.names[int(self.index[i]['shard'])]}: {self.key(i)}"

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        path = self.folder / self.names[shard]
        try:
            data = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise DataError(f"{path}: ends before byte {offset + size:,}; run `mu prepare` again")
        return data

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            while len(self._files) >= OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.folder / self.names[shard], os.O_RDONLY)
        return self._files[shard]

    def close(self) -> None:
        """Close the files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__ | {"_files": OrderedDict()}
        if isinstance(self.index, np.memmap):  # a map would travel as a copy of its contents
            state["index"] = Path(str(self.index.filename))
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.index, Path):
            self.index = np.load(self.index, mmap_mode="r", allow_pickle=False)


def _open_prepared(folder: Path, split: str, manifest: Mapping[str, Any]) -> Shards:
    again = f"run `mu prepare {manifest.get('dataset', '')}` again"
    try:
        shards = manifest["splits"][split]["shards"]
        entry = manifest["index"][split]
        path = folder / entry["file"]
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != entry["sha256"]:
            raise DataError(f"{path}: is not the index that {MANIFEST} describes; {again}")
        index = np.load(path, mmap_mode="r", allow_pickle=False)
        for shard in shards:
            _check_size(folder / shard["name"], shard["bytes"], again)
        contents = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
        names = [shard["name"] for shard in shards]
        return Shards(folder, split, names, index, entry["labels"], contents, manifest["classes"])
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; {again}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / MANIFEST}: incomplete or of another version; {again}") from error


def _check_size(path: Path, expected: int, again: str) -> None:
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"{path}: {size:,} bytes, {expected:,} expected: the shard is cut or changed; {again}"
        )


def _open_foreign(folder: Path, split: str) -> Shards:
    names = sorted(
        (path.name for path in folder.glob("*.tar") if _split_of(path.name) == split),
        key=lambda name: (int(SHARD_NAME.fullmatch(name)["number"]), name),  # type: ignore[index]
    )
    rows = [scan_shard(folder / name) for name in names]
    labels = sorted({name for shard in rows for row in shard for name in row.labels})
    key_bytes = max((len(row.key.encode()) for shard in rows for row in shard), default=0)
    index = np.zeros(sum(map(len, rows)), index_dtype(key_bytes, len(labels)))
    start = 0
    for number, shard in enumerate(rows):
        fill_index(index[start : start + len(shard)], shard, number, labels)
        start += len(shard)
    sizes = "".join(f"{name} {(folder / name).stat().st_size}\n" for name in names)
    fingerprint = hashlib.sha256(sizes.encode() + index.tobytes()).hexdigest()
    return Shards(folder, split, names, index, labels, fingerprint)


def _split_of(name: str) -> str:
    match = SHARD_NAME.fullmatch(name)
    return match["split"] if match else ""
