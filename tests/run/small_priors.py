"""A small model on phantom and priors over its codes, which several files use."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from medunifier_cli.checkpoint import store
from medunifier_cli.checkpoint.pretrained import restore
from medunifier_cli.cli import mu
from medunifier_cli.data.loader import collate
from medunifier_cli.evaluate.benchmark import open_benchmark
from medunifier_cli.model.vit import pixels
from medunifier_cli.run.record import Run
from tests.tiny import scatter

HERE = Path(__file__).parent
PRETRAIN, PRIORS = HERE / "small_phantom.yaml", HERE / "small_priors.yaml"


def call(root: Path, *arguments: object) -> tuple[int, str]:
    """Run `mu` in this process, with data and runs under `root`: exit code, and what it printed."""
    env = {"MU_DATA": str(root / "data"), "MU_RUNS": str(root / "runs")}
    done = CliRunner().invoke(mu, [str(argument) for argument in arguments], env=env)
    return done.exit_code, done.output


def fit_small_priors(root: Path) -> Path:
    """Data, a pre-training run `model` and its priors `priors` under one folder; fitted once in a process."""
    return Path(shutil.copytree(_fitted(), root, dirs_exist_ok=True))


@functools.cache
def _fitted() -> Path:
    root = Path(tempfile.mkdtemp(prefix="priors-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    code, printed = call(
        root, "prepare", "phantom", "--size", 32, "-o", "train=60", "-o", "valid=30", "-o", "test=40"
    )
    assert code == 0, printed
    for name in ("model", "second"):
        seed = f"train.seed={len(name)}"
        ask = ("pretrain", PRETRAIN, "--name", name, "-o", "train.steps=2", "-o", seed, "-o", "data.test=")
        code, printed = call(root, *ask)
        assert code == 0, printed
    code, printed = call(root, "fit-prior", PRIORS, "--name", "early", "--run", "model")
    assert code == 1  # two steps teach the codes nothing
    assert "codebook has collapsed" in printed or "depend on the position" in printed
    make_codes_differ(root)
    code, printed = call(root, "fit-prior", PRIORS, "--name", "priors", "--run", "model")
    assert code == 0, printed
    assert "top prior, nats per code" in printed
    return root


def make_codes_differ(root: Path, name: str = "model") -> None:
    """What minutes of training would do: weights that let images differ, and codebooks spread over them."""
    run = Run(root / "runs" / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_DATA", str(root / "data"))
        patch.setenv("MU_RUNS", str(root / "runs"))
        trained = restore(run, torch.device("cpu"))
        source = open_benchmark(trained, split="train").source
    torch.manual_seed(0)
    scatter(trained.model)
    generator = trained.model.generator.train()
    for quantiser in (generator.quantise_top, generator.quantise_bottom):
        quantiser.started.fill_(False)
    count = min(60, len(source))
    batch = collate([source.sample(i) for i in range(count)], range(count))
    with torch.no_grad():
        memory = trained.model.encode_image(pixels(batch.image_B1HW))
        text = trained.model.encode_text(batch.text)
        generator(memory.query_BQD, memory.patch_BVD, text, torch.Generator().manual_seed(0))
    last = store.newest(run.checkpoints)
    assert last is not None
    model = {**last.tensors["model"], **trained.model.state_dict()}
    store.save(run.checkpoints, store.Checkpoint(3, {**last.tensors, "model": model}, last.facts), keep=1)
