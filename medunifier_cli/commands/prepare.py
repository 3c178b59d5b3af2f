"""`mu prepare DATASET`: a raw download to shards."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from medunifier_cli.cluster.options import JobOptions, job_options
from medunifier_cli.data.contract import DatasetPlugin, Option
from medunifier_cli.errors import DataError, MuError, one_line_of
from medunifier_cli.options import complete
from medunifier_cli.options.shared import hinting, note_old, refuse_unused
from medunifier_cli.plugin_index import DATASETS, load_all, load_dataset
from medunifier_cli.roots import check_name, raw_folder, shards_folder
from medunifier_cli.run.processors import share
from medunifier_cli.terminal.options import LARGEST, LIMIT, PROCESSES, Whole
from medunifier_cli.terminal.output import FORMATS
from medunifier_cli.terminal.say import counted, say, show

JOB_CORES = 8
"""Of a job without --workers, each with a decoding process."""
FEATURE_WORKERS = 2
"""Processes that decode for a GPU: one feeds four, see docs/scaling.md."""
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


IMAGE_FORMATS = ("png", "jpg")


class FormatOrOld(click.Choice[str]):
    """A format of what is printed; or one of images, which `--format` once meant, and no help shows."""

    def __init__(self) -> None:
        super().__init__(FORMATS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(value) if value in IMAGE_FORMATS else super().convert(value, param, ctx)


class Part(click.ParamType["tuple[int, int]"]):
    """`I/N`: part I of N."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(value))
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            self.fail(f"{value!r} is not a part such as 2/8", param, ctx)
        return int(match[1]), int(match[2])


@click.command(cls=hinting(lambda _: "a file? mu prepare table --raw FILE"))
@click.argument("dataset", required=False, shell_complete=complete.data_sets)
@click.option(
    "--raw",
    type=click.Path(path_type=Path),
    help="Folder of the raw download, or the file of a table.  [default: $MU_DATA/raw/DATASET]",
)
@click.option("--name", default="", help="Name of the prepared data set.  [default: DATASET]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for the shards.  [default: $MU_DATA/shards/NAME]",
)
@click.option(
    "--size",
    type=Whole(8, 4096),
    default=224,
    show_default=True,
    help="Edge of the square images, in pixels.",
)
@click.option(
    "--image-format", "image_format", type=click.Choice(IMAGE_FORMATS), default="png", show_default=True,
    help="Image format in the shards; png is lossless.",
)  # fmt: skip
@click.option(
    "--format", "printed", type=FormatOrOld(), default="text", show_default=True,
    help="Format of the summary or list that is printed.",
)  # fmt: skip
@click.option(
    "--shard-size", type=Whole(1, 1_000_000), default=2000, show_default=True, help="Records per shard."
)
@click.option(
    "--workers", type=PROCESSES, help="Number of decoding processes.  [default: one per core it may use]"
)
@click.option("--part", type=Part(), default="1/1", help="Make only part I of N, for job arrays.")
@click.option("--max-rejects", type=LIMIT, help="Stop when more than this many images are unusable.")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="Set an option of the data set.")
@click.option(
    "--features", "recipe", default="", metavar="RECIPE",
    help="Compute the features of RECIPE's frozen image encoder once, in place of shards.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Read the tables of the raw data, count, and write nothing.")
@click.option(
    "--list", "show_list", is_flag=True, help="List the data sets with their raw files and options."
)
@job_options(resumes=True, parts=True)
def prepare(
    dataset: str | None, raw: Path | None, name: str, out: Path | None, size: int, image_format: str,
    printed: str, shard_size: int, workers: int | None, part: tuple[int, int], max_rejects: int | None,
    overrides: tuple[str, ...], recipe: str, dry_run: bool, show_list: bool, sbatch: JobOptions | None,
) -> None:  # fmt: skip
    """Convert a raw download into shards, with a manifest of their contents and of what was left out.

    Run it again after an interruption: it resumes after the last finished shard. `--list` shows the data
    sets. `--features RECIPE` reads shards instead, those of the recipe, and keeps what its frozen image
    encoder makes of them, on all GPUs (train.processes); then `-o` changes the recipe, and `--out`,
    `--workers` and `--part` are as for shards.
    """
    if printed in IMAGE_FORMATS:
        note_old(f"--format {printed}", f"--image-format {printed}")
        image_format, printed = printed, "text"
    if sbatch and sbatch.parts and part != (1, 1):
        raise click.UsageError("--part makes one part and --parts a job for each; give one of them")
    if recipe:
        refuse_unused(WITH_FEATURES, "is for shards; --features takes all from its recipe, see -o")
        _compute_features(recipe, overrides, out, part, workers, sbatch)
        return
    from medunifier_cli.evaluate.render import render
    from medunifier_cli.prepare.summary import listed_rows, listing, split_rows, summary

    if show_list:
        refuse_unused({"dataset", "printed", "show_list"}, "has no effect on --list")
        plugins = {dataset: _plugin(dataset)} if dataset else load_all(DATASETS)
        show(listing(plugins) if printed == "text" else render(listed_rows(plugins), printed, words=8))
        return
    if not dataset:
        raise click.UsageError("no data set given; `mu prepare --list` shows them")
    if sbatch:
        plugin_options(_plugin(dataset), overrides)  # not after a wait in the queue
        sbatch.show(f"prepare-{name or dataset}", cores=workers or JOB_CORES, gpus=False, resumes=True)
        return
    from medunifier_cli.prepare.prepare import Job, planned
    from medunifier_cli.prepare.prepare import prepare as run

    if name:
        check_name(name, "data set", "MU_DATA")
    plugin = _plugin(dataset)
    job = Job(
        plugin=plugin,
        raw=raw or raw_folder(dataset),
        name="" if name == dataset else name,
        out=out or shards_folder(name or dataset),
        options=plugin_options(plugin, overrides),
        size=size,
        form=image_format,
        shard_size=shard_size,
        workers=workers or share().threads,
        part=part,
        max_rejects=max_rejects,
    )
    if dry_run:
        say(f"{dataset}: nothing is written to {job.out}")
        show(render(planned(job), printed))
        return
    say(f"{dataset}: images of {size} x {size} to {job.out}")
    manifest = run(job)
    if manifest is not None:
        if printed != "text":
            show(render(split_rows(manifest), printed))
        show(summary(manifest), err=True)
        left = "; rejects.jsonl lists what was left out" if manifest["rejects"]["lines"] else ""
        show(f"\n{job.out}: {counted(manifest['samples'], 'image')}; inspect sheet-*.png{left}", err=True)


