"""Searching a split with a text or an image, and the gallery of what was found."""

from __future__ import annotations

import hashlib
import io
import math
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.retrieval.embed import (
    check_finite,
    embed_images,
    embed_split,
    embed_texts,
)
from medunifier_cli.evaluate.retrieval.rerank import match_scores
from medunifier_cli.evaluate.user_images import read_images
from medunifier_cli.model.vit import pixels
from medunifier_cli.page.gallery import Shown, write_gallery
from medunifier_cli.scores.search import similarity, top_k

PATIENT_DATA = "Images and reports are those of the split: keep this page where the data may lie."


def search_by_text(
    trained: PretrainedRun, asked: Benchmark, text: str, top: int, rerank: int = 0, out: Path | None = None
) -> Path:
    """The images of a split that fit a text best, as a gallery.

    Args:
        asked: opened with `need_text=False`.
        top: how many.
        rerank: the best so many are ordered by ITM.
        out: folder of the gallery; None for `page/search-...` in the run.

    Returns:
        The page.

    Raises:
        DataError: the text is empty or too long.
        CheckpointError: the run lacks ITC, or ITM with `rerank`.
    """
    found = embed_split(trained, asked.source, asked.plugin.name, asked.split, asked.shards)
    text_1E = embed_texts(trained, [text])
    check_finite(trained, text_1E)
    scores_n = similarity(found.image_nQE, text_1E)[:, 0]
    hits = _best(scores_n, np.arange(len(scores_n)), max(top, rerank))
    if rerank:
        ids = trained.tokenizer.encode(text, trained.recipe.text.max_tokens)
        images = np.array([hit.number for hit in hits[:rerank]])
        logodds = match_scores(trained, asked.source.images, lambda _: ids, images, np.zeros_like(images))
        hits = _by_match(hits, logodds)
    folder = out or _folder(trained, asked, "text", text.encode())
    about = {"query": text, **_about(trained, asked, len(scores_n), rerank)}
    return _write(asked, folder, about, hits[:top], None)


def search_by_image(
    trained: PretrainedRun, asked: Benchmark, path: Path, top: int, rerank: int = 0, out: Path | None = None
) -> Path:
    """The reports of a split that fit an image file best, each with its own image, as a gallery.

    Args:
        path: PNG, JPEG or DICOM.

    Raises:
        DataError: the file is no image, or the split has no report.
    """
    read = read_images([path], trained.recipe.data.image_size)
    found = embed_split(trained, asked.source, asked.plugin.name, asked.split, asked.shards)
    with_text = np.flatnonzero(found.has_text_n)
    if not len(with_text):
        raise DataError(f"{asked.shards}: split {asked.split!r} has no reports to find; search it by --query")
    image_1QE = embed_images(trained, pixels(read.image_B1HW.to(trained.device)))
    check_finite(trained, image_1QE)
    scores_n = similarity(image_1QE, found.text_nE[with_text])[0]
    hits = _best(scores_n, with_text, max(top, rerank))
    if rerank:
        texts = np.array([hit.number for hit in hits[:rerank]])
        logodds = match_scores(
            trained, lambda _: read.image_B1HW, asked.source.token_ids, np.zeros_like(texts), texts
        )
        hits = _by_match(hits, logodds)
    folder = out or _folder(trained, asked, "image", path.read_bytes())
    about = {"query": path.name, **_about(trained, asked, len(scores_n), rerank)}
    query = Shown(read.image_B1HW[0, 0].numpy(), path.name)
    return _write(asked, folder, about, hits[:top], query)


@dataclass(frozen=True)
class _Hit:
    """One sample found."""

    number: int
    similarity: float
    match: float | None = None
    """Log-odds of a match by the ITM head, where it was asked."""


def _best(scores_n: NDArray[np.float32], numbers: NDArray[np.int64], count: int) -> list[_Hit]:
    """The best of the candidates, no more than there are."""
    top = top_k(scores_n[None], min(count, len(scores_n)))
    places, scores = top.indices_QK[0].tolist(), top.scores_QK[0].tolist()
    return [_Hit(int(numbers[place]), score) for place, score in zip(places, scores, strict=True)]


def _by_match(hits: list[_Hit], logodds_k: NDArray[np.float32]) -> list[_Hit]:
    """The first k ordered by match; equal ones, and what lies behind, keep their order."""
    k = len(logodds_k)
    judged = [replace(hit, match=float(odds)) for hit, odds in zip(hits[:k], logodds_k, strict=True)]
    return [*sorted(judged, key=lambda hit: -(hit.match or 0.0)), *hits[k:]]


def _about(trained: PretrainedRun, asked: Benchmark, candidates: int, rerank: int) -> dict[str, str]:
    by = "cosine, largest over queries"
    return {
        "searched": f"{asked.plugin.name}/{asked.split}, {candidates:,} candidates",
        "run": f"{trained.run.folder.name}, step {trained.step:,}, checkpoint {trained.identity}",
        "similarity": f"{by}; the first {rerank} ordered by match, the ITM head's probability"
        if rerank
        else by,
        "note": PATIENT_DATA,
    }


def _folder(trained: PretrainedRun, asked: Benchmark, kind: str, query: bytes) -> Path:
    """Named by a hash: a query may quote a report, and a path ends up in logs."""
    name = hashlib.sha256(query).hexdigest()[:10]
    return trained.run.folder / "page" / f"search-{kind}-{asked.plugin.name}-{asked.split}-{name}"


def _write(
    asked: Benchmark, folder: Path, about: dict[str, str], hits: list[_Hit], query: Shown | None
) -> Path:
    shown = []
    for hit in hits:
        row = int(asked.source.rows[hit.number])
        with Image.open(io.BytesIO(asked.source.shards.image(row))) as image:
            grey = np.array(image.convert("L"))
        numbers = {"similarity": hit.similarity}
        if hit.match is not None:
            numbers["match"] = 1 / (1 + math.exp(-hit.match))
        key = asked.source.shards.key(row)
        shown.append(Shown(grey, key, numbers, asked.source.text(hit.number)))
        click.echo("  ".join([*(f"{value:.3f}" for value in numbers.values()), key]), err=True)
    return write_gallery(
        folder, f"{len(shown)} best of {asked.plugin.name}/{asked.split}", about, shown, query
    )
