"""The picture of README.md: held-out films, their reports, the most similar films, films of these reports.

    make demo
    .venv/bin/python -m experiments.figure

Reads what `make demo` left in `demo/`, generates a film for each report and writes `docs/demo.png`: the first
cases of the held-out split, not the best ones.
"""

from __future__ import annotations

import io
import json
import os
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
EDGE, GAP, LETTER, TEXT = 168, 8, 15, 240
"""Pixels: a film's edge, the white strip between panels, the height of letters, the width of the report."""
HEADS = ("film", "report written", "most similar film", "generated for this report")


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


def sheet(rows: Sequence[tuple[Image.Image, str, Image.Image, Image.Image]]) -> Image.Image:
    """One row for each case under the heads: film, report, similar film, generated film."""
    font = ImageFont.load_default(LETTER)
    lefts = [0, EDGE + GAP, EDGE + TEXT + 2 * GAP, 2 * EDGE + TEXT + 3 * GAP]
    top = 2 * LETTER
    picture = Image.new("L", (lefts[3] + EDGE, top + len(rows) * (EDGE + GAP) - GAP), 255)
    draw = ImageDraw.Draw(picture)
    for left, head in zip(lefts, HEADS, strict=True):
        draw.text((left, LETTER // 3), head, fill=0, font=font)
    for number, (film, report, similar, generated) in enumerate(rows):
        y = top + number * (EDGE + GAP)
        for left, panel in ((lefts[0], film), (lefts[2], similar), (lefts[3], generated)):
            picture.paste(panel.convert("L").resize((EDGE, EDGE), Image.Resampling.BICUBIC), (left, y))
        draw.multiline_text((lefts[1], y), textwrap.fill(report, 30), fill=0, font=font, spacing=6)
    return picture


@click.command()
@click.option("--demo", type=click.Path(path_type=Path), default=ROOT / "demo", help="Folder of `make demo`.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "demo.png", help="The PNG to write."
)
@click.option("--cases", type=click.IntRange(min=1), default=3, show_default=True, help="Cases to show.")
def main(demo: Path, out: Path, cases: int) -> None:
    """Compose the picture of README.md."""
    os.environ |= {"MU_DATA": str(demo / "data"), "MU_RUNS": str(demo / "runs")}
    import medunifier  # PyTorch, which `--help` does without

    reports = lines_of(demo / "runs/demo/results/reports-phantom-test.jsonl")
    texts = [report["hypothesis"] for report in reports[:cases]]
    with h5py.File(demo / "runs/demo/cache/embeddings-phantom-test.h5") as file:
        image_nQE = file["image"][:]
    keys = [report["key"] for report in reports]
    similar = [keys[most_similar(image_nQE, row)] for row in range(cases)]
    shard = demo / "data/shards/phantom/test-000000.tar"
    generated = medunifier.load("prior-demo").generate(texts, guidance=2)
    films = (radiographs(shard, keys[:cases]), texts, radiographs(shard, similar), generated)
    sheet(list(zip(*films, strict=True))).save(out, optimize=True)


if __name__ == "__main__":
    main()
