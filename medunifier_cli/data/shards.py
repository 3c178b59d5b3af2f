"""Random access to WebDataset shards: `<split>-<nnnnnn>.tar` with `<key>.png|jpg` and `<key>.json`.

`mu prepare` writes an index next to the shards. It is memory-mapped, so that opening a split takes no memory
and no scan. Shards from elsewhere, without a manifest, are scanned when they are opened; they may have
captions instead of report sections, in `<key>.txt` or under `caption` in the JSON.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.disk.index import fill_index, index_dtype, map_index
from medunifier_cli.data.disk.manifest import MANIFEST, Manifest, again, read_manifest
from medunifier_cli.data.shard_scan import Meta, no_folder, no_split, scan_shard, shards_by_split
from medunifier_cli.errors import DataError, NoSplitError
from medunifier_cli.files import sha256
from medunifier_cli.parsing import checked, parse_json

CAPTION = "caption"
"""Section that a caption becomes, as `data.sections` names it; also its name in the JSON of img2dataset."""
LABELS = 1000
"""Maximum number of labels of a split without an index; every row has room for all of them."""
AGAIN = "run `mu prepare` again"
OPEN_SHARDS = 256
"""Maximum number of open shards per process; a shell often allows 1,024 descriptors."""


def split_names(folder: Path) -> list[str]:
    """The splits that have shards in `folder`, sorted."""
    return sorted(shards_by_split(folder))


class Shards:
    """One split of one folder of shards. Picklable, and safe to share between threads and forked processes.

    Attributes:
        folder, split: what was opened.
        names: file names of the shards, in order.
        index: structured array, see `index_dtype`; memory-mapped if there is a manifest.
        label_names: names of the columns of `index["labels"]`.
        classes: class names the split was prepared with; empty if there is no manifest.
        fingerprint: hex hash of the split's contents (without a manifest, of index, file names and sizes).
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
        self.folder, self.split = folder, split
        self.names, self.label_names, self.classes = tuple(names), tuple(label_names), tuple(classes)
        self.index = index
        self.fingerprint = fingerprint
        self._files: OrderedDict[int, int] = OrderedDict()

    @classmethod
    def open(cls, folder: Path, split: str) -> Shards:
        """Open a split.

        Raises:
            NoSplitError: no such split.
            DataError: no such folder, or index and shards do not match the manifest.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(no_folder(folder))
        manifest = read_manifest(folder)
        splits = sorted(manifest.get("splits", {})) if manifest else split_names(folder)
        if split not in splits:
            raise NoSplitError(no_split(folder, split, splits))
        return _open_prepared(folder, split, manifest) if manifest else _open_foreign(folder, split)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, i: int) -> tuple[bytes, dict[str, Any]]:
        """Image file and metadata of sample i.

        Raises:
            DataError: the shard is truncated or missing.
        """
        return self.image(i), self.meta(i)

    def image(self, i: int) -> bytes:
        """The image file of sample i, PNG or JPEG, not decoded."""
        row = self.index[i]
        return self._pread(int(row["shard"]), int(row["image_offset"]), int(row["image_size"]))

    def images(self, rows: NDArray[np.int64]) -> list[bytes]:
        """The image files of several samples."""
        # Whole columns at once: picking fields out of one structured row after the other is slow in numpy.
        entries = self.index[rows]
        columns = (entries[name].tolist() for name in ("shard", "image_offset", "image_size"))
        return [self._pread(*location) for location in zip(*columns, strict=True)]

    def keys(self, rows: NDArray[np.int64]) -> list[str]:
        """Keys of several samples."""
        return [key.decode(errors="replace") for key in self.index["key"][rows].tolist()]

    def meta(self, i: int) -> dict[str, Any]:
        """The parsed `<key>.json` of sample i; a caption stands in for absent sections, as `caption`.

        Raises:
            DataError: the shard is truncated or missing, its JSON damaged, its caption not UTF-8.
        """
        body = self._part(self.index[i], "json")
        where = f"{self.where(i)}: its .json"
        meta: dict[str, Any] = parse_json(body, dict[str, Any], where, DataError, AGAIN) if body else {}
        checked(meta, Meta, where, DataError, AGAIN)  # whose other keys are kept as they are
        if "sections" not in meta and (caption := self._caption(i, meta)):
            meta["sections"] = {CAPTION: caption}
        return meta

    def _part(self, row: Any, part: str) -> bytes:
        """The contents of a sample's `json` or `text`; empty if it has none."""
        if f"{part}_size" not in (row.dtype.names or ()) or not row[f"{part}_size"]:
            return b""
        return self._pread(int(row["shard"]), int(row[f"{part}_offset"]), int(row[f"{part}_size"]))

    def _caption(self, i: int, meta: Mapping[str, Any]) -> str:
        try:
            text = self._part(self.index[i], "text").decode("utf-8-sig")  # Windows begins UTF-8 with a mark
        except UnicodeDecodeError as error:
            raise DataError(f"{self.where(i)}: its .txt is not UTF-8; convert it") from error
        return text or meta.get(CAPTION) or ""

    def key(self, i: int) -> str:
        """Key of sample i."""
        return bytes(self.index[i]["key"]).decode(errors="replace")

    def label_dict(self, row: NDArray[Any]) -> dict[str, float | None]:
        """A row of `index["labels"]` by name, None where blank; single precision."""
        return {
            name: None if value != value else float(value)  # only NaN differs from itself
            for name, value in zip(self.label_names, row.tolist(), strict=True)
        }

    def class_indices(self, plugin: DatasetPlugin) -> NDArray[np.int64]:
        """`plugin.class_of` of every sample, under the classes the split was prepared with; int64 [n].

        -1 where a sample has no class.
        """
        plugin = plugin.with_classes(self.classes)
        columns = self.index["labels"].copy()  # contiguous, as the view below needs it
        if not columns.size:
            return np.full(len(columns), -1, np.int64)
        # `class_of` is Python code of a plugin, so it is called once per distinct row of labels; there are
        # far fewer of these than samples. Rows are compared as bytes: as a number, NaN (blank) is unequal
        # to itself.
        rows_as_bytes = columns.view(np.dtype((np.void, columns[:1].nbytes)))[:, 0]
        _, first, inverse = np.unique(rows_as_bytes, return_index=True, return_inverse=True)
        classes = [plugin.class_of(self.label_dict(columns[row])) for row in first]
        return np.array([-1 if c is None else c for c in classes], np.int64)[inverse]

    def where(self, i: int) -> str:
        """`<folder>/train-000003.tar: <key>`, for messages."""
        return f"{self.folder / self.names[int(self.index[i]['shard'])]}: {self.key(i)}"

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        path = self.folder / self.names[shard]
        try:
            # Not seek and read: forked workers share the file position of a descriptor opened before the
            # fork, and would move it under each other.
            data = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        # Reading past the end is no error to the kernel: it returns fewer bytes.
        if len(data) != size:
            raise DataError(f"{path}: ends before byte {offset + size:,}; {AGAIN}")
        return data

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            # First opened, first closed. The order of samples is random, so a smarter rule would not find
            # more files open.
            while len(self._files) >= OPEN_SHARDS:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = os.open(self.folder / self.names[shard], os.O_RDONLY)
        return self._files[shard]

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # missing if __init__ itself failed
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors are numbers of this process; elsewhere they would name other files.
        state = self.__dict__ | {"_files": OrderedDict()}
        # A memory map pickles as a copy of its contents; its path lets the receiver map the same pages.
        if isinstance(self.index, np.memmap):
            state["index"] = Path(str(self.index.filename))
        return state

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        if isinstance(self.index, Path):
            self.index = np.load(self.index, mmap_mode="r", allow_pickle=False)


