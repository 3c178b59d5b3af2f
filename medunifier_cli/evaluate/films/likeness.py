"""How like the films that a run was trained on a film is: a model says something of every image it is given.

The features of a film are compared with those of training films, and its distance with the distances of
films that were held out. B or n images, V patches, D_v width of the image encoder, F = 2 D_v features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medunifier_cli.checkpoint.encoder.features import has_features, open_features
from medunifier_cli.checkpoint.lineage import recipe_of
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.cached_features import SplitFeatures
from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.stored import decode_grey, empty_images
from medunifier_cli.data.shards import Shards, split_names
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.shared.sharing import each
from medunifier_cli.model.precision import measuring
from medunifier_cli.model.vit import pixels
from medunifier_cli.recipe.schema import LIVE
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.cache import Arrays, read_cache, write_if_possible
from medunifier_cli.run.provenance import read_provenance
from medunifier_cli.scores.outliers import Cloud, share_nearer
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.terminal.say import say

TRAINING_FILMS, HELD_OUT_FILMS = 2_000, 1_000
"""Most films that are looked at, drawn at random: enough for 200 features (docs/decisions.md), and no more
than a person waits for."""
FEWEST = 20
"""Films of each kind, below which there is no verdict."""
FARTHEST = 0.99
"""Share of the held-out films that must be nearer to the training films for a film to be called unlike."""
BATCH = 64
SEED = 0
MADE_OF = "mean and deviation over patches, standardised, covariance shrunk after Ledoit and Wolf; version 1"
FILE = "likeness.h5"


@dataclass(frozen=True)
class Likeness:
    """What is known of a film beside the films that the model was trained on."""

    unlike: bool | None
    """It is farther from the training films than 99 of 100 held-out ones; None where that is not known."""
    percentile: float | None = None
    """Per cent of the held-out films that are nearer to the training films than this one."""
    distance: float | None = None
    """Mahalanobis' distance to the training films; only numbers of one checkpoint can be compared."""
    why: str = ""
    """Why nothing is known; empty where something is."""

    def __str__(self) -> str:
        if self.unlike is None:
            return f"likeness to the training films unknown: {self.why}"
        how = "unlike the training films" if self.unlike else "like the training films"
        return f"{how}: {self.farther}"

    def __repr__(self) -> str:
        return f"Likeness({self})"

    @property
    def farther(self) -> str:
        """How far it is, as every text and page says it; of a likeness that is known."""
        return f"farther from them than {self.percentile:.1f} % of held-out films"

    def as_json(self) -> dict[str, Any]:
        """`unlike`, `percentile` and `distance`, or `unlike` null and `why`."""
        if self.unlike is None:
            return {"unlike": None, "why": self.why}
        return {"unlike": self.unlike, "percentile": self.percentile, "distance": self.distance}


@dataclass(frozen=True)
class Reference:
    """The training films of one checkpoint, and how far held-out films are from them."""

    cloud: Cloud | None
    held_out: NDArray[np.float64]
    """Distances of held-out films, ascending."""
    why: str = ""
    """Why there is nothing to compare with."""

    def of(self, feature_nF: NDArray[np.float32]) -> list[Likeness]:
        """The likeness of films with these features, see `film_features`."""
        if self.cloud is None:
            return [Likeness(None, why=self.why)] * len(feature_nF)
        distances = self.cloud.distances(feature_nF)
        shares = share_nearer(distances, self.held_out)
        return [
            Likeness(share >= FARTHEST, round(100 * share, 2), round(distance, 4))
            for share, distance in zip(shares.tolist(), distances.tolist(), strict=True)
        ]


def likeness_of_file(trained: PretrainedRun, reference: Reference, path: Path) -> Likeness:
    """The likeness of a readable image file, which something else is computed of as well."""
    grey_HW = image_from(FileImage(path), trained.recipe.data.image_size).pixels
    return reference.of(film_features(trained, torch.from_numpy(grey_HW)[None, None]))[0]


def likeness_of(trained: PretrainedRun, image_n1HW: Tensor) -> list[Likeness]:
    """The likeness of each image to the films that a run was trained on.

    Args:
        trained: of any stage; a fine-tuned run with the weights and the data of fine-tuning.
        image_n1HW: uint8 grey levels at the model's size, on the CPU.
    """
    return reference_of(trained).of(film_features(trained, image_n1HW))


def film_features(trained: PretrainedRun, image_or_feature: Tensor) -> NDArray[np.float32]:
    """Mean and standard deviation over the patches of what the image encoder sees, [n, 2 D_v].

    Not of the queries or the joint space: training makes these blind to all that no report speaks of, and a
    real film among drawings looks there like any other (docs/decisions.md has the numbers).

    Args:
        image_or_feature: uint8 grey levels [n, 1, H, W], or cached features [n, V, D_v].
    """
    model, parts = trained.model, []
    size = trained.batch_size or BATCH
    for start in range(0, len(image_or_feature), size):
        some = image_or_feature[start : start + size].to(trained.device)
        with measuring():
            seen = model.vit(pixels(some)) if some.dtype == torch.uint8 else some.float()
            feature_BVD = model.vision_norm(seen).float()[:, 1:]  # without the class token
            both = torch.cat([feature_BVD.mean(dim=1), feature_BVD.std(dim=1)], dim=1)
        parts.append(both.cpu().numpy())
    width = 2 * model.vit.width
    return np.concatenate(parts) if parts else np.empty((0, width), np.float32)


