"""Compute the uni-modal queries of labelled images once, and keep them in HDF5 for training a probe.

With a frozen model they never change, so a probe trains on them alone. Letters: n samples, Q queries, D
width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.labels.labelled import LabelledFeatures, LabelledImages
from medunifier_cli.data.loader import eval_batches, eval_workers
from medunifier_cli.distributed import world
from medunifier_cli.errors import DataError
from medunifier_cli.model.classifier import Classifier
from medunifier_cli.model.precision import measuring
from medunifier_cli.run.cache import UNREADABLE, Arrays, open_hdf5
from medunifier_cli.run.encoding import encoded_file
from medunifier_cli.run.record import Run
from medunifier_cli.terminal.progress import Progress

BATCH = 64
"""Samples per forward pass."""


def features_file(trained: PretrainedRun, images: LabelledImages, dataset: str, own: Run) -> Path:
    """Where the queries of these images are cached; the name holds a hash of everything they depend on.

    With the pre-trained run, so that all probes of it share them; with the run `own` where the former belongs
    to somebody else and does not have them.
    """
    name = f"queries-{dataset}-{images.shards.split}-{_digest(trained, images)}.h5"
    shared = trained.run.cache / name
    return shared if trained.run.writable or shared.exists() else own.cache / name


def features_of(
    trained: PretrainedRun, images: Mapping[str, LabelledImages], names: Mapping[str, str], own: Run,
    workers: int,
) -> dict[str, LabelledFeatures]:  # fmt: skip
    """The queries of all samples by role, computed by all ranks together unless they are cached.

    Args:
        names: role -> name of its data set.
    """
    features = {}
    for role, source in images.items():
        path = features_file(trained, source, names[role], own)
        encoder = Classifier(trained.model, nn.Identity(), freeze=True)
        compute_features(trained, encoder, source, path, workers)
        features[role] = LabelledFeatures(source, read_features(path))
    return features


def compute_features(
    trained: PretrainedRun, classifier: Classifier, images: LabelledImages, path: Path, workers: int
) -> None:
    """Write the queries of all images to `path`, unless they are there; resumes after an interruption.

    All ranks call it and share the work; the main rank writes.
    """

    def share(first: int) -> Generator[Arrays, None, None]:
        world.exchange(first)  # the other ranks begin where this one does
        yield from _encode(trained, classifier, images, workers, first)

    classifier.eval()
    if world.is_main():
        encoded_file(path, _digest(trained, images), len(images), share)
        world.exchange(None)
        return
    while (first := world.exchange(None)[0]) is not None:
        for _ in _encode(trained, classifier, images, workers, first):
            pass


def _encode(
    trained: PretrainedRun, classifier: Classifier, images: LabelledImages, workers: int, first: int
) -> Generator[Arrays, None, None]:
    """The queries from an image on, whole on every rank."""
    done = first
    count = -(-(len(images) - first) // (BATCH * world.size()))
    with Progress(len(images), "image", first=first, hidden=not world.is_main()) as progress:
        for batch, mask_B in eval_batches(
            images, batch_size=BATCH, rank=world.rank(), world=world.size(),
            workers=eval_workers(workers, count), first=first,
        ):  # fmt: skip
            with measuring():
                query_BQD = classifier.queries(batch.to(trained.device).input)
            real = torch.cat(world.collect_rows(mask_B.to(trained.device).long())).bool()
            rows = torch.cat(world.collect_rows(query_BQD))[real].float().cpu().numpy()
            yield {"queries": rows}
            done += len(rows)
            progress.advance(done)


def read_features(path: Path) -> NDArray[np.float32]:
    """The queries [n, Q, D], mapped and not loaded: a data set of one piece is its bytes in the file.

    Raises:
        DataError: not a file that `compute_features` wrote; what is in it, that function has verified.
    """
    try:
        with open_hdf5(path) as file:
            data = file["queries"]
            return np.memmap(path, np.dtype("<f4"), "r", data.id.get_offset(), data.shape)
    except UNREADABLE as error:
        raise DataError(f"{path}: is damaged; delete it and run the same command again") from error


def _digest(trained: PretrainedRun, images: LabelledImages) -> str:
    return hashlib.sha256(
        f"{trained.identity} {images.shards.fingerprint} {images.image_size}"
        f"{'' if images.features is None else ' cached'}\n".encode()
        + images.rows.astype("<i8").tobytes()
    ).hexdigest()[:16]
