"""Checks that several stages need, and how one becomes a line of `mu check`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec

from medunifier_cli.checkpoint.encoder.features import open_features
from medunifier_cli.checkpoint.pretrained import starting_run
from medunifier_cli.data.disk.manifest import Manifest, again, read_manifest
from medunifier_cli.data.loader import micro_batch_size
from medunifier_cli.data.shards import Shards
from medunifier_cli.errors import DataError, MuError, one_line
from medunifier_cli.files import sha256
from medunifier_cli.model.weights import require_cached, weights_path
from medunifier_cli.recipe.load import load_saved
from medunifier_cli.recipe.schema import LIVE, PretrainRecipe
from medunifier_cli.recipe.schema_train import LoopConfig
from medunifier_cli.roots import find_run, runs_root, shards_folder
from medunifier_cli.run.record import Run
from medunifier_cli.stages.cached.plan import AnyRecipe, describe, plan_features, sizes_of
from medunifier_cli.terminal.say import counted

P = ParamSpec("P")


class ProblemsError(DataError):
    """Several problems that one check found, each a line of its own."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = [one_line(problem) for problem in problems]


@dataclass(frozen=True)
class Check:
    """One line of `mu check`."""

    name: str
    """What was checked."""
    result: str
    """What was found, or what is wrong and what to do."""
    ok: bool


def run_check(name: str, check: Callable[P, str], *args: P.args, **kwargs: P.kwargs) -> Iterator[Check]:
    """Call one check, which returns what it found or raises.

    Returns:
        One `Check`, or one for each line of the MuError that was raised.
    """
    try:
        result = check(*args, **kwargs)
    except MuError as error:
        yield from failed(name, error)
    else:
        yield Check(name, result, True)


def failed(name: str, error: MuError) -> list[Check]:
    """A failed check for each line of an error."""
    lines = error.problems if isinstance(error, ProblemsError) else [str(error)]
    return [Check(name, line, False) for line in lines]


def shards_of(dataset: str, shards: str) -> Path:
    """Folder of the shards that a recipe names: `data.shards`, or the data set's own."""
    return Path(shards) if shards else shards_folder(dataset)


def check_starting_run(
    name: str, verb: str, require: Callable[[PretrainRecipe, Path], None] | None = None
) -> tuple[list[Check], PretrainRecipe | None]:
    """Check the pre-training run that `verb` starts from.

    Args:
        name: of the run, or its folder; empty for the newest.
        require: raises MuError for a run that the verb cannot use.

    Returns:
        The checks, and the run's recipe if they passed.
    """
    try:
        run = Run(find_run(starting_run(name, verb)))
        recipe = load_saved(run.recipe, PretrainRecipe)
        if require is not None:
            require(recipe, run.folder)
    except MuError as error:
        return failed("pre-trained run", error), None
    return [Check("pre-trained run", f"{run.folder}, trained on {recipe.data.dataset}", True)], recipe


def check_split(folder: Path, split: str, hashes: bool) -> str:
    """Check that all shards of a split are there and complete.

    Args:
        hashes: compare their contents with the manifest's SHA-256 as well as their sizes.

    Raises:
        DataError: one line for each bad shard; or the split does not exist or is empty.
    """
    manifest = read_manifest(folder)
    splits = manifest.get("splits", {}) if manifest else {}
    entries = splits[split]["shards"] if split in splits else []
    advice = again(manifest) if manifest else ""
    problems = []
    # not left to `Shards.open`, which stops at the first bad shard: the user wants the whole list
    for entry in entries:
        path = folder / entry["name"]
        if not path.is_file():
            problems.append(f"{path}: listed in the manifest but missing; {advice}")
        elif path.stat().st_size != entry["bytes"]:
            size = path.stat().st_size
            problems.append(f"{path}: {size:,} bytes, {entry['bytes']:,} expected; {advice}")
        elif hashes and sha256(path) != entry["sha256"]:
            problems.append(f"{path}: its contents differ from the manifest; {advice}, which makes it anew")
    if problems:
        raise ProblemsError(problems)
    shards = Shards.open(folder, split)
    shards.close()
    if not len(shards):
        raise DataError(f"{folder}: the split {split!r} is empty")
    method = "hashes" if hashes and entries else "sizes" if entries else "no manifest; members"
    samples, tars = counted(len(shards), "sample"), counted(len(shards.names), "shard")
    return f"{folder}: {samples} in {tars} ({method} checked)"


