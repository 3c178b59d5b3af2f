"""Random numbers that depend on what they are for and on nothing else."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from medunifier_cli.distributed import draws

PURPOSES = (
    draws.NEGATIVE_TEXT, draws.NEGATIVE_IMAGE, draws.REVIVAL, draws.DROPOUT, draws.TEXT_DROP, draws.TEXT_VIEW,
    draws.SCORED_PAIRS, draws.AUGMENT,
)  # fmt: skip


def test_a_number_depends_on_its_position_and_not_on_its_neighbours() -> None:
    together = draws.uniform(3, draws.NEGATIVE_TEXT, range(100, 140))
    apart = torch.cat([draws.uniform(3, draws.NEGATIVE_TEXT, [i]) for i in reversed(range(100, 140))])
    assert torch.equal(together, apart.flip(0))
    assert together.dtype == torch.float64
    assert bool(((together >= 0) & (together < 1)).all())


def test_numbers_are_those_of_finished_runs() -> None:
    """Recorded from the first version: other numbers would make a resumed run another run."""
    assert list(PURPOSES) == list(range(8))
    assert float(draws.uniform(7, draws.NEGATIVE_IMAGE, [41])) == 0.17490767371142413
    assert draws.step_seed(0, draws.DROPOUT, 5, 0) == 6390908452621712697
    revival = draws.generator(1, draws.REVIVAL, 8)
    assert torch.randint(1000, (3,), generator=revival).tolist() == [13, 385, 841]


def test_purposes_seeds_and_positions_have_streams_of_their_own() -> None:
    uniform = {
        (seed, purpose): tuple(draws.uniform(seed, purpose, range(4)).tolist())
        for seed in range(3)
        for purpose in PURPOSES
    }
    assert len(set(uniform.values())) == len(uniform)
    seeds = [
        draws.step_seed(seed, purpose, step, rank)
        for seed in range(3) for purpose in PURPOSES for step in range(4) for rank in range(2)
    ]  # fmt: skip
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_generator_starts_anew_each_time() -> None:
    one, other = (draws.generator(1, draws.REVIVAL, 8) for _ in range(2))
    assert torch.equal(torch.randint(1000, (9,), generator=one), torch.randint(1000, (9,), generator=other))


def test_columns_are_chosen_as_often_as_their_weight_says() -> None:
    weight = torch.tensor([0.0, 1.0, 0.0, 3.0, 0.0]).expand(4000, -1)
    column = draws.choose(weight, draws.uniform(0, draws.NEGATIVE_TEXT, range(4000)))
    counts = Counter(column.tolist())
    assert counts.keys() == {1, 3}
    assert counts[3] / 4000 == pytest.approx(0.75, abs=0.03)


def test_ends_of_the_interval_never_choose_a_column_without_weight() -> None:
    weight = torch.tensor([[0.0, 2.0, 0.0, 1.0, 0.0]])
    lowest, highest = torch.zeros(1, dtype=torch.float64), torch.full((1,), 1 - 2.0**-53, dtype=torch.float64)
    assert draws.choose(weight, lowest).tolist() == [1]
    assert draws.choose(weight, highest).tolist() == [3]


def test_a_row_without_weight_chooses_nothing() -> None:
    weight = torch.tensor([[0.0, 0.0], [0.0, 5.0]])
    assert draws.choose(weight, torch.tensor([0.3, 0.3], dtype=torch.float64)).tolist() == [-1, 1]
