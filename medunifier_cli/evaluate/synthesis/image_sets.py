"""Sets of images that are compared: a split of shards or a folder of files, at the model's size either way.

A folder's images go through the same decoding and squashing as `mu prepare`'s. S: edge in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.data.loader import collate
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, open_benchmark
from medunifier_cli.evaluate.synthesis.sample_folder import SETTINGS, SHEET, read_samples
from medunifier_cli.evaluate.synthesis.synthesis import to_grey
from medunifier_cli.model.vit import pixels
from medunifier_cli.run.cache import cached
from medunifier_cli.terminal.progress import Progress
from medunifier_cli.train.batches import to_device

BATCH = 64
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp")


class ImageSet(Protocol):
    """Images by number."""

    name: str
    """As results call it."""
    kind: str
    """`synthetic`, `reconstruction`, `validation` (a split that is not trained on), `train` or `images`."""

    def __len__(self) -> int: ...

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """[len(numbers), S, S] grey levels."""
        ...

    def title(self, number: int) -> str:
        """Key or file name of an image."""
        ...

    def fingerprint(self) -> str:
        """Hash of what the set holds."""
        ...


class SplitImages:
    """A split of shards, samples without text included."""

    def __init__(self, asked: Benchmark, train: str) -> None:
        self.asked = asked
        self.name = f"{asked.plugin.name}/{asked.split}"
        self.kind = "train" if asked.split == train else "validation"

    def __len__(self) -> int:
        return len(self.asked.source)

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Decoded from the shards."""
        size = self.asked.source.data.image_size
        room = torch.empty((len(numbers), 1, size, size), dtype=torch.uint8)
        self.asked.source.gather(np.asarray(numbers, np.int64), room)
        found: NDArray[np.uint8] = room[:, 0].numpy()
        return found

    def title(self, number: int) -> str:
        """Key of the sample."""
        return self.asked.source.shards.key(int(self.asked.source.rows[number]))

    def fingerprint(self) -> str:
        """Of shards and rows."""
        source = self.asked.source
        rows = hashlib.sha256(source.rows.astype("<i8").tobytes()).hexdigest()
        return f"{source.shards.fingerprint} {rows}"


class CodedImages(SplitImages):
    """A split's images through the model's codes: as smooth as synthetic ones, which come out of them too."""

    def __init__(self, trained: PretrainedRun, split: SplitImages) -> None:
        super().__init__(split.asked, trained.recipe.data.train)
        self.trained = trained
        self.name = f"{self.name}, reconstructed"

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Encoded and decoded, with their texts."""
        source, made = self.asked.source, []
        for start in range(0, len(numbers), BATCH):
            some = [int(number) for number in numbers[start : start + BATCH]]
            batch = to_device(collate([source.sample(number) for number in some], some), self.trained.device)
            with torch.no_grad():
                made.append(to_grey(self.trained.model.reconstruct(batch).image_BCHW))
        return np.concatenate(made)

    def fingerprint(self) -> str:
        """Of the split, and that it went through the codes."""
        return f"coded {super().fingerprint()}"


class FolderImages:
    """A folder: of samples (its listed images), or of any image files, subfolders included."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder, self.size, self.name, self.kind = folder, size, folder.name, "images"
        self.lines = read_samples(folder)
        self.paths: list[Path]
        if self.lines:
            self.paths = [folder / line["image"] for line in self.lines]
            settings = json.loads((folder / SETTINGS).read_text()) if (folder / SETTINGS).exists() else {}
            self.kind = "reconstruction" if "reconstruct" in settings else "synthetic"
        else:
            found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
            self.paths = [path for path in found if path.name != SHEET]
        if not self.paths:
            raise DataError(f"{folder}: no image in it")

    def __len__(self) -> int:
        return len(self.paths)

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Decoded and squashed as `mu prepare` does."""
        return np.stack([self._read(self.paths[number]) for number in numbers])

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            return image_from(FileImage(path), self.size).pixels
        except (BadImage, DataError) as error:
            raise DataError(f"{path}: {str(error).rstrip(': ')}; take it out or mend it") from error

    def title(self, number: int) -> str:
        """File name."""
        return self.paths[number].name

    def fingerprint(self) -> str:
        """Of names, sizes and times."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()


def open_images(trained: PretrainedRun, folder_or_split: str) -> ImageSet:
    """A folder where there is one of that name, else a split of the run's data set.

    Raises:
        DataError: neither, or a folder without images.
    """
    folder = Path(folder_or_split)
    if folder.is_dir():
        return FolderImages(folder, trained.recipe.data.image_size)
    if len(folder.parts) > 1:
        raise DataError(f"{folder}: no such folder")
    return SplitImages(
        open_benchmark(trained, split=folder_or_split, need_text=False), trained.recipe.data.train
    )


def batches(images: ImageSet) -> Iterator[NDArray[np.uint8]]:
    """All images in order, [B, S, S]."""
    with Progress(len(images), "image") as progress:
        for start in range(0, len(images), BATCH):
            stop = min(start + BATCH, len(images))
            yield images.pick(range(start, stop))
            progress.advance(stop)


def encoder_features(trained: PretrainedRun, images: ImageSet) -> NDArray[np.float32]:
    """f_q of each image averaged over queries, [n, D]; cached in the run."""
    made_of = f"{trained.identity} {images.fingerprint()}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    path = trained.run.folder / "cache" / f"pooled-{digest}.h5"

    def pooled() -> dict[str, NDArray[np.float32]]:
        return {"pooled": np.concatenate([query_means(trained, grey) for grey in batches(images)])}

    return cached(path, made_of, pooled)["pooled"]


def query_means(trained: PretrainedRun, grey_BSS: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels -> [B, D]."""
    image = torch.from_numpy(grey_BSS)[:, None].to(trained.device)
    with torch.no_grad():
        query_BQD = trained.model.encode_image(pixels(image)).query_BQD
    found: NDArray[np.float32] = query_BQD.float().mean(dim=1).cpu().numpy()
    return found
