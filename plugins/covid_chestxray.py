"""Data set `covid-chestxray`: frontal radiographs from publications with clinical notes; small and free.

The notes are case histories, not radiology reports: they describe course and treatment and may name the
diagnosis. So their `text_kind` is `clinical_notes`, and they are never silently mixed with reports.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from medunifier_cli.data.contract import DataError, DatasetPlugin, Drop, FileImage, Option, Plan, Record

from .raw.sampling import hash_share
from .raw.tables import Table, find_table
from .raw.tree import leads_below, need_folder

FRONTAL = ("PA", "AP", "AP Supine", "AP semi erect", "AP erect")
"""COVID-Net's list of frontal views."""
UNDIAGNOSED = ("todo", "Unknown", "")
"""Values of the column `finding` that are no diagnosis."""
REQUIRED_COLUMNS = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
FACT_COLUMNS = (
    "sex",
    "age",
    "offset",
    "date",
    "location",
    "license",
    "doi",
    "url",
    "RT_PCR_positive",
    "survival",
)
"""Columns that are kept as facts of the record: licence and source differ by row."""
TABLE = "metadata.csv"
COVID, PNEUMONIA, NORMAL = "COVID-19", "Pneumonia", "No Finding"
OTHER_THAN_PNEUMONIA = ("ARDS", "Tuberculosis", "Unknown", "todo", "")
"""Findings that do not imply pneumonia; all others are pathogens or kinds of it, as COVIDx counts them."""


class CovidChestXray(DatasetPlugin):
    """COVID-19 image data collection: frontal radiographs with clinical notes; rows without notes are kept.

    Citation: Cohen, Morrison and Dao, COVID-19 Image Data Collection, arXiv:2003.11597, 2020
    Licence: differs by image (column `license`, kept in the facts); about a third of the rows name none
    Labels: COVID-19, Pneumonia (of another cause), No Finding
    Homepage: https://github.com/ieee8023/covid-chestxray-dataset
    """

    name = "covid-chestxray"
    title = "COVID-19 image data collection: radiographs with clinical notes"
    citation = "Cohen, Morrison and Dao, COVID-19 Image Data Collection, arXiv:2003.11597, 2020"
    licence = "differs by image (column `license`, kept in the facts); about a third of the rows name none"
    homepage = "https://github.com/ieee8023/covid-chestxray-dataset"
    needs = "metadata.csv and images/ of the repository, as a clone or as the unpacked zip. Free."
    classes = (COVID, PNEUMONIA, NORMAL)
    text_sections = ("clinical_notes",)
    options: ClassVar[Mapping[str, Option]] = {
        "valid": Option(0.1, "share of patients in valid"),
        "test": Option(0.2, "share of patients in test"),
        "seed": Option(0, "seed of the split"),
        "undiagnosed": Option("drop", "rows whose finding is `todo` or `Unknown`", ("drop", "keep")),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        if min(options["valid"], options["test"]) < 0 or options["valid"] + options["test"] >= 1:
            raise DataError("-o valid and -o test are shares of 0 or more that leave some patients to train")
        table = find_table([raw], TABLE)
        if table is None:
            raise DataError(f"{raw}: no {TABLE}. Needed: {self.needs}")
        rows = _read(table)
        return Plan(
            records=_records(raw, rows, options),
            total=len(rows),
            split_source="hash of the patient id",
            seed=options["seed"],
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {
            "notes": {
                COVID: [
                    "COVID-19 pneumonia.",
                    "Tested positive for COVID-19.",
                    "SARS-CoV-2 infection.",
                ],
                PNEUMONIA: ["Bacterial pneumonia.", "Pneumonia of another cause.", "Fungal pneumonia."],
                NORMAL: ["Normal chest radiograph.", "No abnormality of the lungs."],
            }
        }


def _read(table: Table) -> list[dict[str, str]]:
    """All rows, a few hundred; optional columns only where this release has them."""
    header = table.header()
    columns = [*REQUIRED_COLUMNS, *(name for name in ("other_notes", *FACT_COLUMNS) if name in header)]
    return [dict(zip(columns, values, strict=True)) for _, values in table.rows(columns)]


def _records(
    raw: Path, rows: Sequence[Mapping[str, str]], options: Mapping[str, Any]
) -> Iterator[Record | Drop]:
    stems = Counter(_stem(row["filename"]) for row in rows)
    seen: set[str] = set()
    for row in rows:
        source = f"images/{row['filename']}"
        findings = _findings(row["finding"])
        reason = _reason(row, findings, options["undiagnosed"], source in seen)
        if reason:
            yield Drop(reason, source)
            continue
        seen.add(source)
        stem = _stem(row["filename"])
        key = stem if stems[stem] == 1 else f"{stem}-{sha256(source.encode()).hexdigest()[:8]}"
        yield Record(
            key=key,
            image=FileImage(raw / "images" / row["filename"]),
            split=_split(row["patientid"], options),
            subject=row["patientid"],
            study=f"{row['patientid']}-{row.get('offset') or key}",
            source=source,
            view=row["view"],
            sections={name: row[name] for name in ("clinical_notes", "other_notes") if row.get(name)},
            labels=_labels(findings),
            text_kind="clinical_notes",
            facts={"finding": row["finding"]} | {name: row[name] for name in FACT_COLUMNS if row.get(name)},
        )


def _reason(row: Mapping[str, str], findings: Sequence[str], undiagnosed: str, repeated: bool) -> str:
    """Why a row is excluded; empty if it is kept."""
    if row["modality"] != "X-ray":
        return "filtered: not an X-ray"
    if row["view"] not in FRONTAL:
        return "filtered: not a frontal view"
    if undiagnosed == "drop" and not findings:
        return "filtered: no diagnosis"
    if not row["filename"] or not row["patientid"]:
        return "filtered: no file name or no patient id"
    if not leads_below(row["filename"]):
        return "filtered: file name leads out of the folder"
    return "filtered: image listed before" if repeated else ""


def _findings(text: str) -> list[str]:
    """`Pneumonia/Viral/COVID-19` -> COVID-19 (newer releases); `COVID-19, ARDS` -> both (older ones)."""
    names = [name.strip() for name in text.split("/")[-1].split(",")]
    return [name for name in names if name not in UNDIAGNOSED]


def _labels(findings: Sequence[str]) -> dict[str, float | None]:
    """The three classes as 1 or 0, or blank without a diagnosis; and each finding in its own spelling.

    `Pneumonia` means a cause other than COVID-19, as in COVIDx, so that at most one class is positive.
    """
    if not findings:
        return {COVID: None, PNEUMONIA: None, NORMAL: None}
    covid = COVID in findings
    other = any(name not in (COVID, NORMAL, *OTHER_THAN_PNEUMONIA) for name in findings)
    labels: dict[str, float | None] = dict.fromkeys(findings, 1.0)
    labels |= {COVID: float(covid), PNEUMONIA: float(other and not covid), NORMAL: float(NORMAL in findings)}
    return labels


def _split(patient: str, options: Mapping[str, Any]) -> str:
    share = hash_share(patient, options["seed"])
    if share < options["test"]:
        return "test"
    return "valid" if share < options["test"] + options["valid"] else "train"


def _stem(filename: str) -> str:
    """A file name without suffix, limited to the characters that a key may have."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", Path(filename).stem)[:80]
