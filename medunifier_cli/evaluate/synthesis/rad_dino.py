"""Features of RAD-DINO (Pérez-García et al. 2024) for Fréchet distances, as CheXGenBench computes them.

Any folder in transformers' layout that holds a DINOv2 with its image processor will do; the result names the
folder and the hash of its weights. Nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.errors import MissingWeightsError
from medunifier_cli.evaluate.synthesis.image_sets import ImageSet, of_batches
from medunifier_cli.files import sha256
from medunifier_cli.model.weights import TRANSFORMERS_FILES, weights_path

HUB_NAME = "microsoft/rad-dino"
CONFIGURATIONS = ("config.json", "preprocessor_config.json")
EDGE = 299
"""Pixels that CheXGenBench squashes every image to before RAD-DINO's own processor enlarges it again
(`metrics/fid.py` of its repository); without this step, the distances would not be those that it reports."""


@dataclass(frozen=True)
class RadDino:
    """A DINOv2 with its image processor."""

    network: Any
    processor: Any
    name: str
    """Folder or hub name, as given."""
    weights_hash: str
    """SHA-256 of the file of weights."""

    def features(self, images: ImageSet) -> NDArray[np.float32]:
        """[n, D], D = 768 for RAD-DINO: the class token after the last norm."""
        result: NDArray[np.float32] = np.concatenate(list(of_batches(self._features_of, images)))
        return result

    def _features_of(self, grey_BSS: NDArray[np.uint8]) -> NDArray[np.float32]:
        squashed = [
            Image.fromarray(grey).resize((EDGE, EDGE), Image.Resampling.BILINEAR) for grey in grey_BSS
        ]
        inputs = self.processor(images=[image.convert("RGB") for image in squashed], return_tensors="pt")
        with torch.inference_mode():
            pooled_BD = self.network(inputs["pixel_values"].to(self.network.device)).pooler_output
        features_BD: NDArray[np.float32] = pooled_BD.float().cpu().numpy()
        return features_BD


def load_rad_dino(source: str, device: torch.device) -> RadDino:
    """The network and its processor.

    Args:
        source: local folder, or hub name in the local cache; empty for `HUB_NAME`.

    Raises:
        MissingWeightsError: not on this machine, incomplete, or not a DINOv2.
    """
    source = source or HUB_NAME
    weights = weights_path("--rad-dino", source, TRANSFORMERS_FILES)
    folder = weights.parent
    lacking = [name for name in CONFIGURATIONS if not (folder / name).is_file()]
    if lacking:
        raise MissingWeightsError(
            f"--rad-dino: {folder} lacks {' and '.join(lacking)}; fetch the whole repository, `hf download "
            f"{HUB_NAME}`"
        )
    return RadDino(*_load(folder, device), source, sha256(weights))


def _load(folder: Path, device: torch.device) -> tuple[Any, Any]:
    from transformers import AutoImageProcessor, AutoModel

    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)  # type: ignore[no-untyped-call]
        network = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    except Exception as error:  # transformers has no common base class for files that do not fit
        raise MissingWeightsError(
            f"--rad-dino: transformers cannot load {folder} ({type(error).__name__}); fetch it again with "
            f"`hf download {HUB_NAME}`"
        ) from error
    if getattr(network.config, "model_type", "") != "dinov2":
        raise MissingWeightsError(f"--rad-dino: {folder} holds a {network.config.model_type}, not a DINOv2")
    return network.to(device).eval(), processor
