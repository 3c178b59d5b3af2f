"""The interface of a data set plugin, and the only module of this package that such a plugin imports.

A plugin reads the tables and texts of a raw download, never its pixels, and yields one `Record` or `Drop`
per image, lazily. The core decodes, resizes, writes, counts and hashes. The classes that reach the model
(`Sample`, `PackedText`, `Batch`) are defined in `data.batch` and can be imported from here as well, and so
can the readers of text files: UTF-8 in every locale, with or without a byte order mark. `read_json` takes the
type that a file must have, `unpack` bounds what is unpacked of gzip and zip, and `tar` guards `tarfile`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.batch import Batch, PackedText, Sample
from medunifier_cli.data.disk import tar, unpack
from medunifier_cli.errors import DataError, NotTextError, quoted
from medunifier_cli.files import decode_lines, decode_text, read_text, text_lines
from medunifier_cli.parsing import parse_json, read_bytes, read_json, read_yaml

__all__ = [
    "Batch", "DataError", "DatasetPlugin", "DicomTone", "DrawnImage", "Drop", "EncodedImage", "FileImage",
    "ImageSource", "NotTextError", "Option", "PackedText", "Plan", "Record", "Sample", "Subset", "ZipImage",
    "decode_lines", "decode_text", "parse_json", "quoted", "read_bytes", "read_json", "read_text",
    "read_yaml", "tar", "text_lines", "unpack",
]  # fmt: skip


DicomTone = Literal["window", "range", "equalise"]
"""How stored DICOM values become grey levels; MONOCHROME1 is always inverted, other formats ignore this.

`window`: rescale and VOI LUT, as a viewer shows the image. `range`: linear from minimum to maximum.
`equalise`: `range`, then global histogram equalisation, as MIMIC-CXR-JPG was made.
"""


@dataclass(frozen=True)
class FileImage:
    """An image file on disk. PNG, JPEG and DICOM are told apart by content, not by file name."""

    path: Path
    dicom_tone: DicomTone = "window"


@dataclass(frozen=True)
class ZipImage:
    """An image inside a zip archive, read without unpacking the archive."""

    archive: Path
    member: str
    dicom_tone: DicomTone = "window"


@dataclass(frozen=True)
class DrawnImage:
    """A synthetic image, made by a function. `draw` must pickle (workers call it) and be deterministic.

    It takes the edge length of `mu prepare --size`, in pixels, and returns uint8 [size, size], 0 is black.
    """

    draw: Callable[[int], NDArray[np.uint8]]


@dataclass(frozen=True)
class EncodedImage:
    """An image file inside something else, such as a row of a Parquet file, whose bytes a function reads.

    `read` must pickle (workers call it): a function of a module, or `functools.partial` of one.
    """

    read: Callable[[], bytes]
    dicom_tone: DicomTone = "window"
    container: Path | None = None
    """The file around it: where its size changes, `mu prepare` makes its images again."""


ImageSource = FileImage | ZipImage | EncodedImage | DrawnImage


@dataclass(frozen=True)
class Record:
    """One image and everything known about it, before anything is decoded or cleaned."""

    key: str
    """Unique in the data set: 1 to 90 letters, digits, `_` and `-` (a dot would end a WebDataset key)."""
    image: ImageSource
    split: str
    """`train`, `valid`, `test`, or a held-out set such as `5x200`: one of `DatasetPlugin.splits`."""
    subject: str
    """Patient identifier. A subject in two splits is an error, see `DatasetPlugin.allow_shared_subjects`."""
    study: str
    source: str
    """Path of the image relative to the raw folder, with `/`; for a synthetic image any unique name."""
    view: str | None = None
    """View position as the data set spells it (PA, AP, ...); None where unknown."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Raw text by section name: `findings`, `impression`, `clinical_notes`, ..."""
    labels: Mapping[str, float | None] = field(default_factory=dict)
    """All labels: 1 positive, 0 negative, -1 uncertain, None blank (never 0). The classes are among them, by
    the same names; others are kept, and are no classes."""
    text_kind: str = "report"
    """`report` for a radiology report, or another name for other text, such as `clinical_notes`."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further metadata that fits JSON (ground truth of a phantom, bounding boxes, licence)."""
    origin: str = ""
    """Of an image that a model has sampled: what made it. It is refused in any split but `train`."""


@dataclass(frozen=True)
class Drop:
    """A row that the plugin leaves out, and why. Counted by reason and listed in `rejects.jsonl`.

    Reasons are short and repeat: `missing`, `filtered: lateral view`, `held out: 5x200 subject`.
    Never put report text into either field.
    """

    reason: str
    source: str


@dataclass(frozen=True)
class Subset:
    """A sampled or published list of sample keys, written to the manifest with its rule and seed."""

    keys: Sequence[str]
    rule: str
    """How the keys were selected, in one sentence."""
    seed: int | None = None


