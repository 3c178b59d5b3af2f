"""Searching a split with a text or an image, and the gallery of what was found."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medunifier_cli.checkpoint.restore import Trained
from medunifier_cli.errors import DataError
from medunifier_cli.model.vit import pixels
from medunifier_cli.page.gallery import Shown, write_gallery
from medunifier_cli.scores.search import Top, reorder, similarity, top_k
from medunifier_cli.tasks.embed import check_finite, embed_images, embed_split, embed_texts
from medunifier_cli.tasks.files import read_images
from medunifier_cli.tasks.matching import match_scores
from medunifier_cli.tasks.splits import Asked

PATIENT_DATA = "Images and reports are those of the split: keep this page where the data may lie."


def search_by_text(
    trained: Trained, asked: Asked, text: str, top: int, rerank: int = 0, out: Path | None = None
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
    numbers, hits, match_k = _best(scores_n, np.arange(len(scores_n)), top, rerank)
    if match_k:
        ids = trained.tokenizer.encode(text, trained.recipe.text.max_tokens)
        head = numbers[hits.indices_QK[0, :match_k]]
        logodds = match_scores(trained, asked.source.images, lambda _: ids, head, np.zeros(match_k, np.int64))
        hits = _reordered(hits, logodds)
    folder = out or _folder(trained, asked, "text", text.encode())
    about = {"query": text, **_about(trained, asked, len(scores_n), match_k)}
    return _write(asked, folder, about, numbers, hits, match_k, None, top)


def search_by_image(
    trained: Trained, asked: Asked, path: Path, top: int, rerank: int = 0, out: Path | None = None
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
    numbers, hits, match_k = _best(scores_n, with_text, top, rerank)
    if match_k:
        head = numbers[hits.indices_QK[0, :match_k]]
        logodds = match_scores(
            trained, lambda _: read.image_B1HW, asked.source.token_ids, np.zeros(match_k, np.int64), head
        )
        hits = _reordered(hits, logodds)
    folder = out or _folder(trained, asked, "image", path.read_bytes())
    about = {"query": path.name, **_about(trained, asked, len(scores_n), match_k)}
    query = Shown(read.image_B1HW[0, 0].numpy(), path.name)
    return _write(asked, folder, about, numbers, hits, match_k, query, top)


def _best(
    scores_n: NDArray[np.float32], numbers: NDArray[np.int64], top: int, rerank: int
) -> tuple[NDArray[np.int64], Top, int]:
    """Sample numbers, the best of them, and how many to re-rank; no more than there are."""
    rerank = min(rerank, len(scores_n))
    return numbers, top_k(scores_n[None], min(max(top, rerank), len(scores_n))), rerank


def _reordered(hits: Top, logodds_k: NDArray[np.float32]) -> Top:
    """The first k by match; scores stay similarities."""
    k = len(logodds_k)
    order = reorder(Top(np.arange(k)[None], hits.scores_QK[:, :k]), logodds_k[None]).indices_QK[0]
    order = np.concatenate([order, np.arange(k, hits.indices_QK.shape[1])])
    return Top(hits.indices_QK[:, order], hits.scores_QK[:, order])


def _about(trained: Trained, asked: Asked, candidates: int, rerank: int) -> dict[str, str]:
    by = "cosine, largest over queries"
    return {
        "searched": f"{asked.plugin.name}/{asked.split}, {candidates:,} candidates",
        "run": f"{trained.run.folder.name}, step {trained.step:,}, checkpoint {trained.identity}",
        "similarity": f"{by}; the first {rerank} ordered by image-text matching" if rerank else by,
        "note": PATIENT_DATA,
    }


def _folder(trained: Trained, asked: Asked, kind: str, query: bytes) -> Path:
    """Named by a hash: a query may quote a report, and a path ends up in logs."""
    name = hashlib.sha256(query).hexdigest()[:10]
    return trained.run.folder / "page" / f"search-{kind}-{asked.plugin.name}-{asked.split}-{name}"


def _write(
    asked: Asked, folder: Path, about: dict[str, str], numbers: NDArray[np.int64], hits: Top, rerank: int,
    query: Shown | None, top: int,
) -> Path:  # fmt: skip
    shown = []
    for place, score in zip(hits.indices_QK[0, :top], hits.scores_QK[0, :top], strict=True):
        number = int(numbers[place])
        body = asked.source.shards.image(int(asked.source.rows[number]))
        with Image.open(io.BytesIO(body)) as image:
            grey = np.array(image.convert("L"))
        key = asked.source.shards.key(int(asked.source.rows[number]))
        shown.append(Shown(grey, key, {"similarity": float(score)}, asked.source.text(number)))
        click.echo(f"{float(score):.3f}  {key}", err=True)
    return write_gallery(
        folder, f"{len(shown)} best of {asked.plugin.name}/{asked.split}", about, shown, query
    )
