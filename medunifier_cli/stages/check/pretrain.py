"""What a recipe needs and a compute node without network would miss; looks, and fetches nothing."""

from __future__ import annotations

import difflib
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.data.shards import Shards, read_manifest
from medunifier_cli.data.texts.tokenizer import TextTokenizer
from medunifier_cli.errors import DataError, MissingWeightsError, MuError
from medunifier_cli.plugin_index import load_dataset
from medunifier_cli.recipe.schema import PretrainRecipe, TrainConfig
from medunifier_cli.recipe.schema_finetune import FinetuneTrainConfig
from medunifier_cli.roots import runs_root, shards_folder

HASH_BLOCK = 1 << 20
"""Bytes of a shard read at a time."""
TIMM_FILES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
"""Weight files timm looks for in a hub repository."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    said: str
    good: bool


def look(recipe: PretrainRecipe, processes: int = 0, hashes: bool = False) -> Iterator[Finding]:
    """Look at everything the recipe needs, in the order a run would need it.

    Args:
        recipe: of a pre-training run.
        processes: ranks; 0 for what the recipe says.
        hashes: read every shard and compare its SHA-256.
    """
    yield from each("data set", lambda: _dataset(recipe))
    folder = Path(recipe.data.shards) if recipe.data.shards else shards_folder(recipe.data.dataset)
    splits = dict.fromkeys([recipe.data.train, recipe.data.valid, recipe.data.test])
    if not folder.is_dir():
        yield Finding("shards", f"{folder}: no such folder; run `mu prepare {recipe.data.dataset}`", False)
    for split in splits if folder.is_dir() else ():
        if split:
            yield from each(f"shards of {split}", lambda split=split: look_at_split(folder, split, hashes))  # type: ignore[misc]
    if folder.is_dir():
        yield from each(
            "image size", lambda: look_at_size(recipe.data.dataset, recipe.data.image_size, folder)
        )
    yield from each("tokenizer", lambda: _tokenizer(recipe))
    yield from each("image encoder weights", lambda: look_at_vit(recipe))
    yield from each("text encoder weights", lambda: _text_weights(recipe))
    yield from each("model", lambda: _model(recipe))
    yield from each("batch", lambda: _batch(recipe, processes or recipe.train.processes))
    yield from each("runs folder", look_at_runs)


def each(what: str, check: Callable[[], str | list[str]]) -> Iterator[Finding]:
    """A check answers what it found, or a list of problems, or raises its one problem."""
    try:
        said = check()
    except MuError as error:
        said = str(error).splitlines()
    if isinstance(said, str):
        yield Finding(what, said, True)
    else:
        yield from (Finding(what, line, False) for line in said)


def _dataset(recipe: PretrainRecipe) -> str:
    plugin = load_dataset(recipe.data.dataset)
    sections = ", ".join(recipe.data.sections or plugin.text_sections)
    return f"{plugin.title}; text: {sections}"


def look_at_split(folder: Path, split: str, hashes: bool) -> str | list[str]:
    """Opening a split stops at its first bad shard; here all of them are looked at."""
    manifest = read_manifest(folder)
    entries = (manifest or {}).get("splits", {}).get(split, {}).get("shards", [])
    wrong = []
    for entry in entries:
        path = folder / entry["name"]
        if not path.is_file():
            wrong.append(f"{path}: listed in the manifest and not there; run `mu prepare` again")
        elif path.stat().st_size != entry["bytes"]:
            size = path.stat().st_size
            wrong.append(f"{path}: {size:,} bytes, {entry['bytes']:,} expected; run `mu prepare` again")
        elif hashes and _sha256(path) != entry["sha256"]:
            wrong.append(f"{path}: its contents are not those the manifest names; run `mu prepare` again")
    if wrong:
        return wrong
    shards = Shards.open(folder, split)
    shards.close()
    if not len(shards):
        raise DataError(f"{folder}: the split {split!r} is empty")
    kind = "hashes" if hashes and entries else "sizes" if entries else "no manifest; members"
    return f"{folder}: {len(shards):,} samples in {len(shards.names)} shards ({kind} checked)"


def look_at_size(dataset: str, wanted: int, folder: Path) -> str:
    """Loading can shrink an image, but what `mu prepare` left out does not come back."""
    held = ((read_manifest(folder) or {}).get("image") or {}).get("size")
    if held is None:
        return f"{wanted}; the shards do not say theirs"
    if held < wanted:
        raise DataError(
            f"data.image_size: {wanted} pixels wanted, the shards hold {held}; prepare them anew, into "
            f"another folder: `mu prepare {dataset} --size {wanted} --out FOLDER`"
        )
    return str(wanted) if held == wanted else f"{wanted}, from {held} in the shards"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _tokenizer(recipe: PretrainRecipe) -> str:
    if recipe.text.tokenizer == "train":
        return f"learned on the split {recipe.data.train!r}, at most {recipe.text.vocabulary:,} tokens"
    tokenizer = TextTokenizer.load(recipe.text.tokenizer)
    return f"{recipe.text.tokenizer}: {tokenizer.size:,} tokens with [DEC]"


def look_at_vit(recipe: PretrainRecipe) -> str:
    import timm

    vit = recipe.model.vit
    if not timm.is_model(vit.name):
        nearest = difflib.get_close_matches(vit.name, timm.list_models(), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise MuError(f"model.vit.name: timm has no model {vit.name}{hint}")
    if vit.weights == "random":
        return "random" + (" and frozen: it will not learn" if vit.frozen else "")
    path = Path(vit.weights).expanduser()
    if vit.weights != "hub" and path.exists():
        from medunifier_cli.model.vit import local_weights

        return str(local_weights(path))
    if vit.weights == "hub":
        cfg = timm.get_pretrained_cfg(vit.name)
        repository = getattr(cfg, "hf_hub_id", None)
        if not repository:
            raise MuError(f"model.vit.weights: timm names no hub weights for {vit.name}")
        return f"{repository}: {_cached('model.vit.weights', repository, TIMM_FILES)}"
    if vit.weights.count("/") != 1 or vit.weights.startswith((".", "~", "/")):
        raise MissingWeightsError(
            f"model.vit.weights: {vit.weights} is neither a folder, a file nor a hub name"
        )
    _cached("model.vit.weights", vit.weights, ("config.json",))
    return f"{vit.weights}: {_cached('model.vit.weights', vit.weights, TIMM_FILES)}"


def _cached(key: str, repository: str, names: tuple[str, ...]) -> str:
    """Which of `names` the Hugging Face cache has.

    Raises:
        MissingWeightsError: none; says what to fetch.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    for name in names:
        if isinstance(try_to_load_from_cache(repository, name), str):
            return f"{name} is cached"
    raise MissingWeightsError(
        f"{key}: {repository} is not in the Hugging Face cache ({constants.HF_HUB_CACHE}); where there is a "
        f"network, fetch it with `hf download {repository}`, or name a local folder"
    )


