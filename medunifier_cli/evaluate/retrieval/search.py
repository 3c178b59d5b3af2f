"""Search a split with a text or an image, and write the hits as a gallery of static HTML."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.errors import DataError
from medunifier_cli.evaluate.benchmark import Benchmark
from medunifier_cli.evaluate.films.answers import footer
from medunifier_cli.evaluate.films.likeness import Likeness, likeness_of
from medunifier_cli.evaluate.films.origin import origin_of_run
from medunifier_cli.evaluate.render import render
from medunifier_cli.evaluate.retrieval.embed import (
    check_finite,
    embed_many_images,
    embed_split,
    embed_texts,
)
from medunifier_cli.evaluate.retrieval.fit import JUDGED, threshold_of, unknown_words, verdict
from medunifier_cli.evaluate.retrieval.rerank import Images, Texts, match_probability, match_scores
from medunifier_cli.evaluate.user_images import read_images
from medunifier_cli.page.gallery import GalleryImage, write_gallery
from medunifier_cli.scores.search import similarity, top_k
from medunifier_cli.terminal.output import form
from medunifier_cli.terminal.say import say, show

T = TypeVar("T")
AT_ONCE = 4096
"""Images that are compared at once: 128 MiB at the paper's sizes."""
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
    if strange := unknown_words(trained, text):
        about["unknown words"] = ", ".join(strange)
        say(f"words that the model does not know: {', '.join(strange)}")
    images = np.array([hit.number for hit in hits[:JUDGED]])
    ids = trained.tokenizer.encode(text, trained.recipe.text.max_tokens)
    about |= _fits(
        trained, benchmark, features.has_text_n, benchmark.source.images_or_features, partial(_given, ids),
        (images, np.zeros_like(images)),
    )  # fmt: skip
    return _write(trained, benchmark, folder, "Films that fit the query", about, hits[:top])


def search_by_image(
    trained: PretrainedRun, benchmark: Benchmark, path: Path, top: int, rerank: int = 0,
    out: Path | None = None, likeness: bool = True,
) -> Path:  # fmt: skip
    """Write a gallery of the reports of a split that fit an image file best, each with its own image.

    Args:
        path: PNG, JPEG or DICOM.
        likeness: whether to tell how like the training films it is.

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
    hits = _folded(_best(scores_n, with_text, len(scores_n)), benchmark)[: max(top, rerank)]
    if rerank:
        texts = np.array([hit.number for hit in hits[:rerank]])
        logodds = match_scores(
            trained, partial(_given, uploaded.image_B1HW), benchmark.source.token_ids, np.zeros_like(texts),
            texts,
        )  # fmt: skip
        hits = _by_match(hits, logodds)
    folder = out or _folder(trained, benchmark, "image", path.read_bytes())
    about = {"query": path.name, **_about(trained, benchmark, len(scores_n), rerank)}
    best = np.array([hit.number for hit in hits[:JUDGED]])
    about |= _fits(
        trained, benchmark, features.has_text_n, partial(_given, uploaded.image_B1HW),
        benchmark.source.token_ids, (np.zeros_like(best), best),
    )  # fmt: skip
    asked = _asked(trained, path, uploaded.image_B1HW, likeness)
    return _write(trained, benchmark, folder, f"Reports that fit {path.name}", about, hits[:top], asked)


def search_similar(
    trained: PretrainedRun, benchmark: Benchmark, path: Path, top: int, out: Path | None = None,
    likeness: bool = True,
) -> Path:  # fmt: skip
    """Write a gallery of the images of a split that are most like an image file.

    The similarity of two images is the mean cosine of their vectors in the joint space, each query's vector
    of the one with that of the other.

    Args:
        path: PNG, JPEG or DICOM.
        likeness: whether to tell how like the training films it is.

    Raises:
        DataError: the file is no image.
        CheckpointError: the run lacks ITC.
    """
    uploaded = read_images([path], trained.recipe.data.image_size)
    features = embed_split(
        trained, benchmark.source, benchmark.plugin.name, benchmark.split, benchmark.shards
    )
    image_QE = embed_many_images(trained, uploaded.image_B1HW)[0]
    scores_n = similar_images(image_QE, features.image_nQE)
    hits = _best(scores_n, np.arange(len(scores_n)), top)
    folder = out or _folder(trained, benchmark, "similar", path.read_bytes())
    about = {"query": path.name, **_about(trained, benchmark, len(scores_n), 0)}
    about["similarity"] = "mean cosine over the queries of two images"
    asked = _asked(trained, path, uploaded.image_B1HW, likeness)
    return _write(trained, benchmark, folder, f"Films like {path.name}", about, hits, asked)


def similar_images(image_QE: NDArray[np.float32], image_nQE: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean cosine of the vectors of one image with those of each other image, [n] in [-1, 1]."""
    blocks = [
        np.einsum("nqe,qe->n", image_nQE[start : start + AT_ONCE], image_QE) / len(image_QE)
        for start in range(0, len(image_nQE), AT_ONCE)
    ]
    return np.concatenate(blocks).astype(np.float32)


