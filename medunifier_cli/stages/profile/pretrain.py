"""`mu pretrain --profile`: where the time of a step goes, in the parts of the model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from medunifier_cli.checkpoint.contrast import pairs_per_pass
from medunifier_cli.checkpoint.run_tokenizer import tokenizer_of
from medunifier_cli.distributed import world
from medunifier_cli.distributed.agreement import together
from medunifier_cli.files import make_folder
from medunifier_cli.objectives.pretraining import PretrainingLoss, leaves_weights_unused
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.pretrain import Pretraining, open_split
from medunifier_cli.terminal.say import say, show
from medunifier_cli.terminal.table import text_table
from medunifier_cli.train.accelerator import accelerator_of
from medunifier_cli.train.throughput.profiling import STEPS, WARM_UP, Part, Profile, Row, profile_steps

TRACE = "trace.json"
LARGEST = 10
"""Rows of each table."""
NAME_WIDTH = 60
"""Characters of a kernel's name that are shown; those of CUDA's templates fill screens."""


def run_profile(recipe: PretrainRecipe, folder: Path) -> None:
    """One rank of a profile: a few steps from new weights, of which nothing is kept but the trace.

    It is written to a folder of its own in the run's folder, whose log and checkpoints are neither read nor
    changed: there may be none, and there are none after it.

    Raises:
        MuError: what the user has to mend.
    """
    own = Run(Run(folder).profile)
    accelerator = accelerator_of(recipe.train, own.folder, leaves_weights_unused(recipe))

    def clear() -> None:
        # of a profile that was killed, perhaps of another recipe
        if world.is_main():
            make_folder(own.folder)
            shutil.rmtree(own.tokenizer, ignore_errors=True)

    together(clear)
    tokenizer = tokenizer_of(recipe, own)
    train = together(lambda: open_split(recipe, recipe.data.train, tokenizer))
    stage = Pretraining(recipe, own, train, None, tokenizer, accelerator.device)
    if world.is_main():
        per_pass = pairs_per_pass(recipe, world.size())
        contrast = f", contrast within {per_pass:,} pairs" if per_pass else ""
        say(
            f"{own.folder}: {STEPS} steps of {recipe.train.global_batch} pairs{contrast} on {world.size()} "
            f"{accelerator.device.type} process{'es' if world.size() > 1 else ''}, after {WARM_UP} to warm up"
        )
    profile = profile_steps(
        stage, accelerator, recipe.train, recipe.optim, parts_of_pretraining(stage.module),
        own.folder / TRACE, watched=world.is_main(),
    )  # fmt: skip
    if profile is not None:
        show("\n".join(report(profile, recipe.train.global_batch)))
    world.barrier()  # a launcher takes the end of a rank for that of all


def parts_of_pretraining(module: PretrainingLoss) -> list[Part]:
    """The parts of a step in the paper's terms; what they leave is `the rest`."""
    model = module.model
    parts: list[Part] = [
        (model.vit, "forward", "image encoder"),
        (model.qformer, "encode_image", "Q-Former, images"),
        (model.qformer, "encode_text", "Q-Former, texts"),
        (model.qformer, "fuse", "Q-Former, pairs of ITM"),
        (model.qformer, "decode_text", "Q-Former, texts of ITG"),
    ]
    if hasattr(model, "generator"):
        parts += [
            (model.generator, "encode", "adapters and codebooks"),
            (model.generator.decoder, "forward", "decoder"),
        ]
    for objective in module.objectives:
        parts += [(objective, method, objective.title) for method in ("begin", "compute")]
    return parts


def report(profile: Profile, global_batch: int) -> list[str]:
    """Lines for the terminal: both tables, and where the trace is."""
    on_gpu = profile.device == "cuda"
    whose = "the GPU's kernels" if on_gpu else "the CPU"
    steps = f"{profile.steps} step{'s' if profile.steps > 1 else ''}"
    return [
        f"{steps} of {profile.seconds * 1000:,.1f} ms each under the profiler, "
        f"{global_batch / profile.seconds:,.4g} pairs/s; the largest parts by the time of {whose} on rank 0:",
        *_table("part", profile.parts, with_most=True),
        "",
        *_table("kernel" if on_gpu else "operation", profile.kernels, with_most=False),
        "",
        f"trace, for Perfetto or chrome://tracing: {profile.trace}",
    ]


def _table(title: str, rows: Sequence[Row], with_most: bool) -> list[str]:
    header = [title, *(["most of it"] if with_most else []), "ms a step", "share"]
    cells = [
        [
            row.name[:NAME_WIDTH], *([row.most[:NAME_WIDTH]] if with_most else []),
            f"{row.milliseconds:,.2f}", f"{row.share:.1%}",
        ]
        for row in rows[:LARGEST]
    ]  # fmt: skip
    return text_table([header, *cells], words=2 if with_most else 1)