def reference_of(trained: PretrainedRun) -> Reference:
    """What films are compared with; computed once for a checkpoint, and kept in the run's cache.

    At most 2,000 films of the train split and 1,000 of the validation split are looked at, or of the test
    split where there is no other. Once kept, the data are not needed any more.
    """
    try:
        return _reference(trained)
    except MuError as error:
        return Reference(None, np.empty(0), str(error))


def _reference(trained: PretrainedRun) -> Reference:
    data, recorded = _trained_on(trained)
    made_of = {
        "checkpoint": trained.identity, "train": recorded, "how": MADE_OF,
        "films": [TRAINING_FILMS, HELD_OUT_FILMS],
    }  # fmt: skip
    path = trained.run.cache / FILE
    arrays = read_cache(path, made_of)
    if arrays is None:
        folder = Path(data.shards) if data.shards else shards_folder(data.dataset)
        arrays = _computed(trained, folder, data, recorded)
        write_if_possible(path, made_of, arrays)
    cloud = Cloud(*(arrays[name] for name in ("mean", "scale", "whiten")))
    return Reference(cloud, arrays["held_out"])


def _trained_on(trained: PretrainedRun) -> tuple[Any, str]:
    """The data of the run's recipe, and the hash of the split that it was trained on.

    Raises:
        DataError: the folder does not say.
    """
    recipe = recipe_of(trained.run)
    data = getattr(recipe, "data", None)
    facts = read_provenance(trained.run.provenance).get("data") or {}
    recorded = ((facts.get(data.dataset) if data else None) or {}).get("splits") or {}
    if data is None or data.train not in recorded:
        raise DataError(f"{trained.run.folder} does not record the films that it was trained on")
    return data, recorded[data.train]


def _computed(trained: PretrainedRun, folder: Path, data: Any, recorded: str) -> Arrays:
    """Mean, scale, whitening matrix, and the distances of held-out films.

    Raises:
        DataError: the training films are not here, or others, or too few; or features that are not finite.
    """
    try:
        train = Shards.open(folder, data.train)
    except DataError as error:
        raise DataError(f"the films that it was trained on are not on this machine ({error})") from error
    if train.fingerprint != recorded:
        raise DataError(f"{folder} has been prepared anew since training, and may hold other films")
    held_out = _held_out(folder, data)
    parts = [(train, TRAINING_FILMS, data), (held_out, HELD_OUT_FILMS, data)]
    counts = [min(most, len(shards)) for shards, most, _ in parts]
    if min(counts) < FEWEST:
        raise DataError(
            f"{folder}: {counts[0]:,} training films and {counts[1]:,} of {held_out.split} are too few to "
            f"compare with, which takes {FEWEST} of each"
        )
    say(
        f"{trained.run.folder}: looking once at {counts[0]:,} films that it was trained on and "
        f"{counts[1]:,} held-out ones, to tell films unlike them; --no-likeness leaves this out"
    )
    with Progress(sum(counts), "film") as progress:
        seen, other = (np.concatenate(list(_features(trained, *part, progress))) for part in parts)
    if not (np.isfinite(seen).all() and np.isfinite(other).all()):
        raise DataError(f"{trained.run.folder}: what its image encoder sees is not finite; training diverged")
    cloud = Cloud.of(seen)
    return {
        "mean": cloud.mean_F, "scale": cloud.scale_F, "whiten": cloud.whiten_FF,
        "held_out": np.sort(cloud.distances(other)),
    }  # fmt: skip


def _held_out(folder: Path, data: Any) -> Shards:
    """A split that was not trained on.

    Raises:
        DataError: there is none.
    """
    there = split_names(folder)
    for name in (data.valid, data.test, "valid", "test"):
        if name and name != data.train and name in there:
            return Shards.open(folder, name)
    raise DataError(f"{folder} has no held-out films to compare with")


def _features(
    trained: PretrainedRun, shards: Shards, most: int, data: Any, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """Features of films drawn from a split, a batch at a time; the ranks take turns."""
    rows = np.sort(np.random.default_rng(SEED).permutation(len(shards))[:most])
    cached = None
    if data.features != LIVE and has_features(data.features, data.dataset, trained.recipe, shards.split):
        cached = open_features(data.features, data.dataset, trained.recipe, shards, trained.encoder)
    size = trained.batch_size or BATCH
    blocks = [rows[start : start + size] for start in range(0, len(rows), size)]
    for features in each(partial(_features_of, trained, shards, cached), blocks):
        progress.advance(progress.done + len(features))
        yield features


def _features_of(
    trained: PretrainedRun, shards: Shards, cached: SplitFeatures | None, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    if cached is not None:
        feature_BVD = cached.empty(len(rows))
        cached.read(rows, feature_BVD)
        return film_features(trained, feature_BVD)
    image_B1HW = empty_images(len(rows), trained.recipe.data.image_size)
    for body, row, out in zip(shards.images(rows), rows.tolist(), image_B1HW.numpy(), strict=True):
        if not decode_grey(body, out[0]):
            raise DataError(f"{shards.where(row)}: damaged image; run `mu prepare` again")
    return film_features(trained, image_B1HW)


def summary(likeness: Sequence[Likeness]) -> str:
    """One sentence about several films; empty where all are like the training films."""
    if not likeness:
        return ""
    if likeness[0].unlike is None:
        return str(likeness[0])
    count = sum(bool(one.unlike) for one in likeness)
    if not count:
        return ""
    one = len(likeness) == 1
    which = "the film is" if one else f"{count:,} of {len(likeness):,} films are"
    how = likeness[0].farther if one else f"farther from them than {100 * FARTHEST:g} % of held-out films"
    return (
        f"{which} unlike those that the model was trained on ({how}): what it says of such a film means "
        "little"
    )
