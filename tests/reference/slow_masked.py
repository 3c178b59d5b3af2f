"""Masking, likelihood and decoding of a masked prior once more: row by row, code by code, in Python loops."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from medunifier_cli.distributed.draws import philox
from medunifier_cli.model.sampling import Draws
from medunifier_cli.prior.contract import TextStates
from medunifier_cli.prior.masked.network import MaskedNetwork

TOP, BOTTOM = 0, 1
FIRST = (0, 1)
"""First slot of each level in a cell."""
SIZES = (1, 4)
"""Slots of each level in a cell."""


def cell_of_maps(top_TT: list[list[int]], bottom_GG: list[list[int]]) -> list[list[int]]:
    """Codes by cell, [P][5]."""
    edge = len(top_TT)
    return [
        [top_TT[y][x], *(bottom_GG[2 * y + dy][2 * x + dx] for dy in (0, 1) for dx in (0, 1))]
        for y in range(edge)
        for x in range(edge)
    ]


def hidden_by_hand(chance_N: list[float], cells: int) -> tuple[list[list[bool]], list[list[bool]]]:
    """The two training views of a row, [P][5]: what each hides."""

    def smallest(numbers: list[float], share: float) -> set[int]:
        count = max(1, math.ceil(math.cos(math.pi / 2 * share) * len(numbers)))
        return set(sorted(range(len(numbers)), key=lambda i: numbers[i])[:count])

    top = smallest(chance_N[3 : 3 + cells], chance_N[0])
    bottom = smallest(chance_N[3 + cells :], chance_N[1])
    all_bottom = chance_N[2] >= 0.25
    first = [[cell in top, *[all_bottom or cell in top] * 4] for cell in range(cells)]
    return first, [[False, *(4 * cell + i in bottom for i in range(4))] for cell in range(cells)]


def log_p(
    network: MaskedNetwork, cells: list[list[int]], tokens: TextStates | None, cell: int, slot: int
) -> Tensor:
    """Log-probabilities [K] of one code of one row; hidden codes are K."""
    with torch.no_grad():
        out = network.body(torch.tensor([cells]), network.keys_of_text(tokens, None, 1))
        logits = (
            network.top_logits(out)[0, cell] if slot == 0 else network.bottom_logits(out)[0, cell, slot - 1]
        )
    return logits.double().log_softmax(0)


def nats_of_all_orders(
    network: MaskedNetwork, cells: list[list[int]], tokens: TextStates | None, level: int
) -> float:
    """Mean nats of a level's map over every order in which its codes can be told one by one."""
    places = [(cell, FIRST[level] + i) for cell in range(len(cells)) for i in range(SIZES[level])]
    total, orders = 0.0, list(itertools.permutations(places))
    for order in orders:
        seen = [[network.hidden] * 5 for _ in cells]
        if level == BOTTOM:
            for mine, true in zip(seen, cells, strict=True):
                mine[0] = true[0]
        for cell, slot in order:
            total -= float(log_p(network, seen, tokens, cell, slot)[cells[cell][slot]])
            seen[cell][slot] = cells[cell][slot]
    return total / len(orders)


def decode_by_hand(
    network: MaskedNetwork, cells: list[list[int]], tokens: TextStates | None, number: int, draws: Draws
) -> list[list[int]]:
    """Fill the hidden codes of sample `number`, one code after the other in each round."""
    shape, cells = network.shape, [list(cell) for cell in cells]
    for level, rounds in ((TOP, shape.top_rounds), (BOTTOM, shape.bottom_rounds)):
        places = [(cell, FIRST[level] + i) for cell in range(len(cells)) for i in range(SIZES[level])]
        numbers = 1 - philox(draws.seed, counter=(0, 0, number, 2 + level)).random((rounds, 2, len(places)))
        left = [place for place in places if cells[place[0]][place[1]] == network.hidden]
        every = len(left)
        plan = [every]
        while plan[-1]:
            share = math.cos(math.pi / 2 * len(plan) / rounds)
            plan.append(max(0, min(plan[-1] - 1, math.floor(every * share))))
        for done, want in enumerate(plan[1:], 1):
            drawn, sure = {}, {}
            for place in left:
                logits = log_p(network, cells, tokens, *place)
                if draws.guidance != 1:
                    without = log_p(network, cells, None, *place)
                    scale = draws.guidance
                    logits = without + scale * (logits - without)
                at = places.index(place)
                share = torch.softmax(logits / draws.temperature, 0).cumsum(0)
                drawn[place] = int((share < numbers[done - 1, 0, at] * share[-1]).sum())
                noise = -math.log(-math.log(numbers[done - 1, 1, at]))
                noise *= shape.choice_noise * (1 - done / (len(plan) - 1))
                sure[place] = float(logits.log_softmax(0)[drawn[place]]) + noise
            for cell, slot in sorted(left, key=lambda place: -sure[place])[: len(left) - want]:
                cells[cell][slot] = drawn[cell, slot]
            left = [place for place in left if cells[place[0]][place[1]] == network.hidden]
    return cells
