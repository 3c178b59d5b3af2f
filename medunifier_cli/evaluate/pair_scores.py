"""Score pairs during pre-training: ranks of the own partner, and ITM on a pair with another text.

The losses of a batch say little to a person: guessing has another loss in each batch size, and a model that
learns by heart lowers them too. These numbers need no classes, have a chance level, and are those of
`mu retrieve` and of the held-out measurement, on part of the validation split. Towers alone: no decoder runs.

n pairs; B of a forward pass; Q queries, E joint space.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.data.batch import Batch, PackedText, to_device
from medunifier_cli.data.loader import SplitSource, eval_batches, eval_workers
from medunifier_cli.data.split_source import Room, SplitView
from medunifier_cli.distributed import draws, world
from medunifier_cli.errors import DataError
from medunifier_cli.model.attention.memory import ImageMemory
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.precision import measuring
from medunifier_cli.scores.partners import chance_ranks, partner_ranks, rank_scores
from medunifier_cli.scores.ranking import DIRECTIONS, KS
from medunifier_cli.terminal.say import say
from medunifier_cli.train.stage import CHANCE
from medunifier_cli.train.stop import Watch

BLOCK = 32
"""Pairs of a forward pass on each rank. Not the micro-batch: no number may depend on it, to the last bit."""
SEED = 0
"""Of the choice of pairs and of other texts; not the run's, so that all runs are asked the same."""
MATCHING = "itm_random_accuracy"
"""Name of the accuracy of ITM; `itm_accuracy` is that on the negatives which the objective draws."""
CURVES = {"recall@10": "Recall@10 of the exact pair, both ways", MATCHING: "ITM accuracy, random pairs"}
"""Numbers that get a curve on a run's page: name -> heading."""


