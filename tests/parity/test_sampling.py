"""Cached sampling against a full forward pass for every position; the same codes for any batch or threads."""

from __future__ import annotations

import math
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medunifier_cli.errors import MuError
from medunifier_cli.model.sampling import Draws, draw_codes, uniforms
from medunifier_cli.prior.cache import CachedPrior
from medunifier_cli.prior.pixelsnail import PixelSnail
from medunifier_cli.prior.prepared import product_weights
from medunifier_cli.prior.sampling import Inputs, sample
from medunifier_cli.prior.shape import PriorShape
from tests.reference.slow_sampling import full_logits, slow_code, slow_sample

TOP, TEXT = 11, 10
ROWS = 8


def tiny(**changes: Any) -> PixelSnail:
    """A prior with large random weights, so that every path counts in the logits."""
    torch.manual_seed(5)
    config = {
        "codes": 7,
        "channels": 48,
        "blocks": 2,
        "layers": 2,
        "heads": 3,
        "top_layers": 1,
        "dropout": 0.5,
    }
    prior = PixelSnail(PriorShape(**{**config, **changes})).eval()
    for parameter in prior.parameters():
        parameter.data.normal_(0, 0.9 / math.sqrt(parameter[0].numel()) if parameter.dim() > 1 else 0.3)
    return prior


def inputs(prior: PixelSnail, rows: int, top: tuple[int, int]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    given: dict[str, Tensor] = {}
    if prior.config.top_codes:
        given["top_codes"] = torch.randint(prior.config.top_codes, (rows, *top), generator=generator)
    if prior.config.text_width:
        given["condition"] = torch.randn(rows, prior.config.text_width, generator=generator)
    return given


def as_inputs(given: dict[str, Tensor]) -> Inputs:
    return Inputs(text=given.get("condition"), top_codes=given.get("top_codes"))


PRIORS: list[tuple[dict[str, Any], tuple[int, int], tuple[int, int]]] = [
    ({}, (5, 7), (0, 0)),
    ({"text_width": TEXT}, (6, 3), (0, 0)),
    ({"attention": False}, (3, 8), (0, 0)),
    ({"attention": False, "top_codes": TOP}, (8, 8), (4, 4)),
    ({"attention": False, "top_codes": TOP, "text_width": TEXT}, (7, 5), (3, 2)),
    ({"top_codes": TOP, "text_width": TEXT}, (5, 9), (5, 4)),
    ({"concat_elu": True, "kernel": 5, "stem_kernel": 7, "top_codes": TOP}, (5, 6), (2, 7)),
    ({"codebook_width": 12, "top_codes": TOP, "stem_kernel": 3}, (1, 6), (1, 3)),
    ({"text_width": TEXT, "blocks": 1, "layers": 1}, (6, 1), (0, 0)),
]


@pytest.mark.parametrize(("changes", "size", "top"), PRIORS)
def test_cached_logits_are_those_of_full_recomputation(
    changes: dict[str, Any], size: tuple[int, int], top: tuple[int, int]
) -> None:
    prior, tiles = tiny(**changes), 2
    if prior.config.codebook_width:
        prior.set_codebooks(torch.randn(7, 12), torch.randn(TOP, 12))
    given = inputs(prior, tiles * ROWS, top)
    if "condition" in given:
        given["drop_condition"] = torch.arange(tiles * ROWS) % 3 == 0
    codes = torch.randint(7, (tiles * ROWS, *size), generator=torch.Generator().manual_seed(1))
    expected = full_logits(prior, codes, **given)
    tiled = {name: value.unflatten(0, (tiles, ROWS)) for name, value in given.items()}
    with torch.inference_mode():
        cached = CachedPrior(prior, product_weights(prior), size, tiles=tiles, **tiled)
        for row in range(size[0]):
            for column in range(size[1]):
                logits = cached.logits(row, column).flatten(0, 1)
                torch.testing.assert_close(logits, expected[:, :, row, column], atol=1e-4, rtol=0)
                cached.put(row, column, codes[:, row, column].view(tiles, ROWS))
    assert expected.std() > 0.3  # equal, and not because nothing reaches the logits


@pytest.mark.parametrize(
    ("settings", "changes", "top"),
    [
        ({}, {}, (0, 0)),
        ({"guidance": 2.5, "temperature": 0.7}, {"text_width": TEXT}, (0, 0)),
        ({"guidance": 0.0}, {"text_width": TEXT, "attention": False}, (0, 0)),
        ({"guidance": 1.5, "top_p": 0.8}, {"text_width": TEXT, "top_codes": TOP}, (3, 2)),
        ({"top_k": 3, "top_p": 0.6}, {"attention": False, "top_codes": TOP}, (2, 3)),
        ({"temperature": 0.0}, {"top_codes": TOP}, (2, 3)),
    ],
)
def test_samples_are_those_of_full_recomputation(
    settings: dict[str, float], changes: dict[str, Any], top: tuple[int, int]
) -> None:
    prior = tiny(**changes)
    given = inputs(prior, 5, top)
    fast = sample(prior, (5, 4), range(6, 11), Draws(9, **settings), as_inputs(given))  # type: ignore[arg-type]
    slow = slow_sample(prior, (5, 4), range(6, 11), 9, **settings, **given)  # type: ignore[arg-type]
    assert fast.tolist() == slow.tolist()


def test_codes_do_not_depend_on_batch_size_or_threads() -> None:
    prior = tiny(text_width=TEXT, top_codes=TOP, codes=61, blocks=1)
    given = inputs(prior, 40, (2, 2))

    def sampled(batch: int, threads: int) -> Tensor:
        torch.set_num_threads(threads)
        parts = []
        for first in range(0, 40, batch):
            part = {name: value[first : first + batch] for name, value in given.items()}
            samples = range(first, min(first + batch, 40))
            parts.append(sample(prior, (3, 3), samples, Draws(1, guidance=2.0), as_inputs(part)))
        assert torch.get_num_threads() == threads
        return torch.cat(parts)

    before = torch.get_num_threads()
    try:
        expected = sampled(40, 2)
        for batch, threads in ((1, 1), (3, 2), (8, 1), (32, 3)):
            assert torch.equal(sampled(batch, threads), expected), (batch, threads)
    finally:
        torch.set_num_threads(before)
    assert len(expected.unique(dim=0)) == 40


@pytest.mark.parametrize("changes", [{}, {"attention": False, "channels": 80}, {"concat_elu": True}])
def test_logits_are_bit_equal_whatever_else_is_in_the_batch(changes: dict[str, Any]) -> None:
    prior, size = tiny(**changes), (4, 5)
    codes = torch.randint(7, (3, ROWS, *size), generator=torch.Generator().manual_seed(2))
    results = []
    with torch.inference_mode():
        for part in (slice(0, 3), slice(1, 2)):
            tiles = len(codes[part])
            cached = CachedPrior(prior, product_weights(prior), size, tiles=tiles)
            logits = []
            for row in range(size[0]):
                for column in range(size[1]):
                    logits.append(cached.logits(row, column))
                    cached.put(row, column, codes[part][:, :, row, column])
            results.append(torch.stack(logits, -1))
    assert torch.equal(results[0][1:2], results[1])


def test_seed_sample_and_level_each_change_the_draws() -> None:
    base = uniforms(1, 0, range(4), 50)
    assert np.array_equal(base[2:], uniforms(1, 0, range(2, 4), 50))
    assert np.array_equal(base[:, :9], uniforms(1, 0, range(4), 9))
    rows = np.concatenate([base, uniforms(2, 0, range(4), 50), uniforms(1, 1, range(4), 50)])
    assert len(np.unique(rows)) == rows.size
    assert rows.min() > 0
    assert rows.max() <= 1


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1, 0, 1.0), (0.5, 3, 1.0), (2, 0, 0.7), (1, 4, 0.5)]
)
def test_draws_agree_with_a_loop_and_follow_the_distribution(
    temperature: float, top_k: int, top_p: float
) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=9) * 2
    u = rng.random(4000)
    draws = Draws(0, temperature, top_k, top_p)
    rows = torch.from_numpy(logits).expand(len(u), -1)
    codes = draw_codes(rows, torch.from_numpy(1 - u), draws).tolist()
    assert codes == [slow_code(logits.tolist(), float(x), temperature, top_k, top_p) for x in u]
    weights = np.exp(logits / temperature)
    kept = sorted(Counter(codes))
    likeliest = np.argsort(-weights)[: len(kept)]
    assert kept == sorted(likeliest.tolist())
    expected = weights[kept] / weights[kept].sum()
    seen = np.array([codes.count(code) for code in kept]) / len(codes)
    assert np.abs(seen - expected).max() < 0.03


