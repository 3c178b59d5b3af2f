"""`mu synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from medunifier_cli.errors import CheckpointError
from medunifier_cli.roots import find_run, newest_run
from medunifier_cli.terminal.options import (
    CLASSES,
    PROBABILITY,
    SEED,
    TEMPERATURE,
    Number,
    Whole,
)
from medunifier_cli.terminal.say import show

if TYPE_CHECKING:
    from medunifier_cli.run.record import Run

DEFAULT_N = 16
"""Images synthesized when neither a number nor prompts are given."""


@click.command()
@click.option(
    "--n",
    type=Whole(1, 10_000_000),
    help="Number of images; by default one per prompt, or 16; all of the split with --reconstruct.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("samples"), show_default=True,
    help="Folder to write to; new, or begun by the same command, which then resumes.",
)  # fmt: skip
@click.option(
    "--seed", type=SEED, default=0, show_default=True,
    help="Random seed; the same seed gives the same images.",
)  # fmt: skip
@click.option(
    "--temperature", type=TEMPERATURE, default=1.0, show_default=True,
    help="Sampling temperature of the codes; 0 always takes the most likely code.",
)  # fmt: skip
@click.option(
    "--top-k", type=CLASSES, default=0, show_default=True,
    help="Top-k sampling: keep the K most likely codes (0: all).",
)  # fmt: skip
@click.option(
    "--top-p", type=PROBABILITY, default=1.0, show_default=True,
    help="Nucleus sampling: keep the most likely codes that together reach this probability (1: all).",
)  # fmt: skip
@click.option("--prompt", default="", help="Prompt for all images, worded like a report.")
@click.option(
    "--prompts",
    default="",
    help="File of prompts (.txt, .csv, or .yaml by class), or the name of a prompt set of the data set.",
)
@click.option(
    "--guidance", type=Number(0, 1000), default=1.0, show_default=True,
    help="Scale of classifier-free guidance; above 1 images follow the prompt more closely.",
)  # fmt: skip
@click.option(
    "--reconstruct", "split", default="",
    help="Reconstruct the real images of this split through their codes instead of sampling new ones.",
)  # fmt: skip
@click.option(
    "--figure", default="", metavar="SPLIT",
    help="Split of real images for figure.png: some of them, their reconstructions, and synthetic images, "
    "all drawn at random by --seed.",
)  # fmt: skip
@click.option(
    "--run",
    "name",
    default="",
    help="Run of `mu fit-prior`, or the pre-training run its priors were fitted on; by default the newest.",
)
@click.option("--batch", type=Whole(1, 100_000), help="Batch size; does not affect the images.")
def synthesize(
    n: int | None, out: Path, seed: int, temperature: float, top_k: int, top_p: float, prompt: str,
    prompts: str, guidance: float, split: str, figure: str, name: str, batch: int | None,
) -> None:  # fmt: skip
    """Synthesize radiographs, optionally from prompts; the same command resumes after an interruption."""
    if sum(map(bool, (prompt, prompts, split))) > 1:
        raise click.UsageError("--prompt, --prompts and --reconstruct exclude each other")
    if split and figure:
        raise click.UsageError("--figure shows synthetic images, and --reconstruct makes none; leave one out")
    from medunifier_cli.checkpoint.pretrained import is_run_of, pretrained_run, restore
    from medunifier_cli.checkpoint.priors import restore_priors
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.synthesis import synthesis
    from medunifier_cli.evaluate.synthesis.requests import read_requests
    from medunifier_cli.model.sampling import Draws
    from medunifier_cli.plugin_index import prepared_dataset
    from medunifier_cli.recipe.schema_prior import PriorRecipe

    if split:
        run = pretrained_run(name, "--reconstruct")
        # Reconstructing needs no priors; a run of priors stands for the model under it.
        pretrained = restore_priors(run).pretrained if is_run_of(run, PriorRecipe) else restore(run)
        folder = synthesis.reconstruct(pretrained, open_benchmark(pretrained, split=split), out, n or 0)
    else:
        fitted = restore_priors(_priors_run(name))
        data = fitted.pretrained.recipe.data
        requests = read_requests(prompt, prompts, prepared_dataset(data.dataset, data.shards))
        draws = Draws(seed, temperature, top_k, top_p, guidance)
        count = n or len(requests) or DEFAULT_N
        # Opened before the images are sampled: a split that does not exist must not cost an hour.
        shown = open_benchmark(fitted.pretrained, split=figure) if figure else None
        texts_of = Path(prompts) if prompts and Path(prompts).is_file() else None
        folder = synthesis.synthesize(fitted, out, count, requests, draws, batch or 0, texts_of)
        if shown is not None:
            show(str(synthesis.write_figure(fitted.pretrained, shown, folder, seed)))
    show(f"{out}: {len(folder.done):,} images, samples.jsonl, samples.csv, contact.png", err=True)


def _priors_run(name: str) -> Run:
    """The run of priors: named itself, or fitted on the pre-training run that is named, or the newest."""
    from medunifier_cli.checkpoint.lineage import base_of
    from medunifier_cli.checkpoint.pretrained import is_run_of, run_for
    from medunifier_cli.recipe.schema import PretrainRecipe
    from medunifier_cli.recipe.schema_prior import PriorRecipe
    from medunifier_cli.run.record import Run

    if not name or not is_run_of(Run(find_run(name)), PretrainRecipe):
        return run_for(name, "synthesize", PriorRecipe)
    folder = find_run(name)

    def fitted_on_it(path: Path) -> bool:
        base = base_of(Run(path)) if is_run_of(Run(path), PriorRecipe) else None
        return base is not None and base.folder.resolve() == folder.resolve()

    try:
        return Run(newest_run(fitted_on_it, "synthesize"))
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: no priors were fitted on this run; fit some with "
            f"`mu fit-prior RECIPE --from {folder.name}`"
        ) from error
