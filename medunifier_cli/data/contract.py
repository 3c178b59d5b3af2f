"""What a data set plugin is made of, and what reaches the model. The one module of ours a plugin imports.

A plugin walks a raw download and yields `Record`s and `Drop`s, lazily: it opens tables and texts, never
pixels. The core decodes, resizes, writes, counts and hashes.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.errors import DataError

if TYPE_CHECKING:  # a plugin, and `mu prepare`, do without torch
    from torch import Tensor

__all__ = [
    "Batch", "DataError", "DatasetPlugin", "DicomTone", "DrawnImage", "Drop", "FileImage", "ImageSource",
    "Option", "PackedText", "Plan", "Record", "Sample", "Subset", "ZipImage",
]  # fmt: skip


DicomTone = Literal["window", "range", "equalise"]
"""How a DICOM's stored values become grey levels; MONOCHROME1 is inverted in each, other formats ignore it.

`window`: rescale and VOI, as a viewer shows it. `range`: minimum to maximum. `equalise`: `range`, then global
histogram equalisation, as MIMIC-CXR-JPG was made.
"""


@dataclass(frozen=True)
class FileImage:
    """An image file on disk: PNG, JPEG or DICOM, told apart by content and not by name."""

    path: Path
    dicom_tone: DicomTone = "window"


@dataclass(frozen=True)
class ZipImage:
    """An image inside a zip archive, read without unpacking."""

    archive: Path
    member: str
    dicom_tone: DicomTone = "window"


@dataclass(frozen=True)
class DrawnImage:
    """An image that a function draws. `draw` must pickle (workers call it) and be deterministic.

    It takes the edge asked for by `mu prepare --size`, in pixels, and returns uint8 [size, size], 0 is black.
    """

    draw: Callable[[int], NDArray[np.uint8]]


ImageSource = FileImage | ZipImage | DrawnImage


@dataclass(frozen=True)
class Record:
    """One image with all that is known of it; nothing decoded, nothing cleaned."""

    key: str
    """Unique in the data set; letters, digits, `_` and `-` (a dot would end a WebDataset key)."""
    image: ImageSource
    split: str
    """`train`, `valid`, `test`, or the name of a held-out set such as `5x200`."""
    subject: str
    """Patient. A subject in two splits is an error, see `DatasetPlugin.allow_shared_subjects`."""
    study: str
    source: str
    """Path of the image relative to the raw folder, with `/`; or what stands for it."""
    view: str | None = None
    """View position as the data set spells it (PA, AP, ...), None where unknown."""
    sections: Mapping[str, str] = field(default_factory=dict)
    """Raw text by section name: `findings`, `impression`, `clinical_notes`, ..."""
    labels: Mapping[str, float | None] = field(default_factory=dict)
    """All labels: 1 positive, 0 negative, -1 uncertain, None blank (never 0)."""
    text_kind: str = "report"
    """`report` for a radiology report; anything else, such as `clinical_notes`, says that it is none."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Anything more that is worth keeping and fits JSON (phantom truth, boxes, licence)."""


@dataclass(frozen=True)
class Drop:
    """A row the plugin leaves out, and why; counted by reason and listed in `rejects.jsonl`.

    Reasons are short and repeat: `missing`, `filtered: lateral view`, `held out: 5x200 subject`.
    Never put report text into either field.
    """

    reason: str
    source: str


@dataclass(frozen=True)
class Subset:
    """A drawn or published list of sample keys: written to the manifest with its seed and rule."""

    keys: Sequence[str]
    rule: str
    """How it was drawn, in one sentence."""
    seed: int | None = None


@dataclass(frozen=True)
class Plan:
    """What one raw folder holds, in an order that depends on nothing but the raw data and the options."""

    records: Iterator[Record | Drop]
    total: int | None = None
    """Number of items that `records` will yield, where it is known beforehand (for the progress bar)."""
    split_source: str = ""
    """Where the splits come from: `official`, `hash of the subject, seed 0`, ..."""
    seed: int | None = None
    subsets: Mapping[str, Subset] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    """Counts of the full download by split or by `all`; a large difference is said."""
    warnings: Sequence[str] = ()
    classes: tuple[str, ...] = ()
    """The classes under these options, where they differ from the plugin's own."""
    allow_shared_subjects: bool = False
    """True where these options ask for patients on two sides; adds to the plugin's own."""


