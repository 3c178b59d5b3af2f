"""All four objectives of one batch (paper, section 3.5, equation 24). The only place that knows them all.

B local pairs, G global pairs (rank after rank). Averaging this module's losses, and so its gradients, over
ranks gives what one process makes of the whole batch:
- ITC: features of all ranks are gathered with gradient.
- ITM: a pair is computed where its image is, since an image's keys and values are large and a text is 95
  integers. So only texts and choices travel, and an image negative of another rank costs nothing extra.
- ITG, ITM: sums are divided by the global count of tokens and pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medunifier_cli.data.contract import Batch, PackedText
from medunifier_cli.distributed import draws, world
from medunifier_cli.model.masks import Layout
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.qformer import ImageMemory
from medunifier_cli.model.vit import pixels
from medunifier_cli.objectives.itc import image_text_similarity, itc_loss
from medunifier_cli.objectives.itg import itg_loss, said_and_next
from medunifier_cli.objectives.itm import itm_loss, negative_weights
from medunifier_cli.objectives.tig import tig_loss

TEMPERATURE_RANGE = (0.01, 0.5)  # the learnable temperature stays within


@dataclass(frozen=True)
class Similarity:
    """ITC similarity of the local rows to everything, and where a row's own partner stands."""

    image_to_text_BG: Tensor
    text_to_image_BG: Tensor
    own_B: Tensor


class Objectives(nn.Module):
    """(batch) -> losses and monitors by name; `total` is the weighted sum that is trained.

    Args:
        model: with the heads of every objective whose weight is above 0.
        dec_id: token id of [DEC].
    """

    def __init__(self, model: MedUnifier, dec_id: int) -> None:
        super().__init__()
        self.model = model
        self.dec_id = dec_id
        self.seed = model.recipe.train.seed

    def forward(
        self, batch: Batch, revival: torch.Generator | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses with gradient, monitors without; both scalars.

        Args:
            batch: on the model's device (`text.lengths_B` and `place_B` on the CPU).
            revival: where dead codes go, the same generator state on all ranks; None leaves them.
        """
        model, weights = self.model, self.model.recipe.objectives
        image = pixels(batch.image_B1HW)
        features = model.look(image)
        memory = model.qformer.read_image(features)
        losses: dict[str, Tensor] = {}
        monitors: dict[str, Tensor] = {}
        text_cls_BD = self._text_cls(batch)
        if weights.itc:
            self._clamp_temperature()
            similarity = self._similarity(memory, text_cls_BD)
            losses["itc"], seen = itc_loss(
                similarity.image_to_text_BG, similarity.text_to_image_BG, similarity.own_B,
                model.temperature, weights.itc_smoothing,
            )  # fmt: skip
            monitors |= {**seen, "temperature": model.temperature.detach()}
        if weights.itm:
            losses["itm"], seen = self._itm(batch, memory, similarity)
            monitors |= seen
        if weights.itg:
            losses["itg"], seen = self._itg(batch, memory)
            monitors |= seen
        if weights.tig:
            made = model.generator(memory.query_BQD, features[:, 1:], text_cls_BD, revival)
            losses["tig"], seen = tig_loss(image, made, model.recipe.model.generator.beta)
            monitors |= seen
        losses["total"] = sum(
            (getattr(weights, name) * loss for name, loss in losses.items()), torch.zeros(())
        )
        return losses, monitors

    def _text_cls(self, batch: Batch) -> Tensor | None:
        """f_t_cls [B, D], where ITC or TIG wants it."""
        weights = self.model.recipe.objectives
        return self.model.qformer.read_text(batch.text) if weights.itc or weights.tig else None

    def _similarity(self, memory: ImageMemory, text_cls_BD: Tensor | None) -> Similarity:
        assert text_cls_BD is not None  # ITC is on
        g_q = self.model.image_head(memory.query_BQD)
        g_t = self.model.text_head(text_cls_BD)
        all_q, all_t = world.gather(g_q), world.gather(g_t)
        own = torch.arange(len(g_t), device=g_t.device) + world.rank() * len(g_t)
        with torch.autocast(g_t.device.type, enabled=False):
            return Similarity(image_text_similarity(g_q, all_t), image_text_similarity(all_q, g_t).T, own)

    @torch.no_grad()
    def _negatives(self, batch: Batch, similarity: Similarity) -> tuple[Tensor, Tensor]:
        """For each local image a text, for each local text an image: global columns [B] on the CPU, or -1."""
        weights, temperature = self.model.recipe.objectives, self.model.temperature
        digests = world.gather(batch.digest_B)
        places = batch.place_B.tolist()
        chosen = []
        for scores, purpose in (
            (similarity.image_to_text_BG, draws.NEGATIVE_TEXT),
            (similarity.text_to_image_BG, draws.NEGATIVE_IMAGE),
        ):
            weight = negative_weights(
                scores / temperature, similarity.own_B, batch.digest_B, digests,
                weights.itm_negatives == "hard", weights.itm_exclude_same_text,
            )  # fmt: skip
            chosen.append(draws.choose(weight, draws.uniform(self.seed, purpose, places)))
        return chosen[0], chosen[1]

    def _itm(
        self, batch: Batch, memory: ImageMemory, similarity: Similarity
    ) -> tuple[Tensor, dict[str, Tensor]]:
        device, pairs = batch.text.ids_N.device, len(batch.place_B)
        text_for_image, image_for_text = self._negatives(batch, similarity)
        texts = gather_texts(batch.text, self.model.recipe.text.max_tokens)
        wanted_images = world.gather(image_for_text.to(device)).cpu()
        first = world.rank() * pairs
        here = torch.arange(pairs)
        # image negatives: every text of the world whose chosen image lives on this rank
        asking = ((wanted_images >= first) & (wanted_images < first + pairs)).nonzero()[:, 0]
        offered = (text_for_image >= 0).nonzero()[:, 0]
        image_M = torch.cat([here, wanted_images[asking] - first, offered])
        text_M = torch.cat([here + first, asking, text_for_image[offered]])
        matched_M = (torch.arange(len(image_M)) < pairs).long().to(device)
        query_MQD = self.model.qformer.read_pairs(memory, image_M, take_texts(texts, text_M))
        loss, seen = itm_loss(self.model.match(query_MQD), matched_M)
        rows = float(len(image_M))
        return world.share_of_mean(loss, rows), {"itm_accuracy": world.share_of_mean(seen["itm_right"], rows)}

    def _itg(self, batch: Batch, memory: ImageMemory) -> tuple[Tensor, dict[str, Tensor]]:
        said, next_P = said_and_next(batch.text, self.dec_id)
        logits_PK = self.model.word_logits(self.model.qformer.write_text(memory, said))
        loss, seen = itg_loss(logits_PK, next_P)
        tokens = float(len(next_P))
        return world.share_of_mean(loss, tokens), {
            "itg_accuracy": world.share_of_mean(seen["itg_right"], tokens)
        }

    @torch.no_grad()
    def _clamp_temperature(self) -> None:
        self.model.temperature.clamp_(*TEMPERATURE_RANGE)


def gather_texts(text: PackedText, max_tokens: int) -> PackedText:
    """The texts of all ranks, rank after rank. Each rank must hold the same number of texts."""
    if world.size() == 1:
        return text
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
    offset_M = start_B[index_M] - (end_M - lengths_M)
    source = torch.arange(int(end_M[-1])) + torch.repeat_interleave(offset_M, lengths_M)
    return PackedText(text.ids_N[source.to(text.ids_N.device)], lengths_M)
