"""Readers of recipes and of `-o`."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.campaign.targets.target import Target

ROOT = Path(__file__).resolve().parents[3]


def make(folder: Path, home: Path) -> None:
    shutil.copy(ROOT / "tests/run/small_phantom.yaml", folder / "pretrain.yaml")
    shutil.copy(ROOT / "tests/run/small_priors.yaml", folder / "fit-prior.yaml")
    shutil.copy(ROOT / "recipes/finetune-demo.yaml", folder / "finetune.yaml")
    (folder / "based.yaml").write_text("base: pretrain.yaml\ntrain: {steps: 5}\n")


def read(folder: Path, path: Path) -> None:
    """As what it says it is; one that others build on through one of them."""
    from medunifier_cli.recipe.load import dump_recipe, load_any

    dump_recipe(load_any(folder / "based.yaml" if path.stem == "pretrain" else path))


def make_overrides(folder: Path, home: Path) -> None:
    (folder / "overrides.txt").write_text(
        "train.steps=5\ndata.sections=[findings, impression]\nname=other\nmodel.vit.weights=random\n"
        "optim.peak_lr=1e-3\ntrain.precision=bf16\nmodel.vit.frozen=true\ndata.shards=null\n"
    )


def read_overrides(folder: Path, path: Path) -> None:
    from medunifier_cli.recipe.load import load_recipe

    text = path.read_bytes().decode(errors="surrogateescape")
    load_recipe(ROOT / "tests/run/small_phantom.yaml", [line for line in text.split("\n") if line])


TARGETS = [
    Target("recipes", 12, ("*.yaml",), make, read),
    Target("recipe overrides", 10, ("overrides.txt",), make_overrides, read_overrides),
]
