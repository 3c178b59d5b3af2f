"""The sets of images that `mu score --fake` compares: a split of shards, or a folder of files.

Either way images have the model's size: those of a folder are decoded and squashed as in `mu prepare`.
S: edge in pixels.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import DatasetPlugin, FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.images.levels import BadImage
from medunifier_cli.data.loader import collate
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark, open_benchmark
from medunifier_cli.evaluate.codes import reconstruct_batch
from medunifier_cli.evaluate.shared.sharing import each
from medunifier_cli.evaluate.synthesis.requests import requests_hash
from medunifier_cli.evaluate.synthesis.sample_folder import (
    FIGURE,
    SETTINGS,
    SHEET,
    read_samples,
    read_settings,
)
from medunifier_cli.model.vit import pixels
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.run.cache import Arrays
from medunifier_cli.run.encoding import encoded
from medunifier_cli.terminal.progress import Progress

BATCH = 64
SAMPLING = ("seed", "temperature", "top_k", "top_p", "guidance", "best_of")
"""Settings of a folder of samples that its results repeat."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".dcm", ".dicom", ".tif", ".tiff", ".bmp")


class ImageSet(Protocol):
    """Images by number. Picklable, without the data set plugin, which need not be; `pick` works without."""

    name: str
    """Name in results."""
    kind: str
    """`synthetic`, `reconstruction`, `validation` (a split that is not trained on), `train` or `images`."""
    label: str
    """Name in result files: that of a split, or kind and folder, so that two sets keep both results."""
    origin: Mapping[str, Any]
    """How the images were made, for results; empty for real ones and those of other programs."""

    def __len__(self) -> int: ...

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """[len(numbers), S, S] grey levels."""
        ...

    def title(self, number: int) -> str:
        """Key or file name of an image."""
        ...

    def fingerprint(self) -> str:
        """Hash that changes whenever the set's content does."""
        ...

    def findings(self) -> list[frozenset[str]] | None:
        """Findings of each image, by label or prompt; None if nothing says what the images show."""
        ...


class SplitImages:
    """A split of shards, samples without text included."""

    def __init__(self, benchmark: Benchmark, train: str) -> None:
        self.benchmark = benchmark
        self.name = f"{benchmark.plugin.name}/{benchmark.split}"
        self.kind = "train" if benchmark.split == train else "validation"
        self.label = benchmark.split
        self.origin: Mapping[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"benchmark": replace(self.benchmark, plugin=None)}  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.benchmark.source)

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Decoded from the shards."""
        grey_nSS: NDArray[np.uint8] = self.benchmark.source.images(np.asarray(numbers, np.int64))[
            :, 0
        ].numpy()
        return grey_nSS

    def title(self, number: int) -> str:
        """Key of the sample."""
        return self.benchmark.source.shards.key(int(self.benchmark.source.rows[number]))

    def fingerprint(self) -> str:
        """Of shards and rows."""
        source = self.benchmark.source
        rows = hashlib.sha256(source.rows.astype("<i8").tobytes()).hexdigest()
        return f"{source.shards.fingerprint} {rows}"

    def findings(self) -> list[frozenset[str]] | None:
        """Labels that are positive: all of the shards, of which the classes are often only some."""
        source, classes = self.benchmark.source, self.benchmark.plugin.classes
        names = source.shards.label_names
        positive_nC = source.shards.index["labels"][source.rows] == 1
        out = []
        for row, label in zip(positive_nC.tolist(), source.labels.tolist(), strict=True):
            found = {name for name, positive in zip(names, row, strict=True) if positive}
            # a class need not be a label, such as the one of a 5x200 set
            out.append(frozenset(found | ({classes[label]} if label >= 0 else set())))
        return out if any(out) else None


class CodedImages(SplitImages):
    """A split's images reconstructed through the model's codes.

    They are as smooth as synthetic images, which come out of the same decoder.
    """

    def __init__(self, pretrained: PretrainedRun, split: SplitImages) -> None:
        super().__init__(split.benchmark, pretrained.recipe.data.train)
        self.pretrained = pretrained
        self.name = f"{self.name}, reconstructed"

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Encoded and decoded, with their texts."""
        source, images = self.benchmark.source, []
        for start in range(0, len(numbers), BATCH):
            some = [int(number) for number in numbers[start : start + BATCH]]
            batch = collate([source.sample(number) for number in some], some)
            images.append(reconstruct_batch(self.pretrained, batch))
        return np.concatenate(images)

    def fingerprint(self) -> str:
        """Of the split, marked as reconstructed."""
        return f"coded {super().fingerprint()}"


