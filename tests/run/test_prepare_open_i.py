"""`mu prepare open-i` on its three layouts in miniature."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.miniatures.open_i import REPORTS, write_kaggle, write_r2gen, write_xml
from tests.miniatures.pictures import leave_rubbish
from tests.miniatures.prepared import prepare


@pytest.mark.parametrize("layout", ["xml and dicom", "kaggle"])
def test_reports_become_texts(tmp_path: Path, layout: str) -> None:
    raw = tmp_path / "raw"
    if layout == "kaggle":
        write_kaggle(raw, REPORTS)
    else:
        write_xml(raw, REPORTS, "dcm", packed=True)
    leave_rubbish(raw)
    found = prepare("open-i", raw, tmp_path / "out")
    assert found.splits() == {"test": 5 if layout == "xml and dicom" else 4}
    meta = found.samples["CXR2_IM-0002-2001"]
    assert meta["sections"]["findings"] == "Large effusion."
    assert meta["view"] == ("PA" if layout == "xml and dicom" else "Frontal")
    assert found.manifest["splits"]["test"]["with_text"] == found.splits()["test"]
    assert ("lateral in about 15 of 100" in found.said) == (layout == "xml and dicom")


def test_the_folder_is_no_more_readable_than_the_raw_data(tmp_path: Path) -> None:
    """All that holds a report lies in it: shards, contact sheets, token caches."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    write_r2gen(raw, REPORTS)
    raw.chmod(0o700)
    prepare("open-i", raw, out)
    assert out.stat().st_mode & 0o777 == 0o700


def test_r2gen_split(tmp_path: Path) -> None:
    write_r2gen(tmp_path / "raw", REPORTS)
    assert prepare("open-i", tmp_path / "raw", tmp_path / "out").splits() == {
        "train": 1,
        "valid": 1,
        "test": 1,
    }
