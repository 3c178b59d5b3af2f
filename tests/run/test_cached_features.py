"""`mu prepare --features`, and what reads it: equal to the live encoder, which then never runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from medunifier_cli.data import cached_features, split_source
from medunifier_cli.data.cached_features import features_path
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.scores.text import meteor
from medunifier_cli.stages.cached import compute
from medunifier_cli.stages.check.memory import step_memory
from tests import warm
from tests.run.small_priors import PRIORS
from tests.run.small_run import RECIPE, call
from tests.run.test_resume import final_state

FROZEN = ("-o", "model.vit.frozen=true")
CACHED = (*FROZEN, "-o", "data.features=cached")
QUICK = ("-o", "train.steps=3", "-o", "train.valid_pairs=20", "-o", "train.threads=1")
FOLDER = Path("data", "features", "phantom", "vit_tiny_patch16_224-32")

ROWS = cached_features.FILE_ROWS
"""Images of a file, where no fixture makes files smaller."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Phantom data and the features of a small frozen encoder, ten rows in a file."""
    root = tmp_path_factory.mktemp("features")
    sizes = ("-o", "train=24", "-o", "valid=20", "-o", "test=40")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cached_features, "FILE_ROWS", 10)
        for words in (("phantom", "--size", 32, *sizes), ("--features", RECIPE, *FROZEN)):
            code, printed = call(root, "prepare", *words)
            assert code == 0, printed
        yield root


