"""MIMIC-CXR: frontal radiographs with their reports, the official split, and a 5x200 set drawn from train.

Layouts: MIMIC-CXR-JPG (2.0.0 or 2.1.0) or MIMIC-CXR (DICOM), as wget leaves them under
`physionet.org/files/` or moved up. Tables and reports are looked for in every release folder, so both
downloads may lie side by side.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Drop,
    FileImage,
    Option,
    Plan,
    Record,
    Subset,
)

from ..chexpert_5x200.prompts import PROMPT_SETS
from ..raw.dicom_header import view_position
from ..raw.draws import listed_ids
from ..raw.five_by_200 import CLASS_LISTS, PATHOLOGIES, draw_5x200, strict_class
from ..raw.tree import need_folder
from .release import Release, find_release, release_folders
from .reports import Reports, find_reports
from .sections import WITHOUT_FINDINGS, report_sections
from .tables import LABELS, SPLITS, Images, StudyLabels, read_images, read_labels

FRONTAL = ("PA", "AP")
LATERAL = ("LATERAL", "LL", "RL")
HELD_OUT = "5x200"

FRONTAL_IMAGES = 243_324
"""PA and AP of the full download, as users counted them; ALL_IMAGES is official."""
ALL_IMAGES = 377_110
COMPLETE = 0.98
"""Share of these below which the download is called incomplete."""


class MimicCxr(DatasetPlugin):
    name = "mimic-cxr"
    title = "MIMIC-CXR: chest radiographs with reports, Boston 2011-2016"
    homepage = "https://physionet.org/content/mimic-cxr-jpg/"
    needs = (
        "MIMIC-CXR-JPG with its split, metadata and chexpert tables, and mimic-cxr-reports.zip of MIMIC-CXR; "
        "or MIMIC-CXR (DICOM) with those three tables. Credentialed access at PhysioNet."
    )
    splits = ("train", "valid", "test", HELD_OUT)
    classes = CLASS_LISTS["paper"]
    benchmark_split = HELD_OUT
    options: ClassVar[Mapping[str, Option]] = {
        "sections": Option(
            "any", "sections a report must have to be kept", ("any", "both", "findings", "impression")
        ),
        "release": Option("auto", "which images, if both are there", ("auto", "jpg", "dicom")),
        "reports": Option("", "mimic-cxr-reports.zip, or a folder that holds files/p10/.../s*.txt"),
        "labeller": Option("chexpert", "whose labels", ("chexpert", "negbio")),
        "class_list": Option("paper", "5x200 with Pneumonia, or with Consolidation", ("paper", "gloria")),
        "per_class": Option(200, "images per class of 5x200; 0 for no such set"),
        "ids_5x200": Option("", "a file with the dicom ids of a given 5x200 set, instead of a draw"),
        "holdout": Option(
            "subject", "what leaves the other splits with a 5x200 image", ("subject", "study", "image")
        ),
        "equalise": Option(True, "DICOM only: equalise the histogram, as MIMIC-CXR-JPG did"),
        "seed": Option(0, "seed of the 5x200 draw"),
    }  # fmt: skip

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        places = release_folders(raw)
        release = find_release(places, options["release"])
        roots = [release.root, *(place for place in places if place != release.root)]
        walk = Walk(
            raw=raw,
            release=release,
            images=read_images(roots),
            labels=read_labels(roots, options["labeller"]),
            reports=find_reports(options["reports"], roots),
            sections=options["sections"],
            tone_equalise=options["equalise"],
        )
        warnings = [] if walk.images.has_views else [NO_METADATA]
        full, what = (FRONTAL_IMAGES, "frontal images") if walk.images.has_views else (ALL_IMAGES, "images")
        found = int(walk.there.sum())
        if found < COMPLETE * full:
            warnings.append(f"found {found:,} of about {round(full, -2):,} {what}: is the download complete?")
        held_out = self._held_out(walk, options)
        subsets = {}
        if len(held_out):
            keys = [walk.images.key(row) for row in held_out]
            subsets[HELD_OUT] = Subset(
                keys, _rule(options), None if options["ids_5x200"] else options["seed"]
            )
        return Plan(
            records=walk.records(held_out, options["holdout"]),
            total=len(walk.images),
            split_source="official (mimic-cxr-2.0.0-split)",
            seed=options["seed"],
            subsets=subsets,
            expected={HELD_OUT: len(held_out)} if len(held_out) else {},
            warnings=warnings,
            classes=CLASS_LISTS[options["class_list"]],
            allow_shared_subjects=options["holdout"] != "subject",
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return PROMPT_SETS

    def _held_out(self, walk: Walk, options: Mapping[str, Any]) -> NDArray[np.int64]:
        """Rows of the 5x200 set, sorted."""
        if options["ids_5x200"]:
            listed = Path(options["ids_5x200"])
            ids = listed_ids(listed, HELD_OUT, lambda text: PurePosixPath(text).stem)
            return np.sort(walk.images.rows_of(ids, str(listed)))
        if options["per_class"] == 0:
            return np.zeros(0, dtype=np.int64)
        if walk.labels is None:
            raise DataError(
                f"{walk.release.root}: no mimic-cxr-2.0.0-{options['labeller']}.csv(.gz) to draw 5x200 by;"
                " it comes with MIMIC-CXR-JPG. Or go without the set: -o per_class=0"
            )
        classes = CLASS_LISTS[options["class_list"]]
        return walk.draw(walk.labels, classes, options["per_class"], options["seed"])


NO_METADATA = "no metadata table: views are read from DICOM headers, one file at a time"


@dataclass
class Walk:
    """Everything that turns rows of the image table into records."""

    raw: Path
    release: Release
    images: Images
    labels: StudyLabels | None
    reports: Reports
    sections: str
    tone_equalise: bool
    there: NDArray[np.bool_] = field(init=False)
    """Whether the file of an image is there; asked once, before any work, of frontal images (or of all)."""
    _last_study: int = -1
    _last_sections: Mapping[str, str] | None = None
    _last_header: tuple[int, str | None] = (-1, None)

    folder: str = field(init=False)
    """The release's folder relative to `raw`, with a slash at its end unless it is `raw` itself."""

    def __post_init__(self) -> None:
        inside = self.release.root.relative_to(self.raw).as_posix()
        self.folder = "" if inside == "." else f"{inside}/"
        self.there = np.zeros(len(self.images), dtype=bool)
        for row in np.flatnonzero(self._frontal()):
            self.there[row] = os.path.isfile(self._path(int(row)))

    def draw(
        self, labels: StudyLabels, classes: Sequence[str], per_class: int, seed: int
    ) -> NDArray[np.int64]:
        """Rows of a 5x200 set drawn from the official train split."""
        images = self.images
        rows = np.flatnonzero(self._frontal() & (images.split == list(SPLITS).index("train")))
        columns = [LABELS.index(name) for name in PATHOLOGIES]
        found = strict_class(labels.for_studies(images.study[rows])[:, columns], classes)
        candidates: list[dict[int, list[int]]] = [{} for _ in classes]
        for row, place in zip(rows[found >= 0], found[found >= 0], strict=True):
            candidates[place].setdefault(int(images.subject[row]), []).append(int(row))
        drawn = draw_5x200(candidates, classes, per_class, seed, lambda row: self._drop(row) is None)
        return np.sort(np.array([row for rows in drawn for row in rows], dtype=np.int64))

    def records(self, held_out: NDArray[np.int64], holdout: str) -> Iterator[Record | Drop]:
        """One item per row; a held-out row gets its own split and takes its patient out of the others."""
        images, names = self.images, list(SPLITS.values())
        listed = {int(row) for row in held_out}
        column = {"subject": images.subject, "study": images.study, "image": np.arange(len(images))}[holdout]
        taken = {int(value) for value in column[held_out]}
        for row in range(len(images)):
            split = names[images.split[row]]
            if row in listed:
                reason = self._drop(row, any_view=True)
                split = HELD_OUT
            elif int(column[row]) in taken:
                reason = f"held out: {HELD_OUT} {holdout}"
            else:
                reason = self._drop(row)
            yield Drop(reason, self._source(row)) if reason else self._record(row, split)

    def _drop(self, row: int, any_view: bool = False) -> str | None:
        """Why a row is left out, None if it stays; asked in the order of what it costs."""
        view = self._view(row)
        if not any_view and view not in FRONTAL:
            if view is None:
                return "filtered: no view position"
            return "filtered: lateral view" if view in LATERAL else "filtered: other view"
        if not (self.there[row] or (any_view and os.path.isfile(self._path(row)))):
            return "missing"
        sections = self._text(row)
        if sections is None:
            return "missing report"
        there = ["findings" in sections, "impression" in sections]
        keep = {"any": any(there), "both": all(there), "findings": there[0], "impression": there[1]}[
            self.sections
        ]
        return None if keep else "empty_text"

    def _record(self, row: int, split: str) -> Record:
        images, source = self.images, self._source(row)
        study = int(images.study[row])
        return Record(
            key=images.key(row),
            image=FileImage(Path(self._path(row)), "equalise" if self.tone_equalise else "range"),
            split=split,
            subject=f"p{images.subject[row]}",
            study=f"s{study}",
            source=source,
            view=self._view(row),
            sections=self._text(row) or {},
            labels=self.labels.of(study) if self.labels else {},
        )

    def _frontal(self) -> NDArray[np.bool_]:
        """Rows that are frontal by the metadata; all without metadata."""
        if not self.images.has_views:
            return np.ones(len(self.images), dtype=bool)
        frontal = [place for place, view in enumerate(self.images.views) if view in FRONTAL]
        return np.isin(self.images.view, frontal)

    def _path(self, row: int) -> str:
        return f"{self.raw}/{self._source(row)}"

    def _source(self, row: int) -> str:
        images = self.images
        name = self.release.image(int(images.subject[row]), int(images.study[row]), images.key(row))
        return f"{self.folder}{name}"

    def _view(self, row: int) -> str | None:
        if not self.images.has_views:
            if row != self._last_header[0]:
                self._last_header = row, view_position(Path(self._path(row)))
            return self._last_header[1]
        place = int(self.images.view[row])
        return None if place < 0 else self.images.views[place]

    def _text(self, row: int) -> Mapping[str, str] | None:
        """The report's sections, None without a report; images of a study come in a row and share them."""
        study = int(self.images.study[row])
        if study != self._last_study:
            report = self.reports.read(int(self.images.subject[row]), study)
            empty = study in WITHOUT_FINDINGS
            self._last_sections = None if report is None else {} if empty else report_sections(report)
            self._last_study = study
        return self._last_sections


def _rule(options: Mapping[str, Any]) -> str:
    if options["ids_5x200"]:
        return f"given as {Path(options['ids_5x200']).name}"
    return (
        f"{options['per_class']} of each class from official train: only that finding positive, the others "
        f"negative or blank ({options['labeller']}), frontal, with text, one image per patient"
    )
