"""The image encoder is loaded without being drawn, as timm loads it; a frozen one's hash is remembered."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from medunifier_cli.checkpoint.encoder import tower
from medunifier_cli.checkpoint.encoder.tower import load_tower, tensors_hash
from medunifier_cli.errors import MuError
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.vit import ImageEncoder, timm_arguments
from medunifier_cli.model.weights import without_drawing
from medunifier_cli.recipe.schema import PretrainRecipe, VitConfig
from medunifier_cli.roots import cache_root
from tests.tiny import VOCABULARY, tiny_recipe

SIZES: dict[str, Any] = {"patch_size": 8, "width": 48, "depth": 2, "heads": 4, "drop_last_block": False}
NAMES = ("eva_giant_patch14_clip_224", "vit_base_patch16_clip_224", "vit_base_patch14_dinov2",
         "vit_base_patch14_reg4_dinov2", "eva02_base_patch16_clip_224", "deit3_base_patch16_224")  # fmt: skip


class Drawn(TorchDispatchMode):
    """Counts the numbers that are drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        random = ("normal", "uniform", "rand", "bernoulli")
        if any(word in str(func) for word in random) and isinstance(out, Tensor) and not out.is_meta:
            self.count += out.numel()
        return out


def write_weights(path: Path, name: str, dtype: torch.dtype = torch.float32, size: int = 32) -> None:
    """As `timm` would save the recipe's encoder, from random numbers that no constant of it has."""
    recipe = VitConfig(name=name, **SIZES)
    vit = timm.create_model(name, **timm_arguments(recipe, size))
    draws = torch.Generator().manual_seed(7)
    state = {k: torch.randn(v.shape, generator=draws).to(dtype) for k, v in vit.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save({"model": state}, path)


def of_timm(recipe: VitConfig, size: int) -> Any:
    """The encoder as timm itself builds and loads it."""
    overlay = {"file": recipe.weights}
    vit = timm.create_model(
        recipe.name, pretrained=True, pretrained_cfg_overlay=overlay, **timm_arguments(recipe, size)
    )
    vit.norm = nn.Identity()
    return vit.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("file", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 32), (torch.float16, 32), (torch.bfloat16, 32), (torch.float32, 48)]
)
def test_it_is_the_one_that_timm_loads_and_nothing_is_drawn(
    tmp_path: Path, name: str, file: str, dtype: torch.dtype, size: int
) -> None:
    """Of other precision and of another image size as well, for which timm resizes the positions."""
    recipe = VitConfig(name=name, weights=str(tmp_path / file), **SIZES)
    write_weights(tmp_path / file, name, dtype, 32)
    with Drawn() as drawn:
        encoder = ImageEncoder(recipe, size)
    assert drawn.count < 100
    expected = of_timm(recipe, size)
    ours, theirs = dict(encoder.vit.named_parameters()), dict(expected.named_parameters())
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if not torch.equal(ours[n], theirs[n]) or ours[n].dtype != torch.float32] == []
    assert all(not p.requires_grad and p.is_contiguous() for p in ours.values())
    buffers = dict(expected.named_buffers())
    assert {n: b.shape for n, b in encoder.vit.named_buffers()} == {n: b.shape for n, b in buffers.items()}
    assert all(torch.equal(b, buffers[n]) for n, b in encoder.vit.named_buffers())
    x = torch.rand(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(encoder.vit.forward_features(x), expected.forward_features(x))


def test_names_of_open_clip_go_through_the_filter_of_timm(tmp_path: Path) -> None:
    recipe = VitConfig(name=NAMES[0], weights=str(tmp_path / "w.safetensors"), **SIZES)
    vit = timm.create_model(recipe.name, **timm_arguments(recipe, 32))
    save_file({f"visual.trunk.{k}": v for k, v in vit.state_dict().items()}, recipe.weights)
    encoder = ImageEncoder(recipe, 32)
    assert torch.equal(encoder.vit.blocks[1].mlp.fc1.weight, vit.blocks[1].mlp.fc1.weight)


def test_an_architecture_that_computes_with_its_weights_is_built_in_the_usual_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(tmp_path / "w.safetensors", NAMES[0])
    recipe = VitConfig(name=NAMES[0], weights=str(tmp_path / "w.safetensors"), **SIZES)
    usual, calls = timm.create_model, []

    def computing(name: str, **arguments: Any) -> Any:
        vit = usual(name, **arguments)
        calls.append(nn.Linear(2, 2).weight.sum().item())  # there is no such number while nothing is drawn
        return vit

    monkeypatch.setattr(timm, "create_model", computing)
    encoder = ImageEncoder(recipe, 32)
    assert len(calls) == 1
    assert torch.equal(encoder.vit.pos_embed, of_timm(recipe, 32).pos_embed)


def test_parameters_without_values_get_them_once() -> None:
    with Drawn() as drawn, without_drawing():
        layer = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
    assert drawn.count == 0
    assert all(p.is_meta for p in layer.parameters())
    assert torch.equal(layer[1].running_var, torch.ones(4)), "buffers have their values"
    assert not nn.Linear(3, 4).weight.is_meta, "it ends with the block"


def frozen(path: Path, *more: str) -> PretrainRecipe:
    return tiny_recipe(
        f"model.vit.name={NAMES[0]}", f"model.vit.weights={path}", "model.vit.frozen=true",
        "model.vit.depth=2", *more
    )  # fmt: skip


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of weights in a folder of its own, whose hash may be noted at once."""
    monkeypatch.setattr(tower, "SETTLED", -1.0)
    path = tmp_path / "w" / "model.safetensors"
    path.parent.mkdir()
    write_weights(path, NAMES[0])
    return path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hashes that were computed, in order."""
    found: list[str] = []

    def noted(tensors: Any) -> str:
        found.append(tensors_hash(tensors))
        return found[-1]

    monkeypatch.setattr(tower, "tensors_hash", noted)
    return found


def notes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*hash*") if path.is_file())


def test_the_hash_is_computed_once(weights: Path, hashed: list[str]) -> None:
    first = load_tower(frozen(weights))[1]
    encoder, second = load_tower(frozen(weights))
    assert [first] == [second] == hashed == [tensors_hash(dict(encoder.frozen_tensors()))]
    assert len(notes(weights.parent)) == 1
    other = load_tower(frozen(weights, "model.vit.drop_last_block=true"))[1]
    assert hashed == [first, other], "the recipe decides which tensors there are"
    assert other != first


def restored_time(path: Path, change: Callable[[], object]) -> None:
    """Change a file, and set its time back as a copying program may."""
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("how", ["rewritten", "one byte, its time set back", "replaced"])
def test_a_changed_file_is_hashed_anew(weights: Path, hashed: list[str], how: str) -> None:
    first = load_tower(frozen(weights))[1]
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    if how == "rewritten":
        weights.write_bytes(content)
    elif how.startswith("one byte"):
        restored_time(weights, lambda: weights.write_bytes(content))
    else:
        other = weights.with_name("other")
        other.write_bytes(content)
        restored_time(weights, lambda: os.replace(other, weights))
    encoder, second = load_tower(frozen(weights))
    assert second != first
    assert second == tensors_hash(dict(encoder.frozen_tensors()))
    assert load_tower(frozen(weights))[1] == second
    assert hashed == [first, second], "the note was replaced"
    assert len(notes(weights.parent)) == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"sha256": 3}', b'{"made_of": {}, "sha256": "' + b"0" * 64 + b'"}'],
)
def test_a_damaged_or_foreign_note_is_ignored_and_replaced(
    weights: Path, hashed: list[str], content: bytes
) -> None:
    first = load_tower(frozen(weights))[1]
    (note,) = notes(weights.parent)
    whole = note.read_bytes()
    for damaged in (content, whole[:-9], whole.replace(first.encode(), b"no hash")):
        note.write_bytes(damaged)
        assert load_tower(frozen(weights))[1] == first
        assert note.read_bytes() == whole
    assert len(hashed) == 4


