"""`text.drop` in the loss: which objectives read a text without some of its tokens, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from medunifier_cli.data.texts.dropping import drop_tokens
from medunifier_cli.objectives.pretraining import PretrainingLoss
from tests.tiny import DEC, draw_batch, tiny_model

SHARE = 0.5


def losses(share: float, training: bool = True, thinned: bool = False) -> dict[str, float]:
    """Losses of one batch; `thinned` hands over the text without the tokens, and drops none itself."""
    module = PretrainingLoss(tiny_model(f"text.drop={share}"), DEC).train(training)
    batch = draw_batch(6, seed=3)
    if thinned:
        text = drop_tokens(batch.text, batch.position_B.tolist(), SHARE, 0)
        assert len(text.ids_N) < len(batch.text.ids_N)
        batch = replace(batch, text=text)
    torch.manual_seed(0)
    found, _ = module(batch, torch.Generator().manual_seed(0))
    return {name: float(loss.detach()) for name, loss in found.items()}


@pytest.mark.parametrize("name", ["itc", "tig"])
def test_contrast_and_image_generation_read_what_is_left(name: str) -> None:
    whole, dropped = losses(0), losses(SHARE)
    assert dropped[name] != pytest.approx(whole[name])
    assert dropped[name] == pytest.approx(losses(0, thinned=True)[name], rel=1e-12)


def test_text_generation_reads_the_whole_text() -> None:
    assert losses(SHARE)["itg"] == losses(0)["itg"]
    assert losses(0, thinned=True)["itg"] != pytest.approx(losses(0)["itg"])


def test_a_measurement_reads_the_whole_text() -> None:
    assert losses(SHARE, training=False) == losses(0, training=False)
