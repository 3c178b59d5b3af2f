"""Decode a masked prior in rounds: all hidden codes are drawn at once, and the surest of them are kept.

First the top codes, with every bottom code hidden, then the bottom codes (MaskGIT, Chang et al. 2022, section
3.2, once for each level). In a round each hidden code is drawn; the log-probability of what was drawn, plus
noise that falls to 0 over the rounds, is its confidence; the least confident are hidden again, as many as the
cosine schedule says.

Letters: R rows of a tile, P = T * T cells, S = 5 slots of a cell (see `network.py`), L codes of a level, H
hidden ones, K codes, E code width.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medunifier_cli.distributed.draws import philox
from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws, draw_codes
from medunifier_cli.prior.contract import TextStates
from medunifier_cli.prior.masked.network import LEVELS, MaskedNetwork, Text
from medunifier_cli.prior.masked.shape import MaskedShape
from medunifier_cli.prior.sampling import Tiles

STREAMS = (2, 3)
"""Of random numbers, for top and for bottom codes; those of a prior that goes code by code are 0 and 1."""
MAX_TILES = 1
"""Tiles that a thread computes before the next one takes its turn."""


@dataclass(frozen=True)
class Level:
    """How the codes of one level are decoded."""

    slots: slice
    """Of a cell."""
    stream: int
    rounds: int


def levels_of(shape: MaskedShape) -> list[Level]:
    """Top, then bottom."""
    rounds = (shape.top_rounds, shape.bottom_rounds)
    return [Level(*level) for level in zip(LEVELS, STREAMS, rounds, strict=True)]


def fill_tiles(
    network: MaskedNetwork, cell_nPS: Tensor, numbers: range, draws: Draws, text: TextStates | None
) -> Tensor:
    """int64 [n, P, S]: `MaskedPrior.fill` in evaluation mode.

    As in `prior.sampling`, a sample always has the same row of a tile of R, and one thread computes a tile,
    in products of one shape. So a sample's codes do not depend on which samples are computed in the same
    call.
    """
    tiles = Tiles(numbers, network.bias.device)
    # padding hides the same places as the samples do
    cell_TRPS = cell_nPS[:1].expand(tiles.count, tiles.rows, -1, -1).clone()
    cell_TRPS[tiles.real_TR] = cell_nPS
    cell_TRPS = cell_TRPS.to(tiles.device)
    states = lengths = None
    if text is not None:
        states, lengths = tiles.spread(text.state_BMD), tiles.spread(text.length_B)

    @torch.inference_mode()
    def work(group: range) -> Tensor:
        done = []
        for tile in group:
            told = None
            if states is not None and lengths is not None:
                told = TextStates(states[tile], lengths[tile])
            texts = [network.keys_of_text(told, None, tiles.rows)]
            if draws.guidance != 1:
                texts.append(network.keys_of_text(None, None, tiles.rows))
            decoder = Decoder(network, texts, draws, network.shape.choice_noise, tiles.stop)
            for level in levels_of(network.shape):
                codes = cell_TRPS[tile, :, :, level.slots][0].numel()
                samples = tiles.numbers(range(tile, tile + 1))
                chance = chance_numbers(draws.seed, level.stream, samples, level.rounds, codes)
                decoder.decode(cell_TRPS[tile], level, chance)
            done.append(cell_TRPS[tile].cpu())
        return torch.stack(done)

    return tiles.gather(tiles.compute(work, MAX_TILES))


def check_inputs(shape: MaskedShape, numbers: range, draws: Draws, text: TextStates | None) -> None:
    """Raises MuError for numbers or texts that do not fit the prior."""
    if len(numbers) < 1 or numbers.start < 0 or numbers.step != 1:
        raise MuError(f"nothing to sample: {numbers}")
    if text is None:
        if draws.guidance != 1:
            raise MuError(f"guidance {draws.guidance:g} needs a prompt")
        return
    if not shape.text_width:
        raise MuError(
            "this prior was fitted without text: fit it with `prior.condition: text`, or drop the prompt"
        )
    found, rows = tuple(text.state_BMD.shape), len(numbers)
    if len(found) != 3 or found[0] != rows or found[2] != shape.text_width or len(text.length_B) != rows:
        raise MuError(f"states of texts are {found}, the prior needs ({rows}, tokens, {shape.text_width})")


def schedule(hidden: int, rounds: int) -> list[int]:
    """How many codes are still hidden after each round: a cosine from `hidden` to 0.

    At least one code is kept in each round, so there may be fewer rounds than asked for.
    """
    counts: list[int] = []
    left = hidden
    for number in range(1, rounds + 1):
        if left == 0:
            break
        left = min(left - 1, math.floor(hidden * math.cos(math.pi / 2 * number / rounds)))
        counts.append(max(0, left))
        left = counts[-1]
    return counts


def chance_numbers(seed: int, stream: int, samples: Sequence[int], rounds: int, codes: int) -> Tensor:
    """Float64 in (0, 1], [rounds, 2, n, codes]: for the codes and for the order in which they are kept.

    A function of (seed, stream, sample, round, code) alone.
    """
    numbers = [1.0 - philox(seed, counter=(0, 0, one, stream)).random((rounds, 2, codes)) for one in samples]
    return torch.from_numpy(np.stack(numbers, 2))


class Decoder:
    """The codes of one tile of R samples; every array has the same shape whichever samples those are."""

    def __init__(
        self, network: MaskedNetwork, texts: Sequence[Text | None], draws: Draws, noise: float,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        """`texts`: the texts; with guidance, then none. Once `stop` is set, `decode` returns."""
        self.network, self.texts, self.draws, self.noise, self.stop = network, texts, draws, noise, stop

    def decode(self, cell_RPS: Tensor, level: Level, chance: Tensor) -> None:
        """Draw the hidden codes of a level, in place; the other codes stay as they are.

        Args:
            cell_RPS: int64, hidden codes as number K; equally many in each row.
            chance: see `chance_numbers`, of all codes of the level.
        """
        rows = len(cell_RPS)
        code_RL = cell_RPS[:, :, level.slots].flatten(1)
        hidden = int((code_RL[0] == self.network.hidden).sum())
        counts = schedule(hidden, level.rounds)
        for number, left in enumerate(counts):
            if self.stop.is_set():
                return
            place_RH = (code_RL == self.network.hidden).nonzero()[:, 1].view(rows, -1)
            logits_RHK = self._logits(cell_RPS, level, place_RH)
            draw_RH, order_RH = (chance[number, kind].gather(1, place_RH.cpu()) for kind in (0, 1))
            whole_RH = logits_RHK.logsumexp(2)
            if not whole_RH.isfinite().all():
                raise MuError(
                    "the prior gives NaN or infinite logits: its weights are damaged or its training "
                    "diverged; use an earlier checkpoint or fit it again"
                )
            drawn_RH = draw_codes(logits_RHK.flatten(0, 1), draw_RH.flatten(), self.draws).view(rows, -1)
            sure_RH = (logits_RHK.gather(2, drawn_RH[:, :, None])[:, :, 0] - whole_RH).double()
            # Gumbel noise: with a confidence of log p alone, the likeliest codes of all samples come first
            scale = self.noise * (1 - (number + 1) / len(counts))
            sure_RH = sure_RH - scale * (-order_RH.log()).clamp_min(1e-300).log()
            keep_RH = sure_RH.argsort(dim=1, descending=True, stable=True)[:, : place_RH.shape[1] - left]
            kept_RH = place_RH.gather(1, keep_RH.to(place_RH.device))
            code_RL = code_RL.scatter(1, kept_RH, drawn_RH.gather(1, keep_RH).to(code_RL.device))
            cell_RPS[:, :, level.slots] = code_RL.view(rows, cell_RPS.shape[1], -1)

    def _logits(self, cell_RPS: Tensor, level: Level, place_RH: Tensor) -> Tensor:
        """Float32 [R, H, K] on the CPU, of the codes at these places of the level's own numbering."""
        logits = [self._pass(cell_RPS, level, place_RH, text) for text in self.texts]
        if len(logits) == 1:
            return logits[0]
        # classifier-free guidance (Ho and Salimans 2022), in each round anew and always at the same scale
        return logits[1] + self.draws.guidance * (logits[0] - logits[1])

    def _pass(self, cell_RPS: Tensor, level: Level, place_RH: Tensor, text: Text | None) -> Tensor:
        network = self.network
        out_RLE = network.body(cell_RPS, text)[:, :, level.slots].flatten(1, 2)
        out_RHE = out_RLE.gather(1, place_RH[:, :, None].expand(-1, -1, out_RLE.shape[2]))
        bias_LK = network.bias[:, level.slots].flatten(0, 1)
        table_KE = network.table_of(0 if level.slots.start == 0 else 1)
        return (out_RHE @ table_KE.T + bias_LK[place_RH]).float().cpu()