@dataclass(frozen=True)
class Sample:
    """One image-text pair as a loader worker makes it from a shard."""

    key: str
    image_HW: NDArray[np.uint8]
    """Grey levels 0 (black) to 255, already at the recipe's image size."""
    token_ids: Sequence[int]
    """[CLS] ... [SEP], at most `text.max_tokens` of them."""
    text_digest: int
    """63-bit hash of the text: equal for texts that say the same, word for word."""
    label: int
    """Index of the one positive class, -1 where there is none or more than one."""


@dataclass(frozen=True)
class PackedText:
    """The texts of a batch end to end; N = sum of lengths, nothing is padded."""

    ids_N: Tensor
    """int64 token ids."""
    lengths_B: Tensor
    """int64 tokens per text, each >= 2 ([CLS] and [SEP])."""


@dataclass(frozen=True)
class Batch:
    """B pairs at consecutive places of the sample order; what a `step` takes."""

    keys: Sequence[str]
    image_B1HW: Tensor
    """uint8 grey levels; `model.vit.pixels` turns them into [0, 1] and three channels on the device."""
    text: PackedText
    digest_B: Tensor
    """int64, see `Sample.text_digest`."""
    label_B: Tensor
    """int64, see `Sample.label`."""
    place_B: Tensor
    """int64 places in the endless order (epoch * n + position): the row of every random draw."""


@dataclass(frozen=True)
class Option:
    """One `-o name=value` of `mu prepare`. The type of `default` is the type of the value."""

    default: str | int | float | bool
    help: str
    choices: tuple[str, ...] = ()


class DatasetPlugin(ABC):
    """A data set. One file, one entry point in the group `medunifier.datasets`; see `plugins/` for examples.

    Raises from its methods: DataError with one line, when the raw folder cannot be used as it is.
    """

    name: ClassVar[str]
    """As typed after `mu prepare`."""
    title: ClassVar[str]
    citation: ClassVar[str] = ""
    """The publication to cite, in one line."""
    licence: ClassVar[str] = ""
    """Terms under which the data may be used, in one line; says so if they are unknown."""
    homepage: ClassVar[str] = ""
    needs: ClassVar[str] = ""
    """The raw files it needs and where one gets them, one sentence or two."""
    needs_raw: ClassVar[bool] = True
    """False for a data set that is drawn and reads nothing."""
    options: ClassVar[Mapping[str, Option]] = {}
    splits: ClassVar[tuple[str, ...]] = ("train", "valid", "test")
    classes: ClassVar[tuple[str, ...]] = ()
    """Label names for classification and zero-shot, in their official order."""
    benchmark_split: ClassVar[str] = ""
    """Split or drawn subset that retrieval and zero-shot are measured on; empty for the held-out split."""
    prompts_drawn: ClassVar[int] = 15
    """Zero-shot prompts drawn per class (the published code: 15, and 10 on RSNA); 0 for all."""
    headline_metric: ClassVar[str] = "accuracy"
    """`accuracy` or `auroc`."""
    text_sections: ClassVar[tuple[str, ...]] = ("findings", "impression")
    """Sections that make the text, in order, joined by a blank at load time."""
    allow_shared_subjects: ClassVar[bool] = False
    """True where the literature's own split has patients on two sides; counted in the manifest."""

    @abstractmethod
    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        """Look at `raw` (tables only) and say what will come. `options` holds a value for each of `options`.

        Raises:
            DataError: a missing folder, table or column, said in one line.
        """

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        """Zero-shot prompts: set name -> class name -> prompts. The first set is the default."""
        return {}

    def class_of(self, labels: Mapping[str, float | None]) -> int | None:
        """Index into `classes` of a sample with exactly one positive class, else None."""
        positive = [i for i, name in enumerate(self.classes) if labels.get(name) == 1]
        return positive[0] if len(positive) == 1 else None

    def with_classes(self, classes: tuple[str, ...]) -> DatasetPlugin:
        """This plugin under the classes that shards were prepared with, which an option may have changed."""
        if not classes or classes == self.classes:
            return self
        plugin = copy.copy(self)
        setattr(plugin, "classes", classes)  # noqa: B010 - a class variable, on this copy alone
        return plugin

    def findings_in(self, text: str) -> frozenset[str] | None:
        """Classes that a report of this data set asserts, negations understood; None where it cannot say.

        Optional: where reports follow a known grammar, generated ones can be scored exactly.
        """
        return None
