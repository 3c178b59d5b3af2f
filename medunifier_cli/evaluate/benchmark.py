"""Open the samples a task is measured on: a split, a prepared subset or a list of keys."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.encoder.features import folder_of, has_features, open_features
from medunifier_cli.checkpoint.lineage import base_of, recipe_of
from medunifier_cli.checkpoint.pretrained import PretrainedRun, run_for
from medunifier_cli.data.contract import Batch, DatasetPlugin
from medunifier_cli.data.disk.manifest import read_manifest
from medunifier_cli.data.loader import SplitSource, eval_batches, eval_workers
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.subset import open_keys, open_part, parts_of, read_keys
from medunifier_cli.errors import MuError
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.recipe.schema import LIVE, DataConfig, PretrainRecipe
from medunifier_cli.recipe.schema_prior import PriorRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.say import say


@dataclass(frozen=True)
class Benchmark:
    """A split, or part of one, opened for a run."""

    plugin: DatasetPlugin
    """With the classes that the shards were prepared with."""
    source: SplitSource
    split: str
    """Name in results: the split or subset, or `ids-<file>`."""
    shards: Path


def open_benchmark(
    trained: PretrainedRun, dataset: str = "", split: str = "", need_text: bool = True, *,
    ids: Path | None = None, prefer_benchmark: bool = False, class_texts: bool = False, shards: str = "",
    features: str = "",
) -> Benchmark:  # fmt: skip
    """Open a split or subset with the run's tokenizer and image size.

    Args:
        dataset: empty for the run's own.
        split: a split or a subset of the manifest; empty for the run's `data.test`, or `test` of another
            data set, or the benchmark that its plugin names if it has no `test`.
        need_text: leave out samples without text.
        ids: a file of sample keys, instead of a split.
        prefer_benchmark: with an empty `split`, try the plugin's `benchmark_split` first.
        class_texts: where no sample of the split has text, prompts of its class (the data set's default set)
            stand in for it.
        shards: folder of the shards; empty for that of the run, or `$MU_DATA/shards/<dataset>`.
        features: as `data.features`, and then they must be there; empty for what the run was trained with, if
            it was trained on these data and the split still has features.

    Raises:
        MuError: the run has no held-out split and none was named.
        DataError: no such shards, split or subset; keys that the shards do not hold; or features that are
            damaged or of something else.
    """
    own = trained.recipe.data
    name = dataset or own.dataset
    same = name == own.dataset
    folder = _shards_of(own, name, shards)
    plugin = prepared_dataset(name, folder)
    if ids is not None:
        split = f"ids-{re.sub(r'[^A-Za-z0-9_-]+', '-', ids.stem)}"
        opened = open_keys(folder, split, read_keys(ids))
    else:
        heldout = own.test if same else "test"
        split = split or _default_split(trained.run, plugin, folder, heldout, prefer_benchmark)
        opened = open_part(folder, split)
    data = own if same else dataclasses.replace(own, sections=(), limit=0)
    data = dataclasses.replace(data, dataset=plugin.name)
    prompts = next(iter(plugin.prompt_sets().values()), {}) if class_texts else None
    source = SplitSource(
        opened, trained.tokenizer, data, trained.recipe.text, plugin, need_text=need_text,
        class_prompts=prompts,
    )  # fmt: skip
    setting = features or _features_of_run(trained, name, split)
    cached = open_features(setting, name, trained.recipe, opened, trained.encoder)
    return Benchmark(plugin, source.with_features(cached), split, folder)


def _features_of_run(trained: PretrainedRun, dataset: str, split: str) -> str:
    """`data.features` of the run, or `live` where they do not reach or are not kept any more."""
    own = trained.recipe.data
    if own.features == LIVE or dataset != own.dataset:
        return LIVE
    if has_features(own.features, dataset, trained.recipe, split):
        return own.features
    folder = folder_of(own.features, dataset, trained.recipe)
    say(f"{folder}: no features of {split}; the image encoder runs")
    return LIVE


def evaluation_batches(
    source: SplitSource, batch_size: int, batches: int = 0, first: int = 0, rank: int = 0, ranks: int = 1
) -> Iterator[tuple[Batch, Tensor]]:
    """Every sample of a split once and in order, read by the recipe's workers; of several ranks, its turns.

    Args:
        batches: stop after this many, of all ranks together; 0 reads the whole split.
        first: begin with this sample.
        rank, ranks: as of a `sharing.Share`.

    Returns:
        Batch and mask_B, see `eval_batches`: a rank whose turn is behind the end gets a mask of False.
    """
    count = -(-(batches or -(-(len(source) - first) // batch_size)) // ranks)
    return eval_batches(
        source, batch_size=batch_size, rank=rank, world=ranks,
        workers=eval_workers(source.data.workers, count), batches=count, first=first,
    )  # fmt: skip


def patients(source: SplitSource, numbers: NDArray[np.int64]) -> NDArray[np.uint64] | None:
    """The patient of each of these samples, for intervals; None if the shards do not tell patients apart."""
    return patients_of(source.shards, source.rows[numbers])


def patients_of(shards: Shards, row_n: NDArray[np.int64]) -> NDArray[np.uint64] | None:
    """As `patients`, of rows of a split of shards."""
    patient_n: NDArray[np.uint64] = shards.index["subject"][row_n]
    return patient_n if len(np.unique(patient_n)) > 1 else None


def count_samples(name: str, dataset: str = "", split: str = "", ids: Path | None = None) -> int:
    """How many samples a verb opens, about, by the manifest alone; 1 where that does not say.

    Args:
        name: of a pre-training run or a run of priors; empty for the newest.
        dataset, split, ids: as for `open_benchmark`.

    Raises:
        MuError: no such run, data set or list.
    """
    run = base_of(run_for(name, "", PretrainRecipe, PriorRecipe))
    if ids is not None:
        return len(read_keys(ids))
    recipe = recipe_of(run) if run is not None else None
    if not isinstance(recipe, PretrainRecipe):
        return 1
    own = recipe.data
    folder = _shards_of(own, dataset or own.dataset)
    manifest = read_manifest(folder) or {}
    subset = manifest.get("subsets", {}).get(split)
    if subset is not None:
        return len(subset["keys"])
    heldout = own.test if dataset in ("", own.dataset) else "test"
    entry = manifest.get("splits", {}).get(split or heldout)
    return entry.get("samples", 1) if entry is not None else 1


def _shards_of(own: DataConfig, name: str, given: str = "") -> Path:
    """Folder of the shards of a data set, for a run whose recipe says `own`."""
    given = given or (own.shards if name == own.dataset else "")
    return Path(given) if given else shards_folder(name)


def _default_split(
    run: Run, plugin: DatasetPlugin, folder: Path, heldout: str, prefer_benchmark: bool
) -> str:
    benchmark = plugin.benchmark_split
    prepared = [name for names in parts_of(folder) for name in names] if folder.is_dir() else []
    if benchmark in prepared and (prefer_benchmark or heldout not in prepared):
        return benchmark
    if not heldout:
        raise MuError(f"{run.folder}: its recipe names no data.test; give --split")
    if benchmark and prefer_benchmark and heldout in prepared:
        say(f"{folder} has no {benchmark}, the benchmark of {plugin.name}; using {heldout}")
    return heldout
