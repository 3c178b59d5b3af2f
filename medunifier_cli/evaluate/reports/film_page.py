"""What the page of a film shows: its report, classes by prompts, where the sentences look, and similar cases.

n cases, Q queries, E joint space of ITC.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medunifier_cli import __version__
from medunifier_cli.checkpoint.pretrained import PretrainedRun
from medunifier_cli.data.contract import FileImage
from medunifier_cli.data.images.image import image_from
from medunifier_cli.data.texts.no_finding import NO_FINDING, NO_FINDING_PROMPT
from medunifier_cli.errors import DataError, MuError
from medunifier_cli.evaluate.benchmark import Benchmark, open_benchmark
from medunifier_cli.evaluate.films.likeness import Likeness, summary
from medunifier_cli.evaluate.films.origin import origin_of_run
from medunifier_cli.evaluate.reports.looks import sentences, token_maps
from medunifier_cli.evaluate.reports.writer import Decoding, GeneratedReport, whole_text
from medunifier_cli.evaluate.retrieval.embed import Embeddings, embed_many_images, embed_split
from medunifier_cli.evaluate.retrieval.zeroshot import classify, ensembles_of
from medunifier_cli.model.precision import measuring
from medunifier_cli.page.film_page import (
    FILM,
    Case,
    ClassBar,
    Colophon,
    Film,
    Sentence,
    overlaid,
    write_film_page,
)
from medunifier_cli.page.pictures import shown
from medunifier_cli.plugin_index import prepared_dataset

MOST_FILMS = 100
"""In one page: each takes some 0.3 MB of it."""
CASES = 6
"""Similar cases of each film."""


@dataclass(frozen=True)
class Cases:
    """A split whose cases films are compared with."""

    benchmark: Benchmark
    embeddings: Embeddings

    def nearest(self, image_QE: NDArray[np.float32]) -> list[tuple[int, float]]:
        """The most similar images of the split: number, and similarity as in `similarities`."""
        scores_n = similarities(image_QE, self.embeddings.image_nQE)
        best = np.argsort(-scores_n, kind="stable")[:CASES]
        return [(int(number), float(scores_n[number])) for number in best]

    def shown(self, image_QE: NDArray[np.float32]) -> list[Case]:
        """They with image and text.

        Raises:
            DataError: an image of the shards is damaged.
        """
        source, cases = self.benchmark.source, []
        for number, score in self.nearest(image_QE):
            row = int(source.rows[number])
            key = source.shards.key(row)
            try:
                with Image.open(io.BytesIO(source.shards.image(row)), formats=("PNG", "JPEG")) as image:
                    picture = shown(image.convert("L"), f"similar case {key}")
            except Exception as error:  # decoders raise all kinds of errors on damaged files
                where = source.shards.where(row)
                raise DataError(f"{where}: damaged image; run `mu prepare` again") from error
            cases.append(Case(key, score, picture, whole_text(source, number)))
        return cases


def similarities(image_QE: NDArray[np.float32], image_nQE: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of an image to n others, [n] in [-1, 1]: of each query to its counterpart, mean over Q."""
    block = 512
    parts = [
        np.einsum("qe,nqe->n", image_QE, image_nQE[start : start + block])
        for start in range(0, len(image_nQE), block)
    ]
    return (np.concatenate(parts) / len(image_QE)).astype(np.float32)


def check_films(files: Sequence[Path]) -> None:
    """Refuse more films than a page holds.

    Raises:
        MuError: there are more than `MOST_FILMS`.
    """
    if len(files) > MOST_FILMS:
        raise MuError(
            f"--page shows at most {MOST_FILMS} films, and these are {len(files):,}; give fewer, or "
            "leave --page out and take --format json"
        )


def film_page(
    trained: PretrainedRun,
    reports: Sequence[tuple[Path, GeneratedReport | str]],
    likeness: Sequence[Likeness],
    decoding: Decoding,
    out: Path,
) -> Path:
    """Write the page of films whose reports have been generated.

    Args:
        reports: of each file, or why it could not be read; at least one report.
        likeness: of the films with reports to the training films, in order; empty where nobody asked.
        decoding: how the reports were written.
        out: the page, or the folder of its `index.html`.

    Returns:
        The page, which nobody can read who cannot read its films and the similar cases.

    Raises:
        DataError: the disk is full or cannot be written to, or the split of similar cases is damaged.
    """
    size = trained.recipe.data.image_size
    written = [(path, report) for path, report in reports if isinstance(report, GeneratedReport)]
    small = np.stack([image_from(FileImage(path), size).pixels for path, _ in written])
    image_n1HW = torch.from_numpy(small[:, None])
    bars, judged = _classes(trained, image_n1HW)
    cases, found = _cases(trained)
    image_nQE = embed_many_images(trained, image_n1HW) if cases else None
    films = []
    for number, (path, report) in enumerate(written):
        large = image_from(FileImage(path), max(size, FILM)).pixels
        looks = _sentences(trained, image_n1HW[number : number + 1], large, report)
        left_out = {
            "classes": judged, "cases": found,
            "sentences": "There is nothing to show: the report has no sentence, or no layer of this model "
            "reads queries that have looked at the image.",
        }  # fmt: skip
        films.append(
            Film(
                name=path.name,
                image=shown(large, f"the film {path.name}", FILM),
                report=report.text,
                sections=report.sections,
                sentences=looks,
                classes=bars[number] if bars else (),
                cases=cases.shown(image_nQE[number]) if cases and image_nQE is not None else (),
                left_out=left_out,
                notes=_notes(report, likeness[number] if likeness else None),
            )
        )
    skipped = {str(path): why for path, why in reports if isinstance(why, str)}
    colophon = Colophon(_about(trained, decoding), judged, found, skipped)
    sources = [path for path, _ in written] + ([cases.benchmark.shards] if cases else [])
    return write_film_page(out, films, colophon, sources)


