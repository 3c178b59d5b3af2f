"""docs/scaling.md: its tables follow from the inputs that it names, and these from the code."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments.running import END
from experiments.scaling import (
    CASES,
    Inputs,
    gather_seconds,
    inputs,
    inputs_of,
    page,
    samples_per_s,
)
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.recipe.load import load_recipe
from tests.house.file_map import ROOT

NAMES = [f"{ranks} {kind}" for ranks, kind in CASES]
ROUND = Inputs(
    dict.fromkeys(NAMES, 320.0), dict.fromkeys(NAMES, 18.0), 300_000_000, 10**9, 257 * 1408 * 2, 33 * 256 * 4,
    1000.0, 40_000.0,
)  # fmt: skip


@pytest.fixture(scope="module")
def text() -> str:
    return (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")


def cells(text: str, first: str) -> list[str]:
    """Cells of the first row of a table that begins so."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


def test_the_tables_follow_from_the_inputs_that_the_page_names(text: str) -> None:
    written = text.split("<!-- written by experiments/scaling.py -->")[1].split(END)[0]
    assert page(inputs_of(text)).strip() == written.strip(), "run `python -m experiments.scaling`"


def test_counts_are_those_of_the_code(text: str) -> None:
    """Without the image encoder's billion weights, which take long to build even without data."""
    recipe = load_recipe("full", ["model.vit.depth=1", "model.vit.drop_last_block=false"])
    with torch.device("meta"):
        model = MedUnifier(recipe, 30_523, load=False)
    given = inputs_of(text)
    assert given.trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    block = sum(p.numel() for p in model.vit.vit.blocks[0].parameters())
    whole = sum(tensor.numel() for _, tensor in model.vit.frozen_tensors())
    assert given.frozen == whole + 38 * block, "39 blocks of the 40 are used"
    assert given.feature_bytes == 2 * 257 * 1408
    assert given.gathered_bytes == 4 * (32 + 1) * 256


def test_by_hand(text: str) -> None:
    """At round numbers: 320 pairs a second and card, 300 million weights."""
    made = page(ROUND)
    assert samples_per_s(ROUND, 1, "live") == 320
    assert cells(made, "1, live") == ["64", "200", "320", f"{30 * 243_300 / 320 / 3600:.2f}"]
    # 2,048 pairs of 33,792 bytes, twice over 50 GB/s; the 48 ms of gradients are hidden
    assert gather_seconds(ROUND, 32) == pytest.approx(2 * 2048 * 33_792 / 50e9)
    assert samples_per_s(ROUND, 32, "live") == pytest.approx(2048 / (0.2 + 2 * 2048 * 33_792 / 50e9))
    assert cells(made, "a checkpoint") == ["3.60", "shared"]
    assert cells(made, "cached features") == ["176", "local to each node, or its memory"]
    assert cells(made, "4") == [f"{18 + 1.2e9 / 2**30 + 2:.1f}"] * 2
    slow = replace(ROUND, trained=3_000_000_000)  # 480 ms of gradients, of which 90 are hidden
    gathered = gather_seconds(slow, 32)
    assert samples_per_s(slow, 32, "live") == pytest.approx(2048 / (0.2 + gathered + 0.48 - 0.09))


@pytest.mark.slow
def test_inputs_are_those_of_the_page_of_benchmarks(text: str) -> None:
    assert inputs((ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")) == inputs_of(text)
