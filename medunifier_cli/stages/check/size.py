"""What a recipe of pre-training takes: memory of a card, time, and room on the disk; counted or predicted."""

from __future__ import annotations

import math
from collections.abc import Iterator

from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.pretended.rates import CARD
from medunifier_cli.pretended.step import dry_step
from medunifier_cli.pretended.typical import typical_batch
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.stages.check.memory import StepMemory, largest_batch
from medunifier_cli.stages.check.shared import Check, run_check

GIB = 2**30
CARDS = (24, 40, 80)
"""GiB of common cards."""
RESERVE = 2 * GIB
"""What CUDA, its libraries and gaps between blocks take of a card."""
STRAIGHT = 2e-3
"""Share by which a count may be off a line through two others that still counts as a line."""
BYTES_OF_FEATURE = 2  # bf16


def check_sizes(recipe: PretrainRecipe, processes: int, images: dict[str, int]) -> Iterator[Check]:
    """Memory, largest batches, speed and room on the disk, for each card or process.

    Args:
        processes: ranks; 0 for one.
        images: split -> number of images, of the splits that are there.
    """
    ranks = processes or 1
    counted = StepMemory(recipe, ranks)
    yield from run_check("memory", check_memory, counted)
    if recipe.train.precision != "no":  # a CPU has all the memory of the machine, and no rate was measured
        yield from run_check("micro-batch", check_cards, counted)
        yield from run_check("speed", check_speed, recipe, ranks, images.get(recipe.data.train, 0))
    yield from run_check("disk", check_disk, counted, sum(images.values()))


def pairs_of(counted: StepMemory) -> int:
    """Pairs of a rank and pass, as the recipe says."""
    train = counted.recipe.train
    return micro_batch_size(train.global_batch, train.micro_batch, counted.ranks)


def check_memory(counted: StepMemory) -> str:
    """Count what a step needs on each card, or in each process."""
    pairs = pairs_of(counted)
    memory = counted.of(pairs)
    peak, weights, moments, buckets = (
        f"{count / GIB:.2f}" for count in (memory.peak, memory.weights, memory.moments, memory.buckets)
    )
    exchange = f", exchange of gradients {buckets}" if counted.ranks > 1 else ""
    on_cpu = counted.recipe.train.precision == "no"
    where = "process" if on_cpu else "card; CUDA and its libraries take 1 to 2 GiB more"
    return (
        f"{peak} GiB in a step of {pairs} pairs with the longest texts (weights {weights}, AdamW {moments}"
        f"{exchange}, the rest gradients and activations), counted without a GPU; for each {where}"
    )


def check_cards(counted: StepMemory) -> str:
    """The largest `train.micro_batch` for each card of `CARDS`."""
    found = largest_batches(counted, pairs_of(counted))
    sizes = ", ".join(f"{pairs or 'none'} on {card} GB" for card, pairs in found.items())
    return (
        f"at most {sizes}, with the longest texts and {RESERVE // GIB} GiB left to CUDA and its libraries; "
        "train.global_batch must be a multiple of it"
    )


def largest_batches(counted: StepMemory, pairs: int) -> dict[int, int]:
    """GiB of a card -> the most pairs of a pass that fit; 0 where two do not.

    Args:
        pairs: a number that has been counted, or is to be.
    """
    few = max(2, pairs // 4)
    more = pairs if pairs > few else 4 * few
    line: list[tuple[int, int]] = []

    def peak(number: int) -> int:
        if line and few <= number <= line[1][0]:
            (first, low), (last, high) = line
            return low + round((high - low) * (number - first) / (last - first))
        return counted.of(number).peak

    found = {}
    for card in sorted(CARDS, reverse=True):
        most = found[card] = largest_batch(peak, card * GIB - RESERVE, (few, more))
        if not line and most > more:
            ends, middle = [(few, peak(few)), (most, peak(most))], peak(more)
            between = ends[0][1] + (ends[1][1] - ends[0][1]) * (more - few) / (most - few)
            # The peak is the largest of sums that each grow in proportion to the pairs, and so has no dent:
            # where one count between two others is on their line, all are, and need not be counted.
            line = ends if abs(between - middle) <= STRAIGHT * middle else []
    return dict(sorted(found.items()))


def check_speed(recipe: PretrainRecipe, ranks: int, images: int) -> str:
    """What a card of `rates.CARD` would reach, from one step on a pretended one.

    Args:
        images: of the train split; 0 if it is not there.
    """
    train = recipe.train
    pairs = micro_batch_size(train.global_batch, train.micro_batch, ranks)
    step = dry_step(recipe, recipe.text.vocabulary + 1, typical_batch(recipe, pairs), ranks)
    rate = step.pairs_per_s
    steps = train.steps or math.ceil(train.epochs * images / train.global_batch)
    if steps:
        hours = steps * train.global_batch / (rate * ranks) / 3600
        length = f"{hours:.2g} hours for {steps:,} steps"
    else:
        length = f"hours for train.epochs={train.epochs:g} once the train split is prepared"
    all_of_them = f", {rate * ranks:,.0f} on {ranks}" if ranks > 1 else ""
    return (
        f"{rate:,.0f} pairs/s on one {CARD}{all_of_them}; {length}: predicted by assumed rates of its "
        f"kernels, to some 25 %, without compilation, validation and waits for data; "
        f"{step.flop_per_pair / 1e12:.3f} TFLOP a pair"
    )


def check_disk(counted: StepMemory, images: int) -> str:
    """Room that checkpoints take, and cached features of a frozen image encoder would.

    Args:
        images: of all splits that are there.
    """
    recipe, model = counted.recipe, counted.model
    frozen = {f"vit.vit.{name}" for name, _ in model.vit.frozen_tensors()}
    state = model.state_dict()
    weights = sum(t.numel() * t.element_size() for name, t in state.items() if name not in frozen)
    one = weights * (2 if recipe.train.best else 1) + 2 * counted.gradients
    # a new one is whole before an old one is deleted
    room = f"{_gb(one)} a checkpoint, {_gb(one * (recipe.train.keep + 1))} at most"
    if not frozen:
        return room
    each = model.vit.tokens * model.vit.width * BYTES_OF_FEATURE
    of_all = f"{_gb(each * images)} for {images:,} images" if images else f"{each:,} bytes an image"
    return f"{room}; features of the frozen image encoder, where they are cached, {of_all}"


def _gb(count: float) -> str:
    return f"{count / 1e9:,.2f} GB"
