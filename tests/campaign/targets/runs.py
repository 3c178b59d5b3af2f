"""Readers of a run: checkpoints, recipe, provenance, log, results, and the caches in HDF5."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

from tests.campaign.targets.target import Target, call


def make_run(folder: Path, home: Path) -> None:
    shutil.copytree(home / "data", folder / "data")
    shutil.copytree(home / "runs", folder / "runs")
    (folder / "runs/priors/best").mkdir(exist_ok=True)


def read_checkpoint(folder: Path, path: Path) -> None:
    from medunifier_cli.checkpoint.pretrained import restore
    from medunifier_cli.run.record import Run

    restore(Run(folder / "runs/base"))


def make_files(folder: Path, home: Path) -> None:
    from tests.miniatures.results import result

    make_run(folder, home)
    shutil.rmtree(folder / "data")
    results = folder / "runs/base/results"
    results.mkdir(exist_ok=True)
    for what, metrics in (
        ("retrieval mimic-cxr 5x200", {"i2t_p@1": 0.5, "t2i_p@1": 0.5}),
        ("zeroshot chexpert-5x200 5x200", {"accuracy": 0.4}),
        ("report mimic-cxr test", {"bleu_1": 0.3, "cider": 0.1}),
        ("finetune-1 rsna test", {"auroc": 0.9}),
    ):
        body = result(what, metrics)
        (results / f"{what.replace(' ', '-')}.json").write_text(json.dumps(body))


def read_files(folder: Path, path: Path) -> None:
    from medunifier_cli.recipe.load import load_saved
    from medunifier_cli.recipe.schema import PretrainRecipe
    from medunifier_cli.run.record import Run

    if path.name in ("recipe.yaml", "provenance.json"):
        Run(folder / "runs/base").begin(load_saved(folder / "kept.yaml", PretrainRecipe), {}, ["mu"])
    if path.name != "log.jsonl":
        call("score", "base")
    if path.name != "provenance.json":
        call("score", "base", "--page")


def make_files_and_recipe(folder: Path, home: Path) -> None:
    make_files(folder, home)
    shutil.copy(folder / "runs/base/recipe.yaml", folder / "kept.yaml")


@functools.cache
def _trained(folder: Path) -> Any:
    from medunifier_cli.checkpoint.pretrained import restore
    from medunifier_cli.evaluate.benchmark import open_benchmark
    from medunifier_cli.run.record import Run

    trained = restore(Run(folder / "runs/base"))
    return trained, open_benchmark(trained, split="test", need_text=False)


def make_caches(folder: Path, home: Path) -> None:
    import os

    make_run(folder, home)
    os.environ.update(MU_DATA=str(folder / "data"), MU_RUNS=str(folder / "runs"))
    read_caches(folder)


def read_caches(folder: Path, path: Path | None = None) -> None:
    """Embeddings, token table and codes: good, or said to be damaged and made again."""
    from medunifier_cli.evaluate.retrieval.embed import embed_split

    trained, benchmark = _trained(folder)
    embed_split(trained, benchmark.source, "phantom", "test", benchmark.shards)
    # a new source, whose token table is read from its cache
    benchmark.source.__class__(
        benchmark.source.shards,
        trained.tokenizer,
        trained.recipe.data,
        trained.recipe.text,
        benchmark.plugin,
        need_text=False,
    )
    _read_codes(folder)


def _read_codes(folder: Path) -> None:
    from medunifier_cli.stages.codes import read_codes

    path = next((folder / "runs/priors").rglob("codes.h5"))
    read_codes(path, ("train",), {})


TARGETS = [
    Target(
        "checkpoint of a run",
        3,
        ("runs/base/checkpoints/*/*", "runs/base/recipe.yaml", "runs/base/tokenizer/*"),
        make_run,
        read_checkpoint,
        batch=100,
    ),
    Target(
        "recipe, log, provenance and results of a run",
        3,
        (
            "runs/base/recipe.yaml",
            "runs/base/provenance.json",
            "runs/base/log.jsonl",
            "runs/base/results/*.json",
        ),
        make_files_and_recipe,
        read_files,
        fresh=True,
        batch=100,
    ),
    Target(
        "caches",
        3,
        ("runs/*/cache/*.h5", "data/shards/phantom/.cache/test*.h5", "runs/priors/codes.h5"),
        make_caches,
        read_caches,
        fresh=True,
        batch=100,
    ),
]
