"""`mu pretrain RECIPE`."""

from __future__ import annotations

from typing import Any

import click

from medunifier_cli.options.sections import load_for_data
from medunifier_cli.options.shared import refuse
from medunifier_cli.options.training import name_of_new, old_name_option
from medunifier_cli.stages.start import StartOptions, training_options


@click.command()
@training_options
@old_name_option
@click.option(
    "--profile", is_flag=True,
    help="Profile a few steps and train nothing: writes a trace, prints the largest parts of a step.",
)  # fmt: skip
def pretrain(recipe: str, profile: bool, old_name: str, **options: Any) -> None:
    """Pre-train MedUnifier on prepared shards; resumes from the last checkpoint.

    RECIPE is a YAML file or the name of a shipped one, such as `full` or `demo`.
    """
    options["name"] = name_of_new(options["name"], old_name)
    start = StartOptions(**options)
    loaded = load_for_data(recipe, start.overrides)
    if profile:
        if start.fresh or start.job:
            raise click.UsageError("--profile trains nothing, so there is nothing to start over with --fresh")
        refuse({"dry_run", "format"}, "is for training, and --profile trains nothing")
        from medunifier_cli.stages.profile.pretrain import run_profile

        start.start(run_profile, loaded, loaded.name, loaded.data.workers)
        return
    from medunifier_cli.stages.pretrain import run_pretraining

    start.start(run_pretraining, loaded, loaded.name, loaded.data.workers)
