"""What `mu score` is asked for: its options as typed, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from medunifier_cli.options.shared import refuse, refuse_unused

COMPARISON, IMAGES = "the comparison of two files of reports", "--fake"
MODES = {
    COMPARISON: {"seed"},
    "--reports": {"reports", "clinical"},
    "--outputs": {"outputs"},
    IMAGES: {
        "fake", "real", "copies", "heldout", "classifier", "extractor", "inception", "rad_dino", "images",
        "seed", "num_processes",
    },
    "--page": {"page"},
    "the numbers of runs": {"tables", "baselines"},
}  # fmt: skip
"""What `mu score` is asked for -> parameters that have an effect on it."""


@dataclass(frozen=True)
class ScoreOptions:
    """The options as typed; the verb has the help of each."""

    tables: bool | None
    """True for the paper's tables, False for all numbers, None for headlines unless a table has a number."""
    page: bool
    baselines: bool
    reports: Path | None
    outputs: Path | None
    clinical: bool
    fake: str
    real: str
    copies: bool
    heldout: str
    classifier: str
    extractor: str
    inception: str
    rad_dino: str
    images: int
    seed: int

    @property
    def judges_images(self) -> bool:
        """Whether an option is given that is only for images."""
        only_for_images = (
            self.fake, self.real, self.heldout, self.classifier, self.inception, self.rad_dino
        )  # fmt: skip
        return any((*only_for_images, self.copies, self.images))


def mode_of(runs: tuple[str, ...], given: ScoreOptions) -> str:
    """A key of `MODES`.

    Raises:
        click.UsageError: what is given does not go together.
    """
    if any(name.endswith(".jsonl") for name in runs):
        if len(runs) != 2 or given.reports or given.outputs or given.clinical or given.judges_images:
            raise click.UsageError(
                "`mu score A.jsonl B.jsonl` compares two files of reports; --reports FILE scores one"
            )
        return COMPARISON
    if given.reports is not None or given.clinical:
        if given.reports is None or runs or given.fake:
            raise click.UsageError("reports are scored with --reports FILE alone, or with --clinical")
        return "--reports"
    if given.outputs is not None:
        if runs:
            raise click.UsageError("outputs are scored with --outputs FILE alone, without a run")
        return "--outputs"
    if given.judges_images:
        if not given.fake or len(runs) > 1:
            raise click.UsageError("images are judged with --fake and one run at most")
        return IMAGES
    if given.tables is False and given.baselines:
        raise click.UsageError("--baselines are rows of the paper's tables, and --all shows other numbers")
    return "--page" if given.page else "the numbers of runs"


def check(runs: tuple[str, ...], more_runs: tuple[str, ...], sbatch: object, **options: Any) -> None:
    """Raises click.UsageError, which names an option as typed, for what does not go together."""
    given = ScoreOptions(**options)
    mode = mode_of(runs + more_runs, given)
    if mode == IMAGES and not given.real:
        refuse({"extractor", "inception", "rad_dino", "images"}, "is for --real")
    if mode == IMAGES and not given.copies:
        refuse({"heldout"}, "is for --copies")
    refuse_unused(MODES[mode] | {"runs", "more_runs"}, f"has no effect on {mode}")