def _text_weights(recipe: PretrainRecipe) -> str:
    weights = recipe.model.qformer.weights
    if weights == "random":
        return "random"
    from medunifier_cli.checkpoint.convert import weights_path

    return str(weights_path(weights))


def _model(recipe: PretrainRecipe) -> str:
    """Built without memory: sizes that do not fit each other show here."""
    import torch

    from medunifier_cli.objectives.pretraining import build_model

    with torch.device("meta"):
        model = build_model(recipe, recipe.text.vocabulary + 1, load=False)
    total = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return f"{total / 1e6:,.1f} M parameters, {trained / 1e6:,.1f} M of them trained"


def _batch(recipe: PretrainRecipe, processes: int) -> str:
    said, unit = look_at_batch(recipe.train, processes, "pairs")
    return f"{said}; ITC and ITM contrast among {unit}"


def look_at_batch(
    settings: TrainConfig | FinetuneTrainConfig, processes: int, things: str
) -> tuple[str, int]:
    """How a global batch is divided: in words, and how many `things` all ranks take in one pass.

    Args:
        processes: ranks; 0 for one per GPU, which this machine cannot tell.
    """
    ranks = processes or 1
    micro = micro_batch_size(settings.global_batch, settings.micro_batch, ranks, things)
    unit = micro * ranks
    known = "" if processes else " (one per GPU; counted here as one)"
    passes = settings.global_batch // unit
    on = f"{ranks} process{'es' if ranks > 1 else ''}{known}"
    return f"{settings.global_batch} {things} = {passes} x {micro} on {on}", unit


def look_at_runs() -> str:
    root = runs_root()
    there = next(path for path in [root.absolute(), *root.absolute().parents] if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise MuError(f"{root}: cannot be written; set MU_RUNS to another folder")
    return str(root)
