"""Read Indiana University's reports from the three forms in which they are distributed.

The forms are Open-i's XML (a folder `ecgen-radiology/` or `NLMCXR_reports.tgz`), Kaggle's two CSVs, and
R2Gen's annotation.json, which has findings only, two images per study, and a split.
"""

from __future__ import annotations

import gzip
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypedDict, cast

from medunifier_cli.data.contract import DataError, quoted, read_bytes, read_json, tar, unpack

from ..raw.tables import Table, find_table
from ..raw.tree import is_leftover

__all__ = ["OpenIReport", "image_id", "projections", "read_reports"]

SECTIONS = ("comparison", "indication", "findings", "impression")
IMAGE_NAME = re.compile(r"(?:CXR)?(\d+)_(?:\1_)?(IM-.*)")
UID = re.compile(r"CXR[0-9]{1,9}")
R2GEN_ID = re.compile(r"CXR\d+_")
R2GEN_SPLITS = {"train": "train", "val": "valid", "test": "test"}


class _Entry(TypedDict):
    id: str
    report: str
    image_path: list[str]


@dataclass(frozen=True)
class OpenIReport:
    """One report with the ids of its images."""

    uid: str
    """`CXR<n>`; also serves as the patient id, since patients are not identified in the public data."""
    sections: dict[str, str]
    images: tuple[str, ...]
    """Image ids such as `CXR10_IM-0002-1001`, in the report's order; for R2Gen, paths under `images/`."""
    facts: dict[str, Any] = field(default_factory=dict)
    split: str | None = None
    """Split of the R2Gen annotations; None for the other forms."""


def image_id(stem: str) -> str | None:
    """Image id such as `CXR10_IM-0002-1001` from a file stem, None if it is not one.

    DICOM files lack the `CXR`, and Kaggle's stems end in `.dcm`. The images of report 1 alone are called
    `CXR1_1_IM-...` in the XML; other tables omit the second number, and so does the id.
    """
    match = IMAGE_NAME.fullmatch(stem.removesuffix(".dcm"))
    return f"CXR{match[1]}_{match[2]}" if match else None


def read_reports(search: Sequence[Path]) -> tuple[str, list[OpenIReport]]:
    """(`xml`, `kaggle` or `r2gen`; reports sorted by number) from the first form found in the folders.

    Raises:
        DataError: none of the forms, or a file that cannot be read.
    """
    for form, read in (("xml", _xml_reports), ("kaggle", _kaggle_reports), ("r2gen", _r2gen_reports)):
        reports = read(search)
        if reports:
            wrong = next((report.uid for report in reports if not UID.fullmatch(report.uid)), None)
            if wrong is not None:
                raise DataError(
                    f"{search[0]}: a report has the number {quoted(wrong)} instead of CXR1 to CXR3999"
                )
            return form, sorted(
                reports, key=lambda report: (int(re.sub(r"\D", "", report.uid)), report.images)
            )
    forms = (
        "neither ecgen-radiology/*.xml or NLMCXR_reports.tgz, nor indiana_reports.csv, nor annotation.json"
    )
    raise DataError(f"{search[0]}: {forms}")


def projections(search: Sequence[Path]) -> dict[str, str] | None:
    """Image id -> `Frontal` or `Lateral` from Kaggle's indiana_projections.csv; None without that table.

    It is the most reliable source: the view position in the DICOM headers is often blank or wrong.
    """
    table = find_table(search, "indiana_projections.csv")
    if table is None:
        return None
    return dict(_projection_rows(table))


def _projection_rows(table: Table) -> Iterator[tuple[str, str]]:
    for line, (file_name, side) in table.rows(["filename", "projection"]):
        name = image_id(file_name.removesuffix(".png"))
        if name is None:
            raise DataError(
                f"{table.shown}:{line}: {quoted(file_name)} does not look like 1_IM-0001-4001.dcm.png"
            )
        yield name, side


def _xml_reports(search: Sequence[Path]) -> list[OpenIReport]:
    for folder in search:
        paths = sorted(path for path in folder.glob("*.xml") if path.stem.isdigit())
        if paths:
            return [_parse(read_bytes(path, DataError, "", unpack.REPORT_BYTES), str(path)) for path in paths]
    for folder in search:
        for path in sorted(folder.glob("NLMCXR_reports.tgz")):
            return list(_packed_reports(path))
    return []


