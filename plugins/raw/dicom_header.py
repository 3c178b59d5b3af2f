"""Read the view position from a DICOM header, without decoding pixels."""

from __future__ import annotations

import gzip
from pathlib import Path

__all__ = ["view_position"]

VIEW_CODES = {
    "antero-posterior": "AP",
    "postero-anterior": "PA",
    "lateral": "LATERAL",
    "left lateral": "LL",
    "right lateral": "RL",
}
"""Code meanings of the view code sequence (0054,0220) -> the equivalent view position."""


def view_position(path: Path) -> str | None:
    """ViewPosition (0018,5101), else the view that the view code sequence names, else None.

    An unreadable file has no view: `mu prepare` reports why when it decodes the pixels.
    """
    import pydicom  # here, because a download without DICOM files does not need it

    tags = ["ViewPosition", "ViewCodeSequence"]
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags)
    except (OSError, EOFError, ValueError, pydicom.errors.InvalidDicomError):
        return None
    position = str(header.get("ViewPosition") or "").strip()
    if position:
        return position
    for code in header.get("ViewCodeSequence") or ():
        meaning = str(code.get("CodeMeaning") or "").strip().lower()
        if meaning:
            return VIEW_CODES.get(meaning, meaning)
    return None