class PairScores:
    """The pairs of a validation split that are scored, always the same ones.

    Args:
        source: the validation split.
        most: number of pairs, or all if there are fewer.
        matching: the model has an ITM head.
    """

    def __init__(self, source: SplitSource, most: int, matching: bool) -> None:
        order = np.argsort(draws.philox(SEED, draws.SCORED_PAIRS).random(len(source)), kind="stable")
        number_n: NDArray[np.int64] = np.sort(order[:most])
        self.pairs = _Part(source.with_features(source.features, images=False), number_n)
        self.partner_n = source.digests[number_n]
        self.other_n = other_texts(source, SEED, number_n) if matching else None
        self.ks = tuple(k for k in KS if k <= len(number_n))

    def measure(self, model: MedUnifier, device: torch.device, watch: Watch = iter) -> dict[str, float]:
        """Recall@K and median rank each way, recall@K averaged over both, ITM accuracy; chance beside each.

        Texts that are equal word for word are the same partner. All ranks take part and get the same numbers,
        which depend neither on how many they are nor on the micro-batch.

        Args:
            model: with ITC, in evaluation mode.
            device: of the model.
            watch: what the batches go through, so that a signal ends it.

        Returns:
            Numbers by name, `<name>_chance` for what guessing reaches; none for fewer than two pairs, and
            none, with a warning, for features that are not finite.
        """
        if len(self.pairs) < 2:
            return {}
        image_nQE, text_nE, hit_n2 = self._features(model, device, watch)
        numbers: dict[str, float] = {}
        try:
            ranks = partner_ranks(image_nQE, text_nE, self.partner_n, self.partner_n)
        except DataError as error:  # weights may be finite and absurd; the losses then say so too
            if world.is_main():
                say(f"warning: no retrieval scores in this validation: {error}")
        else:
            numbers = self._ranking(dict(zip(DIRECTIONS, ranks, strict=True)))
            if self.other_n is not None and (self.other_n >= 0).any():
                numbers |= {MATCHING: float(hit_n2[self.other_n >= 0].mean()), MATCHING + CHANCE: 0.5}
        if not numbers:
            return {}
        # the main rank's, should the others' machines round in another way: what follows must be one decision
        values = world.of_main(torch.tensor(list(numbers.values()), dtype=torch.float64, device=device))
        return dict(zip(numbers, values.tolist(), strict=True))

    def _ranking(self, ranks: dict[str, NDArray[np.int64]]) -> dict[str, float]:
        chance = chance_ranks(self.partner_n, self.partner_n, self.ks)
        numbers: dict[str, float] = {}
        for k in self.ks:
            name = f"recall@{k}"
            recall = {way: float(rank_scores(rank_n, (k,))[name].mean()) for way, rank_n in ranks.items()}
            numbers |= {f"{way}_{name}": value for way, value in recall.items()}
            numbers |= {name: sum(recall.values()) / len(recall), name + CHANCE: chance[name]}
        numbers |= {f"{way}_median_rank": float(np.median(rank_n)) for way, rank_n in ranks.items()}
        return numbers | {"median_rank" + CHANCE: chance["median rank"]}

    def _features(
        self, model: MedUnifier, device: torch.device, watch: Watch
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """ITC features [n, Q, E] and [n, E] of all pairs, and hits of ITM [n, 2], on every rank."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        # ranks take turns at whole blocks, which so hold the same pairs for any number of ranks; the last
        # ones are filled up with repeats, which the final cut removes
        count = -(-len(self.pairs) // (BLOCK * world.size()))
        workers = eval_workers(self.pairs.source.data.workers, count)
        loaded = eval_batches(
            self.pairs, batch_size=BLOCK, rank=world.rank(), world=world.size(), workers=workers
        )  # fmt: skip
        with measuring(), closing(loaded) as batches:
            for batch, _ in watch(batches):
                batch = to_device(batch, device)
                memory = model.encode(batch.image_or_feature)
                mine = (
                    model.image_head(memory.query_BQD),
                    model.text_head(model.encode_text(batch.text)),
                    self._hits(model, memory, batch, device),
                )
                parts.append(tuple(world.gather(rows.float()).cpu() for rows in mine))  # type: ignore[arg-type]
        image, text, hit = (
            torch.cat(column)[: len(self.pairs)].numpy() for column in zip(*parts, strict=True)
        )
        return image, text, hit

    def _hits(self, model: MedUnifier, memory: ImageMemory, batch: Batch, device: torch.device) -> Tensor:
        """Whether ITM tells each image's own text for it, and another text for another, [B, 2]."""
        rows = batch.position_B.tolist()
        if self.other_n is None:
            return torch.zeros(len(rows), 2, device=device)
        # without another text an image gets its own, and is not counted
        others = [int(self.other_n[i]) for i in rows]
        own = self.pairs.number_n[rows].tolist()
        ids = [self.pairs.source.token_ids(j if j >= 0 else i) for i, j in zip(own, others, strict=True)]
        other = PackedText.of(ids, device)
        text = PackedText(
            torch.cat([batch.text.ids_N, other.ids_N]), torch.cat([batch.text.lengths_B, other.lengths_B])
        )
        image_M = torch.arange(len(rows)).repeat(2)
        yes_M = model.match(memory, image_M, text).argmax(dim=1) == 1
        own_B, other_B = yes_M.chunk(2)
        return torch.stack([own_B, ~other_B], dim=1)


class _Part(SplitView):
    """Some samples of a split as a source of their own; `position_B` is the place among them."""

    def __init__(self, source: SplitSource, number_n: NDArray[np.int64]) -> None:
        super().__init__(source)
        self.number_n = number_n

    def __len__(self) -> int:
        return len(self.number_n)

    def read(self, samples: NDArray[np.int64], positions: NDArray[np.int64], room: Room, /) -> Batch:
        return super().read(self.number_n[samples], positions, room)


def other_texts(
    source: SplitSource, seed: int, numbers: Sequence[int] | NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """For each sample another one whose text differs, [n], by (seed, sample); -1 if all texts are equal.

    Texts differ if the model reads different tokens: of two that are equal up to the last token it reads,
    neither is a wrong text for the other's image. Uniform, except that a draw which hits an equal text is
    moved to one of the others without a second draw.

    Args:
        numbers: the samples to find one for; None for all.
    """
    n = len(source)
    own_n = np.arange(n) if numbers is None else np.asarray(numbers, np.int64)
    other_n = (draws.uniform(seed, draws.NEGATIVE_TEXT, own_n.tolist()).numpy() * n).astype(np.int64)
    digests = source.token_digests
    for i in np.flatnonzero(digests[own_n] == digests[other_n]):
        rest = np.flatnonzero(digests != digests[own_n[i]])
        other_n[i] = rest[other_n[i] % len(rest)] if len(rest) else -1
    return other_n