@pytest.fixture
def by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder sees one image at a time: no sum then depends on how many go together."""
    whole = ImageEncoder.forward

    def forward(self: ImageEncoder, image_BCHW: Tensor) -> Tensor:
        return torch.cat([whole(self, image[None]) for image in image_BCHW])

    monkeypatch.setattr(ImageEncoder, "forward", forward)


@pytest.fixture
def no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: ImageEncoder, image_BCHW: Tensor) -> Tensor:
        raise AssertionError("the image encoder ran")

    monkeypatch.setattr(ImageEncoder, "forward", forward)


def run(root: Path, *words: object) -> str:
    code, printed = call(root, *words)
    assert code == 0, printed
    return printed


def refused(root: Path, *words: object) -> str:
    """The one line with which a command ends."""
    code, printed = call(root, *words)
    assert code == 1, printed
    return printed.strip().splitlines()[-1]


def log(root: Path, name: str) -> list[dict[str, Any]]:
    lines = (root / "runs" / name / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_room_is_said_before(root: Path) -> None:
    printed = run(root, "check", RECIPE, *FROZEN)
    line = next(line for line in printed.splitlines() if "cached features" in line)
    # 84 images of 17 tokens x 32 in two bytes and a checksum, in nine files
    assert "84 images x 17 x 32 in bf16, 0.1 MB" in line
    assert sum(path.stat().st_size for path in (root / FOLDER).glob("*.features")) == 84 * 1092 + 9 * 32
    assert "all there" in run(root, "prepare", "--features", RECIPE, *FROZEN)


def test_a_small_disk_is_refused_before_anything_is_computed(
    root: Path, no_encoder: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10**6, 10**6, 50_000))
    line = refused(root, "prepare", "--features", RECIPE, *FROZEN, "--out", tmp_path / "other")
    assert "0.1 MB more are needed, and 0.1 MB are free there" in line
    assert "--out" in line
    assert not (tmp_path / "other").exists()


def test_training_equals_that_of_a_live_encoder_whose_output_is_rounded(
    root: Path, by_one: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    where = ("-o", f"data.features={tmp_path / 'cache'}")
    run(root, "prepare", "--features", RECIPE, *FROZEN, "--out", tmp_path / "cache")
    dropout = ("-o", "model.qformer.dropout=0.1")
    run(root, "pretrain", RECIPE, *FROZEN, *QUICK, *dropout, *where, "--name", "stored")
    one = ImageEncoder.forward
    rounded = lambda self, image: one(self, image).to(torch.bfloat16).float()  # noqa: E731
    monkeypatch.setattr(ImageEncoder, "forward", rounded)
    run(root, "pretrain", RECIPE, *FROZEN, *QUICK, *dropout, "--name", "rounded")
    assert final_state(root / "runs/stored") == final_state(root / "runs/rounded")
    values = [
        [metric["value"] for metric in json.loads(path.read_text())["metrics"]]
        for name in ("stored", "rounded")
        for path in (root / "runs" / name / "results").glob("pretraining-*.json")
    ]
    assert len(values) == 2
    assert values[0] == values[1]


def test_losses_are_the_live_ones_within_bf16_and_the_encoder_never_runs(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(root, "pretrain", RECIPE, *FROZEN, *QUICK, "--name", "live")

    def forward(self: ImageEncoder, image_BCHW: Tensor) -> Tensor:
        raise AssertionError("the image encoder ran")

    monkeypatch.setattr(ImageEncoder, "forward", forward)
    printed = run(root, "pretrain", RECIPE, *CACHED, *QUICK, "--name", "cached")
    assert "cached features of " in printed  # long lines are shortened in the middle: so may its folder be
    live, cached = log(root, "live"), log(root, "cached")
    assert [row["step"] for row in live] == [row["step"] for row in cached]
    for name in ("itc", "itm", "itg", "tig", "total"):
        # bf16 keeps 8 bits: 0.4 % of a feature, and less of a loss over many
        assert [row[name] for row in cached] == pytest.approx([row[name] for row in live], rel=4e-3)
    assert live != cached
    start = json.loads((root / "runs/cached/provenance.json").read_text())["starts"][-1]
    assert start["features"]["splits"] == ["test", "train", "valid"]
    checkpoint = json.loads(next((root / "runs/cached/checkpoints").glob("*/*.json")).read_text())
    assert start["features"]["encoder"] in json.dumps(checkpoint)
    assert "features" not in json.loads((root / "runs/live/provenance.json").read_text())["starts"][-1]


def test_all_that_follows_reads_them_too(
    root: Path, no_encoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meteor.shutil, "which", lambda _: None)  # its Java program takes longer than all else
    run(root, "pretrain", RECIPE, *CACHED, *QUICK, "--name", "model")
    assert "rank" in run(root, "retrieve", "--run", "model", "--split", "test")
    assert "accuracy" in run(root, "zeroshot", "--run", "model", "--split", "test")
    assert "BLEU" in run(root, "report", "--run", "model", "--limit", 4)
    _, printed = call(root, "fit-prior", PRIORS, "--run", "model")
    assert "44 images encoded" in printed, printed  # three steps teach the codes nothing
    quick = (
        "--run", "model", "-o", "train.steps=2", "-o", "train.global_batch=8", "-o", "data.workers=0",
        "-o", "train.threads=1", "-o", "train.tensorboard=false", "-o", "data.features=cached",
    )  # fmt: skip
    for freeze in ("true", "false"):
        words = ("--name", f"tuned-{freeze}", "-o", f"model.freeze={freeze}")
        assert "auroc" in run(root, "finetune", "finetune-demo", *quick, *words)
        start = json.loads((root / f"runs/tuned-{freeze}/provenance.json").read_text())["starts"][-1]
        assert start["features"]["folder"] == str(root / FOLDER)


def test_without_tig_no_image_is_decoded(
    root: Path, no_encoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def decode(*_: object) -> bool:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(split_source, "decode_grey", decode)
    run(root, "pretrain", RECIPE, *CACHED, *QUICK, "-o", "objectives.tig=0", "--name", "text")
    assert "itm" in log(root, "text")[-1]


def test_a_run_is_measured_without_its_cache_if_that_is_gone(root: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    for path in (root / FOLDER).iterdir():
        (tmp_path / "cache" / path.name).write_bytes(path.read_bytes())
    where = ("-o", f"data.features={tmp_path / 'cache'}")
    run(root, "pretrain", RECIPE, *FROZEN, *QUICK, *where, "--name", "lost", "-o", "data.test=")
    for path in (tmp_path / "cache").iterdir():
        path.unlink()
    printed = run(root, "retrieve", "--run", "lost", "--split", "test")
    assert f"{tmp_path / 'cache'}: no features of test; the image encoder runs" in printed
    line = refused(root, "pretrain", RECIPE, *FROZEN, *QUICK, *where, "--name", "lost", "-o", "data.test=")
    assert f"{tmp_path / 'cache' / 'train.json'}" in line
    assert "mu prepare --features RECIPE" in line


def test_contradictions_are_one_line(root: Path) -> None:
    assert "data.features" in refused(root, "pretrain", RECIPE, "-o", "data.features=cached")
    line = refused(root, "pretrain", RECIPE, *CACHED, "-o", "data.augment.rotation=5")
    assert "data.augment" in line
    assert "model.vit.frozen: false" in refused(root, "prepare", "--features", RECIPE)
    code, printed = call(root, "prepare", "--features", RECIPE, *FROZEN, "--size", 64)
    assert code == 2
    assert "--size is for shards" in printed


def test_features_of_another_encoder_size_or_split_are_refused(root: Path) -> None:
    where = ("-o", f"data.features={root / FOLDER}")
    line = refused(root, "pretrain", RECIPE, *FROZEN, *QUICK, *where, "-o", "train.seed=7", "--name", "seed")
    assert "train.json: features of another image encoder" in line
    line = refused(root, "pretrain", RECIPE, *FROZEN, *where, "-o", "data.image_size=64", "--name", "size")
    assert "train.json: features of images of 32 pixels, not of 64" in line
    heads = ("-o", "model.vit.heads=4", "--name", "heads")
    line = refused(root, "pretrain", RECIPE, *FROZEN, *where, *heads)
    assert "features of heads 2, not 4" in line
    line = refused(root, "prepare", "--features", RECIPE, *FROZEN, "-o", "train.seed=7")
    assert "another image encoder" in line
    assert "--out" in line


def test_a_damaged_file_ends_training_and_is_computed_anew_once_deleted(root: Path) -> None:
    path = features_path(root / FOLDER, "train", 1)
    whole = path.read_bytes()
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    line = refused(root, "pretrain", RECIPE, *CACHED, *QUICK, "--name", "damaged")
    assert f"{path}: damaged in row 0; delete it and run `mu prepare --features RECIPE` again" in line
    code, printed = call(root, "check", RECIPE, *CACHED, "--hashes")
    assert code == 1
    assert f"problem  cached features: {path}: damaged in row 0" in printed
    path.write_bytes(whole[:-40])
    assert f"{path}: " in refused(root, "prepare", "--features", RECIPE, *FROZEN)
    path.unlink()
    others = {file: file.stat().st_mtime_ns for file in (root / FOLDER).glob("*.features")}
    run(root, "prepare", "--features", RECIPE, *FROZEN)
    assert path.read_bytes() == whole
    assert {file: file.stat().st_mtime_ns for file in others} == others


def test_a_killed_call_loses_the_file_under_way_alone(root: Path, tmp_path: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from medunifier_cli.cli import mu\n"
        "from medunifier_cli.data import cached_features as cached\n"
        "cached.FILE_ROWS, seal = 10, cached.FeatureFacts.seal\n"
        "def kill(facts, number, crc):\n"
        "    if number == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return seal(facts, number, crc)\n"
        "cached.FeatureFacts.seal = kill\n"
        "mu(sys.argv[1:])\n"
    )
    words = [str(word) for word in ("prepare", "--features", RECIPE, *FROZEN, "--out", tmp_path / "cache")]
    env = {**os.environ, "MU_DATA": str(root / "data"), "CUDA_VISIBLE_DEVICES": ""}
    done = warm.run(["-c", script, *words], env=env, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    finished = tmp_path / "cache" / "train-000000.features"
    before = finished.stat().st_mtime_ns
    assert [path.name for path in (tmp_path / "cache").glob("*.features")] == [finished.name]
    assert list((tmp_path / "cache").glob("*.tmp"))
    run(root, *words)
    assert finished.stat().st_mtime_ns == before
    assert not list((tmp_path / "cache").glob("*.tmp"))
    for path in (root / FOLDER).iterdir():
        assert (tmp_path / "cache" / path.name).read_bytes() == path.read_bytes()


def test_parts_of_a_job_array_make_the_same_files(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "BATCH", 7)  # no file begins where a batch begins
    words = ("prepare", "--features", RECIPE, *FROZEN, "--out", tmp_path / "cache")
    assert "5 files of other parts are not there yet" in run(root, *words, "--part", "2/2")
    printed = run(root, *words, "--part", "1/2", "--workers", 1)
    assert "not there yet" not in printed
    for path in (root / FOLDER).iterdir():
        assert (tmp_path / "cache" / path.name).stat().st_size == path.stat().st_size
    run(root, "pretrain", RECIPE, *FROZEN, *QUICK, "-o", f"data.features={tmp_path}/cache", "--name", "of")


@pytest.mark.slow
def test_two_ranks_make_the_same_files(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_features, "FILE_ROWS", ROWS)  # as in the processes that are started here
    env = {**os.environ, "MU_DATA": str(root / "data"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    caches = []
    for ranks in (1, 2):
        words = ("prepare", "--features", RECIPE, *FROZEN, "--out", tmp_path / f"by-{ranks}",
                 "-o", f"train.processes={ranks}")  # fmt: skip
        subprocess.run(
            [sys.executable, "-m", "medunifier_cli", *map(str, words)], env=env, check=True, timeout=300
        )
        caches.append(cached_features.SplitFeatures(tmp_path / f"by-{ranks}", "train", {}))
    one, two = caches
    assert one.facts == two.facts
    for cache in caches:
        cache.verify()
    first, second = sorted((tmp_path / "by-1").iterdir()), sorted((tmp_path / "by-2").iterdir())
    assert [path.name for path in first] == [path.name for path in second]


def test_memory_of_a_step_is_counted_without_the_encoder() -> None:
    live, cached = (
        step_memory(load_recipe("one-gpu", words), 4) for words in ((), ("data.features=cached",))
    )
    # ViT-B/14: 86 M weights in bf16
    assert live.weights - cached.weights == pytest.approx(2 * 86e6, rel=0.01)
    assert live.peak - cached.peak > 1e8
