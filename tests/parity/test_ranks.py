"""Two ranks at a global batch are one rank at that batch: losses, gradients, buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.hand_made import write_split
from tests.parity.processes import run_together
from tests.parity.two_ranks import VARIANTS
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one rank alone, and each of two, came to."""
    out = tmp_path_factory.mktemp("ranks")
    write_split(out / "shards", "valid", 80, per_shard=40)
    commands = [(0, 1), (0, 2), (1, 2)]
    run_together("tests.parity.two_ranks", [(out, *command) for command in commands])
    return {f"{r} of {n}": torch.load(out / f"{r}-of-{n}.pt", weights_only=True) for r, n in commands}


def test_two_processes_really_ran(outcomes: dict[str, Any]) -> None:
    assert [outcomes[k]["size"] for k in ("0 of 1", "0 of 2", "1 of 2")] == [1, 2, 2]
    assert [outcomes[k]["rank"] for k in ("0 of 1", "0 of 2", "1 of 2")] == [0, 0, 1]
    assert len({outcome["pid"] for outcome in outcomes.values()}) == 3


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_equal_one(outcomes: dict[str, Any], variant: str) -> None:
    alone = outcomes["0 of 1"]["values"][variant]
    for rank in ("0 of 2", "1 of 2"):
        together = outcomes[rank]["values"][variant]
        assert together.keys() == alone.keys()
        for name, expected in alone.items():
            torch.testing.assert_close(
                together[name], expected, atol=1e-7, rtol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_comparison_compares_something(outcomes: dict[str, Any], variant: str) -> None:
    values = outcomes["0 of 2"]["values"][variant]
    gradients = {name: g for name, g in values.items() if name.startswith("step 1, gradient of")}
    assert len(gradients) > 100
    assert {name.split(".")[0].split()[-1] for name in gradients} >= {"qformer", "generator", "vision_norm"}
    silent = [name for name, gradient in gradients.items() if not gradient.any()]
    assert not silent
    if variant != "no contrast":
        assert {"step 1, itc", "step 1, itm", "step 1, itg", "step 1, tig"} <= values.keys()


def test_running_means_and_revived_codes_moved(outcomes: dict[str, Any]) -> None:
    ema = outcomes["1 of 2"]["values"]["ema codebook, revival, batch-normed features"]
    assert bool(ema["state generator.quantise_top.started"])
    unmoved = tiny_model(*VARIANTS["ema codebook, revival, batch-normed features"]).state_dict()
    for level in ("top", "bottom"):
        name = f"generator.quantise_{level}.code_KC"
        assert bool((ema[f"state {name}"] != unmoved[name]).all())
    assert float(ema["state generator.decoder.raise_top.2.running_mean"].abs().max()) > 0


def test_all_ranks_skip_the_step_in_which_one_of_them_has_an_infinite_loss(outcomes: dict[str, Any]) -> None:
    for outcome in outcomes.values():
        assert outcome["skip"]["skipped"] == [0.0, 1.0, 0.0]
        assert outcome["skip"]["counts"] == {"skipped_steps": 1.0}, "a loss, not an overflow of fp16's scale"
    ranks = [outcomes[name]["skip"]["norms"] for name in ("0 of 2", "1 of 2")]
    assert torch.equal(*ranks)


def test_scores_of_a_validation_are_the_same_for_any_number_of_ranks(outcomes: dict[str, Any]) -> None:
    alone = outcomes["0 of 1"]["scores"]
    assert {"recall@1", "text_to_image_median_rank", "itm_random_accuracy"} <= alone.keys()
    assert all(outcomes[rank]["scores"] == alone for rank in ("0 of 2", "1 of 2"))
