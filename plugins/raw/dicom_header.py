"""What a plugin may read of a DICOM: its view position. Pixels are the core's business."""

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
"""Meanings of the view code sequence (0054,0220) and the view positions they stand for."""


def view_position(path: Path) -> str | None:
    """ViewPosition (0018,5101), else what the view code sequence means, else None.

    A file that cannot be read has no view; the core finds out why when it decodes it.
    """
    import pydicom

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
