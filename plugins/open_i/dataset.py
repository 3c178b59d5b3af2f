"""Open-i: 3,955 reports of Indiana University with 7,470 images; free, and not in the paper's experiments."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from medunifier_cli.data.contract import DataError, DatasetPlugin, Drop, FileImage, Option, Plan, Record

from ..raw.dicom_header import view_position
from ..raw.draws import hash_share
from ..raw.tree import archives, folders, image_paths, need_folder
from .reports import Report, image_id, projections, read_reports

FRONTAL = ("PA", "AP")
IMAGE_FOLDER = re.compile(r"\d+|CXR\d+_.*")
SPLIT_ENDS = {"train": 0.8, "valid": 0.9, "test": 1.0}

FRONTAL_WITH_TEXT = 3_826
"""Reports with an image and with findings or impression."""

GUESSED_VIEWS = (
    "no indiana_projections.csv: the frontal image is the only one whose DICOM header says PA or AP, else "
    "the first one, which is lateral in about 15 of 100 reports"
)


class OpenI(DatasetPlugin):
    name = "open-i"
    title = "Open-i chest radiographs with reports, Indiana University"
    homepage = "https://openi.nlm.nih.gov/faq"
    needs = (
        "NLMCXR_reports.tgz with NLMCXR_png or NLMCXR_dcm unpacked; or Kaggle's indiana_reports.csv, "
        "indiana_projections.csv and images/; or R2Gen's annotation.json and images/; free."
    )
    options: ClassVar[Mapping[str, Option]] = {
        "sections": Option(
            "any", "sections a report must have to be kept", ("any", "both", "findings", "impression")
        ),
        "images": Option("frontal", "one frontal image per report, or all of them", ("frontal", "all")),
        "split": Option("test", "all test, or 80/10/10 by a hash of the report's number", ("test", "hash")),
        "seed": Option(0, "seed of the hash split"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        places = list(folders(raw, 3, skip=IMAGE_FOLDER))
        form, reports = read_reports(places)
        paths = _r2gen_paths(raw, places, reports) if form == "r2gen" else image_paths(raw, image_id)
        if not paths:
            packed = ", ".join(name for name in archives(raw) if "report" not in name)
            hint = f"; unpack {packed} first" if packed else ""
            raise DataError(f"{raw}: reports but no images such as CXR10_IM-0002-1001.png{hint}")
        sides = projections(places)
        hashed = options["split"] == "hash" and form != "r2gen"
        seed = options["seed"] if hashed else None
        source = "R2Gen" if form == "r2gen" else f"hash of the report, seed {seed}" if hashed else "all test"
        counted = options["sections"] == "any" and options["images"] == "frontal" and form != "r2gen"
        return Plan(
            records=Walk(raw, paths, sides, options["sections"], options["images"], seed).records(reports),
            total=sum(max(1, len(report.images)) for report in reports),
            split_source=source,
            seed=seed,
            expected={"all": FRONTAL_WITH_TEXT} if counted else {},
            warnings=[] if sides is not None else [GUESSED_VIEWS],
        )


@dataclass(frozen=True)
class Walk:
    """Everything that turns reports into records."""

    raw: Path
    paths: Mapping[str, str]
    sides: Mapping[str, str] | None
    sections: str
    images: str
    seed: int | None

    def records(self, reports: Sequence[Report]) -> Iterator[Record | Drop]:
        """One item for each image of a report, and one for a report without images."""
        for report in reports:
            if not report.images:
                yield Drop("filtered: no image", report.uid)
                continue
            views = {name: self._view(name) for name in report.images}
            chosen, how = self._frontal(report, views)
            for name in report.images:
                if name not in self.paths:
                    yield Drop("missing", name)
                elif self.images == "frontal" and name != chosen:
                    yield Drop("filtered: not the frontal image", self.paths[name])
                elif not self._keeps(report):
                    yield Drop("empty_text", self.paths[name])
                else:
                    yield self._record(report, name, views[name], how)

    def _frontal(self, report: Report, views: Mapping[str, str | None]) -> tuple[str | None, str]:
        """(the frontal image, how it was found); None where Kaggle's projections say that there is none."""
        if self.sides is not None:
            return next((name for name in report.images if views[name] == "Frontal"), None), "projections"
        there = [name for name in report.images if name in self.paths]
        frontal = [name for name in there if views[name] in FRONTAL]
        if len(frontal) == 1:
            return frontal[0], "header"
        return (there[0] if there else None), "first image"

    def _view(self, name: str) -> str | None:
        if self.sides is not None:
            return self.sides.get(name)
        path = self.paths.get(name, "")
        return view_position(self.raw / path) if path.endswith(".dcm") else None

    def _keeps(self, report: Report) -> bool:
        there = ["findings" in report.sections, "impression" in report.sections]
        kept = {"any": any(there), "both": all(there), "findings": there[0], "impression": there[1]}
        return kept[self.sections]

    def _record(self, report: Report, name: str, view: str | None, how: str) -> Record:
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
            facts={**report.facts, "frontal_by": how},
        )


def _r2gen_paths(raw: Path, places: Sequence[Path], reports: Sequence[Report]) -> dict[str, str]:
    """Image path as the annotations have it, `CXR2384_IM-0942/0.png` -> path relative to the raw folder."""
    roots = [root for place in places for root in (place / "images", place)]
    found = {}
    for report in reports:
        for name in report.images:
            path = next((root / name for root in roots if (root / name).is_file()), None)
            if path is not None:
                found[name] = path.relative_to(raw).as_posix()
    return found
