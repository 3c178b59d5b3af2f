"""Read the view position from a DICOM header, without decoding pixels."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import TYPE_CHECKING

from medunifier_cli.data.contract import unpack

if TYPE_CHECKING:  # pydicom is imported where it is used: a download without DICOM files does not need it
    import pydicom

__all__ = ["view_position"]

HEAD = 1 << 22
"""Bytes of a packed file that are read."""
LONGEST = 64
"""Characters of the longest code meaning that the standard allows (value representation LO)."""
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
    import pydicom

    tags = ["ViewPosition", "ViewCodeSequence"]
    try:
        with path.open("rb") as plain:
            # packed: only its beginning, as all that is sought comes before the pixels
            file = io.BytesIO(gzip.GzipFile(fileobj=plain).read(HEAD)) if path.suffix == ".gz" else plain
            if not unpack.dicom_within(file, unpack.IMAGE_BYTES):
                return None
            return _view(pydicom.dcmread(file, stop_before_pixels=True, specific_tags=tags))
    except Exception:  # pydicom raises all kinds of errors on damaged files
        return None


def _view(header: pydicom.Dataset) -> str | None:
    position = str(header.get("ViewPosition") or "").strip()
    if position:
        return position[:LONGEST]
    for code in header.get("ViewCodeSequence") or ():
        meaning = str(code.get("CodeMeaning") or "").strip().lower()
        if meaning:
            return VIEW_CODES.get(meaning, meaning[:LONGEST])
    return None
