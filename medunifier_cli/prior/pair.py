"""Both priors of a model, trained together: p(top | text) and p(bottom | top, text).

They share no weight, so minimising the sum of their losses trains each as it would be trained alone; one run,
one log and one checkpoint hold both.

Letters: B maps, T top edge, G bottom edge, K codes, D text width.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.contract import CodeBatch, TextStates, Values
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.sampling import Inputs, sample
from medunifier_cli.prior.shape import PriorShape


class PriorPair(nn.Module):
    """Top and bottom prior as one module; `prior.contract.Prior` says what each method is for."""

    tokens = False
    chances = 0
    decoding: Mapping[str, float] = {}

    def __init__(self, top: PriorShape, bottom: PriorShape) -> None:
        super().__init__()
        self.top = PixelSnail(top)
        self.bottom = PixelSnail(bottom)

    def logits(self, batch: CodeBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Level -> logits [B, K, H, W] and the codes they should give [B, H, W]."""
        text = {"condition": batch.text_BD, "drop_condition": batch.drop_B}
        # Teacher forcing: the bottom prior is trained on the true top map, never on a sampled one. So both
        # can train at once, and neither waits for the other.
        top = self.top(batch.top_BTT, **text)
        bottom = self.bottom(batch.bottom_BGG, top_codes=batch.top_BTT, **text)
        return {"top": (top, batch.top_BTT), "bottom": (bottom, batch.bottom_BGG)}

    def forward(self, batch: CodeBatch) -> tuple[Values, Values]:
        """Losses in nats per code (`top`, `bottom`, their sum `total`) and accuracies."""
        losses: Values = {}
        monitors: Values = {}
        for level, (logits, codes) in self.logits(batch).items():
            # Mean over positions and rows alike, so nats per code compare across maps of different sizes.
            losses[level] = F.cross_entropy(*_for_loss(logits, codes))
            monitors[f"{level}_accuracy"] = (logits.detach().argmax(1) == codes).float().mean()
        losses["total"] = losses["top"] + losses["bottom"]
        return losses, monitors

    def prepare(self, top_nTT: Tensor, bottom_nGG: Tensor) -> None:
        """Nothing: a pair learns from random weights."""

    def sample(
        self, top_edge: int, numbers: range, draws: Draws, text: Tensor | TextStates | None
    ) -> tuple[Tensor, Tensor]:
        """Top codes, then bottom codes given these; see `sampling.sample`."""
        assert not isinstance(text, TextStates)
        top = sample(self.top, (top_edge, top_edge), numbers, draws, Inputs(text))
        size = (2 * top_edge, 2 * top_edge)
        return top, sample(self.bottom, size, numbers, draws, Inputs(text, top))

    @torch.no_grad()
    def sums(self, batch: CodeBatch, mask_B: Tensor) -> Tensor:
        """Float64 [2, 2]: nats and hits of top and bottom, summed over the codes of the rows in `mask_B`."""
        rows = []
        for logits, codes in self.logits(batch).values():
            # Sums, not means: the last batch of a split is filled up by repeated rows, and ranks add their
            # sums before anyone divides. In float64, as a split holds millions of codes.
            rows_and_codes = _for_loss(logits, codes)
            nats_BHW = F.cross_entropy(*rows_and_codes, reduction="none").view(codes.shape)
            nats = nats_BHW[mask_B].double().sum()
            rows.append(torch.stack([nats, (logits.argmax(1) == codes)[mask_B].double().sum()]))
        return torch.stack(rows)


def _for_loss(logits_BKHW: Tensor, code_BHW: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and codes as the cross-entropy takes them: maps, or rows, for which alone PyTorch has a
    deterministic kernel on a GPU. Not always rows, as a mean over them sums in another order."""
    if torch.are_deterministic_algorithms_enabled():
        return logits_BKHW.movedim(1, -1).flatten(0, 2), code_BHW.flatten()
    return logits_BKHW, code_BHW