class FolderImages:
    """A folder: of samples (its listed images), or of any image files, subfolders included.

    Args:
        size: edge in pixels that images are squashed to.
        model: identity of the model that judges, so that `origin` can say whether it made the images, too.
        plugin: reads findings out of prompts without a class, if it can.
    """

    def __init__(self, folder: Path, size: int, model: str = "", plugin: DatasetPlugin | None = None) -> None:
        self.plugin = plugin
        self.folder, self.size, self.kind = folder, size, "images"
        self.name = folder.resolve().name
        self.origin: Mapping[str, Any] = {}
        self.lines = read_samples(folder)
        self.paths: list[Path]
        if self.lines:
            self.paths = [folder / line["image"] for line in self.lines]
            settings = read_settings(folder) if (folder / SETTINGS).exists() else {}
            self.kind = "reconstruction" if "reconstruct" in settings else "synthetic"
            self.origin = _origin(settings, model)
        else:
            files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
            # What `mu synthesize` composes of several images is no image of the set.
            self.paths = [path for path in files if path.name not in (SHEET, FIGURE)]
        self.label = self.kind + "-" + re.sub(r"[^\w.-]+", "-", self.name)
        if not self.paths:
            raise DataError(f"{folder}: no image in it")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"plugin": None}

    def __len__(self) -> int:
        return len(self.paths)

    def pick(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Decoded and squashed as `mu prepare` does, but never rescaled: they are scored as generated."""
        return np.stack([self._read(self.paths[number]) for number in numbers])

    def _read(self, path: Path) -> NDArray[np.uint8]:
        try:
            return image_from(FileImage(path), self.size, believe=True).pixels
        except (BadImage, DataError) as error:
            raise DataError(f"{path}: {str(error).rstrip(': ')}; remove or replace it") from error

    def title(self, number: int) -> str:
        """File name."""
        return self.paths[number].name

    def fingerprint(self) -> str:
        """Of names, sizes and times of change: hashing every file would cost as much as reading them."""
        stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return hashlib.sha256(json.dumps(stats).encode()).hexdigest()

    def findings(self) -> list[frozenset[str]] | None:
        """The class that a prompt was given for, or else what the prompt asserts."""
        out = []
        for line in self.lines:
            found: frozenset[str] | None = frozenset({line["class"]} if line.get("class") else ())
            if not found and self.plugin is not None and line.get("prompt"):
                found = self.plugin.findings_in(line["prompt"])
            out.append(found or frozenset())
        return out if any(out) else None


def _origin(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """What the settings of a folder of samples say about its images."""
    origin: dict[str, Any] = {"own_model": settings.get("pretrained") == model}
    if "reconstruct" in settings:
        return origin | {"reconstructs": settings["reconstruct"]}
    if "prompts" in settings:
        origin["prompted"] = settings["prompts"] != requests_hash([])
        # a masked prior decodes in rounds, which its settings say
        origin["prior"] = "masked" if "top_rounds" in settings else "pixelsnail"
        origin |= {name: settings[name] for name in SAMPLING if name in settings}
    return origin


def open_images(pretrained: PretrainedRun, folder_or_split: str) -> ImageSet:
    """A folder where there is one of that name, else a split of the run's data set.

    Raises:
        DataError: neither, or a folder without images.
    """
    folder = Path(folder_or_split)
    if folder.is_dir():
        data = pretrained.recipe.data
        return FolderImages(
            folder, data.image_size, pretrained.identity, prepared_dataset(data.dataset, data.shards)
        )
    if len(folder.parts) > 1:
        raise DataError(f"{folder}: no such folder")
    return SplitImages(
        open_benchmark(pretrained, split=folder_or_split, need_text=False), pretrained.recipe.data.train
    )


def of_batches(
    compute: Callable[[NDArray[np.uint8]], NDArray[Any]], images: ImageSet, first: int = 0
) -> Generator[NDArray[Any], None, None]:
    """`compute` of all images from a number on, in order, on all ranks.

    Args:
        compute: of grey levels [B, S, S]; gives B rows. Picklable.
    """
    starts = range(first, len(images), BATCH)
    numbers = [range(start, min(start + BATCH, len(images))) for start in starts]
    with (
        Progress(len(images), "image", first=first) as progress,
        closing(each(partial(_picked_and_computed, compute, images), numbers)) as parts,
    ):
        for some, rows in zip(numbers, parts, strict=True):
            yield rows
            progress.advance(some.stop)


def _picked_and_computed(
    compute: Callable[[NDArray[np.uint8]], NDArray[Any]], images: ImageSet, numbers: range
) -> NDArray[Any]:
    return compute(images.pick(numbers))


def encoder_features(pretrained: PretrainedRun, images: ImageSet) -> NDArray[np.float32]:
    """f_q of each image averaged over queries, [n, D]; cached in the run."""
    made_of = f"{pretrained.identity} {images.fingerprint()}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    path = pretrained.run.folder / "cache" / f"pooled-{digest}.h5"

    def encode(first: int) -> Generator[Arrays, None, None]:
        with closing(of_batches(partial(query_means, pretrained), images, first)) as parts:
            yield from ({"pooled": rows} for rows in parts)

    return encoded(path, made_of, len(images), encode)["pooled"]


def query_means(pretrained: PretrainedRun, grey_BSS: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Grey levels -> [B, D]."""
    image = torch.from_numpy(grey_BSS)[:, None].to(pretrained.device)
    with torch.no_grad():
        query_BQD = pretrained.model.encode_image(pixels(image)).query_BQD
    mean_BD: NDArray[np.float32] = query_BQD.float().mean(dim=1).cpu().numpy()
    return mean_BD
