"""The picture of README.md: films, the reports written, the most similar films, and generated ones.

    make demo
    .venv/bin/python -m experiments.figure

Reads what `make demo` left in `demo/` and writes `docs/demo.png`: the first cases of the held-out split and
the first generated films, not the best ones.
"""

from __future__ import annotations

import io
import json
import tarfile
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
EDGE, GAP, LETTER, TEXT = 160, 10, 14, 190
"""Pixels: a film's edge, the white strip between panels, the height of letters, the width of a text."""
HEADS = ("film", "report written for it", "most similar film", "generated film", "the prompt for it")
LEFTS = (0, EDGE + GAP, EDGE + TEXT + 2 * GAP, 2 * EDGE + TEXT + 3 * GAP, 3 * EDGE + TEXT + 4 * GAP)


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def radiographs(shard: Path, keys: Sequence[str]) -> list[Image.Image]:
    """The images of some samples of a shard."""
    with tarfile.open(shard) as archive:
        files = [archive.extractfile(f"{key}.png") for key in keys]
        return [Image.open(io.BytesIO(file.read())) for file in files if file is not None]


def most_similar(image_nQE: NDArray[np.float32], row: int) -> int:
    """The other image whose queries have the largest mean cosine with those of this one."""
    similarity_n = np.einsum("qe,nqe->n", image_nQE[row], image_nQE)
    similarity_n[row] = -np.inf
    return int(similarity_n.argmax())


def sheet(rows: Sequence[tuple[Image.Image | str, ...]]) -> Image.Image:
    """One row for each case under the heads, of films and texts in the order of `HEADS`."""
    font = ImageFont.load_default(LETTER)
    top = 2 * LETTER
    picture = Image.new("L", (LEFTS[-1] + TEXT, top + len(rows) * (EDGE + GAP) - GAP), 255)
    draw = ImageDraw.Draw(picture)
    for left, head in zip(LEFTS, HEADS, strict=True):
        draw.text((left, LETTER // 3), head, fill=0, font=font)
    for number, row in enumerate(rows):
        y = top + number * (EDGE + GAP)
        for left, panel in zip(LEFTS, row, strict=True):
            if isinstance(panel, str):
                draw.multiline_text((left, y), textwrap.fill(panel, 26), fill=0, font=font, spacing=6)
            else:
                film = panel.convert("L").resize((EDGE, EDGE), Image.Resampling.BICUBIC)
                picture.paste(film, (left, y))
    return picture


@click.command()
@click.option("--demo", type=click.Path(path_type=Path), default=ROOT / "demo", help="Folder of `make demo`.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "demo.png", help="The PNG to write."
)
@click.option("--cases", type=click.IntRange(min=1), default=3, show_default=True, help="Cases to show.")
def main(demo: Path, out: Path, cases: int) -> None:
    """Compose the picture of README.md."""
    reports = lines_of(demo / "runs/demo/results/reports-phantom-test.jsonl")
    samples = lines_of(demo / "samples/samples.jsonl")[:cases]
    with h5py.File(demo / "runs/demo/cache/embeddings-phantom-test.h5") as file:
        image_nQE = file["image"][:]
    keys = [report["key"] for report in reports]
    similar = [keys[most_similar(image_nQE, row)] for row in range(cases)]
    shard = demo / "data/shards/phantom/test-000000.tar"
    columns = (
        radiographs(shard, keys[:cases]),
        [report["hypothesis"] for report in reports[:cases]],
        radiographs(shard, similar),
        [Image.open(demo / "samples" / sample["image"]) for sample in samples],
        [sample["prompt"] for sample in samples],
    )
    sheet(list(zip(*columns, strict=True))).save(out, optimize=True)


if __name__ == "__main__":
    main()