def _packed_reports(path: Path) -> Iterator[OpenIReport]:
    try:
        with path.open("rb") as packed, gzip.GzipFile(fileobj=packed) as unpacked:
            limited = unpack.Limited(cast("IO[bytes]", unpacked), unpack.ARCHIVE_BYTES, str(path))
            # in one pass, `r|`, so that what is skipped counts towards the bound as well
            for archive, member in tar.members(cast("IO[bytes]", limited), "r|"):
                name = member.name.rsplit("/", 1)[-1]
                content = (
                    archive.extractfile(member) if name.endswith(".xml") and not is_leftover(name) else None
                )
                if content is not None:
                    shown = f"{path}!{member.name}"
                    yield _parse(unpack.read_at_most(content, unpack.REPORT_BYTES, shown), shown)
    except (*tar.DAMAGED, OSError) as error:
        raise DataError(f"{path} is damaged or cut short ({error}); download it again") from error


def _parse(content: bytes, shown: str) -> OpenIReport:
    try:
        root = ElementTree.fromstring(content)
    # LookupError and ValueError: an encoding that Python does not know, or that expat cannot use
    except (ElementTree.ParseError, LookupError, ValueError, RecursionError) as error:
        raise DataError(f"{shown} is not XML: {error}") from error
    element = root.find("uId")
    uid = "" if element is None else element.get("id", "")
    if not UID.fullmatch(uid):
        raise DataError(f"{shown}: no uId such as CXR1")
    sections = {}
    for abstract in root.iter("AbstractText"):
        name, text = abstract.get("Label", "").lower(), (abstract.text or "").strip()
        if name in SECTIONS and text:
            sections[name] = text
    names = [image.get("id", "") for image in root.iter("parentImage")]
    return OpenIReport(
        uid=uid,
        sections=sections,
        images=tuple(image_id(name) or name for name in names),
        facts={
            "mesh": [term.text.strip() for term in root.iterfind("MeSH/major") if term.text],
            "mesh_automatic": [term.text.strip() for term in root.iterfind("MeSH/automatic") if term.text],
        },
    )


def _kaggle_reports(search: Sequence[Path]) -> list[OpenIReport]:
    table, images = find_table(search, "indiana_reports.csv"), find_table(search, "indiana_projections.csv")
    if table is None:
        return []
    if images is None:
        raise DataError(
            f"{table.path.parent}: no indiana_projections.csv, which names the images of the reports"
        )
    by_report: dict[str, list[str]] = {}
    for name, _ in _projection_rows(images):
        by_report.setdefault(name.split("_")[0], []).append(name)
    reports = []
    for _, (uid, mesh, *texts) in table.rows(["uid", "MeSH", *SECTIONS]):
        sections = {name: text for name, text in zip(SECTIONS, texts, strict=True) if text}
        names = tuple(by_report.get(f"CXR{uid}", ()))
        reports.append(OpenIReport(f"CXR{uid}", sections, names, {"mesh": mesh.split(";") if mesh else []}))
    return reports


def _r2gen_reports(search: Sequence[Path]) -> list[OpenIReport]:
    path = next(
        (folder / "annotation.json" for folder in search if (folder / "annotation.json").is_file()), None
    )
    if path is None:
        return []
    lists = "train, val and test lists of id, report and image_path are expected"
    splits = read_json(path, dict[str, list[_Entry]], DataError, lists)
    if not splits.keys() <= R2GEN_SPLITS.keys():
        raise DataError(f"{path}: has another list; {lists}")
    rows = [(row, R2GEN_SPLITS[part]) for part, entries in splits.items() for row in entries]
    others = [row["id"] for row, _ in rows if not R2GEN_ID.match(row["id"])]
    if others:
        raise DataError(
            f"{path}: not Open-i's annotation: ids such as {quoted(others[0])} instead of CXR2384_IM-0942. "
            "R2Gen has a file of this name for MIMIC-CXR as well: `mu prepare mimic-cxr` reads that one"
        )
    return [
        OpenIReport(
            uid=row["id"].split("_")[0],
            sections={"findings": row["report"].strip()} if row["report"].strip() else {},
            images=tuple(row["image_path"]),
            facts={"r2gen_id": row["id"]},
            split=split,
        )
        for row, split in rows
    ]
