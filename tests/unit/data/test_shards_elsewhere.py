"""Shards that other tools wrote: names, keys, captions and leftovers, against what was put into them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.stored import decode_grey
from medunifier_cli.data.shards import Shards, split_names
from medunifier_cli.data.subset import open_keys
from medunifier_cli.errors import DataError
from tests.hand_made import sample

IMAGE = sample(0)[1]
META = json.dumps(sample(0)[2]).encode()


def write(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    return path.parent


def keys(folder: Path, split: str = "train") -> list[str]:
    shards = Shards.open(folder, split)
    for i in range(len(shards)):
        shards.read(i)
    return [shards.key(i) for i in range(len(shards))]


def test_leftovers_and_notes_are_passed_over(tmp_path: Path) -> None:
    junk = b"\0\5\x16\7 resource fork"
    files = {"./._7.png": junk, "./7.png": IMAGE, "./._7.json": junk, "./7.json": META}
    files |= {".DS_Store": junk, "a/.DS_Store": junk, "__MACOSX/a/7.json": junk, "PaxHeader/7.json": junk}
    files |= {"PaxHeaders.12/7.json": junk, "README": b"x", "README.md": b"x", "docs/LICENSE.txt": b"x"}
    files |= {"checksums.md5": b"x", "a/8.png": IMAGE, "a/8.json": META}
    folder = write(tmp_path / "train-0.tar", files)
    (tmp_path / "._train-0.tar").write_bytes(junk)
    assert keys(folder) == ["./7", "a/8"]
    assert split_names(folder) == ["train"]


def test_keys_with_dots_end_at_the_last_one(tmp_path: Path) -> None:
    names = ["1.2.840.1", "1.2.840.2", "a.b/1.3"]
    folder = write(
        tmp_path / "train-0.tar",
        {f"{key}.{suffix}": body for key in names for suffix, body in (("PNG", IMAGE), ("json", META))},
    )
    assert keys(folder) == names


def test_other_files_of_a_sample_do_not_end_its_key_later(tmp_path: Path) -> None:
    files = {"7.png": IMAGE, "7.mask.png": b"x", "7.json": META, "7.cls": b"1"}
    shards = Shards.open(write(tmp_path / "train-0.tar", files), "train")
    assert [shards.key(i) for i in range(len(shards))] == ["7"]
    assert shards.image(0) == IMAGE


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"7.txt": "\ufeffClear lungs \u2014 né.".encode()}, "Clear lungs \u2014 né."),
        ({"7.txt": b"From the text.", "7.json": b'{"labels": {"A": 1}}'}, "From the text."),
        ({"7.txt": b"", "7.json": b'{"caption": "From the JSON.", "key": "7"}'}, "From the JSON."),
        ({"7.json": b'{"caption": "From the JSON."}'}, "From the JSON."),
    ],
)
def test_captions_are_a_section(tmp_path: Path, extra: dict[str, bytes], said: str) -> None:
    folder = write(tmp_path / "train_00000.tar", {"7.jpg": IMAGE, **extra, "README.txt": b"about"})
    shards = Shards.open(folder, "train")
    assert len(shards) == 1
    assert shards.meta(0)["sections"] == {"caption": said}
    assert shards.label_names == (("A",) if b"labels" in extra.get("7.json", b"") else ())
    assert open_keys(folder, "some", ["7"]).meta(0)["sections"] == {"caption": said}


def test_sections_win_over_captions(tmp_path: Path) -> None:
    folder = write(tmp_path / "train-0.tar", {"7.jpg": IMAGE, "7.txt": b"caption", "7.json": META})
    assert Shards.open(folder, "train").meta(0) == json.loads(META)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"7.dcm": b"x", "7.json": META}, r"sample '7' lacks its image; expected .*found \.dcm, \.json$"),
        ({"7.dcm": b"x", "7.txt": b"x"}, r"holds no sample; expected .*, found 7\.dcm, 7\.txt$"),
        (
            {"7.png": IMAGE, "7.cls": b"1"},
            r"sample '7' lacks its \.json, or a \.txt; expected .*\.png, \.cls$",
        ),
        ({"7.png": IMAGE, "7.txt": b"x", "8.txt": b"x"}, r"sample '8' lacks its image"),
        ({"7.png": IMAGE, "7.json": b"[1]"}, r"7\.json: expected object, got array"),
        (
            {"7.png": IMAGE, "7.json": b'{"sections": "clear"}'},
            r"7\.json: expected object \| null, got str at sections",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, files: dict[str, bytes], said: str) -> None:
    with pytest.raises(DataError, match=r"train-0\.tar: .*" + said):
        Shards.open(write(tmp_path / "train-0.tar", files), "train")


def test_a_caption_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "train-0.tar", {"7.png": IMAGE, "7.txt": "né".encode("latin-1")})
    with pytest.raises(DataError, match=r"train-0\.tar: 7: its \.txt is not UTF-8") as caught:
        Shards.open(folder, "train").meta(0)
    assert "n" + chr(0xE9) not in str(caught.value)


@pytest.mark.parametrize("name", ["00000.tar", "train/00000.tar", "train-00000.tar.gz"])
def test_other_names_are_told_how_shards_are_called(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    words = rf"called <split>-<number>\.tar, as train-000000\.tar, but there are {Path(name).name};"
    with pytest.raises(DataError, match=words):
        Shards.open(tmp_path, "train")


def deep(top: int) -> np.ndarray[Any, Any]:
    return np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.uint16)


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(deep(4095)),
        Image.fromarray(deep(65535)),
        Image.merge("LA", [Image.fromarray((deep(200)).astype(np.uint8))] * 2),
        Image.fromarray(deep(255).astype(np.uint8)).convert("P"),
        Image.fromarray(deep(255).astype(np.uint8)),
    ],
)
@pytest.mark.parametrize("orientation", [1, 6])
def test_images_in_shards_are_decoded_as_raw_ones(
    tmp_path: Path, image: Image.Image, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "x.png", exif=exif)
    found = np.empty((32, 32), np.uint8)
    assert decode_grey((tmp_path / "x.png").read_bytes(), found)
    assert (found == image_from(FileImage(tmp_path / "x.png"), 32).pixels).all()
    assert found.min() < 20
    assert 50 < found.mean() < 165
