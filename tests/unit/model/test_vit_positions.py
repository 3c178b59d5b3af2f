"""`model.vit.position_std`: random position embeddings, and what random queries see of a place."""

from __future__ import annotations

import pytest
import torch

from medunifier_cli.errors import MuError
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.recipe.load import load_recipe
from medunifier_cli.recipe.schema import VitConfig

SMALL = {"name": "vit_tiny_patch16_224", "patch_size": 8, "width": 64, "depth": 2, "heads": 4}


def encoder(position_std: float, **changed: object) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(VitConfig(**{**SMALL, **changed, "position_std": position_std}), 64)  # type: ignore[arg-type]


def test_positions_alone_are_drawn_anew_and_at_this_deviation() -> None:
    before, after = encoder(0).vit.state_dict(), encoder(0.5).vit.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["pos_embed"]
    assert float(before["pos_embed"].std()) == pytest.approx(0.02, rel=0.1)
    assert float(after["pos_embed"].std()) == pytest.approx(0.5, rel=0.05)


def test_a_model_without_position_embeddings_is_refused() -> None:
    with pytest.raises(MuError, match=r"model\.vit\.position_std: \S+ has no position embeddings"):
        encoder(0.5, name="vit_medium_patch16_rope_reg1_gap_256")


def test_pretrained_positions_are_not_replaced() -> None:
    with pytest.raises(MuError, match=r"model\.vit\.position_std: would replace"):
        load_recipe("demo", ["model.vit.position_std=0.5", "model.vit.weights=hub"])


def seen_of_a_place(position_std: float) -> float:
    """How far the queries move when a bright square moves elsewhere, relative to when it disappears."""
    recipe = load_recipe("demo", [f"model.vit.position_std={position_std}", "objectives.tig=0"])
    torch.manual_seed(0)
    model = MedUnifier(recipe, 100).eval()
    places = [(8, 8), (8, 40), (40, 8), (40, 40)]
    images = torch.full((5, 3, 64, 64), 0.3)
    for image, (row, column) in zip(images, places, strict=False):
        image[:, row : row + 16, column : column + 16] = 0.9
    with torch.no_grad():
        query_BQD = model.encode_image(images).query_BQD
    moved = (query_BQD[:4, None] - query_BQD[None, :4]).flatten(2).norm(dim=2)
    gone = (query_BQD[:4] - query_BQD[4]).flatten(1).norm(dim=1)
    return float(moved.sum() / 12 / gone.mean())


def test_queries_with_random_weights_see_where_something_is() -> None:
    assert seen_of_a_place(0.5) > 2 * seen_of_a_place(0)