def test_the_note_of_another_file_is_not_taken(weights: Path, tmp_path: Path, hashed: list[str]) -> None:
    load_tower(frozen(weights))
    copy = tmp_path / "copy" / weights.name
    copy.parent.mkdir()
    for path in weights.parent.iterdir():
        (copy.parent / path.name).write_bytes(path.read_bytes())
    load_tower(frozen(copy))
    assert len(hashed) == 2


def test_a_folder_that_takes_no_note_leaves_it_to_the_cache(
    weights: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    write = tower.write_json

    def refusing(path: Path, value: Any) -> None:
        if path.parent == weights.parent:
            raise MuError(f"{path}: cannot be written (Read-only file system)")
        write(path, value)

    monkeypatch.setattr(tower, "write_json", refusing)
    for _ in range(2):
        load_tower(frozen(weights))
    assert len(hashed) == len(notes(cache_root())) == 1
    assert notes(weights.parent) == []


@pytest.mark.parametrize("source", ["hub", "its name"])
def test_weights_of_the_hub_are_noted_in_our_cache(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str], source: str
) -> None:
    name = "vit_base_patch16_clip_224.openai" if source == "hub" else "some/vit"
    repository = timm.get_pretrained_cfg(name).hf_hub_id if source == "hub" else name
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    base = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
    folder = base / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    (base / "refs").mkdir()
    (base / "refs" / "main").write_text("0" * 40)
    file = folder / "model.safetensors"
    write_weights(file, "vit_base_patch16_clip_224")
    (folder / "config.json").write_text('{"architecture": "vit_base_patch16_clip_224"}')
    chosen = "hub" if source == "hub" else name
    recipe = frozen(weights, f"model.vit.weights={chosen}", "model.vit.name=vit_base_patch16_clip_224.openai")
    encoder, first = load_tower(recipe)
    assert torch.equal(encoder.vit.cls_token, of_timm(VitConfig(
        name="vit_base_patch16_clip_224", weights=str(file), **SIZES), 32).cls_token)  # fmt: skip
    assert load_tower(recipe)[1] == first
    assert (len(hashed), len(notes(cache_root())), notes(folder)) == (1, 1, [])
    write_weights(file, "vit_base_patch16_clip_224", torch.bfloat16)
    assert load_tower(recipe)[1] != first


def test_a_file_that_was_just_written_is_hashed_again(
    weights: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[str]
) -> None:
    monkeypatch.setattr(tower, "SETTLED", 60.0)
    for _ in range(2):
        load_tower(frozen(weights))
    assert len(hashed) == 2


def test_random_and_trained_encoders_have_no_note(weights: Path, hashed: list[str]) -> None:
    load_tower(tiny_recipe("model.vit.frozen=true"))
    load_tower(frozen(weights, "model.vit.frozen=false"))
    assert len(hashed) == 2
    assert notes(weights.parent) + notes(cache_root()) == []


@pytest.mark.parametrize("is_frozen", ["true", "false"])
def test_a_file_that_is_written_to_later_changes_no_model(weights: Path, is_frozen: str) -> None:
    recipe = frozen(weights, f"model.vit.frozen={is_frozen}")
    model = MedUnifier(recipe, VOCABULARY).to_device(torch.device("cpu"))
    before = tensors_hash(model.state_dict())
    with weights.open("r+b") as file:
        file.seek(-5000, os.SEEK_END)
        file.write(bytes(4000))
    assert tensors_hash(model.state_dict()) == before
