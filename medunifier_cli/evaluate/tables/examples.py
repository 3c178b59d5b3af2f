"""Examples for the page of a run: reports beside their references, and texts that were found for images.

Spread evenly over a split and not selected. Images and texts come from the shards that were measured; where
these are gone, reports are shown without images, and retrieval not at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from medunifier_cli.data.shards import Shards
from medunifier_cli.data.subset import open_part
from medunifier_cli.data.texts.report import compose
from medunifier_cli.errors import MuError
from medunifier_cli.files import sha256
from medunifier_cli.page.differences import differences
from medunifier_cli.page.pictures import Shown, shown
from medunifier_cli.page.run_page import Examples, Hit, ReportExample, RetrievalExample
from medunifier_cli.plugin_index import prepared_dataset
from medunifier_cli.roots import shards_folder
from medunifier_cli.run.lines import whole_lines
from medunifier_cli.run.record import Run

REPORTS, QUERIES, HITS = 6, 4, 3
"""Reports, images searched with, and different texts found for each of them."""
SPREAD = "Examples are spread evenly over the split, none is selected"


class _Report(TypedDict):
    key: str
    reference: str
    hypothesis: str


class _Found(TypedDict):
    key: str
    image_to_text: list[str]
    image_to_text_scores: list[float]


class SplitImages:
    """Images and texts of a split by key.

    Args:
        folder: of the shards.
        dataset: name of the data set.
        split: a split or subset.

    Raises:
        MuError: shards that cannot be read.
    """

    def __init__(self, folder: Path, dataset: str, split: str) -> None:
        self.folder = folder
        self.shards: Shards = open_part(folder, split)
        self.sections = prepared_dataset(dataset, folder).text_sections
        self._rows: dict[str, int] = {}

    def image(self, key: str, alt: str) -> Shown | None:
        """The image of a sample; None where it is not there or damaged."""
        row = self._row(key)
        if row is None:
            return None
        try:
            with Image.open(io.BytesIO(self.shards.image(row)), formats=("PNG", "JPEG")) as image:
                return shown(image.convert("L"), alt)
        except Exception:  # decoders raise all kinds of errors on damaged files
            return None

    def text(self, key: str) -> str:
        """All text sections of a sample, as they were written; empty where it is not there or damaged."""
        row = self._row(key)
        if row is None:
            return ""
        try:
            return compose(self.shards.meta(row).get("sections") or {}, self.sections)
        except MuError:  # an example is not worth the page
            return ""

    def _row(self, key: str) -> int | None:
        if key not in self._rows:
            found = np.flatnonzero(self.shards.index["key"] == key.encode())
            if not len(found):
                return None
            self._rows[key] = int(found[0])
        return self._rows[key]


def report_examples(run: Run, results: Sequence[Mapping[str, Any]]) -> tuple[Examples | None, list[Path]]:
    """Generated reports beside their references, and the files whose texts they are; None without reports."""
    result = _first(results, "report")
    if result is None:
        return None, []
    path = run.results / f"reports-{result['dataset']}-{result['split']}.jsonl"
    rows = whole_lines(path, _Report)
    if not rows:
        return None, []
    images = split_images(result)
    examples = []
    for row in _spread(rows, REPORTS):
        generated, reference = differences(row["hypothesis"], row["reference"])
        image = images.image(row["key"], f"image of {row['key']}") if images else None
        examples.append(ReportExample(row["key"], generated, reference, image))
    caption = f"{len(examples)} of {len(rows):,} reports on {result['dataset']}/{result['split']}. {SPREAD}."
    return Examples(caption, examples), [path, *([images.folder] if images else [])]


def retrieval_examples(run: Run, results: Sequence[Mapping[str, Any]]) -> tuple[Examples | None, list[Path]]:
    """Images with the texts that were found for them, and their data; None where these are gone."""
    result = _first(results, "retrieval")
    images = split_images(result) if result else None
    if result is None or images is None:
        return None, []
    where = f"{result['dataset']}/{result['split']}"
    rows = whole_lines(run.results / f"retrieval-{where.replace('/', '-')}.samples.jsonl", _Found)
    rows = [row for row in rows if len(row["image_to_text"]) == len(row["image_to_text_scores"]) > 0]
    classes = {row["key"]: str(row.get("class", "")) for row in rows}
    examples = []
    for row in _spread(rows, QUERIES):
        image = images.image(row["key"], f"image of {row['key']}, which was searched with")
        name = classes[row["key"]]
        about = f"{row['key']}, class {name}" if name else row["key"]
        hits = _hits(row, images, classes)
        if hits:
            examples.append(RetrievalExample(about, hits, image))
    if not examples:
        return None, []
    caption = (
        f"{len(examples)} of {len(rows):,} images of {where}, each with the texts nearest to it. {SPREAD}."
    )
    return Examples(caption, examples), [images.folder]


def _hits(row: Mapping[str, Any], images: SplitImages, classes: Mapping[str, str]) -> list[Hit]:
    """The best texts of an image; samples with one text are one hit."""
    found: dict[str, list[str]] = {}
    scores: dict[str, float] = {}
    for key, score in zip(row["image_to_text"], row["image_to_text_scores"], strict=True):
        text = images.text(key)
        if text:
            found.setdefault(text, []).append(key)
            scores.setdefault(text, score)
    hits = []
    for text, keys in list(found.items())[:HITS]:
        said = [f"class {classes[keys[0]]}"] if classes.get(keys[0]) else []
        said += ["the image's own text"] if row["key"] in keys else []
        said += [f"the text of {len(keys)} of the hits"] if len(keys) > 1 else []
        hits.append(Hit(text, scores[text], ", ".join(said or [keys[0]])))
    return hits


def split_images(result: Mapping[str, Any]) -> SplitImages | None:
    """The split that a result was measured on; None where its shards are gone, or are others now."""
    facts = result.get("data") or {}
    places = [Path(str(facts["shards"]))] if facts.get("shards") else []
    for folder in [*places, shards_folder(result["dataset"])]:
        manifest = folder / "manifest.json"
        try:
            if manifest.is_file() and sha256(manifest) == facts.get("manifest"):
                return SplitImages(folder, result["dataset"], result["split"])
        except (MuError, OSError):  # an example is not worth the page
            continue
    return None


def _first(results: Sequence[Mapping[str, Any]], task: str) -> Mapping[str, Any] | None:
    return next((result for result in results if result["task"] == task), None)


def _spread(rows: Sequence[Mapping[str, Any]], most: int) -> list[Mapping[str, Any]]:
    """Up to `most` rows, at even distances."""
    count = min(most, len(rows))
    return [rows[number * len(rows) // count] for number in range(count)]