def _notes(report: GeneratedReport, likeness: Likeness | None) -> list[str]:
    """What a reader must know first."""
    said = summary([likeness] if likeness is not None else [])
    notes = [said[0].upper() + said[1:] + "."] if said else []
    if not report.ended:
        notes.append("The report was cut at its maximum length.")
    return notes


def _about(trained: PretrainedRun, decoding: Decoding) -> Mapping[str, str]:
    size = trained.recipe.data.image_size
    return {
        "model": str(origin_of_run(trained)),
        "image size": f"the model saw {size} x {size} pixels of each film",
        "decoding": decoding.describe(),
        "program": f"mu {__version__}",
    }


def _classes(trained: PretrainedRun, image_n1HW: Tensor) -> tuple[list[list[ClassBar]], str]:
    """The classes of each film, and how they were judged; or no film, and why not."""
    if not trained.recipe.objectives.itc:
        return [], "Not shown: the run was trained without ITC, and cannot compare images with prompts."
    data = trained.recipe.data
    try:
        plugin = prepared_dataset(data.dataset, data.shards)
        (ensemble,) = ensembles_of(plugin, "", None, "max", 0)
        prompts = ensemble.sampled(plugin.classes)
        if len(prompts) < 2:
            raise DataError(f"{plugin.name} names fewer than two classes")
        # without it a film that shows nothing has one class near 1, beside a report that says so
        offered = not any(name.lower() == NO_FINDING.lower() for name in prompts)
        prompts |= {NO_FINDING: [NO_FINDING_PROMPT]} if offered else {}
        probability_nC, _ = classify(trained, image_n1HW, prompts, ensemble.over)
    except MuError as error:
        return [], f"Not shown: {error}."
    ours = f", and ours for {NO_FINDING}" if offered else ""
    said = (
        f"How well the film fits the sentences that {plugin.name} has for each class{ours}; the numbers sum "
        "to 1. It is not the answer of a fine-tuned run: mu predict gives that."
    )
    rows = [
        [ClassBar(name, float(p)) for name, p in zip(prompts, row, strict=True)] for row in probability_nC
    ]
    return [sorted(bars, key=lambda bar: -bar.probability) for bars in rows], said


def _cases(trained: PretrainedRun) -> tuple[Cases | None, str]:
    """The run's held-out split, encoded; or none, and why not."""
    if not trained.recipe.objectives.itc:
        return None, "Not shown: the run was trained without ITC, and has no space to compare images in."
    try:
        benchmark = open_benchmark(trained, need_text=False)
    except MuError as error:
        return None, f"Not shown: the cases of the held-out split are not here ({error})."
    name = benchmark.plugin.name
    embeddings = embed_split(trained, benchmark.source, name, benchmark.split, benchmark.shards)
    return Cases(benchmark, embeddings), (
        f"Of {len(embeddings.keys):,} held-out cases of {name}/{benchmark.split}, with the texts that "
        "the data set has of them. Similarity: cosine in "
        "the joint space, each query with its counterpart, mean over the queries; 1 is the same."
    )


def _sentences(
    trained: PretrainedRun, image_11HW: Tensor, large_SS: NDArray[np.uint8], report: GeneratedReport
) -> list[Sentence]:
    with measuring():
        memory = trained.model.encode(image_11HW.to(trained.device))
        maps_TGG = token_maps(trained.model, memory, report.tokens, trained.tokenizer.dec_id)
    if not len(maps_TGG):
        return []
    found = []
    for text, part in sentences(trained.tokenizer, report.tokens):
        share_GG = maps_TGG[part].mean(axis=0)
        alt = f"the film, with the patches marked that this sentence draws on: {text}"
        found.append(Sentence(text, overlaid(large_SS, share_GG, alt), float(share_GG.max() * share_GG.size)))
    return found