def test_a_code_without_probability_is_never_sampled() -> None:
    logits = torch.tensor([[-1e4, 0.0, 0.0, -1e4]], dtype=torch.float64).expand(3, -1)
    targets = torch.tensor([2.0**-53, 0.5, 1.0], dtype=torch.float64)
    assert draw_codes(logits, targets, Draws(0)).tolist() == [1, 1, 2]


def test_sampling_leaves_the_prior_as_it_was() -> None:
    prior = tiny().train()
    first = sample(prior, (3, 3), range(2), Draws(0))
    assert all(module.training for module in prior.modules())
    assert torch.equal(first, sample(prior.eval(), (3, 3), range(2), Draws(0)))
    assert not any(thread.name.startswith("mu-sample") for thread in threading.enumerate())


def test_nan_logits_are_an_error_in_one_line() -> None:
    prior = tiny(attention=False)
    prior.head.weight.data[2, 3] = torch.nan
    with pytest.raises(MuError, match=r"NaN.*row 0, column 0.*earlier checkpoint") as raised:
        sample(prior, (3, 3), range(20), Draws(0))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, {"samples": range(0)}, "nothing to sample"),
        ({}, {"samples": range(-1, 1)}, "nothing to sample"),
        ({}, {"samples": range(0, 8, 2)}, "nothing to sample"),
        ({}, {"temperature": -1.0}, "temperature"),
        ({}, {"temperature": math.nan}, "temperature"),
        ({}, {"top_p": 0.0}, "top-p"),
        ({}, {"top_k": -1}, "top-k"),
        ({}, {"seed": -1}, "seed"),
        ({}, {"guidance": 2.0}, "needs a prompt"),
        ({}, {"text": torch.zeros(2, TEXT)}, "without text"),
        ({"text_width": TEXT}, {"text": torch.zeros(3, TEXT)}, r"\(2, 10\)"),
        ({"top_codes": TOP}, {}, "top codes are missing"),
        ({}, {"top_codes": torch.zeros(2, 2, 2, dtype=torch.int64)}, "that takes none"),
        ({"top_codes": TOP}, {"top_codes": torch.full((2, 2, 2), TOP)}, "another codebook"),
        ({"top_codes": TOP}, {"top_codes": torch.zeros(1, 2, 2, dtype=torch.int64)}, r"\(2, height, width\)"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], given: dict[str, Any], message: str) -> None:
    fields = {"text", "top_codes"}
    inputs = Inputs(**{name: value for name, value in given.items() if name in fields})
    settings = {name: value for name, value in given.items() if name not in {*fields, "samples"}}
    with pytest.raises(MuError, match=message):
        sample(
            tiny(**changes), (2, 2), given.get("samples", range(2)), Draws(**{"seed": 0, **settings}), inputs
        )
