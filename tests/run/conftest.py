"""Small shards, a small recipe and a small run, and `mu` as a user calls it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import webdataset
from click.testing import CliRunner
from PIL import Image

from medunifier_cli.checkpoint.pretrained import PretrainedRun, restore
from medunifier_cli.cli import mu as group
from medunifier_cli.evaluate.benchmark import Benchmark, open_benchmark
from medunifier_cli.run.record import Run
from tests import warm
from tests.run import small_run

SIZE = 32
WORDS = [
    "left",
    "right",
    "upper",
    "lower",
    "lobe",
    "opacity",
    "effusion",
    "heart",
    "lung",
    "clear",
    "normal",
    "large",
    "small",
    "no",
    "mild",
]

RECIPE = """\
stage: pretrain
data: {dataset: phantom, image_size: 32, workers: 1}
text: {tokenizer: train, vocabulary: 120, max_tokens: 24}
model:
  vit:
    {name: vit_tiny_patch16_224, frozen: false, drop_last_block: false, patch_size: 8, width: 32,
     depth: 1, heads: 2}
  qformer: {layers: 2, width: 32, heads: 2, ffn_width: 64, queries: 2, dropout: 0.1}
  generator: {codebook_size: 16, code_width: 16, base_width: 16, residual_width: 8, revive_dead_codes: true}
objectives: {embed_norm: batch, embed_width: 16}
optim: {peak_lr: 1.0e-3, warmup_lr: 1.0e-4}
train:
  {precision: "no", processes: 1, threads: 1, steps: 12, global_batch: 8, micro_batch: 4, log_every: 1,
   valid_every: 5, valid_batches: 1, checkpoint_every: 2, tensorboard: false}
"""


def write_split(folder: Path, split: str, count: int, seed: int) -> None:
    """A plain WebDataset shard of bright squares and words that say where they are."""
    random = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(folder / f"{split}-000000.tar")) as writer:
        for number in range(count):
            image = random.integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
            left, top = random.integers(0, 2, 2)
            image[top * 16 : top * 16 + 16, left * 16 : left * 16 + 16] += 150
            text = " ".join(
                [
                    ("left", "right")[left],
                    ("upper", "lower")[top],
                    *random.choice(WORDS, random.integers(3, 9)),
                ]
            )
            png = io.BytesIO()
            Image.fromarray(image).save(png, "PNG")
            meta = {
                "sections": {"findings": text, "impression": ""},
                "labels": {},
                "subject": f"{split}{number}",
            }
            writer.write(
                {"__key__": f"{split}-{number:04d}", "png": png.getvalue(), "json": json.dumps(meta).encode()}
            )


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small shards: train 40, valid 10, test 10."""
    folder = tmp_path_factory.mktemp("small") / "shards"
    for seed, (split, count) in enumerate({"train": 40, "valid": 10, "test": 10}.items()):
        write_split(folder, split, count, seed)
    return folder


@pytest.fixture(scope="session")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a model with some 50,000 weights."""
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def start(tmp_path: Path, shards: Path) -> Callable[..., warm.Warm]:
    """Start `mu ARGUMENTS` in its own process group, with runs under `tmp_path / "runs"`."""

    def start(*arguments: object) -> warm.Warm:
        env = {**os.environ, "MU_RUNS": str(tmp_path / "runs"), "CUDA_VISIBLE_DEVICES": ""}
        return warm.start(["-m", "medunifier_cli", *arguments], env=env)

    return start


@pytest.fixture
def mu(start: Callable[..., warm.Warm]) -> Callable[..., tuple[int, str]]:
    """Run `mu ARGUMENTS` to its end: exit code, and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        process = start(*arguments)
        printed, _ = process.communicate(timeout=300)
        return process.returncode, printed

    return run


@pytest.fixture(scope="session")
def first_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom data and one short run on them, `small`, which no test changes."""
    root = tmp_path_factory.mktemp("first")
    sizes = ("-o", "train=24", "-o", "valid=20", "-o", "test=40")
    assert small_run.call(root, "prepare", "phantom", "--size", 32, *sizes)[0] == 0
    changed = ("-o", "train.steps=2", "-o", "data.valid=", "-o", "data.test=", "-o", "objectives.tig=0")
    code, printed = small_run.call(root, "pretrain", small_run.RECIPE, "--name", "small", *changed)
    assert code == 0, printed
    return root


@pytest.fixture(scope="module")
def home(first_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of them that the tests of a file share."""
    return Path(shutil.copytree(first_home, tmp_path_factory.mktemp("home") / "home"))


@pytest.fixture
def verb(home: Path, monkeypatch: pytest.MonkeyPatch) -> small_run.Mu:
    """`mu ...` in this process, on that run."""
    monkeypatch.setenv("MU_DATA", str(home / "data"))
    monkeypatch.setenv("MU_RUNS", str(home / "runs"))
    return lambda *words: CliRunner().invoke(group, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def trained(home: Path) -> PretrainedRun:
    return restore(Run(home / "runs" / "small"))


@pytest.fixture
def benchmark(verb: small_run.Mu, trained: PretrainedRun) -> Benchmark:
    return open_benchmark(trained, split="test", need_text=False)
