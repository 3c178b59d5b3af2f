"""`mu export RUN DIR`."""

from __future__ import annotations

from pathlib import Path

import click

from medunifier_cli.options import complete
from medunifier_cli.options.shared import format_option
from medunifier_cli.roots import find_run
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show


@click.command()
@click.argument("run", shell_complete=complete.runs)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--tower", type=click.Choice(["bundle", "name"]), default="bundle", show_default=True,
    help="Whether the weights of a frozen image encoder are written too, or only named: whoever loads DIR "
    "then has to have them.",
)  # fmt: skip
@click.option("--onnx", is_flag=True, help="Write the image tower and the text tower as ONNX too.")
@click.option(
    "--license", "licence", default="other", show_default=True, metavar="ID",
    help="Licence of the weights as the hub names it, such as cc-by-nc-4.0.",
)  # fmt: skip
@click.option(
    "--push", "name", default="", metavar="NAME", help="Upload DIR to the hub as organisation/model."
)
@click.option("--public", is_flag=True, help="Let everybody see what --push makes, not only its owner.")
@format_option
def export(run: str, folder: Path, tower: str, onnx: bool, licence: str, name: str, public: bool) -> None:
    """Export a pre-training run for transformers, ONNX and the hub, with a model card.

    DIR holds safetensors, configuration, processor, tokenizer, recipe and README.md. Every verb takes it for
    --run, and transformers loads it once `medunifier_cli.hub` is imported.
    """
    if public and not name:
        raise click.UsageError("--public is about what --push makes; add --push NAME")
    found = find_run(run)
    from medunifier_cli.hub import exporting
    from medunifier_cli.run.record import Run

    if name:
        exporting.check_push(name)  # before minutes of work
    written = exporting.export(Run(found), folder, exporting.Choices(tower == "bundle", onnx, licence))
    for file, difference in written.onnx.items():
        far = (
            "not compared: onnxruntime is not installed" if difference is None else f"within {difference:.1e}"
        )
        say(f"{file}, next to PyTorch: {far}")
    show(f"{folder}: {len(written.files)} files, {sum(written.files.values()) / 1e6:,.1f} MB", err=True)
    if form() != "text":
        from medunifier_cli.evaluate.render import render

        show(render([["file", "bytes"], *([*entry] for entry in written.files.items())], form()))
    if name:
        show(exporting.push(folder, name, public), err=form() != "text")
