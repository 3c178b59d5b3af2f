"""Readers of images: PNG, JPEG, TIFF and DICOM, as `mu report FILES` reads them."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path

from tests.campaign.targets.target import Target


def make(folder: Path, home: Path) -> None:
    import numpy as np
    from PIL import Image

    from tests.miniatures.pictures import pattern, write_dicom

    for name in ("a.png", "a.jpg", "a.tif", "a.bmp"):
        Image.fromarray(pattern(3)).save(folder / name)
    Image.fromarray(pattern(3).astype(np.uint16) * 250).save(folder / "deep.png")
    Image.fromarray(np.stack([pattern(3)] * 3, -1)).save(folder / "colour.png")
    write_dicom(folder / "a.dcm", 3)
    write_dicom(folder / "b.dcm", 3, inverted=True)
    (folder / "a.dcm.gz").write_bytes(gzip.compress((folder / "a.dcm").read_bytes()))


def read(folder: Path, path: Path) -> None:
    from medunifier_cli.data.contract import FileImage
    from medunifier_cli.data.images.image import image_from
    from medunifier_cli.data.images.levels import BadImage

    with contextlib.suppress(BadImage):  # `mu` counts it and says why
        image_from(FileImage(path), 32)


TARGETS = [Target("images and DICOM", 40, ("*",), make, read)]
