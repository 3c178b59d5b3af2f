"""A resumable folder of synthetic images.

    000000.png ...     8-bit grey
    samples.jsonl      one line per image: image, sample, seed, prompt, class, hash of its codes, settings
    samples.csv        `prompt`, `img_savename`: what CheXGenBench reads; `image`, `class`, `origin`: what
                       `mu prepare table` reads, to train on
    contact.png        the first images, each with its prompt or class
    figure.png         with `--figure`: real, reconstructed and synthetic images (`figure.json`: which)
    settings.json      what all images have in common; a later call must agree with it to resume

An image gets its name only when it is complete, and its line is written after it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.errors import DataError
from medunifier_cli.files import append_line, write_text
from medunifier_cli.page.pictures import Captioned, save_png, save_sheet
from medunifier_cli.parsing import Count, checked, read_json
from medunifier_cli.run.lines import whole_lines
from medunifier_cli.temporary import is_temporary, sweep

SETTINGS, LINES, TABLE, SHEET = "settings.json", "samples.jsonl", "samples.csv", "contact.png"
FIGURE, FIGURE_FACTS = "figure.png", "figure.json"
COLUMNS = ("prompt", "img_savename", "image", "class", "origin")
"""Of the table."""
SHEET_COLUMNS, SHEET_ROWS = 6, 8
MOST_PIXELS = 4096 * 4096
"""Of an image of the folder."""
MOST_BYTES = 2 * MOST_PIXELS
"""Of its file: more than what does not compress at all."""


class SampleLine(TypedDict):
    """What every line of `samples.jsonl` has."""

    image: str
    """Name of the file in the folder."""
    sample: Count


_ForPrompt = TypedDict("_ForPrompt", {"prompt": str, "class": str}, total=False)


class RequestedLine(SampleLine, _ForPrompt):
    """A line with what was requested; reconstructions have neither."""


class SampleFolder:
    """A folder of images with the same settings, new or begun by an earlier call.

    Args:
        settings: what all images have in common; fits JSON.
        texts_of: the file of the prompts, which may be reports; see `files.atomic_write`.
        origin: what made the images, see `origin_of`.

    Attributes:
        done: the lines of all images that are there, by sample number.

    Raises:
        DataError: it cannot be written, holds other files, or images of other settings.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], texts_of: Path | None = None, origin: str = ""
    ) -> None:
        self.folder, self.texts_of, self.origin = folder, texts_of, origin
        self.done: dict[int, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            sweep(folder)
            self.done = images_there(folder, settings)
            if not (folder / SETTINGS).exists():
                write_text(folder / SETTINGS, json.dumps(settings, indent=1, sort_keys=True) + "\n")
            # a last line that a kill tore is cut off
            self._rewrite()
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror or error})") from error

    def add(self, sample: int, name: str, image_HW: NDArray[np.uint8], line: Mapping[str, Any]) -> None:
        """Write one image, then its line."""
        save_png(Image.fromarray(image_HW), self.folder / name)
        self.done[sample] = {"image": name, "sample": sample, **line}
        append_line(self.folder / LINES, json.dumps(self.done[sample], sort_keys=True))

    def finish(self) -> None:
        """Sort the lines, and write the table and the contact sheet."""
        self._rewrite()
        table = io.StringIO()
        writer = csv.writer(table, lineterminator="\n")
        writer.writerow(COLUMNS)
        lines = [self.done[sample] for sample in sorted(self.done)]
        writer.writerows(
            [line.get("prompt", ""), line["image"], line["image"], line.get("class", ""), self.origin]
            for line in lines
        )
        write_text(self.folder / TABLE, table.getvalue(), texts_of=self.texts_of)
        shown = [
            Captioned(read_grey(self.folder / line["image"]), caption_of(line))
            for line in lines[: SHEET_COLUMNS * SHEET_ROWS]
        ]
        if shown:
            save_sheet(in_rows(shown), self.folder / SHEET, self.texts_of)

    def _rewrite(self) -> None:
        lines = (self.done[sample] for sample in sorted(self.done))
        text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines)
        write_text(self.folder / LINES, text, texts_of=self.texts_of)


