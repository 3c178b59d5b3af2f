"""Search a split with a text or an image, and write the hits as a gallery of static HTML."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.render import render
from medunifier_cli.evaluate.retrieval.embed import (
    check_finite,
    embed_many_images,
    embed_split,
    embed_texts,
)
from medunifier_cli.evaluate.retrieval.rerank import match_probability, match_scores
from medunifier_cli.evaluate.user_images import read_images
from medunifier_cli.page.gallery import GalleryImage, write_gallery
from medunifier_cli.scores.search import similarity, top_k
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import show

T = TypeVar("T")
PATIENT_DATA = "Images and reports are those of the split: keep this page only where the data may be kept."


def search_by_text(
    trained: PretrainedRun,
    benchmark: Benchmark,
    text: str,
    top: int,
    rerank: int = 0,
    out: Path | None = None,
) -> Path:
    """Write a gallery of the images of a split that fit a text best.

    Args:
        benchmark: opened with `need_text=False`.
        top: number of hits to show.
        rerank: number of best hits to order by ITM; 0 for none.
        out: folder of the gallery; None for `page/search-...` in the run.

    Returns:
        The page.

    Raises:
        DataError: the text is empty or too long.
        CheckpointError: the run lacks ITC, or ITM with `rerank`.
    """
    features = embed_split(
        trained, benchmark.source, benchmark.plugin.name, benchmark.split, benchmark.shards
    )
    text_1E = embed_texts(trained, [text])
    check_finite(trained, text_1E)
    scores_n = similarity(features.image_nQE, text_1E)[:, 0]
    hits = _best(scores_n, np.arange(len(scores_n)), max(top, rerank))
    if rerank:
        ids = trained.tokenizer.encode(text, trained.recipe.text.max_tokens)
        images = np.array([hit.number for hit in hits[:rerank]])
        read = benchmark.source.images_or_features
        logodds = match_scores(trained, read, partial(_given, ids), images, np.zeros_like(images))
        hits = _by_match(hits, logodds)
    folder = out or _folder(trained, benchmark, "text", text.encode())
    about = {"query": text, **_about(trained, benchmark, len(scores_n), rerank)}
    return _write(benchmark, folder, about, hits[:top], None)


def search_by_image(
    trained: PretrainedRun,
    benchmark: Benchmark,
    path: Path,
    top: int,
    rerank: int = 0,
    out: Path | None = None,
) -> Path:
    """Write a gallery of the reports of a split that fit an image file best, each with its own image.

    Args:
        path: PNG, JPEG or DICOM.

    Raises:
        DataError: the file is no image, or the split has no report.
    """
    uploaded = read_images([path], trained.recipe.data.image_size)
    features = embed_split(
        trained, benchmark.source, benchmark.plugin.name, benchmark.split, benchmark.shards
    )
    with_text = np.flatnonzero(features.has_text_n)
    if not len(with_text):
        raise DataError(
            f"{benchmark.shards}: split {benchmark.split!r} has no reports to find; search it by --query"
        )
    image_1QE = embed_many_images(trained, uploaded.image_B1HW)
    scores_n = similarity(image_1QE, features.text_nE[with_text])[0]
    hits = _best(scores_n, with_text, max(top, rerank))
    if rerank:
        texts = np.array([hit.number for hit in hits[:rerank]])
        logodds = match_scores(
            trained, partial(_given, uploaded.image_B1HW), benchmark.source.token_ids, np.zeros_like(texts),
            texts,
        )  # fmt: skip
        hits = _by_match(hits, logodds)
    folder = out or _folder(trained, benchmark, "image", path.read_bytes())
    about = {"query": path.name, **_about(trained, benchmark, len(scores_n), rerank)}
    query = GalleryImage(uploaded.image_B1HW[0, 0].numpy(), path.name)
    return _write(benchmark, folder, about, hits[:top], query)


@dataclass(frozen=True)
class _Hit:
    """One sample features."""

    number: int
    similarity: float
    match: float | None = None
    """Log-odds of a match by the ITM head, where it was benchmark."""


def _given(value: T, _: object) -> T:
    return value


def _best(scores_n: NDArray[np.float32], numbers: NDArray[np.int64], count: int) -> list[_Hit]:
    """The best `count` candidates, or all if there are fewer."""
    top = top_k(scores_n[None], min(count, len(scores_n)))
    ranked = zip(top.indices_QK[0].tolist(), top.scores_QK[0].tolist(), strict=True)
    return [_Hit(int(numbers[index]), score) for index, score in ranked]


def _by_match(hits: list[_Hit], logodds_k: NDArray[np.float32]) -> list[_Hit]:
    """The first k ordered by match; ties, and the hits after them, keep their order."""
    k = len(logodds_k)
    reranked = [replace(hit, match=float(odds)) for hit, odds in zip(hits[:k], logodds_k, strict=True)]
    return [*sorted(reranked, key=lambda hit: -(hit.match or 0.0)), *hits[k:]]


def _about(trained: PretrainedRun, benchmark: Benchmark, candidates: int, rerank: int) -> dict[str, str]:
    by = "cosine, largest over queries"
    return {
        "searched": f"{benchmark.plugin.name}/{benchmark.split}, {candidates:,} candidates",
        "run": f"{trained.run.folder.name}, step {trained.step:,}, checkpoint {trained.identity}",
        "similarity": f"{by}; the first {rerank} ordered by match, the ITM head's probability"
        if rerank
        else by,
        "note": PATIENT_DATA,
    }


def _folder(trained: PretrainedRun, benchmark: Benchmark, kind: str, query: bytes) -> Path:
    """Named by a hash: a query may quote a report, and paths end up in logs."""
    name = hashlib.sha256(query).hexdigest()[:10]
    return trained.run.folder / "page" / f"search-{kind}-{benchmark.plugin.name}-{benchmark.split}-{name}"


def _write(
    benchmark: Benchmark, folder: Path, about: dict[str, str], hits: list[_Hit], query: GalleryImage | None
) -> Path:
    cards: list[GalleryImage] = []
    rows: list[list[object]] = [["key", "similarity", "match"]]
    for hit in hits:
        row = int(benchmark.source.rows[hit.number])
        try:
            with Image.open(io.BytesIO(benchmark.source.shards.image(row)), formats=("PNG", "JPEG")) as image:
                grey = np.array(image.convert("L"))
        except Exception as error:  # decoders raise all kinds of errors: embeddings are older than the damage
            where = benchmark.source.shards.where(row)
            raise DataError(f"{where}: damaged image; run `mu prepare` again") from error
        numbers = {"similarity": hit.similarity}
        if hit.match is not None:
            numbers["match"] = float(match_probability(hit.match))
        key = benchmark.source.shards.key(row)
        cards.append(GalleryImage(grey, key, numbers, benchmark.source.text(hit.number)))
        rows.append([key, hit.similarity, numbers.get("match")])
        if form() == "text":
            show("  ".join([*(f"{value:.3f}" for value in numbers.values()), key]), err=True)
    if form() != "text":
        show(render(rows, form()))
    return write_gallery(
        folder, f"{len(cards)} best of {benchmark.plugin.name}/{benchmark.split}", about, cards, query,
        benchmark.shards,
    )  # fmt: skip
