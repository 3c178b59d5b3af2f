"""Decoding records in worker processes: record in, file contents or a reject out, in the same order."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from PIL import Image

from medunifier_cli.data.bad_image import BadImage
from medunifier_cli.data.contract import Record
from medunifier_cli.data.image import GreyImage, bytes_of, image_from
from medunifier_cli.data.prepare_walk import plain
from medunifier_cli.errors import DataError, MuError

FORMATS = ("png", "jpg")
JPG_QUALITY = 95
PNG = {"compress_level": 1, "compress_type": 3}
"""zlib's run-length strategy: on radiographs a third of the time of level 6 and 4 % smaller (measured)."""
TASK = 8
"""Records per message to a worker."""
AHEAD = 4
"""Messages per worker that may lie unread: bounds memory."""
WATCH = 1.0
"""Seconds between a worker's looks at whether its parent lives."""

T = TypeVar("T")


@dataclass(frozen=True)
class Rendered:
    """One sample as it goes into the tar."""

    key: str
    image: bytes
    json: bytes
    subject: str
    labels: dict[str, float | None]


@dataclass(frozen=True)
class Reject:
    """An image that cannot be used."""

    key: str
    source: str
    reason: str
    detail: str
    bytes: int | None
    """Size of the file; another size at the next start means that it was replaced, and is tried again."""


def render(record: Record, size: int, form: str) -> Rendered | Reject:
    """Decode and resize one record.

    Args:
        size: edge in pixels.
        form: `png` or `jpg`.

    Raises:
        DataError: something the user has to change first, such as a missing DICOM decoder.
    """
    try:
        image = image_from(record.image, size)
    except BadImage as error:
        return Reject(record.key, record.source, error.reason, error.detail, bytes_of(record.image))
    except DataError as error:
        raise DataError(f"{record.source}: {error}") from error
    return Rendered(
        key=record.key,
        image=encode(image, form),
        json=json.dumps(meta_of(record, image), ensure_ascii=False, default=plain).encode(errors="replace"),
        subject=record.subject,
        labels=dict(record.labels),
    )


def encode(image: GreyImage, form: str) -> bytes:
    """The image file of a shard."""
    file = io.BytesIO()
    if form == "png":
        Image.fromarray(image.pixels).save(file, "PNG", **PNG)
    else:
        Image.fromarray(image.pixels).save(file, "JPEG", quality=JPG_QUALITY)
    return file.getvalue()


def meta_of(record: Record, image: GreyImage) -> dict[str, object]:
    """What `<key>.json` holds: raw sections, all labels (blank is null), where the image came from."""
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
        "original_height": image.height,
        "original_width": image.width,
        "bit_depth": image.bit_depth,
        "inverted": image.inverted,
    }


def render_all(
    tasks: Iterable[tuple[T, list[Record]]], size: int, form: str, workers: int
) -> Generator[tuple[T, list[Rendered | Reject]], None, None]:
    """Render the records of each task; the answers come in the order of the tasks.

    Args:
        tasks: (anything, records); read only as far ahead as the workers need.
        workers: processes; 0 and 1 decode in this one.

    Raises:
        MuError: a worker died.
    """
    work = partial(_render_task, size=size, form=form)
    if workers <= 1:
        for what, records in tasks:
            yield what, work(records)
        return
    waiting: deque[tuple[T, Future[list[Rendered | Reject]]]] = deque()
    pool = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(os.getpid(),))
    try:
        for what, records in tasks:
            waiting.append((what, pool.submit(work, records)))
            if len(waiting) > workers * AHEAD:
                yield _answer(waiting)
        while waiting:
            yield _answer(waiting)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _answer(waiting: deque[tuple[T, Future[list[Rendered | Reject]]]]) -> tuple[T, list[Rendered | Reject]]:
    what, future = waiting.popleft()
    try:
        return what, future.result()
    except BrokenProcessPool as error:
        raise MuError(
            "a decoding process died, often for want of memory; "
            "run the same command again, it goes on at the last whole shard, with fewer --workers"
        ) from error


def _render_task(records: list[Record], size: int, form: str) -> list[Rendered | Reject]:
    return [render(record, size, form) for record in records]


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent answers Ctrl-C
    threading.Thread(target=_end_with, args=(parent, os._exit), daemon=True).start()


def _end_with(parent: int, end: Callable[[int], object]) -> None:
    # A pool's workers wait for ever on a pipe they hold open themselves: a parent that was killed would
    # leave them behind.
    while os.getppid() == parent:
        time.sleep(WATCH)
    end(1)
