"""`mu synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.evaluate.shared.ranks import SAMPLED, on_ranks
from medunifier_cli.files import must_exist, text_lines
from medunifier_cli.options.shared import (
    batch_size_option,
    data_option,
    device_option,
    format_option,
    likeness_option,
    note_old,
    run_option,
)
from medunifier_cli.options.synthesis import HELD_OUT, check_options, own_films
from medunifier_cli.terminal.options import (
    CLASSES,
    PROBABILITY,
    SEED,
    TEMPERATURE,
    Number,
    Whole,
    box_of,
)
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import counted, show

if TYPE_CHECKING:
    from medunifier_cli.evaluate.editing import Box
    from medunifier_cli.evaluate.synthesis.sample_folder import SampleFolder
    from medunifier_cli.model.sampling import Draws
    from medunifier_cli.overview.samples import Facts


DEFAULT_N = 16
"""Images synthesized when neither a number nor prompts are given."""


def _count(
    n: int | None, prompts: str, reconstructed: str, film: Path | None, name: str, data: str, split: str,
    files: tuple[Path, ...], dry_run: bool, **_: Any,
) -> int:  # fmt: skip
    """Images that several ranks can share; 0 for what one process does."""
    if dry_run or film is not None or own_films(files, reconstructed):
        return 0
    if n:
        return n
    if reconstructed:
        from medunifier_cli.evaluate.benchmark import count_samples

        of_split = split if reconstructed == HELD_OUT else reconstructed
        return count_samples(name, data, of_split)
    path = Path(prompts)
    return len(text_lines(path)) if prompts and path.is_file() else DEFAULT_N


@click.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
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
    "--class", "of_class", default="", metavar="NAME",
    help="Class that the images are requested to show: of --prompt, or else the only one whose prompts are "
    "taken. It is their label in samples.csv.",
)  # fmt: skip
@click.option(
    "--guidance", type=Number(0, 1000), default=1.0, show_default=True,
    help="Scale of classifier-free guidance; above 1 images follow the prompt more closely.",
)  # fmt: skip
@click.option(
    "--best-of", type=Whole(1, 64), default=1, show_default=True, metavar="K",
    help="Draw K images for each one and keep that which the model's own image-text matching finds closest "
    "to the prompt; takes K times as long.",
)  # fmt: skip
@click.option(
    "--reconstruct", "reconstructed", is_flag=False, flag_value=HELD_OUT, default="", metavar="[SPLIT]",
    help="Reconstruct the real images of this split (default: the held-out one), or image FILES, through "
    "their codes instead of sampling new ones; --prompt is then the report of FILES.",
)  # fmt: skip
@likeness_option
@data_option(
    "Prepared data set whose images --reconstruct takes (default: that of the pre-training run).", "data"
)
@click.option("--split", default="", help="Split of --reconstruct, if it names none.")
@click.option(
    "--edit", "film", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Edit this image file instead: what lies outside of --box is kept, the rest drawn for --prompt.",
)  # fmt: skip
@click.option(
    "--box", callback=box_of, metavar="X0,Y0,X1,Y1",
    help="Part of the image of --edit that is drawn anew, in its own pixels (default: all of it).",
)  # fmt: skip
@click.option(
    "--figure", default="", metavar="SPLIT",
    help="Split of real images for figure.png: some of them, their reconstructions, and synthetic images, "
    "all drawn at random by --seed.",
)  # fmt: skip
@run_option("the newest of `mu fit-prior`; the pre-training run its priors were fitted on names it as well")
@format_option
@device_option
@batch_size_option("64, on a GPU 256")
@click.option(
    "--batch", "old_batch", type=Whole(1, 100_000), hidden=True, help="Old spelling of --batch-size."
)
@click.option("--dry-run", is_flag=True, help="Say what would be drawn or resumed, and write nothing.")
@job_options(resumes=True, nodes=True)
@on_ranks(large=SAMPLED, count=_count, check=check_options)
def synthesize(
    n: int | None, out: Path, seed: int, temperature: float, top_k: int, top_p: float, prompt: str,
    prompts: str, of_class: str, guidance: float, best_of: int, reconstructed: str, data: str, split: str,
    film: Path | None, box: Box | None, figure: str, name: str, batch: int | None, old_batch: int | None,
    sbatch: JobOptions | None, files: tuple[Path, ...], likeness: bool, dry_run: bool,
) -> None:  # fmt: skip
    """Synthesize radiographs, optionally from prompts; the same command resumes after an interruption.

    FILES, which are PNG, JPEG or DICOM, are used only with --reconstruct.
    """
    if sbatch:
        sbatch.show(resumes=not reconstructed)
        return
    if old_batch:
        note_old("--batch", "--batch-size")
    films = own_films(files, reconstructed)
    must_exist(films)
    folder: SampleFolder | None
    if films:
        folder = _reconstruct_files(name, films, prompt, out, batch or old_batch, likeness)
    elif reconstructed:
        of_split = split if reconstructed == HELD_OUT else reconstructed
        folder = _reconstruct(name, data, of_split, out, n or 0, batch or old_batch, dry_run)
    else:
        from medunifier_cli.model.sampling import Draws

        draws = Draws(seed, temperature, top_k, top_p, guidance)
        if film is not None:
            folder = _edit(name, film, box, (prompt, of_class), draws, out, n or 1)
        else:
            size = batch or old_batch or 0
            asked = (prompt, prompts, of_class)
            folder = _sample(name, asked, draws, out, n or 0, figure, size, best_of, dry_run)
        if folder is not None and form() != "text":
            from medunifier_cli.evaluate.render import render

            show(render([["folder", "images"], [str(out), len(folder.done)]], form()))
    if folder is not None:  # else it was a dry run, and told
        made = counted(len(folder.done), "image")
        show(f"{out}: {made}, samples.jsonl, samples.csv, contact.png", err=True)


def _reconstruct_files(
    name: str, films: list[Path], text: str, out: Path, batch: int | None, likeness: bool
) -> SampleFolder:
    """Reconstruct image files by a pre-training run; a run of priors stands for the one under it."""
    from medunifier_cli.checkpoint.pretrained import is_run_of, pretrained_run, restore
    from medunifier_cli.checkpoint.priors import restore_priors
    from medunifier_cli.evaluate.films.answers import render_answers
    from medunifier_cli.evaluate.films.origin import origin_of_run
    from medunifier_cli.evaluate.films.reconstruct import reconstruct_files
    from medunifier_cli.recipe.schema_prior import PriorRecipe

    run = pretrained_run(name, "synthesize --reconstruct", PriorRecipe)
    pretrained = restore_priors(run).pretrained if is_run_of(run, PriorRecipe) else restore(run)
    pretrained = pretrained.with_batches_of(batch)
    folder, answers = reconstruct_files(pretrained, films, text, out, likeness)
    show(render_answers(answers, origin_of_run(pretrained), form()))
    return folder


def _reconstruct(
    name: str, data: str, split: str, out: Path, n: int, batch: int | None, dry_run: bool
) -> SampleFolder | None:  # fmt: skip
    """Reconstruct images of a data set by a pre-training run; a run of priors stands for the one under it.

    None for a dry run, which is told.
    """
    from medunifier_cli.checkpoint.pretrained import is_run_of, pretrained_run, restore
    from medunifier_cli.checkpoint.priors import restore_priors
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.results import show_measured
    from medunifier_cli.evaluate.shared.sharing import everywhere
    from medunifier_cli.evaluate.synthesis.synthesis import reconstruct
    from medunifier_cli.recipe.schema_prior import PriorRecipe
    from medunifier_cli.stages.codes import say_texts

    run = pretrained_run(name, "synthesize --reconstruct", PriorRecipe)
    if is_run_of(run, PriorRecipe):
        pretrained = everywhere(restore_priors, run).pretrained
    else:
        pretrained = everywhere(restore, run)
    pretrained = pretrained.with_batches_of(batch)
    benchmark = open_benchmark(pretrained, data, split, class_texts=True)
    say_texts(benchmark)
    if dry_run:
        from medunifier_cli.overview.samples import planned_reconstructions

        _tell(planned_reconstructions(pretrained, benchmark, out, n))
        return None
    folder, quality = reconstruct(pretrained, benchmark, out, n)
    measured = min(n or len(benchmark.source), len(benchmark.source))
    heading = f"{benchmark.plugin.name}/{benchmark.split}, n = {measured:,}"
    show_measured(heading, [quality])
    return folder


def _sample(
    name: str, asked: tuple[str, str, str], draws: Draws, out: Path, n: int, figure: str, batch: int,
    best_of: int, dry_run: bool,
) -> SampleFolder | None:  # fmt: skip
    """Sample images from the priors of a run, with the prompts of the data set that these were fitted on.

    None for a dry run, which is told.
    """
    from medunifier_cli.checkpoint.priors import on_their_data, priors_run, restore_priors
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.evaluate.shared.sharing import everywhere
    from medunifier_cli.evaluate.synthesis.requests import read_requests
    from medunifier_cli.evaluate.synthesis.synthesis import synthesize, write_figure
    from medunifier_cli.plugin_index import prepared_dataset

    fitted = everywhere(restore_priors, priors_run(name, "synthesize"))
    trained = on_their_data(fitted)
    data = trained.recipe.data
    prompt, prompts, of_class = asked
    requests = read_requests(prompt, prompts, prepared_dataset(data.dataset, data.shards), of_class)
    # Opened before the images are sampled: a split that does not exist must not cost an hour.
    shown = open_benchmark(trained, split=figure, class_texts=True) if figure else None
    texts_of = Path(prompts) if prompts and Path(prompts).is_file() else None
    count = n or len(requests) or DEFAULT_N
    if dry_run:
        from medunifier_cli.evaluate.synthesis.synthesis import sampler
        from medunifier_cli.overview.samples import planned_samples

        _tell(planned_samples(sampler(fitted, requests, draws, best_of), out, count))
        return None
    folder = synthesize(fitted, out, count, requests, draws, batch, texts_of, best_of)
    if shown is not None:
        show(str(write_figure(trained, shown, folder, draws.seed)), err=form() != "text")
    return folder


def _tell(facts: Facts) -> None:
    from medunifier_cli.overview.runs import render_facts

    show(render_facts(facts, form()))


def _edit(
    name: str, film: Path, box: Box | None, asked: tuple[str, str], draws: Draws, out: Path,
    n: int,
) -> SampleFolder:  # fmt: skip
    """Edit an image file by the priors of a run."""
    from medunifier_cli.checkpoint.priors import on_their_data, priors_run, restore_priors
    from medunifier_cli.evaluate.editing import edit
    from medunifier_cli.evaluate.synthesis.requests import read_requests
    from medunifier_cli.plugin_index import prepared_dataset

    fitted = restore_priors(priors_run(name, "synthesize"))
    data = on_their_data(fitted).recipe.data
    prompt, of_class = asked
    (request,) = read_requests(prompt, "", prepared_dataset(data.dataset, data.shards), of_class)
    return edit(fitted, film, box, request, out, n, draws)
