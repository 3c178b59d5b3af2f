"""Shards, a short pre-training run, and `mu finetune` from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from medunifier_cli.cli import mu
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema_finetune import FinetuneRecipe
from medunifier_cli.stages import finetune
from medunifier_cli.stages.pretrain import run_pretraining

SMALL = Path(__file__).parent / "small_phantom.yaml"
QUICK = (
    "train.steps=14", "train.global_batch=8", "train.valid_every=5", "train.checkpoint_every=4",
    "train.log_every=1", "train.threads=1", "train.tensorboard=false", "data.workers=0", "model.head=linear",
    "optim.model_lr=1e-3", "optim.head_lr=1e-2",
)  # fmt: skip


class FinetuneRuns:
    """Shards of a small phantom and one short pre-training run."""

    def __init__(self, root: Path) -> None:
        self.shards, self.pretrained = root / "shards", root / "runs" / "small"
        sizes = [word for split in ("train=60", "valid=30", "test=40") for word in ("-o", split)]
        line = ["prepare", "phantom", "--size", "32", "--out", str(self.shards), "--workers", "1", *sizes]
        result = CliRunner().invoke(mu, line)
        assert result.exit_code == 0, result.output
        recipe = load_recipe(SMALL, (f"data.shards={self.shards}", "data.test=", "train.steps=2"))
        run_pretraining(recipe, self.pretrained)

    def recipe(self, *overrides: str, shards: Path | None = None) -> FinetuneRecipe:
        where = (f"data.shards={shards or self.shards}", f"model.pretrained={self.pretrained}")
        return load_recipe("finetune-demo", (*QUICK, *where, *overrides), FinetuneRecipe)

    def tune(self, folder: Path, *overrides: str, shards: Path | None = None) -> dict[str, Any]:
        """Run to the end; the result file."""
        recipe = self.recipe(*overrides, shards=shards)
        finetune.run_finetuning(recipe, folder)
        path = folder / "results" / f"finetune-{recipe.data.dataset}-test.json"
        return dict(json.loads(path.read_text()))
