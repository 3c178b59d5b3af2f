"""A validation of pre-training: losses of whole batches, a picture of reconstructions, scores of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import torch

from medunifier_cli.data.batch import Batch, first_pairs, to_device
from medunifier_cli.data.loader import SplitSource, eval_batches, eval_workers
from medunifier_cli.distributed import world
from medunifier_cli.evaluate.pair_scores import PairScores
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.pretraining import PretrainingLoss
from medunifier_cli.page.pictures import save_pairs
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.terminal.say import say
from medunifier_cli.train.stop import Watch

SHOWN_PAIRS = 8
"""Images in the picture of reconstructions."""


class Validation:
    """What each validation of a run measures.

    Args:
        source: the validation split.
        micro_batch: pairs of each rank in a batch, as in training: losses of ITC and ITM depend on it.
        pictures: folder for the pictures.
        device: of the model.
    """

    def __init__(
        self, recipe: PretrainRecipe, source: SplitSource, micro_batch: int, pictures: Path,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.recipe, self.source = recipe, source
        self.pictures, self.device = pictures, device
        # never more than there are: copies in a batch would be each other's negatives
        self.pairs = max(1, min(micro_batch, len(source) // world.size()))
        if self.pairs < micro_batch and world.is_main():
            passed, shown = micro_batch * world.size(), self.pairs * world.size()
            say(
                f"warning: {recipe.data.valid}: {len(source):,} pairs, fewer than a pass of training has "
                f"({passed:,}); losses of validation contrast {shown:,} pairs"
            )
        self._pairs: PairScores | None = None

    def measure(self, module: PretrainingLoss, step: int, watch: Watch = iter) -> dict[str, float]:
        """Losses and monitors, averaged over whole batches; then those of `PairScores`.

        The last, incomplete batch is skipped, as the losses of ITC and ITM depend on the size of the batch. A
        split that is smaller than one is a batch of its own.

        Args:
            module: in evaluation mode.
            step: optimiser steps done, for the name of the picture.
            watch: what batches go through, so that a signal ends it.
        """
        numbers = self._losses(module, step, watch)
        objectives, most = self.recipe.objectives, self.recipe.train.valid_pairs
        if not objectives.itc or not most:
            return numbers
        if self._pairs is None:  # a finished run, which validates no more, need not choose any
            self._pairs = PairScores(self.source, most, bool(objectives.itm))
        return numbers | self._pairs.measure(module.model, self.device, watch)

    def _losses(self, module: PretrainingLoss, step: int, watch: Watch) -> dict[str, float]:
        sums: dict[str, float] = {}
        whole = max(1, len(self.source) // (self.pairs * world.size()))
        count = min(whole, self.recipe.train.valid_batches or whole)
        loaded = eval_batches(
            self.source, batch_size=self.pairs, rank=world.rank(), world=world.size(),
            workers=eval_workers(self.recipe.data.workers, count), batches=count,
        )  # fmt: skip
        # closed here, and not when it is collected, where a signal ends it: it may have processes
        with closing(loaded) as batches:
            for number, (batch, _) in enumerate(watch(batches)):
                batch = to_device(batch, self.device)
                losses, monitors = module(batch)
                values = {**losses, **monitors}
                means = world.mean(torch.stack([value.float() for value in values.values()])).tolist()
                for name, value in zip(values, means, strict=True):
                    sums[name] = sums.get(name, 0.0) + value / count
                if number == 0 and world.is_main() and self.recipe.objectives.tig:
                    self._save_picture(module, batch, step)
        return sums

    def _save_picture(self, module: PretrainingLoss, batch: Batch, step: int) -> None:
        few = first_pairs(batch, SHOWN_PAIRS)
        reconstruction = module.model.reconstruct(few)
        path = self.pictures / f"reconstructions-step-{step:08d}.png"
        save_pairs(pixels(few.image_B1HW), reconstruction.image_BCHW, path)


def score_of(numbers: Mapping[str, float], best: str, device: torch.device) -> float:
    """The number of a validation that chooses the best one, the higher the better; NaN if it is not there.

    Args:
        best: `train.best` of the recipe.

    Returns:
        The main rank's, on all ranks: it decides when training ends, which must be one decision.
    """
    value = -numbers["total"] if best == "loss" else numbers.get(best, float("nan"))
    return float(world.of_main(torch.tensor(value, dtype=torch.float64, device=device)))
