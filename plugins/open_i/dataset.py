"""Data set `open-i`: 3,955 reports of Indiana University with 7,470 images; free, not used in the paper.

A report has up to five images. By default one frontal image per report is kept, and finding it is most of the
work here: view positions are missing for a third of the images and wrong for others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from medunifier_cli.data.contract import DataError, DatasetPlugin, Drop, FileImage, Option, Plan, Record

from ..raw.dicom_header import view_position
from ..raw.sampling import hash_share
from ..raw.tree import file_below, folders, image_paths, need_folder, unpack_hint
from .reports import OpenIReport, image_id, projections, read_reports

FRONTAL = ("PA", "AP")
IMAGE_FOLDER = re.compile(r"\d+|CXR\d+_.*")
SPLIT_ENDS = {"train": 0.8, "valid": 0.9, "test": 1.0}
"""Upper end of each split's range of `hash_share`."""

FRONTAL_WITH_TEXT = 3_826
"""Number of reports with an image and with findings or impression."""

GUESSED_VIEWS = (
    "the frontal image is taken to be the only one whose DICOM header says PA or "
    "AP, else the first one, which is lateral in about 15 of 100 reports"
)


class OpenI(DatasetPlugin):
    """Open-i chest radiographs of Indiana University: 3,955 reports with 7,470 frontal and lateral images.

    Citation: Demner-Fushman et al., JAMIA 23(2):304-310, 2016
    Licence: CC BY-NC-ND 4.0, as the XML file of each report states
    Labels: none; MeSH terms of each report are kept in the facts
    Homepage: https://openi.nlm.nih.gov/faq
    """

    name = "open-i"
    title = "Open-i chest radiographs with reports, Indiana University"
    citation = "Demner-Fushman et al., JAMIA 23(2):304-310, 2016"
    licence = "CC BY-NC-ND 4.0, as the XML file of each report states"
    homepage = "https://openi.nlm.nih.gov/faq"
    needs = (
        "NLMCXR_reports.tgz with NLMCXR_png or NLMCXR_dcm unpacked, or Kaggle's indiana_reports.csv, "
        "indiana_projections.csv and images/, or R2Gen's annotation.json and images/. Free."
    )
    options: ClassVar[Mapping[str, Option]] = {
        "sections": Option(
            "any",
            "sections that a report needs to be kept: of 3,851 reports with an image, any keeps 3,826, "
            "impression 3,820, findings 3,337, both 3,331",
            ("any", "both", "findings", "impression"),
        ),
        "images": Option("frontal", "images of a report: one frontal image, or all", ("frontal", "all")),
        "split": Option(
            "test", "split: all in test, or 80/10/10 by a hash of the report id", ("test", "hash")
        ),
        "seed": Option(0, "seed of the hash split"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        search = list(folders(raw, 3, skip=IMAGE_FOLDER))
        form, reports = read_reports(search)
        paths = _r2gen_paths(raw, search, reports) if form == "r2gen" else image_paths(raw, image_id)
        if not paths:
            hint = unpack_hint(raw, ignore="report")
            raise DataError(f"{raw}: reports but no images such as CXR10_IM-0002-1001.png{hint}")
        sides = projections(search)
        hashed = options["split"] == "hash" and form != "r2gen"
        seed = options["seed"] if hashed else None
        source = "R2Gen" if form == "r2gen" else f"hash of the report, seed {seed}" if hashed else "all test"
        # The published count holds only for these options and all reports.
        countable = options["sections"] == "any" and options["images"] == "frontal" and form != "r2gen"
        files = OpenIFiles(raw, paths, sides, options["sections"], options["images"], seed)
        return Plan(
            records=files.records(reports),
            total=sum(max(1, len(report.images)) for report in reports),
            split_source=source,
            seed=seed,
            expected={"all": FRONTAL_WITH_TEXT} if countable else {},
            warnings=_view_warnings(reports, sides),
        )


@dataclass(frozen=True)
class OpenIFiles:
    """The images of one download, and the options that decide which of them become records."""

    raw: Path
    paths: Mapping[str, str]
    """Image id -> path relative to `raw`."""
    sides: Mapping[str, str] | None
    """Image id -> `Frontal` or `Lateral`, for the images that Kaggle's table lists; None without it."""
    sections: str
    images: str
    seed: int | None
    """Seed of the hash split; None if the splits come from elsewhere."""

    def records(self, reports: Sequence[OpenIReport]) -> Iterator[Record | Drop]:
        """One item for each image of a report, and one for a report without images."""
        for report in reports:
            if not report.images:
                yield Drop("filtered: no image", report.uid)
                continue
            listed = self.sides is not None and any(name in self.sides for name in report.images)
            views = {name: self._view(name, listed) for name in report.images}
            frontal, method = self._frontal(report, views, listed)
            for name in report.images:
                if name not in self.paths:
                    yield Drop("missing", name)
                elif self.images == "frontal" and name != frontal:
                    yield Drop("filtered: not the frontal image", self.paths[name])
                elif not self._keeps(report):
                    yield Drop("empty_text", self.paths[name])
                else:
                    yield self._record(report, name, views[name], method)

    def _frontal(
        self, report: OpenIReport, views: Mapping[str, str | None], listed: bool
    ) -> tuple[str | None, str]:
        """(id of the frontal image, how it was found); id None if Kaggle's table lists no frontal one."""
        if listed:
            return next((name for name in report.images if views[name] == "Frontal"), None), "projections"
        on_disk = [name for name in report.images if name in self.paths]
        frontal = [name for name in on_disk if views[name] in FRONTAL]
        # In 1,219 of the 3,208 reports with two images both headers say PA or AP, though one is lateral:
        # the header is trusted only if it singles out one image.
        if len(frontal) == 1:
            return frontal[0], "header"
        return (on_disk[0] if on_disk else None), "first image"

    def _view(self, name: str, listed: bool) -> str | None:
        """View position or projection; `listed` tells whether Kaggle's table knows the report."""
        if listed and self.sides is not None:
            return self.sides.get(name)
        path = self.paths.get(name, "")
        return view_position(self.raw / path) if path.endswith(".dcm") else None

    def _keeps(self, report: OpenIReport) -> bool:
        findings, impression = "findings" in report.sections, "impression" in report.sections
        either, both = findings or impression, findings and impression
        return {"any": either, "both": both, "findings": findings, "impression": impression}[self.sections]

    def _record(self, report: OpenIReport, name: str, view: str | None, method: str) -> Record:
        split = report.split or "test"
        if self.seed is not None:
            share = hash_share(report.uid, self.seed)
            split = next(part for part, end in SPLIT_ENDS.items() if share < end)
        return Record(
            key=str(PurePosixPath(name).with_suffix("")).replace("/", "_"),
            image=FileImage(self.raw / self.paths[name]),
            split=split,
            subject=report.uid,
            study=report.uid,
            source=self.paths[name],
            view=view,
            sections=report.sections,
            facts={**report.facts, "frontal_by": method},
        )


def _view_warnings(reports: Sequence[OpenIReport], sides: Mapping[str, str] | None) -> list[str]:
    """The warning about reports whose frontal image is guessed, if there are any."""
    if sides is None:
        return [f"no indiana_projections.csv: {GUESSED_VIEWS}"]
    pictured = [report for report in reports if report.images]
    unlisted = sum(1 for report in pictured if not any(name in sides for name in report.images))
    if not unlisted:
        return []
    count = f"{unlisted:,} of {len(pictured):,} reports"
    return [f"indiana_projections.csv lists no image of {count}; for these, {GUESSED_VIEWS}"]


def _r2gen_paths(raw: Path, search: Sequence[Path], reports: Sequence[OpenIReport]) -> dict[str, str]:
    """Image path as in the annotations, `CXR2384_IM-0942/0.png` -> path relative to the raw folder."""
    roots = [root for folder in search for root in (folder / "images", folder)]
    paths = {}
    for report in reports:
        for name in report.images:
            path = next((path for root in roots if (path := file_below(root, name))), None)
            if path is not None:
                paths[name] = path.relative_to(raw).as_posix()
    return paths
