"""Decoding pictures of every kind, against Pillow's plain full decode and by hand."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medunifier_cli.data.contract import DrawnImage, FileImage, ZipImage
from medunifier_cli.data.images.image import GreyImage, image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError

RAMP = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8)


def save(path: Path, image: Image.Image, form: str, **kwargs: object) -> Path:
    image.save(path, form, **kwargs)
    return path


def decode(path: Path, size: int = 32) -> GreyImage:
    return image_from(FileImage(path), size)


def plain(grey: np.ndarray, size: int = 32) -> np.ndarray:
    """The paper's transform: squashed, bilinear."""
    return np.array(Image.fromarray(grey).resize((size, size), Image.Resampling.BILINEAR)).astype(int)


def test_content_decides_and_not_the_name(tmp_path: Path) -> None:
    png = decode(save(tmp_path / "a.jpg", Image.fromarray(RAMP), "PNG"))
    assert (png.pixels == plain(RAMP)).all()
    assert (png.height, png.width, png.bit_depth, png.inverted) == (90, 120, 8, False)
    jpg = decode(save(tmp_path / "a.png", Image.fromarray(RAMP), "JPEG", quality=95))
    assert np.abs(jpg.pixels.astype(int) - plain(RAMP)).mean() < 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "CMYK", "1"])
def test_every_mode_becomes_grey(tmp_path: Path, mode: str) -> None:
    grey = np.where(RAMP > 100, 255, 0).astype(np.uint8) if mode == "1" else RAMP
    form = "TIFF" if mode == "CMYK" else "PNG"
    image = (
        Image.fromarray(grey)
        .convert("RGB" if mode in ("P", "CMYK") else "L")
        .convert(mode.replace("PA", "P"))
    )
    found = decode(save(tmp_path / "x", image, form))
    palette_error = 5 if mode == "P" else 0
    assert np.abs(found.pixels.astype(int) - plain(grey)).max() <= 2 + palette_error
    assert found.bit_depth == (1 if mode == "1" else 8)


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    rgba = np.tile(np.arange(100, 200, 5, dtype=np.uint8)[:, None, None], (1, 20, 4))
    rgba[:, :10, 3], rgba[:, 10:, 3] = 255, 0
    found = decode(save(tmp_path / "x", Image.fromarray(rgba), "PNG"), 20).pixels
    assert (found[:, :9] == rgba[:, :9, 0]).all()
    assert (found[:, 11:] == 0).all()


@pytest.mark.parametrize("top", [4095, 65535])
def test_16_bits_are_stretched_to_the_levels_in_use(tmp_path: Path, top: int) -> None:
    """12-bit data in a 16-bit file must not come out nearly black."""
    deep = np.linspace(0, top, 64 * 64).reshape(64, 64).astype(np.uint16)
    found = decode(save(tmp_path / "x", Image.fromarray(deep), "PNG"), 64)
    expected = deep.astype(float) / top * 255
    assert np.abs(found.pixels - expected).max() < 3
    assert found.bit_depth == 16


def test_one_bright_mark_does_not_darken_16_bits(tmp_path: Path) -> None:
    deep = np.linspace(0, 1000, 64 * 64).reshape(64, 64).astype(np.uint16)
    deep[0, :3] = 65535
    found = decode(save(tmp_path / "x", Image.fromarray(deep), "PNG"), 64)
    assert 120 < found.pixels[32].mean() < 135


def test_floats_and_32_bits(tmp_path: Path) -> None:
    values = np.linspace(-1, 1, 64 * 64).reshape(64, 64).astype(np.float32)
    for image in (Image.fromarray(values), Image.fromarray((values * 1e6).astype(np.int32))):
        found = decode(save(tmp_path / "x", image, "TIFF"), 64)
        assert np.abs(found.pixels - (values + 1) * 127.5).max() < 3
        assert found.bit_depth == 32


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    half = np.zeros((64, 32), np.uint8)
    half[:32] = 255  # white on top; orientation 6 shows the top at the right
    for form in ("JPEG", "PNG"):
        found = decode(save(tmp_path / "x", Image.fromarray(half), form, exif=exif))
        assert found.pixels[:, 17:].mean() > 250
        assert found.pixels[:, :15].mean() < 5
        assert (found.height, found.width) == (32, 64)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("keep", [0.95, 0.5])