@dataclass(frozen=True)
class _Hit:
    """One sample features."""

    number: int
    similarity: float
    match: float | None = None
    """Log-odds of a match by the ITM head, where it was judged."""
    same: int = 0
    """Further candidates with the same text, word for word."""


@dataclass(frozen=True)
class _Asked:
    """The film that was searched with."""

    picture: GalleryImage
    likeness: list[Likeness]
    """Its own, to the training films; empty where nobody asked."""


def _asked(trained: PretrainedRun, path: Path, image_11HW: Tensor, likeness: bool) -> _Asked:
    size = trained.recipe.data.image_size
    picture = GalleryImage(
        image_11HW[0, 0].numpy(), f"{path.name}, as the model saw it ({size} x {size} pixels)"
    )
    return _Asked(picture, likeness_of(trained, image_11HW) if likeness else [])


def _given(value: T, _: object) -> T:
    return value


def _best(scores_n: NDArray[np.float32], numbers: NDArray[np.int64], count: int) -> list[_Hit]:
    """The best `count` candidates, or all if there are fewer."""
    top = top_k(scores_n[None], min(count, len(scores_n)))
    ranked = zip(top.indices_QK[0].tolist(), top.scores_QK[0].tolist(), strict=True)
    return [_Hit(int(numbers[index]), score) for index, score in ranked]


def _folded(hits: list[_Hit], benchmark: Benchmark) -> list[_Hit]:
    """The first of the hits with each text, which says how many more have it."""
    counts = Counter(int(benchmark.source.digests[hit.number]) for hit in hits)
    firsts: dict[int, _Hit] = {}
    for hit in hits:
        text = int(benchmark.source.digests[hit.number])
        firsts.setdefault(text, replace(hit, same=counts[text] - 1))
    return list(firsts.values())


def _fits(
    trained: PretrainedRun, benchmark: Benchmark, has_text_n: NDArray[np.bool_], images: Images,
    texts: Texts, pairs: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> dict[str, str]:  # fmt: skip
    """A fact for the page, which is reported on stderr as well, where none of the best hits fits."""
    threshold = threshold_of(trained, benchmark, has_text_n)
    if threshold is None:
        return {}
    odds = match_scores(trained, images, texts, *pairs, quiet=True)
    said = verdict(odds.tolist(), threshold)
    if said:
        say(said)
    return {"fit": said} if said else {}


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
    trained: PretrainedRun, benchmark: Benchmark, folder: Path, title: str, about: dict[str, str],
    hits: list[_Hit], asked: _Asked | None = None,
) -> Path:  # fmt: skip
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
        more = f" ({hit.same:,} more with this text)" if hit.same else ""
        cards.append(GalleryImage(grey, key + more, numbers, benchmark.source.text(hit.number)))
        rows.append([key, hit.similarity, numbers.get("match")])
    if form() == "text":
        show("\n".join(_lines(cards)), err=True)
    else:
        show(render(rows, form()))
    warnings = []
    if asked is not None:
        about = {**about, "note": f"{PATIENT_DATA} It holds your film too."}
        said = footer(asked.likeness, origin_of_run(trained))
        show("\n".join(said), err=True)
        warnings = [line for line in said if not line.startswith("From ")]
    page = write_gallery(
        folder, title, about, cards, asked.picture if asked else None, benchmark.shards, warnings
    )
    own = ", and your film," if asked else ""
    say(f"images and texts of the hits{own} are on this page; --out chooses where it is written")
    return page


def _lines(cards: list[GalleryImage]) -> Iterator[str]:
    """Numbers under their names, and the key last; texts are patient data, and for the page alone."""
    names = list(dict.fromkeys(name for card in cards for name in card.numbers))
    yield "  ".join([*names, "film"])
    for card in cards:
        cells = [f"{card.numbers[name]:.3f}" if name in card.numbers else "-" for name in names]
        yield "  ".join(
            [*(cell.rjust(len(name)) for cell, name in zip(cells, names, strict=True)), card.name]
        )
