"""All objectives of one batch, weighted and summed (paper, section 3.5, equation 24).

B local pairs, G global pairs (rank after rank). The global batch of this folder is what all ranks hold in one
pass; a step of several micro-batches averages its passes with equal weights. Averaging this module's losses,
and so its gradients, over ranks gives what one process computes on all pairs of the pass: ITC and ITM see the
pairs of all ranks, and sums over tokens or rows are divided by their counts over all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from medunifier_cli.data.contract import Batch, PackedText
from medunifier_cli.data.texts.dropping import drop_tokens
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import ImageEncoder, pixels
from medunifier_cli.objectives.itc import ImageTextContrast
from medunifier_cli.objectives.itg import ImageGroundedTextGeneration
from medunifier_cli.objectives.itm import ImageTextMatching
from medunifier_cli.objectives.objective import EncodedBatch, Objective
from medunifier_cli.objectives.tig import TextGroundedImageGeneration
from medunifier_cli.recipe.schema import PretrainRecipe

OBJECTIVES: list[Objective] = [
    ImageTextContrast(),
    ImageTextMatching(),
    ImageGroundedTextGeneration(),
    TextGroundedImageGeneration(),
]
"""All objectives, in the order they are computed. The order is part of a run's numbers: dropout draws from
one stream of random numbers, so another order is another run. A new objective goes to the end."""


def active_objectives(recipe: PretrainRecipe) -> list[Objective]:
    """The objectives whose weight in the recipe is above 0."""
    # in the order of the list above, whatever order the recipe's fields have
    weights = recipe.objectives.weights()
    return [objective for objective in OBJECTIVES if objective.name in weights]


def leaves_weights_unused(recipe: PretrainRecipe) -> bool:
    """Whether some trained weights may get no gradient in a step, as DistributedDataParallel has to know."""
    # one objective that reaches everything is enough: gradients of the others add to it
    return not any(objective.reaches_every_weight for objective in active_objectives(recipe))


def curves_of(recipe: PretrainRecipe) -> dict[str, str]:
    """Numbers of a pre-training run's log that get a curve on its page, in order: name -> heading."""
    active = active_objectives(recipe)
    curves = {"total": "Loss, all objectives"}
    curves |= {objective.name: objective.title for objective in active}
    # all losses before all monitors: losses are compared with each other, on axes of their own kind
    for objective in active:
        curves |= objective.monitors
    return curves | {"lr": "Learning rate"}


def build_model(
    recipe: PretrainRecipe, vocabulary: int, load: bool = True, encoder: ImageEncoder | None = None
) -> MedUnifier:
    """The model with the heads of every active objective.

    Args:
        recipe: sizes and weights of the objectives.
        vocabulary: token ids of the tokenizer, [DEC] included.
        load: False leaves out the image encoder's pretrained weights.
        encoder: the image encoder, if it has been built already.
    """
    model = MedUnifier(recipe, vocabulary, load, encoder)
    # after the paper's heads: a new head draws its initial weights last and leaves the others' as they were
    for objective in active_objectives(recipe):
        objective.extend(model)
    return model


class PretrainingLoss(nn.Module):
    """(batch) -> losses and monitors by name; `total` is the weighted sum that is trained.

    Args:
        model: with the heads of every objective whose weight is above 0, see `build_model`.
        dec_id: token id of [DEC].
        objectives: by default those that the model's recipe gives a weight.
    """

    def __init__(self, model: MedUnifier, dec_id: int, objectives: Sequence[Objective] | None = None) -> None:
        super().__init__()
        self.model = model
        self.dec_id = dec_id
        self.objectives = active_objectives(model.recipe) if objectives is None else list(objectives)

    def forward(
        self, batch: Batch, revival: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses with gradient, monitors without; both scalars.

        Args:
            batch: on the model's device (`text.lengths_B` and `position_B` on the CPU).
            revival: decides which vectors replace dead codes, in the same state on all ranks; None leaves
                them.
        """
        model, weights = self.model, self.model.recipe.objectives.weights()
        image_BCHW = pixels(batch.image_B1HW)
        memory = model.encode(batch.image_or_feature)
        # here and not where it is first read: dropout draws in this order whichever objectives are active
        text_cls = (
            model.encode_text(self._text(batch)) if any(o.reads_text_cls for o in self.objectives) else None
        )
        encoded = EncodedBatch(model, batch, image_BCHW, memory, text_cls, self.dec_id, revival)
        losses: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        for objective in self.objectives:
            encoded.begun[objective.name] = objective.begin(encoded)
        on_gpu = image_BCHW.device.type == "cuda"
        # one graph for all: the encoders are run backward once, with the sum of the objectives' gradients
        for objective in sorted(self.objectives, key=lambda o: on_gpu and o.waits):
            losses[objective.name], objective_monitors = objective.compute(encoded)
            monitors |= objective_monitors
        # equation (24); the single losses are logged without their weights, so that runs can be compared
        losses["total"] = sum((weights[name] * loss for name, loss in losses.items()), torch.zeros(()))
        return losses, monitors

    def _text(self, batch: Batch) -> PackedText:
        # what the uni-modal pass reads; a validation measures with the whole text
        recipe = self.model.recipe
        if not (self.training and recipe.text.drop):
            return batch.text
        return drop_tokens(batch.text, batch.position_B.tolist(), recipe.text.drop, recipe.train.seed)
