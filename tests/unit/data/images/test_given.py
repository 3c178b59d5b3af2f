"""Images that a program hands over become what a file with the same pixels becomes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.given import levels_of
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.user_images import given_images

SIZE = 24
GREY = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def of_file(image: Image.Image, folder: Path, **options: Any) -> np.ndarray:  # type: ignore[type-arg]
    image.save(folder / "one.png", **options)
    return image_from(FileImage(folder / "one.png"), SIZE).pixels


SAME = {
    "picture": Image.fromarray(GREY),
    "array": GREY,
    "one channel": GREY[:, :, None],
    "three equal channels": np.stack([GREY] * 3, axis=2),
    "floats": GREY / 255,
    "floats of 32 bits": (GREY / 255).astype(np.float32),
    "columns first": np.asfortranarray(GREY),
    "tensor": torch.from_numpy(GREY),
    "tensor of one channel": torch.from_numpy(GREY)[None],
    "tensor of three channels": torch.from_numpy(GREY)[None].repeat(3, 1, 1),
    "tensor of floats": torch.from_numpy(GREY / 255).float()[None],
}


@pytest.mark.parametrize("given", SAME.values(), ids=SAME.keys())
def test_grey_levels_are_those_of_the_file(given: Any, tmp_path: Path) -> None:
    assert np.array_equal(levels_of(given, SIZE), of_file(Image.fromarray(GREY), tmp_path))


@pytest.mark.parametrize(
    "given", [Image.fromarray(COLOUR), COLOUR, torch.from_numpy(COLOUR).permute(2, 0, 1)],
    ids=["picture", "array", "tensor"],
)  # fmt: skip
def test_colours_are_those_of_the_file(given: Any, tmp_path: Path) -> None:
    assert np.array_equal(levels_of(given, SIZE), of_file(Image.fromarray(COLOUR), tmp_path))


def test_more_than_8_bits_are_rescaled_as_in_a_file(tmp_path: Path) -> None:
    deep = (GREY.astype(np.uint16) + 700) * 9
    expected = of_file(Image.fromarray(deep), tmp_path)
    for given in (deep, deep.astype(np.int32), deep.astype(np.float64), torch.from_numpy(deep.astype(int))):
        assert np.array_equal(levels_of(given, SIZE), expected)


def test_an_orientation_is_obeyed_and_the_programs_image_stays(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    expected = of_file(Image.fromarray(GREY), tmp_path, exif=exif)
    image = Image.open(tmp_path / "one.png")
    assert np.array_equal(levels_of(image, SIZE), expected)
    assert np.array_equal(np.asarray(image), GREY)
    assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (np.zeros((5, 4)), "blank"),
        (np.full((5, 4), np.nan), "no finite value"),
        (np.zeros((5, 4, 2)), r"shape \(5, 4, 2\)"),
        (np.zeros((3, 40, 30)), r"shape \(3, 40, 30\)"),
        (np.zeros((0, 4)), "shape"),
        (np.zeros((5, 4), dtype=complex), "complex128"),
        (torch.zeros(5, 4, 30), r"tensor of shape \(5, 4, 30\)"),
        (torch.ones(1, 5, 4, dtype=torch.bfloat16), "blank"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_refused_with_the_reason(given: Any, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        levels_of(given, SIZE)


def test_a_torn_picture_that_was_opened_is_refused() -> None:
    body = io.BytesIO()
    Image.fromarray(GREY).save(body, "PNG")
    with pytest.raises(BadImage, match="undecodable"):
        levels_of(Image.open(io.BytesIO(body.getvalue()[:300])), SIZE)


def test_several_images_keep_their_order_and_their_names(tmp_path: Path) -> None:
    of_file(Image.fromarray(COLOUR), tmp_path)
    path = tmp_path / "one.png"
    found = given_images([str(path), path, GREY], SIZE)
    assert found.names == [str(path), str(path), "images[2]"]
    assert found.keys == ["one.png", "one.png", "images[2]"]
    assert found.image_B1HW.shape == (3, 1, SIZE, SIZE)
    for batch in (np.stack([COLOUR, COLOUR]), torch.from_numpy(np.stack([GREY, GREY]))[:, None]):
        assert given_images(batch, SIZE).names == ["images[0]", "images[1]"]
    assert given_images((one for one in [GREY, COLOUR]), SIZE).image_B1HW.shape[0] == 2


@pytest.mark.parametrize("given", [None, 3, b"film.png", {"film.png": 1}, [], ["film.png", 3]])
def test_what_is_not_even_a_path_is_one_line(given: Any) -> None:
    with pytest.raises(MuError) as caught:
        given_images(given, SIZE)
    assert "image" in str(caught.value)


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, reason in (("gone.dcm", "missing"), ("torn.png", "truncated")):
        with pytest.raises(DataError, match=rf"{name}: no image that can be read \({reason}") as caught:
            given_images([GREY, tmp_path / name], SIZE)
        assert "\n" not in str(caught.value)
