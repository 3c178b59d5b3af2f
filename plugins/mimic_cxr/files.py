"""The tables, reports and images of one MIMIC-CXR download: turns rows of the image table into records."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import Drop, FileImage, NotTextError, Record, unpack

from ..raw.dicom_header import view_position
from ..raw.five_by_200 import PATHOLOGIES, exclusive_class, sample_5x200
from .release import Release
from .reports import Reports
from .tables import LABELS, SPLITS, ImageTable, StudyLabels

__all__ = ["HELD_OUT", "MimicFiles"]

FRONTAL = ("PA", "AP")
LATERAL = ("LATERAL", "LL", "RL")
HELD_OUT = "5x200"

FRONTAL_IMAGES = 243_324
"""PA and AP images of the full download: users' counts, exact to about 15."""
ALL_IMAGES = 377_110
"""Images of the full download: the official count."""
COMPLETE = 0.98
"""A download with a smaller share of these images triggers a warning."""

LATERAL_TOO = (
    "annotation.json has no view positions and there is no metadata table: lateral images are kept as well; "
    "put mimic-cxr-2.0.0-metadata.csv(.gz) of MIMIC-CXR-JPG beside it to keep frontal ones only"
)
NO_METADATA = "no metadata table: view positions are read from the DICOM headers, one file at a time"


