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

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medunifier_cli.data.batch import Batch, Fetched, PackedText, send
from medunifier_cli.distributed import draws, world
from medunifier_cli.model.attention.masks import Layout
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
    waits = True

    def begin(self, encoded: EncodedBatch) -> Fetched:
        """Ask for the weights of `draw_weights`, and with several ranks for the texts of all."""
        model, batch = encoded.model, encoded.batch
        texts_G = gather_texts(batch, model.recipe.text.max_tokens)
        weights = draw_weights(batch, texts_G[:, 0], encoded.similarity, model.temperature, model.recipe)
        return Fetched((weights, texts_G) if world.size() > 1 else (weights,))

    def compute(self, encoded: EncodedBatch) -> LossAndMonitors:
        """Mean over the rows of all ranks."""
        model, batch = encoded.model, encoded.batch
        device, pairs = batch.text.ids_N.device, len(batch.position_B)
        first = world.rank() * pairs
        weights_2BG, *texts_of_all = encoded.begun[self.name].get()
        picks_2B = self.draw(weights_2BG, batch.position_B.tolist(), model.recipe.train.seed)
        picks_2G = picks_2B
        if world.size() > 1:  # who drew an image of this rank, and how many rows all ranks have
            picks_2G = world.gather(send((picks_2B.T.contiguous(),), device)[0]).cpu().T
        text_for_image_B, image_for_text_G = picks_2B[0], picks_2G[1]

        own = torch.arange(pairs)
        # texts of any rank that drew one of the images of this rank, as global numbers
        drew_local_image = ((image_for_text_G >= first) & (image_for_text_G < first + pairs)).nonzero()[:, 0]
        # images of this rank that have a negative text: -1 means that every other text equals its own
        with_negative_text = (text_for_image_B >= 0).nonzero()[:, 0]
        image_M = torch.cat([own, image_for_text_G[drew_local_image] - first, with_negative_text])
        text_M = torch.cat([own + first, drew_local_image, text_for_image_B[with_negative_text]])
        # Positives come first. A positive is a row once, while the negatives are twice as many: a model that
        # ignores its input reaches an accuracy of 2/3, and a loss of 0.637.
        matched_M = (torch.arange(len(image_M), device=device) < pairs).long()

        text = take_texts(unpack_texts(texts_of_all[0]) if texts_of_all else batch.text.on_host(), text_M)
        (ids_N,) = send((text.ids_N,), device)
        text = PackedText(ids_N, text.lengths_B)
        logits_M2 = model.match(encoded.memory, image_M, text, model.recipe.train.recompute_itm)
        loss, counts = itm_loss(logits_M2, matched_M)
        rows = float(picks_2G.shape[1] + (picks_2G >= 0).sum())
        rows_of_all = torch.full((), rows, dtype=torch.float32, device=device)
        return LossAndMonitors(
            world.share_of_mean(loss, rows_of_all),
            {"itm_accuracy": world.share_of_mean(counts["itm_hits"], rows_of_all)},
        )

    def draw(self, weights_2BG: Tensor, positions: Sequence[int], seed: int) -> Tensor:
        """See `draw_negatives`; apart, for a step on tensors without data."""
        return draw_negatives(weights_2BG, positions, seed)


@torch.no_grad()
def draw_weights(
    batch: Batch, digest_G: Tensor, similarity: Similarity, temperature: Tensor, recipe: PretrainRecipe
) -> Tensor:
    """How likely each of G candidates is drawn as text of each local image, and as image of each local text.

    Args:
        digest_G: of the texts of all ranks.

    Returns:
        float64 [2, B, G], where the similarity is.
    """
    settings = recipe.objectives
    return torch.stack(
        [
            negative_weights(
                scores_BG / temperature, similarity.own_B, batch.digest_B, digest_G,
                settings.itm_negatives == "hard", settings.itm_exclude_same_text,
            ).double()
            for scores_BG in (similarity.image_to_text_BG, similarity.text_to_image_BG)
        ]
    )  # fmt: skip


def draw_negatives(weights_2BG: Tensor, positions: Sequence[int], seed: int) -> Tensor:
    """For each local image a text, for each local text an image: global numbers int64 [2, B], or -1.

    A draw is a function of (seed, purpose, position in the sample order), so any number of ranks draws alike.

    Args:
        weights_2BG: see `draw_weights`; on the CPU.
        positions: of the local pairs.
    """
    # two purposes: with one, the text drawn for an image and the image drawn for its text would go together
    purposes = (draws.NEGATIVE_TEXT, draws.NEGATIVE_IMAGE)
    return torch.stack(
        [
            draws.choose(weight_BG, draws.uniform(seed, purpose, positions))
            for weight_BG, purpose in zip(weights_2BG, purposes, strict=True)
        ]
    )


def gather_texts(batch: Batch, max_tokens: int) -> Tensor:
    """Digest, length and token ids of the texts of all ranks, int64 [G, 2 + max_tokens].

    On the batch's device. Each rank must hold equally many texts. One alone gets digests only, [B, 1].
    """
    if world.size() == 1:
        return batch.digest_B[:, None]
    # ranks hold different numbers of tokens and all_gather needs one shape: a grid as wide as the longest
    # text allowed, which no rank has to ask the others about
    lengths_B = batch.text.lengths_B
    device = batch.text.ids_N.device
    layout = Layout.of(lengths_B, torch.device("cpu"))
    grid = layout.pad(batch.text.on_host().ids_N[:, None])[..., 0]
    grid = F.pad(grid, (0, max_tokens - grid.shape[1]))
    packed, digest_B = torch.cat([lengths_B[:, None], grid], dim=1), batch.digest_B
    return world.gather(torch.cat([digest_B[:, None], send((packed,), device)[0]], dim=1))


def unpack_texts(texts_G: Tensor) -> PackedText:
    """What `gather_texts` gathered, on the CPU, packed again."""
    lengths, grid = texts_G[:, 1], texts_G[:, 2:]
    return PackedText(grid[torch.arange(grid.shape[1]) < lengths[:, None]], lengths)


def take_texts(text: PackedText, index_M: Tensor) -> PackedText:
    """Texts number `index_M` of `text`, packed again; all on the CPU."""
    lengths_M = text.lengths_B[index_M]
    start_B = text.lengths_B.cumsum(0) - text.lengths_B
    end_M = lengths_M.cumsum(0)
    # token t of the result is token t + offset of its text in the source
    offset_M = start_B[index_M] - (end_M - lengths_M)
    source = torch.arange(int(end_M[-1])) + torch.repeat_interleave(offset_M, lengths_M)
    return PackedText(text.ids_N[source], lengths_M)
