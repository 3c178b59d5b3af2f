"""Load the image encoder, and know the hash of a frozen one without hashing a billion weights at each start.

A checkpoint has a frozen encoder's hash in place of its weights, which each start compares. The hash is noted
beside the file of the weights, or in a cache folder, with all that it follows from: path, size and times of
the file; the parts of the recipe that decide which tensors are taken from it, and in which shapes; the
version of timm, whose filters they go through. Where any of it differs the tensors are hashed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from medunifier_cli.distributed import world
from medunifier_cli.errors import MuError
from medunifier_cli.files import make_folder, write_json
from medunifier_cli.model.vit import ImageEncoder
from medunifier_cli.model.weights import WEIGHT_FILES, cached_file, existing_path, is_hub_name, local_weights
from medunifier_cli.parsing import read_json
from medunifier_cli.recipe.schema import PretrainRecipe, VitConfig
from medunifier_cli.roots import cache_root

SETTLED = 2.0
"""Seconds for which a file must have been left alone before its hash is noted: a file system may give two
versions that are written in quick succession the same time."""
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")
"""Of the files in a repository of the hub that timm may load."""


class _Note(TypedDict):
    made_of: dict[str, Any]
    sha256: str


def load_tower(recipe: PretrainRecipe) -> tuple[ImageEncoder, str]:
    """The recipe's image encoder with its weights, and the hash of those that stay frozen, of `tensors_hash`.

    With random weights it draws from torch's stream of random numbers, and from nothing else.

    Raises:
        MissingWeightsError, MuError: as `ImageEncoder`.
    """
    vit = recipe.model.vit
    before = _origin(recipe) if vit.frozen else None
    encoder = ImageEncoder(vit, recipe.data.image_size)
    if before is None:
        return encoder, tensors_hash(dict(encoder.frozen_tensors()))
    places = _places(before, vit)
    known = _noted(before, places)
    # a file that was changed while it was read is not the one of the note
    if known and before == _origin(recipe):
        return encoder, known
    found = tensors_hash(dict(encoder.frozen_tensors()))
    if world.is_main() and before == _origin(recipe) and _is_settled(before):
        _note(_Note(made_of=before, sha256=found), places)
    return encoder, found


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes of tensors; used to verify frozen weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _origin(recipe: PretrainRecipe) -> dict[str, Any] | None:
    """What the weights of an encoder follow from, as JSON has it; None if that is not known."""
    files = _files(recipe.model.vit)
    if not files:
        return None
    import timm

    chosen = f"{dataclasses.asdict(recipe.model.vit)} {recipe.data.image_size} {timm.__version__}"
    rows = []
    try:
        for path in files:
            found = path.stat()
            # the time of the last change of its inode as well, which no copy can set
            rows.append([str(path.resolve()), found.st_size, found.st_mtime_ns, found.st_ctime_ns])
    except OSError:
        return None
    return {"recipe": hashlib.sha256(chosen.encode()).hexdigest(), "files": rows}


def _files(vit: VitConfig) -> list[Path]:
    """The file that the weights come from; of a repository of the hub all those that it may be."""
    if vit.weights == "random":
        return []
    if vit.weights != "hub" and (path := existing_path(vit.weights)) is not None:
        with suppress(MuError):  # whoever loads it reports that it holds none
            return [local_weights(path)]
        return []
    repository, names = vit.weights, list(WEIGHT_FILES)
    if vit.weights == "hub":
        import timm

        known = timm.get_pretrained_cfg(vit.name)
        repository = (known and known.hf_hub_id) or ""
        if known and known.hf_hub_filename:
            names.append(known.hf_hub_filename)
    # of a named revision, or from another cache: hashed at each start
    if not is_hub_name(repository) or "@" in repository or "TIMM_USE_OLD_CACHE" in os.environ:
        return []
    first = cached_file(repository, names)
    if first is None:
        return []
    return sorted(path for path in first.parent.iterdir() if path.suffix in SUFFIXES)


def _places(origin: Mapping[str, Any], vit: VitConfig) -> list[Path]:
    """Where the note may be, in order of preference; one for each recipe, which a changed file replaces."""
    path = Path(origin["files"][0][0])
    ending = f"hash-{origin['recipe'][:12]}.json"
    cached = cache_root() / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.{ending}"
    if vit.weights == "hub" or existing_path(vit.weights) is None:
        return [cached]  # the hub's own cache has a layout that is not ours
    return [path.with_name(f"{path.name}.{ending}"), cached]


def _noted(origin: Mapping[str, Any], places: list[Path]) -> str:
    """The hash that was noted for exactly this origin; empty if there is none."""
    for place in places:
        with suppress(MuError):  # none there, damaged, or another program's: it is written anew
            note = read_json(place, _Note)
            if note["made_of"] == origin and re.fullmatch("[0-9a-f]{64}", note["sha256"]):
                return note["sha256"]
    return ""


def _note(note: _Note, places: list[Path]) -> None:
    """Write a note to the first place that takes it; none may, which costs time at the next start alone."""
    for place in places:
        with suppress(MuError):
            make_folder(place.parent)
            write_json(place, note)
            return


def _is_settled(origin: Mapping[str, Any]) -> bool:
    changed = max(max(mtime, ctime) for _, _, mtime, ctime in origin["files"])
    return bool(time.time() - changed / 1e9 > SETTLED)
