"""Which split a task works on: the run's own held-out one unless the command line says otherwise."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from medunifier_cli.checkpoint.restore import Trained
from medunifier_cli.data.contract import DatasetPlugin
from medunifier_cli.data.loader import SplitSource
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import MuError
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.roots import shards_folder


@dataclass(frozen=True)
class Asked:
    """A split as a task wants it."""

    plugin: DatasetPlugin
    source: SplitSource
    split: str
    shards: Path


def open_benchmark(trained: Trained, dataset: str = "", split: str = "", need_text: bool = True) -> Asked:
    """Open a split with the run's tokenizer and image size.

    Args:
        dataset: empty for the run's own.
        split: empty for the run's `data.test`, or `test` of another data set.
        need_text: leave out samples without text.

    Raises:
        MuError: the run has no held-out split and none was named.
        DataError: no such shards or split.
    """
    own = trained.recipe.data
    plugin = load_dataset(dataset or own.dataset)
    same = plugin.name == own.dataset
    split = split or (own.test if same else "test")
    if not split:
        raise MuError(f"{trained.run.folder}: its recipe names no data.test; give --split")
    shards = Path(own.shards) if same and own.shards else shards_folder(plugin.name)
    data = dataclasses.replace(own, dataset=plugin.name, sections=own.sections if same else ())
    source = SplitSource(
        Shards.open(shards, split), trained.tokenizer, data, trained.recipe.text, plugin, need_text=need_text
    )
    return Asked(plugin, source, split, shards)
