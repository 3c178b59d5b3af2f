"""Read a folder that `mu export` wrote: the model, its recipe and its tokenizer, without transformers.

    config.json         model_type, recipe, hashes        as `hub.configuration` has it
    model.safetensors   tensors, named as in a checkpoint behind `PREFIX`
    vocab.txt ...       the tokenizer, as `TextTokenizer.load` and transformers read it

transformers reads the same folder by `hub.modeling`. A folder that transformers' `save_pretrained` wrote,
perhaps in several files of weights, is read as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import yaml
from torch import Tensor

from medunifier_cli.checkpoint.encoder.tower import load_tower, tensors_hash
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import CheckpointError, MuError
from medunifier_cli.model.medunifier import MedUnifier
from medunifier_cli.model.weights import fitting, read_tensors, without_drawing
from medunifier_cli.objectives.pretraining import build_model
from medunifier_cli.parsing import Count, read_json
from medunifier_cli.recipe.load import parse_saved
from medunifier_cli.recipe.schema import PretrainRecipe
from medunifier_cli.terminal.say import say

CONFIG = "config.json"
WEIGHTS, SHARDED = "model.safetensors", "model.safetensors.index.json"
"""One file of weights, or a list of several."""
MODEL_TYPE = "medunifier"
"""What transformers looks for in `config.json`."""
PREFIX = "model."
"""Before every name of a tensor: `hub.modeling.MedUnifierModel` holds the model under it."""
AGAIN = "export the run again with `mu export`"


class Tower(TypedDict):
    """What an exported folder says of a frozen image encoder."""

    bundled: bool
    """Whether its weights are among those of the folder."""
    sha256: str
    """Of `tensors_hash`; empty for an encoder that was trained."""


class _Config(TypedDict):
    """What is read of `config.json`; transformers adds keys of its own."""

    model_type: str
    recipe: dict[str, Any]
    vocab_size: Count
    tower: Tower
    step: Count
    checkpoint: str
    weights_sha256: str
    tokenizer_sha256: str


class _Index(TypedDict):
    weight_map: dict[str, str]


@dataclass(frozen=True)
class ExportedModel:
    """An exported model as its folder holds it."""

    recipe: PretrainRecipe
    tokenizer: TextTokenizer
    model: MedUnifier
    """On the CPU."""
    step: int
    """Optimiser steps of the run before it was exported."""
    identity: str
    """Hash of the checkpoint that was exported, or of the weights themselves if they were changed since."""
    encoder: str
    """Hash of the frozen image encoder's weights; empty for one that was trained."""


def is_exported(folder: Path) -> bool:
    """Whether `mu export` wrote a folder, as far as its `config.json` tells."""
    try:
        return read_json(folder / CONFIG, dict[str, Any]).get("model_type") == MODEL_TYPE
    except MuError:
        return False


def read_exported(folder: Path) -> ExportedModel:
    """The model of an exported folder, on the CPU.

    Raises:
        CheckpointError: damaged or incomplete, or its frozen image encoder on this machine is another one.
        MissingWeightsError: the folder only names its frozen image encoder, which is not on this machine.
    """
    config = read_json(folder / CONFIG, _Config, CheckpointError, AGAIN)
    if config["model_type"] != MODEL_TYPE:
        raise CheckpointError(f"{folder / CONFIG}: a model of another type than {MODEL_TYPE}")
    recipe = recipe_of(config["recipe"], str(folder / CONFIG))
    tokenizer = TextTokenizer.load(str(folder))
    if tokenizer.fingerprint != config["tokenizer_sha256"] or tokenizer.size != config["vocab_size"]:
        raise CheckpointError(f"{folder}: not the tokenizer that the model was trained with; {AGAIN}")
    tower = config["tower"]
    encoder = None
    if not tower["bundled"]:
        encoder, found = load_tower(recipe)
        check_tower(recipe, found, tower["sha256"], str(folder))
    with without_drawing():
        model = build_model(recipe, tokenizer.size, load=False, encoder=encoder)
    weights = dict(_read_weights(folder))
    try:
        missing, unexpected = model.load_state_dict(fitting(model, weights), strict=False, assign=True)
    except RuntimeError as error:  # other sizes
        raise CheckpointError(
            f"{folder}: its weights have other sizes than its {CONFIG} says; {AGAIN}"
        ) from error
    named = {f"vit.vit.{name}" for name, _ in model.vit.frozen_tensors()} if encoder is not None else set()
    if unexpected or set(missing) - named:
        raise CheckpointError(f"{folder}: its weights do not fit its {CONFIG}; use the version that wrote it")
    identity, frozen = config["checkpoint"], tower["sha256"]
    found = weights_hash(model, bundled=tower["bundled"])
    if found != config["weights_sha256"]:
        say(f"{folder}: its weights are not those of the exported run; they were trained further, or damaged")
        identity = found[:16]
        frozen = tensors_hash(dict(model.vit.frozen_tensors())) if frozen else ""
    return ExportedModel(recipe, tokenizer, model, config["step"], identity, frozen)


def recipe_of(settings: dict[str, Any], shown: str) -> PretrainRecipe:
    """The recipe in a `config.json`.

    Raises:
        RecipeError: no recipe of a pre-training run; `shown` names the file in the message.
    """
    return parse_saved(yaml.safe_dump(settings), shown, PretrainRecipe)


def check_tower(recipe: PretrainRecipe, found: str, expected: str, shown: str) -> None:
    """Raises CheckpointError unless a frozen image encoder is the one that a model was trained with."""
    if found != expected:
        raise CheckpointError(
            f"{shown}: the image encoder's weights ({recipe.model.vit.weights}) on this machine are not "
            "those it was trained with; fetch the original ones"
        )


def weights_hash(model: MedUnifier, bundled: bool) -> str:
    """SHA-256 over the tensors that an exported folder holds, see `tensors_hash`.

    Args:
        model: on the CPU, as it was read.
        bundled: whether a frozen image encoder is among them.
    """
    left_out = set() if bundled else {f"vit.vit.{name}" for name, _ in model.vit.frozen_tensors()}
    return tensors_hash({name: t for name, t in model.state_dict().items() if name not in left_out})


def _read_weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a folder, under the model's own names."""
    files = {WEIGHTS}
    if not (folder / WEIGHTS).is_file() and (folder / SHARDED).is_file():
        files = set(read_json(folder / SHARDED, _Index, CheckpointError, AGAIN)["weight_map"].values())
    for file in sorted(files):
        if Path(file).name != file or not (folder / file).is_file():
            raise CheckpointError(f"{folder / Path(file).name}: missing; {AGAIN}")
        for name, tensor in read_tensors(folder / file).items():
            yield name.removeprefix(PREFIX), tensor