def test_truncated_files_are_found(tmp_path: Path, form: str, keep: float) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8)
    path = save(tmp_path / "x", Image.fromarray(noise), form)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])
    with pytest.raises(BadImage) as caught:
        decode(path)
    assert caught.value.reason == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_filled_up_with_zeros_is_truncated(tmp_path: Path, progressive: bool) -> None:
    """What an interrupted download into a file of full length leaves; the decoder does not complain."""
    noise = np.random.default_rng(0).integers(0, 255, (300, 300)).astype(np.uint8)
    path = save(tmp_path / "x", Image.fromarray(noise), "JPEG", progressive=progressive)
    body = path.read_bytes()
    path.write_bytes(body[: len(body) // 2] + bytes(len(body) - len(body) // 2))
    with pytest.raises(BadImage) as caught:
        decode(path)
    assert caught.value.reason == "truncated"


def test_trailing_bytes_after_a_whole_jpeg_do_no_harm(tmp_path: Path) -> None:
    path = save(tmp_path / "x", Image.fromarray(RAMP), "JPEG")
    path.write_bytes(path.read_bytes() + bytes(100))
    assert decode(path).width == 120


@pytest.mark.parametrize(
    ("body", "reason"),
    [(b"", "truncated"), (b"<html>not found</html>" * 20, "undecodable"), (b"\x89PNG\r\n\x1a\n", "truncated"),
     (b"\x08\x00\x05\x00\x04\x00\x00\x00junk", "undecodable")],
)  # fmt: skip
def test_what_is_no_image(tmp_path: Path, body: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(body)
    with pytest.raises(BadImage) as caught:
        decode(tmp_path / "x.jpg")
    assert caught.value.reason == reason
    assert "0x" not in caught.value.detail  # an address would make rejects.jsonl differ from run to run


def test_missing_files(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.png", "")
    sources = [FileImage(tmp_path / "none.png"), ZipImage(tmp_path / "a.zip", "none.png"),
               ZipImage(tmp_path / "none.zip", "b.png")]  # fmt: skip
    for source in sources:
        with pytest.raises(BadImage) as caught:
            image_from(source, 8)
        assert caught.value.reason == "missing"


def test_a_decompression_bomb_is_a_reject(tmp_path: Path) -> None:
    path = save(tmp_path / "x.png", Image.new("1", (20_000, 20_000)), "PNG")
    with pytest.raises(BadImage, match="undecodable"):
        decode(path)


def test_a_large_image_gives_no_warning(tmp_path: Path) -> None:
    large = Image.new("1", (10_000, 9_500))
    large.paste(1, (0, 0, 5_000, 9_500))  # one that is blank would be refused for this
    path = save(tmp_path / "x.png", large, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(path).width == 10_000


def test_scaling_while_decoding_stays_close_to_the_full_decode(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (40, 32)).astype(np.uint8))
    large = np.array(coarse.resize((1272, 1528), Image.Resampling.BICUBIC)).astype(float)
    large = (large + rng.normal(0, 4, large.shape)).clip(0, 255).astype(np.uint8)
    path = save(tmp_path / "x.jpg", Image.fromarray(large), "JPEG", quality=92)
    full = np.array(Image.open(path).convert("L").resize((224, 224), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(decode(path, 224).pixels.astype(int) - full).mean() < 1.5


def test_zip_members_read_like_files(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "PNG")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("deep/b.png", buffer.getvalue())
    assert (image_from(ZipImage(tmp_path / "a.zip", "deep/b.png"), 32).pixels == plain(RAMP)).all()


def test_drawn_images_are_checked() -> None:
    assert image_from(DrawnImage(lambda size: np.full((size, size), 7, np.uint8)), 9).pixels.sum() == 7 * 81
    with pytest.raises(DataError, match=r"not uint8 \(9, 9\)"):
        image_from(DrawnImage(lambda size: np.zeros((size, size))), 9)  # type: ignore[arg-type, return-value]
