"""Open-i in miniature: the three forms in which Indiana University's reports go round."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.miniatures.pictures import write_dicom, write_picture

SECTIONS = ("indication", "comparison", "findings", "impression")


@dataclass(frozen=True)
class Report:
    """One report; each image with its view position and its projection."""

    number: int
    findings: str = ""
    impression: str = ""
    images: Sequence[tuple[str, str]] = (("PA", "Frontal"), ("LL", "Lateral"))

    def stem(self, place: int) -> str:
        """As the DICOM files are called."""
        return f"{self.number}_IM-{self.number:04d}-{1 + place}001"

    def id(self, place: int) -> str:
        """As the XML and the PNGs have it: `CXR10_IM-...`, but `CXR1_1_IM-...` for report 1."""
        return f"CXR{'1_' if self.number == 1 else ''}{self.stem(place)}"


REPORTS = [
    Report(1, "The heart is normal.\nXXXX are clear.", "Normal chest x-XXXX."),
    Report(2, "Large effusion.", "", [("LL", "Lateral"), ("PA", "Frontal")]),
    Report(3, "", "No change.", [("PA", "Frontal"), ("PA", "Lateral")]),
    Report(4, "", ""),
    Report(5, "Clear.", "Normal.", []),
    Report(6, "Clear.", "Normal.", [("LL", "Lateral")]),
    Report(10, "Clear.", "Normal.", [("", "Frontal"), ("PA", "Frontal"), ("AP", "Frontal")]),
]


def xml(report: Report) -> str:
    """A report file as the archive has it, less what nobody reads."""
    images = "".join(
        f'<parentImage id="{report.id(place)}"><figureId>F{place + 1}</figureId>'
        f"<caption>Xray Chest PA and Lateral</caption><panel><url>/hadoop/{place}.jpg</url></panel>"
        "</parentImage>\n"
        for place in range(len(report.images))
    )
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n<meta type="rr"/>\n'
        f'<uId id="CXR{report.number}"/>\n<MedlineCitation><Article><Abstract>\n'
        '<AbstractText Label="COMPARISON">None.</AbstractText>\n'
        '<AbstractText Label="INDICATION">Cough &amp; fever</AbstractText>\n'
        f'<AbstractText Label="FINDINGS">{report.findings}</AbstractText>\n'
        f'<AbstractText Label="IMPRESSION">{report.impression}</AbstractText>\n'
        "</Abstract></Article></MedlineCitation>\n"
        "<MeSH><major>Pleural Effusion/left/large</major><automatic>effusion</automatic></MeSH>\n"
        f"{images}</eCitation>\n"
    )


def write_xml(raw: Path, reports: Sequence[Report], images: str, packed: bool = False) -> None:
    """`ecgen-radiology/<n>.xml` or `NLMCXR_reports.tgz`; images `png` (flat) or `dcm` (in folders)."""
    if packed:
        raw.mkdir(parents=True, exist_ok=True)
        with tarfile.open(raw / "NLMCXR_reports.tgz", "w:gz") as archive:
            for report in reports:
                body = xml(report).encode()
                member = tarfile.TarInfo(f"ecgen-radiology/{report.number}.xml")
                member.size = len(body)
                archive.addfile(member, io.BytesIO(body))
    else:
        for report in reports:
            path = raw / "NLMCXR_reports" / "ecgen-radiology" / f"{report.number}.xml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(xml(report), encoding="utf-8")
    for report in reports:
        for place, (view, _) in enumerate(report.images):
            if images == "png":
                write_picture(raw / "NLMCXR_png" / f"{report.id(place)}.png", place)
            else:
                write_dicom(
                    raw / "NLMCXR_dcm" / str(report.number) / f"{report.stem(place)}.dcm", place, view or None
                )


def write_kaggle(raw: Path, reports: Sequence[Report], texts: bool = True) -> None:
    """`indiana_reports.csv`, `indiana_projections.csv` and `images/images_normalized/`."""
    raw.mkdir(parents=True, exist_ok=True)
    if texts:
        with (raw / "indiana_reports.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["uid", "MeSH", "Problems", "image", *SECTIONS])
            for r in reports:
                mesh = "Pleural Effusion/left/large;Cardiomegaly"
                writer.writerow(
                    [r.number, mesh, "Effusion", "Xray", "Cough", "None.", r.findings, r.impression]
                )
    with (raw / "indiana_projections.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "filename", "projection"])
        for r in reports:
            for place, (_, projection) in enumerate(r.images):
                writer.writerow([r.number, f"{r.stem(place)}.dcm.png", projection])
                if texts:
                    write_picture(raw / "images" / "images_normalized" / f"{r.stem(place)}.dcm.png", place)


def write_r2gen(raw: Path, reports: Sequence[Report]) -> None:
    """`annotation.json` with findings and a split, and `images/<id>/0.png, 1.png`."""
    splits: dict[str, list[dict[str, object]]] = {"train": [], "val": [], "test": []}
    for turn, r in enumerate(r for r in reports if r.findings and len(r.images) >= 2):
        name = f"CXR{r.number}_IM-{r.number:04d}"
        paths = [f"{name}/{place}.png" for place in range(2)]
        part = ("train", "val", "test")[turn % 3]
        splits[part].append({"id": name, "report": r.findings, "image_path": paths, "split": part})
        for place, path in enumerate(paths):
            write_picture(raw / "images" / path, place)
    (raw / "annotation.json").write_text(json.dumps(splits), encoding="utf-8")
