"""Where weight files of other projects are found on this machine."""

from __future__ import annotations

import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from medunifier_cli.errors import MissingWeightsError, MuError
from medunifier_cli.model.vit import ImageEncoder, timm_arguments
from medunifier_cli.model.weights import (
    TRANSFORMERS_FILES,
    WEIGHT_FILES,
    cached_file,
    is_hub_name,
    local_weights,
    require_cached,
    weights_path,
)
from medunifier_cli.recipe.schema import VitConfig


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of `some/bert` in an otherwise empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--some--bert" / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (folder.parents[1] / "refs").mkdir()
    (folder.parents[1] / "refs" / "main").write_text("0" * 40)
    return folder


@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_a_folder_stands_for_the_weight_file_in_it(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert local_weights(tmp_path) == tmp_path / name
    assert local_weights(tmp_path / name) == tmp_path / name


def test_safetensors_take_precedence(tmp_path: Path) -> None:
    for name in reversed(WEIGHT_FILES):
        (tmp_path / name).write_bytes(b"")
    assert local_weights(tmp_path).name == "model.safetensors"


def test_a_folder_without_weights_names_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "open_clip_model.safetensors").write_bytes(b"")
    with pytest.raises(MissingWeightsError, match=r"holds none of model\.safetensors, pytorch_model\.bin$"):
        local_weights(tmp_path, TRANSFORMERS_FILES)


def test_the_cache_is_read_and_a_missing_repository_gives_the_command(snapshot: Path) -> None:
    assert cached_file("some/bert") is None
    (snapshot / "pytorch_model.bin").write_bytes(b"")
    assert cached_file("some/bert") == snapshot / "pytorch_model.bin"
    assert require_cached("key", "some/bert") == snapshot / "pytorch_model.bin"
    with pytest.raises(MissingWeightsError, match=r"^model\.vit\.weights: .*`hf download some/vit`"):
        require_cached("model.vit.weights", "some/vit")


def test_a_local_folder_hides_a_hub_name(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (snapshot / "model.safetensors").write_bytes(b"")
    assert weights_path("key", "some/bert") == snapshot / "model.safetensors"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some" / "bert").mkdir(parents=True)
    (tmp_path / "some" / "bert" / "model.safetensors").write_bytes(b"")
    assert weights_path("key", "some/bert") == Path("some/bert/model.safetensors")


@pytest.mark.parametrize("source", ["bert", "./some/bert", "~/bert", "/some/bert", "a/b/c"])
def test_what_is_neither_here_nor_a_hub_name(snapshot: Path, source: str) -> None:
    assert not is_hub_name(source)
    with pytest.raises(MissingWeightsError, match="is neither a folder, a file nor a hub name"):
        weights_path("key", source)


def test_an_image_encoder_takes_a_checkpoint_with_numbers_and_explains_one_with_objects(
    tmp_path: Path,
) -> None:
    recipe = VitConfig(
        name="vit_base_patch16_clip_224", weights=str(tmp_path / "vit.pth"), patch_size=8, width=48, depth=1,
        heads=4, drop_last_block=False,
    )  # fmt: skip
    state = timm.create_model(recipe.name, **timm_arguments(recipe, 32)).state_dict()
    torch.save({"model": state, "best": np.float64(0.5)}, tmp_path / "vit.pth")
    loaded = ImageEncoder(recipe, 32).vit.state_dict()
    assert set(loaded) == set(state) - {"norm.weight", "norm.bias"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.items())
    torch.save({"model": state, "args": types.SimpleNamespace(lr=1e-4)}, tmp_path / "vit.pth")
    with pytest.raises(
        MuError, match=r"^model\.vit\.weights: .*more than tensors \(types\.SimpleNamespace\)"
    ):
        ImageEncoder(recipe, 32)