def check_image_size(dataset: str, size: int, folder: Path) -> str:
    """Check that prepared images are not smaller than the recipe's.

    Raises:
        DataError: they are: loading can shrink an image, but not restore what `mu prepare` discarded.
    """
    manifest: Manifest = read_manifest(folder) or {}
    prepared = manifest.get("image", {}).get("size")
    if prepared is None:
        return f"{size}; the shards do not record their own"
    if prepared < size:
        advice = (
            f"with the same --raw and -o, --size {size} and another --name"
            if manifest.get("plugin")
            else f"into another folder: `mu prepare {dataset} --size {size} --out FOLDER`"
        )
        raise DataError(
            f"data.image_size: {size} pixels wanted, the shards hold {prepared}; prepare them again, {advice}"
        )
    return str(size) if prepared == size else f"{size}, from {prepared} in the shards"


def check_image_encoder(recipe: PretrainRecipe) -> str:
    """Check that timm knows the image encoder and that its weights are on this machine.

    Raises:
        MuError: an unknown model, or one without weights.
        MissingWeightsError: the weights are not here; the message says how to get them.
    """
    import timm

    vit, key = recipe.model.vit, "model.vit.weights"
    if not timm.is_model(vit.name):
        nearest = difflib.get_close_matches(vit.name, timm.list_models(), n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise MuError(f"model.vit.name: timm has no model {vit.name}{hint}")
    if vit.weights == "random":
        return "random" + (" and frozen: it will not learn" if vit.frozen else "")
    if vit.weights == "hub":
        repository = getattr(timm.get_pretrained_cfg(vit.name), "hf_hub_id", None)
        if not repository:
            raise MuError(f"{key}: timm names no hub weights for {vit.name}")
        return f"{repository}: {require_cached(key, repository).name} is cached"
    path = weights_path(key, vit.weights)
    if Path(vit.weights).expanduser().exists():
        return str(path)
    require_cached(key, vit.weights, ("config.json",))  # timm reads the architecture from it
    return f"{vit.weights}: {path.name} is cached"


def check_run_encoder(pretrained: PretrainRecipe) -> str:
    """The same for a stage that starts from a pre-trained run, whose checkpoint has all that it trained."""
    return check_image_encoder(pretrained) if pretrained.model.vit.frozen else "from the pre-trained run"


def check_features(recipe: AnyRecipe, hashes: bool) -> str:
    """Check the cached features that a recipe reads; or say how much room they would take.

    Args:
        hashes: read all of them and compare their checksums; otherwise sizes, and what they were made of.

    Raises:
        DataError: they are missing, damaged, or of something else than the recipe's weights and shards.
    """
    plan = plan_features(recipe)
    room = describe(sizes_of(plan))
    if plan.setting == LIVE:
        return f"none; `mu prepare --features {recipe.name}` would write {room}, to {plan.folder}"
    for shards in plan.shards.values():
        features = open_features(plan.setting, plan.dataset, plan.encoder, shards)
        if hashes and features is not None:
            features.verify()
    return f"{plan.folder}: {room} ({'checksums' if hashes else 'sizes'} checked)"


def check_batch(train: LoopConfig, processes: int, samples: str) -> str:
    """Check that the global batch can be divided among processes and passes.

    Args:
        processes: ranks; 0 for one per GPU, whose number this machine cannot know.
        samples: what a batch holds, in the plural.

    Raises:
        MuError: it cannot.
    """
    ranks = processes or 1
    micro = micro_batch_size(train.global_batch, train.micro_batch, ranks, samples)
    passes = train.global_batch // (micro * ranks)
    unknown = "" if processes else " (one per GPU; counted here as one)"
    plural = "es" if ranks > 1 else ""
    return f"{train.global_batch} {samples} = {passes} x {micro} on {ranks} process{plural}{unknown}"


def check_device(train: LoopConfig) -> str:
    """Say in which precision a run would compute, and whether this machine could; a login node may not."""
    import torch

    if train.precision == "fp16" and not torch.cuda.is_available():
        return "fp16, which needs a GPU: this machine has none, so the run would end with an error here"
    return train.precision


def check_compiler(train: LoopConfig, choice: str) -> str:
    """Say whether training steps would be compiled on this machine, and why.

    Raises:
        MuError: they must be, and cannot be.
    """
    import torch

    from medunifier_cli.train.compiling import is_compiled, missing

    device = "cuda" if torch.cuda.is_available() else "cpu"
    _, why = is_compiled(choice, train.deterministic, device)
    if choice != "auto" or device == "cuda" or train.deterministic:
        return why
    # often a login node, whose software is that of the nodes with GPUs
    return f"{why}; {missing('cuda') or 'all that it needs for a GPU is installed here'}"


def check_runs_folder() -> str:
    """Check that the folder of runs can be written, or made.

    Raises:
        MuError: it cannot.
    """
    root = runs_root()
    existing = next(path for path in [root.absolute(), *root.absolute().parents] if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise MuError(f"{root}: cannot be written; set MU_RUNS to another folder")
    return str(root)
