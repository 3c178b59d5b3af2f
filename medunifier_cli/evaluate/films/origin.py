"""Where an answer comes from: run, checkpoint and training data; and what answers about films end with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medunifier_cli.checkpoint.lineage import base_of, recipe_of
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import MuError
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.run.record import Run

NOT_FOR_DIAGNOSIS = "Not for diagnosis."
SHORT = 8
"""Characters of a checkpoint's hash in text; JSON has all of them."""


@dataclass(frozen=True)
class Origin:
    """Which model says something, and what it was trained on."""

    run: str
    """Name of the run, or of the folder that `mu export` wrote."""
    step: int
    checkpoint: str
    """Hash of the weights, as result files carry it."""
    data: str
    """Data set that the run was trained on."""
    title: str
    """What that is; empty where its plugin is not installed."""
    pretrained: str = ""
    """Run that a fine-tuned one started from; empty for a pre-training run."""
    pretrained_data: str = ""
    """Data set of that run; empty where it cannot be read."""

    def __str__(self) -> str:
        titled = f"{self.data} ({self.title})" if self.title else self.data
        line = f"{self.run}, step {self.step:,}, checkpoint {self.checkpoint[:SHORT]}, trained on {titled}"
        if not self.pretrained:
            return line
        before = f", which was trained on {self.pretrained_data}" if self.pretrained_data else ""
        return f"{line}, from {self.pretrained}{before}"

    def as_json(self) -> dict[str, Any]:
        """Every field, but for those that are empty."""
        return {name: value for name, value in asdict(self).items() if value != ""}


def origin_of_run(trained: PretrainedRun) -> Origin:
    """The origin of whatever a restored run says; of any stage, as `restore_classifier` returns one too."""
    recipe, base = recipe_of(trained.run), base_of(trained.run)
    data = trained.recipe.data if recipe is None else recipe.data
    before = {}
    if isinstance(recipe, FinetuneRecipe):
        of_base = None if base is None else recipe_of(base)
        before = {
            "pretrained": Path(recipe.model.pretrained).name if base is None else _name(base),
            "pretrained_data": "" if of_base is None else of_base.data.dataset,
        }
    return Origin(
        _name(trained.run), trained.step, trained.identity, data.dataset, _title(data.dataset, data.shards),
        **before,
    )  # fmt: skip


def _name(run: Run) -> str:
    return run.folder.resolve().name


def _title(dataset: str, shards: str) -> str:
    try:
        title = prepared_dataset(dataset, shards).title
    except MuError:  # shards from elsewhere, or a plugin that this machine does not have
        return ""
    return title if title != dataset else ""
