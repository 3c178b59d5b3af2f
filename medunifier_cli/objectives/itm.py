"""Image-text matching (paper, equations 13 and 14) with hard negatives of the global batch (Li et al. 2021).

How the negatives of all ranks meet:
1. each rank draws, for each of its images, a text and, for each of its texts, an image of the global batch;
2. the ranks exchange the texts and the drawn image numbers, not the images: a text is 95 integers, while the
   keys and values of one image are 12 layers x 257 tokens x 1,536 numbers;
3. each rank fuses every pair whose image it holds, whichever rank drew it;
4. the loss is the mean over the rows of all ranks, which may hold different numbers of them.

B local pairs, G global pairs, M rows: B positives, then image negatives, then text negatives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.data.contract import Batch, PackedText
from medunifier_cli.distributed import draws, world
from medunifier_cli.model.masks import Layout
from medunifier_cli.model.precision import at_least_fp32
from medunifier_cli.objectives.objective import EncodedBatch, LossAndMonitors, Objective
from medunifier_cli.objectives.similarity import Similarity
from medunifier_cli.recipe.schema import PretrainRecipe


def negative_weights(
    similarity_BG: Tensor,
    own_B: Tensor,
    digest_B: Tensor,
    digest_G: Tensor,
    hard: bool,
    exclude_same_text: bool,
) -> Tensor:
    """How likely each of G candidates is drawn as the negative of each of B rows, not normalised.

    Args:
        similarity_BG: ITC similarity over temperature; with `hard` its softmax weighs the draw.
        own_B: column of the row's own partner, which is never drawn.
        digest_B: hashes of the rows' token ids.
        digest_G: hashes of the candidates' token ids.
        hard: False draws uniformly.
        exclude_same_text: a candidate whose text has the row's token ids is never drawn.
    """
    # the softmax of ITC's logits, so that candidates that ITC takes for partners are drawn most (ALBEF)
    weight = torch.softmax(at_least_fp32(similarity_BG), dim=1) if hard else torch.ones_like(similarity_BG)
    forbidden = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, own_B[:, None], True)
    if exclude_same_text:
        # Normal reports repeat word for word: such a pair matches, and calling it a negative teaches noise.
        # Compared are the ids that the model reads: it cannot see how two reports differ after the last one.
        forbidden |= digest_B[:, None] == digest_G[None, :]
    # a weight that underflowed to 0 would leave a confident row without negatives
    return weight.clamp(min=1e-12).masked_fill(forbidden, 0.0)


def itm_loss(logits_M2: Tensor, matched_M: Tensor) -> LossAndMonitors:
    """Image-text matching, equation (13): sum over the M rows, to be divided by the global number of rows.

    Args:
        logits_M2: averaged over queries; rows are positives, image negatives and text negatives.
        matched_M: int64, 1 where the pair belongs together.

    Raises:
        ValueError: if the two lengths differ.
    """
    if len(logits_M2) != len(matched_M):
        raise ValueError(f"{len(logits_M2)} rows of logits, {len(matched_M)} targets")
    # a sum: ranks hold different numbers of rows, and only the caller knows those of all
    loss = F.cross_entropy(logits_M2, matched_M, reduction="sum")
    hits = (logits_M2.argmax(dim=1) == matched_M).float().sum()
    return LossAndMonitors(loss, {"itm_hits": hits.detach()})


class ImageTextMatching(Objective):
    """Does the text belong to the image? Positives against negatives drawn by ITC similarity."""

    name = "itm"
    title = "ITM loss"
    monitors: ClassVar[Mapping[str, str]] = {"itm_accuracy": "ITM accuracy"}
    reads_text_cls = True
    reaches_every_weight = True

    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        """Mean over the rows of all ranks."""
        model, batch = encoded.model, encoded.batch
        device, pairs = batch.text.ids_N.device, len(batch.position_B)
        first = world.rank() * pairs
        text_for_image_B, image_for_text_B = self.draw(
            batch, encoded.similarity, model.temperature, model.recipe
        )
        text_G = gather_texts(batch.text, model.recipe.text.max_tokens)
        image_for_text_G = image_for_text_B
        if world.size() > 1:
            image_for_text_G = world.gather(image_for_text_B.to(device)).cpu()

        own = torch.arange(pairs)
        # texts of any rank that drew one of the images of this rank, as global numbers
        drew_local_image = ((image_for_text_G >= first) & (image_for_text_G < first + pairs)).nonzero()[:, 0]
        # images of this rank that have a negative text: -1 means that every other text equals its own
        with_negative_text = (text_for_image_B >= 0).nonzero()[:, 0]
        image_M = torch.cat([own, image_for_text_G[drew_local_image] - first, with_negative_text])
        text_M = torch.cat([own + first, drew_local_image, text_for_image_B[with_negative_text]])
        # Positives come first. A positive is a row once, while the negatives are twice as many: a model that
        # ignores its input reaches an accuracy of 2/3, and a loss of 0.637.
        matched_M = (torch.arange(len(image_M)) < pairs).long().to(device)

        loss, counts = itm_loss(model.match(encoded.memory, image_M, take_texts(text_G, text_M)), matched_M)
        rows = float(len(image_M))
        return LossAndMonitors(
            world.share_of_mean(loss, rows), {"itm_accuracy": world.share_of_mean(counts["itm_hits"], rows)}
        )

    def draw(
        self, batch: Batch, similarity: Similarity, temperature: Tensor, recipe: PretrainRecipe
    ) -> tuple[Tensor, Tensor]:
        """See `draw_negatives`; apart, for a step on tensors without data."""
        return draw_negatives(batch, similarity, temperature, recipe)


@torch.no_grad()
def draw_negatives(
    batch: Batch, similarity: Similarity, temperature: Tensor, recipe: PretrainRecipe
) -> tuple[Tensor, Tensor]:
    """For each local image a text, for each local text an image: global numbers [B] on the CPU, or -1.

    A draw is a function of (seed, purpose, position in the sample order), so any number of ranks draws alike.
    """
    settings = recipe.objectives
    digest_G = world.gather(batch.digest_B)
    positions = batch.position_B.tolist()
    picks = []
    # two purposes: with one, the text drawn for an image and the image drawn for its text would go together
    for scores_BG, purpose in (
        (similarity.image_to_text_BG, draws.NEGATIVE_TEXT),
        (similarity.text_to_image_BG, draws.NEGATIVE_IMAGE),
    ):
        weight_BG = negative_weights(
            scores_BG / temperature, similarity.own_B, batch.digest_B, digest_G,
            settings.itm_negatives == "hard", settings.itm_exclude_same_text,
        )  # fmt: skip
        picks.append(draws.choose(weight_BG, draws.uniform(recipe.train.seed, purpose, positions)))
    return picks[0], picks[1]


def gather_texts(text: PackedText, max_tokens: int) -> PackedText:
    """The texts of all ranks, rank after rank. Each rank must hold the same number of texts."""
    if world.size() == 1:
        return text
    # ranks hold different numbers of tokens and all_gather needs one shape: a grid as wide as the longest
    # text allowed, which no rank has to ask the others about
    layout = Layout.of(text.lengths_B, text.ids_N.device)
    grid = layout.pad(text.ids_N[:, None])[..., 0]
    grid = world.gather(F.pad(grid, (0, max_tokens - grid.shape[1])))
    lengths = world.gather(text.lengths_B.to(grid.device))
    real = torch.arange(max_tokens, device=grid.device) < lengths[:, None]
    return PackedText(grid[real], lengths.cpu())


def take_texts(text: PackedText, index_M: Tensor) -> PackedText:
    """Texts number `index_M` (int64, on the CPU), packed again."""
    lengths_M = text.lengths_B[index_M]
    start_B = text.lengths_B.cumsum(0) - text.lengths_B
    end_M = lengths_M.cumsum(0)
    # token t of the result is token t + offset of its text in the source
    offset_M = start_B[index_M] - (end_M - lengths_M)
    source = torch.arange(int(end_M[-1])) + torch.repeat_interleave(offset_M, lengths_M)
    return PackedText(text.ids_N[source.to(text.ids_N.device)], lengths_M)
