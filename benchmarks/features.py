"""Cached features against a live image encoder: pairs per second in training, bytes on disk, reading.

    python benchmarks/features.py [--images 64] [--batch 16] [--rounds 3] [--threads 1] [--tiny]

The encoder is a ViT-S/14 at 224 pixels. A step is loading, forward and backward pass of all four objectives,
without the optimiser; TIG reads the images in both cases. Rounds of both alternate, and medians are compared;
`processor_ratio` compares processor time, which others on the machine disturb less.
Files are read from the page cache, so that `read_*` is the cost of the reader with its checksums, not of a
disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from loader import WORDS, Stand

from medunifier_cli.checkpoint.encoder.features import open_features
from medunifier_cli.data.cached_features import SplitFeatures
from medunifier_cli.data.shards import Shards
from medunifier_cli.data.split_source import SplitSource
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.prepare.prepare import Job, prepare
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.run.record import Run
from medunifier_cli.stages.cached.compute import FeatureJob, compute_features
from medunifier_cli.stages.pretrain import Pretraining

MID = (
    "data.image_size=224", "model.vit.name=vit_small_patch16_224", "model.vit.patch_size=14",
    "model.qformer.layers=6", "model.qformer.width=384", "model.qformer.heads=6",
    "model.qformer.ffn_width=1536", "model.generator.base_width=96", "model.generator.code_width=192",
    "model.generator.residual_width=96",
)  # fmt: skip
SMALL = (
    "data.image_size=32", "model.vit.name=vit_tiny_patch16_224", "model.vit.patch_size=8",
    "model.vit.width=48", "model.vit.depth=1", "model.vit.heads=4", "model.qformer.queries=4",
    "model.qformer.layers=1",
    "model.qformer.width=32", "model.qformer.heads=4", "model.qformer.ffn_width=64",
    "model.generator.base_width=16", "model.generator.code_width=12", "model.generator.residual_width=8",
)  # fmt: skip


def recipe_of(folder: Path, sizes: tuple[str, ...], batch: int, threads: int, *more: str) -> PretrainRecipe:
    common = (
        f"data.shards={folder / 'shards'}", "data.valid=", "data.test=", "data.workers=0",
        "model.vit.weights=random", "model.vit.drop_last_block=false", "model.qformer.weights=random",
        "train.processes=1", "train.precision=no", f"train.threads={threads}", f"train.global_batch={batch}",
        "train.micro_batch=0", "train.steps=1000000", "text.tokenizer=train",
    )  # fmt: skip
    return load_recipe("full", [*sizes, *common, *more], PretrainRecipe)


def stage_of(recipe: PretrainRecipe, folder: Path, plugin: Stand) -> Pretraining:
    shards = Shards.open(folder / "shards", "train")
    tokenizer = TextTokenizer.train([" ".join(WORDS)], 200)
    source = SplitSource(shards, tokenizer, recipe.data, recipe.text, plugin)
    source = source.with_features(open_features(recipe.data.features, "", recipe, shards))
    return Pretraining(recipe, Run(folder / "run"), source, None, tokenizer, torch.device("cpu"))


class Running:
    """A stage under way."""

    def __init__(self, stage: Pretraining) -> None:
        self.stage, self.step = stage, 0
        self.batches = stage.batches(0)
        self.losses: list[float] = []
        stage.module.train()

    def rate(self, steps: int) -> tuple[float, float]:
        """Pairs per second over some steps, and per second of processor."""
        start, before = time.perf_counter(), time.process_time()
        for _ in range(steps):
            for micro, batch in enumerate(next(self.batches)):
                torch.manual_seed(self.step)  # dropout draws alike in both
                losses, _ = self.stage.step(self.stage.module, batch, self.step, micro)
                losses["total"].backward()
            self.losses.append(float(losses["total"].detach()))
            self.stage.module.zero_grad()
            self.step += 1
        pairs = steps * self.stage.recipe.train.global_batch
        return pairs / (time.perf_counter() - start), pairs / (time.process_time() - before)


def reading(features: SplitFeatures, batch: int, seconds: float = 1.0) -> float:
    """Rows read and verified per second, at random places."""
    rows, room, done = np.random.default_rng(0), features.empty(batch), 0
    start = time.perf_counter()
    while (taken := time.perf_counter() - start) < seconds:
        features.read(rows.integers(0, len(features), batch), room)
        done += batch
    return done / taken


def measure(folder: Path, sizes: tuple[str, ...], args: argparse.Namespace) -> dict[str, Any]:
    torch.set_num_threads(args.threads)
    live = recipe_of(folder, sizes, args.batch, args.threads)
    cached = recipe_of(folder, sizes, args.batch, args.threads, f"data.features={folder / 'cache'}")
    plugin = Stand(args.images)
    prepare(Job(plugin, folder, folder / "shards", {}, size=live.data.image_size, workers=1))
    running = [Running(stage_of(live, folder, plugin))]  # first: it imports timm
    start = time.perf_counter()
    compute_features(FeatureJob(cached))
    computed = time.perf_counter() - start
    running.append(Running(stage_of(cached, folder, plugin)))
    for one in running:
        one.rate(1)  # allocations
    rates = [[one.rate(args.steps) for one in running] for _ in range(args.rounds)]
    medians, processor = (
        [statistics.median(rate[kind] for rate in column) for column in zip(*rates, strict=True)]
        for kind in (0, 1)
    )
    differences = [abs(a / b - 1) for a, b in zip(running[1].losses, running[0].losses, strict=True)]
    features = running[1].stage.train_split.features
    assert features is not None
    rows = reading(features, args.batch, 0.1 if args.tiny else 1.0)
    shards = running[0].stage.train_split.shards
    return {
        "benchmark": "features",
        "ratio": round(medians[1] / medians[0], 3),
        "processor_ratio": round(processor[1] / processor[0], 3),
        "pairs_per_second_live": round(medians[0], 2),
        "pairs_per_second_cached": round(medians[1], 2),
        "largest_difference_of_loss": float(f"{max(differences):.3g}"),
        "computed_per_second": round(args.images / computed, 2),
        "bytes_per_sample": round(features.facts.total_bytes / len(features), 1),
        "image_bytes_per_sample": round(float(shards.index["image_size"].mean()), 1),
        "read_samples_per_second": round(rows, 1),
        "read_mb_per_second": round(rows * features.facts.row_bytes / 1e6, 1),
        "threads": args.threads,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that this file runs")
    args = parser.parse_args()
    if args.tiny:
        args.images, args.batch, args.steps, args.rounds = 16, 8, 1, 1
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), SMALL if args.tiny else MID, args)
    print(f"live and cached: {result}", file=sys.stderr)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