def _open_prepared(folder: Path, split: str, manifest: Manifest) -> Shards:
    advice = again(manifest)
    shards, entry = manifest["splits"][split]["shards"], manifest.get("index", {}).get(split)
    if entry is None:
        raise DataError(f"{folder / MANIFEST}: names no index of split {split!r}; {advice}")
    path = folder / entry["file"]
    try:
        # The index is hashed (megabytes), the shards are not (up to hundreds of gigabytes): their sizes show
        # a truncated copy. `mu check --hashes` compares their hashes.
        if sha256(path) != entry["sha256"]:
            raise DataError(f"{path}: does not match {MANIFEST}; {advice}")
        for shard in shards:
            _check_size(folder / shard["name"], shard["bytes"], advice)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; {advice}") from error
    index = map_index(path, len(entry["labels"]), [shard["bytes"] for shard in shards], advice)
    contents = hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest()
    names = [shard["name"] for shard in shards]
    return Shards(folder, split, names, index, entry["labels"], contents, manifest.get("classes", ()))


def _check_size(path: Path, expected: int, advice: str) -> None:
    size = path.stat().st_size
    if size != expected:
        raise DataError(
            f"{path}: {size:,} bytes, {expected:,} expected: the shard is truncated or changed; {advice}"
        )


def _open_foreign(folder: Path, split: str) -> Shards:
    names = shards_by_split(folder)[split]
    rows = [scan_shard(folder / name) for name in names]
    labels = sorted({name for shard in rows for row in shard for name in row.labels})
    if len(labels) > LABELS:
        raise DataError(f"{folder}: {len(labels):,} labels in split {split!r}; {LABELS:,} are the most")
    key_bytes = max((len(row.key.encode()) for shard in rows for row in shard), default=0)
    captions = any(row.text[1] for shard in rows for row in shard)
    index = np.zeros(sum(map(len, rows)), index_dtype(key_bytes, len(labels), captions))
    start = 0
    for number, shard in enumerate(rows):
        fill_index(index[start : start + len(shard)], shard, number, labels)
        start += len(shard)
    # Sizes and index instead of contents: hashing foreign shards at every start would mean reading them all.
    sizes = "".join(f"{name} {(folder / name).stat().st_size}\n" for name in names)
    fingerprint = hashlib.sha256(sizes.encode(errors="surrogateescape") + index.tobytes()).hexdigest()
    return Shards(folder, split, names, index, labels, fingerprint)
