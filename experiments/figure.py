"""The picture of README.md: held-out phantom radiographs, their reconstructions, and synthetic images.

    make demo
    .venv/bin/python experiments/figure.py

Reads what `make demo` left in `demo/`, writes `docs/demo.png` and prints the table of captions that stands
under it in README.md: the first cases of the held-out split and the first synthetic images, not the best
ones.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from PIL import Image

ROOT = Path(__file__).parents[1]
EDGE, GAP = 144, 6
"""Pixels of a panel's edge, and of the white strip between two panels."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def radiographs(shard: Path, keys: Sequence[str]) -> list[Image.Image]:
    """The images of some samples of a shard."""
    with tarfile.open(shard) as archive:
        files = [archive.extractfile(f"{key}.png") for key in keys]
        return [Image.open(io.BytesIO(file.read())) for file in files if file is not None]


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Rows of grey images as one, each enlarged to the same edge."""
    columns = max(len(row) for row in rows)
    step = EDGE + GAP
    sheet = Image.new("L", (columns * step - GAP, len(rows) * step - GAP), 255)
    for y, row in enumerate(rows):
        for x, image in enumerate(row):
            panel = image.convert("L").resize((EDGE, EDGE), Image.Resampling.BICUBIC)
            sheet.paste(panel, (x * step, y * step))
    return sheet


def captions(reports: Sequence[dict[str, Any]], samples: Sequence[dict[str, Any]]) -> str:
    """Reference, generated report and prompt of each column, as a Markdown table."""
    lines = ["| column | phantom's own report | generated report | prompt of the synthetic image |"]
    lines.append("|---" * 4 + "|")
    for number, (report, sample) in enumerate(zip(reports, samples, strict=True), 1):
        lines.append(f"| {number} | {report['reference']} | {report['hypothesis']} | {sample['prompt']} |")
    return "\n".join(lines)


@click.command()
@click.option("--demo", type=click.Path(path_type=Path), default=ROOT / "demo", help="Folder of `make demo`.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=ROOT / "docs" / "demo.png", help="The PNG to write."
)
@click.option("--columns", type=click.IntRange(min=1), default=5, show_default=True, help="Cases to show.")
def main(demo: Path, out: Path, columns: int) -> None:
    """Compose the picture of README.md and print its captions."""
    reports = lines_of(demo / "runs/demo/results/reports-phantom-test.jsonl")[:columns]
    samples = lines_of(demo / "samples/samples.jsonl")[:columns]
    keys = [report["key"] for report in reports]
    reconstructed = {line["key"]: line["image"] for line in lines_of(demo / "reconstructed/samples.jsonl")}
    rows = [
        radiographs(demo / "data/shards/phantom/test-000000.tar", keys),
        [Image.open(demo / "reconstructed" / reconstructed[key]) for key in keys],
        [Image.open(demo / "samples" / sample["image"]) for sample in samples],
    ]
    grid(rows).save(out, optimize=True)
    click.echo(captions(reports, samples))


if __name__ == "__main__":
    main()
