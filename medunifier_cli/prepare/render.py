"""Decode records in worker processes: a record becomes the files of a sample, or a reject; order is kept."""

from __future__ import annotations

import io
import json
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image

from medunifier_cli.data.contract import Record
from medunifier_cli.data.disk.unpack import META_BYTES
from medunifier_cli.data.images.image import GreyImage, bytes_of, image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.errors import DataError
from medunifier_cli.prepare.dataset_scan import json_value
from medunifier_cli.prepare.pool import ordered_map

JPG_QUALITY = 95
PNG = {"compress_level": 1, "compress_type": 3}
"""zlib's run-length strategy: on radiographs a third of the time of level 6, and 4 % smaller (measured)."""
TASK = 4
"""Records per message to a worker."""

T = TypeVar("T")


@dataclass(frozen=True)
class RenderedSample:
    """One sample as it is written to the tar."""

    key: str
    image: bytes
    """Contents of the image file, PNG or JPEG."""
    json: bytes
    """Contents of the metadata file."""
    subject: str
    labels: dict[str, float | None]
    source: str
    doubt: str = ""
    """Why the levels of the image were rescaled instead of believed; empty for nearly all."""


@dataclass(frozen=True)
class Reject:
    """An image that cannot be used."""

    key: str
    source: str
    reason: str
    detail: str
    bytes: int | None
    """Size of the file. If a restart finds another size, the file was replaced and is tried again."""


def render(record: Record, size: int, form: str) -> RenderedSample | Reject:
    """Decode and resize one record.

    Args:
        size: edge in pixels.
        form: `png` or `jpg`.

    Raises:
        DataError: something the user has to fix first, such as a missing DICOM decoder.
    """
    try:
        image = image_from(record.image, size)
    except BadImage as error:
        return Reject(record.key, record.source, error.reason, error.detail, bytes_of(record.image))
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from error
    # Half a surrogate pair, as some tables hold, has no UTF-8 and becomes a question mark.
    metadata = json.dumps(meta_of(record, image), ensure_ascii=False, default=json_value).encode(
        errors="replace"
    )
    if len(metadata) > META_BYTES:  # no reader of shards would take it
        detail = f"more than {META_BYTES:,} bytes"
        return Reject(record.key, record.source, "metadata too large", detail, bytes_of(record.image))
    return RenderedSample(
        key=record.key,
        image=encode(image, form),
        json=metadata,
        subject=record.subject,
        labels=dict(record.labels),
        source=record.source,
        doubt=image.doubt,
    )


def encode(image: GreyImage, form: str) -> bytes:
    """Contents of the image file, as `form`."""
    file = io.BytesIO()
    if form == "png":
        Image.fromarray(image.pixels).save(file, "PNG", **PNG)
    else:
        Image.fromarray(image.pixels).save(file, "JPEG", quality=JPG_QUALITY)
    return file.getvalue()


def meta_of(record: Record, image: GreyImage) -> dict[str, object]:
    """Contents of `<key>.json`: raw sections, all labels (blank is null), origin of the image."""
    rescaled = {"rescaled": image.doubt} if image.doubt else {}
    return {
        "key": record.key,
        "split": record.split,
        "subject": record.subject,
        "study": record.study,
        "source": record.source,
        "view": record.view,
        "sections": dict(record.sections),
        "text_kind": record.text_kind,
        "labels": dict(record.labels),
        "facts": dict(record.facts),
        **({"origin": record.origin} if record.origin else {}),
        "original_height": image.height,
        "original_width": image.width,
        "bit_depth": image.bit_depth,
        "inverted": image.inverted,
        **rescaled,
    }


def render_all(
    tasks: Iterable[tuple[T, list[Record]]], size: int, form: str, workers: int
) -> Generator[tuple[T, list[RenderedSample | Reject]], None, None]:
    """Render the records of each task; the results come in the order of the tasks.

    Args:
        tasks: (anything, records); read only as far ahead as the workers need.
        workers: number of processes; 0 and 1 decode in this one.

    Raises:
        MuError: a worker died.
    """
    return ordered_map(partial(_render_task, size=size, form=form), tasks, workers)


def _render_task(records: list[Record], size: int, form: str) -> list[RenderedSample | Reject]:
    return [render(record, size, form) for record in records]
