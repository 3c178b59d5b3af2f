"""`mu prepare webdataset` on shards that other tools wrote: names, endings and texts of any kind."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.miniatures import tables
from tests.miniatures.pictures import pattern
from tests.miniatures.prepared import Prepared, prepare, refusal


def picture(n: int, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pattern(n * 3, tables.EDGE)).save(out, form)
    return out.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def samples(form: str, numbers: range) -> dict[str, bytes]:
    """The members of one shard, as a tool writes them."""
    members: dict[str, bytes] = {}
    for n in numbers:
        key, text = f"{n:09d}", f"Film {n}.".encode()
        if form == "img2dataset":
            meta = {"key": key, "caption": f"Film {n}.", "status": "success", "sha256": "x", "width": 32}
            members |= {f"{key}.jpg": picture(n, "JPEG"), f"{key}.txt": text}
            members[f"{key}.json"] = json.dumps(meta).encode()
        elif form == "json alone":
            meta = {"caption": f"Film {n}.", "patient_id": n // 2}
            members |= {f"{key}.webp": picture(n, "WEBP"), f"{key}.json": json.dumps(meta).encode()}
        elif form == "dots, capitals, macOS":
            key = f"folder/1.2.840.{n}"
            members |= {f"folder/._1.2.840.{n}.PNG": b"\x00\x05", f"{key}.PNG": picture(n)}
            members[f"{key}.CAPTION"] = text
        else:
            members |= {f"{key}.jpeg": picture(n, "JPEG"), f"{key}.cls": str(n % 2).encode()}
    return members


def check(found: Prepared, text: bool = True) -> None:
    assert len(found.samples) == 8
    for key, meta in found.samples.items():
        n = tables.number_in(found.pictures[key])
        assert meta["sections"] == ({"caption": f"Film {n}."} if text else {})


@pytest.mark.parametrize("form", ["img2dataset", "json alone", "dots, capitals, macOS", "classes"])
def test_each_image_keeps_its_text(tmp_path: Path, form: str) -> None:
    for number, numbers in enumerate((range(1, 6), range(6, 9))):
        write_tar(tmp_path / "raw" / f"{number:05d}.tar", samples(form, numbers))
    found = prepare("webdataset", tmp_path / "raw" / "{00000..00001}.tar", tmp_path / "out")
    check(found, text=form != "classes")
    if form == "classes":
        assert found.manifest["classes"] == ["0", "1"]
        for key, meta in found.samples.items():
            odd = tables.number_in(found.pictures[key]) % 2
            assert meta["labels"] == {"0": float(not odd), "1": float(odd)}
    if form == "json alone":
        subjects = {tables.number_in(found.pictures[k]): meta["subject"] for k, meta in found.samples.items()}
        assert subjects == {n: str(n // 2) for n in tables.NUMBERS}
    check(prepare("webdataset", tmp_path / "raw", tmp_path / "folder"), text=form != "classes")


def test_splits_are_those_of_the_names(tmp_path: Path) -> None:
    write_tar(tmp_path / "raw" / "cxr-train-000.tar", samples("img2dataset", range(1, 6)))
    write_tar(tmp_path / "raw" / "val" / "000.tar", samples("img2dataset", range(6, 9)))
    assert prepare("webdataset", tmp_path / "raw", tmp_path / "out").splits() == {"train": 5, "valid": 3}
    one = prepare("webdataset", tmp_path / "raw", tmp_path / "one", "split=test")
    assert one.splits() == {"test": 8}


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ({"1.png": picture(1), "1.json": b"[1]"}, "expected object"),
        ({"1.png": picture(1), "1.json": b"{"}, "no JSON"),
        ({"1.png": picture(1), "1.cls": b"SECRET words, as of a report."}, "no class"),
    ],
)  # fmt: skip
def test_a_bad_sample_is_one_line(tmp_path: Path, members: dict[str, bytes], what: str) -> None:
    write_tar(tmp_path / "raw" / "0.tar", members)
    line = refusal("webdataset", tmp_path / "raw", tmp_path / "out")
    assert "0.tar" in line
    assert what in line
    assert "SECRET" not in line


def test_shards_that_are_not_there_or_damaged(tmp_path: Path) -> None:
    assert "no such shard" in refusal("webdataset", tmp_path / "{0..2}.tar", tmp_path / "out")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "a.txt").touch()
    assert "no .tar" in refusal("webdataset", tmp_path / "raw", tmp_path / "out")
    (tmp_path / "raw" / "0.tar").write_bytes(b"x" * 2000)
    assert "damaged" in refusal("webdataset", tmp_path / "raw", tmp_path / "out")
