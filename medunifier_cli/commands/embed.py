"""`mu embed`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.evaluate.shared.ranks import ENCODED, on_ranks
from medunifier_cli.options.shared import (
    batch_size_option,
    data_option,
    device_option,
    format_option,
    refuse,
    run_option,
)
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import show


def _count(files: tuple[Path, ...], name: str, dataset: str, split: str, **_: Any) -> int:
    from medunifier_cli.evaluate.benchmark import count_samples
    from medunifier_cli.evaluate.reports.writer import files_under

    return len(files_under(files)) if files else count_samples(name, dataset, split)


def _check(files: tuple[Path, ...], split: str, **_: Any) -> None:
    if bool(files) == bool(split):
        raise click.UsageError("embed image files or a split: give FILES or --split")
    if files:
        refuse({"dataset"}, "is for a split, not for files")


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@run_option()
@data_option("Data set of the split; by default the run's own.")
@click.option("--split", default="", help="Split or subset to embed, with its texts.")
@click.option(
    "--out", required=True, type=click.Path(dir_okay=False, path_type=Path),
    help="File to write, .parquet or .npz.",
)  # fmt: skip
@format_option
@device_option
@batch_size_option("64")
@job_options(nodes=True)
@on_ranks(large=ENCODED, count=_count, check=_check)
def embed(
    files: tuple[Path, ...], name: str, dataset: str, split: str, out: Path, batch: int | None,
    sbatch: JobOptions | None,
) -> None:  # fmt: skip
    """Write the joint embeddings of image FILES or of a split, for other programs.

    The similarity of an image to a text is the largest cosine over the image's vectors, which all have
    length 1. The file names the run and its checkpoint: embeddings of another one cannot be compared.
    """
    if sbatch:
        sbatch.show()
        return
    from medunifier_cli.checkpoint.pretrained import pretrained_run, restore
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.films import embedding_file
    from medunifier_cli.evaluate.films.origin import origin_of_run
    from medunifier_cli.evaluate.render import render
    from medunifier_cli.evaluate.reports.writer import files_under
    from medunifier_cli.evaluate.shared.sharing import everywhere

    embedding_file.check_out(out)
    paths = files_under(files)
    trained = everywhere(restore, pretrained_run(name, "embed")).with_batches_of(batch)
    if files:
        blocks = embedding_file.of_image_files(trained, paths)
    else:
        benchmark = open_benchmark(trained, dataset, split, need_text=False)
        blocks = embedding_file.of_split(trained, benchmark)
    origin = origin_of_run(trained)
    count = embedding_file.write_embeddings(blocks, origin, out)
    if form() == "text":
        show(f"{out}: {count:,} embedding{'s' * (count != 1)} of {origin}")
    else:
        row = [str(out), count, origin.run, origin.step, origin.checkpoint]
        show(render([["file", "embeddings", "run", "step", "checkpoint"], row], form()))