@dataclass(frozen=True)
class Plan:
    """The contents of a raw folder, in an order that depends only on the raw data and the options."""

    records: Iterator[Record | Drop]
    total: int | None = None
    """Number of items that `records` will yield, if known beforehand (for the progress bar)."""
    split_source: str = ""
    """Origin of the splits: `official`, `hash of the subject, seed 0`, ..."""
    seed: int | None = None
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    """Image counts of the full download, by split or under `all`; a deviation over 2 % triggers a warning."""
    notes: Sequence[str] = ()
    """Lines about how the raw data are read, shown before anything is written."""
    warnings: Sequence[str] = ()
    splits: tuple[str, ...] = ()
    """Names of the splits under these options, if they differ from the plugin's own."""
    classes: tuple[str, ...] = ()
    """Class names under these options, if they differ from the plugin's own."""
    text_sections: tuple[str, ...] = ()
    """Sections that make up the text under these options, if they differ from the plugin's own."""
    prompts: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    """Prompt sets given by an option, see `DatasetPlugin.prompt_sets`; they come first."""
    allow_shared_subjects: bool = False
    """True if these options allow patients in more than one split, even though the plugin does not."""


@dataclass(frozen=True)
class Option:
    """One `-o name=value` of `mu prepare`. The value has the type of `default`."""

    default: str | int | float | bool
    help: str
    choices: tuple[str, ...] = ()


class DatasetPlugin(ABC):
    """Base class of data sets: one file and one entry point in `medunifier.datasets`; see `plugins/`.

    Its methods raise DataError, with a message of one line, when the raw folder cannot be used as it is.
    """

    name: ClassVar[str]
    """The name typed after `mu prepare`."""
    title: ClassVar[str]
    citation: ClassVar[str] = ""
    """The publication to cite, in one line."""
    licence: ClassVar[str] = ""
    """Terms under which the data may be used, in one line; says so if they are unknown."""
    homepage: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    """The raw files it needs and where to get them, in one or two sentences."""
    needs_raw: ClassVar[bool] = True
    """False for a synthetic data set, which reads no raw files."""
    raw_form: ClassVar[Literal["folder", "file", "pattern"]] = "folder"
    """What `--raw` names: a folder; also a file; or also a pattern such as `{000..099}.tar`."""
    options: ClassVar[Mapping[str, Option]] = {}
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")
    classes: ClassVar[tuple[str, ...]] = ()
    """Label names for classification and zero-shot, in their official order."""
    benchmark_split: ClassVar[str] = ""
    """Split or subset on which retrieval and zero-shot are measured; empty for the held-out split."""
    prompts_drawn: ClassVar[int] = 15
    """Zero-shot prompts sampled per class (the published code: 15, and 10 on RSNA); 0 for all."""
    headline_metric: ClassVar[str] = "accuracy"
    """`accuracy` or `auroc`."""
    text_sections: ClassVar[tuple[str, ...]] = ("findings", "impression")
    """Report sections that make up the text, in this order, joined by a space when samples are loaded."""
    allow_shared_subjects: ClassVar[bool] = False
    """True if the published split has patients in more than one split; the manifest counts them."""

    @abstractmethod
    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        """Read the tables of `raw`, not its images, and describe the records to come.

        Args:
            raw: folder of the download.
            options: a value for each of the class's `options`.

        Raises:
            DataError: a missing folder, table or column, in a message of one line.
        """

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Zero-shot prompts: name of the set -> class name -> prompts. The first set is the default."""
        return {}

    def class_of(self, labels: Mapping[str, float | None]) -> int | None:
        """Index into `classes` of a sample with exactly one positive class; None for all others."""
        positive = [i for i, name in enumerate(self.classes) if labels.get(name) == 1]
        return positive[0] if len(positive) == 1 else None

    def with_classes(self, classes: tuple[str, ...]) -> DatasetPlugin:
        """This plugin with the class names of prepared shards, which an option may have changed."""
        return self.as_prepared({"classes": classes}) if classes != self.classes else self

    def as_prepared(self, manifest: Mapping[str, Any]) -> DatasetPlugin:
        """This plugin with what the options of `mu prepare` have decided: name, classes, sections, prompts.

        Args:
            manifest: of the shards; a missing key, as in shards from elsewhere, changes nothing.
        """
        plugin = copy.copy(self)
        if manifest.get("dataset"):
            setattr(plugin, "name", manifest["dataset"])  # noqa: B010 - of this copy, not of the class
        for key in ("classes", "text_sections"):
            if manifest.get(key):
                setattr(plugin, key, tuple(manifest[key]))
        if manifest.get("prompts"):
            sets = {**manifest["prompts"], **self.prompt_sets()}
            setattr(plugin, "prompt_sets", lambda: sets)  # noqa: B010
        return plugin

    def findings_in(self, text: str) -> frozenset[str] | None:
        """Classes that a report of this data set asserts, negation handled; None where unsupported.

        Optional: where reports follow a known grammar, generated reports can be scored exactly.
        """
        return None
