"""Data set `siim`: SIIM-ACR Pneumothorax, 12,047 frontal radiographs with pneumothorax masks.

The paper counts 12,954 images, which are the rows of the table: an image has one row per mask. Here an image
is one sample, however many rows it has, so that no image is in two splits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from medunifier_cli.data.contract import (
    DataError,
    DatasetPlugin,
    Drop,
    FileImage,
    Option,
    Plan,
    Record,
    quoted,
)

from .raw.dicom_header import view_position
from .raw.prompts import observed
from .raw.sampling import PART_OPTIONS, shuffled, stratified, train_parts
from .raw.tables import Table, find_table
from .raw.tree import folders, image_paths, need_folder, unpack_hint

CLASSES = ("Pneumothorax", "No Pneumothorax")

MASK_SIZE = 1024
"""Width and height of the images that the masks refer to, in pixels."""

MASK_TABLES = ("stage_2_train.csv", "train-rle.csv", "stage_1_train.csv")
"""Names of the run-length table in the three versions of the download."""
MIRROR_TABLES = ("stage_1_train_images.csv", "stage_1_test_images.csv")
"""Tables of a mirror that renames the images."""
MASK_FOLDER = re.compile(r".*mask.*", re.IGNORECASE)

SPLIT_SIZES = {
    "published-code": {"train": 9_757, "valid": 1_085, "test": 1_205},
    "gloria": {"train": 8_432, "valid": 1_808, "test": 1_807},
}
FORMER_NAMES = {"official": "published-code"}
"""Nobody published a split of this data set as official; the old name is still understood."""


@dataclass
class SiimImage:
    """One image with its label and masks, collected from all its rows."""

    name: str
    """Stem of its file: the ImageId, or `0_train_1_` in the mirror that renames the images."""
    positive: bool
    masks: list[str]
    """Run-length masks as published: pairs (gap since the previous run, run length), down the columns."""


class Siim(DatasetPlugin):
    """SIIM-ACR Pneumothorax Segmentation: 12,047 frontal radiographs with masks, 2,669 with a pneumothorax.

    Citation: Zawacki et al., SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019
    Licence: the rules of the Kaggle competition, accepted before the download
    Labels: Pneumothorax, No Pneumothorax
    Homepage: https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation
    """

    name = "siim"
    title = "SIIM-ACR Pneumothorax Segmentation"
    citation = "Zawacki et al., SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019"
    licence = "the rules of the Kaggle competition, accepted before the download"
    homepage = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation"
    needs = (
        "stage_2_train.csv or train-rle.csv with dicom-images-train/ and dicom-images-test/, or the mirror "
        "with png_images/, stage_1_train_images.csv and stage_1_test_images.csv. Needs a Kaggle account."
    )
    classes = CLASSES
    headline_metric = "auroc"
    text_sections = ()
    options: ClassVar[Mapping[str, Option]] = {
        "split": Option(
            "published-code",
            "split: the authors' published code's stratified 81/9/10, or GLoRIA's 70/15/15, to which the "
            "paper's text leads by citation; official: former name of published-code",
            ("published-code", "gloria", "official"),
        ),
        **PART_OPTIONS,
        "seed": Option(5, "seed of the split and of the 1 % and 10 % subsets"),
    }

    def plan(self, raw: Path, options: Mapping[str, Any]) -> Plan:
        need_folder(raw, self.needs)
        images = read_images(list(folders(raw, 1, skip=MASK_FOLDER)))
        id_by_name = {image.name: image_id for image_id, image in images.items()}
        paths = image_paths(raw, id_by_name.get, skip=MASK_FOLDER)
        if not paths:
            raise DataError(f"{raw}: no image has a name from the table. {RENAMED_HINT}{unpack_hint(raw)}")
        seed = options["seed"]
        chosen = FORMER_NAMES.get(options["split"], options["split"])
        assign = published_code_split if chosen == "published-code" else gloria_split
        split = assign(images, seed)
        train = [image_id for image_id in images if split[image_id] == "train" and image_id in paths]
        return Plan(
            records=self._records(raw, images, paths, split),
            total=len(images),
            split_source=f"{chosen}, by image, seed {seed}",
            seed=seed,
            subsets=train_parts(
                {_key(image_id): images[image_id].positive for image_id in train},
                options,
                {name: _key(image_id) for image_id in train for name in (image_id, images[image_id].name)},
            ),
            expected=SPLIT_SIZES[chosen],
        )

    def prompt_sets(self) -> Mapping[str, Mapping[str, Sequence[str]]]:
        return {"observed": observed(*CLASSES)}

    def _records(
        self, raw: Path, images: Mapping[str, SiimImage], paths: Mapping[str, str], split: Mapping[str, str]
    ) -> Iterator[Record | Drop]:
        for image_id, image in images.items():
            if image_id not in paths:
                yield Drop("missing", f"{image.name}.dcm")
                continue
            source = paths[image_id]
            yield Record(
                key=_key(image_id),
                image=FileImage(raw / source),
                split=split[image_id],
                subject=image_id,
                study=PurePosixPath(source).parent.name or image_id,
                source=source,
                view=view_position(raw / source) if source.endswith(".dcm") else None,
                labels={"Pneumothorax": float(image.positive), "No Pneumothorax": float(not image.positive)},
                facts={"rle_masks": image.masks},
            )


RENAMED_HINT = (
    "Files named ID_xxxxxxxxx.dcm, as Kaggle distributes them now, do not match the ids of the train table: "
    "use the original dicom-images-train/ and dicom-images-test/, or the mirror with png_images/"
)


def read_images(search: Sequence[Path]) -> dict[str, SiimImage]:
    """ImageId -> image, sorted by id, from the mask table and the mirror's tables of renamed files.

    Raises:
        DataError: neither table, or an image that is both positive and negative.
    """
    images: dict[str, SiimImage] = {}
    masks = find_table(search, *MASK_TABLES)
    if masks is not None:
        _read_masks(masks, images)
    mirror = [table for name in MIRROR_TABLES if (table := find_table(search, name))]
    for table in mirror:
        for line, (file_name, image_id, positive) in table.rows(["new_filename", "ImageId", "has_pneumo"]):
            if positive not in ("0", "1"):
                raise DataError(f"{table.shown}:{line}: has_pneumo {quoted(positive)} is neither 0 nor 1")
            image = images.setdefault(image_id, SiimImage(image_id, positive == "1", []))
            if image.positive != (positive == "1"):
                raise DataError(
                    f"{table.shown}:{line}: {quoted(image_id)} has a different label in another table"
                )
            image.name = PurePosixPath(file_name).stem
    if not images:
        raise DataError(f"{search[0]}: none of {', '.join(MASK_TABLES + MIRROR_TABLES)}")
    return dict(sorted(images.items()))


def _read_masks(table: Table, images: dict[str, SiimImage]) -> None:
    """Add the images of a table with rows `ImageId, EncodedPixels` to `images`."""
    empty: set[str] = set()
    for line, (image_id, pixels) in table.rows(["ImageId", "EncodedPixels"]):
        image = images.setdefault(image_id, SiimImage(image_id, False, []))
        # No pneumothorax. Some versions write " -1"; `rows` has stripped it. Code that compares with the
        # unstripped text turns every image of the other versions positive.
        if pixels == "-1":
            empty.add(image_id)
        else:
            _check_runs(pixels, table, line)
            image.positive = True
            image.masks.append(pixels)
    both = sorted(image_id for image_id in empty if images[image_id].positive)
    if both:
        raise DataError(f"{table.shown}: {len(both)} images have both -1 and a mask, first {quoted(both[0])}")


def _check_runs(pixels: str, table: Table, line: int) -> None:
    """Check a run-length mask.

    Raises:
        DataError: the text is not a list of (gap, length) pairs that ends within the image.
    """
    try:
        runs = [int(number) for number in pixels.split()]
    except ValueError:
        runs = []
    if not runs or len(runs) % 2 or min(runs) < 0 or sum(runs) > MASK_SIZE**2:
        problem = "neither -1 nor number pairs within 1024 x 1024"
        raise DataError(f"{table.shown}:{line}: EncodedPixels is {problem}")


def published_code_split(images: Mapping[str, SiimImage], seed: int) -> dict[str, str]:
    """The authors' code: 10 % test, then 10 % of the rest valid; both stratified, rounded up.

    The paper gives no shares; it says "as in Cheng et al. (2023)", which leads to GLoRIA's 70/15/15.
    """
    ids = list(images)
    split = dict.fromkeys(ids, "train")
    for name in ("test", "valid"):
        rest = [image_id for image_id in ids if split[image_id] == "train"]
        size = math.ceil(0.1 * len(rest))
        for index in stratified([images[image_id].positive for image_id in rest], size, seed):
            split[rest[index]] = name
    return split


def gloria_split(images: Mapping[str, SiimImage], seed: int) -> dict[str, str]:
    """GLoRIA's shares, 70/15/15, unstratified; of images, since by row 154 are in both train and test."""
    ids = list(images)
    held_out = math.ceil(0.3 * len(ids))
    half = math.ceil(0.5 * held_out)
    names = ["valid"] * half + ["test"] * (held_out - half) + ["train"] * (len(ids) - held_out)
    return dict(zip(shuffled(ids, seed), names, strict=True))


def _key(image_id: str) -> str:
    return image_id.replace(".", "_")