def _plugin(dataset: str) -> DatasetPlugin:
    """The plugin of a data set.

    Raises:
        MuError: there is none, or it cannot be loaded; with a hint where the name is that of a file.
    """
    try:
        return load_dataset(dataset)
    except MuError:
        if Path(dataset).is_file() or Path(dataset).suffix.lower() in TABLES:
            hint = f"a file? mu prepare table --raw {shlex.quote(dataset)}"
            raise MuError(f"no data set `{dataset}`; {hint}") from None
        raise


TABLES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
"""Endings of files that are tables."""
WITH_FEATURES = {"recipe", "overrides", "out", "part", "workers"}
"""Parameters that go with `--features`."""


def _compute_features(
    name: str, overrides: tuple[str, ...], out: Path | None, part: tuple[int, int], workers: int | None,
    sbatch: JobOptions | None,
) -> None:  # fmt: skip
    """`--features`: in this process, or in one for each GPU; or as a rank of a group that was joined."""
    from medunifier_cli.distributed import group, launch, variables
    from medunifier_cli.recipe.load import load_any
    from medunifier_cli.recipe.schema import PretrainRecipe
    from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
    from medunifier_cli.recipe.schema_prior import PriorRecipe

    recipe = load_any(name, overrides)
    assert isinstance(recipe, PretrainRecipe | FinetuneRecipe | PriorRecipe)  # there is no other stage
    if sbatch:
        processes, cores = recipe.train.processes or 1, 1 + (FEATURE_WORKERS if workers is None else workers)
        sbatch.show(f"features-{recipe.name}", processes=processes, cores=cores, resumes=True)
        return
    variables.check_variables(recipe.train.precision)
    joined = group.joined_group()
    from medunifier_cli.stages.cached.compute import FeatureJob, compute_features

    job = FeatureJob(recipe, out, part, workers)
    launch.in_ranks(joined, 0, recipe.train.processes, compute_features, job)


def plugin_options(plugin: DatasetPlugin, overrides: tuple[str, ...]) -> dict[str, Any]:
    """A value for each option of the plugin.

    Raises:
        DataError: lists unknown names and impossible values, as many as fit one line.
    """
    values: dict[str, Any] = {name: option.default for name, option in plugin.options.items()}
    problems = []
    for text in overrides:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError("is not KEY=VALUE")
            values[name] = _value(name, value, plugin.options)
        except ValueError as error:
            problems.append(f"-o {text}: {error}")
    if problems:
        raise DataError(one_line_of(problems))
    return values


def _value(name: str, text: str, options: Mapping[str, Option]) -> str | int | float | bool:
    if name not in options:
        nearest = difflib.get_close_matches(name, options, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"options: {', '.join(options) or 'none'}"
        raise ValueError(f"no such option; {hint}")
    option = options[name]
    kind = type(option.default)
    if kind is bool:
        if text.lower() not in YES + NO:
            raise ValueError("must be true or false")
        return text.lower() in YES
    try:
        value = kind(text)
    except (ValueError, OverflowError):
        raise ValueError(f"must be {'a whole number' if kind is int else 'a number'}") from None
    if not isinstance(value, str):
        low = -LARGEST if option.default < 0 else 0  # type: ignore[operator]
        if not low <= value <= LARGEST:  # NaN and infinity as well
            raise ValueError(f"must be a finite number{'' if low else ' from 0'} that fits 64 bits")
    if option.choices and text not in option.choices:
        raise ValueError(f"must be one of {', '.join(option.choices)}")
    return value
