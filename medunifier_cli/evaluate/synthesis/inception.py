"""Inception features, FID and KID by torch-fidelity (extra `fid`), comparable with published numbers."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.errors import MissingWeightsError
from medunifier_cli.evaluate.synthesis.image_sets import ImageSet, of_batches
from medunifier_cli.files import sha256

FEATURES = "2048"
SUBSET = 1000
"""Images per KID subset, torch-fidelity's default; fewer where a set is smaller."""


@dataclass(frozen=True)
class Inception:
    """torch-fidelity's network with its weights."""

    network: Any
    weights: Path
    weights_hash: str
    """SHA-256 of the file."""
    device: torch.device

    def features(self, images: ImageSet) -> NDArray[np.float32]:
        """[n, 2048]; the network resizes to 299x299 itself, as TensorFlow 1 did."""
        result: NDArray[np.float32] = np.concatenate(list(of_batches(self._features_of, images)))
        return result

    def _features_of(self, grey_BSS: NDArray[np.uint8]) -> NDArray[np.float32]:
        rgb = torch.from_numpy(grey_BSS)[:, None].expand(-1, 3, -1, -1).to(self.device)
        with torch.no_grad():
            features_BD: NDArray[np.float32] = self.network(rgb)[0].cpu().numpy()
        return features_BD


def load_inception(weights: str, device: torch.device) -> Inception:
    """torch-fidelity's InceptionV3.

    Args:
        weights: file; empty for torch's download cache.

    Raises:
        MissingWeightsError: torch-fidelity or the weights are missing or damaged; says what to fetch.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (
            URL_INCEPTION_V3,
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise MissingWeightsError("FID needs torch-fidelity: `pip install 'medunifier[fid]'`") from error
    cached = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    path = Path(weights).expanduser() if weights else cached
    if not path.is_file():
        raise MissingWeightsError(
            # the address first: of a long line the middle is left out
            f"no Inception weights; fetch {URL_INCEPTION_V3} to {path}, or name the file with --inception"
        )
    try:
        # torch-fidelity would execute the code in a pickle: refuse a file that holds more than tensors first.
        torch.load(path, weights_only=True, map_location="meta")
        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", [FEATURES], feature_extractor_weights_path=str(path)
        )
    except (RuntimeError, OSError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise MissingWeightsError(
            f"{path}: not the Inception weights of torch-fidelity, or damaged"
        ) from error
    return Inception(network.to(device), path, sha256(path), device)


def fid_and_kid(
    real_nD: NDArray[np.float32], fake_nD: NDArray[np.float32], seed: int
) -> tuple[float, float, float]:
    """FID, KID and KID's standard deviation over its subsets, as torch-fidelity computes them."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    real, fake = torch.from_numpy(real_nD), torch.from_numpy(fake_nD)
    statistics = [fid_features_to_statistics(features) for features in (real, fake)]
    fid = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]
    kid = kid_features_to_metric(
        real, fake, kid_subset_size=min(SUBSET, len(real), len(fake)), rng_seed=seed, verbose=False
    )
    return (
        float(fid),
        float(kid["kernel_inception_distance_mean"]),
        float(kid["kernel_inception_distance_std"]),
    )
