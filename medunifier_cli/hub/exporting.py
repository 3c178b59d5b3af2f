"""`mu export`: write a run as a folder that transformers, `mu` and others read, and push it to the hub."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants
from transformers.utils import logging

from medunifier_cli.checkpoint.exported import CONFIG, is_exported
from medunifier_cli.checkpoint.pretrained import PretrainedRun, check_pretrained, restore
from medunifier_cli.errors import MuError
from medunifier_cli.files import atomic_folder, make_folder, write_text
from medunifier_cli.hub.card import write_card
from medunifier_cli.hub.configuration import MedUnifierConfig, published
from medunifier_cli.hub.modeling import MedUnifierModel
from medunifier_cli.hub.onnx_towers import need_onnx, write_towers
from medunifier_cli.hub.processing import save_processor
from medunifier_cli.model.weights import existing_path, is_hub_name
from medunifier_cli.recipe.load import dump_recipe
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.record import Run

KEPT = ("checkpoints", "results", "samples")
"""Folders of a run that no export may replace; those of an exported folder were made with it."""
UNKNOWN_LICENCE = "other"
"""What the hub calls a licence that is none of its list."""


@dataclass(frozen=True)
class Choices:
    """What an exported folder holds."""

    bundle: bool = True
    """The weights of a frozen image encoder too; False names them, for whoever loads the folder to have."""
    onnx: bool = False
    """The image tower and the text tower as ONNX too."""
    licence: str = UNKNOWN_LICENCE
    """Of the weights, by its name on the hub, such as `cc-by-nc-4.0`."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    files: Mapping[str, int]
    """Name -> bytes."""
    onnx: Mapping[str, float | None]
    """ONNX file -> largest difference to PyTorch; None where onnxruntime is not installed."""


def export(run: Run, folder: Path, choices: Choices = Choices()) -> Exported:
    """Write a run's model to a folder, which gets its name once all of it is on disk.

    Args:
        run: of `mu pretrain`, with a checkpoint.
        folder: new, or an exported one that is replaced.

    Raises:
        CheckpointError: no such run, or one that is damaged.
        MuError: the folder holds something else, the image encoder cannot be named, ONNX cannot be written.
    """
    check_pretrained(run)
    replaced = is_exported(folder) and not any((folder / name).exists() for name in KEPT)
    if folder.exists() and not replaced and (not folder.is_dir() or any(folder.iterdir())):
        raise MuError(f"{folder}: holds something else than an exported model; name a new folder")
    # what no export writes, such as `.git` of a clone from the hub, would be deleted with the earlier one
    for one in sorted(folder.iterdir()) if replaced else ():
        if one.is_dir() or one.name.startswith("."):
            raise MuError(f"{one}: no export writes this; name a new folder, and copy it over")
    if choices.onnx:
        need_onnx()
    # on the CPU: a GPU would round a frozen image encoder to bf16
    trained = restore(run, torch.device("cpu"))
    vit = trained.recipe.model.vit
    bundle = choices.bundle or not vit.frozen
    on_hub = vit.weights == "hub" or (is_hub_name(vit.weights) and existing_path(vit.weights) is None)
    if not bundle and not on_hub:
        raise MuError(
            f"model.vit.weights of {run.folder} is {vit.weights}, which is no name on the hub; export with "
            "--tower bundle"
        )
    if choices.onnx and not trained.recipe.objectives.itc:
        raise MuError(f"{run.folder}: trained without ITC, it has no joint space to export to ONNX")
    make_folder(folder.resolve().parent)
    with atomic_folder(folder) as unfinished:
        towers = write_towers(trained, unfinished) if choices.onnx else {}
        _write_model(trained, unfinished, bundle)
        write_card(trained, unfinished, choices.licence, bundle, towers)
    return Exported({path.name: path.stat().st_size for path in sorted(folder.iterdir())}, towers)


def _write_model(trained: PretrainedRun, folder: Path, bundle: bool) -> None:
    recipe = trained.recipe
    config = MedUnifierConfig.of(trained, bundle)
    with torch.device("meta"):
        model = MedUnifierModel(config)
    model.model = trained.model
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    usual = stat.S_IMODE((folder / CONFIG).stat().st_mode)
    for weights in folder.glob("*.safetensors"):  # which safetensors makes the owner's alone
        weights.chmod(usual)
    save_processor(
        trained.tokenizer, recipe.data.image_size, recipe.text.max_tokens, folder, _texts_of(trained)
    )
    write_text(folder / trained.run.recipe.name, dump_recipe(published(recipe)))


def _texts_of(trained: PretrainedRun) -> Path | None:
    """The data whose words the vocabulary holds, if it was learned from them and they are here."""
    recipe: PretrainRecipe = trained.recipe
    if recipe.text.tokenizer != "train":
        return None
    folder = Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)
    return folder if folder.is_dir() else None


def check_push(name: str) -> None:
    """Raises MuError unless a folder could be pushed under this name from here."""
    if not is_hub_name(name):
        raise MuError(f"--push {name}: give a name of the hub, organisation/model")
    if constants.HF_HUB_OFFLINE:
        raise MuError(
            f"--push {name}: HF_HUB_OFFLINE is set; export now, and push later by `hf upload {name} DIR`"
        )


def push(folder: Path, name: str, public: bool) -> str:
    """Upload an exported folder to the hub; returns its address.

    Args:
        name: `organisation/model`, made if it is not there.
        public: whether a new one can be seen by everybody.

    Raises:
        MuError: no network, no permission, or no login.
    """
    check_push(name)
    api = HfApi()
    try:
        address = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by mu")
    except Exception as error:  # huggingface_hub and its client have dozens of types
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise MuError(
            f"{folder} is complete, but could not be pushed to {name} ({first}); log in with `hf auth "
            f"login`, then `hf upload {name} {folder}`"
        ) from error
    return str(address)