def images_there(folder: Path, settings: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The lines of the images that a folder already has, by sample number; nothing is written.

    Images that somebody deleted do not count, and are made again.

    Args:
        folder: need not exist.
        settings: of the images that are to be added.

    Raises:
        DataError: it holds other files, or images of other settings.
    """
    if not folder.exists():
        return {}
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder")
    # what another process writes, or was writing when it was killed, is no other file
    names = [path.name for path in folder.iterdir() if not is_temporary(path.name)]
    if names and SETTINGS not in names:
        raise DataError(f"{folder}: holds other files ({sorted(names)[0]}, ...); name an empty or new folder")
    if names:
        _check_same(folder, settings)
    lines = [line for line in read_samples(folder) if (folder / line["image"]).is_file()]
    return {line["sample"]: line for line in lines}


def _check_same(folder: Path, settings: Mapping[str, Any]) -> None:
    saved = read_settings(folder)
    now = json.loads(json.dumps(settings))  # as JSON gives it back: tuples are lists there
    changed = [key for key in sorted({*saved, *now}) if saved.get(key) != now.get(key)]
    if changed:
        what = ", ".join(f"{key} was {saved.get(key)}, now {now.get(key)}" for key in changed[:3])
        raise DataError(f"{folder}: holds images of other settings ({what}); name another folder")


def caption_of(line: Mapping[str, Any]) -> str:
    """What a sheet says under an image: its prompt, else its class, else its file."""
    return str(line.get("prompt") or line.get("class") or line["image"])


def captioned_pairs(
    pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], psnr_n: Sequence[float]
) -> list[list[Captioned]]:
    """Rows of a sheet: each image, and beside it its reconstruction.

    Args:
        pairs: grey levels [S, S] of image and reconstruction.
        psnr_n: of the pairs, in dB.
    """
    tiles = [
        tile
        for (image, back), psnr in zip(pairs, psnr_n, strict=False)
        for tile in (
            Captioned(image / 255.0, "input"), Captioned(back / 255.0, f"reconstruction, {psnr:.1f} dB"),
        )
    ]  # fmt: skip
    return in_rows(tiles)


def in_rows(tiles: Sequence[Captioned]) -> list[list[Captioned]]:
    """Tiles of a sheet in rows of `SHEET_COLUMNS`."""
    return [list(tiles[start : start + SHEET_COLUMNS]) for start in range(0, len(tiles), SHEET_COLUMNS)]


def origin_of(run: str, identity: str) -> str:
    """What `samples.csv` says of where its images come from: `synthetic:<run>@<hash>`.

    `mu prepare` puts images of such an origin into no split but `train`.

    Args:
        run: name of the run whose model made them.
        identity: hash of its checkpoint.
    """
    return f"synthetic:{run}@{identity}"


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder of samples in order; empty for a plain folder of images.

    Raises:
        DataError: a line without `image` and `sample`, or whose image is not in the folder.
    """
    lines = whole_lines(folder / LINES, dict[str, Any])
    advice = "it was not written by mu; name another folder"
    for line in lines:
        checked(line, RequestedLine, f"{folder / LINES}", DataError, advice)
        if Path(line["image"]).name != line["image"]:
            raise DataError(f"{folder / LINES}: names an image outside of the folder; {advice}")
    return sorted(lines, key=lambda line: line["sample"])


def read_settings(folder: Path) -> dict[str, Any]:
    """What all images of a folder have in common, as it was written.

    Raises:
        DataError: the file is damaged.
    """
    advice = "delete the folder and synthesize again, or name another"
    return read_json(folder / SETTINGS, dict[str, Any], DataError, advice)


def read_grey(path: Path) -> NDArray[np.float64]:
    """An image of the folder, [S, S] in [0, 1].

    Raises:
        DataError: it is damaged, or larger than any that is synthesized.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError("too large")
        # from memory: a damaged length makes Pillow ask a file for that many bytes at once
        with Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise ValueError("too large")
            return np.asarray(image.convert("L"), np.float64) / 255.0
    except Exception as error:  # decoders raise all kinds of errors on damaged files
        raise DataError(f"{path}: damaged; delete it, and the same command makes it again") from error
