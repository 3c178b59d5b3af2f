"""Writing texts token by token: greedy, beam search, nucleus sampling. Knows no model, only a step function.

Scores are those of transformers' `generate`, to which `tests/parity/test_decoding.py` holds every setting.

B texts to write, W beams, R rows that run at the moment, K token ids, T tokens of a row with the first one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws, draw_codes, uniforms

Step = Callable[[Tensor, Tensor], Tensor]
"""step(token_R, parent_R) -> logits [R, K], int64 in.

Row r goes on from row `parent_R[r]` of the call before (in the first call it starts text `parent_R[r]`) and
has just said `token_R[r]`. Rows may be left out, moved and repeated between calls.
"""
STREAM = 2
"""Random numbers of reports, apart from those of the priors (0 and 1)."""


@dataclass(frozen=True)
class Rules:
    """What a text may be."""

    first: int
    """Token id that every text starts with; never part of the result."""
    end: int
    """Token id that ends a text."""
    longest: int
    """Most tokens said, `end` included; a text that reaches it is cut."""
    shortest: int = 0
    """Least tokens said before `end`."""
    never: tuple[int, ...] = ()
    """Token ids that are no part of a text."""
    repetition_penalty: float = 1.0
    """Divides positive scores of tokens said before and multiplies negative ones (Keskar et al. 2019)."""
    no_repeat_ngram: int = 0
    """No run of so many tokens comes twice; 0 allows it."""

    def check(self) -> None:
        """Raises MuError for a value out of range."""
        for name, good, needed in (
            ("longest", self.longest >= 1, "1 or more tokens"),
            ("shortest", 0 <= self.shortest < self.longest, f"0 to {self.longest - 1} tokens"),
            ("repetition penalty", 0 < self.repetition_penalty < math.inf, "a number above 0"),
            ("no-repeat n-gram", self.no_repeat_ngram >= 0, "0 (off) or a number of tokens"),
        ):
            if not good:
                value = getattr(self, name.replace(" ", "_").replace("-", "_").replace("n_gram", "ngram"))
                raise MuError(f"{name} must be {needed}, not {value}")

    def restrict(self, score_RK: Tensor, said_RT: Tensor) -> Tensor:
        """Scores of the next token -> scores under these rules, -inf on what is forbidden.

        Where nothing at all would be left, the text ends.
        """
        score_RK = score_RK.clone()
        if self.repetition_penalty != 1:
            before = score_RK.gather(1, said_RT)
            penalised = torch.where(
                before < 0, before * self.repetition_penalty, before / self.repetition_penalty
            )
            score_RK.scatter_(1, said_RT, penalised)
        n = self.no_repeat_ngram
        if 0 < n <= said_RT.shape[1]:
            runs_RXn = said_RT.unfold(1, n, 1)
            newest_Rm = said_RT[:, said_RT.shape[1] - n + 1 :]
            again_RX = (runs_RXn[..., :-1] == newest_Rm[:, None]).all(dim=2)
            row, run = again_RX.nonzero(as_tuple=True)
            score_RK[row, runs_RXn[row, run, -1]] = -torch.inf
        score_RK[:, list(self.never)] = -torch.inf
        if said_RT.shape[1] - 1 < self.shortest:
            score_RK[:, self.end] = -torch.inf
        stuck_R = score_RK.isneginf().all(dim=1)
        score_RK[stuck_R, self.end] = 0
        return score_RK


@dataclass(frozen=True)
class Found:
    """One text."""

    tokens: list[int]
    """Without the first token and without `end`."""
    ended: bool
    """False where it was cut at `longest`."""
    score: float = 0.0
    """Of beam search: sum of log probabilities / tokens said ** length penalty."""


def greedy(step: Step, texts: int, rules: Rules, device: torch.device) -> list[Found]:
    """Always the likeliest token.

    Args:
        texts: B.
        device: where `step` wants its tokens.

    Raises:
        MuError: a value out of range, or logits that are NaN.
    """

    def likeliest(score_RK: Tensor, _live: list[int], _place: int) -> Tensor:
        return score_RK.argmax(dim=1)

    return _token_by_token(step, texts, rules, device, likeliest)


def nucleus(
    step: Step, numbers: Sequence[int], rules: Rules, draws: Draws, device: torch.device
) -> list[Found]:
    """Draw each token (Holtzman et al. 2020): temperature, then the top k, then the top p.

    A draw is a function of the seed, the text's number and the place in the text: what else is in the batch
    changes nothing, but for the last bits of the logits.

    Args:
        numbers: B numbers from 0 to 2^63 - 1, each the name of a text.
        draws: seed, temperature, top k and top p.

    Raises:
        MuError: a value out of range, or logits that are NaN.
    """
    draws.check()
    target_BL = torch.cat(
        [
            torch.from_numpy(uniforms(draws.seed, STREAM, range(number, number + 1), rules.longest))
            for number in numbers
        ]
    )

    def drawn(score_RK: Tensor, live: list[int], place: int) -> Tensor:
        return draw_codes(score_RK.double().cpu(), target_BL[live, place], draws).to(score_RK.device)

    return _token_by_token(step, len(numbers), rules, device, drawn)


def _token_by_token(
    step: Step,
    texts: int,
    rules: Rules,
    device: torch.device,
    choose: Callable[[Tensor, list[int], int], Tensor],
) -> list[Found]:
    """One row a text; rows that are done leave."""
    rules.check()
    found: list[Found | None] = [None] * texts
    live = list(range(texts))
    parent_R = torch.arange(texts, device=device)
    said_RT = torch.full((texts, 1), rules.first, device=device)
    for place in range(rules.longest):
        score_RK = rules.restrict(_checked(step(said_RT[:, -1], parent_R)), said_RT)
        said_RT = torch.cat([said_RT, choose(score_RK, live, place)[:, None]], dim=1)
        ended_R = (said_RT[:, -1] == rules.end).tolist()
        for row, ended in enumerate(ended_R):
            if ended or place + 1 == rules.longest:
                tokens = said_RT[row, 1:].tolist()
                found[live[row]] = Found(tokens[:-1] if ended else tokens, ended)
        going = [row for row, ended in enumerate(ended_R) if not ended]
        if not going:
            break
        live = [live[row] for row in going]
        parent_R = torch.tensor(going, device=device)
        said_RT = said_RT[parent_R]
    return [one for one in found if one is not None]


def beam_search(
    step: Step, texts: int, rules: Rules, beams: int, device: torch.device, length_penalty: float = 1.0
) -> list[Found]:
    """The likeliest of the texts that W beams find.

    Each step extends the W best unfinished rows of a text by the 2 W best tokens; those among the first W
    that end are kept. A text is done when W are kept and none that runs is better than the worst of them, by
    its score so far (`early_stopping=False` of transformers).

    Args:
        texts: B.
        beams: W >= 1.
        length_penalty: score is log probability / tokens said ** this; the larger, the longer the texts.

    Raises:
        MuError: a value out of range, or logits that are NaN.
    """
    rules.check()
    if beams < 1 or not math.isfinite(length_penalty):
        raise MuError(
            f"beam search needs 1 or more beams and a finite length penalty, not {beams}, {length_penalty}"
        )
    kept: list[list[Found]] = [[] for _ in range(texts)]
    live = list(range(texts))
    score_BW = torch.zeros(texts, 1, device=device)
    parent_R = torch.arange(texts, device=device)
    said_RT = torch.full((texts, 1), rules.first, device=device)
    for length in range(1, rules.longest + 1):
        width = score_BW.shape[1]
        likely_RK = rules.restrict(_checked(step(said_RT[:, -1], parent_R)).log_softmax(dim=1), said_RT)
        ids = likely_RK.shape[1]
        total = (likely_RK.view(len(live), width, ids) + score_BW[:, :, None]).flatten(1)
        best_BC, place_BC = total.topk(min(2 * beams, width * ids))
        row_BC = place_BC // ids + width * torch.arange(len(live), device=device)[:, None]
        token_BC = place_BC % ids
        closed_BC = (token_BC == rules.end) | (length == rules.longest)
        running_BC, order_BC = best_BC.masked_fill(closed_BC, -torch.inf).sort(
            dim=1, descending=True, stable=True
        )
        score_BW, order_BW = running_BC[:, :beams], order_BC[:, :beams]
        _keep(kept, live, best_BC, row_BC, token_BC, closed_BC, said_RT, rules, beams, length**length_penalty)
        best_running = (score_BW[:, 0] / length**length_penalty).tolist()
        going = [
            text
            for text, number in enumerate(live)
            if best_running[text] > (kept[number][-1].score if len(kept[number]) == beams else -math.inf)
        ]
        if not going:
            break
        rows = torch.tensor(going, device=device)
        live = [live[text] for text in going]
        score_BW = score_BW[rows]
        parent_R = row_BC[rows].gather(1, order_BW[rows]).flatten()
        token_R = token_BC[rows].gather(1, order_BW[rows]).flatten()
        said_RT = torch.cat([said_RT[parent_R], token_R[:, None]], dim=1)
    return [found[0] for found in kept]


def _keep(
    kept: list[list[Found]], live: list[int], best_BC: Tensor, row_BC: Tensor, token_BC: Tensor,
    closed_BC: Tensor, said_RT: Tensor, rules: Rules, beams: int, norm: float,
) -> None:  # fmt: skip
    """Add what ended among the first W candidates of each text; the W best stay, the earlier of equals."""
    first = (closed_BC & best_BC.isfinite())[:, :beams]
    for text, candidate in first.nonzero().tolist():
        tokens = said_RT[row_BC[text, candidate], 1:].tolist()
        token = int(token_BC[text, candidate])
        ended = token == rules.end
        score = float(best_BC[text, candidate]) / norm
        of_text = kept[live[text]]
        of_text.append(Found(tokens if ended else [*tokens, token], ended, score))
        of_text.sort(key=lambda found: -found.score)
        del of_text[beams:]


def _checked(logits_RK: Tensor) -> Tensor:
    """In fp32 or better, for sums of logarithms."""
    if logits_RK.isnan().any():
        raise MuError(
            "the model gives NaN for words: its weights are damaged or its training diverged; take an "
            "earlier checkpoint or train again"
        )
    return logits_RK if logits_RK.dtype == torch.float64 else logits_RK.float()
