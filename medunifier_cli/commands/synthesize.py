"""`mu synthesize`."""

from __future__ import annotations

from pathlib import Path

import click

from medunifier_cli.errors import CheckpointError
from medunifier_cli.roots import find_run, newest_run

UNASKED = 16
"""Images drawn when neither a number nor prompts are given."""


@click.command()
@click.option(
    "--n",
    type=click.IntRange(min=1),
    help="Images in all; by default one per prompt, or 16. Of --reconstruct all.",
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("samples"), show_default=True,
              help="Folder, new or begun by the same command.")  # fmt: skip
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Same seed, same images."
)
@click.option(
    "--temperature", type=float, default=1.0, show_default=True, help="0 takes the likeliest codes."
)
@click.option(
    "--top-k", type=int, default=0, show_default=True, help="Only the k likeliest codes; 0 for all."
)
@click.option(
    "--top-p", type=float, default=1.0, show_default=True, help="Only the likeliest codes up to this share."
)
@click.option("--prompt", default="", help="What to show, in a report's words.")
@click.option(
    "--prompts",
    default="",
    help="File of prompts (.txt, .csv, .yaml by class), or a prompt set of the data set.",
)
@click.option(
    "--guidance", type=float, default=1.0, show_default=True, help="Above 1 the prompt weighs more."
)
@click.option(
    "--reconstruct", "split", default="", help="Instead: the images of this split through their codes."
)
@click.option(
    "--run",
    "name",
    default="",
    help="Run of `mu fit-prior`, or the pre-training run under it; by default the newest.",
)
@click.option("--batch", type=click.IntRange(min=1), help="Images drawn together; changes no image.")
def synthesize(
    n: int | None, out: Path, seed: int, temperature: float, top_k: int, top_p: float, prompt: str,
    prompts: str, guidance: float, split: str, name: str, batch: int | None,
) -> None:  # fmt: skip
    """Draw new radiographs, on request with a prompt; goes on where an earlier call stopped."""
    if sum(map(bool, (prompt, prompts, split))) > 1:
        raise click.UsageError("--prompt, --prompts and --reconstruct exclude each other")
    from medunifier_cli.checkpoint.pretrained import is_pretrained, restore
    from medunifier_cli.checkpoint.priors import is_fitted, restore_priors
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.synthesis.requests import read_requests
    from medunifier_cli.evaluate.synthesis.synthesis import reconstruct
    from medunifier_cli.evaluate.synthesis.synthesis import synthesize as draw
    from medunifier_cli.model.sampling import Draws
    from medunifier_cli.plugin_index import load_dataset
    from medunifier_cli.run.record import Run

    if split:
        folder = (
            find_run(name) if name else newest_run(lambda path: is_pretrained(Run(path)), "--reconstruct")
        )
        trained = restore_priors(Run(folder)).trained if is_fitted(Run(folder)) else restore(Run(folder))
        made = reconstruct(trained, open_benchmark(trained, split=split), out, n or 0)
    else:
        fitted = restore_priors(Run(_priors(name)))
        plugin = load_dataset(fitted.trained.recipe.data.dataset)
        wishes = read_requests(prompt, prompts, plugin)
        draws = Draws(seed, temperature, top_k, top_p, guidance)
        made = draw(fitted, out, n or len(wishes) or UNASKED, wishes, draws, batch or 0)
    click.echo(f"{out}: {len(made.done):,} images, samples.jsonl, samples.csv, contact.png", err=True)


def _priors(name: str) -> Path:
    """The run of priors: named, fitted on the pre-training run named, or the newest."""
    from medunifier_cli.checkpoint.pretrained import is_pretrained
    from medunifier_cli.checkpoint.priors import fitted_on, is_fitted
    from medunifier_cli.run.record import Run

    if not name:
        return newest_run(lambda path: is_fitted(Run(path)), "synthesize")
    folder = find_run(name)
    if not is_pretrained(Run(folder)):
        return folder

    def fits(path: Path) -> bool:
        return is_fitted(Run(path)) and fitted_on(Run(path)) == folder.resolve()

    try:
        return newest_run(fits, "synthesize")
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: no priors were fitted on this run; `mu fit-prior RECIPE --from {folder.name}`"
        ) from error