@dataclass
class MimicFiles:
    """The tables, reports and images of one download: what turns rows of the image table into records."""

    raw: Path
    release: Release
    images: ImageTable
    labels: StudyLabels | None
    reports: Reports
    sections: str
    equalise: bool
    r2gen: bool = False
    """The images are those of R2Gen's annotation, which is a part of the release."""
    on_disk: NDArray[np.bool_] = field(init=False)
    """Whether the file of a frontal image exists (of any image without metadata); bool [rows]."""
    folder: str = field(init=False)
    """The release's folder relative to `raw`, ending in a slash unless it is `raw` itself."""

    # The last study and header read: images of a study follow each other in the table and share its report.
    _last_study: int = -1
    _last_sections: Mapping[str, str] | None = None
    _last_problem: str = ""
    _last_header: tuple[int, str | None] = (-1, None)

    def __post_init__(self) -> None:
        inside = self.release.root.relative_to(self.raw).as_posix()
        self.folder = "" if inside == "." else f"{inside}/"
        # Checked once and before any work, so that the sampling of 5x200 and the warning about an incomplete
        # download need not touch the disk again.
        self.on_disk = np.zeros(len(self.images), dtype=bool)
        for row in np.flatnonzero(self._frontal()):
            self.on_disk[row] = os.path.isfile(self._path(int(row)))

    @property
    def all_views(self) -> bool:
        """True if nothing says which views the images have, so that every view is kept."""
        return self.r2gen and not self.images.has_views and self.release.suffix == ".jpg"

    def warnings(self) -> list[str]:
        """A missing metadata table and an incomplete download."""
        if self.r2gen:
            return [] if self.images.has_views else [LATERAL_TOO if self.all_views else NO_METADATA]
        warnings = [] if self.images.has_views else [NO_METADATA]
        full, kind = (FRONTAL_IMAGES, "frontal images") if self.images.has_views else (ALL_IMAGES, "images")
        count = int(self.on_disk.sum())
        if count < COMPLETE * full:
            warnings.append(f"found {count:,} of about {round(full, -2):,} {kind}: is the download complete?")
        return warnings

    def sample(
        self, labels: StudyLabels, classes: Sequence[str], per_class: int, seed: int
    ) -> NDArray[np.int64]:
        """Rows of a 5x200 set sampled from the official train split, sorted."""
        images = self.images
        rows = np.flatnonzero(self._frontal() & (images.split == list(SPLITS).index("train")))
        columns = [LABELS.index(name) for name in PATHOLOGIES]
        class_of_row = exclusive_class(labels.for_studies(images.study[rows])[:, columns], classes)
        qualified = class_of_row >= 0
        candidates: list[dict[int, list[int]]] = [{} for _ in classes]
        for row, class_index in zip(rows[qualified], class_of_row[qualified], strict=True):
            candidates[class_index].setdefault(int(images.subject[row]), []).append(int(row))
        by_class = sample_5x200(
            candidates, classes, per_class, seed, lambda row: self._drop_reason(row) is None
        )
        return np.sort(np.array([row for rows in by_class for row in rows], dtype=np.int64))

    def records(self, held_out: NDArray[np.int64], holdout: str) -> Iterator[Record | Drop]:
        """One item per row.

        A row of `held_out` gets the split `5x200` and excludes its `holdout` unit (subject, study or image)
        from all other splits.
        """
        images, names = self.images, list(SPLITS.values())
        held_out_rows = {int(row) for row in held_out}
        unit = {"subject": images.subject, "study": images.study, "image": np.arange(len(images))}[holdout]
        held_out_units = {int(value) for value in unit[held_out]}
        for row in range(len(images)):
            split = names[images.split[row]]
            if row in held_out_rows:
                # A listed set may contain lateral images; a sampled one does not.
                reason = self._drop_reason(row, any_view=True)
                split = HELD_OUT
            elif int(unit[row]) in held_out_units:
                reason = f"held out: {HELD_OUT} {holdout}"
            else:
                reason = self._drop_reason(row)
            yield Drop(reason, self._source(row)) if reason else self._record(row, split)

    def _drop_reason(self, row: int, any_view: bool = False) -> str | None:
        """Why a row is excluded, None if it is kept; cheap checks first, the report last."""
        view = self._view(row)
        any_view = any_view or self.all_views
        if not any_view and view not in FRONTAL:
            if view is None:
                return "filtered: no view position"
            return "filtered: lateral view" if view in LATERAL else "filtered: other view"
        if not (self.on_disk[row] or (any_view and os.path.isfile(self._path(row)))):
            return "missing"
        sections = self._text(row)
        if sections is None:
            return self._last_problem
        findings, impression = "findings" in sections, "impression" in sections
        either, both = findings or impression, findings and impression
        keep = {"any": either, "both": both, "findings": findings, "impression": impression}
        return None if keep[self.sections] else "empty_text"

    def _record(self, row: int, split: str) -> Record:
        images, source = self.images, self._source(row)
        study = int(images.study[row])
        return Record(
            key=images.key(row),
            image=FileImage(Path(self._path(row)), "equalise" if self.equalise else "range"),
            split=split,
            subject=f"p{images.subject[row]}",
            study=f"s{study}",
            source=source,
            view=self._view(row),
            sections=self._text(row) or {},
            labels=self.labels.of(study) if self.labels else {},
        )

    def _frontal(self) -> NDArray[np.bool_]:
        """Whether each row is frontal according to the metadata; all True without metadata. bool [rows]."""
        if not self.images.has_views:
            return np.ones(len(self.images), dtype=bool)
        frontal = [index for index, view in enumerate(self.images.views) if view in FRONTAL]
        return np.isin(self.images.view, frontal)

    def _path(self, row: int) -> str:
        return f"{self.raw}/{self._source(row)}"

    def _source(self, row: int) -> str:
        images = self.images
        name = self.release.image(int(images.subject[row]), int(images.study[row]), images.key(row))
        return f"{self.folder}{name}"

    def _view(self, row: int) -> str | None:
        if self.all_views:
            return None
        if not self.images.has_views:
            if row != self._last_header[0]:
                self._last_header = row, view_position(Path(self._path(row)))
            return self._last_header[1]
        index = int(self.images.view[row])
        return None if index < 0 else self.images.views[index]

    def _text(self, row: int) -> Mapping[str, str] | None:
        """Sections of the report, empty if it says nothing about the image; None: see `_last_problem`."""
        study = int(self.images.study[row])
        if study != self._last_study:
            try:
                self._last_sections = self.reports.sections(int(self.images.subject[row]), study)
                self._last_problem = "missing report"
            except NotTextError:  # one of 227,835 must not stop the others
                self._last_sections, self._last_problem = None, "report is not UTF-8 text"
            except unpack.TooLargeError:
                self._last_sections, self._last_problem = None, "report is too large"
            self._last_study = study
        return self._last_sections
