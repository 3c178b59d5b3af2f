"""The memory that `mu check` counts on tensors without data, against real allocations and sums by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from medunifier_cli.data.batch import Batch
from medunifier_cli.objectives.pretraining import PretrainingLoss, build_model
from medunifier_cli.objectives.without_data import META
from medunifier_cli.stages.check.memory import StepMemory, _Alive, _Attention, largest_batch, step_memory
from medunifier_cli.stages.check.size import check_memory
from tests.tiny import draw_batch, pack, tiny_recipe

PLAIN = ("train.precision=no", "data.image_size=64", "text.max_tokens=24")


def longest(pairs: int) -> Batch:
    """Pairs whose texts are as long as they may be."""
    batch = draw_batch(pairs, image_size=64)
    return dataclasses.replace(batch, text=pack([[2, *[7] * 22, 3]] * pairs))


def test_the_count_is_what_a_real_step_on_the_cpu_allocates() -> None:
    recipe = tiny_recipe(*PLAIN, "text.vocabulary=200")
    module = PretrainingLoss(build_model(recipe, 201), 200).train()
    weights = sum(t.numel() * t.element_size() for t in [*module.parameters(), *module.buffers()])
    pairs = 24
    batch = longest(pairs)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        losses, _ = module(batch)
        losses["total"].backward()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    memory = step_memory(recipe, pairs)
    assert memory.weights == weights
    assert memory.moments == 8 * sum(p.numel() for p in module.parameters() if p.requires_grad)
    # a kernel's own work space is allocated and not counted
    assert memory.peak - memory.moments - weights == pytest.approx(most, rel=0.1)


def test_a_sum_by_hand() -> None:
    """x [8, 16] -> linear to 32 -> GELU -> sum: what is alive after each operation, in bytes of fp32."""
    with META:
        layer, x = nn.Linear(16, 32), torch.empty(8, 16)
    weights = 4 * (16 * 32 + 32)
    alive = _Alive(weights)
    with alive:
        hidden = layer(x)
        assert alive.now == weights + 4 * 8 * 32
        active = nn.functional.gelu(hidden)
        del hidden  # kept by GELU for the way back
        assert alive.now == weights + 2 * 4 * 8 * 32
        total = active.sum()
        del active  # a sum keeps nothing
        assert alive.now == weights + 4 * 8 * 32 + 4
        total.backward()
    assert alive.now == weights + 4 + weights, "the total, and the gradients"
    assert alive.peak >= weights + 3 * 4 * 8 * 32


def test_attention_keeps_no_matrix_of_all_pairs() -> None:
    with META:
        q = torch.empty(2, 4, 100, 8, requires_grad=True)
    alive = _Alive(0)
    with alive:
        out = _Attention.apply(q, q, q)
    assert out.shape == q.shape
    assert alive.now == 4 * (2 * 4 * 100 * 8 + 2 * 4 * 100)


def test_half_precision_and_a_frozen_encoder_take_less_and_ranks_more() -> None:
    plain = tiny_recipe(*PLAIN)
    half = tiny_recipe("data.image_size=64", "text.max_tokens=24", "train.precision=bf16")
    frozen = tiny_recipe(
        "data.image_size=64", "text.max_tokens=24", "train.precision=bf16", "model.vit.frozen=true"
    )
    counted = {
        name: step_memory(one, 16) for name, one in (("plain", plain), ("half", half), ("frozen", frozen))
    }
    assert counted["plain"].weights == counted["half"].weights > counted["frozen"].weights
    assert counted["plain"].peak > counted["half"].peak > counted["frozen"].peak
    two = step_memory(half, 16, ranks=2)
    assert two.buckets == two.moments // 2
    assert two.peak == counted["half"].peak + two.buckets


def test_more_pairs_take_more_in_proportion() -> None:
    recipe = tiny_recipe(*PLAIN)
    held = [step_memory(recipe, pairs) for pairs in (8, 16, 32)]
    grown = [memory.peak - memory.weights - memory.moments for memory in held]
    assert (grown[2] - grown[1]) / (grown[1] - grown[0]) == pytest.approx(2, rel=0.15)


def test_the_line_of_mu_check_says_for_what() -> None:
    line = check_memory(StepMemory(tiny_recipe("train.precision=bf16")))
    assert "GiB in a step of 8 pairs" in line
    assert "CUDA and its libraries take 1 to 2 GiB more" in line
    assert "exchange of gradients" in check_memory(StepMemory(tiny_recipe("train.micro_batch=4"), 2))
    assert check_memory(StepMemory(tiny_recipe("train.precision=no"))).endswith("for each process")


@pytest.mark.parametrize("room", [0, 149, 150, 151, 1000, 12345, 99999])
@pytest.mark.parametrize("bend", [0, 100, 400])
def test_the_largest_batch_fits_and_the_next_one_does_not(room: int, bend: int) -> None:
    """Against trying every number: a line of memory, and one that gets steeper."""

    def peak(pairs: int) -> int:
        counted.append(pairs)
        return 100 + 25 * pairs + 40 * max(0, pairs - bend if bend else 0)

    counted: list[int] = []
    tried = max(
        (n for n in range(2, 5000) if 100 + 25 * n + 40 * max(0, n - bend if bend else 0) <= room), default=0
    )
    assert largest_batch(peak, room, (4, 16)) == tried
    assert len(counted) < 30
    if tried:
        assert tried in counted, "what is said to fit has been counted"


@pytest.mark.parametrize("seed", range(40))
def test_the_largest_batch_on_a_ragged_curve(seed: int) -> None:
    """Memory that grows by another amount with each pair."""
    rng = np.random.default_rng(seed)
    bytes_n = np.cumsum(rng.integers(1, 100, 400))
    room = int(rng.integers(0, bytes_n[-1]))
    tried = max((n for n in range(2, 400) if bytes_n[n] <= room), default=0)

    def peak(pairs: int) -> int:
        return int(bytes_n[pairs]) if pairs < len(bytes_n) else room + pairs

    assert largest_batch(peak, room, (4, 16)) == tried
